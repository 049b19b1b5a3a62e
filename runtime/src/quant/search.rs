//! The search for one group's scale and zero point.
//!
//! It tries several scalings of the group's range, each with one step of least squares (fix the codes, solve
//! for scale and offset, recode), several shifts of the best one, and three more steps. This finds what a
//! fine grid finds in a hundred. Inner loops run over fixed arrays without branches, because they dominate a
//! conversion. Everything is inlined into functions that [`super::encode::best_instructions`] compiles.

use super::Level;
use super::encoded::EncodedRows;
use super::params::{GroupParams, NARROW_STEP, NARROW_ZERO, ZEROS, neighbours};
use half::f16;

/// Ranges to try, as factors of the group's own.
const SHRINKS: [f32; 6] = [1.06, 0.99, 0.93, 0.87, 0.81, 0.74];
/// Shifts to try for the best range, in 4-bit cells.
const SHIFTS: [f32; 4] = [-0.3, 0.3, -0.15, 0.15];

/// Rounds of alternating least squares after that. Fewer ranges and rounds clip heavy tails too much for 6 bits
/// (`benches/records/convert.md`).
const REFINEMENTS: usize = 3;

/// The weights of the errors at 3 and at 2 bits beside the one at 4 (these errors are 4 and 16 times as large
/// by nature). Measured: with zero weights, 3 bits have 1.14 times the error of the best 3-bit quantizer and
/// 2 bits 1.26 times; larger weights make 4 and 6 bits worse.
const ALONE: Shares = Shares { three: 0.12, two: 0.025 };

#[derive(Clone, Copy)]
pub(super) struct Shares {
    pub(super) three: f32,
    pub(super) two: f32,
}

/// For larger weights, a group's scale would overflow f16.
pub(super) const MAX_WEIGHT: f32 = 8e6;

/// Lanes of a sum, whatever the registers: the codes must not depend on the machine.
const SUMS: usize = 8;

/// Adding this to `0 ≤ x < 2²²` rounds to the nearest integer, which is then in the lowest bits. Vectorises
/// everywhere, unlike `round`.
const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³

/// The level for which a group's parameters are best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Anchor {
    /// 4 bits, but 3 and 2 count as well: for experts, which are read at any level. Weights beyond the best
    /// 4-bit range are clipped at every level, so 8 bits have about 1 % of error.
    Nested,
    /// Only the highest level: for dense matrices at 6 or 8 bits, which are never read lower. Nothing is clipped.
    Top,
}

impl Anchor {
    /// The anchor for a matrix that is only read at `level`.
    pub fn fixed(level: Level) -> Anchor {
        if level > Level::B4 { Anchor::Top } else { Anchor::Nested }
    }
}

/// The effort of the search for a group's parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Effort {
    /// All ranges and shifts.
    Full,
    /// One range: for uniform codes of another format whose zero lies outside our lattice (`keep`). There any
    /// search ends near that range.
    Quick,
}

/// One group of up to `N` weights (32 or 64), padded. `VECTORS` of [`SUMS`] lanes, so that loops run over
/// whole registers.
pub(super) struct Group<const N: usize> {
    len: usize,
    w: [f32; N],
    /// Importance, zero in the padding.
    v: [f32; N],
    /// Whether all of `v` is one.
    plain: bool,
    shares: Shares,
    /// Σ v and Σ v · w.
    one: f32,
    w1: f32,
}

impl<const N: usize> Group<N> {
    /// Appends the best codes for one group's weights, which enter the least-squares sums if `fit`. `None` if
    /// a weight is not finite or too large.
    #[inline(always)]
    pub(super) fn encode(
        w: &[f32],
        importance: Option<&[f32]>,
        (anchor, effort): (Anchor, Effort),
        fit: bool,
        out: &mut EncodedRows,
    ) -> Option<()> {
        let group = Group::<N>::new(w, importance)?;
        let (scale, zero) = group.search(anchor, effort, out.shape().params);
        out.note(group.largest(), scale);
        group.emit(scale, zero, fit.then_some(importance), out);
        Some(())
    }

