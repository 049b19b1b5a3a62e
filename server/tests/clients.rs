//! Gate 137: clients as they come from PyPI: streaming, errors, schemas, hanging up. With `target/clients`, which
//! `server/tests/clients.sh` makes; `./check --full` does.

mod support;

use std::process::Command;
use support::Running;

#[test]
fn gate_137_real_clients_find_what_they_expect() {
    let python = dollop_tests::root().join("target/clients/bin/python");
    if !python.is_file() {
        assert!(!dollop_tests::full(), "run server/tests/clients.sh first");
        eprintln!("no clients in target/clients: left out");
        return;
    }
    let server = Running::new(|_| {});
    let script = dollop_tests::root().join("server/tests/clients.py");
    let url = format!("http://{}", server.address);
    let out = Command::new(python).arg(script).args([&url, "m"]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(said.lines().collect::<Vec<_>>(), ["openai", "anthropic", "ollama", "langchain"], "{errors}");
    assert!(server.metric("dollop_requests_cancelled_total") >= 1.0);
}
