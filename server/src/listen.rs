//! Accepts connections, limits their number, and closes them when the server stops.

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

/// Interval at which the server checks the stop token.
const LOOK: Duration = Duration::from_millis(50);
/// Time for cancelled answers to send their last bytes.
const LAST: Duration = Duration::from_secs(5);
/// Limit on the bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// A server that is bound to its address and has opened its sessions. It accepts no requests until
/// [`Server::run`].
pub struct Server {
    listener: TcpListener,
    service: Arc<Service>,
}

impl Server {
    /// Binds the address and opens the sessions.
    ///
    /// # Errors
    /// `Io` if the address cannot be bound. `Invalid` if the budget has no room for the sessions.
    pub fn bind(engine: Engine, options: ServerOptions) -> Result<Server, Error> {
        let address = options.listen;
        let failed = |source| Error::Io { path: address.to_string().into(), source };
        let listener = TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Server { listener, service: Arc::new(Service::new(engine, options)?) })
    }

    /// The address that the server listens on, with the actual port.
    ///
    /// # Errors
    /// `Io` if the system call fails.
    pub fn address(&self) -> Result<SocketAddr, Error> {
        self.listener.local_addr().map_err(|source| Error::Io { path: "listener".into(), source })
    }

    /// Token positions of each session.
    pub fn context(&self) -> usize {
        self.service.pool.context
    }

    /// Serves until `stop` is cancelled. Running answers then have [`ServerOptions::grace`] to finish.
    ///
    /// # Errors
    /// `Io` if the system gives no threads or sockets.
    pub fn run(self, stop: &CancelToken) -> Result<(), Error> {
        let failed = |source| Error::Io { path: "server".into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let service = self.service.clone();
        let served = runtime.block_on(self.serve(stop)).map_err(failed);
        runtime.shutdown_timeout(LAST);
        // Cancelled generations end with their current step.
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
            // Until the last answer is done, the loop still accepts connections, so that new requests get
            // 503.
            if deadline.is_some_and(|at| service.queue.load().0 == 0 || Instant::now() >= at) {
                break;
            }
            if let Ok(accepted) = timeout(LOOK, connections.accept(&listener)).await {
                match accepted {
                    Ok(()) => {}
                    Err(e) => {
                        // For example too many open files. Open connections continue, and closing them frees
                        // some.
                        log::warn!("failed to accept a connection: {e}");
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
        // Disables Nagle's algorithm: pieces of answers are small and should be sent at once.
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
