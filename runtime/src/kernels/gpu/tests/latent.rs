//! Attention to a latent, and per-head products, on both backends, against their formulas in f64.

use super::*;
use crate::kernels::{AttendCall, HeadsCall, Sequence};

/// Tokens, in calls of these lengths.
fn heads_in_calls<B: Backend>(
    (b, run): (&B, &dyn Fn(HeadsCall<'_, B::Buf>)),
    matrix: &Matrix,
    x: &[f32],
    (heads, kept): (usize, usize),
    calls: &[usize],
) -> Vec<f32> {
    let (of_x, of_out) = (heads * (matrix.cols() + kept), heads * kept + matrix.rows());
    let (mut at, mut all) = (0, Vec::new());
    for &tokens in calls {
        let from = put(b, &x[at * of_x..][..tokens * of_x]);
        let mut out = put(b, &vec![f32::NAN; tokens * of_out]);
        run(HeadsCall { matrix, heads, x: &from, tokens, kept, out: &mut out });
        let mut got = vec![0.0; tokens * of_out];
        b.read(&mut [(&out, 0, &mut got)]).unwrap();
        all.extend(got);
        at += tokens;
    }
    all
}

#[test]
fn products_of_heads_are_their_formula() {
    let Some(b) = gpu() else { return };
    let (heads, tokens) = (3, 5);
    for (rows, cols, kept) in [(16, 32, 8), (48, 40, 16), (64, 192, 0), (512, 128, 64)] {
        let shape = Shape::new(heads * rows, cols, 32).unwrap();
        let matrices =
            [plain(heads * rows, cols, 1), nested_of(shape, Level::B4, 2), nested_of(shape, Level::B8, 3)];
        for matrix in &matrices {
            let x = values(tokens * heads * (cols + kept), 4);
            let weights = dense(matrix);
            let mut want = Vec::new();
            for (slot, x) in x.chunks_exact(cols + kept).enumerate() {
                want.extend(x[cols..].iter().map(|&x| (f64::from(x), 0.0)));
                let own = &weights[slot % heads * rows * cols..][..rows * cols];
                want.extend(product(own, cols, &x[..cols]));
            }
            let got = heads_in_calls((&b, &|call| b.heads(call)), matrix, &x, (heads, kept), &[tokens]);
            near("on the GPU", &got, &want, SUMS);
            assert!(
                got == heads_in_calls((&b, &|call| b.heads(call)), matrix, &x, (heads, kept), &[1, 3, 1]),
                "calls change bits"
            );
            for isa in Isa::available() {
                let options =
                    CpuOptions { threads: 2, isa: Some(isa), kv_single: true, cores: None, trace: None };
                let cpu = CpuBackend::new(options).unwrap();
                let own =
                    heads_in_calls((&cpu, &|call| cpu.heads(call)), matrix, &x, (heads, kept), &[tokens]);
                // The CPU's inputs of nested matrices have 8 bits.
                let part = if matches!(matrix, Matrix::F32 { .. }) { SUMS } else { 3e-2 };
                near(&format!("on the CPU, {isa}"), &own, &want, part);
                let cut =
                    heads_in_calls((&cpu, &|call| cpu.heads(call)), matrix, &x, (heads, kept), &[2, 1, 2]);
                assert!(own == cut, "{isa}: calls change bits");
            }
        }
    }
}

/// The shape of a model's attention: heads, rotated part of a key, latent.
const SHAPES: [(usize, usize, usize); 3] = [(4, 16, 48), (2, 64, 512), (20, 32, 128)];

/// Attention of the tokens from `pos` on, in calls of these lengths.
fn attended<B: Backend>(b: &B, (heads, rope, rank): (usize, usize, usize), calls: &[usize]) -> Vec<f32> {
    let all: usize = calls.iter().sum();
    let head_dim = rope + rank;
    let (queries, keys) = (values(all * heads * head_dim, 1), values(all * head_dim, 2));
    let norm = values(rank, 3);
    let table = table(all, rope);
    let how = Placing {
        heads,
        kv_heads: 1,
        head_dim,
        q_norm: None,
        k_norm: Some(&norm),
        v_norm: false,
        late_norms: false,
        latent: true,
        eps: 1e-6,
        limit: None,
        rope: &table,
    };
    let shape = Attention { heads, kv_heads: 1, head_dim, scale: 0.1, window: None, sinks: None };
    let mut kv = b.alloc_kv(all, 1, [head_dim, rank]).unwrap();
    let (mut pos, mut got) = (0, Vec::new());
    for &tokens in calls {
        let part = |x: &[f32], width: usize| put(b, &x[pos * width..][..tokens * width]);
        let (mut q, mut k) = (part(&queries, heads * head_dim), part(&keys, head_dim));
        let mut v = put(b, &vec![f32::NAN; tokens * head_dim]);
        let mut out = put(b, &vec![f32::NAN; tokens * heads * head_dim]);
        b.attend(AttendCall {
            x: Projected { q: &mut q, k: &mut k, v: &mut v },
            how: &how,
            tokens,
            sequences: &mut std::iter::once(Sequence { pos, tokens, kv: &mut kv }),
            shared: false,
            shape: &shape,
            absorbed: None,
            gate: None,
            out: &mut out,
        });
        let mut row = vec![0.0; tokens * heads * rank];
        b.read(&mut [(&out, 0, &mut row)]).unwrap();
        got.extend(row);
        pos += tokens;
    }
    got
}

fn table(positions: usize, dims: usize) -> RopeTable {
    let angle = |i: usize| (i / (dims / 2)) as f32 * 0.3 / (1 + i % (dims / 2)) as f32;
    let of = |f: fn(f32) -> f32| (0..positions * dims / 2).map(|i| f(angle(i))).collect();
    RopeTable { name: 7 + dims as u64, dims, cos: of(f32::cos), sin: of(f32::sin) }
}

/// The same in f64.
fn formula((heads, rope, rank): (usize, usize, usize), all: usize) -> Vec<f32> {
    let head_dim = rope + rank;
    let (queries, keys) = (values(all * heads * head_dim, 1), values(all * head_dim, 2));
    let (norm, table) = (values(rank, 3), table(all, rope));
    let turned = |x: &[f32], pos: usize| -> Vec<f64> {
        let mut x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
        for i in 0..rope / 2 {
            let at = pos * rope / 2 + i;
            let (c, s) = (f64::from(table.cos[at]), f64::from(table.sin[at]));
            let (a, b) = (x[i], x[i + rope / 2]);
            (x[i], x[i + rope / 2]) = (a * c - b * s, b * c + a * s);
        }
        x
    };
    let key = |pos: usize| -> Vec<f64> {
        let mut x = turned(&keys[pos * head_dim..][..head_dim], pos);
        let mean = x[rope..].iter().map(|x| x * x).sum::<f64>() / rank as f64;
        x[rope..].iter_mut().zip(&norm).for_each(|(x, w)| *x *= f64::from(*w) / (mean + 1e-6).sqrt());
        x
    };
    let keys: Vec<Vec<f64>> = (0..all).map(key).collect();
    let mut out = Vec::new();
    for (slot, q) in queries.chunks_exact(head_dim).enumerate() {
        let pos = slot / heads;
        let q = turned(q, pos);
        let score = |k: &Vec<f64>| (0.1 * q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>()).exp();
        let weights: Vec<f64> = keys[..=pos].iter().map(score).collect();
        let total: f64 = weights.iter().sum();
        let value = |i: usize| weights.iter().zip(&keys).map(|(w, k)| w * k[rope + i]).sum::<f64>() / total;
        out.extend((0..rank).map(|i| value(i) as f32));
    }
    out
}

#[test]
fn latents_are_attended_however_tokens_come() {
    let Some(b) = gpu() else { return };
    for shape in SHAPES {
        // More than a tile of positions on both sides.
        let want = formula(shape, 140);
        let got = attended(&b, shape, &[140]);
        close("on the GPU", &got, &want, 2e-4);
        let cut = [100, 1, 1, 37, 1];
        assert!(got == attended(&b, shape, &cut), "{shape:?}: calls change bits on the GPU");
        for isa in Isa::available() {
            let options =
                CpuOptions { threads: 2, isa: Some(isa), kv_single: true, cores: None, trace: None };
            let cpu = CpuBackend::new(options).unwrap();
            let own = attended(&cpu, shape, &[140]);
            close(&format!("on the CPU, {isa}"), &own, &want, 2e-4);
            assert!(own == attended(&cpu, shape, &cut), "{shape:?}, {isa}: calls change bits");
        }
    }
}
