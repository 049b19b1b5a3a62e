//! Rotary position embedding (RoPE): the inverse frequencies under every scaling, and tables of cosines and
//! sines.
//!
//! The formulas follow `transformers` (`modeling_rope_utils.py`), which made the goldens. Frequencies are
//! rounded to f32 and angles are f32 products: at thousands of positions, another rounding gives another
//! angle.

use crate::kernels::RopeTable;
use std::f64::consts::PI;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Rotated dimensions of a head (even).
    pub dims: usize,
    /// The base θ.
    pub base: f32,
    /// How frequencies are scaled for contexts beyond the trained one.
    pub scaling: Scaling,
}

/// Frequency scaling.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// No scaling.
    None,
    /// Divides all frequencies by `factor` (position interpolation).
    Linear {
        /// Ratio of the new context to the trained one.
        factor: f32,
    },
    /// Llama 3.1: divides the frequencies of long wavelengths, keeps those of short ones, and interpolates
    /// between.
    Llama3 {
        /// Ratio of the new context to the trained one.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are scaled.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Trained context in tokens.
        original_context: f32,
    },
    /// Unscaled, but only the leading frequencies rotate.
    Proportional {
        /// The share of frequencies that rotate.
        part: f32,
    },
    /// LongRoPE (arXiv 2402.13753) within the trained context: every frequency is divided by its own factor.
    Listed {
        /// `[dims / 2]`; empty if a tensor has them.
        factors: Vec<f32>,
        /// Factor on cosines and sines.
        gain: f32,
    },
    /// YaRN (arXiv 2309.00071): scales frequencies by a ramp over dimensions, and sharpens attention.
    Yarn {
        /// Ratio of the new context to the trained one.
        factor: f32,
        /// Trained context in tokens.
        original_context: f32,
        /// Dimensions with at least this many rotations over the trained context keep their frequency.
        beta_fast: f32,
        /// Dimensions with at most this many rotations over the trained context are fully scaled.
        beta_slow: f32,
        /// Factor on cosines and sines; by default `0.1 ln(factor) + 1`.
        attention_factor: Option<f32>,
        /// Together with `mscale_all_dim`, another way to define the attention factor.
        mscale: Option<f32>,
        /// See `mscale`.
        mscale_all_dim: Option<f32>,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
        /// Another factor on cosines and sines (GGUF's `attn_factor` and `yarn_attn_factor`).
        gain: f32,
        /// Strength of the ramp (GGUF's `yarn_ext_factor`). At 0, all frequencies are scaled alike and the
        /// default attention factor is 1.
        extrapolation: f32,
    },
}

