//! The CPU backend.

mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod cores;
mod halves;
mod isa;
mod kv;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod nested;
mod pool;
mod product;
mod rows;
mod scalar;
mod scratch;
#[cfg(test)]
mod tests;

pub(crate) use halves::MANY;
pub use isa::Isa;

use super::{
    Attention, Backend, Choice, ExpertJob, Linear, Observer, Placing, Projected, RopeTable, Routed, Router,
};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::quant::Matrix;
use crate::telemetry::Trace;
use halves::Halves;
pub use kv::CpuKv;
use pool::Pool;
use product::{Input, Out, Product, Quantized};
pub use scratch::ScratchShape;
use scratch::{Scratch, grow};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Slots of routed experts computed together: bounds the scratch of a prefill.
const SLOTS_AT_ONCE: usize = 1024;

/// How a [`CpuBackend`] is made.
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included; 0 for one per core (of the list, if there is one).
    pub threads: usize,
    /// Instruction set; by default the best that the machine has.
    pub isa: Option<Isa>,
    /// Cores to run on, by the system's numbers: the backend's threads, and every thread that calls it, from its first
    /// operation on. Linux and Android only.
    pub cores: Option<Vec<usize>>,
    /// Keys and values in single precision: the reference. Otherwise in half.
    pub kv_single: bool,
    /// Where to record what each thread does.
    pub trace: Option<Arc<Trace>>,
}

/// The processor.
pub struct CpuBackend {
    pool: Pool,
    isa: Isa,
    kv_single: bool,
    scratch: Mutex<Scratch>,
    /// `0..tokens` of a dense block.
    slots: Mutex<Vec<u32>>,
    observer: OnceLock<Arc<dyn Observer>>,
}

/// Products of one operation at most: their number is not known to be small, but nearly always is.
const OUTS: usize = 4;

