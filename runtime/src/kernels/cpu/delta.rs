//! The gated delta net (arXiv 2412.06464, 2510.26692) and Mamba-2 (arXiv 2405.21060): a short convolution, a memory that
//! each token changes, a gated norm.
//!
//! A head's memory `S` maps keys to values. In a delta net, it decays by γ, one number or one per value of a key. Then the
//! difference between the token's value and the stored one is written: `S ← γS; S ← S + k ⊗ β(v − Sᵀk); o = Sᵀq`. In
//! Mamba-2, the value itself is written: `S ← γS + k ⊗ step · v; o = Sᵀq + skip · v`.
//!
//! Tokens are processed in order, and columns of `S` do not depend on each other. So results depend neither on how tokens
//! are split into calls nor on threads. A task has some columns of one head, which stay in the L1 cache for all tokens.
#![allow(unsafe_code)]

use super::dispatch::with_lanes;
use super::isa::Isa;
use super::lanes::Lanes;
use super::math;
use super::pool::Pool;
use super::rows::each_row;
use crate::kernels::{Decay, Delta, Gate, MAX_TAPS, Rule};

/// Columns in one [`Lanes`].
const LANES: usize = 16;

/// Lanes of a task, if the lanes of a head are a multiple of this.
const WIDE: usize = 4;

/// Added to the sum of squares of queries and keys, for every model.
const UNIT_EPS: f32 = 1e-6;

/// The rows of a call: the outputs of the projections, and the results.
pub(super) struct Rows<'a> {
    /// `[tokens, channels]`: queries, keys, values.
    pub(super) qkv: &'a [f32],
    /// `[tokens, v_heads · v_dim]`.
    pub(super) z: &'a [f32],
    /// `[tokens, v_heads]`.
    pub(super) beta: &'a [f32],
    /// `[tokens, decays]`: the lengths of the steps. The call replaces them by the decays.
    pub(super) alpha: &'a mut [f32],
    /// Scratch, `[tokens, channels]`.
    pub(super) mixed: &'a mut [f32],
    /// `[tokens, v_heads · v_dim]`.
    pub(super) out: &'a mut [f32],
}

/// The states before and after a call, as in [`DeltaCall`](crate::kernels::DeltaCall).
pub(super) struct Slots<'a> {
    pub(super) state: &'a mut [f32],
    pub(super) from: Option<usize>,
    pub(super) to: usize,
}

/// The whole operation, for `tokens` tokens.
pub(super) fn delta(pool: &Pool, isa: Isa, d: &Delta, tokens: usize, rows: Rows, slots: Slots) {
    let (channels, width) = (d.channels(), d.v_heads * d.v_dim);
    let Slots { state, from, to } = slots;
    let (values, kept) = (d.state_values(), (d.taps - 1) * channels);
    match from {
        // The memory may be large, so it is read in its old slot, not copied.
        Some(from) => state.copy_within(from * values..from * values + kept, to * values),
        None => state[to * values..][..values].fill(0.0),
    }
    let inputs = &mut state[to * values..][..kept];
    let Rows { qkv, z, beta, alpha, mixed, out } = rows;
    let (qkv, mixed, out) =
        (&qkv[..tokens * channels], &mut mixed[..tokens * channels], &mut out[..tokens * width]);
    pool.operation("short convolution");
    each_row(pool, mixed, channels, &|t, to| {
        isa.run(
            #[inline(always)]
            || {
                match d.taps {
                    2 => convolve::<2>(d, inputs, qkv, t, to),
                    3 => convolve::<3>(d, inputs, qkv, t, to),
                    4 => convolve::<4>(d, inputs, qkv, t, to),
                    n => unreachable!("a specification has 2 to {MAX_TAPS} taps, not {n}"),
                }
                if d.adds() {
                    return;
                }
                let (q, k) = to[..2 * d.k_heads * d.k_dim].split_at_mut(d.k_heads * d.k_dim);
                let scale = 1.0 / (d.k_dim as f32).sqrt();
                q.chunks_exact_mut(d.k_dim).for_each(|q| math::to_length(q, scale, UNIT_EPS));
                k.chunks_exact_mut(d.k_dim).for_each(|k| math::to_length(k, 1.0, UNIT_EPS));
            },
        )
    });
    keep(inputs, qkv, channels);
    let decays = &mut alpha[..tokens * d.decays()];
    pool.operation("decay");
    each_row(pool, decays, d.decays(), &|_, row| {
        isa.run(
            #[inline(always)]
            || decay(d, row),
        )
    });
    pool.operation("delta rule");
    let call = Call { d, tokens, mixed, beta, decays };
    let [from, to] = [from.unwrap_or(to), to].map(|slot| slot * values + kept);
    remember(pool, isa, &call, (state, from, to), out);
    pool.operation("gated norm");
    each_row(pool, out, width, &|t, out| {
        isa.run(
            #[inline(always)]
            || {
                let dim = d.norm_dim();
                let z = z[t * width..][..width].chunks_exact(dim);
                let weights = d.norm.chunks_exact(dim).cycle();
                for ((out, z), norm) in out.chunks_exact_mut(dim).zip(z).zip(weights) {
                    if !d.adds() {
                        math::rms_norm_in_place(out, norm, d.eps);
                    }
                    match d.gate {
                        Gate::Silu => math::times_silu(out, z),
                        Gate::Sigmoid => math::times_sigmoid(out, z),
                    }
                    if d.adds() {
                        math::rms_norm_in_place(out, norm, d.eps);
                    }
                }
            },
        )
    });
}

