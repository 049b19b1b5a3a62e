//! Gate 139: the prefix cache keeps prompt prefixes on disk across restarts.

mod support;

use dollop_server::ServerOptions;
use serde_json::{Value as Json, json};
use std::path::Path;
use support::Running;

const LONG: usize = 400;

fn prompt(seed: usize, n: usize) -> Vec<usize> {
    (0..n).map(|i| 10 + (i * 7919 + seed * 104_729) % 40_000).collect()
}

fn ask(server: &Running, prompt: &[usize]) -> (Json, u64) {
    let body = json!({"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": true});
    let reply = server.post("/v1/completions", &body).json();
    let cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    (reply["choices"].clone(), cached)
}

fn with(folder: &Path, bytes: u64) -> impl FnOnce(&mut ServerOptions) + use<> {
    let folder = folder.to_owned();
    move |o| (o.prefix_cache, o.prefix_cache_bytes) = (Some(folder), bytes)
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn gate_139_a_prompt_that_goes_on_is_not_read_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (first, more) = (prompt(1, LONG), [prompt(1, LONG), prompt(9, 16)].concat());
    let fresh = Running::new(|_| {});
    let (want_first, want_more) = (ask(&fresh, &first).0, ask(&Running::new(|_| {}), &more).0);
    let server = Running::new(with(folder.path(), 1 << 30));
    assert_eq!(ask(&server, &first), (want_first.clone(), 0));
    // Another prompt takes the session, so its tokens are written to a file. The next request loads that
    // file.
    ask(&server, &prompt(2, LONG));
    assert_eq!((server.metric("dollop_prefix_files_saved_total"), files(folder.path()).len()), (1.0, 1));
    assert_eq!(ask(&server, &more), (want_more.clone(), LONG as u64));
    assert_eq!(server.metric("dollop_prefix_tokens_total"), LONG as f64);
    let before = server.metric("dollop_prompt_tokens_total");
    server.stop.cancel();
    server.join();
    assert!(before > 0.0 && files(folder.path()).len() == 3, "a server that stops writes what it holds");
    // After a restart, two servers use the folder at once.
    let most = (more.len() - support::engine().least_call()) as u64;
    for _ in 0..2 {
        let (a, b) = (Running::new(with(folder.path(), 1 << 30)), Running::new(with(folder.path(), 1 << 30)));
        assert_eq!(ask(&a, &more), (want_more.clone(), most));
        assert_eq!(ask(&b, &more), (want_more.clone(), most));
        assert_eq!(ask(&b, &first).0, want_first);
        assert!(a.metric("dollop_prefix_files_skipped_total") == 0.0);
    }
}

#[test]
fn gate_139_what_is_damaged_is_skipped_and_what_is_old_goes() {
    let folder = tempfile::tempdir().unwrap();
    let (first, more) = (prompt(1, LONG), [prompt(1, LONG), prompt(9, 16)].concat());
    let want = ask(&Running::new(|_| {}), &more).0;
    let server = Running::new(with(folder.path(), 1 << 30));
    ask(&server, &first);
    server.stop.cancel();
    server.join();
    let [file] = &files(folder.path())[..] else { panic!("one file") };
    let good = std::fs::read(file).unwrap();
    // Damage in the layers' data, damage in the header, and two truncated files. `other.prefix` is no saved
    // session.
    for (at, cut) in [(good.len() - 100, 0), (20, 0), (0, 1000), (0, good.len() - 10)] {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        bytes.truncate(bytes.len() - cut);
        std::fs::write(file, &bytes).unwrap();
        std::fs::write(folder.path().join("other.prefix"), b"something else").unwrap();
        let server = Running::new(with(folder.path(), 1 << 30));
        assert_eq!(ask(&server, &more), (want.clone(), 0));
        assert!(server.metric("dollop_prefix_files_skipped_total") == 2.0);
        assert_eq!(server.metric("dollop_prefix_tokens_total"), 0.0);
        server.stop.cancel();
        server.join();
        std::fs::remove_file(folder.path().join("other.prefix")).unwrap();
        // Remove the file that the server wrote in place of the damaged one.
        files(folder.path())
            .iter()
            .filter(|path| *path != file)
            .for_each(|path| std::fs::remove_file(path).unwrap());
    }
    // The limit has room for two and a half files.
    std::fs::write(file, &good).unwrap();
    let limit = good.len() as u64 * 5 / 2;
    let server = Running::new(with(folder.path(), limit));
    assert_eq!(ask(&server, &more), (want, LONG as u64));
    for seed in 2..6 {
        ask(&server, &prompt(seed, LONG));
        let all: u64 = files(folder.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
        assert!(all <= limit, "{all} bytes of {limit}");
    }
    assert!(server.metric("dollop_prefix_files_saved_total") >= 3.0);
    assert!(!file.exists(), "the oldest went");
}
