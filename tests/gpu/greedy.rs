//! Gates 21 and 55: greedy choices. The default model gives the CPU's answers on a GPU, and a real model, directly
//! from its GGUF, those of `transformers` with the same weights, unless the two best logits are almost equal.

use super::*;
use dollop::internal::kernels::{GpuInputs, GpuVariants};
use dollop_tests::{MARGIN, best_and_margin, golden, root, test_model};
use serde_json::Value as Json;

#[test]
fn gate_21_the_default_model_says_what_it_says_on_the_cpu() {
    if !has_gpu() {
        return;
    }
    // The CPU's products have 8-bit inputs; single-precision inputs change the two best logits by more than
    // the margin.
    let inputs = GpuVariants { inputs: GpuInputs::Bytes, ..GpuVariants::default() };
    let engine =
        Engine::open(test_model(), &set!(EngineOptions { gpu_variants: inputs, ..on_gpu() })).unwrap();
    let options = SessionOptions::default().with_context(128);
    let system = Some("You are brief.".into());
    let mut chat = Chat::new(engine.session(options).unwrap(), system, Overflow::Error).unwrap();
    let generate = GenerateOptions::default().with_max_tokens(12).with_sampling(Sampling::greedy());
    let said = chat.send("What is the capital of France?", &generate, &mut |_| ()).unwrap();
    assert!(said.text.contains("Paris") || !full(), "{}", said.text);
    let stats = engine.gpu_stats().unwrap();
    assert!(stats.byte_dispatches > 0 && stats.held_bytes > 10 << 20, "{stats:?}");

    // The CPU gets the GPU's answer, token by token, and must prefer the same tokens.
    let on_cpu = Engine::open(test_model(), &EngineOptions::default().with_threads(2)).unwrap();
    assert!(on_cpu.gpu_stats().is_none());
    let mut session = on_cpu.session(options).unwrap();
    let mut next = chat.session().tokens()[..said.prompt_tokens].to_vec();
    let mut clear = 0;
    for (i, &id) in said.tokens.iter().enumerate() {
        let (best, margin) = best_and_margin(&mut session, &next);
        assert!(best == id || margin <= MARGIN, "token {i} is {id}, on the CPU {best} by {margin}");
        clear += usize::from(margin > MARGIN);
        next = vec![id];
    }
    assert!(clear >= 6, "of {} tokens {clear} are clear", said.tokens.len());
}

/// The error of the goldens' margins: both logits may be off by [`BOUND`].
const MARGINS: f32 = 2.0 * BOUND;

#[test]
fn gate_55_a_real_model_says_what_transformers_says() {
    if !has_gpu() {
        return;
    }
    // Number of prompts, and tokens of each answer: software adapters take seconds for either.
    let (prompts, tokens) = if full() { (4, 5) } else { (1, 3) };
    let path = root().join("target/goldens/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run tests/goldens/fetch.sh (./check does)", path.display());
    let engine = Engine::open_reference(&path, &on_gpu()).unwrap();
    let text = std::fs::read_to_string(golden("smollm2/expected.json")).unwrap();
    let expected: Json = serde_json::from_str(&text).unwrap();
    let mut session = engine.session(SessionOptions::default().with_context(64)).unwrap();
    let (mut clear, mut worst) = (0, 0.0f32);
    let before = engine.gpu_stats().unwrap();
    for prompt in expected["prompts"].as_array().unwrap().iter().take(prompts) {
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(prompt[key].clone()).unwrap();
        let margins: Vec<f32> = serde_json::from_value(prompt["margins"].clone()).unwrap();
        // Prompts have a common beginning, which the session need not compute again.
        let prompted = ids("ids");
        let same = session.tokens().iter().zip(&prompted).take_while(|(a, b)| a == b).count();
        session.rewind(same);
        let mut next = prompted[same..].to_vec();
        // It gets the reference's answer, so that every token is tested, whatever the previous choice was.
        for (i, (&id, &margin)) in ids("greedy").iter().zip(&margins).take(tokens).enumerate() {
            let (best, ours) = best_and_margin(&mut session, &next);
            let at = format!("{}: token {i} is {id} by {margin}", prompt["message"]);
            if margin > MARGIN {
                assert_eq!(best, id, "{at}, here by {ours}");
                assert!((ours - margin).abs() <= MARGINS, "{at}, here by {ours}");
                worst = worst.max((ours - margin).abs());
                clear += 1;
            }
            next = vec![id];
        }
    }
    println!("{clear} clear tokens, margins off by up to {worst:e}");
    assert_eq!(clear, prompts * tokens, "all of these are clear");
    let [launches, _, readbacks, _] = since(&engine.gpu_stats().unwrap(), &before);
    assert!(launches > 0 && readbacks == clear as u64, "{launches} launches, {readbacks} read-backs");
}
