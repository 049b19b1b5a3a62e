//! A server that a load program starts, watches and stops.

use crate::http;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Error, Result};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// A running `dollop serve`. Dropping it kills it.
pub struct Served {
    child: Child,
    /// Its address.
    pub address: SocketAddr,
    /// The lines that it wrote to standard error.
    lines: Arc<Mutex<Vec<String>>>,
}

/// Memory of the process, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resident {
    /// All resident pages.
    pub all: u64,
    /// Pages that belong to no file: what the memory budget is for.
    pub anonymous: u64,
}

impl Served {
    /// Starts `command`, such as `dollop serve --listen 127.0.0.1:0`, and waits until it listens.
    ///
    /// # Errors
    /// `Io` if it does not start, or ends before it listens.
    pub fn start(command: &[String]) -> Result<Served> {
        let (program, args) = command.split_first().ok_or_else(|| Error::other("no command of a server"))?;
        let mut child = Command::new(program).args(args).stderr(Stdio::piped()).spawn()?;
        let errors = child.stderr.take().ok_or_else(|| Error::other("no standard error"))?;
        let (mut errors, mut line) = (BufReader::new(errors), String::new());
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let address = loop {
            line.clear();
            if errors.read_line(&mut line)? == 0 {
                return Err(Error::other(format!("the server did not start: {lines:?}")));
            }
            lock(&lines).push(line.clone());
            let url = line.split_once("serving at http://").and_then(|(_, rest)| rest.split(',').next());
            if let Some(address) = url.and_then(|url| url.parse().ok()) {
                break address;
            }
        };
        let kept = lines.clone();
        std::thread::spawn(move || errors.lines().map_while(Result::ok).for_each(|l| lock(&kept).push(l)));
        Ok(Served { child, address, lines })
    }

    /// The values in `/metrics`, by their names with labels.
    ///
    /// # Errors
    /// Those of the request.
    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        let text = http::open(self.address, "GET", "/metrics", b"")?.text()?;
        let pair = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(text.lines().filter(|line| !line.starts_with('#')).filter_map(pair).collect())
    }

    /// The process's memory now (Linux).
    ///
    /// # Errors
    /// `Io` if the process is gone.
    pub fn resident(&self) -> Result<Resident> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let kb = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) << 10
        };
        Ok(Resident { all: kb("VmRSS:"), anonymous: kb("RssAnon:") })
    }

    /// Lines of standard error that tell of a panic.
    pub fn panics(&self) -> Vec<String> {
        lock(&self.lines).iter().filter(|line| line.contains("panicked")).cloned().collect()
    }

    /// Stops the server as `kill` does, and returns whether it ended without an error.
    ///
    /// # Errors
    /// `Io` if it cannot be stopped.
    pub fn stop(mut self) -> Result<bool> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        Ok(self.child.wait()?.success())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
