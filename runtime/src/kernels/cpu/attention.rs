//! Causal attention over the KV cache.
//!
//! Keys are stored transposed in blocks of 16 positions, so that 16 scores are one vector and nothing is
//! summed across lanes. Values are stored position after position. The softmax runs online over tiles of 64
//! positions, aligned to absolute positions. So a query row gets the same sequence of operations alone and
//! among others, and a masked tile changes nothing. For one token, threads share the chunks of a long cache,
//! and the chunks' results are merged in order.
#![allow(unsafe_code)]

mod loops;

use super::aligned::grow;
use super::dispatch::with_lanes;
use super::isa::Isa;
use super::kv::{BLOCK, CpuKv, Store, TILE};
use super::lanes::{Cell, Lanes};
use super::lines::ask;
use super::math;
use super::pool::Pool;
use super::rows::Rows;
use crate::kernels::Attention;
use half::f16;
use loops::{mix, parts, weights};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Positions of a chunk, a multiple of `TILE`.
const CHUNK: usize = 1024;

/// Query rows (tokens times heads that share a key head) per block.
const ROWS: usize = 32;

/// Rows that share a load of keys or values: the maximum, and for small counts. With more rows, fewer
/// conversions from half precision are needed.
const SHARED: usize = 8;
const FEW: usize = 4;

/// A thread's working memory for one block of rows.
#[derive(Default)]
struct Work {
    /// Queries times the scale, `[ROWS, head_dim]`.
    q: Vec<f32>,
    /// Scores, then weights, `[ROWS, TILE]`.
    scores: Vec<f32>,
    chunk: State,
    total: State,
}

/// An unfinished softmax: per row the largest score, the sum of weights relative to it, and the weighted values.
#[derive(Default)]
struct State {
    max: Vec<f32>,
    sum: Vec<f32>,
    /// `[rows, v_dim]`.
    acc: Vec<f32>,
}

impl State {
    fn reset(&mut self, rows: usize, dim: usize) {
        grow(&mut self.max, rows);
        self.max.fill(f32::NEG_INFINITY);
        grow(&mut self.sum, rows);
        self.sum.fill(0.0);
        grow(&mut self.acc, rows * dim);
        self.acc.fill(0.0);
    }

    fn reserve(&mut self, rows: usize, dim: usize) {
        at_least(&mut self.max, rows);
        at_least(&mut self.sum, rows);
        at_least(&mut self.acc, rows * dim);
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        4 * (self.max.capacity() + self.sum.capacity() + self.acc.capacity())
    }
}

/// Grows to at least `len` values.
fn at_least(v: &mut Vec<f32>, len: usize) {
    let more = len.saturating_sub(v.len());
    v.reserve_exact(more);
}

/// Merges a chunk's row into the total.
#[inline(always)]
fn merge(max: &mut f32, sum: &mut f32, acc: &mut [f32], other: (f32, f32, &[f32])) {
    let (other_max, other_sum, other_acc) = other;
    if other_max == f32::NEG_INFINITY {
        return;
    }
    let top = if other_max > *max { other_max } else { *max };
    let (mine, theirs) = (math::exp(*max - top), math::exp(other_max - top));
    *max = top;
    *sum = *sum * mine + other_sum * theirs;
    for (a, b) in acc.iter_mut().zip(other_acc) {
        *a = *a * mine + b * theirs;
    }
}

/// The final factor and divisor for the weighted values. A sink has a weight but no value.
fn ending(max: f32, sum: f32, sink: Option<f32>) -> (f32, f32) {
    let Some(sink) = sink else { return (1.0, sum) };
    let top = if sink > max { sink } else { max };
    let mine = math::exp(max - top);
    (mine, sum * mine + math::exp(sink - top))
}

/// One operation, shared by its tasks.
struct Call<'a> {
    q: &'a [f32],
    kv: &'a CpuKv,
    pos: usize,
    shape: Attention<'a>,
}

impl Call<'_> {
    /// The sink of a row: `row` counts query heads within one key head.
    fn sink(&self, head: usize, row: usize) -> Option<f32> {
        self.shape.sinks.map(|sinks| sinks[head * self.share() + row])
    }

    fn share(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// The first and last position that token `t` attends to.
    fn seen(&self, t: usize) -> (usize, usize) {
        let last = self.pos + t;
        (self.shape.window.map_or(0, |w| (last + 1).saturating_sub(w)), last)
    }
}