/// Cores that the system lets us use.
fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl CpuBackend {
    /// Starts the threads.
    ///
    /// # Errors
    /// `Invalid` for an absurd number of threads or a core that is not there; `Unsupported` for a list of cores where the
    /// system cannot bind threads.
    pub fn new(options: CpuOptions) -> Result<CpuBackend> {
        const MAX_THREADS: usize = 1024;
        if let Some(list) = &options.cores {
            cores::check(list)?;
        }
        let all = || options.cores.as_ref().map_or_else(available, Vec::len);
        let threads = if options.threads == 0 { all() } else { options.threads };
        if threads > MAX_THREADS {
            return Err(Error::Invalid(format!("{threads} threads: up to {MAX_THREADS} are supported")));
        }
        let isa = options.isa.unwrap_or_else(Isa::best);
        let kv_single = options.kv_single;
        Ok(CpuBackend {
            pool: Pool::new(threads, options.cores, options.trace),
            isa,
            kv_single,
            scratch: Mutex::default(),
            slots: Mutex::default(),
            observer: OnceLock::new(),
        })
    }

    /// Shows `observer` the inputs of every product from now on. The first one stays.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Reads all of `words` once, on all threads, and returns a mixture of them: what memory gives to code that does nothing
    /// else.
    pub fn read(&self, words: &[u64]) -> u64 {
        const PART: usize = 64 << 10;
        let total = AtomicU64::new(0);
        self.pool.run(words.len().div_ceil(PART), &|task| {
            let part = &words[task * PART..((task + 1) * PART).min(words.len())];
            let sum = self.isa.run(
                #[inline(always)]
                || {
                    let mut lanes = [0u64; 32];
                    for words in part.chunks_exact(32) {
                        // No plain sum: compilers reorder one until every lane is gathered from far apart.
                        for (lane, word) in lanes.iter_mut().zip(words) {
                            *lane = lane.rotate_left(1) ^ word;
                        }
                    }
                    lanes.into_iter().fold(0, u64::wrapping_add)
                },
            );
            total.fetch_add(sum, Ordering::Relaxed);
        });
        total.into_inner()
    }

    /// Calls `f(row, values)` for every row of `width` values, on all threads.
    fn each_row(&self, x: &mut [f32], width: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        rows::each_row(&self.pool, x, width, &|row, values| {
            self.isa.run(
                #[inline(always)]
                || f(row, values),
            )
        });
    }

    /// Several products of one input, all at once. The callers pass exclusively borrowed, distinct outputs.
    #[allow(unsafe_code)]
    fn products<'a>(
        &self,
        s: (&mut Quantized, &mut Quantized, &mut Halves),
        (x, tokens, cols): (&[f32], usize, usize),
        many: bool,
        order: Option<&[u32]>,
        count: usize,
        product: &(dyn Fn(usize) -> Product<'a> + Sync),
    ) {
        let nested = |m: &Matrix| matches!(m, Matrix::Nested(_));
        let halves = many && self.isa.halves();
        if halves && (0..count).map(product).any(|p| nested(p.matrix) || p.up.is_some_and(nested)) {
            s.2.fill(&self.pool, self.isa, x, tokens, cols, order);
        }
        for (group, quantized) in [(32, &mut *s.0), (64, &mut *s.1)] {
            if halves {
                break;
            }
            let used = |m: &Matrix| matches!(m, Matrix::Nested(m) if m.shape().group == group);
            if (0..count).map(product).any(|p| used(p.matrix) || p.up.is_some_and(used)) {
                quantized.fill(&self.pool, self.isa, x, tokens, cols, group, order);
            }
        }
        let input = Input {
            plain: x,
            by_32: s.0.read(order.is_some()),
            by_64: s.1.read(order.is_some()),
            halves: halves.then_some(&*s.2),
        };
        // SAFETY: every caller in this file makes the outputs from `&mut` buffers that it holds across the call, with
        // one product per buffer, or products whose destination rows (slots) are disjoint.
        unsafe { product::run(&self.pool, self.isa, &input, count, product) }
    }

    /// Gate, up, activation and down of several experts, each over its own tokens.
    fn feed_forward(
        &self,
        x: &[f32],
        (rows, many): (usize, bool),
        top_k: usize,
        jobs: &[ExpertJob],
        out: &mut [f32],
    ) {
        let Some(first) = jobs.first() else { return };
        let (d, ff) = (first.expert.gate.cols(), first.expert.gate.rows());
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { by_32, by_64, halves, gate, tokens, .. } = &mut *scratch;
        let slots: usize = jobs.iter().map(|j| j.slots.len()).sum();
        grow(gate, slots * ff);
        // Each job's tokens, and the rows of `gate` that it owns.
        tokens.clear();
        tokens.reserve_exact(2 * slots);
        tokens.extend(jobs.iter().flat_map(|j| j.slots).map(|&s| s / top_k as u32));
        tokens.extend(0..slots as u32);
        let (token_of, row_of) = tokens.split_at(slots);
        let range = |i: usize| {
            let from: usize = jobs[..i].iter().map(|j| j.slots.len()).sum();
            from..from + jobs[i].slots.len()
        };

        if let Some(observer) = self.observer.get() {
            for (i, job) in jobs.iter().enumerate() {
                observer.inputs(&job.expert.gate, x, &mut token_of[range(i)].iter().map(|&t| t as usize));
            }
        }
        self.pool.operation("gate and up");
        // Kernels take tokens that lie in a row: one, a dense block's, or else a copy in the order of the jobs.
        let in_a_row = |i: usize| token_of[range(i)].windows(2).all(|w| w[0] + 1 == w[1]);
        let order = if (0..jobs.len()).all(in_a_row) { None } else { Some(token_of) };
        let gate_out = Out::new(gate, ff);
        self.products((by_32, by_64, halves), (x, rows, d), many, order, jobs.len(), &|i| Product {
            matrix: &jobs[i].expert.gate,
            up: Some(&jobs[i].expert.up),
            tokens: &token_of[range(i)],
            first: if order.is_some() {
                range(i).start
            } else {
                token_of[range(i)].first().map_or(0, |&t| t as usize)
            },
            bias: None,
            to: Some(&row_of[range(i)]),
            out: gate_out,
        });
        if let Some(observer) = self.observer.get() {
            for (i, job) in jobs.iter().enumerate() {
                observer.inputs(&job.expert.down, gate, &mut range(i));
            }
        }
        self.pool.operation("down");
        let down_out = Out::new(out, d);
        self.products((by_32, by_64, halves), (gate, slots, ff), many, None, jobs.len(), &|i| Product {
            matrix: &jobs[i].expert.down,
            up: None,
            tokens: &row_of[range(i)],
            first: range(i).start,
            bias: None,
            to: Some(jobs[i].slots),
            out: down_out,
        });
    }

    /// Writes keys and values of `tokens` positions from `pos` on.
    pub fn write_kv(&self, kv: &mut CpuKv, pos: usize, tokens: usize, k: &[f32], v: &[f32]) {
        kv.write(pos, tokens, k, v);
    }

    /// The norm of each row, in place.
    fn rms_norm_in_place(&self, x: &mut [f32], weight: &[f32], eps: f32, rows: usize) {
        let n = weight.len();
        self.pool.operation("norm");
        self.each_row(&mut x[..rows * n], n, &|_, x| math::rms_norm_in_place(x, weight, eps));
    }

    /// Rotates `heads` heads of `head_dim` values of `tokens` rows, which stand at positions `pos..`.
    fn rope(
        &self,
        x: &mut [f32],
        pos: usize,
        tokens: usize,
        heads: usize,
        head_dim: usize,
        table: &RopeTable,
    ) {
        let half = table.dims / 2;
        self.pool.operation("rope");
        self.each_row(&mut x[..tokens * heads * head_dim], heads * head_dim, &|t, row| {
            let at = (pos + t) * half;
            let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
            row.chunks_exact_mut(head_dim).for_each(|head| math::rotate(head, cos, sin));
        });
    }
}