    #[inline(always)]
    fn largest(&self) -> f32 {
        self.w.iter().fold(0.0f32, |m, w| m.max(w.abs()))
    }

    #[inline(always)]
    fn new(w: &[f32], importance: Option<&[f32]>) -> Option<Group<N>> {
        // NaN also fails the comparison.
        let sound = w.iter().fold(true, |sound, w| sound & (w.abs() <= MAX_WEIGHT));
        let mut group =
            Group { len: w.len(), w: [0.0; N], v: [0.0; N], plain: false, shares: ALONE, one: 0.0, w1: 0.0 };
        group.w[..w.len()].copy_from_slice(w);
        match importance {
            // A group without any importance is encoded as if all weights were equally important.
            Some(v) if v.iter().any(|&v| v > 0.0) => {
                for (to, &v) in group.v.iter_mut().zip(v) {
                    *to = if v.is_finite() { v.max(0.0) } else { 0.0 };
                }
            }
            _ => {
                group.v[..w.len()].fill(1.0);
                group.plain = w.len() == N;
            }
        }
        let (mut one, mut w1) = ([0.0; SUMS], [0.0; SUMS]);
        for (w, v) in group.w.as_chunks::<SUMS>().0.iter().zip(group.v.as_chunks::<SUMS>().0) {
            for i in 0..SUMS {
                one[i] += v[i];
                w1[i] += v[i] * w[i];
            }
        }
        (group.one, group.w1) = (sum(one), sum(w1));
        sound.then_some(group)
    }

    /// Scale and zero point.
    #[inline(always)]
    fn search(&self, anchor: Anchor, effort: Effort, width: GroupParams) -> (f32, u8) {
        let (mut lows, mut highs) = ([0.0f32; SUMS], [0.0f32; SUMS]);
        for w in self.w.as_chunks::<SUMS>().0 {
            for i in 0..SUMS {
                lows[i] = if w[i] < lows[i] { w[i] } else { lows[i] };
                highs[i] = if w[i] > highs[i] { w[i] } else { highs[i] };
            }
        }
        let (lo, hi) = (lows.into_iter().fold(0.0, f32::min), highs.into_iter().fold(0.0, f32::max));
        if hi - lo < 1e-30 {
            return (0.0, width.no_zero());
        }
        if anchor == Anchor::Top && width == GroupParams::Narrow {
            return all_narrow(lo, hi);
        }
        if anchor == Anchor::Top {
            let scale = f16::from_f32((hi - lo) / 254.0);
            if scale == f16::ZERO {
                return (0.0, 0);
            }
            let scale = scale.to_f32();
            return (scale, (-lo / scale).round().clamp(0.0, 255.0) as u8);
        }
        let (step, low) = if self.plain {
            self.best_4_bits::<true>(lo, hi, effort)
        } else {
            self.best_4_bits::<false>(lo, hi, effort)
        };
        if width == GroupParams::Narrow {
            return match self.plain {
                true => self.narrow::<true>(step, low),
                false => self.narrow::<false>(step, low),
            };
        }
        let scale = f16::from_f32(step / 16.0);
        // Tiny groups: below f16's subnormals everything is zero, as it is beside any other weight.
        if scale == f16::ZERO {
            return (0.0, 0);
        }
        // Code 0 has the value of the first cell's lower edge plus half an 8-bit step.
        let scale = scale.to_f32();
        (scale, (-low / scale - 0.5).round().clamp(0.0, 255.0) as u8)
    }

