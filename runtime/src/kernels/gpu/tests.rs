//! Every kernel, level and shape against its twin on the CPU or the scalar specification in `quant`.
//!
//! A machine without an adapter skips them, unless `DOLLOP_TEST_GPU` says that there is one: `./check` sets it.

use super::*;
use crate::kernels::RopeTable;
use crate::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use crate::kernels::testing::values;
use crate::quant::{self, Shape};
use dollop_shaders::{Kernel, SHADERS};

mod mixed;

fn gpu_with(options: &GpuOptions) -> Option<GpuBackend> {
    match GpuBackend::new(options) {
        Ok(b) => Some(b),
        Err(e) => {
            assert!(std::env::var_os("DOLLOP_TEST_GPU").is_none(), "{e}");
            None
        }
    }
}

fn gpu() -> Option<GpuBackend> {
    gpu_with(&GpuOptions { kv_single: true, ..GpuOptions::default() })
}

fn cpu() -> CpuBackend {
    let isa = Some(Isa::available()[0]);
    CpuBackend::new(CpuOptions { threads: 1, isa, kv_single: true, ..CpuOptions::default() }).unwrap()
}

fn nested(rows: usize, cols: usize, group: usize, level: Level, seed: u32) -> Matrix {
    let shape = Shape::new(rows, cols, group).unwrap();
    let encoded = quant::encode(shape, &values(rows * cols, seed), None, Level::B8).unwrap();
    Matrix::Nested(encoded.into_nested().unwrap().at(level).unwrap())
}

fn plain(rows: usize, cols: usize, seed: u32) -> Matrix {
    Matrix::F32 { rows, cols, data: values(rows * cols, seed).into() }
}

/// The matrix in f64.
fn dense(m: &Matrix) -> Vec<f64> {
    match m {
        Matrix::F32 { data, .. } => data.iter().map(|&w| w.into()).collect(),
        Matrix::Nested(n) => {
            let mut row = vec![0.0; m.cols()];
            let all = (0..m.rows()).flat_map(|r| {
                n.dequantize_row(r, &mut row);
                row.iter().map(|&w| f64::from(w)).collect::<Vec<_>>()
            });
            all.collect()
        }
    }
}

/// `m · x` in f64, and the sum of magnitudes, of which the error is a part.
fn product(m: &[f64], cols: usize, x: &[f32]) -> Vec<(f64, f64)> {
    let row = |w: &[f64]| {
        let terms = w.iter().zip(x).map(|(w, x)| w * f64::from(*x));
        terms.fold((0.0, 0.0), |(sum, all), t| (sum + t, all + t.abs()))
    };
    m.chunks_exact(cols).map(row).collect()
}

fn put(b: &GpuBackend, x: &[f32]) -> GpuBuf {
    let mut buf = b.alloc(x.len()).unwrap();
    b.upload(&mut buf, 0, x);
    buf
}

fn get(b: &GpuBackend, buf: &GpuBuf) -> Vec<f32> {
    let mut out = vec![0.0; buf.len];
    b.download(buf, 0, &mut out).unwrap();
    out
}

/// The part of the magnitudes that f32 sums may be off by: codes reach 255 where weights are centred, which costs a few
/// bits.
const SUMS: f64 = 3e-5;

fn near(what: &str, got: &[f32], want: &[(f64, f64)], part: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, (w, all))) in got.iter().zip(want).enumerate() {
        let bound = part * (all + 1e-3);
        assert!((f64::from(*g) - w).abs() <= bound, "{what}, value {i}: {g} instead of {w} ± {bound}");
    }
}

fn close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * (1.0 + w.abs()), "{what}, value {i}: {g} instead of {w}");
    }
}

