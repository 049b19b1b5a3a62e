//! Products, embeddings, attention and elementwise operations.

use super::*;
use crate::kernels::{AttendCall, Sequence};
use crate::quant::GroupParams;

/// Every kind of matrix, for one shape.
pub(super) fn kinds(rows: usize, cols: usize) -> Vec<(String, Matrix)> {
    let mut all = vec![(format!("f32 {rows}x{cols}"), plain(rows, cols, 5))];
    for (group, params) in GROUPS {
        let shape = Shape::new(rows, cols, group).unwrap().with(params);
        for level in Level::ALL {
            let name = format!("{shape}, {params:?}, level {level}");
            all.push((name, nested_of(shape, level, (rows + cols) as u32)));
        }
    }
    let fits =
        |params: &GroupParams| cols.is_multiple_of(if *params == GroupParams::Iq4Xs { 256 } else { 32 });
    for params in TABLES.into_iter().filter(fits) {
        let finest = of_table(params, rows, cols, (rows + cols) as u32);
        for level in [Level::B2, Level::B3, Level::B4] {
            let matrix = Matrix::Nested(finest.at(level).expect("the planes are there"));
            all.push((format!("{rows}x{cols}, {params:?}, level {level}"), matrix));
        }
    }
    all
}

#[test]
fn products_agree_with_the_specification_at_every_level() {
    let Some(b) = gpu() else { return };
    let mut checked = 0;
    for (rows, cols) in
        [(1, 1), (3, 31), (5, 32), (33, 64), (70, 96), (7, 160), (40, 200), (65, 2100), (33, 512)]
    {
        for (name, matrix) in kinds(rows, cols) {
            let weights = dense(&matrix);
            let x = values(9 * cols, 7);
            let bias = values(rows, 9);
            let mut alone = Vec::new();
            for tokens in [1, 2, 8, 9] {
                let input = put(&b, &x[..tokens * cols]);
                let mut out = b.alloc(tokens * rows).unwrap();
                let bias = Some(&bias[..]).filter(|_| tokens != 2);
                b.linear(&input, tokens, &mut [Linear { matrix: &matrix, bias, out: &mut out }]);
                let got = get(&b, &out);
                for (t, got) in got.chunks_exact(rows).enumerate() {
                    let mut want = product(&weights, cols, &x[t * cols..][..cols]);
                    if let Some(bias) = bias {
                        want.iter_mut().zip(bias).for_each(|(w, b)| w.0 += f64::from(*b));
                    }
                    near(&format!("{name}, token {t} of {tokens}"), got, &want, SUMS);
                    checked += rows;
                }
                if tokens == 1 {
                    alone = got;
                } else if tokens > 2 {
                    assert_eq!(alone, got[..rows], "{name}: a token alone and among {tokens}");
                }
            }
        }
    }
    assert!(checked > 20_000);
}

#[test]
fn a_norm_before_several_products_and_a_sum_after_one() {
    let Some(b) = gpu() else { return };
    let cols = 200;
    for level in [Level::B4, Level::B8] {
        // Two matrices of one level in one dispatch, and one of another kind.
        let matrices = [nested(33, cols, 64, level, 1), nested(20, cols, 32, level, 2), plain(7, cols, 3)];
        let weight = values(cols, 4);
        let norm = Norm::rms(&weight, 1e-5);
        for tokens in [1, 11] {
            let x = values(tokens * cols, 6);
            let input = put(&b, &x);
            let mut h = b.alloc(tokens * cols).unwrap();
            let mut outs: Vec<GpuBuf> =
                matrices.iter().map(|m| b.alloc(tokens * m.rows()).unwrap()).collect();
            for used in [2, 3] {
                let mut linears: Vec<Linear<GpuBuf>> = (matrices.iter().zip(&mut outs).take(used))
                    .map(|(matrix, out)| Linear { matrix, bias: None, out })
                    .collect();
                b.norm_linear(&input, norm, tokens, &mut h, &mut linears);
            }
            let cpu = cpu();
            let mut normed = cpu.alloc(tokens * cols).unwrap();
            cpu.rms_norm(&put(&cpu, &x), &weight, 1e-5, tokens, &mut normed);
            close("the norm", &get(&b, &h), &normed, 1e-5);
            let mut alone = b.alloc(tokens * cols).unwrap();
            b.rms_norm(&input, &weight, 1e-5, tokens, &mut alone);
            close("the norm alone", &get(&b, &alone), &normed, 1e-5);
            for (m, out) in matrices.iter().zip(&outs) {
                let weights = dense(m);
                for (got, x) in get(&b, out).chunks_exact(m.rows()).zip(normed.chunks_exact(cols)) {
                    near("a product of the norm", got, &product(&weights, cols, x), 2.0 * SUMS);
                }
            }
            let before = get(&b, &outs[0]);
            let mut scratch = b.alloc(tokens * 33).unwrap();
            let linear = Linear { matrix: &matrices[0], bias: None, out: &mut scratch };
            b.linear_add(&h, tokens, linear, &mut outs[0]);
            let twice: Vec<f32> = before.iter().map(|x| 2.0 * x).collect();
            close("a sum", &get(&b, &outs[0]), &twice, 1e-3);
        }
    }
}

