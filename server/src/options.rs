//! Server options: the address, access control and limits.

use dollop::template::DateTime;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Server options. The defaults are safe: only this machine can connect.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Address and port. Port 0 picks a free port.
    pub listen: SocketAddr,
    /// Host names that clients may send in `Host`, besides `localhost` and IP addresses.
    pub hosts: Vec<String>,
    /// Origins of other sites whose pages may use this server. `*` allows all.
    pub cors: Vec<String>,
    /// The API key that clients must send. Without a key, every client that can connect may use the server.
    pub key: Option<String>,
    /// The model's name in the APIs.
    pub model: String,
    /// Size of the model file in bytes.
    pub model_bytes: u64,
    /// The largest memory budget that clients may set. The default is the budget that the engine was opened
    /// with.
    pub max_memory: Option<u64>,
    /// Number of requests that run at a time. They share the context and its memory.
    pub parallel: usize,
    /// How long decoding waits at most for another request's prefill, plus the time of one layer.
    pub stall: Duration,
    /// Folder of the prefix cache, which keeps prompt prefixes across restarts. By default there is none.
    pub prefix_cache: Option<PathBuf>,
    /// Limit on the bytes of that folder.
    pub prefix_cache_bytes: u64,
    /// Number of requests that may wait for a session. Further requests get 429.
    pub queue: usize,
    /// Time for running answers to finish when the server stops.
    pub grace: Duration,
    /// Limit on the bytes of a request's body.
    pub max_body_bytes: usize,
    /// Number of connections at a time. Further connections wait.
    pub max_connections: usize,
    /// Time limit for reading a request's head, and another for its body.
    pub read_timeout: Duration,
    /// Time without output after which a stream sends a keep-alive.
    pub ping: Duration,
    /// Returns the local date and time, for chat templates that use it.
    pub clock: Option<fn() -> DateTime>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            listen: (Ipv4Addr::LOCALHOST, 8080).into(),
            hosts: Vec::new(),
            cors: Vec::new(),
            key: None,
            model: "dollop".into(),
            model_bytes: 0,
            max_memory: None,
            parallel: 1,
            stall: Duration::from_millis(200),
            prefix_cache: None,
            prefix_cache_bytes: 4 << 30,
            queue: 32,
            grace: Duration::from_secs(10),
            max_body_bytes: 8 << 20,
            max_connections: 128,
            read_timeout: Duration::from_secs(30),
            ping: Duration::from_secs(15),
            clock: None,
        }
    }
}