#[test]
fn parameters_are_what_the_kernels_read() {
    fn check<P: Params>() -> Kernel {
        for s in SHADERS.iter().filter(|s| s.kernel == P::KERNEL) {
            assert_eq!(s.params_size as usize, size_of::<P>(), "{:?}", P::KERNEL);
            let fields: Vec<(&str, u32)> = P::FIELDS.iter().map(|&(n, at)| (n, at as u32)).collect();
            assert_eq!(s.params, fields, "{:?}", P::KERNEL);
        }
        P::KERNEL
    }
    let checked = [
        check::<LinearParams>(),
        check::<GateUpParams>(),
        check::<DownParams>(),
        check::<EmbedParams>(),
        check::<RmsNormParams>(),
        check::<PlaceParams>(),
        check::<AttentionParams>(),
        check::<RouteParams>(),
        check::<GroupParams>(),
        check::<CombineParams>(),
        check::<ElementwiseParams>(),
        check::<GateRowsParams>(),
    ];
    assert!(SHADERS.iter().all(|s| checked.contains(&s.kernel)), "a kernel's parameters are not compared");
}

/// Every kind of matrix of a shape.
fn kinds(rows: usize, cols: usize) -> Vec<(String, Matrix)> {
    let mut all = vec![(format!("f32 {rows}x{cols}"), plain(rows, cols, 5))];
    for group in [32, 64] {
        for level in Level::ALL {
            let name = format!("{rows}x{cols}, groups of {group}, level {level}");
            all.push((name, nested(rows, cols, group, level, (rows + cols) as u32)));
        }
    }
    all
}

#[test]
fn products_agree_with_the_specification_at_every_level() {
    let Some(b) = gpu() else { return };
    let mut checked = 0;
    for (rows, cols) in [(1, 1), (3, 31), (5, 32), (33, 64), (70, 96), (7, 160), (40, 200), (65, 2100)] {
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
        // Two of one level in one dispatch, and one more of another kind.
        let matrices = [nested(33, cols, 64, level, 1), nested(20, cols, 32, level, 2), plain(7, cols, 3)];
        let weight = values(cols, 4);
        let norm = Norm { weight: &weight, eps: 1e-5 };
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
            let mut normed = vec![0.0; tokens * cols];
            cpu.rms_norm(&x, &weight, 1e-5, tokens, &mut normed);
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
            b.embed(&table, &ids, &mut out);
            let mut want = vec![0.0; ids.len() * cols];
            cpu().embed(&table, &ids, &mut want);
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
            let rope = RopeTable { dims: 2 * half, cos: values(all * half, 11), sin: values(all * half, 12) };
            let len = |n: usize| if norm == "head" { head_dim } else { n * head_dim };
            let (q_norm, k_norm) = (values(len(heads), 13), values(len(kv_heads), 14));
            let how = Placing {
                heads,
                kv_heads,
                head_dim,
                q_norm: Some(&q_norm[..]).filter(|_| !norm.is_empty()),
                k_norm: Some(&k_norm[..]).filter(|_| !norm.is_empty()),
                eps: 1e-5,
                limit,
                rope: &rope,
            };
            let shape = Attention { heads, kv_heads, head_dim, scale: 0.3, window };
            let (mut kv, mut cpu_kv) = (
                b.alloc_kv(all, kv_heads, head_dim).unwrap(),
                cpu.alloc_kv(all, kv_heads, head_dim).unwrap(),
            );
            let mut outs = (Vec::new(), Vec::new());
            // What came before, then the tokens in question.
            for (pos, tokens) in [(0, pos), (pos, tokens)].into_iter().filter(|p| p.1 > 0) {
                let (mut q, mut k) =
                    (values(tokens * heads * head_dim, 1), values(tokens * kv_heads * head_dim, 2));
                let mut v = values(tokens * kv_heads * head_dim, 3);
                let (mut gq, mut gk, mut gv) = (put(&b, &q), put(&b, &k), put(&b, &v));
                let mut rotated = b.alloc(q.len()).unwrap();
                let x = Projected { q: &mut gq, k: &mut gk, v: &mut gv };
                b.place(x, &how, pos, tokens, &mut kv, &mut rotated);
                let mut out = b.alloc(q.len()).unwrap();
                b.attention(&rotated, &kv, pos, tokens, &shape, &mut out);
                outs.0 = get(&b, &out);
                let mut turned = vec![0.0; q.len()];
                let x = Projected { q: &mut q, k: &mut k, v: &mut v };
                cpu.place(x, &how, pos, tokens, &mut cpu_kv, &mut turned);
                close("queries", &get(&b, &rotated), &turned, 1e-5);
                outs.1 = vec![0.0; turned.len()];
                cpu.attention(&turned, &cpu_kv, pos, tokens, &shape, &mut outs.1);
                // Alone it gets what it gets among others.
                let width = heads * head_dim;
                let last = put(&b, &get(&b, &rotated)[(tokens - 1) * width..]);
                let mut one = b.alloc(width).unwrap();
                b.attention(&last, &kv, pos + tokens - 1, 1, &shape, &mut one);
                assert_eq!(get(&b, &one), outs.0[(tokens - 1) * width..]);
            }
            let bound = if single { 2e-5 } else { 4e-3 };
            close(&format!("{shape:?}, norm {norm}"), &outs.0, &outs.1, bound);
        }
    }
}

