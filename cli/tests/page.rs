//! Gate 169: the chat page of `dollop serve` in Chromium, on the default model with a budget in which its experts are streamed. With
//! `target/page`, which `server/web/browser.sh` makes; `./check --full` does.

use dollop_tests::{default_model, root};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A server that ends with the test.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn new(args: &[&str], cache: &Path) -> Served {
        let mut child = Command::new(env!("CARGO_BIN_EXE_dollop"))
            .args(["serve", "--listen", "127.0.0.1:0", "--backend", "cpu", "--ctx", "1024"])
            .args(args)
            .env("XDG_CACHE_HOME", cache)
            .env("DOLLOP_MODEL", default_model())
            .env_remove("DOLLOP_API_KEY")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let url = lines.by_ref().find_map(|line| {
            let line = line.unwrap();
            Some(line.split_once("serving at ")?.1.split(',').next()?.to_owned())
        });
        // What it says later is of no interest, and must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, url: url.expect("the server says where it is") }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn gate_169_the_page_works_in_a_browser() {
    let tools = root().join("target/page/packages");
    if !tools.is_file() {
        assert!(!dollop_tests::full(), "run server/web/browser.sh first");
        eprintln!("no browser's driver in target/page: left out");
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let key = cache.path().join("key.txt");
    std::fs::write(&key, "secret").unwrap();
    let streams = Served::new(&["--memory", "128M", "--max-memory", "150M"], cache.path());
    let locked = Served::new(&["--api-key-file", key.to_str().unwrap()], cache.path());
    let out = Command::new("node")
        .arg(root().join("server/web/browser.mjs"))
        .args([&streams.url, &locked.url])
        .output()
        .unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let parts = [
        "send", "picture", "memory", "stop", "edit", "again", "reload", "schema", "errors", "hostile",
        "long", "broken", "key", "keyboard", "axe", "phone",
    ];
    assert_eq!(said.lines().collect::<Vec<_>>(), parts, "{errors}");
    assert!(out.status.success(), "{errors}");
}
