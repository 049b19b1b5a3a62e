//! Float loops over slices. They use small fixed arrays, so that they vectorise for any instruction set for
//! which [`super::isa::Isa::run`] compiles them; nothing is fused. The code fixes the order of summation;
//! threads and calls do not change it.

use crate::kernels::Activation;

const LANES: usize = 16;

/// Sum of the lanes, in a fixed order.
#[inline(always)]
pub(super) fn fold(lanes: [f32; LANES]) -> f32 {
    let mut n = LANES / 2;
    let mut lanes = lanes;
    while n > 0 {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
        n /= 2;
    }
    lanes[0]
}

/// LANES values of a slice.
#[inline(always)]
fn lane(x: &[f32], at: usize) -> &[f32; LANES] {
    x[at..at + LANES].try_into().expect("LANES values")
}

/// `a · b`, in the same order on every machine.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let b = &b[..a.len()];
    let mut sum = [0.0; LANES];
    let mut at = 0;
    while at + LANES <= a.len() {
        let (a, b) = (lane(a, at), lane(b, at));
        for i in 0..LANES {
            sum[i] += a[i] * b[i];
        }
        at += LANES;
    }
    let mut out = fold(sum);
    for i in at..a.len() {
        out += a[i] * b[i];
    }
    out
}

/// `y += a · x`.
#[inline(always)]
pub(super) fn axpy(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// RMS norm of one row. The mean is computed in f64: rows are long, and the reference is more precise than f32.
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = rms_scale(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
    }
}

/// Layer norm of one row. Sums are computed in f64, as those of [`rms_norm`].
#[inline(always)]
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
    let mean = (x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len() as f64) as f32;
    for (out, x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    let scale = rms_scale(out, eps);
    for ((out, w), b) in out.iter_mut().zip(weight).zip(bias) {
        *out = *out * scale * w + b;
    }
}

/// [`rms_norm`] in place.
#[inline(always)]
pub(super) fn rms_norm_in_place(x: &mut [f32], weight: &[f32], eps: f32) {
    let scale = rms_scale(x, eps);
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * scale * w;
    }
}

/// [`rms_norm_in_place`] without weights.
#[inline(always)]
pub(super) fn rms_in_place(x: &mut [f32], eps: f32) {
    let scale = rms_scale(x, eps);
    x.iter_mut().for_each(|x| *x *= scale);
}

#[inline(always)]
fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let sum: f64 = x.chunks(64).map(|x| f64::from(dot(x, x))).sum();
    (1.0 / (sum / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

/// `e^x` to within two units in the last place; 0 below −87.3, and `exp(0)` is 1. It uses plain operations,
/// so that loops with it vectorise (after Cephes' `expf`).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HIGH: f32 = 0.693_359_4; // 355/512
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer
    let y = if x > 88.0 { 88.0 } else { x };
    let y = if y < -87.3 { -87.3 } else { y };
    let shifted = y * LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = y - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_2e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * (r * r) + r + 1.0;
    let power = f32::from_bits(((shifted.to_bits() as i32 - MAGIC.to_bits() as i32 + 127) << 23) as u32);
    if x < -87.3 { 0.0 } else { p * power }
}

/// Softmax in place; an empty row stays empty.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let mut sum = 0.0;
    for v in x.iter_mut() {
        *v = exp(*v - max);
        sum += *v;
    }
    let inverse = 1.0 / sum;
    x.iter_mut().for_each(|v| *v *= inverse);
}

/// `silu(gate) · up`, into `gate`.
#[inline(always)]
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

/// `silu(x)`, in place.
#[inline(always)]
pub(super) fn silu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x /= 1.0 + exp(-*x));
}

/// `x · silu(gate)`, into `x`.
#[inline(always)]
pub(super) fn times_silu(x: &mut [f32], gate: &[f32]) {
    for (x, g) in x.iter_mut().zip(gate) {
        *x *= *g / (1.0 + exp(-*g));
    }
}

/// `x · sigmoid(gate)`, into `x`.
#[inline(always)]
pub(super) fn times_sigmoid(x: &mut [f32], gate: &[f32]) {
    for (x, g) in x.iter_mut().zip(gate) {
        *x *= sigmoid(*g);
    }
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `ln(1 + e^x)`, in plain operations, like [`exp`]: `ln(1 + y) = 2 · artanh(y / (2 + y))`, whose series ends where its terms
/// no longer count.
#[inline(always)]
pub(super) fn softplus(x: f32) -> f32 {
    let y = exp(-x.abs());
    let s = y / (2.0 + y);
    let square = s * s;
    let mut sum = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = sum * square + 1.0 / odd;
    }
    let positive = if x > 0.0 { x } else { 0.0 };
    positive + 2.0 * s * sum
}

/// `scale · x / sqrt(Σ x² + eps)`, in place.
#[inline(always)]
pub(super) fn to_length(x: &mut [f32], scale: f32, eps: f32) {
    let sum: f64 = x.chunks(64).map(|x| f64::from(dot(x, x))).sum();
    let factor = (f64::from(scale) / (sum + f64::from(eps)).sqrt()) as f32;
    x.iter_mut().for_each(|x| *x *= factor);
}

/// Combines gate and up into the input of down, in `gate`.
#[inline(always)]
pub(super) fn activate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Swiglu => swiglu(gate, up),
        Activation::Geglu => {
            // (1 + tanh z) / 2 is the sigmoid of 2z.
            const TWICE: f32 = 1.595_769_2; // 2 √(2/π)
            for (g, u) in gate.iter_mut().zip(up) {
                let z = TWICE * (*g + 0.044_715 * *g * *g * *g);
                *g = *g / (1.0 + exp(-z)) * u;
            }
        }
        Activation::Reglu => {
            // NaN stays NaN.
            gate.iter_mut().zip(up).for_each(|(g, u)| *g = if *g < 0.0 { 0.0 } else { *g } * u);
        }
        Activation::Clamped { alpha, limit } => {
            for (g, u) in gate.iter_mut().zip(up) {
                // NaN stays NaN.
                let (x, u) = (if *g > limit { limit } else { *g }, u.clamp(-limit, limit));
                *g = x / (1.0 + exp(-alpha * x)) * (u + 1.0);
            }
        }
    }
}

/// Applies rope to one head. The values of a pair are half the rotated dimensions apart.
#[inline(always)]
pub(super) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head[..2 * cos.len()].split_at_mut(cos.len());
    for i in 0..cos.len() {
        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
    }
}