#[test]
fn routing_orders_by_weight_and_breaks_ties_by_index() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    for (experts, top_k, tokens) in [(4, 2, 2), (8, 8, 1), (64, 8, 5), (200, 6, 3)] {
        let mut logits = values(tokens * experts, 3);
        logits[1] = logits[2];
        for renormalize in [false, true] {
            let router = Router { experts, top_k, renormalize, scale: 1.5 };
            let (mut got, mut want) = (Vec::new(), Vec::new());
            b.route(&put(&b, &logits), tokens, &router, &mut got).unwrap();
            cpu.route(&logits, tokens, &router, &mut want).unwrap();
            let ids = |c: &[Choice]| c.iter().map(|c| c.expert).collect::<Vec<_>>();
            assert_eq!(ids(&got), ids(&want));
            let gates = |c: &[Choice]| c.iter().map(|c| c.gate).collect::<Vec<_>>();
            close("gates", &gates(&got), &gates(&want), 1e-5);
        }
    }
    let router = Router { experts: 4, top_k: 2, renormalize: true, scale: 2.0 };
    let mut out = Vec::new();
    b.route(&put(&b, &[0.0, 2.0, 2.0, -1.0, f32::NAN, 0.0, 1.0, 0.5]), 2, &router, &mut out).unwrap();
    assert_eq!(out[..2].iter().map(|c| c.expert).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(out.len(), 4, "a NaN must not lose a choice");
}

/// `down · (silu(gate · x) ⊙ up · x)` in f64.
fn feed_forward(e: &Expert, x: &[f32]) -> Vec<f32> {
    let (gate, up, down) = (dense(&e.gate), dense(&e.up), dense(&e.down));
    let (g, u) = (product(&gate, x.len(), x), product(&up, x.len(), x));
    let hidden: Vec<f32> = g.iter().zip(u).map(|(g, u)| (g.0 / (1.0 + (-g.0).exp()) * u.0) as f32).collect();
    product(&down, hidden.len(), &hidden).iter().map(|d| d.0 as f32).collect()
}

fn an_expert(d: usize, ff: usize, level: Option<Level>, seed: u32) -> Expert {
    match level {
        None => Expert { gate: plain(ff, d, seed), up: plain(ff, d, seed + 1), down: plain(d, ff, seed + 2) },
        Some(level) => Expert {
            gate: nested(ff, d, 64, level, seed),
            up: nested(ff, d, 32, level, seed + 1),
            down: nested(d, ff, 32, level, seed + 2),
        },
    }
}