impl RopeConfig {
    /// Inverse frequencies `[dims / 2]`, and the factor on cosines and sines.
    fn frequencies(&self) -> (Vec<f32>, f32) {
        let dims = self.dims as f64;
        let base = f64::from(self.base);
        let plain = |i: usize| 1.0 / base.powf(2.0 * i as f64 / dims);
        let half = 0..self.dims / 2;
        match &self.scaling {
            Scaling::None => (half.map(|i| plain(i) as f32).collect(), 1.0),
            Scaling::Linear { factor } => {
                (half.map(|i| (plain(i) / f64::from(*factor)) as f32).collect(), 1.0)
            }
            Scaling::Proportional { part } => {
                let turning = (f64::from(*part) * dims / 2.0) as usize;
                (half.map(|i| if i < turning { plain(i) as f32 } else { 0.0 }).collect(), 1.0)
            }
            Scaling::Listed { factors, gain } => {
                let factor = |i: usize| factors.get(i).map_or(1.0, |f| f64::from(*f));
                (half.map(|i| (plain(i) / factor(i)) as f32).collect(), *gain)
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let (factor, low, high) =
                    (f64::from(*factor), f64::from(*low_freq_factor), f64::from(*high_freq_factor));
                let context = f64::from(*original_context);
                let stretch = |inv: f64| {
                    let wavelength = 2.0 * PI / inv;
                    if wavelength > context / low {
                        inv / factor
                    } else if wavelength < context / high {
                        inv
                    } else {
                        let smooth = (context / wavelength - low) / (high - low);
                        (1.0 - smooth) * inv / factor + smooth * inv
                    }
                };
                (half.map(|i| stretch(plain(i)) as f32).collect(), 1.0)
            }
            Scaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale,
                mscale_all_dim,
                truncate,
                gain,
                extrapolation,
            } => {
                let factor = f64::from(*factor);
                // The dimension that rotates `rotations` times over the trained context.
                let dimension = |rotations: f32| {
                    dims * (f64::from(*original_context) / (f64::from(rotations) * 2.0 * PI)).ln()
                        / (2.0 * base.ln())
                };
                let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dims - 1.0));
                if low == high {
                    high += 0.001;
                }
                let stretch = |i: usize| {
                    let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let kept = (1.0 - ramp) * f64::from(*extrapolation);
                    plain(i) / factor * (1.0 - kept) + plain(i) * kept
                };
                let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                let attention = match (attention_factor, mscale, mscale_all_dim) {
                    (Some(a), _, _) => f64::from(*a),
                    _ if *extrapolation == 0.0 => 1.0,
                    (None, Some(m), Some(all)) if *m != 0.0 && *all != 0.0 => {
                        scale(f64::from(*m)) / scale(f64::from(*all))
                    }
                    _ => scale(1.0),
                };
                (half.map(|i| stretch(i) as f32).collect(), (attention * f64::from(*gain)) as f32)
            }
        }
    }

    /// The table for positions `0..positions`. `factors` (`[dims / 2]`, from a GGUF's `rope_freqs.weight`)
    /// divide the frequencies.
    pub fn table(&self, positions: usize, factors: Option<&[f32]>) -> RopeTable {
        let (mut inv, attention) = self.frequencies();
        if let Some(factors) = factors {
            inv.iter_mut().zip(factors).for_each(|(inv, f)| *inv /= f);
        }
        let mut name = DefaultHasher::new();
        (self.dims, attention.to_bits()).hash(&mut name);
        inv.iter().for_each(|inv| inv.to_bits().hash(&mut name));
        let mut table = RopeTable { name: name.finish(), dims: self.dims, cos: Vec::new(), sin: Vec::new() };
        table.cos.reserve_exact(positions * inv.len());
        table.sin.reserve_exact(positions * inv.len());
        for position in 0..positions {
            for inv in &inv {
                let (sin, cos) = (position as f32 * inv).sin_cos();
                table.cos.push(cos * attention);
                table.sin.push(sin * attention);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> RopeConfig {
        RopeConfig { dims: 16, base: 10_000.0, scaling }
    }

    #[test]
    fn linear_scaling_is_a_stretch_of_positions() {
        let plain = rope(Scaling::None).table(4, None);
        let slow = rope(Scaling::Linear { factor: 2.0 }).table(7, None);
        for (a, b) in plain.cos[3 * 8..].iter().zip(&slow.cos[6 * 8..]) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    /// Expected values from a Python port of ggml's `rope_yarn`: base 10000, 16 dimensions, factor 4, trained
    /// context of 64, at dimension pairs 0, 2 and 7 of position 5. It mixes by `ramp · ext_factor` and
    /// multiplies by `attn_factor · (1 + 0.1 ln 4)`, the latter only if `ext_factor` is not 0.
    #[test]
    fn factors_of_yarn_are_those_of_ggml() {
        let table = |gain, extrapolation| {
            let yarn = Scaling::Yarn {
                factor: 4.0,
                original_context: 64.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: None,
                mscale: None,
                mscale_all_dim: None,
                truncate: true,
                gain,
                extrapolation,
            };
            let table = rope(yarn).table(6, None);
            [table.cos[5 * 8], table.cos[5 * 8 + 2], table.cos[5 * 8 + 7]]
        };
        let cases = [
            (1.0, 1.0, [0.3229861, 1.1032322, 1.1386293]),
            (2.0, 1.0, [0.6459722, 2.2064644, 2.2772587]),
            (1.0, 0.0, [0.3153224, 0.9921977, 0.9999999]),
            (2.0, 0.0, [0.6306447, 1.9843953, 1.9999998]),
            (1.0, 0.5, [-1.1384727, 1.118_673, 1.1386293]),
        ];
        for (gain, extrapolation, want) in cases {
            for (got, want) in table(gain, extrapolation).into_iter().zip(want) {
                assert!((got - want).abs() < 2e-6, "{gain} {extrapolation}: {got} {want}");
            }
        }
    }

    #[test]
    fn factors_of_one_change_nothing_and_a_table_has_every_position() {
        let config = rope(Scaling::None);
        assert_eq!(config.table(5, None), config.table(5, Some(&[1.0; 8])));
        assert_eq!(config.table(5, None).cos.len(), 5 * 8);
    }
}
