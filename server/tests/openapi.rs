//! Gate 194: the OpenAPI description that the server publishes has exactly the server's endpoints. With
//! `--full`, schemathesis sends generated requests and checks the responses against the description.

mod support;

use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::process::Command;
use support::Running;

/// All values of `$ref`.
fn refs<'a>(json: &'a Json, out: &mut BTreeSet<&'a str>) {
    match json {
        Json::Object(map) => map.iter().for_each(|(key, value)| match value.as_str() {
            Some(name) if key == "$ref" => drop(out.insert(name)),
            _ => refs(value, out),
        }),
        Json::Array(list) => list.iter().for_each(|value| refs(value, out)),
        _ => {}
    }
}

#[test]
fn gate_194_the_description_has_the_endpoints_of_the_server() {
    let server = Running::new(|_| {});
    let description = server.get("/openapi.json").json();
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    let paths = description["paths"].as_object().unwrap();
    let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let mut served: BTreeSet<&str> = dollop_server::routes().iter().copied().collect();
    served.insert("/v1/models/{name}");
    assert_eq!(described, served);
    for (path, methods) in paths {
        let path = path.replace("{name}", "m");
        for method in ["get", "post"] {
            // `/v1/live` does not end, so only the head of a reply is read.
            let mut open = server.open(&method.to_uppercase(), &path, &[], b"{}");
            let status: u16 = open.line().split(' ').nth(1).unwrap().parse().unwrap();
            match methods.get(method) {
                Some(of) => assert!(
                    of["responses"].get(status.to_string()).is_some() && status != 405,
                    "{method} {path}: {status}"
                ),
                None => assert_eq!(status, 405, "{method} {path}"),
            }
        }
    }
    let mut all = BTreeSet::new();
    refs(&description, &mut all);
    assert!(all.len() > 10, "{all:?}");
    for name in all {
        assert!(description.pointer(name.strip_prefix('#').unwrap()).is_some(), "{name}");
    }
    // Fields that the server reads are described.
    let chat = &description["components"]["schemas"]["ChatRequest"]["allOf"][1]["properties"];
    for field in ["messages", "tools", "response_format", "logprobs", "stream"] {
        assert!(!chat[field].is_null(), "{field}");
    }
}

#[test]
fn gate_194_schemathesis_finds_no_response_outside_the_description() {
    let program = dollop_tests::root().join("target/clients/bin/schemathesis");
    if !program.is_file() {
        assert!(!dollop_tests::full(), "run server/tests/clients.sh first");
        eprintln!("no schemathesis in target/clients: left out");
        return;
    }
    // Answers end with the context, so that generated limits of tokens do not matter.
    let server = Running::new(|o| (o.parallel, o.queue) = (8, 64));
    let folder = tempfile::tempdir().unwrap();
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let out = Command::new(program)
        .current_dir(folder.path())
        .args(["run", &format!("http://{}/openapi.json", server.address)])
        .args([
            "--checks",
            checks,
            "--max-examples",
            "20",
            "--seed",
            "1",
            "--workers",
            "2",
            "--phases",
            "fuzzing",
        ])
        .args(["--exclude-path", "/v1/live", "--request-timeout", "300", "--suppress-health-check", "all"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let requests = server.get("/metrics").text;
    let answered = |route: &str| {
        let name = format!("dollop_requests_total{{route=\"{route}\",status=\"200\"}} ");
        requests
            .lines()
            .find_map(|l| l.strip_prefix(&name))
            .and_then(|n| n.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    for route in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/api/chat"] {
        assert!(answered(route) > 2.0, "{route}: too few valid requests\n{requests}");
    }
    server
        .post(
            "/v1/chat/completions",
            &json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}),
        )
        .json();
}