#[test]
fn experts_are_their_formula_however_they_are_reached() {
    let (d, ff, experts, top_k) = (72, 40, 5, 3);
    for level in [None, Some(Level::B2), Some(Level::B3), Some(Level::B4), Some(Level::B6), Some(Level::B8)] {
        let level_options = GpuOptions { level: level.unwrap_or(Level::B8), ..GpuOptions::default() };
        let Some(b) = gpu_with(&level_options) else { return };
        let all: Vec<Expert> = (0..experts).map(|i| an_expert(d, ff, level, 10 * i as u32 + 1)).collect();
        let tokens = 23;
        let x = values(tokens * d, 99);
        let logits = values(tokens * experts, 7);
        let router = Router { experts, top_k, renormalize: true, scale: 1.0 };
        let (input, routed) = (put(&b, &x), put(&b, &logits));
        let mut choices = Vec::new();
        b.route(&routed, tokens, &router, &mut choices).unwrap();
        let by_expert: Vec<Vec<u32>> = (0..experts as u32)
            .map(|e| (0..choices.len() as u32).filter(|&s| choices[s as usize].expert == e).collect())
            .collect();
        let jobs: Vec<ExpertJob> = (0..experts)
            .filter(|&e| !by_expert[e].is_empty())
            .map(|e| ExpertJob { index: e as u32, expert: &all[e], slots: &by_expert[e] })
            .collect();
        let of = Routed { layer: 3, experts, top_k, tokens };
        let mut slots = b.alloc(tokens * top_k * d).unwrap();
        b.experts(&input, of, &jobs, &mut slots);
        let mut sum = b.alloc(tokens * d).unwrap();
        b.combine(&slots, &choices, top_k, d, &mut sum);
        let sum = get(&b, &sum);
        for (s, got) in get(&b, &slots).chunks_exact(d).enumerate() {
            let want = feed_forward(&all[choices[s].expert as usize], &x[s / top_k * d..][..d]);
            close(&format!("level {level:?}, slot {s}"), got, &want, 2e-4);
        }
        // Chosen, sorted and summed on the device, one token at a time or all together: the same to the last bit.
        let on_device = |tokens: usize, h: &GpuBuf, logits: &GpuBuf| {
            let (mut slots, mut y) = (b.alloc(tokens * top_k * d).unwrap(), b.alloc(tokens * d).unwrap());
            let mut x = put(&b, &vec![0.0; tokens * d]);
            let bufs = RoutedBufs { h, logits, slots: &mut slots, y: &mut y, x: &mut x, history: None };
            assert!(b.routed(bufs, tokens, &router, 3, &all).unwrap());
            get(&b, &x)
        };
        let before = b.stats();
        for t in 0..tokens {
            let (h, l) = (put(&b, &x[t * d..][..d]), put(&b, &logits[t * experts..][..experts]));
            assert_eq!(on_device(1, &h, &l), sum[t * d..][..d], "level {level:?}, token {t}");
        }
        assert_eq!(b.stats().dispatches - before.dispatches, 3 * tokens as u64);
        assert_eq!(on_device(tokens, &input, &routed), sum, "level {level:?}");
        // As one block of every token.
        let mut out = b.alloc(tokens * d).unwrap();
        b.ffn(&input, tokens, &all[1], &mut out);
        for (t, got) in get(&b, &out).chunks_exact(d).enumerate() {
            close("a block", got, &feed_forward(&all[1], &x[t * d..][..d]), 2e-4);
        }
        // The same, gated and added.
        let gates = values(tokens, 8);
        let (mut y, mut sum) = (b.alloc(tokens * d).unwrap(), put(&b, &x));
        b.ffn_add(&input, tokens, &all[1], Some(&put(&b, &gates)), &mut y, &mut sum);
        let (sum, blocks) = (get(&b, &sum), get(&b, &out));
        for t in 0..tokens {
            let x = &x[t * d..][..d];
            let mut one = put(&b, x);
            b.ffn_add(&put(&b, x), 1, &all[1], Some(&put(&b, &gates[t..=t])), &mut y, &mut one);
            assert_eq!(get(&b, &one), sum[t * d..][..d], "level {level:?}, token {t}");
            let gate = 1.0 / (1.0 + (-gates[t]).exp());
            let want: Vec<f32> = x.iter().zip(&blocks[t * d..]).map(|(x, y)| x + gate * y).collect();
            close("a gated block", &get(&b, &one), &want, 1e-5);
        }
    }
}

