//! The gated short convolution, per channel, oldest tap first. This is the specification of `conv.wgsl`.

/// The inputs of a call's tokens, and of the tokens before.
pub(super) struct Inputs<'a> {
    /// `[tokens, 3 · d]`: B, C and v.
    pub(super) x: &'a [f32],
    /// `B ⊙ v` of the tokens before, `[taps - 1, d]`; zeros if `None`.
    pub(super) before: Option<&'a [f32]>,
    /// `[d, taps]`.
    pub(super) weight: &'a [f32],
    pub(super) taps: usize,
}

impl Inputs<'_> {
    /// `C ⊙ (conv(B ⊙ v) + bias)` of token `t`.
    pub(super) fn row(&self, t: usize, bias: Option<&[f32]>, out: &mut [f32]) {
        match bias {
            Some(bias) => out.copy_from_slice(bias),
            None => out.fill(0.0),
        }
        (0..self.taps).rev().for_each(|back| self.add(t, back, out));
        let gate = &self.x[(3 * t + 1) * out.len()..];
        out.iter_mut().zip(gate).for_each(|(out, gate)| *out *= gate);
    }

    /// Adds the product of the tap `back` tokens before token `t`.
    fn add(&self, t: usize, back: usize, sums: &mut [f32]) {
        let (d, taps) = (sums.len(), self.taps);
        let weights = self.weight.iter().skip(taps - 1 - back).step_by(taps);
        if let Some(t) = t.checked_sub(back) {
            let (b, v) = (&self.x[3 * t * d..][..d], &self.x[(3 * t + 2) * d..][..d]);
            for (((sum, w), b), v) in sums.iter_mut().zip(weights).zip(b).zip(v) {
                *sum += w * (b * v);
            }
        } else if let Some(before) = self.before {
            let row = taps - 1 + t - back;
            for ((sum, w), input) in sums.iter_mut().zip(weights).zip(&before[row * d..][..d]) {
                *sum += w * input;
            }
        }
    }
}

/// Stores the last inputs of `tokens` tokens in slot `to` of `state` (`[slots, kept, d]`), for the next call.
/// If there are fewer tokens than taps, the last inputs of slot `from` are stored as well.
pub(super) fn keep(
    x: &[f32],
    tokens: usize,
    (kept, d): (usize, usize),
    state: &mut [f32],
    (from, to): (Option<usize>, usize),
) {
    for row in 0..kept {
        let at = (to * kept + row) * d;
        match ((tokens + row).checked_sub(kept), from) {
            (Some(t), _) => {
                let (b, v) = (&x[3 * t * d..][..d], &x[(3 * t + 2) * d..][..d]);
                state[at..at + d].iter_mut().zip(b.iter().zip(v)).for_each(|(to, (b, v))| *to = b * v);
            }
            (None, Some(from)) => {
                let before = (from * kept + row + tokens) * d;
                state.copy_within(before..before + d, at);
            }
            (None, None) => state[at..at + d].fill(0.0),
        }
    }
}
