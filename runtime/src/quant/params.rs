//! A group's scale and zero point in bytes, wide or narrow.
//!
//! Narrow ones take half the bytes: 12 bits per group instead of 24. A narrow scale is a byte: four bits of exponent
//! above four of mantissa. Exponents begin at 2⁻¹⁵ of the matrix's largest octave. The matrix's corrections contain
//! that octave, so a kernel computes a scale with a shift and an addition. A narrow zero point is one of sixteen steps
//! around the middle of the codes. Two rows share a byte: row `r` of a tile has the lower half, row `r + 8` the upper.
//!
//! Table codes ([`super::table`]) have the scales of their source, and one zero point, which is the table's.

use super::table::{E2M1, IQ4_NL, Table};
use half::f16;

/// Rows per tile.
pub const TILE_ROWS: usize = 16;

/// How a group's scale and zero point are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum GroupParams {
    /// An f16 scale and an 8-bit zero point: 24 bits per group.
    #[default]
    Wide = 0,
    /// An 8-bit scale, which begins with a 4-bit exponent, and a 4-bit zero point: 12 bits per group.
    Narrow = 1,
    /// MXFP4's: a power of two in 8 bits, with table codes. A conversion chooses this if a source's codes are
    /// kept; it cannot be requested.
    #[doc(hidden)]
    Mxfp4 = 2,
    /// IQ4_NL's: an f16 scale, with table codes. Cannot be requested either.
    #[doc(hidden)]
    Iq4Nl = 3,
    /// IQ4_XS's: an 8-bit integer, times an f16 scale of eight groups, with table codes. Cannot be requested either.
    #[doc(hidden)]
    Iq4Xs = 4,
}

/// Groups that share a scale in IQ4_XS.
pub const SHARED: usize = 8;

/// The smallest power of two in MXFP4, 2⁻¹²⁷. Its exponent is 0, like that of zero.
pub const MXFP4_LEAST: u32 = 1 << 22;

/// All kinds, by number.
const ALL: [GroupParams; 5] =
    [GroupParams::Wide, GroupParams::Narrow, GroupParams::Mxfp4, GroupParams::Iq4Nl, GroupParams::Iq4Xs];

/// Bits of an f32's mantissa that a narrow scale does not have.
const CUT: u32 = 19;

/// Octaves of narrow scales.
const OCTAVES: i32 = 16;

/// The f32 bits of narrow scale 0: 2⁻¹⁵. The largest scale, 255, is 1.9375.
pub const NARROW_BASE: u32 = (127 - (OCTAVES as u32 - 1)) << 23;

/// The lowest narrow zero point.
pub const NARROW_ZERO: u8 = 64;

/// The step between narrow zero points.
pub const NARROW_STEP: u8 = 8;

/// The range of narrow zero points.
pub(super) const ZEROS: std::ops::RangeInclusive<f32> = 64.0..=184.0;

impl GroupParams {
    /// Its number in files.
    #[doc(hidden)]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind with this number; `None` if there is none.
    #[doc(hidden)]
    pub fn numbered(number: u8) -> Option<GroupParams> {
        ALL.into_iter().find(|params| params.number() == number)
    }

