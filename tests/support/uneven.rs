//! A tiny model whose experts differ: some are chosen often and some hardly ever, as in trained models.

use crate::set;
use crate::tiny::Tiny;
use dollop::internal::quant::Level;
use dollop::{Engine, EngineOptions, SessionOptions};
use std::path::Path;

/// Experts of a layer.
pub const EXPERTS: usize = 32;

/// Options of one level.
pub fn at_level(level: Level) -> EngineOptions {
    set!(EngineOptions { level: Some(level), ..EngineOptions::default() })
}

/// Random tokens, different for each seed.
pub fn noise(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 40_503) >> 13) % 250).collect()
}

/// `olmoe` with 32 experts some of which the router prefers, inputs in few directions, and columns that are
/// `outliers` times as large as others.
pub fn uneven(folder: &Path, outliers: f32) {
    let mut tiny = Tiny::load("olmoe").with_experts(EXPERTS);
    for (name, _, data) in &mut tiny.tensors {
        match name.as_str() {
            "model.embed_tokens.weight" => {
                for i in 64..data.len() {
                    data[i] =
                        0.5 * data[i] + data[i % 64 + 64 * (i / 64 % 7)] - data[i % 64 + 64 * (i / 448 % 5)];
                }
            }
            name if name.ends_with("mlp.gate.weight") => {
                let rows = data.chunks_exact_mut(64).enumerate();
                rows.for_each(|(e, row)| {
                    row.iter_mut().for_each(|w| *w *= 0.9 + 0.2 * e as f32 / EXPERTS as f32)
                });
            }
            name if name.contains("layernorm") => data.iter_mut().step_by(9).for_each(|w| *w *= outliers),
            _ => {}
        }
    }
    tiny.write_folder(folder);
}

/// The mean KL divergence of a file's predictions from its source's, over `ids`.
pub fn divergence(source: &Path, file: &Path, options: &EngineOptions, ids: &[u32]) -> f64 {
    let rows = |engine: Engine| -> Vec<Vec<f64>> {
        let mut session = engine.session(SessionOptions::default()).unwrap();
        let mut logits = Vec::new();
        for window in ids.chunks(100) {
            session.rewind(0);
            logits.extend(session.logits(window).unwrap());
        }
        let softmax = |row: Vec<f32>| {
            let sum: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
            row.iter().map(|&l| f64::from(l) - sum.ln()).collect()
        };
        logits.into_iter().map(softmax).collect()
    };
    let want = rows(Engine::open_reference(source, &EngineOptions::default()).unwrap());
    let got = rows(Engine::open(file, options).unwrap());
    let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    want.iter().zip(&got).map(|(p, q)| kl(p, q)).sum::<f64>() / ids.len() as f64
}
