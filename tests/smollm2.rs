//! Gate 9: a real model, directly from its GGUF, gives the text of `transformers` with the same weights, and
//! has the same bits per byte.

use dollop::sampler::{Sampling, argmax};
use dollop::{Chat, Engine, EngineOptions, GenerateOptions, Overflow, SessionOptions};
use dollop_tests::{golden, root};
use serde_json::Value as Json;

/// Below this margin, the two best logits are too close for f32 sums in different orders to agree.
const MARGIN: f64 = 0.01;

fn engine() -> Engine {
    let path = root().join("target/goldens/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run tests/goldens/fetch.sh (./check does)", path.display());
    Engine::open_reference(&path, &EngineOptions::default()).unwrap()
}

fn expected() -> Json {
    serde_json::from_str(&std::fs::read_to_string(golden("smollm2/expected.json")).unwrap()).unwrap()
}

#[test]
fn greedy_answers_equal_those_of_transformers() {
    let engine = engine();
    let tokenizer = engine.tokenizer().unwrap();
    let mut whole = 0;
    let expected = expected();
    for prompt in expected["prompts"].as_array().unwrap() {
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(prompt[key].clone()).unwrap();
        let (input, greedy) = (ids("ids"), ids("greedy"));
        assert_eq!(tokenizer.encode(prompt["text"].as_str().unwrap(), false).unwrap(), input);
        let session = engine.session(SessionOptions::default().with_context(512)).unwrap();
        let mut chat = Chat::new(session, None, Overflow::Error).unwrap();
        let options = GenerateOptions::default().with_max_tokens(40).with_sampling(Sampling::greedy());
        let outcome = chat.send(prompt["message"].as_str().unwrap(), &options, &mut |_| ()).unwrap();
        // The template rendered the same prompt; otherwise the rest would be meaningless.
        assert_eq!(outcome.prompt_tokens, input.len());
        let want: Vec<u32> = greedy.iter().copied().filter(|&id| id != 2).collect();
        match outcome.tokens.iter().zip(&want).position(|(a, b)| a != b) {
            None => {
                assert_eq!(outcome.tokens.len(), want.len());
                whole += 1;
            }
            Some(at) => {
                let margin = prompt["margins"][at].as_f64().unwrap();
                println!("{}: differs at token {at}, where the margin is {margin}", prompt["message"]);
                assert!(margin < MARGIN, "{}: token {at} differs at a margin of {margin}", prompt["message"]);
            }
        }
    }
    println!("{whole} answers are equal to the last token");
    assert!(whole >= 5);
}

#[test]
fn bits_per_byte_equal_those_of_transformers() {
    let engine = engine();
    let tokenizer = engine.tokenizer().unwrap();
    let text = std::fs::read_to_string(golden("text/austen.txt")).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    let expected = expected();
    assert_eq!(ids.len() as u64, expected["text"]["tokens"].as_u64().unwrap());
    let mut session = engine.session(SessionOptions::default().with_context(512)).unwrap();
    let (mut bits, mut bytes, mut agreed) = (0.0f64, 0, 0);
    for window in ids.chunks(512) {
        session.rewind(0);
        let targets = &window[1..];
        session
            .for_each_logits(&window[..targets.len()], &mut |i, logits| {
                let max = f64::from(logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v)));
                let sum: f64 = logits.iter().map(|&v| (f64::from(v) - max).exp()).sum();
                bits -= (f64::from(logits[targets[i] as usize]) - max - sum.ln()) / std::f64::consts::LN_2;
                agreed += usize::from(argmax(logits) == targets[i]);
            })
            .unwrap();
        bytes += tokenizer.decode(window, false).len() - tokenizer.decode(&window[..1], false).len();
    }
    let (got, want) = (bits / bytes as f64, expected["text"]["bits_per_byte"].as_f64().unwrap());
    println!("bits per byte {got:.6}, transformers {want:.6}; {agreed} tokens were the likeliest");
    assert_eq!(bytes as u64, expected["text"]["bytes"].as_u64().unwrap());
    assert!((got - want).abs() <= 0.005 * want, "{got} instead of {want}");
}