    /// The table of the codes, if they index one.
    #[doc(hidden)]
    pub const fn table(self) -> Option<&'static Table> {
        match self {
            GroupParams::Wide | GroupParams::Narrow => None,
            GroupParams::Mxfp4 => Some(&E2M1),
            GroupParams::Iq4Nl | GroupParams::Iq4Xs => Some(&IQ4_NL),
        }
    }

    /// Bytes of a group's scales for a tile of 16 rows.
    #[doc(hidden)]
    pub const fn scale_bytes(self) -> usize {
        match self {
            GroupParams::Wide | GroupParams::Iq4Nl => 2 * TILE_ROWS,
            GroupParams::Narrow | GroupParams::Mxfp4 | GroupParams::Iq4Xs => TILE_ROWS,
        }
    }

    /// Bytes of a group's zero points for a tile of 16 rows; for IQ4_XS its part of the shared scales, stored there.
    #[doc(hidden)]
    pub const fn zero_bytes(self) -> usize {
        match self {
            GroupParams::Wide => TILE_ROWS,
            GroupParams::Narrow => TILE_ROWS / 2,
            GroupParams::Mxfp4 | GroupParams::Iq4Nl => 0,
            GroupParams::Iq4Xs => 2 * TILE_ROWS / SHARED,
        }
    }

    /// Scale and zero point number `at` ([`super::Shape::param`]) of a matrix or a tile. A narrow scale is
    /// without the matrix's octave.
    #[doc(hidden)]
    pub fn read(self, scales: &[u8], zeros: &[u8], at: usize) -> (f32, u8) {
        let half = |of: &[u8], at: usize| f16::from_le_bytes([of[2 * at], of[2 * at + 1]]).to_f32();
        match self {
            GroupParams::Wide => (half(scales, at), zeros[at]),
            GroupParams::Mxfp4 => {
                (f32::from_bits((u32::from(scales[at]) << 23).max(MXFP4_LEAST)), self.no_zero())
            }
            GroupParams::Iq4Nl => (half(scales, at), self.no_zero()),
            GroupParams::Iq4Xs => {
                let shared = at / TILE_ROWS / SHARED * TILE_ROWS + at % TILE_ROWS;
                (half(zeros, shared) * f32::from(scales[at] as i8), self.no_zero())
            }
            GroupParams::Narrow => {
                let (group, row) = (at / TILE_ROWS, at % TILE_ROWS);
                let pair = zeros[group * (TILE_ROWS / 2) + row % 8];
                let zero = pair >> (row / 8 * 4) & 15;
                let bits = (u32::from(scales[at]) << CUT) + NARROW_BASE;
                (f32::from_bits(bits), NARROW_ZERO + NARROW_STEP * zero)
            }
        }
    }

    /// The zero point of groups without a scale, or of all groups if they have a common one.
    #[doc(hidden)]
    pub const fn no_zero(self) -> u8 {
        match (self, self.table()) {
            (_, Some(table)) => table.zero,
            (GroupParams::Narrow, _) => 128,
            _ => 0,
        }
    }

    /// Appends the parameters of a tile's groups, a scale and a zero point by row and group, with scales as
    /// in [`GroupParams::keep_scale`]. For IQ4_XS they are the shared scale and the group's own number.
    pub(super) fn put(self, params: &[(f32, u8)], scales: &mut Vec<u8>, zeros: &mut Vec<u8>) {
        let groups = params.len() / TILE_ROWS;
        for g in 0..groups {
            let of: [(f32, u8); TILE_ROWS] = std::array::from_fn(|row| params[row * groups + g]);
            if self == GroupParams::Iq4Xs {
                scales.extend(of.map(|(_, own)| own));
                if g % SHARED == 0 {
                    of.iter().for_each(|(shared, _)| zeros.extend(f16::from_f32(*shared).to_le_bytes()));
                }
                continue;
            }
            of.iter().for_each(|(scale, _)| self.keep_scale(*scale, scales));
            self.put_zeros(of.map(|(_, zero)| zero), zeros);
        }
    }

    /// Appends a scale as it is stored; a narrow one takes 2 bytes until the matrix's octave is known.
    #[inline(always)]
    pub(super) fn keep_scale(self, scale: f32, to: &mut Vec<u8>) {
        let bits = match self {
            GroupParams::Mxfp4 => return to.push((scale.to_bits() >> 23) as u8),
            GroupParams::Wide | GroupParams::Iq4Nl | GroupParams::Iq4Xs => f16::from_f32(scale).to_bits(),
            GroupParams::Narrow => (scale.to_bits() >> CUT) as u16,
        };
        to.extend_from_slice(&bits.to_le_bytes());
    }

    /// Appends the zero points of a tile's group.
    #[inline(always)]
    pub(super) fn put_zeros(self, zeros: [u8; TILE_ROWS], to: &mut Vec<u8>) {
        match self {
            GroupParams::Wide => to.extend_from_slice(&zeros),
            GroupParams::Narrow => {
                let nibbles = zeros.map(|zero| (zero - NARROW_ZERO) / NARROW_STEP);
                to.extend((0..8).map(|r| nibbles[r] | nibbles[r + 8] << 4));
            }
            GroupParams::Mxfp4 | GroupParams::Iq4Nl | GroupParams::Iq4Xs => {}
        }
    }
}

