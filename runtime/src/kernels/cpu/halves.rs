//! Activations in bfloat16 for products of many tokens, in the layout of tile registers. A row is converted
//! by itself, without groups or scales, so it does not depend on its neighbours.

use super::activations::SPARE_TOKENS;
use super::aligned::grow;
use super::isa::Isa;
use super::pool::Pool;
use crate::quant::UNIT_COLS;
use std::sync::{Mutex, PoisonError};

/// Tokens of a task.
const ROWS_AT_ONCE: usize = 16;

/// A unit of one token, in its own cache line.
#[derive(Clone, Default)]
#[repr(C, align(64))]
struct Line([u16; UNIT_COLS]);

/// Rows of several tokens.
#[derive(Default)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) struct Halves {
    cols: usize,
    tokens: usize,
    /// Lines from one token to the next.
    stride: usize,
    /// `[tokens + SPARE_TOKENS, stride]`; zeros beyond a token's columns.
    lines: Vec<Line>,
}

/// An odd number of lines, so that neighbouring tokens lie in different cache sets. There is room for groups of 64.
const fn stride(cols: usize) -> usize {
    (2 * cols.div_ceil(2 * UNIT_COLS)) | 1
}

/// Round to nearest, ties to even; NaN stays NaN.
#[inline(always)]
fn half(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    ((if x.is_nan() { bits | 0x40_0000 } else { rounded }) >> 16) as u16
}

impl Halves {
    /// Converts rows of `cols` values: the first `tokens`, or those in `order`.
    pub(super) fn fill(
        &mut self,
        pool: &Pool,
        isa: Isa,
        x: &[f32],
        tokens: usize,
        cols: usize,
        order: Option<&[u32]>,
    ) {
        (self.cols, self.stride) = (cols, stride(cols));
        self.tokens = order.map_or(tokens, <[u32]>::len);
        grow(&mut self.lines, (self.tokens + SPARE_TOKENS) * self.stride);
        let (stride, tokens) = (self.stride, self.tokens);
        let all = Mutex::new(self.lines[..tokens * stride].chunks_mut(ROWS_AT_ONCE * stride).enumerate());
        pool.run(tokens.div_ceil(ROWS_AT_ONCE), &|_| {
            let Some((i, rows)) = all.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
            isa.run(
                #[inline(always)]
                || {
                    for (n, row) in rows.chunks_exact_mut(stride).enumerate() {
                        let t = i * ROWS_AT_ONCE + n;
                        let t = order.map_or(t, |order| order[t] as usize);
                        convert(&x[t * cols..][..cols], row);
                    }
                },
            );
        });
    }

    /// Bytes for `tokens` tokens.
    pub(super) fn bytes(tokens: usize, cols: usize) -> usize {
        (tokens + SPARE_TOKENS) * stride(cols) * size_of::<Line>()
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// Whether it has tokens `first..first + n` of `cols` columns.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn has(&self, cols: usize, first: usize, n: usize) -> bool {
        self.cols == cols && first.checked_add(n).is_some_and(|end| end <= self.tokens)
    }

    /// The address of token `t`, whose units follow each other, and the bytes from one token to the next.
    /// After the last token there are SPARE_TOKENS more.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn token(&self, t: usize) -> (*const u8, usize) {
        assert!(t < self.tokens);
        (self.lines[t * self.stride..].as_ptr().cast(), self.stride * size_of::<Line>())
    }
}

#[inline(always)]
fn convert(x: &[f32], row: &mut [Line]) {
    let mut units = x.chunks_exact(UNIT_COLS);
    let mut lines = row.iter_mut();
    for (x, line) in units.by_ref().zip(lines.by_ref()) {
        line.0.iter_mut().zip(x).for_each(|(to, x)| *to = half(*x));
    }
    let mut rest = units.remainder();
    for line in lines {
        line.0.fill(0);
        line.0.iter_mut().zip(rest).for_each(|(to, x)| *to = half(*x));
        rest = &[];
    }
}
