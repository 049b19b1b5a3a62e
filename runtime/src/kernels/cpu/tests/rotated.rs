//! Experts whose inputs are rotated.

use super::*;
use crate::kernels::Feed;

const D: usize = 96;
const FF: usize = 64;

/// Three experts; `turns`: whether the inputs of gate and up are rotated, and those of down.
fn experts(level: Level, turns: [bool; 2]) -> Vec<Expert> {
    let nested = |rows: usize, cols: usize, group, seed, turn: bool| {
        let shape = Shape::new(rows, cols, group).unwrap();
        let encoded = quant::encode(shape, &values(rows * cols, seed), None, Level::B8).unwrap();
        let nested = encoded.into_nested().unwrap().at(level).unwrap();
        Matrix::Nested(nested.rotated(Rotation::of(cols).filter(|_| turn)))
    };
    let expert = |i: u32| Expert {
        gate: Some(nested(FF, D, 64, 10 * i, turns[0])),
        up: nested(FF, D, 64, 10 * i + 1, turns[0]),
        down: nested(D, FF, 32, 10 * i + 2, turns[1]),
        place: None,
    };
    (1..4).map(expert).collect()
}

fn nested(m: &Matrix) -> &quant::Nested {
    let Matrix::Nested(m) = m else { panic!("all matrices are nested") };
    m
}

/// A product according to the specification: inputs rotated, then quantized.
fn specified(m: &Matrix, x: &[f32]) -> Vec<f32> {
    let (m, mut x) = (nested(m), x.to_vec());
    if let Some(rotation) = m.rotation() {
        rotation.apply_rows(&mut x);
    }
    let x = QuantizedRow::new(&x, m.shape().group);
    (0..m.shape().rows).map(|row| m.dot(row, &x)).collect()
}

/// A product in single precision, with the weights that unrotated inputs need.
fn exact(m: &Matrix, x: &[f32]) -> Vec<f32> {
    let mut w = vec![0.0; x.len()];
    let product = |row| {
        nested(m).dequantize_row(row, &mut w);
        w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>() as f32
    };
    (0..m.rows()).map(product).collect()
}

fn feed_forward(e: &Expert, x: &[f32], product: fn(&Matrix, &[f32]) -> Vec<f32>) -> Vec<f32> {
    let (gate, up) = (product(e.gate(), x), product(&e.up, x));
    let hidden: Vec<f32> = gate.iter().zip(up).map(|(g, up)| g / (1.0 + (-g).exp()) * up).collect();
    product(&e.down, &hidden)
}

/// Squared distance, relative to the wanted values.
fn distance(got: &[f32], want: &[f32]) -> f64 {
    let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    squares(&mut got.iter().zip(want).map(|(a, b)| a - b)) / squares(&mut want.iter().copied())
}

/// The slots of several tokens, each with two of the experts.
fn call(b: &CpuBackend, all: &[Expert], x: &[f32], inputs: u64) -> Vec<f32> {
    let tokens = x.len() / D;
    let chosen = |slot: u32| (slot / 2 + slot % 2) as usize % all.len();
    let slots: Vec<Vec<u32>> =
        (0..all.len()).map(|e| (0..2 * tokens as u32).filter(|&s| chosen(s) == e).collect()).collect();
    let jobs: Vec<ExpertJob> = (0..all.len())
        .filter(|&e| !slots[e].is_empty())
        .map(|e| ExpertJob { index: e as u32, expert: &all[e], slots: &slots[e] })
        .collect();
    let mut out = buffer(vec![0.0; 2 * x.len()]);
    b.experts(
        &buffer(x),
        Routed { layer: 0, experts: all.len(), top_k: 2, tokens, inputs },
        &Feed::default(),
        &jobs,
        &mut out,
    );
    out.to_vec()
}

#[test]
fn rotated_experts_agree_with_the_specification_and_with_their_weights() {
    for isa in Isa::available() {
        let b = backend(isa, 2);
        for (level, turns) in [
            (Level::B2, [true, true]),
            (Level::B3, [true, false]),
            (Level::B4, [false, true]),
            (Level::B6, [true, true]),
            (Level::B8, [true, true]),
        ] {
            let all = experts(level, turns);
            for tokens in [1, 3, 13, 40] {
                let x = values(tokens * D, 5);
                let got = call(&b, &all, &x, 0);
                // Over all slots together: if the terms of a single slot cancel out, it is mostly error.
                let [mut by_specification, mut by_weights] = [Vec::new(), Vec::new()];
                for slot in 0..2 * tokens {
                    let (t, e) = (slot / 2, (slot / 2 + slot % 2) % all.len());
                    let x = &x[t * D..][..D];
                    by_specification.extend(feed_forward(&all[e], x, specified));
                    by_weights.extend(feed_forward(&all[e], x, exact));
                }
                let at = format!("{isa}, level {level}, {turns:?}, {tokens} tokens");
                // A hidden value that rounds to another integer differs by one of 127 steps in one of 64
                // values. The specification does not cover bfloat16.
                let most = if isa.halves() && tokens >= MANY { 1e-3 } else { 1e-5 };
                let specified = distance(&got, &by_specification);
                assert!(specified < most, "{at}: {specified} from the specification");
                let exact = distance(&got, &by_weights);
                assert!(exact < 1e-3, "{at}: {exact} from the weights");
            }
        }
    }
}

#[test]
fn a_rotated_input_is_made_once_for_its_name_and_the_same_for_one_token_and_many() {
    let (all, tokens) = (experts(Level::B4, [true, true]), 12);
    let (x, other) = (values(tokens * D, 5), values(tokens * D, 6));
    for isa in Isa::available() {
        let b = backend(isa, 2);
        let whole = call(&b, &all, &x, 0);
        assert_eq!(call(&b, &all, &x, 7), whole, "{isa}");
        // Other inputs with the same number give the old result: only the number is compared.
        assert_eq!(call(&b, &all, &other, 7), whole, "{isa}: made again");
        assert_ne!(call(&b, &all, &other, 8), whole, "{isa}");
        let one = call(&backend(isa, 1), &all, &x[..D], 0);
        assert_eq!(one, whole[..2 * D], "{isa}");
    }
}