    /// The best narrow scale and zero point for a step and a lower edge. Neighbouring scales keep the middle
    /// of the range. A range outside the zero points is widened until its far end has codes.
    #[inline(always)]
    fn narrow<const PLAIN: bool>(&self, step: f32, low: f32) -> (f32, u8) {
        let (high, middle) = (low + 16.0 * step, low + 8.0 * step);
        let scale = (step / 16.0).max(high / (255.5 - ZEROS.start())).max(-low / (0.5 + ZEROS.end()));
        let mut best = (f32::INFINITY, neighbours(scale)[1], GroupParams::Narrow.no_zero());
        for scale in neighbours(scale) {
            let wanted = ((127.5 - middle / scale - f32::from(NARROW_ZERO)) / f32::from(NARROW_STEP)).floor();
            for k in [wanted, wanted + 1.0] {
                let zero = NARROW_ZERO + NARROW_STEP * k.clamp(0.0, 15.0) as u8;
                let error = self.error::<PLAIN>(16.0 * scale, -(f32::from(zero) + 0.5) * scale);
                if error < best.0 {
                    best = (error, scale, zero);
                }
            }
        }
        (best.1, best.2)
    }

    /// The best step (one 4-bit cell) and lower edge of the first cell for 4 bits; 3 and 2 bits count as well.
    #[inline(always)]
    fn best_4_bits<const PLAIN: bool>(&self, lo: f32, hi: f32, effort: Effort) -> (f32, f32) {
        let (middle, half) = ((lo + hi) / 2.0, (hi - lo) / 2.0);
        let mut best = (f32::INFINITY, half / 8.0, lo);
        let (shrinks, refinements) = match effort {
            Effort::Full => (&SHRINKS[..], REFINEMENTS),
            Effort::Quick => (&SHRINKS[1..2], 1),
        };
        for &shrink in shrinks {
            // If least squares leaves the lattice without zero, the range itself is tried.
            let start = (shrink * half / 8.0, middle - shrink * half);
            let (step, low) = self.solve::<PLAIN>(start.0, start.1).unwrap_or(start);
            let error = self.error::<PLAIN>(step, low);
            if error < best.0 {
                best = (error, step, low);
            }
        }
        if effort == Effort::Full {
            for shift in SHIFTS {
                let (step, low) = (best.1, best.2 + shift * best.1);
                let error = self.error::<PLAIN>(step, low);
                if error < best.0 {
                    best = (error, step, low);
                }
            }
        }
        for _ in 0..refinements {
            let Some((step, low)) = self.solve::<PLAIN>(best.1, best.2) else { break };
            let error = self.error::<PLAIN>(step, low);
            if error >= best.0 {
                break;
            }
            best = (error, step, low);
        }
        (best.1, best.2)
    }

    /// Weighted squared error of the 4-bit codes with this step and lower edge, plus a share of those at 3 and 2 bits.
    #[inline(always)]
    fn error<const PLAIN: bool>(&self, step: f32, low: f32) -> f32 {
        let inverse = 1.0 / step;
        let offset = -low * inverse - 0.5;
        let mut sums = [0.0f32; SUMS];
        for (w, v) in self.w.as_chunks::<SUMS>().0.iter().zip(self.v.as_chunks::<SUMS>().0) {
            for i in 0..SUMS {
                let t = w[i] * inverse + offset;
                let rounded = clamp_code(t) + MAGIC;
                let r = t - (rounded - MAGIC);
                // Cells of 3 and 2 bits are two and four of these; the cut bits give the distance to the middle.
                let bits = rounded.to_bits();
                let r3 = r + ((bits & 1) as i32 as f32 - 0.5);
                let r2 = r + ((bits & 3) as i32 as f32 - 1.5);
                let e = r * r + self.shares.three * (r3 * r3) + self.shares.two * (r2 * r2);
                sums[i] += if PLAIN { e } else { v[i] * e };
            }
        }
        sum(sums) * step * step
    }

