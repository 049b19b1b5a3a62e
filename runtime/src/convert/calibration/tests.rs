//! Tests of the prior for experts with few tokens, and of values that are refused as energies.

use super::*;

fn inputs(sums: &[f32], counts: &[f32]) -> Inputs {
    Inputs { sums: sums.to_vec(), counts: counts.to_vec() }
}

/// Weights of one expert of a stack called `name`, as the encoder gets them.
fn weights(name: &str, inputs: &Inputs, experts: usize, expert: usize) -> Vec<f32> {
    let cols = inputs.sums.len() / experts;
    let shared = experts > 1 && !name.contains("ffn_down_exps");
    let expected = shared.then(|| expected(inputs, cols));
    Importance([(name, Stack { cols, inputs, expected })].into()).of(name, expert).unwrap()
}

const GATE: &str = "blk.0.ffn_gate_exps.weight";
const DOWN: &str = "blk.0.ffn_down_exps.weight";

fn close(a: &[f32], b: &[f32]) {
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.01 * b.abs() + 1e-6), "{a:?} instead of {b:?}");
}

#[test]
fn an_expert_is_believed_as_far_as_text_reached_it() {
    // Three experts: a million tokens with a large first column, no tokens, one token.
    let n = 1e6;
    let all = inputs(&[3.0 * n, n, 0.0, 0.0, 1.0, 3.0], &[n, 0.0, 1.0]);
    let of = |e| weights(GATE, &all, 3, e);
    close(&of(0), &[1.5, 0.5]);
    close(&of(1), &[1.5, 0.5]);
    // One measured token against a prior of 32.
    close(&of(2), &[97.0 / 66.0, 35.0 / 66.0]);
}

#[test]
fn neurons_of_other_experts_say_nothing() {
    let n = 1e6;
    let all = inputs(&[3.0 * n, n, 0.0, 0.0], &[n, 0.0]);
    close(&weights(DOWN, &all, 2, 0), &[1.5, 0.5]);
    close(&weights(DOWN, &all, 2, 1), &[1.0, 1.0]);
}

#[test]
fn no_column_counts_for_nothing() {
    let of = weights("blk.0.attn_q.weight", &inputs(&[32.0, 0.0], &[32.0]), 1, 0);
    close(&of, &[1.5, 0.5]);
    let large = weights("blk.0.attn_q.weight", &inputs(&[f32::MAX, 0.0], &[1e6]), 1, 0);
    assert!(large[1] > 0.0 && large.iter().all(|v| v.is_finite()), "{large:?}");
}

#[test]
fn where_nobody_counted_one_number_throughout_is_no_measurement() {
    let all = inputs(&[900.0, 300.0, 512.0, 512.0], &[512e6]);
    close(&weights(GATE, &all, 2, 0), &[1.5, 0.5]);
    close(&weights(GATE, &all, 2, 1), &[1.5, 0.5]);
}

#[test]
fn what_is_no_energy_is_refused() {
    let refuse = |sums: &[f32], counts: &[f32], word: &str| {
        let e = Calibration::new("test").insert(GATE, inputs(sums, counts)).unwrap_err().to_string();
        assert!(e.contains(GATE) && e.contains(word), "{e}");
    };
    refuse(&[1.0, -1.0], &[4.0], "-1");
    refuse(&[1.0, f32::NAN], &[4.0], "NaN");
    refuse(&[f32::INFINITY, 1.0], &[4.0], "inf");
    refuse(&[1.0, 1.0], &[f32::NAN], "count 0");
    refuse(&[1.0, 1.0], &[0.5], "whole");
    refuse(&[0.0, 0.0], &[4.0], "zero");
    refuse(&[1.0, 1.0], &[0.0], "no tokens");
    refuse(&[1.0, 1.0, 1.0], &[1.0, 1.0], "3 values");
    refuse(&[], &[], "0 values");
    let mut twice = Calibration::new("test");
    twice.insert(GATE, inputs(&[1.0], &[1.0])).unwrap();
    assert!(twice.insert(GATE, inputs(&[1.0], &[1.0])).unwrap_err().to_string().contains("twice"));
}