/// The narrow scale at or below `scale`, and the next. Candidates of a search; exponents are not limited.
#[inline(always)]
pub(super) fn neighbours(scale: f32) -> [f32; 2] {
    let bits = scale.to_bits() >> CUT;
    [bits, bits + 1].map(|bits| f32::from_bits(bits << CUT))
}

/// The octave of a matrix's largest scale, from scales in the form of [`GroupParams::keep_scale`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Octave(u16);

impl Octave {
    /// The octave of some of a matrix's scales. The matrix's own is the largest of these.
    pub(crate) fn of(kept: &[u8]) -> Octave {
        Octave(kept.chunks_exact(2).map(|s| u16::from_le_bytes([s[0], s[1]])).max().unwrap_or(0) >> 4)
    }

    /// The exponent of the power of two for the corrections. Its bounds keep corrections normal floats, also
    /// on devices that flush values below 10⁻²⁰ to zero. Scales below the bounds are as good as zero.
    pub(crate) fn exponent(self) -> i32 {
        if self.0 == 0 { 0 } else { (i32::from(self.0) - 127).clamp(-60, 60) }
    }

    /// Scales as they are stored. Scales of at most 2⁻¹⁵ of the largest become that value.
    pub(crate) fn stored(self, kept: &[u8]) -> Vec<u8> {
        let first = (self.exponent() + 127 - (OCTAVES - 1)) << 4;
        let scale = |s: &[u8]| (i32::from(u16::from_le_bytes([s[0], s[1]])) - first).clamp(0, 255) as u8;
        kept.chunks_exact(2).map(scale).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_parameters_are_read_as_they_were_kept() {
        for exponent in [-50, -9, 0, 12] {
            let (mut kept, mut zeros, mut want) = (Vec::new(), Vec::new(), Vec::new());
            for group in 0..16 {
                let mut points = [0; TILE_ROWS];
                for (row, point) in points.iter_mut().enumerate() {
                    // All 256 scales in the matrix's octaves.
                    let scale = (1.0 + row as f32 / 16.0) * 2f32.powi(exponent - group);
                    *point = NARROW_ZERO + NARROW_STEP * ((5 * row as i32 + group) % 16) as u8;
                    GroupParams::Narrow.keep_scale(scale, &mut kept);
                    want.push((scale, *point));
                }
                GroupParams::Narrow.put_zeros(points, &mut zeros);
            }
            let octave = Octave::of(&kept);
            assert_eq!(octave.exponent(), exponent);
            let scales = octave.stored(&kept);
            assert_eq!((scales.len(), zeros.len()), (16 * 16, 16 * 8));
            for (at, want) in want.into_iter().enumerate() {
                let (scale, zero) = GroupParams::Narrow.read(&scales, &zeros, at);
                assert_eq!((scale * 2f32.powi(exponent), zero), want);
            }
        }
    }

    #[test]
    fn scales_far_below_the_largest_become_the_least_there_is() {
        let mut kept = Vec::new();
        for scale in [1.0, 2f32.powi(-15), 2f32.powi(-16), 1e-30, 0.0] {
            GroupParams::Narrow.keep_scale(scale, &mut kept);
        }
        assert_eq!(Octave::of(&kept).stored(&kept), [240, 0, 0, 0, 0]);
        assert_eq!(Octave::of(&kept[6..]).exponent(), -60);
        assert_eq!(Octave::of(&[0, 0]).exponent(), 0);
    }
}
