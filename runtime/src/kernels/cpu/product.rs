//! Matrix products: many matrices, many tokens, one job for the pool.
//!
//! A [`Product`] defines which rows of an input a matrix multiplies, and where the results go. Its matrix is split
//! into tasks of several tiles (16 rows). A task writes the elements of its rows, for every token, and nothing else.
#![allow(unsafe_code)]

use super::activations::Activations;
use super::halves::Halves;
use super::isa::Isa;
use super::lines;
use super::math;
use super::nested;
use super::plain;
use super::pool::Pool;
use super::tiles::{Sums, TOKEN_BLOCK, Tiles};
use crate::kernels::Activation;
use crate::quant::{Matrix, TILE_ROWS};
use std::ops::Range;

/// The least weight bytes of a task: large enough to hide the cost of starting one, small enough to balance.
const TASK_BYTES: usize = 128 << 10;

/// Outputs of this size or more use non-temporal stores: no core's cache would still hold them when they are read.
pub(super) const PAST_BYTES: usize = 2 << 20;

/// Tasks per thread for small operations.
const TASKS_PER_THREAD: usize = 4;

/// Activations that products read: plain, and quantized in the group sizes that the current matrices use.
pub(super) struct Input<'a> {
    pub(super) plain: &'a [f32],
    pub(super) by_32: &'a Activations,
    pub(super) by_64: &'a Activations,
    /// The same in bfloat16, if nested matrices use it.
    pub(super) halves: Option<&'a Halves>,
}

/// One matrix times some rows of an input.
pub(super) struct Product<'a> {
    pub(super) matrix: &'a Matrix,
    /// The other factor, if the result is the activation of both.
    pub(super) up: Option<Up<'a>>,
    /// Rows of the plain input.
    pub(super) tokens: &'a [u32],
    /// The tiles to multiply, if not all. The results begin at the first of them.
    pub(super) part: Option<Range<usize>>,
    /// The first row of the quantized input; the product's tokens are consecutive from there.
    pub(super) first: usize,
    pub(super) bias: Option<&'a [f32]>,
    /// The output row of each token: `to[n]` for the n-th, or n without `to`.
    pub(super) to: Option<&'a [u32]>,
    pub(super) out: Out,
}

/// The second factor of a product that ends in an activation.
#[derive(Clone, Copy)]
pub(super) struct Up<'a> {
    /// The second matrix; `None` if the first product is also the second.
    pub(super) matrix: Option<&'a Matrix>,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) activation: Activation,
}

/// Adds a tile's part of the bias, if there is one, to its sums.
#[inline(always)]
fn add_bias(bias: Option<&[f32]>, tile: usize, sums: &mut [[f32; TILE_ROWS]]) {
    if let Some(bias) = bias {
        let first = tile * TILE_ROWS;
        let bias = &bias[first..bias.len().min(first + TILE_ROWS)];
        sums.iter_mut().for_each(|sums| sums.iter_mut().zip(bias).for_each(|(s, b)| *s += b));
    }
}

impl Product<'_> {
    /// The other matrix.
    pub(super) fn other(&self) -> Option<&Matrix> {
        self.up.and_then(|up| up.matrix)
    }

    fn tiles(&self) -> usize {
        self.part.as_ref().map_or(self.matrix.rows().div_ceil(TILE_ROWS), Range::len)
    }

    /// The first tile to multiply.
    fn first_tile(&self) -> usize {
        self.part.as_ref().map_or(0, |part| part.start)
    }

    /// Writes the results of a tile's rows for tokens `from..`, with non-temporal stores if `past`.
    ///
    /// # Safety
    /// As [`run`], and no other thread computes this tile.
    #[inline(always)]
    unsafe fn write(&self, tile: usize, from: usize, sums: &[[f32; TILE_ROWS]], past: bool) {
        let first = tile * TILE_ROWS;
        let n = TILE_ROWS.min(self.matrix.rows() - first);
        let to_col = first - self.first_tile() * TILE_ROWS;
        // A tile is nearly always whole. With a constant length, the copy is a move instead of a call.
        let whole = n == TILE_ROWS;
        for (i, sums) in (from..).zip(sums.iter()) {
            let to = self.to.map_or(i, |to| to[i] as usize);
            // SAFETY: the caller guarantees it.
            unsafe {
                match whole {
                    true => self.out.set(to, to_col, sums, past),
                    false => self.out.set(to, to_col, &sums[..n], past),
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        let all = self.matrix.rows().div_ceil(TILE_ROWS).max(1);
        self.matrix.bytes() / all * self.tiles() * (1 + usize::from(self.other().is_some()))
    }
}

/// An output buffer; several tasks write disjoint elements of it.
#[derive(Clone, Copy)]
pub(super) struct Out {
    at: *mut f32,
    len: usize,
    stride: usize,
    /// Values to skip at the beginning of each row.
    from: usize,
}

// SAFETY: tasks write disjoint elements (each its own matrix rows), and the code that makes an `Out` keeps the
// buffer borrowed until the pool has returned: `run` ties the buffers' owners to the lifetimes of its callers.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    /// Rows of `stride` values.
    pub(super) fn new(buffer: &mut [f32], stride: usize) -> Out {
        Out { at: buffer.as_mut_ptr(), len: buffer.len(), stride, from: 0 }
    }

    /// The same rows without their first `from` values.
    pub(super) fn behind(self, from: usize) -> Out {
        Out { from, ..self }
    }

    /// # Safety
    /// The buffer is still borrowed for this `Out`, and no other thread accesses the elements during the call.
    #[inline(always)]
    unsafe fn set(&self, row: usize, col: usize, values: &[f32], past: bool) {
        let col = self.from + col;
        let i = row * self.stride + col;
        assert!(
            i + values.len() <= self.len && col + values.len() <= self.stride,
            "columns {col}.. of row {row} are outside the output"
        );
        // SAFETY: in bounds by the assertion; exclusive, as the caller guarantees.
        unsafe {
            let to = self.at.add(i);
            match <&[f32; TILE_ROWS]>::try_from(values) {
                Ok(line) if past => lines::store_past(to, line),
                _ => std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()),
            }
        }
    }
}