#[test]
fn experts_that_do_not_all_fit_give_way_and_grow() {
    let (d, ff, experts) = (64, 32, 6);
    let all: Vec<Expert> = (0..experts).map(|i| an_expert(d, ff, Some(Level::B8), 10 * i + 1)).collect();
    let bytes = |m: &Matrix| weights::bytes(m, weights::tiles(m));
    let slot: usize = [&all[0].gate, &all[0].up, &all[0].down].map(bytes).iter().sum();
    let room = Some(2 * slot as u64 + 1);
    let Some(b) = gpu_with(&GpuOptions { expert_bytes: room, ..GpuOptions::default() }) else { return };
    let x = values(d, 5);
    let input = put(&b, &x);
    let of = Routed { layer: 0, experts: experts as usize, top_k: 2, tokens: 1 };
    let mut slots = b.alloc(2 * d).unwrap();
    for (round, level) in [Level::B2, Level::B3, Level::B8, Level::B4].into_iter().enumerate() {
        for pair in [[0, 1], [2, 0], [5, 3], [3, 4]] {
            let at = |m: &Matrix| match m {
                Matrix::Nested(n) => Matrix::Nested(n.at(level).unwrap()),
                other => other.clone(),
            };
            let now = pair.map(|i: usize| Expert {
                gate: at(&all[i].gate),
                up: at(&all[i].up),
                down: at(&all[i].down),
            });
            let ranks = [[0u32], [1]];
            let jobs: Vec<ExpertJob> = (0..2)
                .map(|i| ExpertJob { index: pair[i] as u32, expert: &now[i], slots: &ranks[i] })
                .collect();
            b.experts(&input, of, &jobs, &mut slots);
            for (i, got) in get(&b, &slots).chunks_exact(d).enumerate() {
                close(&format!("round {round}, {pair:?}"), got, &feed_forward(&now[i], &x), 2e-4);
            }
        }
    }
    let (mut y, mut out) = (b.alloc(d).unwrap(), b.alloc(d).unwrap());
    let router = Router { experts: experts as usize, top_k: 2, renormalize: true, scale: 1.0 };
    let logits = put(&b, &values(experts as usize, 1));
    let bufs =
        RoutedBufs { h: &input, logits: &logits, slots: &mut slots, y: &mut y, x: &mut out, history: None };
    assert!(!b.routed(bufs, 1, &router, 0, &all).unwrap(), "not all of them fit");
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
    let (mut gated, mut want) = (put(&b, &x), x.clone());
    b.gate_rows(&mut gated, &put(&b, &gate), 10, 100);
    cpu().gate_rows(&mut want, &gate, 10, 100);
    close("gated rows", &get(&b, &gated), &want, 1e-6);
}

#[test]
fn what_does_not_fit_is_an_error_and_not_a_crash() {
    let Some(b) = gpu() else { return };
    assert!(matches!(b.alloc(usize::MAX / 8), Err(Error::Device(_))));
    let huge = GpuBackend::new(&GpuOptions { adapter: Some(1000), ..GpuOptions::default() });
    assert!(matches!(huge, Err(Error::Device(_))));
    let wide = Router { experts: 5000, top_k: 1, renormalize: false, scale: 1.0 };
    let logits = b.alloc(5000).unwrap();
    assert!(b.route(&logits, 1, &wide, &mut Vec::new()).is_err());
}

