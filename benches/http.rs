//! A small HTTP client for the load programs: one connection a request, and the means to misbehave.

use serde_json::Value as Json;
use std::io::{BufRead, BufReader, Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Time after which a request that hangs is an error.
const LIMIT: Duration = Duration::from_secs(600);

/// A response whose body is not read yet.
pub struct Reply {
    /// The status code.
    pub status: u16,
    chunked: bool,
    length: Option<usize>,
    stream: BufReader<TcpStream>,
}

fn broken(why: &str) -> Error {
    Error::other(why.to_owned())
}

/// Sends bytes that need not be a request. The stream can be read or dropped.
///
/// # Errors
/// Those of the connection.
pub fn send(to: SocketAddr, bytes: &[u8]) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    stream.write_all(bytes)?;
    Ok(stream)
}

/// The bytes of a request.
pub fn request(to: SocketAddr, method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {to}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Sends a request and reads the head of its response.
///
/// # Errors
/// Those of the connection, and a response that is not HTTP.
pub fn open(to: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<Reply> {
    let mut stream = BufReader::new(send(to, &request(to, method, path, body))?);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| broken("no status"))?;
    let (mut chunked, mut length) = (false, None);
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(broken("the head ended early"));
        }
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        match &*name.to_ascii_lowercase() {
            "transfer-encoding" => chunked = value == "chunked",
            "content-length" => length = value.parse().ok(),
            _ => {}
        }
    }
    Ok(Reply { status, chunked, length, stream })
}

impl Reply {
    /// Reads the next part of the body. `None` at its end.
    ///
    /// # Errors
    /// Those of the connection, and a body that ends early.
    pub fn part(&mut self) -> Result<Option<Vec<u8>>> {
        if !self.chunked {
            let Some(length) = self.length.take() else { return Ok(None) };
            let mut all = vec![0; length];
            self.stream.read_exact(&mut all)?;
            return Ok(Some(all));
        }
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim_end(), 16).map_err(|_| broken("the body ended early"))?;
        let mut part = vec![0; size];
        self.stream.read_exact(&mut part)?;
        line.clear();
        self.stream.read_line(&mut line)?;
        Ok((size > 0).then_some(part))
    }

    /// Reads the rest of the body.
    ///
    /// # Errors
    /// As [`Reply::part`], and a body that is not UTF-8.
    pub fn text(mut self) -> Result<String> {
        let mut all = Vec::new();
        while let Some(part) = self.part()? {
            all.extend(part);
        }
        String::from_utf8(all).map_err(Error::other)
    }

    /// Reads the rest of the body as JSON.
    ///
    /// # Errors
    /// As [`Reply::text`], and a body that is not JSON.
    pub fn json(self) -> Result<Json> {
        serde_json::from_str(&self.text()?).map_err(Error::other)
    }
}

/// The JSON objects of a streamed body: server-sent events or lines.
pub fn events(text: &str) -> Vec<Json> {
    let lines = text.lines().map(|line| line.strip_prefix("data: ").unwrap_or(line));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}
