//! How a server is run: where it listens, who may use it, and its limits.

use dollop::template::DateTime;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// How a server is run. The defaults are safe: this machine alone.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerOptions {
    /// Address and port; port 0 is one that is free.
    pub listen: SocketAddr,
    /// Names by which clients may call this server (`Host`), beside those of this machine and IP addresses.
    pub hosts: Vec<String>,
    /// Origins of other sites' pages that may use this server; `*` is all.
    pub cors: Vec<String>,
    /// The key that clients must send; without one, every client that reaches the server may use it.
    pub key: Option<String>,
    /// What the model is called.
    pub model: String,
    /// Bytes of the model's file.
    pub model_bytes: u64,
    /// The largest budget of memory that clients may set; by default the one that the engine was opened with.
    pub max_memory: Option<u64>,
    /// Requests that are answered at a time. They share the context and its memory.
    pub parallel: usize,
    /// Time for which answers wait at most while another request's prompt is read, beside that of one layer of it.
    pub stall: Duration,
    /// Where beginnings of prompts are kept across restarts; nowhere by default.
    pub prefix_cache: Option<PathBuf>,
    /// Bytes that they may take there.
    pub prefix_cache_bytes: u64,
    /// Requests that may wait for a session; more are refused with 429.
    pub queue: usize,
    /// Seconds that running answers have to finish when the server is stopped.
    pub grace: Duration,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Connections at a time; more wait.
    pub max_connections: usize,
    /// Time for a request's head, and for its body.
    pub read_timeout: Duration,
    /// Time without a piece of an answer after which a stream carries a sign of life.
    pub ping: Duration,
    /// The local date and time, for templates that say so.
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
