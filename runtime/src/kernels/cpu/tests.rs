//! Every instruction set of this machine against the scalar specification in `quant`.

use super::*;
use crate::quant::{self, Level, QuantizedRow, Shape};

/// Deterministic values with a few outliers.
fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..n).map(|i| (next() + next() + next()) * if i % 97 == 0 { 4.0 } else { 1.0 }).collect()
}

fn backend(isa: Isa, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, isa: Some(isa) }).unwrap()
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
            for group in [32, 64] {
                let shape = Shape::new(rows, cols, group).unwrap();
                let w = values(rows * cols, (rows * cols + group) as u32);
                let nested = quant::encode(shape, &w, None, Level::B8).unwrap().into_nested().unwrap();
                for level in Level::ALL {
                    let nested = nested.at(level).unwrap();
                    let matrix = Matrix::Nested(nested.clone());
                    for tokens in [1, 2, 5, 9] {
                        let x = values(tokens * cols, 7);
                        let mut out = vec![f32::NAN; tokens * rows];
                        b.linear(&x, tokens, &mut [Linear { matrix: &matrix, bias: None, out: &mut out }]);
                        for (t, x) in x.chunks_exact(cols).enumerate() {
                            let x = QuantizedRow::new(x, group);
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
    for isa in Isa::available() {
        let shape = Shape::new(100, 320, 64).unwrap();
        let nested =
            quant::encode(shape, &values(100 * 320, 1), None, Level::B4).unwrap().into_nested().unwrap();
        let plain = Matrix::F32 { rows: 100, cols: 320, data: values(100 * 320, 2).into() };
        let x = values(7 * 320, 3);
        for matrix in [Matrix::Nested(nested), plain] {
            let mut all = vec![0.0; 7 * 100];
            backend(isa, 3).linear(&x, 7, &mut [Linear { matrix: &matrix, bias: None, out: &mut all }]);
            let one_thread = backend(isa, 1);
            for t in 0..7 {
                let mut one = vec![0.0; 100];
                let x = x[t * 320..][..320].to_vec();
                one_thread.linear(&x, 1, &mut [Linear { matrix: &matrix, bias: None, out: &mut one }]);
                assert_eq!(one, all[t * 100..][..100], "{isa} token {t}");
            }
        }
    }
}

#[test]
fn plain_products_add_their_bias() {
    let w = values(5 * 37, 1);
    let x = values(6 * 37, 2);
    let bias = values(5, 3);
    let matrix = Matrix::F32 { rows: 5, cols: 37, data: w.clone().into() };
    for isa in Isa::available() {
        let mut out = vec![0.0; 30];
        backend(isa, 2).linear(&x, 6, &mut [Linear { matrix: &matrix, bias: Some(&bias), out: &mut out }]);
        for (i, got) in out.iter().enumerate() {
            let (t, r) = (i / 5, i % 5);
            let want: f64 = (0..37).map(|c| f64::from(w[r * 37 + c]) * f64::from(x[t * 37 + c])).sum();
            assert!((f64::from(*got) - want - f64::from(bias[r])).abs() < 1e-5);
        }
    }
}

#[test]
fn attention_is_the_formula() {
    let shape = Attention { heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4, window: Some(3) };
    let (pos, tokens) = (2, 4);
    let (q, k, v) = (values(tokens * 24, 1), values(6 * 12, 2), values(6 * 12, 3));
    for isa in Isa::available() {
        let b = backend(isa, 2);
        let mut kv = b.alloc_kv(8, 12).unwrap();
        b.write_kv(&mut kv, 0, 6, &k, &v);
        let mut out = vec![0.0; tokens * 24];
        b.attention(&q, &kv, pos, tokens, &shape, &mut out);
        for t in 0..tokens {
            for h in 0..4 {
                let seen = (pos + t).saturating_sub(2)..=pos + t;
                let at = |p: usize| p * 12 + h / 2 * 6;
                let score = |p: usize| -> f64 {
                    (0..6).map(|i| f64::from(q[t * 24 + h * 6 + i] * k[at(p) + i])).sum::<f64>() * 0.4
                };
                let total: f64 = seen.clone().map(|p| score(p).exp()).sum();
                for i in 0..6 {
                    let want: f64 =
                        seen.clone().map(|p| score(p).exp() / total * f64::from(v[at(p) + i])).sum();
                    assert!((f64::from(out[t * 24 + h * 6 + i]) - want).abs() < 1e-5, "{isa} {t} {h} {i}");
                }
            }
        }
    }
}

#[test]
fn routing_orders_by_weight_and_breaks_ties_by_index() {
    let b = backend(Isa::best(), 1);
    let logits = vec![0.0, 2.0, 2.0, -1.0, f32::NAN, 0.0, 1.0, 0.5];
    let mut out = Vec::new();
    let router = Router { experts: 4, top_k: 2, renormalize: true, scale: 2.0 };
    b.route(&logits, 1, &router, &mut out).unwrap();
    assert_eq!(out.iter().map(|c| c.expert).collect::<Vec<_>>(), [1, 2]);
    assert!((out[0].gate - 1.0).abs() < 1e-6 && (out[1].gate - 1.0).abs() < 1e-6);
    b.route(&logits, 2, &router, &mut out).unwrap();
    assert_eq!(out.len(), 4, "a NaN must not lose a choice");
}
