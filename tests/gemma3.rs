//! Gate 106: Gemma 3 270M, directly from its GGUF, gives the text, the bits per byte and the token ids of `transformers`
//! with the same weights; converted, nearly the same bits per byte. Its file is downloaded only for `./check --full`.

use dollop::sampler::argmax;
use dollop::tokenizer::Tokenizer;
use dollop::{Engine, EngineOptions, SessionOptions};
use dollop_tests::{full, golden, root};
use serde_json::Value as Json;
use std::path::PathBuf;

/// Below this margin, the two best logits are too close for f32 sums in different orders to agree.
const MARGIN: f64 = 0.01;

/// The file, if tests run all cases.
fn file() -> Option<PathBuf> {
    let path = root().join("target/goldens/gemma-3-270m-q4_k_m.gguf");
    assert!(!full() || path.exists(), "{} is missing: run tests/goldens/fetch.sh", path.display());
    full().then_some(path)
}

fn json(name: &str) -> Json {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

/// Bits per byte by the rule of `goldens/text/README.md`, and the numbers of bytes and tokens.
fn bits_per_byte(engine: &Engine, tokenizer: &Tokenizer) -> (f64, usize, usize) {
    let text = std::fs::read_to_string(golden("text/austen.txt")).unwrap();
    let ids = tokenizer.encode(&text, false).unwrap();
    let mut session = engine.session(SessionOptions::default().with_context(512)).unwrap();
    let (mut bits, mut bytes) = (0.0f64, 0);
    for window in ids.chunks(512) {
        session.rewind(0);
        let targets = &window[1..];
        session
            .for_each_logits(&window[..targets.len()], &mut |i, logits| {
                let max = f64::from(logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v)));
                let sum: f64 = logits.iter().map(|&v| (f64::from(v) - max).exp()).sum();
                bits -= (f64::from(logits[targets[i] as usize]) - max - sum.ln()) / std::f64::consts::LN_2;
            })
            .unwrap();
        bytes += tokenizer.decode(window, false).len() - tokenizer.decode(&window[..1], false).len();
    }
    (bits / bytes as f64, bytes, ids.len())
}

#[test]
fn gate_106_greedy_texts_and_bits_per_byte_equal_those_of_transformers() {
    let Some(path) = file() else { return };
    let engine = Engine::open_reference(&path, &EngineOptions::default()).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let expected = json("gemma3/expected.json");
    let (mut whole, mut generated) = (0, 0);
    for prompt in expected["prompts"].as_array().unwrap() {
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(prompt[key].clone()).unwrap();
        let (input, greedy) = (ids("ids"), ids("greedy"));
        assert_eq!(tokenizer.encode(prompt["text"].as_str().unwrap(), true).unwrap(), input);
        let mut session = engine.session(SessionOptions::default().with_context(128)).unwrap();
        let mut next = argmax(session.logits(&input).unwrap().last().unwrap()) as u32;
        let mut different = None;
        for (at, &want) in greedy.iter().enumerate() {
            generated += 1;
            if next != want {
                different = Some(at);
                break;
            }
            next = argmax(session.logits(&[next]).unwrap().last().unwrap()) as u32;
        }
        match different {
            None => whole += 1,
            Some(at) => {
                let margin = prompt["margins"][at].as_f64().unwrap();
                assert!(margin < MARGIN, "{}: token {at} differs at a margin of {margin}", prompt["text"]);
            }
        }
    }
    println!("{whole} texts are equal to the last token, {generated} tokens");
    assert!(whole >= 5 && generated > 150);

    let (got, bytes, tokens) = bits_per_byte(&engine, tokenizer);
    let want = expected["text"]["bits_per_byte"].as_f64().unwrap();
    println!("bits per byte {got:.6}, transformers {want:.6}");
    let counts = ["bytes", "tokens"].map(|key| expected["text"][key].as_u64().unwrap());
    assert_eq!([bytes as u64, tokens as u64], counts);
    assert!((got - want).abs() <= 0.005 * want, "{got} instead of {want}");
}

#[test]
fn gate_106_a_converted_file_measures_nearly_the_same() {
    let Some(path) = file() else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("gemma.gguf");
    dollop::convert::convert(&path, &out, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    let engine = Engine::open(&out, &EngineOptions::default()).unwrap();
    let (got, ..) = bits_per_byte(&engine, engine.tokenizer().unwrap());
    let want = json("gemma3/expected.json")["text"]["bits_per_byte"].as_f64().unwrap();
    println!("bits per byte {got:.6}, transformers {want:.6}");
    assert!((got - want).abs() <= 0.005 * want, "{got} instead of {want}");
}

#[test]
fn gate_106_ids_equal_those_of_the_python_package() {
    let Some(path) = file() else { return };
    let engine = Engine::open_reference(&path, &EngineOptions::default()).unwrap();
    let tokenizer = engine.tokenizer().unwrap();
    let strings: Vec<String> = serde_json::from_value(json("tokenizers/strings.json")).unwrap();
    let ids: Vec<Vec<u32>> = serde_json::from_value(json("tokenizers/ids.json")["gemma3"].clone()).unwrap();
    assert!(strings.len() >= 200 && strings.len() == ids.len());
    for (text, want) in strings.iter().zip(ids) {
        assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{text:?}");
    }
}
