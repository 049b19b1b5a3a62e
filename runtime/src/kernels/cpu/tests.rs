//! Compares every instruction set of this machine with the scalar specification in `quant`.

use super::aligned::Aligned;
use super::*;
use crate::experts::Expert;
use crate::kernels::testing::{GROUPS, put, values};
use crate::kernels::{Activation, Attention, Backend, ExpertJob, HeadsCall, Linear, Routed, Router, Score};
use crate::quant::{self, Level, QuantizedRow, Rotation, Shape};

mod delta;
mod rotated;
mod scratch;
mod tables;

fn backend(isa: Isa, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, isa: Some(isa), kv_single: true, cores: None, trace: None })
        .unwrap()
}

fn buffer(x: impl AsRef<[f32]>) -> Aligned<f32> {
    put(&backend(Isa::best(), 1), x.as_ref())
}

/// A CI job for a known processor sets the instruction set that must be detected: without it, all other tests
/// would pass.
#[test]
fn the_best_instruction_set_is_the_one_that_the_lane_expects() {
    if let Ok(expected) = std::env::var("DOLLOP_TEST_ISA") {
        assert_eq!(Isa::best().to_string(), expected);
    }
}

#[test]
fn products_agree_with_the_specification_at_every_level() {
    let mut checked = 0;
    for isa in Isa::available() {
        let b = backend(isa, 2);
        assert!(
            b.name().contains(&isa.to_string()),
            "the instruction set asked for is not the one that runs"
        );
        for (rows, cols) in [(1, 1), (3, 31), (5, 32), (33, 64), (70, 96), (7, 160), (40, 200), (65, 576)] {
            for (group, params) in GROUPS {
                let shape = Shape::new(rows, cols, group).unwrap().with(params);
                let w = values(rows * cols, (rows * cols + group) as u32);
                let nested = quant::encode(shape, &w, None, Level::B8).unwrap().into_nested().unwrap();
                for level in Level::ALL {
                    let nested = nested.at(level).unwrap();
                    let matrix = Matrix::Nested(nested.clone());
                    for tokens in [1, 2, 5, 9, 35] {
                        let x = buffer(values(tokens * cols, 7));
                        let mut out = buffer(vec![f32::NAN; tokens * rows]);
                        b.linear(&x, tokens, &mut [Linear { matrix: &matrix, bias: None, out: &mut out }]);
                        for (t, x) in x.chunks_exact(cols).enumerate() {
                            let x = QuantizedRow::new(x, group);
                            // Computed in bfloat16: see `many_tokens_err_less_than_eight_bits_do`.
                            if isa.halves() && tokens >= MANY {
                                continue;
                            }
                            for r in 0..rows {
                                let want = nested.dot(r, &x);
                                let got = out[t * rows + r];
                                let bound = 2e-5 * (1.0 + want.abs()) * (cols as f32).sqrt();
                                assert!(
                                    (got - want).abs() <= bound,
                                    "{isa} {shape} level {level} token {t} row {r}: {got} {want}"
                                );
                                checked += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(checked > 10_000);
}

#[test]
fn one_token_computes_what_it_computes_among_many_on_any_number_of_threads() {
    let (rows, cols) = (50, 1120);
    for tokens in [7, 20, 140] {
        let x = buffer(values(tokens * cols, 3));
        let w = values(rows * cols, 1);
        let mut matrices = vec![Matrix::F32 { rows, cols, data: w.clone().into() }];
        for (group, params) in GROUPS {
            let shape = Shape::new(rows, cols, group).unwrap().with(params);
            let nested = quant::encode(shape, &w, None, Level::B8).unwrap().into_nested().unwrap();
            matrices.extend(Level::ALL.map(|level| Matrix::Nested(nested.at(level).unwrap())));
        }
        for (isa, matrix) in Isa::available()
            .into_iter()
            .filter(|isa| tokens < MANY || !isa.halves())
            .flat_map(|isa| matrices.iter().map(move |m| (isa, m)))
        {
            let mut all = buffer(vec![0.0; tokens * rows]);
            backend(isa, 3).linear(&x, tokens, &mut [Linear { matrix, bias: None, out: &mut all }]);
            let one_thread = backend(isa, 1);
            for t in 0..tokens {
                let mut one = buffer(vec![0.0; rows]);
                let x = buffer(&x[t * cols..][..cols]);
                one_thread.linear(&x, 1, &mut [Linear { matrix, bias: None, out: &mut one }]);
                assert_eq!(one[..], all[t * rows..][..rows], "{isa} token {t} of {tokens}");
            }
        }
    }
}

/// bfloat16 rounds both factors to 8 bits of mantissa: each product has a relative error of at most 2⁻⁷, plus a
/// little for the sums in single precision. 8-bit activations have an error of half a step, max/254 of their group.
#[test]
fn many_tokens_err_less_than_eight_bits_do() {
    for isa in Isa::available().into_iter().filter(|isa| isa.halves()) {
        for (rows, cols) in [(1, 1), (5, 32), (33, 64), (70, 96), (7, 160), (40, 200), (65, 576), (50, 1120)]
        {
            for (group, params) in GROUPS {
                let shape = Shape::new(rows, cols, group).unwrap().with(params);
                let w = values(rows * cols, (rows * cols + group) as u32);
                let nested = quant::encode(shape, &w, None, Level::B8).unwrap().into_nested().unwrap();
                for level in Level::ALL {
                    let nested = nested.at(level).unwrap();
                    let matrix = Matrix::Nested(nested.clone());
                    let (mut ours, mut eight) = (0.0, 0.0);
                    let mut weights = vec![0.0; rows * cols];
                    for (row, weights) in weights.chunks_exact_mut(cols).enumerate() {
                        nested.dequantize_row(row, weights);
                    }
                    for tokens in [MANY, 17, 33, 140] {
                        let x = values(tokens * cols, 7);
                        let product = |x: &[f32], threads| {
                            let n = x.len() / cols;
                            let mut out = buffer(vec![f32::NAN; n * rows]);
                            let mut outs = [Linear { matrix: &matrix, bias: None, out: &mut out }];
                            backend(isa, threads).linear(&buffer(x), n, &mut outs);
                            out.to_vec()
                        };
                        let out = product(&x, 2);
                        // In calls of many tokens, neither the number of tokens nor the threads change a bit.
                        assert!(
                            product(&x[..MANY * cols], 1) == out[..MANY * rows],
                            "{isa} {shape} {tokens}"
                        );
                        for (t, x) in x.chunks_exact(cols).enumerate() {
                            let q = QuantizedRow::new(x, group);
                            for (r, w) in weights.chunks_exact(cols).enumerate() {
                                let parts = || w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                                let (want, size): (f64, f64) = (parts().sum(), parts().map(f64::abs).sum());
                                let got = f64::from(out[t * rows + r]);
                                assert!(
                                    (got - want).abs() <= size / 127.0 + 1e-6,
                                    "{isa} {shape} level {level} token {t} of {tokens} row {r}: {got} {want}"
                                );
                                ours += (got - want).powi(2);
                                eight += (f64::from(nested.dot(r, &q)) - want).powi(2);
                            }
                        }
                    }
                    if cols > 1 {
                        assert!(ours < eight, "{isa} {shape} level {level}: {ours} {eight}");
                    }
                }
            }
        }
    }
}

/// Results larger than the caches use non-temporal stores: whole lines, and rows that begin within a line.
#[test]
fn results_past_the_caches_are_those_of_smaller_calls() {
    const COLS: usize = 32;
    for rows in [1024, 1028] {
        let (tokens, w) = (super::product::PAST_BYTES / 4096 + 8, values(rows * COLS, 1));
        let x = values(tokens * COLS, 2);
        let shape = Shape::new(rows, COLS, 32).unwrap();
        let matrix =
            Matrix::Nested(quant::encode(shape, &w, None, Level::B4).unwrap().into_nested().unwrap());
        for isa in Isa::available() {
            let mut all = buffer(vec![0.0; tokens * rows]);
            let backend = backend(isa, 2);
            let linear = |x: &[f32], out: &mut Aligned<f32>| {
                let n = x.len() / COLS;
                backend.linear(&buffer(x), n, &mut [Linear { matrix: &matrix, bias: None, out }]);
            };
            linear(&x, &mut all);
            let few = MANY.max(64);
            for from in (0..tokens).step_by(few) {
                // The last call is as long as the others: calls of few tokens may use another kernel.
                let from = from.min(tokens - few);
                let mut some = buffer(vec![0.0; few * rows]);
                linear(&x[from * COLS..][..few * COLS], &mut some);
                assert_eq!(some[..], all[from * rows..][..few * rows], "{isa}, {rows} rows from {from} on");
            }
        }
    }
}

#[test]
fn plain_products_add_their_bias() {
    let w = values(5 * 37, 1);
    let x = buffer(values(6 * 37, 2));
    let bias = values(5, 3);
    let matrix = Matrix::F32 { rows: 5, cols: 37, data: w.clone().into() };
    for isa in Isa::available() {
        let mut out = buffer(vec![0.0; 30]);
        backend(isa, 2).linear(&x, 6, &mut [Linear { matrix: &matrix, bias: Some(&bias), out: &mut out }]);
        for (i, got) in out.iter().enumerate() {
            let (t, r) = (i / 5, i % 5);
            let want: f64 = (0..37).map(|c| f64::from(w[r * 37 + c]) * f64::from(x[t * 37 + c])).sum();
            assert!((f64::from(*got) - want - f64::from(bias[r])).abs() < 1e-5);
        }
    }
}

/// Attention in f64, position by position.
fn attention_formula(
    shape: &Attention,
    (q, k, v): (&[f32], &[f32], &[f32]),
    pos: usize,
    t: usize,
) -> Vec<f64> {
    let (dim, share) = (shape.head_dim, shape.heads / shape.kv_heads);
    let seen = shape.window.map_or(0, |w| (pos + t + 1).saturating_sub(w))..=pos + t;
    let mut out = Vec::new();
    for h in 0..shape.heads {
        let at = |p: usize| p * shape.kv_heads * dim + h / share * dim;
        let q = &q[(t * shape.heads + h) * dim..][..dim];
        let dot = |p: usize| -> f64 { (0..dim).map(|i| f64::from(q[i]) * f64::from(k[at(p) + i])).sum() };
        let weights: Vec<f64> = seen.clone().map(|p| (dot(p) * f64::from(shape.scale)).exp()).collect();
        let total: f64 = weights.iter().sum();
        for i in 0..dim {
            let sum: f64 = seen.clone().zip(&weights).map(|(p, w)| w * f64::from(v[at(p) + i])).sum();
            out.push(sum / total);
        }
    }
    out
}

#[test]
fn attention_is_the_formula_alone_and_among_others() {
    let mut chunked = 0;
    for (heads, kv_heads, head_dim, window, pos, tokens) in [
        (4, 2, 6, Some(3), 2, 4),
        (2, 2, 16, None, 0, 70),
        (4, 1, 80, None, 61, 5),
        (3, 3, 64, Some(100), 1000, 33),
        (8, 1, 24, None, 2100, 3),
    ] {
        let shape = Attention { heads, kv_heads, head_dim, scale: 0.3, window, sinks: None };
        let (all, width) = (pos + tokens, kv_heads * head_dim);
        let (k, v) = (values(all * width, 2), values(all * width, 3));
        let q = buffer(values(tokens * heads * head_dim, 1));
        for isa in Isa::available() {
            for single in [true, false] {
                let options =
                    CpuOptions { threads: 2, isa: Some(isa), kv_single: single, cores: None, trace: None };
                let b = CpuBackend::new(options).unwrap();
                let mut kv = b.alloc_kv(all, kv_heads, [head_dim; 2]).unwrap();
                b.write_kv(&mut kv, 0, all, &k, &v);
                let mut out = buffer(vec![f32::NAN; q.len()]);
                b.attention(&q, &kv, pos, tokens, &shape, &mut out);
                let bound = if single { 1e-5 } else { 4e-3 };
                for (t, out) in out.chunks_exact(heads * head_dim).enumerate() {
                    let want = attention_formula(&shape, (&q, &k, &v), pos, t);
                    for (got, want) in out.iter().zip(want) {
                        assert!(
                            (f64::from(*got) - want).abs() < bound,
                            "{isa} {shape:?} token {t}: {got} {want}"
                        );
                    }
                    // A single token's threads share the chunks of a long cache: bit-identical.
                    let mut one = buffer(vec![f32::NAN; heads * head_dim]);
                    let q = buffer(&q[t * heads * head_dim..][..heads * head_dim]);
                    b.attention(&q, &kv, pos + t, 1, &shape, &mut one);
                    assert_eq!(one[..], *out, "{isa} {shape:?} token {t}");
                    chunked += usize::from(pos + t > 1024);
                }
            }
        }
    }
    assert!(chunked > 0, "no case was longer than a chunk");
}

#[test]
fn routing_orders_by_weight_and_breaks_ties_by_index() {
    let b = backend(Isa::best(), 1);
    let logits = buffer([0.0, 2.0, 2.0, -1.0, f32::NAN, 0.0, 1.0, 0.5]);
    let mut out = Vec::new();
    let router =
        Router { experts: 4, top_k: 2, renormalize: true, scale: 2.0, score: Score::Softmax, groups: None };
    b.route(&logits, 1, router.unbiased(), &mut out).unwrap();
    assert_eq!(out.iter().map(|c| c.expert).collect::<Vec<_>>(), [1, 2]);
    assert!((out[0].gate - 1.0).abs() < 1e-6 && (out[1].gate - 1.0).abs() < 1e-6);
    b.route(&logits, 2, router.unbiased(), &mut out).unwrap();
    assert_eq!(out.len(), 4, "a NaN must not lose a choice");
}

#[test]
#[cfg(target_os = "linux")]
fn threads_run_on_the_cores_that_were_named() {
    use rustix::thread::{CpuSet, sched_getaffinity};
    use std::sync::Barrier;
    let options = |cores| CpuOptions { threads: 3, cores: Some(cores), ..CpuOptions::default() };
    for bad in [vec![], vec![CpuSet::MAX_CPU], vec![usize::MAX]] {
        assert!(CpuBackend::new(options(bad)).is_err());
    }
    // On a separate thread, because the calling thread is bound as well.
    std::thread::spawn(move || {
        let all = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).rfind(|&core| all.is_set(core)).unwrap();
        let b = CpuBackend::new(options(vec![core])).unwrap();
        assert_eq!(b.threads(), 3);
        // No thread takes a second task before every thread has one.
        let everybody = Barrier::new(3);
        b.pool.run(3, &|_| {
            everybody.wait();
            let set = sched_getaffinity(None).unwrap();
            assert!(set.count() == 1 && set.is_set(core));
        });
    })
    .join()
    .unwrap();
}

/// Gate 195: one expert without a gate, and one whose gate is a copy of its up, give the same bits.
#[test]
fn an_expert_without_a_gate_computes_up_once() {
    const D: usize = 96;
    const FF: usize = 80;
    let nested = |rows: usize, cols: usize, seed| {
        let shape = Shape::new(rows, cols, 32).unwrap();
        let encoded = quant::encode(shape, &values(rows * cols, seed), None, Level::B4).unwrap();
        Matrix::Nested(encoded.into_nested().unwrap())
    };
    let plain =
        |rows: usize, cols: usize, seed| Matrix::F32 { rows, cols, data: values(rows * cols, seed).into() };
    let all = [[nested(FF, D, 1), nested(D, FF, 2)], [plain(FF, D, 3), plain(D, FF, 4)]];
    for isa in Isa::available() {
        let b = backend(isa, 2);
        for [up, down] in &all {
            let expert = |gate| Expert { gate, up: up.clone(), down: down.clone(), place: None };
            for tokens in [1, 3, 40] {
                let x = buffer(values(tokens * D, 5));
                let [one, both] = [None, Some(up.clone())].map(|gate| {
                    let mut out = buffer(vec![f32::NAN; tokens * D]);
                    b.ffn(&x, tokens, (&expert(gate), Activation::Reglu), &mut out);
                    out.to_vec()
                });
                assert!(one.iter().any(|y| *y != 0.0) && one == both, "{isa}, {tokens} tokens");
            }
        }
    }
}