/// Limits values to `±limit`.
fn clamp(x: &mut [f32], limit: f32) {
    x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
}

impl Backend for CpuBackend {
    type Buf = Vec<f32>;
    type Kv = CpuKv;

    fn name(&self) -> String {
        let threads = self.threads();
        format!("CPU {}, {threads} thread{}", self.isa, if threads == 1 { "" } else { "s" })
    }

    fn alloc(&self, len: usize) -> Result<Vec<f32>> {
        kv::zeroed(len)
    }

    fn upload(&self, dst: &mut Vec<f32>, at: usize, src: &[f32]) {
        dst[at..at + src.len()].copy_from_slice(src);
    }

    fn download(&self, src: &Vec<f32>, at: usize, dst: &mut [f32]) -> Result<()> {
        dst.copy_from_slice(&src[at..at + dst.len()]);
        Ok(())
    }

    fn copy(&self, src: &Vec<f32>, at: usize, len: usize, dst: &mut Vec<f32>) {
        dst[..len].copy_from_slice(&src[at..at + len]);
    }

    fn alloc_kv(&self, capacity: usize, heads: usize, head_dim: usize) -> Result<CpuKv> {
        CpuKv::new(capacity, heads, head_dim, self.kv_single)
    }

    fn embed(&self, table: &Matrix, tokens: &[u32], out: &mut Vec<f32>) {
        let cols = table.cols();
        self.pool.operation("embedding");
        self.each_row(&mut out[..tokens.len() * cols], cols, &|i, out| match table {
            Matrix::F32 { data, .. } => out.copy_from_slice(&data[tokens[i] as usize * cols..][..cols]),
            Matrix::Nested(m) => m.dequantize_row(tokens[i] as usize, out),
        });
    }

    fn rms_norm(&self, x: &Vec<f32>, weight: &[f32], eps: f32, rows: usize, out: &mut Vec<f32>) {
        let n = weight.len();
        self.pool.operation("norm");
        self.each_row(&mut out[..rows * n], n, &|row, out| {
            math::rms_norm(&x[row * n..][..n], weight, eps, out)
        });
    }

    fn linear(&self, x: &Vec<f32>, tokens: usize, outs: &mut [Linear<'_, Vec<f32>>]) {
        let Some(cols) = outs.first().map(|l| l.matrix.cols()) else { return };
        if let Some(observer) = self.observer.get() {
            outs.iter().for_each(|l| observer.inputs(l.matrix, x, &mut (0..tokens)));
        }
        self.pool.operation("dense product");
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { by_32, by_64, halves, tokens: all, .. } = &mut *scratch;
        all.clear();
        all.reserve_exact(tokens);
        all.extend(0..tokens as u32);
        for outs in outs.chunks_mut(OUTS) {
            let mut parts = [None; OUTS];
            for (part, l) in parts.iter_mut().zip(&mut *outs) {
                *part = Some((l.matrix, l.bias, Out::new(l.out, l.matrix.rows())));
            }
            let (count, all): (_, &[u32]) = (outs.len(), all);
            let many = tokens >= MANY;
            self.products((by_32, by_64, halves), (x, tokens, cols), many, None, count, &|i| {
                let (matrix, bias, out) = parts[i].expect("one part for each output");
                Product { matrix, up: None, tokens: all, first: 0, bias, to: None, out }
            });
        }
    }

    fn place(
        &self,
        x: Projected<'_, Vec<f32>>,
        how: &Placing<'_>,
        pos: usize,
        tokens: usize,
        kv: &mut CpuKv,
        rotated: &mut Vec<f32>,
    ) {
        let Projected { q, k, v } = x;
        let (q_len, kv_len) = (tokens * how.heads * how.head_dim, tokens * how.kv_heads * how.head_dim);
        if let Some(weight) = how.q_norm {
            self.rms_norm_in_place(q, weight, how.eps, q_len / weight.len());
        }
        if let Some(weight) = how.k_norm {
            self.rms_norm_in_place(k, weight, how.eps, kv_len / weight.len());
        }
        if let Some(limit) = how.limit {
            clamp(&mut q[..q_len], limit);
            clamp(&mut k[..kv_len], limit);
            clamp(&mut v[..kv_len], limit);
        }
        self.rope(q, pos, tokens, how.heads, how.head_dim, how.rope);
        self.rope(k, pos, tokens, how.kv_heads, how.head_dim, how.rope);
        self.write_kv(kv, pos, tokens, k, v);
        std::mem::swap(q, rotated);
    }

    fn attention(
        &self,
        q: &Vec<f32>,
        kv: &CpuKv,
        pos: usize,
        tokens: usize,
        shape: &Attention,
        out: &mut Vec<f32>,
    ) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool.operation("attention");
        attention::attend(&self.pool, self.isa, &mut scratch.partials, q, kv, pos, tokens, shape, out);
    }

