//! Constraints on a GPU.

use super::*;
use dollop::{BackendChoice, GpuInputs, GpuVariants};
use dollop_tests::{MARGIN, has_gpu, test_model};

#[test]
fn gate_122_a_gpu_obeys_as_the_cpu_does() {
    if !has_gpu() {
        return;
    }
    // The CPU's products have 8-bit inputs.
    let inputs = GpuVariants { inputs: GpuInputs::Bytes, ..GpuVariants::default() };
    let options = EngineOptions::default().with_backend(BackendChoice::Gpu(None));
    let on_gpu =
        Engine::open(test_model(), &set!(EngineOptions { gpu_variants: inputs, ..options })).unwrap();
    let mut gpu = on_gpu.session(SessionOptions::default().with_context(256)).unwrap();
    let on_cpu = Engine::open(test_model(), &EngineOptions::default().with_threads(2)).unwrap();
    let mut cpu = on_cpu.session(SessionOptions::default().with_context(256)).unwrap();
    let prompt = cpu.engine().encode_text("An answer: ").unwrap();
    let city = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}, "big": {"type": "boolean"}},
        "required": ["city", "big"], "additionalProperties": false});
    let constraints =
        [Constraint::json_schema(city.to_string()), Constraint::regex("(one|two|three) of [a-z]{3,6}\\.")];
    let (mut clear, mut forced, mut compared) = (0, 0, 0);
    for constraint in constraints {
        let submits = || on_gpu.gpu_stats().unwrap().submits;
        let before = submits();
        let said = say(&mut gpu, &constraint, Sampling::greedy(), 40).unwrap();
        let together = submits() - before;
        assert!(said.stop == StopReason::EndOfTurn, "{said:?}");
        if said.forced_tokens > 0 && compared == 0 {
            let apart = say(&mut gpu, &constraint.clone().one_by_one(), Sampling::greedy(), 40).unwrap();
            assert_eq!(said.tokens, apart.tokens);
            // Forced tokens are computed together.
            let apart = submits() - before - together;
            assert!(together < apart, "{together} submissions, one by one {apart}");
            compared += 1;
        }
        forced += said.forced_tokens;
        // The CPU gets the GPU's answer, token by token, and must prefer the same token among the allowed ones.
        let mut guide = cpu.engine().words().unwrap().guide(&constraint.one_by_one()).unwrap();
        cpu.rewind(0);
        let mut next = prompt.clone();
        for (i, &id) in said.tokens.iter().enumerate() {
            let mut logits = cpu.last_logits(&next).unwrap();
            guide.mask().unwrap().apply(&mut logits);
            let best = dollop::sampler::argmax(&logits);
            let margin = logits[best as usize] - logits[id as usize];
            assert!(best == id || margin <= MARGIN, "token {i} is {id}, on the CPU {best} by {margin}");
            clear += usize::from(best == id);
            guide.take(id).unwrap();
            next = vec![id];
        }
    }
    println!("{clear} clear tokens, {forced} forced");
    assert!(clear >= 10 && forced >= 6 && compared == 1, "{clear} clear tokens, {forced} forced");
}