#[test]
fn embeddings_are_rows() {
    let Some(b) = gpu() else { return };
    for cols in [31, 64, 576] {
        for (name, table) in kinds(70, cols) {
            let ids = [0, 69, 17, 17, 33];
            let mut out = b.alloc(ids.len() * cols).unwrap();
            b.embed(&table, &ids, 1.5, &mut out);
            let cpu = cpu();
            let mut want = cpu.alloc(ids.len() * cols).unwrap();
            cpu.embed(&table, &ids, 1.5, &mut want);
            close(&name, &get(&b, &out), &want, 1e-5);
        }
    }
}

#[test]
fn places_and_attends() {
    for (heads, kv_heads, head_dim, window, pos, tokens) in [
        (4, 2, 6, Some(3), 2, 4),
        (2, 2, 16, None, 0, 70),
        (4, 1, 80, None, 61, 5),
        (3, 3, 64, Some(100), 300, 33),
        (8, 2, 128, None, 500, 3),
    ] {
        for (norm, limit, single) in
            [("", None, true), ("head", Some(0.5), true), ("row", None, true), ("row", None, false)]
        {
            let Some(b) = gpu_with(&GpuOptions { kv_single: single, ..GpuOptions::default() }) else {
                return;
            };
            let cpu = cpu();
            let all = pos + tokens;
            let half = head_dim / 2;
            let rope = RopeTable {
                name: 2 * half as u64,
                dims: 2 * half,
                cos: values(all * half, 11),
                sin: values(all * half, 12),
            };
            let len = |n: usize| if norm == "head" { head_dim } else { n * head_dim };
            let (q_norm, k_norm) = (values(len(heads), 13), values(len(kv_heads), 14));
            let how = Placing {
                heads,
                kv_heads,
                head_dim,
                q_norm: Some(&q_norm[..]).filter(|_| !norm.is_empty()),
                k_norm: Some(&k_norm[..]).filter(|_| !norm.is_empty()),
                v_norm: norm == "head",
                late_norms: false,
                latent: false,
                eps: 1e-5,
                limit,
                rope: &rope,
            };
            let sinks = values(heads, 15);
            let sinks = Some(&sinks[..]).filter(|_| norm.is_empty());
            let shape = Attention { heads, kv_heads, head_dim, scale: 0.3, window, sinks };
            let (mut kv, mut cpu_kv) = (
                b.alloc_kv(all, kv_heads, [head_dim; 2]).unwrap(),
                cpu.alloc_kv(all, kv_heads, [head_dim; 2]).unwrap(),
            );
            let mut outs = (Vec::new(), Vec::new());
            // The preceding positions, then the tested tokens.
            for (pos, tokens) in [(0, pos), (pos, tokens)].into_iter().filter(|p| p.1 > 0) {
                let value = |heads, seed| put(&cpu, &values(tokens * heads * head_dim, seed));
                let (mut q, mut k, mut v) = (value(heads, 1), value(kv_heads, 2), value(kv_heads, 3));
                let (mut gq, mut gk, mut gv) = (put(&b, &q), put(&b, &k), put(&b, &v));
                let mut rotated = b.alloc(q.len()).unwrap();
                let x = Projected { q: &mut gq, k: &mut gk, v: &mut gv };
                b.place(x, &how, (pos, tokens), (&mut kv, false), &mut rotated);
                let mut out = b.alloc(q.len()).unwrap();
                b.attention(&rotated, &kv, pos, tokens, &shape, &mut out);
                outs.0 = get(&b, &out);
                cpu.place([&mut q, &mut k, &mut v], &how, pos, tokens, Some(&mut cpu_kv));
                close("queries", &get(&b, &rotated), &q, 1e-5);
                let mut mixed = cpu.alloc(q.len()).unwrap();
                cpu.attention(&q, &cpu_kv, pos, tokens, &shape, &mut mixed);
                outs.1 = mixed.to_vec();
                alone(&b, &get(&b, &rotated), &how, &shape, (pos, tokens), &mut kv, &outs.0);
            }
            let bound = if single { 2e-5 } else { 4e-3 };
            close(&format!("{shape:?}, norm {norm}"), &outs.0, &outs.1, bound);
        }
    }
}

