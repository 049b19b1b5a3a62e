//! Compares variants of kernels with the plain ones, and checks that each runs where it should.

use super::*;
use crate::kernels::{Feed, GpuInputs, GpuVariants};

fn with(variants: GpuVariants) -> Option<GpuBackend> {
    gpu_with(&GpuOptions { kv_single: true, variants, ..GpuOptions::default() })
}

/// All operations that sum over a workgroup: norms alone and before products, heads' norms, attention.
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
            b.norm_linear(&x, Norm::rms(&weight, 1e-5), tokens, &mut normed, &mut [linear]);
            all.extend([get(b, &out), get(b, &normed)]);
        }
    }
    let (heads, kv_heads, head_dim, tokens) = (4, 2, 72, 300);
    let rope = RopeTable {
        name: head_dim as u64,
        dims: head_dim,
        cos: values(300 * 36, 11),
        sin: values(300 * 36, 12),
    };
    let (q_norm, k_norm) = (values(head_dim, 13), values(head_dim, 14));
    let how = Placing {
        heads,
        kv_heads,
        head_dim,
        q_norm: Some(&q_norm),
        k_norm: Some(&k_norm),
        v_norm: true,
        late_norms: false,
        latent: false,
        eps: 1e-5,
        limit: None,
        rope: &rope,
    };
    // Without a window, none of these tokens would run the kernel with subgroups.
    let shape = Attention { heads, kv_heads, head_dim, scale: 0.3, window: Some(200), sinks: None };
    let rows = |heads, seed| put(b, &values(tokens * heads * head_dim, seed));
    let (mut q, mut k, mut v) = (rows(heads, 1), rows(kv_heads, 2), rows(kv_heads, 3));
    let (mut rotated, mut out) = (rows(heads, 4), rows(heads, 5));
    let mut kv = b.alloc_kv(tokens, kv_heads, [head_dim; 2]).unwrap();
    b.place(Projected { q: &mut q, k: &mut k, v: &mut v }, &how, (0, tokens), (&mut kv, false), &mut rotated);
    b.attention(&rotated, &kv, 0, tokens, &shape, &mut out);
    all.extend([get(b, &rotated), get(b, &out)]);
    all
}

#[test]
fn inputs_are_what_suits_a_gpu_unless_a_program_says() {
    for (api, software, suits) in [
        ("Vulkan", false, GpuInputs::Bytes),
        ("Dx12", false, GpuInputs::Bytes),
        ("Metal", false, GpuInputs::Single),
        ("Vulkan", true, GpuInputs::Single),
    ] {
        let adapter = AdapterInfo {
            index: 0,
            name: String::new(),
            api: api.into(),
            driver: String::new(),
            software,
            missing: None,
            max_binding_bytes: 0,
            subgroups: None,
            f16: false,
        };
        let inputs = |inputs| adapter.of(GpuVariants { inputs, ..GpuVariants::default() }).inputs;
        assert_eq!(adapter.of(GpuVariants::default()).inputs, suits, "{api}, in software: {software}");
        assert_eq!(inputs(GpuInputs::Auto), suits);
        assert_eq!([GpuInputs::Single, GpuInputs::Bytes].map(inputs), [GpuInputs::Single, GpuInputs::Bytes]);
        assert_eq!(inputs(GpuInputs::Half), GpuInputs::Single, "it has no f16");
    }
}

#[test]
fn gate_46_subgroups_of_any_size_give_the_bits_of_none() {
    let Some(b) = with(GpuVariants { subgroups: true, ..GpuVariants::PLAIN }) else { return };
    let Some(plain) = with(GpuVariants::PLAIN) else { return };
    assert!(sums(&b) == sums(&plain), "subgroups of {:?} give other bits", b.adapter().subgroups);
    let (by_subgroups, without) = (b.stats(), plain.stats());
    assert_eq!(by_subgroups.dispatches, without.dispatches);
    assert_eq!(without.subgroup_dispatches, 0);
    // If the adapter has no subgroups, the plain kernels ran without being requested.
    let expected = if b.adapter().subgroups.is_some() { by_subgroups.dispatches } else { 0 };
    assert_eq!(by_subgroups.subgroup_dispatches, expected);
}

/// A kernel's rounded inputs: units of 32 with a scale for each.
fn rounded(x: &[f32], inputs: GpuInputs) -> Vec<f32> {
    let unit = |x: &[f32]| -> Vec<f32> {
        let most = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let of = |x: &f32| match inputs {
            _ if most == 0.0 => 0.0,
            GpuInputs::Auto | GpuInputs::Single => *x,
            GpuInputs::Half => half::f16::from_f32(x * (1.0 / most)).to_f32() * most,
            GpuInputs::Bytes => (x * (127.0 / most)).round_ties_even() * (most / 127.0),
        };
        x.iter().map(of).collect()
    };
    x.chunks(32).flat_map(unit).collect()
}