impl Work {
    /// Makes room for a block of `rows` rows.
    fn reserve(&mut self, rows: usize, [dim, v_dim]: [usize; 2]) {
        let whole = rows.next_multiple_of(SHARED);
        self.q.clear();
        self.q.reserve_exact(whole * dim);
        at_least(&mut self.scores, whole.max(ROWS) * TILE);
        self.chunk.reserve(rows, v_dim);
        self.total.reserve(rows, v_dim);
    }

    #[cfg(test)]
    fn held(&self) -> usize {
        4 * (self.q.capacity() + self.scores.capacity()) + self.chunk.held() + self.total.held()
    }
}

/// Buffers that attention keeps between operations.
#[derive(Default)]
pub(super) struct Attending {
    /// Partial results of a single token per (key head, chunk): `[v_dim + 2]` for each row.
    partials: Vec<f32>,
    /// One per thread number.
    work: Vec<Mutex<Work>>,
}

impl Attending {
    /// Makes room for blocks of `rows` rows on every thread, since any thread may run such a task.
    fn reserve(&mut self, pool: &Pool, rows: usize, dims: [usize; 2]) {
        self.work.resize_with(pool.numbers(), Mutex::default);
        for work in &mut self.work {
            work.get_mut().unwrap_or_else(PoisonError::into_inner).reserve(rows, dims);
        }
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let work = |w: &Mutex<Work>| w.lock().unwrap_or_else(PoisonError::into_inner).held();
        4 * self.partials.capacity() + self.work.iter().map(work).sum::<usize>()
    }
}

/// An upper bound for the bytes of partial results of `heads` heads and of the working memory of `threads` threads.
pub(super) fn scratch_bytes(heads: usize, dim: usize, context: usize, threads: usize) -> usize {
    let partials = heads * (context.div_ceil(CHUNK) + 1) * (dim + 2);
    let rows = ROWS.max(heads).next_multiple_of(SHARED);
    let work = rows * dim + rows * TILE + 2 * rows * (dim + 2);
    let halves = 2 * heads * dim;
    4 * partials + threads * (4 * work + halves)
}

/// `out[t, h] = Σ_p softmax_p(q[t, h] · k[p] · scale) v[p]`.
#[allow(clippy::too_many_arguments)]
pub(super) fn attend(
    pool: &Pool,
    isa: Isa,
    scratch: &mut Attending,
    q: &[f32],
    kv: &CpuKv,
    pos: usize,
    tokens: usize,
    shape: &Attention,
    out: &mut [f32],
) {
    let call = Call { q, kv, pos, shape: *shape };
    let (dim, v_dim, share) = (shape.head_dim, kv.v_dim, call.share());
    assert!(out.len() >= tokens * shape.heads * v_dim && q.len() >= tokens * shape.heads * dim);
    assert!(kv.heads == shape.kv_heads && kv.head_dim == dim);
    let (first, last) = call.seen(0);
    assert!((last + tokens - 1) / TILE - first / TILE < kv.capacity / TILE, "tiles would share places");
    let chunks = first / CHUNK..last / CHUNK + 1;
    let rows = Rows::new(out, share * v_dim);
    // Reserve for the whole cache at once, so that no token allocates when the context grows.
    if kv.capacity > CHUNK {
        scratch.partials.clear();
        // A window may begin and end within a chunk.
        let most = kv.capacity.div_ceil(CHUNK) + usize::from(shape.window.is_some());
        scratch.partials.reserve_exact(shape.heads * most * (v_dim + 2));
    }
    let per_block = (ROWS / share).max(1);
    scratch.reserve(pool, per_block.min(tokens) * share, [dim, v_dim]);
    match tokens {
        1 if chunks.len() > 1 => attend_one(pool, isa, scratch, &call, chunks, &rows),
        _ => attend_many(pool, isa, scratch, &call, (tokens, per_block), &rows),
    }
}

