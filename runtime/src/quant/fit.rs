//! The corrections of each level of a matrix, by least squares, and the remaining error.
//!
//! Sums are over residuals of the uncorrected value, not over values: at 8 bits the error is 10⁻⁵ of the
//! energy, and the difference of two large sums would be noise.

use super::decode::cell_middle;
use super::lanes::{Lane, times};
use super::params::TILE_ROWS;
use super::table::Table;
use super::{Fit, Fits, GroupParams, Level, PLANES};

/// Lanes of a sum.
const LANES: usize = 8;

/// The longest group.
const MAX_GROUP: usize = 64;

/// For a tile's column: scales, weights, and the residuals of each level.
const CHANNELS: usize = 2 + PLANES;

/// A tile in the form that [`FitSums::add_products`] takes.
pub(super) struct Products {
    columns: Vec<[Lane; CHANNELS]>,
}

impl Products {
    pub(super) fn new(cols: usize) -> Products {
        Products { columns: Vec::with_capacity(cols) }
    }

    /// The next column.
    #[inline(always)]
    pub(super) fn push(&mut self, w: &Lane, codes: &[u8; TILE_ROWS], scale: &Lane, zero: &Lane) {
        let mut column = [[0.0; TILE_ROWS]; CHANNELS];
        (column[0], column[1]) = (*scale, *w);
        for (rest, level) in column[2..].iter_mut().zip(Level::ALL) {
            let (mask, middle) = (0xffu8 << level.shift(), cell_middle(level));
            for r in 0..TILE_ROWS {
                rest[r] = w[r] - scale[r] * (f32::from(codes[r] & mask) - zero[r] + middle);
            }
        }
        self.columns.push(column);
    }
}

/// Sums for one level over weights with `u = (t << shift) − z`, `r = w/s − u − middle`, weighted by `importance · s²`.
#[derive(Clone, Copy, Debug, Default)]
struct LevelSums {
    uu: f64,
    u: f64,
    rr: f64,
    ru: f64,
    r: f64,
}

/// The sums for least squares. Merging in row order gives the same result for any number of threads.
#[derive(Clone, Debug, Default)]
pub struct FitSums {
    levels: [LevelSums; PLANES],
    /// Σ importance · s².
    one: f64,
    /// Σ importance · w².
    energy: f64,
}

impl FitSums {
    /// Adds one group: `x` are its weights in code steps plus the zero point (`w/s + z`), `codes` its 8-bit codes.
    #[inline(always)]
    pub(super) fn add_group(
        &mut self,
        x: &[f32],
        codes: &[u8],
        zero: u8,
        scale: f32,
        importance: Option<&[f32]>,
    ) {
        let s2 = f64::from(scale) * f64::from(scale);
        let zero = f32::from(zero);
        // Padded to whole lanes, with zero importance: so the loops below vectorise.
        let (mut v, mut xs, mut cs) = ([0.0f32; MAX_GROUP], [0.0f32; MAX_GROUP], [0u8; MAX_GROUP]);
        match importance {
            Some(importance) => v[..x.len()].copy_from_slice(importance),
            None => v[..x.len()].fill(1.0),
        }
        xs[..x.len()].copy_from_slice(x);
        cs[..x.len()].copy_from_slice(codes);
        let blocks = x.len().div_ceil(LANES);
        let (mut one, mut energy) = ([0.0f32; LANES], [0.0f32; LANES]);
        for at in (0..blocks * LANES).step_by(LANES) {
            for i in 0..LANES {
                let w = xs[at + i] - zero;
                one[i] += v[at + i];
                energy[i] += v[at + i] * w * w;
            }
        }
        let total = |lanes: [f32; LANES]| s2 * f64::from(lanes.iter().sum::<f32>());
        self.one += total(one);
        self.energy += total(energy);
        for (sums, level) in self.levels.iter_mut().zip(Level::ALL) {
            let (mask, middle) = (0xffu8 << level.shift(), cell_middle(level));
            let [mut uu, mut u1, mut rr, mut ru, mut r1] = [[0.0f32; LANES]; 5];
            for at in (0..blocks * LANES).step_by(LANES) {
                for i in 0..LANES {
                    let (x, v, t) = (xs[at + i], v[at + i], f32::from(cs[at + i] & mask));
                    let (u, r) = (t - zero, x - t - middle);
                    uu[i] += v * u * u;
                    u1[i] += v * u;
                    rr[i] += v * r * r;
                    ru[i] += v * r * u;
                    r1[i] += v * r;
                }
            }
            sums.uu += total(uu);
            sums.u += total(u1);
            sums.rr += total(rr);
            sums.ru += total(ru);
            sums.r += total(r1);
        }
    }

