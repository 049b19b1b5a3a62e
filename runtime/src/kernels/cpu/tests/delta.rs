//! The gated delta net against its formulas in double precision, one token at a time.

use super::*;
use crate::kernels::testing::{Net, in_calls, rows};
use crate::kernels::{Decay, Delta, Gate, Rule};

/// The formulas, as they stand in the paper.
fn plain(d: &Delta, [qkv, z, beta, alpha]: &[Vec<f32>; 4], tokens: usize) -> Vec<f64> {
    let (channels, width, keys) = (d.channels(), d.v_heads * d.v_dim, d.k_heads * d.k_dim);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let silu = |x: f64| x * sigmoid(x);
    let gated = |x: f64| if d.gate == Gate::Silu { silu(x) } else { sigmoid(x) };
    let mut memory = vec![0.0f64; d.v_heads * d.k_dim * d.v_dim];
    let mut out = Vec::new();
    for t in 0..tokens {
        let mixed: Vec<f64> = (0..channels)
            .map(|c| {
                let tap = |j: usize| {
                    let row = (t + j).checked_sub(d.taps - 1);
                    row.map_or(0.0, |r| f64::from(qkv[r * channels + c]) * f64::from(d.conv[c * d.taps + j]))
                };
                silu((0..d.taps).map(tap).sum::<f64>() + d.bias.map_or(0.0, |bias| f64::from(bias[c])))
            })
            .collect();
        let unit = |x: &[f64]| -> Vec<f64> {
            let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
            let length = if d.rule == Rule::Correct { length } else { 1.0 };
            x.iter().map(|x| x / length).collect()
        };
        let mut results = Vec::new();
        for head in 0..d.v_heads {
            let key_head = if d.tiled { head % d.k_heads } else { head * d.k_heads / d.v_heads };
            let q = unit(&mixed[key_head * d.k_dim..][..d.k_dim]);
            let k = unit(&mixed[keys + key_head * d.k_dim..][..d.k_dim]);
            let v = &mixed[2 * keys + head * d.v_dim..][..d.v_dim];
            let at = t * d.v_heads + head;
            let fade = |i: usize| {
                let part = if d.decay == Decay::Heads { head } else { head * d.k_dim + i };
                let x = f64::from(alpha[t * d.decays() + part]) + f64::from(d.dt[part]);
                let a = f64::from(d.a[head]);
                match d.decay {
                    Decay::Heads | Decay::Channels => (a * x.exp().ln_1p()).exp(),
                    Decay::Bounded(lower) => (f64::from(lower) * sigmoid(-a * x)).exp(),
                }
            };
            let s = &mut memory[head * d.k_dim * d.v_dim..][..d.k_dim * d.v_dim];
            s.iter_mut().enumerate().for_each(|(i, s)| *s *= fade(i / d.v_dim));
            let mut read = vec![0.0; d.v_dim];
            for (j, read) in read.iter_mut().enumerate() {
                let held: f64 = (0..d.k_dim).map(|i| s[i * d.v_dim + j] * k[i]).sum();
                let (write, root, skip) = match d.rule {
                    Rule::Correct => {
                        (sigmoid(f64::from(beta[at])) * (v[j] - held), (d.k_dim as f64).sqrt(), 0.0)
                    }
                    Rule::Add { skip } => {
                        let step = (f64::from(alpha[at]) + f64::from(d.dt[head])).exp().ln_1p();
                        (step * v[j], 1.0, f64::from(skip[head]))
                    }
                };
                (0..d.k_dim).for_each(|i| s[i * d.v_dim + j] += k[i] * write);
                *read = (0..d.k_dim).map(|i| s[i * d.v_dim + j] * q[i] / root).sum::<f64>() + skip * v[j];
            }
            results.extend(read);
        }
        let gate_first = d.rule != Rule::Correct;
        for (group, part) in results.chunks_exact(d.norm_dim()).enumerate() {
            let at = group * d.norm_dim();
            let z = |j: usize| gated(z[t * width + at + j].into());
            let part: Vec<f64> =
                part.iter().enumerate().map(|(j, x)| if gate_first { x * z(j) } else { *x }).collect();
            let mean = part.iter().map(|x| x * x).sum::<f64>() / part.len() as f64;
            let scale = 1.0 / (mean + f64::from(d.eps)).sqrt();
            let weight = |j: usize| f64::from(d.norm[(at + j) % d.norm.len()]);
            let last = |j: usize| if gate_first { 1.0 } else { z(j) };
            out.extend(part.iter().enumerate().map(|(j, x)| x * scale * weight(j) * last(j)));
        }
    }
    out
}

