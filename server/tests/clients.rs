//! Gate 137: client libraries from PyPI and npm. They test streaming, errors, schemas, log probabilities and
//! disconnecting. They are installed in `target/clients` by `server/tests/clients.sh`, which `./check --full` runs.

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
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["openai", "anthropic", "ollama", "langchain", "llm"],
        "{errors}"
    );
    assert!(server.metric("dollop_requests_cancelled_total") >= 1.0);
    // Node finds the package beside the script, so the script is copied there.
    let folder = dollop_tests::root().join("target/clients/node");
    let copy = folder.join("clients.mjs");
    std::fs::copy(dollop_tests::root().join("server/tests/clients.mjs"), &copy).unwrap();
    let out = Command::new("node").arg(copy).args([&url, "m"]).output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(said.trim(), "openai for Node", "{errors}");
    assert!(server.metric("dollop_requests_cancelled_total") >= 2.0);
}