/// The relative error of products of four columns in half precision: each is rounded once, and then three
/// times in sums, by up to 2⁻¹¹.
const HALF_SUMS: f64 = 2e-3;

/// Compares products of every level and shape, for one token and for many, with exact products of rounded
/// inputs. Returns the number of matrices, and of nested ones.
fn products_of_rounded_inputs(b: &GpuBackend, plain: &GpuBackend, inputs: GpuInputs) -> (u64, u64) {
    let (mut others, mut matrices, mut all_nested) = (0, 0, 0);
    for (rows, cols) in [(1, 1), (3, 31), (33, 64), (70, 96), (7, 160), (40, 200), (65, 4200)] {
        for (name, matrix) in super::operations::kinds(rows, cols) {
            let weights = dense(&matrix);
            let nested = matches!(matrix, Matrix::Nested(_));
            (matrices, all_nested) = (matrices + 1, all_nested + u64::from(nested));
            // Magnitudes of every size, and a unit of zeros.
            let mut x = values(9 * cols, 7);
            x.iter_mut().enumerate().for_each(|(i, x)| *x *= 10f32.powi(i as i32 / 32 % 11 - 5));
            x[cols..].iter_mut().take(32).for_each(|x| *x = 0.0);
            let mut alone = Vec::new();
            for tokens in [1, 2, 9] {
                let run = |b: &GpuBackend| {
                    let mut out = b.alloc(tokens * rows).unwrap();
                    let linear = Linear { matrix: &matrix, bias: None, out: &mut out };
                    b.linear(&put(b, &x[..tokens * cols]), tokens, &mut [linear]);
                    get(b, &out)
                };
                let got = run(b);
                let inputs = match inputs {
                    GpuInputs::Half if tokens > 1 => GpuInputs::Half,
                    GpuInputs::Bytes if nested => GpuInputs::Bytes,
                    _ => GpuInputs::Single,
                };
                let part = if inputs == GpuInputs::Half && nested { HALF_SUMS } else { SUMS };
                for (t, got) in got.chunks_exact(rows).enumerate() {
                    let want = product(&weights, cols, &rounded(&x[t * cols..][..cols], inputs));
                    near(&format!("{inputs:?}, {name}, token {t} of {tokens}"), got, &want, part);
                }
                if inputs == GpuInputs::Single {
                    assert_eq!(got, run(plain), "{name}");
                } else {
                    others += usize::from(got != run(plain));
                }
                if tokens == 1 {
                    alone = got;
                } else if inputs != GpuInputs::Half {
                    assert_eq!(alone, got[..rows], "{name}: a token alone and among {tokens}");
                }
            }
        }
    }
    assert!(others > 50, "{others} products have other bits");
    (matrices, all_nested)
}

/// `down · (silu(gate · x) ⊙ up · x)` of rounded inputs, with the magnitudes to which the error is relative: those of
/// hidden values are multiplied by down.
fn block_of_rounded(matrices: &[Vec<f64>; 3], x: &[f32], inputs: GpuInputs) -> Vec<(f64, f64)> {
    let [gate, up, down] = matrices;
    let x = rounded(x, inputs);
    let hidden = gated(product(gate, x.len(), &x), product(up, x.len(), &x)).into_iter();
    let (hidden, magnitudes): (Vec<f32>, Vec<f64>) = hidden.map(|(h, all)| (h as f32, all)).unzip();
    let hidden_rounded = rounded(&hidden, inputs);
    let sums = product(down, hidden.len(), &hidden_rounded).into_iter().zip(down.chunks_exact(hidden.len()));
    sums.map(|((d, all), w)| (d, all + w.iter().zip(&magnitudes).map(|(w, m)| w.abs() * m).sum::<f64>()))
        .collect()
}