/// What comes out, and the state behind it, for calls of so many tokens.
fn computed(
    isa: Isa,
    threads: usize,
    d: &Delta,
    all: &[Vec<f32>; 4],
    calls: &[usize],
) -> (Vec<f32>, Vec<f32>) {
    in_calls(&backend(isa, threads), d, all, calls)
}

#[test]
fn a_delta_net_agrees_with_its_formulas_however_tokens_are_cut() {
    let mut checked = 0;
    for (heads, dims, taps, tiled, decay, adds) in [
        ((1, 1), (4, 16), 2, false, Decay::Heads, false),
        ((2, 4), (24, 16), 3, false, Decay::Heads, false),
        ((2, 6), (32, 48), 4, true, Decay::Heads, false),
        ((2, 4), (128, 128), 4, false, Decay::Heads, false),
        ((3, 3), (64, 80), 4, true, Decay::Heads, false),
        ((2, 2), (32, 32), 4, false, Decay::Channels, false),
        ((2, 4), (24, 16), 3, false, Decay::Channels, false),
        ((2, 2), (128, 128), 4, false, Decay::Bounded(-5.0), false),
        ((1, 3), (24, 16), 4, false, Decay::Heads, true),
        ((2, 4), (128, 64), 4, false, Decay::Heads, true),
    ] {
        let net = Net::new(heads, dims, taps, tiled, decay);
        let net = if adds { net.adding() } else { net };
        let (d, tokens) = (net.shape(), 41);
        let all = rows(&d, tokens);
        let want = plain(&d, &all, tokens);
        for isa in Isa::available() {
            let (whole, state) = computed(isa, 3, &d, &all, &[tokens]);
            for (i, (got, want)) in whole.iter().zip(&want).enumerate() {
                assert!(
                    (f64::from(*got) - want).abs() < 2e-4 * (1.0 + want.abs()),
                    "{isa} {i}: {got} {want}"
                );
                checked += 1;
            }
            // The same bits, cut into calls of any length, on any number of threads.
            for calls in [vec![1; tokens], vec![2, 1, 17, 3, 18], vec![40, 1]] {
                let (cut, end) = computed(isa, 1, &d, &all, &calls);
                assert!(cut == whole && end == state, "{isa}: calls of {calls:?}");
            }
        }
    }
    assert!(checked > 10_000);
}

/// Bounds of what projections may give: no step is so long or so short that results are no numbers.
#[test]
fn a_delta_net_stands_extreme_inputs() {
    for decay in [Decay::Heads, Decay::Channels, Decay::Bounded(-5.0)] {
        let net = Net::new((1, 2), (16, 16), 4, false, decay);
        let d = net.shape();
        let [qkv, z, beta, alpha] = rows(&d, 12);
        let far = |x: Vec<f32>| {
            x.iter().enumerate().map(|(i, x)| x * [1e-9, 200.0, 1e4][i % 3]).collect::<Vec<_>>()
        };
        let all = [far(qkv), far(z), far(beta), far(alpha)];
        let (out, _) = computed(Isa::best(), 1, &d, &all, &[12]);
        assert!(out.iter().all(|v| v.is_finite()));
        assert!(out.iter().any(|v| *v != 0.0));
    }
}
