//! Float loops over slices. Written over small fixed arrays so that they vectorise under whatever instruction set
//! [`super::isa::Isa::run`] compiles them for; `FMA` says whether fusing is one instruction there (it is a library call
//! elsewhere). Orders of summation are fixed by the code, not by the data's split among threads or calls.

const LANES: usize = 16;

#[inline(always)]
fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn fold(lanes: [f32; LANES]) -> f32 {
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

/// `a · b`.
#[inline(always)]
pub(super) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    dots::<FMA, 1>(a, [b])[0]
}

/// `a · b` for several `b` at once, each in the order of [`dot`].
#[inline(always)]
pub(super) fn dots<const FMA: bool, const N: usize>(a: &[f32], b: [&[f32]; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let whole = a.len() / LANES * LANES;
    let b = b.map(|b| &b[..a.len()]);
    let mut at = 0;
    while at < whole {
        let x: &[f32; LANES] = a[at..at + LANES].try_into().expect("LANES values");
        for (lanes, b) in lanes.iter_mut().zip(b) {
            let y: &[f32; LANES] = b[at..at + LANES].try_into().expect("LANES values");
            for i in 0..LANES {
                lanes[i] = fma::<FMA>(x[i], y[i], lanes[i]);
            }
        }
        at += LANES;
    }
    let mut out = lanes.map(fold);
    for (out, b) in out.iter_mut().zip(b) {
        for i in whole..a.len() {
            *out = fma::<FMA>(a[i], b[i], *out);
        }
    }
    out
}

/// `y += a · x`.
#[inline(always)]
pub(super) fn axpy<const FMA: bool>(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = fma::<FMA>(a, *x, *y);
    }
}

/// RMS norm of one row. The mean is taken in f64: rows are long and the reference accumulates in more than f32.
#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = rms_scale(x, eps);
    for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * w;
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

#[inline(always)]
fn rms_scale(x: &[f32], eps: f32) -> f32 {
    let sum: f64 = x.chunks(64).map(|x| f64::from(dot::<false>(x, x))).sum();
    (1.0 / (sum / x.len() as f64 + f64::from(eps)).sqrt()) as f32
}

/// Softmax in place; returns nothing useful for an empty row.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let mut sum = 0.0;
    for v in x.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    let inverse = 1.0 / sum;
    x.iter_mut().for_each(|v| *v *= inverse);
}

/// `silu(gate) · up`, into `gate`.
#[inline(always)]
pub(super) fn swiglu(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + (-*g).exp()) * u;
    }
}

/// Rotates one head: pairs half the rotated dimensions apart.
#[inline(always)]
pub(super) fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head[..2 * cos.len()].split_at_mut(cos.len());
    for i in 0..cos.len() {
        (a[i], b[i]) = (a[i] * cos[i] - b[i] * sin[i], b[i] * cos[i] + a[i] * sin[i]);
    }
}
