//! The scalar specification: the value of a code, and the dot product with quantized activations.
//!
//! Slow and plain on purpose. Kernels are compared with this file.

use super::{Level, Nested, PLANE_BITS};

impl Nested {
    /// The codes of group `g` of `row` at this level: `level` bits each, right-aligned.
    pub fn group_codes(&self, row: usize, g: usize, out: &mut [u8]) {
        let (shape, planes) = (self.shape(), self.level().planes());
        out.fill(0);
        for (p, &bits) in PLANE_BITS[..planes].iter().enumerate() {
            for (i, code) in out.iter_mut().enumerate() {
                let (byte, shift) = shape.place(p, row, g * shape.group + i);
                *code = *code << bits | (self.codes(p)[byte] >> shift & ((1 << bits) - 1));
            }
        }
    }

    /// The integer value of a code at this level: the 8-bit code, or the table's entry.
    fn integer(&self, code: u8) -> i32 {
        match self.shape().params.table() {
            Some(table) => table.entries(self.level())[usize::from(code)].into(),
            None => i32::from(code) << self.level().shift(),
        }
    }

    /// Scale and zero point of group `g` of `row`. A narrow scale is without the octave, which the matrix's fits contain.
    pub fn group_params(&self, row: usize, g: usize) -> (f32, u8) {
        let shape = self.shape();
        shape.params.read(self.scales(), self.zeros(), shape.param(row, g))
    }

    /// The weights of one row, `[cols]`, for inputs without rotation.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let (shape, fit) = (self.shape(), self.fit());
        let mut codes = [0u8; 64];
        for (g, out) in out[..shape.cols].chunks_mut(shape.group).enumerate() {
            let (scale, zero) = self.group_params(row, g);
            self.group_codes(row, g, &mut codes[..shape.group]);
            for (w, code) in out.iter_mut().zip(codes) {
                let centred = self.integer(code) - i32::from(zero);
                *w = scale * (fit.alpha * centred as f32 + fit.beta);
            }
        }
        if let Some(rotation) = self.rotation() {
            rotation.undo_rows(&mut out[..shape.cols]);
        }
    }

    /// The dot product of a row with quantized activations of the same group size, rotated if the matrix is.
    ///
    /// Per group, with exact integers `D = Σ c · q` and `A = Σ q`, where `c` are 8-bit codes or table entries:
    /// `s · a · (D + (β/α − z) · A)`, summed over groups and multiplied by `α`. Kernels may sum groups in another order.
    pub fn dot(&self, row: usize, x: &QuantizedRow) -> f32 {
        let (shape, fit) = (self.shape(), self.fit());
        let mut codes = [0u8; 64];
        let mut sum = 0.0f32;
        for g in 0..shape.groups() {
            let (scale, zero) = self.group_params(row, g);
            self.group_codes(row, g, &mut codes[..shape.group]);
            let q = &x.q[g * shape.group..][..shape.group];
            let dot: i32 = codes.iter().zip(q).map(|(&c, &q)| self.integer(c) * i32::from(q)).sum();
            let centre = fit.beta / fit.alpha - f32::from(zero);
            sum += scale * x.scale[g] * (dot as f32 + centre * x.sum[g] as f32);
        }
        fit.alpha * sum
    }
}

/// A row of 8-bit activations: `x ≈ scale · q` per group.
#[derive(Clone, Debug, Default)]
pub struct QuantizedRow {
    /// `[padded cols]`, −127 to 127; zero in the padding.
    pub q: Vec<i8>,
    /// `[groups]`.
    pub scale: Vec<f32>,
    /// Sum of `q` over each group.
    pub sum: Vec<i32>,
}

impl QuantizedRow {
    /// Quantizes `x` in groups: `scale = max|x| / 127`, `q = x / scale` rounded to nearest, ties to even.
    pub fn new(x: &[f32], group: usize) -> QuantizedRow {
        let mut row = QuantizedRow::default();
        for x in x.chunks(group) {
            let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
            let q = x.iter().map(|v| (v * inverse).round_ties_even() as i8);
            let from = row.q.len();
            row.q.extend(q);
            row.q.resize(from + group, 0);
            row.scale.push(max / 127.0);
            row.sum.push(row.q[from..].iter().map(|&q| i32::from(q)).sum());
        }
        row
    }
}

/// The middle of a truncated cell in steps of the 8-bit code: the value of `beta` without a fit.
pub fn cell_middle(level: Level) -> f32 {
    ((1u32 << level.shift()) - 1) as f32 / 2.0
}