/// Computes products `0..count`.
///
/// # Safety
/// Every `out` is a live, exclusively borrowed buffer, and no two (product, token) pairs write the same row of one.
pub(super) unsafe fn run<'a>(
    pool: &Pool,
    isa: Isa,
    input: &Input,
    count: usize,
    product: &(dyn Fn(usize) -> Product<'a> + Sync),
) {
    let (mut bytes, mut tiles, mut many, mut results) = (0, 0, false, 0);
    for p in (0..count).map(product) {
        bytes += p.bytes();
        tiles += p.tiles();
        results += p.tokens.len() * p.tiles() * TILE_ROWS * size_of::<f32>();
        many |= p.tokens.len() > 1;
    }
    if tiles == 0 {
        return;
    }
    let by_size = (TASK_BYTES * tiles).div_ceil(bytes.max(1));
    let per_task = by_size.min(tiles.div_ceil(TASKS_PER_THREAD * pool.threads())).max(1);
    let past = results >= PAST_BYTES;
    // Pairs of tiles stay together.
    let per_task = if many { per_task.next_multiple_of(2) } else { per_task };
    let tasks = |i: usize| product(i).tiles().div_ceil(per_task);
    let total = (0..count).map(tasks).sum();
    // Experts have one size, so a division finds a task's product without a search; others are few.
    let each = tasks(0);
    let alike = (1..count).all(|i| tasks(i) == each);
    let find = |mut task: usize| {
        let mut i = 0;
        if alike {
            (i, task) = (task / each, task % each);
        }
        while task >= tasks(i) {
            (i, task) = (i + 1, task - tasks(i));
        }
        (i, task)
    };
    pool.run(total, &|task| {
        let (i, task) = find(task);
        let p = product(i);
        let first = p.first_tile();
        let tiles = first + task * per_task..first + ((task + 1) * per_task).min(p.tiles());
        // SAFETY: the caller guarantees it; only this task has these rows of the matrix.
        isa.run(
            #[inline(always)]
            || unsafe {
                match p.tokens {
                    // Decoding: no memory for a block's sums is needed.
                    [_] if input.halves.is_none() => one(isa, input, &p, tiles),
                    _ => pairs(isa, input, &p, tiles, past),
                }
            },
        );
        if past {
            lines::written();
        }
    });
}

/// One token.
///
/// # Safety
/// As [`run`], and no other thread computes these tiles.
#[inline(always)]
unsafe fn one(isa: Isa, input: &Input, p: &Product, tiles: Range<usize>) {
    let (matrix, other) = (Weights::new(input, p.matrix), p.other().map(|other| Weights::new(input, other)));
    let from = (p.first, p.tokens);
    for tile in tiles {
        let mut sums = [[0.0; TILE_ROWS]];
        matrix.tile_times(isa, tile, from, &mut sums);
        add_bias(p.bias, tile, &mut sums);
        if let Some(up) = &p.up {
            let mut ups = sums;
            if let Some(other) = &other {
                ups = [[0.0; TILE_ROWS]];
                other.tile_times(isa, tile, from, &mut ups);
                add_bias(up.bias, tile, &mut ups);
            }
            math::activate(up.activation, &mut sums[0], &ups[0]);
        }
        // SAFETY: the caller guarantees it.
        unsafe { p.write(tile, 0, &sums, false) }
    }
}

