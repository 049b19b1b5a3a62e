//! Helpers shared by the tests of all backends.

use super::{Backend, Decay, Delta, DeltaCall, Gate, Recur, Recurrent, Rule};
use crate::quant::{self, GgmlType, GroupParams, Level, Nested, Shape};

/// All kinds of groups: size and storage of the parameters.
pub(super) const GROUPS: [(usize, GroupParams); 4] =
    [(32, GroupParams::Wide), (64, GroupParams::Wide), (32, GroupParams::Narrow), (64, GroupParams::Narrow)];

/// All kinds of table codes.
pub(super) const TABLES: [GroupParams; 3] = [GroupParams::Mxfp4, GroupParams::Iq4Nl, GroupParams::Iq4Xs];

/// A matrix of table codes at their highest level, converted from random blocks of the source type.
pub(super) fn of_table(params: GroupParams, rows: usize, cols: usize, seed: u32) -> Nested {
    let shape = Shape::new(rows, cols, 32).unwrap().with(params);
    let kept = |ty: &&GgmlType| quant::kept(**ty) == Some(params);
    let &ty = GgmlType::ALL.iter().find(kept).expect("a type has them");
    let random = values(ty.row_bytes(rows * cols).expect("whole blocks"), seed);
    let mut raw: Vec<u8> = random.iter().map(|x| (x.to_bits() >> 9) as u8).collect();
    for (block, x) in raw.chunks_exact_mut(ty.block_bytes()).zip(random) {
        if ty == GgmlType::MXFP4 {
            block[0] = 118 + block[0] % 6;
        } else {
            // Keeps weights below one: a group of IQ4_XS multiplies its scale by up to 32.
            let scale = if ty == GgmlType::IQ4_XS { 0.0001 } else { 0.002 };
            block[..2].copy_from_slice(&half::f16::from_f32(scale * x).to_le_bytes());
        }
    }
    let encoded = quant::keep_rows(shape, 0, ty, &raw, None, Level::B4, 1.0).unwrap();
    quant::Encoded::join(shape, &[encoded]).into_nested().unwrap()
}

/// Deterministic values with a few outliers.
pub(super) fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 - 0.5
    };
    (0..n).map(|i| (next() + next() + next()) * if i % 97 == 0 { 4.0 } else { 1.0 }).collect()
}

/// A buffer with these values.
pub(super) fn put<B: Backend>(b: &B, x: &[f32]) -> B::Buf {
    let mut buf = b.alloc(x.len()).unwrap();
    b.upload(&mut buf, 0, x);
    buf
}

/// A gated delta net of a given shape.
pub(super) struct Net {
    k_heads: usize,
    v_heads: usize,
    k_dim: usize,
    v_dim: usize,
    taps: usize,
    tiled: bool,
    decay: Decay,
    /// With [`Rule::Add`]: the factors on the values that are added to the output, and biases of the convolution.
    adds: Option<[Vec<f32>; 2]>,
    conv: Vec<f32>,
    a: Vec<f32>,
    dt: Vec<f32>,
    norm: Vec<f32>,
}

impl Net {
    pub(super) fn new(
        (k_heads, v_heads): (usize, usize),
        (k_dim, v_dim): (usize, usize),
        taps: usize,
        tiled: bool,
        decay: Decay,
    ) -> Net {
        let channels = 2 * k_heads * k_dim + v_heads * v_dim;
        let decays = if decay == Decay::Heads { v_heads } else { v_heads * k_dim };
        Net {
            conv: values(channels * taps, 5),
            a: values(v_heads, 6).iter().map(|a| -0.05 - a.abs()).collect(),
            dt: values(decays, 7),
            norm: values(v_dim, 8).iter().map(|v| 1.0 + v).collect(),
            ..Net {
                k_heads,
                v_heads,
                k_dim,
                v_dim,
                taps,
                tiled,
                decay,
                adds: None,
                conv: vec![],
                a: vec![],
                dt: vec![],
                norm: vec![],
            }
        }
    }

    /// The same net with [`Rule::Add`].
    pub(super) fn adding(mut self) -> Net {
        let channels = 2 * self.k_heads * self.k_dim + self.v_heads * self.v_dim;
        self.norm = values(self.v_heads * self.v_dim, 8).iter().map(|v| 1.0 + v).collect();
        self.adds = Some([values(self.v_heads, 9), values(channels, 10)]);
        self
    }

    pub(super) fn shape(&self) -> Delta<'_> {
        let &Net { k_heads, v_heads, k_dim, v_dim, taps, tiled, decay, .. } = self;
        let Net { conv, a, dt, norm, .. } = self;
        let gate = if decay == Decay::Heads { Gate::Silu } else { Gate::Sigmoid };
        let (rule, bias) = match &self.adds {
            None => (Rule::Correct, None),
            Some([skip, bias]) => (Rule::Add { skip }, Some(&bias[..])),
        };
        let eps = 1e-6;
        Delta { k_heads, v_heads, k_dim, v_dim, taps, tiled, rule, decay, gate, conv, bias, a, dt, norm, eps }
    }
}

/// Random `[qkv, z, beta, alpha]` for `tokens` tokens.
pub(super) fn rows(d: &Delta, tokens: usize) -> [Vec<f32>; 4] {
    let widths = [d.channels(), d.v_heads * d.v_dim, d.v_heads, d.decays()];
    std::array::from_fn(|i| values(tokens * widths[i], 20 + i as u32))
}

/// Outputs and final state of a delta net, in calls of these lengths that use the slots in turn.
pub(super) fn in_calls<B: Backend>(
    b: &B,
    d: &Delta,
    all: &[Vec<f32>; 4],
    calls: &[usize],
) -> (Vec<f32>, Vec<f32>) {
    let (values, width) = (d.state_values(), d.v_heads * d.v_dim);
    // Slots that were not written must not matter.
    let mut state = put(b, &vec![f32::NAN; 3 * values]);
    let (mut outs, mut at, mut slot) = (Vec::new(), 0, None);
    for &tokens in calls {
        let part = |i: usize, width: usize| put(b, &all[i][at * width..][..tokens * width]);
        let to = slot.map_or(1, |slot| (slot + 1) % 3);
        let mut out = put(b, &vec![f32::NAN; tokens * width]);
        b.recur(Recur::Delta(DeltaCall {
            qkv: &part(0, d.channels()),
            z: &part(1, width),
            beta: &part(2, d.v_heads),
            alpha: &mut part(3, d.decays()),
            sequences: &mut std::iter::once(Recurrent { tokens, state: &mut state, from: slot, to }),
            shape: d,
            mixed: &mut put(b, &vec![f32::NAN; tokens * d.channels()]),
            out: &mut out,
        }));
        let mut got = vec![0.0; tokens * width];
        b.read(&mut [(&out, 0, &mut got)]).unwrap();
        outs.extend(got);
        (at, slot) = (at + tokens, Some(to));
    }
    let mut end = vec![0.0; values];
    b.read(&mut [(&state, slot.unwrap() * values, &mut end)]).unwrap();
    (outs, end)
}
