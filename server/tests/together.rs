//! Gate 138: requests that run as one batch get the same answers as each request alone.

mod support;

use serde_json::{Value as Json, json};
use support::Running;

/// Limit on rounds. On a busy machine, requests sent at once may still run one after another, so the test
/// repeats until enough of them share a step.
const ROUNDS: usize = 20;

fn requests(n: usize) -> Vec<Json> {
    let request = |i: usize| {
        let prompt =
            ["Once upon a time", "The capital of France is", "A list of fruits: apple,", "1, 2, 3,"][i % 4];
        let prompt = prompt.repeat(1 + i % 3 * 4);
        let mut body = json!({"prompt": prompt, "max_tokens": 20 + 3 * i, "seed": i, "ignore_eos": true});
        match i % 4 {
            0 => body["temperature"] = json!(0),
            1 => body["n"] = json!(2),
            2 => body["response_format"] = json!({"type": "json_object"}),
            _ => body["stop"] = json!(["e "]),
        }
        body
    };
    (0..n).map(request).collect()
}

fn choices(server: &Running, body: &Json) -> Json {
    server.post("/v1/completions", body).json()["choices"].clone()
}

#[test]
fn gate_138_answers_together_are_those_alone() {
    let alone = Running::new(|_| {});
    let server = Running::new(|o| o.parallel = 5);
    let bodies = requests(8);
    let want: Vec<Json> = bodies.iter().map(|body| choices(&alone, body)).collect();
    assert_eq!(alone.metric("dollop_step_answers_max"), 1.0);
    for round in 0.. {
        std::thread::scope(|scope| {
            // One more client, which disconnects in the middle of its answer.
            let gone = json!({"prompt": "Far away", "max_tokens": 150, "ignore_eos": true, "stream": true});
            let gone = server.open("POST", "/v1/completions", &[], gone.to_string().as_bytes());
            let server = &server;
            let asked = |body| scope.spawn(move || choices(server, body));
            let asked: Vec<_> = bodies.iter().map(asked).collect();
            let mut gone = gone;
            gone.until("data: ");
            drop(gone);
            for ((asked, want), body) in asked.into_iter().zip(&want).zip(&bodies) {
                assert_eq!(asked.join().unwrap(), *want, "{body}");
            }
        });
        let (steps, tokens) =
            (server.metric("dollop_steps_total"), server.metric("dollop_step_tokens_total"));
        if server.metric("dollop_step_answers_max") >= 4.0 && tokens > 1.3 * steps {
            break;
        }
        assert!(round < ROUNDS, "{tokens} tokens in {steps} steps");
    }
    assert!(server.metric("dollop_requests_cancelled_total") > 0.0);
}