/// One token that attends to several chunks: each chunk is a task, and a head's results are merged in order.
fn attend_one(
    pool: &Pool,
    isa: Isa,
    scratch: &mut Attending,
    call: &Call,
    chunks: Range<usize>,
    rows: &Rows,
) {
    let (shape, dim, share) = (&call.shape, call.kv.v_dim, call.share());
    let Attending { partials, work } = scratch;
    let width = share * (dim + 2);
    grow(partials, shape.kv_heads * chunks.len() * width);
    let parts = Rows::new(partials, width);
    pool.run_with(shape.kv_heads * chunks.len(), work, &|task, w| {
        let (head, chunk) = (task / chunks.len(), task % chunks.len());
        // SAFETY: every task has its own row.
        let part = unsafe { parts.row(task) };
        load(call, head, 0, 1, w);
        w.chunk.reset(share, dim);
        run_chunk(isa, call, head, (0, 1), chunks.start + chunk, w);
        let (maxes, rest) = part.split_at_mut(share);
        let (sums, acc) = rest.split_at_mut(share);
        maxes.copy_from_slice(&w.chunk.max);
        sums.copy_from_slice(&w.chunk.sum);
        acc.copy_from_slice(&w.chunk.acc);
    });
    for head in 0..shape.kv_heads {
        // SAFETY: the tasks have ended.
        let out = unsafe { rows.row(head) };
        for (row, out) in out.chunks_exact_mut(dim).enumerate() {
            let (mut max, mut sum) = (f32::NEG_INFINITY, 0.0);
            out.fill(0.0);
            for chunk in 0..chunks.len() {
                let part = &partials[(head * chunks.len() + chunk) * width..][..width];
                let acc = &part[2 * share + row * dim..][..dim];
                isa.run(
                    #[inline(always)]
                    || merge(&mut max, &mut sum, out, (part[row], part[share + row], acc)),
                );
            }
            let (factor, sum) = ending(max, sum, call.sink(head, row));
            out.iter_mut().for_each(|x| *x = *x * factor / sum);
        }
    }
}

/// Tokens in blocks of `per_block`: each (block, key head) is a task.
fn attend_many(
    pool: &Pool,
    isa: Isa,
    scratch: &mut Attending,
    call: &Call,
    (tokens, per_block): (usize, usize),
    rows: &Rows,
) {
    let (shape, dim, share) = (&call.shape, call.kv.v_dim, call.share());
    let Attending { work, .. } = scratch;
    let blocks = tokens.div_ceil(per_block);
    pool.run_with(blocks * shape.kv_heads, work, &|task, w| {
        // The last blocks attend to the most positions, so they go first.
        let (block, head) = (blocks - 1 - task / shape.kv_heads, task % shape.kv_heads);
        let (from, to) = (block * per_block, ((block + 1) * per_block).min(tokens));
        let n = (to - from) * share;
        load(call, head, from, to, w);
        w.total.reset(n, dim);
        let (first, last) = (call.seen(from).0, call.seen(to - 1).1);
        for chunk in first / CHUNK..last / CHUNK + 1 {
            w.chunk.reset(n, dim);
            run_chunk(isa, call, head, (from, to), chunk, w);
            let (total, part) = (&mut w.total, &w.chunk);
            isa.run(
                #[inline(always)]
                || {
                    for row in 0..n {
                        let other = (part.max[row], part.sum[row], &part.acc[row * dim..][..dim]);
                        let acc = &mut total.acc[row * dim..][..dim];
                        merge(&mut total.max[row], &mut total.sum[row], acc, other);
                    }
                },
            );
        }
        for t in from..to {
            // SAFETY: (token, key head) pairs have disjoint rows, and each pair belongs to one task.
            let out = unsafe { rows.row(t * shape.kv_heads + head) };
            for (h, out) in out.chunks_exact_mut(dim).enumerate() {
                let row = (t - from) * share + h;
                let acc = &w.total.acc[row * dim..][..dim];
                let (factor, sum) = ending(w.total.max[row], w.total.sum[row], call.sink(head, h));
                out.iter_mut().zip(acc).for_each(|(o, a)| *o = a * factor / sum);
            }
        }
    });
}

/// Loads the scaled queries of tokens `from..to` for a key head.
fn load(call: &Call, head: usize, from: usize, to: usize, w: &mut Work) {
    let (share, dim, heads) = (call.share(), call.shape.head_dim, call.shape.heads);
    // Computes whole runs of SHARED rows; the surplus is discarded.
    let rows = ((to - from) * share).next_multiple_of(SHARED);
    w.q.clear();
    w.q.reserve_exact(rows * dim);
    for t in from..to {
        let q = &call.q[t * heads * dim + head * share * dim..][..share * dim];
        w.q.extend(q.iter().map(|q| q * call.shape.scale));
    }
    grow(&mut w.q, rows * dim);
    grow(&mut w.scores, rows.max(ROWS) * TILE);
}