    /// Adds one group of table codes. The target of every level is the value at 4 bits, so 4 bits and more
    /// have no error.
    #[inline(always)]
    pub(super) fn add_table(&mut self, table: &Table, codes: &[u8], scale: f32, importance: Option<&[f32]>) {
        let s2 = f64::from(scale) * f64::from(scale);
        let v = |i: usize| importance.map_or(1.0, |v| v[i]);
        let value = |level, i: usize| table.value(level, codes[i]);
        let add = |to: &mut f64, of: &dyn Fn(usize) -> f32| {
            *to += s2 * f64::from((0..codes.len()).map(|i| v(i) * of(i)).sum::<f32>());
        };
        add(&mut self.one, &|_| 1.0);
        add(&mut self.energy, &|i| value(Level::B4, i).powi(2));
        for (sums, level) in self.levels.iter_mut().zip([Level::B2, Level::B3]) {
            let r = |i: usize| value(Level::B4, i) - value(level, i);
            add(&mut sums.uu, &|i| value(level, i).powi(2));
            add(&mut sums.u, &|i| value(level, i));
            add(&mut sums.rr, &|i| r(i).powi(2));
            add(&mut sums.ru, &|i| r(i) * value(level, i));
            add(&mut sums.r, &r);
        }
    }

    /// Adds a tile in the norm of `h` (`[cols, cols]`): every product of two columns counts, where
    /// [`FitSums::add_group`] counts only those of a column with itself.
    #[inline(always)]
    pub(super) fn add_products(&mut self, of: &Products, h: &[f32]) {
        let mut by_h = vec![[[0.0f32; TILE_ROWS]; CHANNELS]; of.columns.len()];
        times(&of.columns, h, &mut by_h);
        let product = |a: &Lane, b: &Lane| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
        for (own, by_h) in of.columns.iter().zip(&by_h) {
            let ([scale, w, ..], [scale_h, w_h, ..]) = (own, by_h);
            self.one += product(scale, scale_h);
            self.energy += product(w, w_h);
            for (i, (sums, level)) in self.levels.iter_mut().zip(Level::ALL).enumerate() {
                let middle = cell_middle(level);
                let (rest, rest_h) = (&own[2 + i], &by_h[2 + i]);
                let (mut u, mut u_h) = ([0.0; TILE_ROWS], [0.0; TILE_ROWS]);
                for r in 0..TILE_ROWS {
                    u[r] = w[r] - rest[r] - middle * scale[r];
                    u_h[r] = w_h[r] - rest_h[r] - middle * scale_h[r];
                }
                sums.uu += product(&u, &u_h);
                sums.u += product(&u, scale_h);
                sums.rr += product(rest, rest_h);
                sums.ru += product(&u, rest_h);
                sums.r += product(scale, rest_h);
            }
        }
    }

    /// Adds the sums of another block of rows.
    pub fn merge(&mut self, other: &FitSums) {
        self.one += other.one;
        self.energy += other.energy;
        for (a, b) in self.levels.iter_mut().zip(&other.levels) {
            a.uu += b.uu;
            a.u += b.u;
            a.rr += b.rr;
            a.ru += b.ru;
            a.r += b.r;
        }
    }

    /// The corrections of every level for a matrix with these parameters, and the remaining squared error of
    /// each level, relative to the weights' energy.
    pub fn solve(&self, params: GroupParams) -> (Fits, [f32; PLANES]) {
        let mut fits = [Fit { alpha: 1.0, beta: 0.0 }; PLANES];
        let mut errors = [0.0; PLANES];
        for (i, (level, s)) in Level::ALL.into_iter().zip(&self.levels).enumerate() {
            let det = s.uu * self.one - s.u * s.u;
            // Without variance in the codes (a constant matrix) only the offset can be fitted.
            let (a, b) = if det > 1e-9 * s.uu * self.one {
                ((s.ru * self.one - s.r * s.u) / det, (s.r * s.uu - s.ru * s.u) / det)
            } else {
                (0.0, if self.one > 0.0 { s.r / self.one } else { 0.0 })
            };
            let rest = (s.rr - a * s.ru - b * s.r).max(0.0);
            // A correction far from the identity means degenerate data, not a better fit.
            let sane = a.abs() < 0.5 && b.abs() < 128.0;
            let (a, b, rest) = if sane { (a, b, rest) } else { (0.0, 0.0, s.rr) };
            fits[i] = match params.table() {
                Some(t) => Fit { alpha: t.unit() * (1.0 + a as f32), beta: t.unit() * b as f32 },
                None => Fit { alpha: 1.0 + a as f32, beta: snap(f64::from(cell_middle(level)) + b) },
            };
            errors[i] = if self.energy > 0.0 { (rest / self.energy) as f32 } else { 0.0 };
        }
        (fits, errors)
    }
}

/// Kept codes (`keep`) have an integer `beta`, which the sums' rounding must not change.
fn snap(beta: f64) -> f32 {
    let whole = beta.round();
    if (beta - whole).abs() < 1e-5 { whole as f32 } else { beta as f32 }
}
