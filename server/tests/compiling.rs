//! Gate 191: a schema that takes long to compile does not hold up the answers of other requests.

mod support;

use serde_json::{Value as Json, json};
use support::Running;

/// Tokens that another answer must get while the schema is compiled.
const TOKENS: f64 = 8.0;

/// A schema that takes longer to compile the larger `size` is. It is refused in the end: to find the place of
/// the error, each part is compiled alone, with the large definition that it refers to.
fn heavy(size: usize) -> Json {
    let property = |i: usize| {
        let pattern = format!("^([a-z]{{1,40}}{i}|[0-9]{{1,40}}x)+$");
        (format!("property {i}"), json!({"type": "string", "pattern": pattern}))
    };
    let object =
        |properties: serde_json::Map<String, Json>| json!({"type": "object", "properties": properties});
    let large = object((0..100).map(property).collect());
    let part = |i: usize| (format!("part {i}"), json!({"$ref": "#/$defs/large"}));
    let bad = ("the last".to_owned(), json!({"type": "nonsense"}));
    let mut whole = object((0..size).map(part).chain([bad]).collect());
    whole["$defs"] = json!({"large": large});
    whole
}

#[test]
fn gate_191_a_heavy_schema_holds_up_no_other_answer() {
    let server = Running::new(|o| o.parallel = 2);
    // Another constraint first: the vocabulary's table is built once.
    let small = json!({"prompt": "x", "max_tokens": 4, "response_format": {"type": "json_object"}});
    server.post("/v1/completions", &small).json();
    for size in [10, 40, 150] {
        let long =
            json!({"prompt": "Once upon a time", "ignore_eos": true, "max_tokens": 480, "stream": true});
        let mut stream = server.open("POST", "/v1/completions", &[], long.to_string().as_bytes());
        stream.until("data: ");
        let format = json!({"type": "json_schema", "json_schema": {"schema": heavy(size)}});
        let body = json!({"prompt": "x", "max_tokens": 1, "response_format": format}).to_string();
        let tokens = std::thread::scope(|scope| {
            let asked = scope.spawn(|| server.send("POST", "/v1/completions", &[], body.as_bytes()).status);
            let begun = || server.metric("dollop_constraints_compiling") == 1.0;
            while !begun() && !asked.is_finished() {}
            let before = server.metric("dollop_step_tokens_total");
            let mut tokens = 0.0;
            // The counter is read first: what it counts came while the schema was still being compiled.
            while tokens < TOKENS {
                let now = server.metric("dollop_step_tokens_total") - before;
                if !begun() {
                    break;
                }
                tokens = now;
            }
            drop(stream);
            assert_eq!(asked.join().unwrap(), 400);
            tokens
        });
        println!("size {size}: {tokens} tokens");
        if tokens >= TOKENS {
            return;
        }
    }
    panic!("no other answer got {TOKENS} tokens while a schema was compiled");
}
