//! Gate 99: short convolutions, and choices by sigmoids, on CPU and GPU, against f64.

use super::*;
use crate::kernels::{Choosing, ConvCall, Recur, Recurrent};

/// `C ⊙ (conv(B ⊙ v) + bias)` for all tokens.
fn formula(x: &[f32], weight: &[f32], bias: Option<&[f32]>, d: usize) -> Vec<f32> {
    let taps = weight.len() / d;
    let input = |t: usize, c: usize| f64::from(x[3 * t * d + c]) * f64::from(x[(3 * t + 2) * d + c]);
    let value = |t: usize, c: usize| {
        let sum: f64 = (0..taps)
            .filter_map(|back| {
                let t = t.checked_sub(back)?;
                Some(f64::from(weight[c * taps + taps - 1 - back]) * input(t, c))
            })
            .sum();
        ((sum + bias.map_or(0.0, |b| f64::from(b[c]))) * f64::from(x[(3 * t + 1) * d + c])) as f32
    };
    (0..x.len() / (3 * d)).flat_map(|t| (0..d).map(move |c| value(t, c))).collect()
}

/// The same in calls of these lengths, which use the slots in turn.
fn in_calls<B: Backend>(
    b: &B,
    x: &[f32],
    (weight, bias): (&[f32], Option<&[f32]>),
    d: usize,
    calls: &[usize],
) -> Vec<f32> {
    let taps = weight.len() / d;
    let mut state = b.alloc(3 * (taps - 1) * d).unwrap();
    // The first call must not read earlier contents.
    b.upload(&mut state, 0, &vec![f32::NAN; 3 * (taps - 1) * d]);
    let (mut all, mut from, mut at) = (Vec::new(), None, 0);
    for &tokens in calls {
        let (input, mut out) = (put(b, &x[3 * at * d..][..3 * tokens * d]), b.alloc(tokens * d).unwrap());
        // An extra call whose slot is never used must change nothing.
        let slot = |i: usize| (from.unwrap_or(0) + i) % 3;
        for to in [slot(1), slot(2)] {
            let (state, out) = (&mut state, &mut out);
            let sequences = &mut std::iter::once(Recurrent { tokens, state, from, to });
            b.recur(Recur::Conv(ConvCall { x: &input, sequences, weight, bias, taps, out }));
            if to == slot(2) {
                let mut values = vec![0.0; tokens * d];
                b.read(&mut [(&*out, 0, &mut values)]).unwrap();
                all.extend(values);
            }
        }
        (from, at) = (Some(slot(2)), at + tokens);
    }
    all
}

#[test]
fn short_convolutions_are_their_formula_however_tokens_come() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    for (taps, d, tokens) in [(2, 5, 9), (3, 64, 30), (3, 200, 7), (5, 130, 12), (7, 33, 20)] {
        // Weights are identified by their address, and a bias with them.
        let (x, weights) = (values(3 * tokens * d, 1), [values(d * taps, 2), values(d * taps, 2)]);
        let bias = values(d, 3);
        for (weight, bias) in weights.iter().zip([None, Some(&bias[..])]) {
            let want = formula(&x, weight, bias, d);
            let mut calls = vec![vec![tokens], vec![1; tokens], vec![2; tokens / 2]];
            calls[2].push(tokens % 2);
            calls[2].retain(|&n| n > 0);
            calls.push(vec![tokens - 1, 1]);
            let on_gpu: Vec<_> = calls.iter().map(|c| in_calls(&b, &x, (weight, bias), d, c)).collect();
            let on_cpu: Vec<_> = calls.iter().map(|c| in_calls(&cpu, &x, (weight, bias), d, c)).collect();
            for (name, got) in [("GPU", on_gpu), ("CPU", on_cpu)] {
                close(name, &got[0], &want, 1e-5);
                assert!(got.iter().all(|other| *other == got[0]), "{name}: calls change bits");
            }
        }
    }
}

#[test]
fn choices_by_sigmoids_are_their_formula() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    let mut moved = 0;
    for (experts, top_k, tokens) in [(8, 2, 5), (32, 4, 3), (200, 6, 2)] {
        let (logits, bias) = (values(tokens * experts, 3), values(experts, 4));
        for (renormalize, bias) in [(true, None), (true, Some(&bias[..])), (false, Some(&bias[..]))] {
            let score = Score::Sigmoid { eps: 1e-6 };
            let router = Router { experts, top_k, renormalize, scale: 1.5, score, groups: None };
            let choosing = Choosing { router: &router, bias };
            let (mut got, mut own) = (Vec::new(), Vec::new());
            b.route(&put(&b, &logits), tokens, choosing, &mut got).unwrap();
            cpu.route(&put(&cpu, &logits), tokens, choosing, &mut own).unwrap();
            let mut want = Vec::new();
            for logits in logits.chunks_exact(experts) {
                let sigmoid = |e: usize| 1.0 / (1.0 + (-f64::from(logits[e])).exp());
                let standing = |e: usize| sigmoid(e) + bias.map_or(0.0, |b| f64::from(b[e]));
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|&a, &b| standing(b).total_cmp(&standing(a)));
                order.truncate(top_k);
                moved += usize::from(bias.is_some() && logits.iter().any(|&l| l > logits[order[0]]));
                let sum: f64 = order.iter().map(|&e| sigmoid(e)).sum();
                let factor = if renormalize { 1.5 / (sum + 1e-6) } else { 1.5 };
                want.extend(order.iter().map(|&e| (e as u32, (sigmoid(e) * factor) as f32)));
            }
            for (name, choices) in [("GPU", got), ("CPU", own)] {
                let ids = |c: &[Choice]| c.iter().map(|c| c.expert).collect::<Vec<_>>();
                assert_eq!(ids(&choices), want.iter().map(|w| w.0).collect::<Vec<_>>(), "{name}");
                let gates: Vec<f32> = choices.iter().map(|c| c.gate).collect();
                close(name, &gates, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-5);
            }
        }
    }
    assert!(moved > 0, "a bias that moves no choice");
}
