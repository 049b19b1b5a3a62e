//! Gate 196: SparseMixer's gates and layer norms, on both backends, against their formulas.

use super::*;
use crate::kernels::LinearCall;

/// The choices by `sparsemixer` of `transformers`, for any number of them.
fn mixed(logits: &[f32], tolerance: f64, top_k: usize) -> Vec<(u32, f32)> {
    let mut left: Vec<(usize, f64)> = logits.iter().map(|x| f64::from(*x)).enumerate().collect();
    let choose = |_| {
        let best = (0..left.len()).max_by(|&a, &b| left[a].1.total_cmp(&left[b].1)).unwrap();
        let (expert, high) = left[best];
        let near = left.iter().filter(|(_, x)| (high - x) / x.abs().max(high) <= tolerance);
        let sum: f64 = near.map(|(_, x)| (x - high).exp()).sum();
        left.remove(best);
        (expert as u32, (1.0 / sum) as f32)
    };
    (0..top_k).map(choose).collect()
}

#[test]
fn gates_of_a_mixer_are_their_formula() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    let (mut shared, tokens) = (0, 9);
    for (experts, top_k, tolerance) in [(8, 2, 0.02), (16, 2, 0.6), (130, 3, 0.3)] {
        let logits = values(tokens * experts, 3);
        let score = Score::Mixer { tolerance };
        let router = Router { experts, top_k, renormalize: false, scale: 1.0, score, groups: None };
        let (mut got, mut own) = (Vec::new(), Vec::new());
        b.route(&put(&b, &logits), tokens, router.unbiased(), &mut got).unwrap();
        cpu.route(&put(&cpu, &logits), tokens, router.unbiased(), &mut own).unwrap();
        let all = logits.chunks_exact(experts);
        let want: Vec<(u32, f32)> = all.flat_map(|l| mixed(l, f64::from(tolerance), top_k)).collect();
        shared += want.iter().filter(|w| w.1 < 0.9).count();
        for (name, choices) in [("GPU", got), ("CPU", own)] {
            assert!(choices.iter().map(|c| c.expert).eq(want.iter().map(|w| w.0)), "{name}");
            let gates: Vec<f32> = choices.iter().map(|c| c.gate).collect();
            close(name, &gates, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-5);
        }
    }
    assert!(shared > 10, "a choice among one is no choice");
}

fn normed<B: Backend>(b: &B, x: &[f32], tokens: usize, norm: Norm<'_>) -> Vec<f32> {
    let (mut out, mut got) = (b.alloc(x.len()).unwrap(), vec![0.0; x.len()]);
    let (x, norm) = (&put(b, x), Some((norm, &mut out)));
    b.linear(LinearCall { x, tokens, norm, outs: &mut [], times: None, add: None });
    b.read(&mut [(&out, 0, &mut got)]).unwrap();
    got
}

#[test]
fn layer_norms_are_their_formula() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    for (cols, rows) in [(64, 1), (200, 3), (1000, 17)] {
        let (weight, bias) = (values(cols, 1), values(cols, 2));
        // Far from zero, so that the mean matters.
        let x: Vec<f32> = values(rows * cols, 3).iter().map(|x| x + 2.0).collect();
        let norm = Norm { weight: &weight, bias: Some(&bias), eps: 1e-5 };
        let mut want = Vec::new();
        for row in x.chunks_exact(cols) {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / cols as f64;
            let var = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / cols as f64;
            let each = row.iter().zip(&weight).zip(&bias);
            want.extend(each.map(|((x, w), b)| {
                ((f64::from(*x) - mean) / (var + 1e-5).sqrt() * f64::from(*w) + f64::from(*b)) as f32
            }));
        }
        close("GPU", &normed(&b, &x, rows, norm), &want, 1e-4);
        close("CPU", &normed(&cpu, &x, rows, norm), &want, 1e-4);
    }
}
