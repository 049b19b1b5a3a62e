//! Models by name, against a stand-in for the hub on loopback: gates 140 to 143, 201 and 202.

#[path = "hub/names.rs"]
mod names;
#[path = "hub/plan.rs"]
mod plan;
#[path = "hub/server.rs"]
mod server;
#[cfg(target_os = "linux")]
#[path = "hub/stream.rs"]
mod stream;

use server::Hub;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Bytes of a piece in these tests: files of a few hundred KiB have many.
const PIECE: u64 = 16 << 10;

/// A machine's folders, and the hub that it knows.
struct Place {
    folder: TempDir,
    hub: Hub,
}

impl Place {
    fn new(hub: Hub) -> Place {
        Place { folder: tempfile::tempdir().unwrap(), hub }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dollop"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("HF_ENDPOINT", &self.hub.endpoint)
            .env("HF_HOME", self.path("hf"))
            .env("XDG_CACHE_HOME", self.path("cache"))
            // Without it, a library under Vulkan writes an error to stderr.
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .env("DOLLOP_PIECE_BYTES", PIECE.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for name in [
            "HF_TOKEN",
            "HF_TOKEN_PATH",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "HTTP_PROXY",
            "http_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            command.env_remove(name);
        }
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().unwrap()
    }

    fn run(&self, args: &[&str]) -> Output {
        self.start(args).wait_with_output().unwrap()
    }

    /// Runs; expects success; returns stdout without its last line feed, and stderr.
    fn ok(&self, args: &[&str]) -> (String, String) {
        succeeded(args, self.run(args))
    }

    /// Runs; expects exit status 1 and one line of error with these words.
    fn fails(&self, args: &[&str], words: &[&str]) {
        failed(args, self.run(args), words);
    }

    /// Files whose names end so, in all caches.
    fn files(&self, end: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(self.folder.path(), &mut |path| {
            if path.to_str().is_some_and(|p| p.ends_with(end)) {
                found.push(path.to_path_buf());
            }
        });
        found
    }
}

fn succeeded(args: &[&str], out: Output) -> (String, String) {
    let errors = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success(), "{args:?}: {errors}");
    (String::from_utf8(out.stdout).unwrap().trim_end().to_owned(), errors)
}

fn failed(args: &[&str], out: Output, words: &[&str]) {
    let errors = String::from_utf8(out.stderr).unwrap();
    let lines: Vec<&str> = errors.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!((out.status.code(), lines.len()), (Some(1), 1), "{args:?}: {errors}");
    for word in words {
        assert!(lines[0].contains(word), "{args:?}: `{}` does not say `{word}`", lines[0]);
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

fn walk(folder: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            walk(&path, each);
        } else {
            each(&path);
        }
    }
}

/// Bytes without a pattern.
fn noise(n: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..n).map(|_| next()).collect()
}