    /// The best step and lower edge for the current codes.
    #[inline(always)]
    fn solve<const PLAIN: bool>(&self, step: f32, low: f32) -> Option<(f32, f32)> {
        let inverse = 1.0 / step;
        let offset = -low * inverse - 0.5;
        let (mut q1, mut qq, mut qw) = ([0.0f32; SUMS], [0.0f32; SUMS], [0.0f32; SUMS]);
        for (w, v) in self.w.as_chunks::<SUMS>().0.iter().zip(self.v.as_chunks::<SUMS>().0) {
            for i in 0..SUMS {
                let q = clamp_code(w[i] * inverse + offset) + MAGIC - MAGIC;
                let vq = if PLAIN { q } else { v[i] * q };
                q1[i] += vq;
                qq[i] += vq * q;
                qw[i] += vq * w[i];
            }
        }
        let (one, w1) = (self.one, self.w1);
        let (q1, qq, qw) = (sum(q1), sum(qq), sum(qw));
        let det = one * qq - q1 * q1;
        let step = (one * qw - q1 * w1) / det;
        let centre = (w1 - step * q1) / one;
        let low = centre - 0.5 * step;
        // The zero point must be representable: the lattice has to contain zero.
        (step.is_finite() && step > 0.0 && low <= 0.0 && low + 16.0 * step >= 0.0).then_some((step, low))
    }

    /// Codes with the final parameters.
    #[inline(always)]
    fn emit(&self, scale: f32, zero: u8, fit: Option<Option<&[f32]>>, out: &mut EncodedRows) {
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        let z = f32::from(zero);
        let (mut x, mut codes) = ([0.0f32; N], [0u8; N]);
        for i in 0..N {
            x[i] = self.w[i] * inverse + z;
            codes[i] = rounded_byte(x[i].clamp(0.0, 255.0));
        }
        out.push_group(&codes, scale, zero);
        if let Some(importance) = fit {
            out.sums.add_group(&x[..self.len], &codes[..self.len], zero, scale, importance);
        }
    }
}

/// The scale and zero point of this format for a group of at most `group` weights, and the size of its largest weight. They
/// are best for its nested codes, with the levels weighted by `shares`. `None` if a weight is not finite or too large.
#[inline(always)]
pub(super) fn params(
    (group, width): (usize, GroupParams),
    w: &[f32],
    importance: &[f32],
    shares: Shares,
) -> Option<(f32, u8, f32)> {
    #[inline(always)]
    fn of<const N: usize>(
        width: GroupParams,
        w: &[f32],
        importance: &[f32],
        shares: Shares,
    ) -> Option<(f32, u8, f32)> {
        let group = Group::<N> { shares, ..Group::new(w, Some(importance))? };
        let (scale, zero) = group.search(Anchor::Nested, Effort::Full, width);
        Some((scale, zero, group.largest()))
    }
    match group {
        32 => of::<32>(width, w, importance, shares),
        _ => of::<64>(width, w, importance, shares),
    }
}

/// The smallest narrow scale at which 8-bit codes reach from `lo` to `hi`, and its zero point.
#[inline(always)]
fn all_narrow(lo: f32, hi: f32) -> (f32, u8) {
    // With 254 steps, half a step of the zero point may be lost on either side.
    let wanted = -lo * (254.0 / (hi - lo)) - f32::from(NARROW_ZERO);
    let zero = NARROW_ZERO + NARROW_STEP * (wanted / f32::from(NARROW_STEP)).round().clamp(0.0, 15.0) as u8;
    let scale = (hi / (254.5 - f32::from(zero))).max(-lo / (f32::from(zero) + 0.5));
    (neighbours(scale)[1], zero)
}

/// `t` clamped to the 4-bit codes, with one comparison each as in registers.
#[inline(always)]
fn clamp_code(t: f32) -> f32 {
    let t = if t > 0.0 { t } else { 0.0 };
    if t < 15.0 { t } else { 15.0 }
}

/// `x` rounded to a byte.
#[inline(always)]
fn rounded_byte(x: f32) -> u8 {
    (x + MAGIC).to_bits() as u8
}

/// Adds in pairs, with half the latency of adding one after the other.
#[inline(always)]
fn sum(s: [f32; SUMS]) -> f32 {
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}