    fn route(&self, logits: &Vec<f32>, tokens: usize, router: &Router, out: &mut Vec<Choice>) -> Result<()> {
        out.clear();
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { weights, order, .. } = &mut *scratch;
        grow(weights, router.experts);
        order.clear();
        order.reserve_exact(router.experts);
        for logits in logits[..tokens * router.experts].chunks_exact(router.experts) {
            weights.copy_from_slice(logits);
            self.isa.run(
                #[inline(always)]
                || math::softmax(weights),
            );
            order.clear();
            order.extend(0..router.experts as u32);
            // By logit, not by weight: weights that underflow would tie. `total_cmp` orders NaN as well.
            let by_logit =
                |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
            if router.top_k < order.len() {
                order.select_nth_unstable_by(router.top_k, by_logit);
            }
            order.truncate(router.top_k);
            order.sort_unstable_by(by_logit);
            let sum: f32 = order.iter().map(|&e| weights[e as usize]).sum();
            let scale = if router.renormalize && sum > 0.0 { router.scale / sum } else { router.scale };
            out.extend(order.iter().map(|&expert| Choice { expert, gate: weights[expert as usize] * scale }));
        }
        Ok(())
    }

    fn ffn(&self, x: &Vec<f32>, tokens: usize, expert: &Expert, out: &mut Vec<f32>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clear();
        slots.reserve_exact(tokens);
        slots.extend(0..tokens as u32);
        for slots in slots.chunks(SLOTS_AT_ONCE) {
            self.feed_forward(x, (tokens, tokens >= MANY), 1, &[ExpertJob { index: 0, expert, slots }], out);
        }
    }

    fn experts(&self, x: &Vec<f32>, of: Routed, jobs: &[ExpertJob<'_>], slots: &mut Vec<f32>) {
        let top_k = of.top_k;
        let Some(first) = jobs.first() else { return };
        let rows = x.len() / first.expert.gate.cols();
        let highest = |j: &ExpertJob| j.slots.last().map_or(0, |&s| s as usize / top_k + 1);
        let rows = jobs.iter().map(highest).max().unwrap_or(0).min(rows);
        let mut from = 0;
        while from < jobs.len() {
            let (mut to, mut n) = (from, 0);
            while to < jobs.len() && (to == from || n + jobs[to].slots.len() <= SLOTS_AT_ONCE) {
                n += jobs[to].slots.len();
                to += 1;
            }
            self.feed_forward(x, (rows, of.tokens >= MANY), top_k, &jobs[from..to], slots);
            from = to;
        }
    }

    fn combine(&self, slots: &Vec<f32>, choices: &[Choice], top_k: usize, d: usize, out: &mut Vec<f32>) {
        let tokens = choices.len() / top_k;
        self.pool.operation("weighted sum");
        self.each_row(&mut out[..tokens * d], d, &|t, out| {
            out.fill(0.0);
            // A gate of zero is an expert that was not computed: its row holds whatever was there.
            for slot in (t * top_k..(t + 1) * top_k).filter(|&slot| choices[slot].gate != 0.0) {
                math::axpy::<false>(choices[slot].gate, &slots[slot * d..][..d], out);
            }
        });
    }

    fn gate_rows(&self, x: &mut Vec<f32>, gate: &Vec<f32>, rows: usize, d: usize) {
        for (x, gate) in x[..rows * d].chunks_exact_mut(d).zip(gate) {
            let factor = 1.0 / (1.0 + (-gate).exp());
            x.iter_mut().for_each(|x| *x *= factor);
        }
    }

    fn add(&self, x: &mut Vec<f32>, y: &Vec<f32>, len: usize) {
        // Pieces for the threads; what is short or of an odd length stays whole.
        const PIECE: usize = 1024;
        let piece = if len.is_multiple_of(PIECE) { PIECE } else { len };
        if len > 0 {
            self.pool.operation("residual");
            self.each_row(&mut x[..len], piece, &|i, x| {
                x.iter_mut().zip(&y[i * piece..][..piece]).for_each(|(x, y)| *x += y);
            });
        }
    }
}
