//! Experts chosen from the best groups, on both backends, against their formula.

use super::*;
use crate::kernels::{Choosing, Groups, Score};

#[test]
fn choices_among_groups_are_their_formula() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    let mut moved = 0;
    for (experts, count, kept, top_k) in [(12, 4, 2, 3), (64, 8, 3, 6), (256, 8, 4, 8), (64, 64, 9, 6)] {
        let tokens = 5;
        let (logits, bias) = (values(tokens * experts, 3), values(experts, 4));
        for (score, bias) in [
            (Score::Softmax, None),
            (Score::Softmax, Some(&bias[..])),
            (Score::Sigmoid { eps: 1e-20 }, None),
            (Score::Sigmoid { eps: 1e-20 }, Some(&bias[..])),
        ] {
            let groups = Some(Groups { count, kept });
            let router = Router { experts, top_k, renormalize: true, scale: 2.5, score, groups };
            let choosing = Choosing { router: &router, bias };
            let (mut got, mut own) = (Vec::new(), Vec::new());
            b.route(&put(&b, &logits), tokens, choosing, &mut got).unwrap();
            cpu.route(&put(&cpu, &logits), tokens, choosing, &mut own).unwrap();
            let mut want = Vec::new();
            for logits in logits.chunks_exact(experts) {
                let exps: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
                let weight = |e: usize| match score {
                    Score::Softmax => f64::from(logits[e]).exp() / exps,
                    Score::Sigmoid { .. } => 1.0 / (1.0 + (-f64::from(logits[e])).exp()),
                    Score::Mixer { .. } => unreachable!("gate 196 has these"),
                };
                let standing = |e: usize| weight(e) + bias.map_or(0.0, |b| f64::from(b[e]));
                let size = experts / count;
                let of_group = |g: usize| {
                    let mut all: Vec<f64> = (g * size..(g + 1) * size).map(standing).collect();
                    all.sort_by(|a, b| b.total_cmp(a));
                    let best = if score == Score::Softmax { 1 } else { 2 };
                    all.iter().take(best).sum::<f64>()
                };
                let mut best: Vec<usize> = (0..count).collect();
                best.sort_by(|&a, &b| of_group(b).total_cmp(&of_group(a)));
                best.truncate(kept);
                let mut order: Vec<usize> = (0..experts).collect();
                order.sort_by(|&a, &b| standing(b).total_cmp(&standing(a)));
                let free = order[..top_k].to_vec();
                order.retain(|e| best.contains(&(e / size)));
                order.truncate(top_k);
                moved += usize::from(order != free);
                let sum: f64 = order.iter().map(|&e| weight(e)).sum();
                want.extend(order.iter().map(|&e| (e as u32, (weight(e) * 2.5 / sum) as f32)));
            }
            for (name, choices) in [("GPU", got), ("CPU", own)] {
                let ids = |c: &[Choice]| c.iter().map(|c| c.expert).collect::<Vec<_>>();
                assert_eq!(ids(&choices), want.iter().map(|w| w.0).collect::<Vec<_>>(), "{name}");
                let gates: Vec<f32> = choices.iter().map(|c| c.gate).collect();
                close(name, &gates, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-5);
            }
        }
    }
    assert!(moved > 10, "groups that move no choice");
}