/// Several tokens, two tiles at a time: a tile and that of the other matrix, or else two neighbours.
///
/// # Safety
/// As [`one`].
#[inline(always)]
unsafe fn pairs(isa: Isa, input: &Input, p: &Product, tiles: Range<usize>, past: bool) {
    let pair = Pair::new(input, p.matrix, p.other().unwrap_or(p.matrix));
    let mut sums = [Sums::new(), Sums::new()];
    for (block, tokens) in p.tokens.chunks(TOKEN_BLOCK).enumerate() {
        let first = block * TOKEN_BLOCK;
        for tile in tiles.clone().step_by(if p.up.is_some() { 1 } else { 2 }) {
            // The last tile of an odd number has no neighbour.
            let next = match p.up {
                Some(up) => up.matrix.map(|_| tile),
                None => Some(tile + 1).filter(|&next| next < tiles.end),
            };
            let (a, b) = pair.times(isa, (tile, next), (p.first + first, tokens), &mut sums);
            add_bias(p.bias, tile, a);
            match (p.up, next) {
                (Some(up), _) => {
                    match up.matrix {
                        Some(_) => add_bias(up.bias, tile, b),
                        None => b.copy_from_slice(a),
                    }
                    let both = a.iter_mut().zip(b.iter());
                    both.for_each(|(gate, of_up)| math::activate(up.activation, gate, of_up));
                }
                (None, Some(next)) => add_bias(p.bias, next, b),
                (None, None) => {}
            }
            // SAFETY: the caller guarantees it.
            unsafe {
                p.write(tile, first, a, past);
                if let (None, Some(next)) = (p.up, next) {
                    p.write(next, first, b, past);
                }
            }
        }
    }
}

/// Two matrices whose tiles are computed together, or one matrix twice.
enum Pair<'a> {
    /// In bfloat16.
    #[cfg(target_arch = "x86_64")]
    Halves([Tiles<'a>; 2], &'a Halves),
    Nested([Tiles<'a>; 2], &'a Activations),
    Each(Weights<'a>, Weights<'a>),
}

impl<'a> Pair<'a> {
    fn new(input: &Input<'a>, matrix: &'a Matrix, other: &'a Matrix) -> Self {
        match (Weights::new(input, matrix), Weights::new(input, other)) {
            (Weights::Nested(m, x), Weights::Nested(other, _)) if m.alike(&other) => {
                #[cfg(target_arch = "x86_64")]
                if let Some(x) = input.halves {
                    return Pair::Halves([m, other], x);
                }
                Pair::Nested([m, other], x)
            }
            (m, other) => Pair::Each(m, other),
        }
    }

    /// The sums of a tile, and of a tile of the other matrix if `next` is set.
    #[inline(always)]
    fn times<'s>(
        &self,
        isa: Isa,
        (tile, next): (usize, Option<usize>),
        (first, tokens): (usize, &[u32]),
        sums: &'s mut [Sums; 2],
    ) -> (&'s mut [[f32; TILE_ROWS]], &'s mut [[f32; TILE_ROWS]]) {
        let n = tokens.len();
        #[cfg(target_arch = "x86_64")]
        if let Pair::Halves([m, other], x) = self {
            nested::pair_times(isa, [(m, tile), (other, next.unwrap_or(tile))], x, (first, n), sums);
            let [a, b] = sums;
            return (&mut a.0[..n], &mut b.0[..n]);
        }
        let [a, b] = sums;
        let (a, b) = (a.cleared(n), b.cleared(n));
        match self {
            #[cfg(target_arch = "x86_64")]
            Pair::Halves(..) => unreachable!("returned above"),
            Pair::Nested([m, other], x) => match next {
                Some(next) => {
                    nested::times_two(isa, [(m, tile), (other, next)], x, first, [&mut *a, &mut *b]);
                }
                None => nested::times(isa, m, tile, x, first, a),
            },
            Pair::Each(m, other) => {
                m.tile_times(isa, tile, (first, tokens), a);
                if let Some(next) = next {
                    other.tile_times(isa, next, (first, tokens), b);
                }
            }
        }
        (a, b)
    }
}

/// A matrix and its input, prepared for many tiles.
enum Weights<'a> {
    Nested(Tiles<'a>, &'a Activations),
    F32 { rows: usize, cols: usize, data: &'a [f32], x: &'a [f32] },
}

impl<'a> Weights<'a> {
    fn new(input: &Input<'a>, matrix: &'a Matrix) -> Weights<'a> {
        match matrix {
            Matrix::Nested(m) => {
                Weights::Nested(Tiles::new(m), if m.shape().group == 32 { input.by_32 } else { input.by_64 })
            }
            Matrix::F32 { rows, cols, data } => {
                Weights::F32 { rows: *rows, cols: *cols, data, x: input.plain }
            }
        }
    }

    #[inline(always)]
    fn tile_times(
        &self,
        isa: Isa,
        tile: usize,
        (first, tokens): (usize, &[u32]),
        sums: &mut [[f32; TILE_ROWS]],
    ) {
        match *self {
            Weights::Nested(ref m, x) => nested::times(isa, m, tile, x, first, sums),
            Weights::F32 { rows, cols, data, x } => {
                let first = tile * TILE_ROWS;
                let n = TILE_ROWS.min(rows - first);
                plain::tile_times(isa, &data[first * cols..(first + n) * cols], cols, x, tokens, sums);
            }
        }
    }
}