/// Regression test: a device used one cached table for every other table of the same size.
#[test]
fn two_rotations_of_one_size_are_two() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    let (heads, head_dim, tokens) = (2, 16, 3);
    for name in [1, 2, 1] {
        let table = |seed| values(tokens * head_dim / 2, seed + 10 * name as u32);
        let rope = RopeTable { name, dims: head_dim, cos: table(1), sin: table(2) };
        let (kv_heads, eps) = (heads, 1e-5);
        let how = Placing {
            heads,
            kv_heads,
            head_dim,
            q_norm: None,
            k_norm: None,
            v_norm: false,
            late_norms: false,
            latent: false,
            eps,
            limit: None,
            rope: &rope,
        };
        let x = values(tokens * heads * head_dim, 3);
        let (mut q, mut k, mut v) = (put(&b, &x), put(&b, &x), put(&b, &x));
        let (mut kv, mut rotated) =
            (b.alloc_kv(tokens, heads, [head_dim; 2]).unwrap(), b.alloc(x.len()).unwrap());
        b.place(
            Projected { q: &mut q, k: &mut k, v: &mut v },
            &how,
            (0, tokens),
            (&mut kv, false),
            &mut rotated,
        );
        let (mut q, mut k, mut v) = (put(&cpu, &x), put(&cpu, &x), put(&cpu, &x));
        let mut kv = cpu.alloc_kv(tokens, heads, [head_dim; 2]).unwrap();
        cpu.place([&mut q, &mut k, &mut v], &how, 0, tokens, Some(&mut kv));
        close("a rotation", &get(&b, &rotated), &q, 1e-5);
    }
}

/// The last token gets the same result alone and among others. The same holds if one step prepares and
/// attends, and writes the same cache.
#[allow(clippy::too_many_arguments)]
fn alone(
    b: &GpuBackend,
    rotated: &[f32],
    how: &Placing,
    shape: &Attention,
    (pos, tokens): (usize, usize),
    kv: &mut <GpuBackend as Backend>::Kv,
    among: &[f32],
) {
    let (heads, kv_heads, head_dim) = (shape.heads, shape.kv_heads, shape.head_dim);
    let width = heads * head_dim;
    let last = put(b, &rotated[(tokens - 1) * width..]);
    let mut one = b.alloc(width).unwrap();
    b.attention(&last, kv, pos + tokens - 1, 1, shape, &mut one);
    assert_eq!(get(b, &one), among[(tokens - 1) * width..]);
    let own = |heads: usize, seed| {
        let all = values(tokens * heads * head_dim, seed);
        put(b, &all[(tokens - 1) * heads * head_dim..])
    };
    let (mut q, mut k, mut v) = (own(heads, 1), own(kv_heads, 2), own(kv_heads, 3));
    b.upload(&mut one, 0, &vec![0.0; width]);
    let x = Projected { q: &mut q, k: &mut k, v: &mut v };
    let before = b.stats().dispatches;
    let (pos_of, out) = (pos + tokens - 1, &mut one);
    let call = AttendCall {
        x,
        how,
        tokens: 1,
        sequences: &mut std::iter::once(Sequence { pos: pos_of, tokens: 1, kv: &mut *kv }),
        shared: false,
        shape,
        absorbed: None,
        gate: None,
        out,
    };
    Backend::attend(b, call);
    // More than one tile of positions take one workgroup each, and one launch merges them.
    let several = shape.window.unwrap_or(usize::MAX).min(pos + tokens) > TILE;
    assert_eq!(b.stats().dispatches - before, 1 + u64::from(several));
    assert_eq!(get(b, &one), among[(tokens - 1) * width..]);
    b.attention(&last, kv, pos + tokens - 1, 1, shape, &mut one);
    assert_eq!(get(b, &one), among[(tokens - 1) * width..]);
}

