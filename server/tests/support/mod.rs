//! A test server with the default model on a free port, and an HTTP client that can misbehave.

#![allow(dead_code)]

use dollop::{CancelToken, Engine, EngineOptions};
use dollop_server::{Server, ServerOptions};
use serde_json::Value as Json;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::Duration;

/// Time after which a test that hangs fails.
const LIMIT: Duration = Duration::from_secs(600);

/// The default model, opened once per process.
pub fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let open =
        || Engine::open(dollop_tests::default_model(), &EngineOptions::default().with_context(1024)).unwrap();
    ENGINE.get_or_init(open).clone()
}

/// A running server. Dropping it stops the server.
pub struct Running {
    pub address: SocketAddr,
    pub stop: CancelToken,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Starts a server with the default model, named `m`, on a free port. `change` edits the options.
    pub fn new(change: impl FnOnce(&mut ServerOptions)) -> Running {
        Running::of(engine(), change)
    }

    /// Starts a server with another model.
    pub fn of(engine: Engine, change: impl FnOnce(&mut ServerOptions)) -> Running {
        let mut options = ServerOptions::default();
        options.listen.set_port(0);
        options.model = "m".into();
        change(&mut options);
        let server = Server::bind(engine, options).unwrap();
        let (address, stop) = (server.address().unwrap(), CancelToken::new());
        let token = stop.clone();
        let thread = Some(std::thread::spawn(move || server.run(&token).unwrap()));
        Running { address, stop, thread }
    }

    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: &Json) -> Reply {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }

    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        self.open(method, path, headers, body).reply()
    }

    /// Sends a request without reading the response.
    pub fn open(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Open {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut head =
            format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("host: {}\r\n", self.address);
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        // Writing the body may fail, because a server that refuses a request early does not read all of it.
        let _ = stream.write_all(body);
        Open(BufReader::new(stream))
    }

    /// The value of a metric in `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").text;
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    /// Waits until a metric has the given value.
    pub fn wait(&self, name: &str, value: f64) {
        let start = std::time::Instant::now();
        while self.metric(name) != value {
            assert!(start.elapsed() < LIMIT, "{name} is {} and not {value}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the server has stopped.
    pub fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

/// A request whose response is not read yet. Dropping it closes the connection.
pub struct Open(BufReader<TcpStream>);

/// A complete response.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Open {
    /// Reads a line of the head or the body. Lines with chunk sizes are included.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Reads lines until one contains `text`.
    pub fn until(&mut self, text: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Reads the remaining events of a stream whose head has been read.
    pub fn rest(mut self) -> Vec<Json> {
        let mut text = String::new();
        self.0.read_to_string(&mut text).unwrap();
        let data = text.lines().filter_map(|l| l.strip_prefix("data: ")).filter(|l| *l != "[DONE]");
        data.map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Reads to the end of a stream. Returns whether it ended properly, with the terminating chunk.
    pub fn reply_is_over(mut self) -> bool {
        let mut text = String::new();
        self.0.read_to_string(&mut text).is_ok() && text.ends_with("0\r\n\r\n")
    }

    /// Reads the whole response.
    pub fn reply(mut self) -> Reply {
        let status = self.line();
        let status =
            status.split(' ').nth(1).unwrap_or_else(|| panic!("no response: {status:?}")).parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let mut reply = Reply { status, headers, text: String::new() };
        let mut bytes = Vec::new();
        if reply.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                let at = bytes.len();
                bytes.resize(at + size, 0);
                self.0.read_exact(&mut bytes[at..]).unwrap();
                self.line();
                if size == 0 {
                    break;
                }
            }
        } else {
            self.0.read_to_end(&mut bytes).unwrap();
        }
        reply.text = String::from_utf8(bytes).unwrap();
        reply
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The JSON body. Asserts status 200.
    #[track_caller]
    pub fn json(&self) -> Json {
        assert_eq!(self.status, 200, "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The JSON body of an error. Asserts its status.
    #[track_caller]
    pub fn error(&self, status: u16) -> Json {
        assert_eq!(self.status, status, "{}", self.text);
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The JSON objects of server-sent events or of NDJSON lines.
    #[track_caller]
    pub fn events(&self) -> Vec<Json> {
        assert_eq!(self.status, 200, "{}", self.text);
        let data =
            self.text.lines().filter(|l| !l.is_empty() && !l.starts_with("event: ") && !l.starts_with(':'));
        let data = data.map(|l| l.strip_prefix("data: ").unwrap_or(l)).filter(|l| *l != "[DONE]");
        data.map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
}

/// Concatenates the strings at `pointer` of all events.
pub fn joined(events: &[Json], pointer: &str) -> String {
    events.iter().filter_map(|e| e.pointer(pointer)?.as_str()).collect()
}