fn run_chunk(isa: Isa, call: &Call, head: usize, tokens: (usize, usize), chunk: usize, w: &mut Work) {
    let [k_at, v_at] = [call.kv.head_dim, call.kv.v_dim].map(|dim| head * call.kv.capacity * dim);
    with_lanes!(isa, L => isa.run(
        #[inline(always)]
        || match &call.kv.store {
            // SAFETY: the machine has the instruction set; `attend` has compared the sizes.
            Store::Half { k, v } => unsafe { chunk_with::<L, f16>(call, &k[k_at..], &v[v_at..], tokens, chunk, w) },
            // SAFETY: as above.
            Store::Single { k, v } => unsafe { chunk_with::<L, f32>(call, &k[k_at..], &v[v_at..], tokens, chunk, w) },
        },
    ));
}

/// Tokens `from..to` over one chunk, into `w.chunk`.
///
/// # Safety
/// The machine has the instructions of `L`. `k` and `v` belong to one key head of a cache that has the
/// chunk's positions. `w` was loaded for these tokens.
#[inline(always)]
unsafe fn chunk_with<L: Lanes, T: Cell>(
    call: &Call,
    k: &[T],
    v: &[T],
    (from, to): (usize, usize),
    chunk: usize,
    w: &mut Work,
) {
    let (share, dim, v_dim) = (call.share(), call.shape.head_dim, call.kv.v_dim);
    let rows = (to - from) * share;
    let end = ((chunk + 1) * CHUNK).min(call.seen(to - 1).1 + 1);
    let start = (chunk * CHUNK).max(call.seen(from).0) / TILE * TILE;
    let State { max, sum, acc } = &mut w.chunk;
    let places = call.kv.capacity;
    assert!(places.is_multiple_of(TILE) && k.len() >= places * dim && v.len() >= places * v_dim);
    assert!(w.q.len() >= rows.next_multiple_of(SHARED) * dim && acc.len() >= rows * v_dim);
    for tile in (start..end).step_by(TILE) {
        let n = TILE.min(end - tile);
        // A tile's positions have consecutive places, because the number of places is a multiple of the tile.
        let at = tile % places;
        let keys = k[at * dim..].as_ptr();
        // Prefetch values while scores are computed, and the next keys while values are mixed. The hardware
        // prefetcher stops at every page: with it alone, a long cache is read at half the speed.
        ask(&v[at * v_dim..(at + n) * v_dim]);
        let mut row = 0;
        while row < rows {
            let q = w.q[row * dim..].as_ptr();
            let out = w.scores[row * TILE..].as_mut_ptr();
            // SAFETY: rows of `q` and `scores` exist up to a multiple of SHARED, keys up to a whole tile.
            unsafe {
                row += match rows - row {
                    1 => parts::<L, T, 1, { TILE / BLOCK }>(q, keys, dim, out),
                    2.. if !L::MANY => parts::<L, T, FEW, 1>(q, keys, dim, out),
                    n if n <= FEW => parts::<L, T, FEW, { TILE / BLOCK }>(q, keys, dim, out),
                    _ => parts::<L, T, SHARED, 2>(q, keys, dim, out),
                };
            }
        }
        for row in 0..rows {
            let scores = &mut w.scores[row * TILE..][..TILE];
            let (first, last) = call.seen(from + row / share);
            if first > tile || last < tile + TILE - 1 {
                for (i, score) in scores.iter_mut().enumerate() {
                    if tile + i < first || tile + i > last {
                        *score = f32::NEG_INFINITY;
                    }
                }
            }
            let factor = weights(scores, &mut max[row], &mut sum[row]);
            if factor != 1.0 {
                acc[row * v_dim..][..v_dim].iter_mut().for_each(|a| *a *= factor);
            }
        }
        if tile + TILE < end {
            let next = (tile + TILE) % places;
            ask(&k[next * dim..(next + TILE) * dim]);
        }
        let values = v[at * v_dim..].as_ptr();
        let mut row = 0;
        while row < rows {
            let (p, acc) = (w.scores[row * TILE..].as_ptr(), acc[row * v_dim..].as_mut_ptr());
            // SAFETY: as above; values exist for `n` positions.
            unsafe {
                row += match rows - row {
                    SHARED.. if L::MANY => mix::<L, T, SHARED, 2>(p, values, v_dim, n, acc),
                    FEW.. if L::MANY => mix::<L, T, FEW, 4>(p, values, v_dim, n, acc),
                    FEW.. => mix::<L, T, FEW, 1>(p, values, v_dim, n, acc),
                    _ => mix::<L, T, 1, 4>(p, values, v_dim, n, acc),
                };
            }
        }
    }
}