#[test]
fn a_lost_device_is_an_error_from_then_on() {
    let Some(b) = gpu() else { return };
    let x = put(&b, &values(64, 1));
    assert_eq!(get(&b, &x), values(64, 1));
    let mut out = b.alloc(64).unwrap();
    b.gpu.device.destroy();
    b.copy(&x, 0, 64, &mut out);
    let mut back = vec![0.0; 64];
    assert!(matches!(b.download(&x, 0, &mut back), Err(Error::Device(_))));
    assert!(matches!(b.download(&x, 0, &mut back), Err(Error::Device(_))));
    assert!(b.alloc(16).is_err());
}

#[test]
fn what_no_kernel_can_read_at_once_is_cut() {
    // Less than the table, a layer's experts or the larger matrices take.
    let binding_bytes = Some(64 << 10);
    let Some(whole) = gpu() else { return };
    let small = GpuOptions { kv_single: true, binding_bytes, ..GpuOptions::default() };
    let Some(b) = gpu_with(&small) else { return };
    for matrix in [nested(700, 576, 64, Level::B8, 1), plain(100, 576, 2)] {
        for tokens in [1, 9] {
            let x = values(tokens * 576, 3);
            let bias = values(matrix.rows(), 4);
            let weight = values(576, 5);
            let on = |b: &GpuBackend| {
                let input = put(b, &x);
                let (mut h, mut out) =
                    (b.alloc(tokens * 576).unwrap(), b.alloc(tokens * matrix.rows()).unwrap());
                let linear = Linear { matrix: &matrix, bias: Some(&bias), out: &mut out };
                let norm = Norm { weight: &weight, eps: 1e-5 };
                b.norm_linear(&input, norm, tokens, &mut h, &mut [linear]);
                let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 97 % matrix.rows() as u32).collect();
                let mut rows = b.alloc(tokens * 576).unwrap();
                b.embed(&matrix, &ids, &mut rows);
                [get(b, &out), get(b, &h), get(b, &rows)]
            };
            assert_eq!(on(&b), on(&whole), "a cut matrix gives other bits");
        }
    }
    let expert = an_expert(288, 200, Some(Level::B8), 7);
    let x = values(3 * 288, 9);
    let mut outs = Vec::new();
    for b in [&b, &whole] {
        let mut out = b.alloc(3 * 288).unwrap();
        b.ffn(&put(b, &x), 3, &expert, &mut out);
        outs.push(get(b, &out));
    }
    assert_eq!(outs[0], outs[1], "a block by matrix gives other bits");

    let experts: Vec<Expert> = (0..5).map(|i| an_expert(96, 64, Some(Level::B8), 20 * i + 1)).collect();
    let router = Router { experts: 5, top_k: 2, renormalize: true, scale: 1.0 };
    let input = put(&b, &x[..96]);
    let mut out = b.alloc(96).unwrap();
    let logits = put(&b, &values(5, 2));
    let (mut two, mut y) = (b.alloc(2 * 96).unwrap(), b.alloc(96).unwrap());
    let bufs =
        RoutedBufs { h: &input, logits: &logits, slots: &mut two, y: &mut y, x: &mut out, history: None };
    assert!(!b.routed(bufs, 1, &router, 0, &experts).unwrap(), "they lie in several buffers");
    let slots: Vec<u32> = (0..5).collect();
    let jobs: Vec<ExpertJob> =
        (0..5).map(|i| ExpertJob { index: i as u32, expert: &experts[i], slots: &slots[i..=i] }).collect();
    let mut rows = b.alloc(5 * 96).unwrap();
    b.experts(&input, Routed { layer: 0, experts: 5, top_k: 5, tokens: 1 }, &jobs, &mut rows);
    for (i, got) in get(&b, &rows).chunks_exact(96).enumerate() {
        close(&format!("expert {i}"), got, &feed_forward(&experts[i], &x[..96]), 2e-4);
    }
}
