//! Connections: they are accepted, limited, and ended when the server stops.

use crate::app;
use crate::options::ServerOptions;
use crate::service::Service;
use dollop::{CancelToken, Engine, Error};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

/// How often the token that stops the server is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Time that cancelled answers have to send their end.
const LAST: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A server that has its address and its sessions, and takes no requests yet.
pub struct Server {
    listener: TcpListener,
    service: Arc<Service>,
}

impl Server {
    /// Takes the address and opens the sessions.
    ///
    /// # Errors
    /// `Io` for an address that cannot be had, `Invalid` where the budget has no room for so many sessions.
    pub fn bind(engine: Engine, options: ServerOptions) -> Result<Server, Error> {
        let address = options.listen;
        let failed = |source| Error::Io { path: address.to_string().into(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Server { listener, service: Arc::new(Service::new(engine, options)?) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// `Io`, where the system does not say.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        self.listener.local_addr().map_err(|source| Error::Io { path: "listener".into(), source })
    }

    /// Positions of each session.
    pub fn context(&self) -> usize {
        self.service.pool.context
    }

    /// Serves until `stop` is cancelled. Running answers then have the grace of the options to finish.
    ///
    /// # Errors
    /// `Io`, where the system gives no threads or sockets.
    pub fn run(self, stop: &CancelToken) -> Result<(), Error> {
        let failed = |source| Error::Io { path: "server".into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let service = self.service.clone();
        let served = runtime.block_on(self.serve(stop)).map_err(failed);
        runtime.shutdown_timeout(LAST);
        // What still computes ends with its step.
        service.scheduler.stop(LAST);
        if let Some(prefixes) = &service.prefixes {
            service.pool.keep(prefixes);
        }
        served
    }

    async fn serve(self, stop: &CancelToken) -> std::io::Result<()> {
        let Server { listener, service } = self;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let connections = Connections::new(&service);
        let mut deadline = None;
        loop {
            if deadline.is_none() && stop.is_cancelled() {
                service.queue.stop();
                deadline = Some(Instant::now() + service.options.grace);
            }
            // Until the last answer is done, new requests hear that the server stops.
            if deadline.is_some_and(|at| service.queue.load().0 == 0 || Instant::now() >= at) {
                break;
            }
            if let Ok(accepted) = timeout(LOOK, connections.accept(&listener)).await {
                match accepted {
                    Ok(()) => {}
                    Err(e) => {
                        // Such as too many open files: those that are open go on, and may end.
                        log::warn!("a connection could not be accepted: {e}");
                        sleep(LOOK).await;
                    }
                }
            }
        }
        service.queue.cancel();
        drop(listener);
        let _ = timeout(LAST, connections.graceful.shutdown()).await;
        Ok(())
    }
}

struct Connections {
    service: TowerToHyperService<axum::Router>,
    http: hyper::server::conn::http1::Builder,
    graceful: GracefulShutdown,
    room: Arc<Semaphore>,
}

impl Connections {
    fn new(service: &Arc<Service>) -> Connections {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(service.options.read_timeout)
            .max_buf_size(MAX_HEAD_BYTES);
        Connections {
            service: TowerToHyperService::new(app::router(service.clone())),
            http,
            graceful: GracefulShutdown::new(),
            room: Arc::new(Semaphore::new(service.options.max_connections)),
        }
    }

    async fn accept(&self, listener: &tokio::net::TcpListener) -> std::io::Result<()> {
        let room = self.room.clone().acquire_owned().await.map_err(std::io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        // Pieces of answers are small, and wait for no more.
        let _ = stream.set_nodelay(true);
        let connection = self.http.serve_connection(TokioIo::new(stream), self.service.clone());
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(e) = connection.await {
                log::debug!("a connection ended: {e}");
            }
            drop(room);
        });
        Ok(())
    }
}
