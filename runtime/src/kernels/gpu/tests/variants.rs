//! Variants of kernels against the plain ones, and that each runs where it should.

use super::*;
use crate::kernels::GpuVariants;

fn with(variants: GpuVariants) -> Option<GpuBackend> {
    gpu_with(&GpuOptions { kv_single: true, variants, ..GpuOptions::default() })
}

/// Everything that adds over a workgroup: norms alone and before products, heads' norms, attention.
fn sums(b: &GpuBackend) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    for (cols, tokens) in [(1, 1), (31, 1), (127, 2), (200, 9), (2100, 1)] {
        let (x, weight) = (put(b, &values(tokens * cols, 1)), values(cols, 2));
        let mut normed = b.alloc(tokens * cols).unwrap();
        b.rms_norm(&x, &weight, 1e-5, tokens, &mut normed);
        all.push(get(b, &normed));
        let levels = Level::ALL.map(|level| nested(33, cols, 32, level, 3));
        for matrix in levels.iter().chain([&plain(33, cols, 4)]) {
            let mut out = b.alloc(tokens * 33).unwrap();
            let linear = Linear { matrix, bias: None, out: &mut out };
            b.norm_linear(&x, Norm { weight: &weight, eps: 1e-5 }, tokens, &mut normed, &mut [linear]);
            all.extend([get(b, &out), get(b, &normed)]);
        }
    }
    let (heads, kv_heads, head_dim, tokens) = (4, 2, 72, 300);
    let rope = RopeTable { dims: head_dim, cos: values(300 * 36, 11), sin: values(300 * 36, 12) };
    let (q_norm, k_norm) = (values(head_dim, 13), values(head_dim, 14));
    let how = Placing {
        heads,
        kv_heads,
        head_dim,
        q_norm: Some(&q_norm),
        k_norm: Some(&k_norm),
        eps: 1e-5,
        limit: None,
        rope: &rope,
    };
    let shape = Attention { heads, kv_heads, head_dim, scale: 0.3, window: None };
    let rows = |heads, seed| put(b, &values(tokens * heads * head_dim, seed));
    let (mut q, mut k, mut v) = (rows(heads, 1), rows(kv_heads, 2), rows(kv_heads, 3));
    let (mut rotated, mut out) = (rows(heads, 4), rows(heads, 5));
    let mut kv = b.alloc_kv(tokens, kv_heads, head_dim).unwrap();
    b.place(Projected { q: &mut q, k: &mut k, v: &mut v }, &how, 0, tokens, &mut kv, &mut rotated);
    b.attention(&rotated, &kv, 0, tokens, &shape, &mut out);
    all.extend([get(b, &rotated), get(b, &out)]);
    all
}

#[test]
fn gate_46_subgroups_of_any_size_give_the_bits_of_none() {
    let Some(b) = with(GpuVariants { subgroups: true }) else { return };
    let Some(plain) = with(GpuVariants::PLAIN) else { return };
    assert!(sums(&b) == sums(&plain), "subgroups of {:?} give other bits", b.adapter().subgroups);
    let (by_subgroups, without) = (b.stats(), plain.stats());
    assert_eq!(by_subgroups.dispatches, without.dispatches);
    assert_eq!(without.subgroup_dispatches, 0);
    // Where the adapter has none, the plain kernels have run, and nobody had to ask for them.
    let expected = if b.adapter().subgroups.is_some() { by_subgroups.dispatches } else { 0 };
    assert_eq!(by_subgroups.subgroup_dispatches, expected);
}