/// `to[c] = SiLU(Σ_j taps[c, j] · x[t − TAPS + 1 + j, c])`; `inputs` are the rows before the first.
#[inline(always)]
fn convolve<const TAPS: usize>(d: &Delta, inputs: &[f32], x: &[f32], t: usize, to: &mut [f32]) {
    let channels = to.len();
    // The row that each tap meets, counted from the first of `inputs`.
    let rows: [&[f32]; TAPS] = std::array::from_fn(|j| match (t + j).checked_sub(TAPS - 1) {
        Some(row) => &x[row * channels..][..channels],
        None => &inputs[(t + j) * channels..][..channels],
    });
    let taps = &d.conv.as_chunks::<TAPS>().0[..channels];
    for c in 0..channels {
        to[c] = (0..TAPS).map(|j| taps[c][j] * rows[j][c]).sum();
    }
    if let Some(bias) = d.bias {
        to.iter_mut().zip(bias).for_each(|(to, bias)| *to += bias);
    }
    math::silu(to);
}

/// Replaces a token's steps by the decays of the memory; with [`Rule::Add`], by the positive lengths of the steps.
#[inline(always)]
fn decay(d: &Delta, row: &mut [f32]) {
    let heads = row.chunks_exact_mut(d.decays() / d.v_heads).zip(d.dt.chunks_exact(d.decays() / d.v_heads));
    for ((row, dt), a) in heads.zip(d.a) {
        for (x, dt) in row.iter_mut().zip(dt) {
            if d.adds() {
                *x = math::softplus(*x + dt);
                continue;
            }
            *x = math::exp(match d.decay {
                Decay::Heads | Decay::Channels => a * math::softplus(*x + dt),
                Decay::Bounded(lower) => lower * math::sigmoid(-a * (*x + dt)),
            });
        }
    }
}

/// The last rows of `inputs` and `x` together become `inputs`.
fn keep(inputs: &mut [f32], x: &[f32], channels: usize) {
    let (kept, new) = (inputs.len(), x.len().min(inputs.len()));
    debug_assert!(kept.is_multiple_of(channels) && x.len().is_multiple_of(channels));
    inputs.copy_within(new.., 0);
    inputs[kept - new..].copy_from_slice(&x[x.len() - new..]);
}

/// What the tasks share.
struct Call<'a> {
    d: &'a Delta<'a>,
    tokens: usize,
    /// `[tokens, channels]`: queries, keys and values after the convolution.
    mixed: &'a [f32],
    beta: &'a [f32],
    /// `[tokens, decays]`. With [`Rule::Add`], the lengths of the steps.
    decays: &'a [f32],
}

/// A head's memory or results, of which every task has columns of its own.
struct Columns(*mut f32);

// SAFETY: it stands for an exclusive borrow; tasks touch disjoint columns.
unsafe impl Sync for Columns {}

impl Columns {
    fn at(&self, i: usize) -> *mut f32 {
        self.0.wrapping_add(i)
    }
}