#[test]
fn tokens_that_attend_together_get_what_they_get_alone() {
    let mut ran = [0, 0];
    for (heads, kv_heads, head_dim, pos, tokens) in [
        (3, 3, 6, 0, 50),
        (2, 2, 16, 120, 20),
        (8, 2, 64, 500, 37),
        (4, 1, 72, 0, 33),
        (2, 2, 128, 250, 40),
        (4, 2, 200, 60, 70),
        (2, 2, 512, 130, 9),
    ] {
        for single in [true, false] {
            let Some(b) = gpu_with(&GpuOptions { kv_single: single, ..GpuOptions::default() }) else {
                return;
            };
            let (all, width) = (pos + tokens, heads * head_dim);
            let rope = RopeTable { name: 0, dims: 2, cos: vec![1.0; all], sin: vec![0.0; all] };
            let how = Placing {
                heads,
                kv_heads,
                head_dim,
                q_norm: None,
                k_norm: None,
                v_norm: false,
                late_norms: false,
                latent: false,
                eps: 1e-5,
                limit: None,
                rope: &rope,
            };
            let mut kv = b.alloc_kv(all, kv_heads, [head_dim; 2]).unwrap();
            let value = |heads, seed| put(&b, &values(all * heads * head_dim, seed));
            let (mut q, mut k, mut v) = (value(heads, 1), value(kv_heads, 2), value(kv_heads, 3));
            let mut rotated = b.alloc(all * width).unwrap();
            b.place(
                Projected { q: &mut q, k: &mut k, v: &mut v },
                &how,
                (0, all),
                (&mut kv, false),
                &mut rotated,
            );
            let rotated = get(&b, &rotated);
            let attended = |window, pos: usize, tokens: usize| {
                let shape = Attention { heads, kv_heads, head_dim, scale: 0.7, window, sinks: None };
                let mut out = b.alloc(tokens * width).unwrap();
                let q = put(&b, &rotated[pos * width..][..tokens * width]);
                b.attention(&q, &kv, pos, tokens, &shape, &mut out);
                get(&b, &out)
            };
            let kernels = || b.stats().pipelines;
            let before = kernels();
            let together = attended(None, pos, tokens);
            assert_eq!(kernels() - before, 1);
            for t in 0..tokens {
                assert_eq!(
                    attended(None, pos + t, 1),
                    together[t * width..][..width],
                    "{head_dim}, token {t}"
                );
            }
            // This runs another kernel, except for single heads that fill a workgroup.
            ran[usize::from(kernels() - before == 2)] += 1;
            // A window that hides nothing changes nothing; one that hides positions works for any number of tokens.
            assert_eq!(attended(Some(all), pos, tokens), together);
            let behind = attended(Some(all - 1), pos, tokens);
            assert_eq!(behind[..(tokens - 1) * width], together[..(tokens - 1) * width]);
            assert_ne!(behind[(tokens - 1) * width..], together[(tokens - 1) * width..]);
        }
    }
    assert_eq!(ran, [0, 14], "one kernel for many, another for one");
}

#[test]
fn what_is_elementwise() {
    let Some(b) = gpu() else { return };
    let (x, y) = (values(1000, 1), values(1000, 2));
    let mut gx = put(&b, &x);
    let gy = put(&b, &y);
    b.add(&mut gx, &gy, 999);
    let want: Vec<f32> = (0..1000).map(|i| if i < 999 { x[i] + y[i] } else { x[i] }).collect();
    assert_eq!(get(&b, &gx), want);
    let mut part = b.alloc(500).unwrap();
    b.copy(&gy, 300, 400, &mut part);
    assert_eq!(get(&b, &part)[..400], y[300..700]);
    let gate = values(10, 3);
    let cpu = cpu();
    let (mut gated, mut want) = (put(&b, &x), put(&cpu, &x));
    b.gate_rows(&mut gated, &put(&b, &gate), 10, 100);
    cpu.gate_rows(&mut want, &put(&cpu, &gate), 10, 100);
    close("gated rows", &get(&b, &gated), &want, 1e-6);
}
