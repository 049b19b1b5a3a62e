//! Gate 49: the error of logits from half-precision or 8-bit inputs of products. It is far larger than the
//! error from another order of sums.

use super::*;
use dollop::internal::kernels::{GpuInputs, GpuVariants};
use dollop_tests::default_model;

fn with(inputs: GpuInputs) -> EngineOptions {
    set!(EngineOptions { gpu_variants: set!(GpuVariants { inputs, ..GpuVariants::default() }), ..on_gpu() })
}

fn has_f16() -> bool {
    dollop::internal::kernels::gpu::adapters().iter().find(|a| a.missing.is_none()).is_some_and(|a| a.f16)
}

/// The engine's products so far with half-precision inputs, and with 8-bit inputs.
fn products(engine: &Engine) -> (u64, u64) {
    let stats = engine.gpu_stats().unwrap();
    (stats.half_dispatches, stats.byte_dispatches)
}

fn farthest(got: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    let pairs = got.iter().flatten().zip(want.iter().flatten());
    pairs.map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
}

/// The mean KL(want ‖ got) over positions.
fn divergence(got: &[Vec<f32>], want: &[Vec<f32>]) -> f64 {
    let log_sum = |x: &[f32]| {
        let most = x.iter().fold(f32::MIN, |m, &x| m.max(x));
        f64::from(most) + x.iter().map(|x| f64::from(x - most).exp()).sum::<f64>().ln()
    };
    let of = |(got, want): (&Vec<f32>, &Vec<f32>)| -> f64 {
        let (g, w) = (log_sum(got), log_sum(want));
        let terms = got.iter().zip(want).map(|(&x, &y)| {
            let (x, y) = (f64::from(x) - g, f64::from(y) - w);
            y.exp() * (y - x)
        });
        terms.sum()
    };
    got.iter().zip(want).map(of).sum::<f64>() / want.len() as f64
}

/// The error bound of the goldens' logits with half-precision inputs; single-precision inputs keep [`BOUND`].
const HALF_BOUND: f32 = 4e-2;

/// Positions at which single goldens are farther off, while their neighbours are not: a router's choices are
/// close there (0.0011 apart in `gptoss-listed`; not measured in the others), and another expert is chosen.
const NEAR_TIES: [(&str, usize); 4] =
    [("gptoss-listed", 30), ("deepseek2-halves", 9), ("hunyuanmoe", 20), ("phimoe", 31)];

/// The bound for models with delta nets. When their memory holds few tokens, its output is `q·k` times a
/// value, and the norm after it reduces a small `q·k` to little more than its sign. There differences grow,
/// up to 0.079 at one of the first positions of `qwen35`; later they are 0.01.
const DELTA_HALF_BOUND: f32 = 0.1;

#[test]
fn gate_49_goldens_with_inputs_in_half_precision() {
    if !has_gpu() || !has_f16() {
        return;
    }
    let mut worst = (0.0, String::new());
    // Every third golden represents all: the rounding of inputs is the same in all of them.
    for name in tiny::names().into_iter().step_by(if full() { 1 } else { 3 }) {
        let tiny = Tiny::load(&name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let engine = Engine::open_reference(folder.path(), &with(GpuInputs::Half)).unwrap();
        let mut session = engine.session(SessionOptions::default().with_chunk(7)).unwrap();
        let (mut got, mut want) = (session.logits(&tiny.tokens).unwrap(), tiny.logits.clone());
        for &(_, at) in NEAR_TIES.iter().filter(|(near, _)| *near == name) {
            // After it, gpt-oss stays off: its memory has another value.
            let end = if name == "gptoss-listed" { got.len() } else { at + 1 };
            got.drain(at..end);
            want.drain(at..end);
        }
        let difference = farthest(&got, &want);
        let delta = ["qwen35", "qwen3next", "kimi-linear", "bailingmoe3", "granitehybrid", "nemotronh"]
            .iter()
            .any(|family| name.starts_with(family));
        let bound = if delta { DELTA_HALF_BOUND } else { HALF_BOUND };
        assert!(difference <= bound, "{name}: off by {difference}");
        if difference > worst.0 {
            worst = (difference, name.clone());
        }
        let (half, bytes) = products(&engine);
        assert!(half > 0 && bytes == 0, "{name}: {half} products in half precision, {bytes} of bytes");
    }
    println!("inputs in half precision: largest difference {worst:?}");
}

#[test]
fn gate_49_the_default_model_with_other_inputs() {
    if !has_gpu() {
        return;
    }
    // A few layers represent all.
    let (path, ids) = if full() { (default_model(), noise(24)) } else { (short_model(), noise(12)) };
    let (last, prompt) = ids.split_last().unwrap();
    let run = |inputs| {
        let engine = Engine::open(&path, &with(inputs)).unwrap();
        let mut session = engine.session(SessionOptions::default().with_context(64)).unwrap();
        let mut all = session.logits(prompt).unwrap();
        all.extend(session.logits(&[*last]).unwrap());
        (all, products(&engine))
    };
    let (single, none) = run(GpuInputs::Single);
    assert_eq!(none, (0, 0));
    // Random tokens are hard for a router: with another expert one logit means little, so distributions are compared.
    for (inputs, bound) in [(GpuInputs::Half, 0.02), (GpuInputs::Bytes, 0.1)] {
        let (got, (half, bytes)) = run(inputs);
        let (off, divergence) = (farthest(&got, &single), divergence(&got, &single));
        println!("{inputs:?}: logits off by up to {off}, KL {divergence}");
        assert_eq!(
            (half > 0, bytes > 0),
            (inputs == GpuInputs::Half && has_f16(), inputs == GpuInputs::Bytes)
        );
        assert!(divergence <= bound, "{inputs:?}: KL {divergence}");
        assert_eq!(off > 0.0, half + bytes > 0, "{inputs:?}");
    }
}