/// The same for feed-forward blocks: as blocks, with jobs from the host, and routed on the device. In 8 bits,
/// hidden values that differ from the twin's in their last bits may round differently.
fn blocks_of_rounded_inputs(b: &GpuBackend, inputs: GpuInputs) {
    let (d, ff, tokens) = (72, 40, 23);
    for level in Level::ALL {
        let expert = an_expert(d, ff, Some(level), 1);
        let matrices = [expert.gate(), &expert.up, &expert.down].map(dense);
        let x = values(tokens * d, 99);
        let mut out = b.alloc(tokens * d).unwrap();
        b.ffn(&put(b, &x), tokens, (&expert, Activation::Swiglu), &mut out);
        let slots: Vec<u32> = (0..tokens as u32).collect();
        let mut jobs = b.alloc(tokens * d).unwrap();
        let of = Routed { layer: level.index(), experts: 1, top_k: 1, tokens, inputs: 0 };
        b.experts(
            &put(b, &x),
            of,
            &Feed::default(),
            &[ExpertJob { index: 0, expert: &expert, slots: &slots }],
            &mut jobs,
        );
        assert_eq!(get(b, &out), get(b, &jobs));
        for (t, got) in get(b, &out).chunks_exact(d).enumerate() {
            let x = &x[t * d..][..d];
            let what = format!("{inputs:?}, level {level}, token {t}");
            near(&what, got, &block_of_rounded(&matrices, x, inputs), HALF_SUMS);
            // One token alone, summed on the device.
            let (h, logits) = (put(b, x), put(b, &[0.0]));
            let (mut slots, mut y) = (b.alloc(d).unwrap(), b.alloc(d).unwrap());
            let mut sum = put(b, &vec![0.0; d]);
            let bufs = RoutedBufs {
                h: &h,
                logits: &logits,
                slots: &mut slots,
                y: &mut y,
                x: Some(&mut sum),
                history: None,
            };
            let router = Router {
                experts: 1,
                top_k: 1,
                renormalize: true,
                scale: 1.0,
                score: Score::Softmax,
                groups: None,
            };
            assert!(
                b.routed(
                    bufs,
                    1,
                    router.unbiased(),
                    (level.index(), &Feed::default()),
                    std::slice::from_ref(&expert)
                )
                .unwrap()
            );
            let alone = get(b, &sum);
            if inputs == GpuInputs::Half {
                near(&what, &alone, &block_of_rounded(&matrices, x, GpuInputs::Single), SUMS);
            } else {
                assert_eq!(alone, got, "{what}");
            }
        }
    }
}

#[test]
fn gate_47_products_in_half_precision_are_those_of_rounded_inputs() {
    let inputs = GpuInputs::Half;
    let Some(b) = with(GpuVariants { inputs, ..GpuVariants::default() }) else { return };
    let plain = with(GpuVariants::PLAIN).unwrap();
    if !b.adapter().f16 {
        // The adapter silently uses the plain kernels.
        assert!(sums(&b) == sums(&plain));
        assert_eq!((b.stats().half_dispatches, b.failed()), (0, false));
        return;
    }
    let (matrices, _) = products_of_rounded_inputs(&b, &plain, inputs);
    let of_products = b.stats().half_dispatches;
    // Those with 2 and with 9 tokens, but not with one: more than 20 kinds with 7 shapes.
    assert_eq!(of_products, matrices * 2);
    assert!(matrices > 20 * 7);
    blocks_of_rounded_inputs(&b, inputs);
    assert_eq!(b.stats().half_dispatches - of_products, 4 * Level::ALL.len() as u64);
    assert_eq!((b.stats().byte_dispatches, plain.stats().half_dispatches), (0, 0));
}

#[test]
fn gate_48_products_of_bytes_are_those_of_the_integers() {
    let inputs = GpuInputs::Bytes;
    let Some(b) = with(GpuVariants { inputs, ..GpuVariants::default() }) else { return };
    let plain = with(GpuVariants::PLAIN).unwrap();
    let (_, all_nested) = products_of_rounded_inputs(&b, &plain, inputs);
    // The nested ones, also with one token.
    let of_products = b.stats().byte_dispatches;
    assert_eq!(of_products, all_nested * 3);
    assert!(all_nested >= 20 * 7);
    blocks_of_rounded_inputs(&b, inputs);
    assert!(b.stats().byte_dispatches > of_products);
    assert_eq!((b.stats().half_dispatches, plain.stats().byte_dispatches), (0, 0));
    // The CPU's products of groups of 32 use the same integers.
    for level in Level::ALL {
        let matrix = nested(33, 200, 32, level, 5);
        let x = values(3 * 200, 6);
        let mut out = b.alloc(3 * 33).unwrap();
        b.linear(&put(&b, &x), 3, &mut [Linear { matrix: &matrix, bias: None, out: &mut out }]);
        let cpu = cpu();
        let mut want = cpu.alloc(3 * 33).unwrap();
        cpu.linear(&put(&cpu, &x), 3, &mut [Linear { matrix: &matrix, bias: None, out: &mut want }]);
        close(&format!("level {level}"), &get(&b, &out), &want, 1e-5);
    }
}