/// The delta rule of all heads. Memory, `[v_heads, k_dim, v_dim]`, is read at `from` of the state and written at `to`.
fn remember(
    pool: &Pool,
    isa: Isa,
    call: &Call,
    (state, from, to): (&mut [f32], usize, usize),
    out: &mut [f32],
) {
    let d = call.d;
    let (lanes, width) = (d.v_dim / LANES, d.v_heads * d.v_dim);
    assert!(d.v_dim.is_multiple_of(LANES) && d.v_heads.is_multiple_of(d.k_heads));
    let size = width * d.k_dim;
    assert!(
        from + size <= state.len() && to + size <= state.len() && (from == to || from.abs_diff(to) >= size)
    );
    assert!(out.len() == call.tokens * width);
    assert!(call.mixed.len() == call.tokens * d.channels());
    assert!(!d.adds() || d.decay == Decay::Heads, "with Rule::Add, a step belongs to a head");
    assert!(call.beta.len() >= call.tokens * d.v_heads && call.decays.len() == call.tokens * d.decays());
    let wide = if lanes.is_multiple_of(WIDE) { WIDE } else { 1 };
    let (state, out) = (Columns(state.as_mut_ptr()), Columns(out.as_mut_ptr()));
    let parts = lanes / wide;
    pool.run(d.v_heads * parts, &|task| {
        let (head, column) = (task / parts, task % parts * wide * LANES);
        let at = head * d.k_dim * d.v_dim + column;
        let memory = (state.at(from + at).cast_const(), state.at(to + at));
        let out = out.at(head * d.v_dim + column);
        with_lanes!(isa, L => isa.run(
            #[inline(always)]
            // SAFETY: the instruction set is there; sizes were compared above, and a task has its columns alone.
            || unsafe {
                match (wide, d.decay) {
                    (WIDE, Decay::Heads) => columns::<L, WIDE, false>(call, head, column, memory, out),
                    (_, Decay::Heads) => columns::<L, 1, false>(call, head, column, memory, out),
                    (WIDE, _) => columns::<L, WIDE, true>(call, head, column, memory, out),
                    _ => columns::<L, 1, true>(call, head, column, memory, out),
                }
            },
        ));
    });
}

/// `N · LANES` columns of a head, from `column` on, for all tokens. `EACH`: whether each value of a key has its own decay.
///
/// # Safety
/// The machine has the instructions of `L`. The memory before and behind the tokens is the head's at `column`, and `out` the first
/// token's; all have the shapes of `call`, and nobody else has these columns.
#[inline(always)]
unsafe fn columns<L: Lanes, const N: usize, const EACH: bool>(
    call: &Call,
    head: usize,
    column: usize,
    (before, memory): (*const f32, *mut f32),
    out: *mut f32,
) {
    let d = call.d;
    let keys = d.k_heads * d.k_dim;
    let key_head = d.key_head(head);
    for t in 0..call.tokens {
        let row = &call.mixed[t * d.channels()..][..d.channels()];
        let q = &row[key_head * d.k_dim..][..d.k_dim];
        let k = &row[keys + key_head * d.k_dim..][..d.k_dim];
        let v = &row[2 * keys + head * d.v_dim + column..][..N * LANES];
        let of_head = d.decays() / d.v_heads;
        let fades = &call.decays[t * d.decays() + head * of_head..][..of_head];
        let (whole, share, skip) = match d.rule {
            Rule::Correct => {
                (if EACH { 1.0 } else { fades[0] }, math::sigmoid(call.beta[t * d.v_heads + head]), 0.0)
            }
            Rule::Add { skip } => (math::exp(d.a[head] * fades[0]), fades[0], skip[head]),
        };
        let before = if t == 0 { before } else { memory.cast_const() };
        // SAFETY: by the caller; row `i` of the memory begins `i · v_dim` behind the first.
        unsafe {
            let zero = L::splat(0.0);
            let mut held = [zero; N];
            // Only a correction needs the stored value.
            let looked_up = if d.adds() { &[] } else { k };
            for (i, k) in looked_up.iter().enumerate() {
                // The memory decays before it is read.
                let faded = if EACH { *k * fades[i] } else { *k };
                let (at, k) = (before.add(i * d.v_dim), L::splat(faded));
                for (n, held) in held.iter_mut().enumerate() {
                    *held = k.times_plus(L::load(at.add(n * LANES)), *held);
                }
            }
            // β(v − γ·held).
            let (fade, away, share) = (L::splat(whole), L::splat(-whole), L::splat(share));
            let mut wrong = [zero; N];
            for (n, wrong) in wrong.iter_mut().enumerate() {
                let missing = held[n].times_plus(away, L::load(v.as_ptr().add(n * LANES)));
                *wrong = missing.times_plus(share, zero);
            }
            let mut read = [zero; N];
            for (i, (q, k)) in q.iter().zip(k).enumerate() {
                let (q, k) = (L::splat(*q), L::splat(*k));
                let fade = if EACH { L::splat(fades[i]) } else { fade };
                for n in 0..N {
                    let at = i * d.v_dim + n * LANES;
                    let new = L::load(before.add(at)).times_plus(fade, k.times_plus(wrong[n], zero));
                    new.store(memory.add(at));
                    read[n] = q.times_plus(new, read[n]);
                }
            }
            let skip = L::splat(skip);
            for (n, read) in read.into_iter().enumerate() {
                let read =
                    if d.adds() { skip.times_plus(L::load(v.as_ptr().add(n * LANES)), read) } else { read };
                read.store(out.add(t * d.v_heads * d.v_dim + n * LANES));
            }
        }
    }
}
