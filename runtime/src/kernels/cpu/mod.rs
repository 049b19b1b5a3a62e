//! The CPU backend.

mod activations;
mod aligned;
mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod backend;
mod conv;
mod cores;
mod delta;
mod dispatch;
mod halves;
mod heads;
mod isa;
mod kv;
mod lanes;
mod lines;
mod math;
#[cfg(target_arch = "aarch64")]
mod neon;
mod nested;
mod plain;
mod pool;
mod product;
mod quantized;
mod rows;
mod scalar;
mod scratch;
#[cfg(test)]
mod tests;
mod tiles;
mod warm;

pub use isa::Isa;

use super::{ExpertJob, Feed, MANY, Observer, RopeTable};
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::quant::{Matrix, Rotation};
use crate::telemetry::Trace;
pub use kv::CpuKv;
use pool::Pool;
use product::{Input, Out, Product, Up};
pub use scratch::ScratchShape;
use scratch::{Inputs, Scratch, turn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Slots of routed experts computed together: bounds the scratch memory of a prefill.
const SLOTS_AT_ONCE: usize = 1024;

/// Options of a [`CpuBackend`].
#[derive(Clone, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the caller's included; 0 means one per core (of the list, if given).
    pub threads: usize,
    /// Instruction set; by default the best that the machine has.
    pub isa: Option<Isa>,
    /// Cores to run on, by the system's numbers. They apply to the backend's threads and, from its first
    /// operation on, to every thread that calls it. Linux and Android only.
    pub cores: Option<Vec<usize>>,
    /// Keys and values in single precision, which is the reference; otherwise in half precision.
    pub kv_single: bool,
    /// Receives spans of each thread's work.
    pub trace: Option<Arc<Trace>>,
}

/// The CPU backend.
pub struct CpuBackend {
    pool: Pool,
    isa: Isa,
    kv_single: bool,
    scratch: Mutex<Scratch>,
    /// `0..tokens`: the slots of a dense block.
    slots: Mutex<Vec<u32>>,
    observer: OnceLock<Arc<dyn Observer>>,
    /// Bytes of weights that are prefetched to the last-level cache.
    warm_bytes: usize,
}

/// Cores that this process may use.
fn available() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The rotations of one layer's experts: of their inputs, and of their hidden values.
fn rotations(jobs: &[ExpertJob]) -> [Option<Rotation>; 2] {
    let all = jobs.iter().map(|j| [j.expert.gate(), &j.expert.up, &j.expert.down].map(Matrix::rotation));
    let [gate, _, down] = all.clone().next().unwrap_or_default();
    assert!(all.into_iter().all(|of| of == [gate, gate, down]), "experts of a layer are rotated alike");
    [gate, down]
}

impl CpuBackend {
    /// Starts the threads.
    ///
    /// # Errors
    /// `Invalid` for an absurd number of threads or a core that does not exist; `Unsupported` for a list of cores if
    /// the system cannot bind threads.
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
        log::debug!("CPU: {isa}, {threads} threads");
        Ok(CpuBackend {
            pool: Pool::new(threads, options.cores, options.trace),
            isa,
            kv_single,
            scratch: Mutex::default(),
            slots: Mutex::default(),
            observer: OnceLock::new(),
            // The other half is for experts, which pass through the cache.
            warm_bytes: warm::last_cache_bytes() / 2,
        })
    }

    /// Reports the inputs of every product to `observer` from now on. Only the first observer is kept.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// Threads that share the work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Reads all of `words` once, on all threads, and returns a mixture of them. For measuring the memory bandwidth.
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
                        // Not a plain sum: compilers would reorder it and gather a lane's words from far apart.
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

    /// Several products of one input in one job. The outputs must be distinct and exclusively borrowed.
    #[allow(unsafe_code)]
    fn products<'a>(
        &self,
        s: &mut Inputs,
        x: (&[f32], usize, usize),
        many: bool,
        order: Option<(&[u32], u64)>,
        count: usize,
        product: &(dyn Fn(usize) -> Product<'a> + Sync),
    ) {
        let (pool, isa) = (&self.pool, self.isa);
        let any = |used: &dyn Fn(&Matrix) -> bool| {
            (0..count).map(product).any(|p| used(p.matrix) || p.other().is_some_and(used))
        };
        let halves = many && isa.halves();
        if halves && any(&|m| matches!(m, Matrix::Nested(_))) {
            s.halves.fill(pool, isa, x.0, x.1, x.2, order.map(|(order, _)| order));
        }
        for (group, plain, routed) in
            [(32, &mut s.by_32, &mut s.routed_32), (64, &mut s.by_64, &mut s.routed_64)]
        {
            if halves || !any(&|m| matches!(m, Matrix::Nested(m) if m.shape().group == group)) {
                continue;
            }
            match order {
                Some(order) => routed.put(pool, isa, x, group, order),
                None => quantized::quantize(pool, isa, x, group, plain),
            }
        }
        let input = Input {
            plain: x.0,
            by_32: if order.is_some() { s.routed_32.read() } else { &s.by_32 },
            by_64: if order.is_some() { s.routed_64.read() } else { &s.by_64 },
            halves: halves.then_some(&s.halves),
        };
        // SAFETY: every caller in this file makes the outputs from `&mut` buffers that it holds across the call, with
        // one product per buffer, or products whose destination rows (slots) are disjoint.
        unsafe { product::run(pool, isa, &input, count, product) }
    }

    /// Reports the rows of `x` that each job's matrix multiplies to the observer, if there is one.
    fn show<'a>(
        &self,
        jobs: &[ExpertJob],
        of: fn(&Expert) -> &Matrix,
        x: &[f32],
        rows: &dyn Fn(usize) -> &'a [u32],
    ) {
        let Some(observer) = self.observer.get() else { return };
        for (i, job) in jobs.iter().enumerate() {
            observer.inputs(of(job.expert), x, &mut rows(i).iter().map(|&row| row as usize));
        }
    }

    /// Gate, up, activation and down of several experts, each for its own tokens. `name` identifies the
    /// inputs, as [`Routed::inputs`](super::Routed) does.
    fn feed_forward(
        &self,
        x: &[f32],
        (rows, many, name): (usize, bool, u64),
        top_k: usize,
        feed: &Feed,
        jobs: &[ExpertJob],
        out: &mut [f32],
    ) {
        let Some(first) = jobs.first() else { return };
        let (d, ff) = (first.expert.up.cols(), first.expert.up.rows());
        let [rotation, hidden_rotation] = rotations(jobs);
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { inputs, turned, gate, tokens, .. } = &mut *scratch;
        let slots: usize = jobs.iter().map(|j| j.slots.len()).sum();
        gate.reserve(slots * ff);
        // Each job's tokens, and its rows in `gate`.
        tokens.clear();
        tokens.reserve_exact(2 * slots);
        tokens.extend(jobs.iter().flat_map(|j| j.slots).map(|&s| s / top_k as u32));
        tokens.extend(0..slots as u32);
        let (token_of, row_of) = tokens.split_at(slots);
        let range = |i: usize| {
            let from: usize = jobs[..i].iter().map(|j| j.slots.len()).sum();
            from..from + jobs[i].slots.len()
        };
        let biases = |i: usize| feed.biases.map(|all| all.of(jobs[i].index, ff, d));
        self.show(jobs, Expert::gate, x, &|i| &token_of[range(i)]);
        let x = match rotation {
            Some(rotation) => {
                self.pool.operation("rotation");
                turned.put(&self.pool, self.isa, (x, rows), rotation, name);
                turned.read()
            }
            None => x,
        };
        self.pool.operation("gate and up");
        // Kernels take consecutive tokens: a single one, a dense block's, or a copy in the order of the jobs.
        // Inputs with a name are always copied, even a single row: they were quantized before and are reused.
        let in_a_row = |i: usize| token_of[range(i)].windows(2).all(|w| w[0] + 1 == w[1]);
        let plain = (name == 0 || rows == 1) && (0..jobs.len()).all(in_a_row);
        let order = if plain { None } else { Some(token_of) };
        let gate_out = Out::new(gate, ff);
        let order_of = order.map(|order| (order, name));
        self.products(inputs, (x, rows, d), many, order_of, jobs.len(), &|i| Product {
            matrix: jobs[i].expert.gate(),
            up: Some(Up {
                matrix: jobs[i].expert.gate.as_ref().map(|_| &jobs[i].expert.up),
                bias: biases(i).map(|[_, up, _]| up),
                activation: feed.activation,
            }),
            tokens: &token_of[range(i)],
            part: None,
            first: if order.is_some() {
                range(i).start
            } else {
                token_of[range(i)].first().map_or(0, |&t| t as usize)
            },
            bias: biases(i).map(|[gate, ..]| gate),
            to: Some(&row_of[range(i)]),
            out: gate_out,
        });
        self.show(jobs, |e| &e.down, gate, &|i| &row_of[range(i)]);
        if let Some(rotation) = hidden_rotation {
            self.pool.operation("rotation");
            rows::each_row(&self.pool, &mut gate[..slots * ff], ff, &|_, row| turn(self.isa, row, rotation));
        }
        self.pool.operation("down");
        let down_out = Out::new(out, d);
        self.products(inputs, (gate, slots, ff), many, None, jobs.len(), &|i| Product {
            matrix: &jobs[i].expert.down,
            up: None,
            tokens: &row_of[range(i)],
            part: None,
            first: range(i).start,
            bias: biases(i).map(|[.., down]| down),
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

    /// Applies rope to `heads` heads of `head_dim` values in `tokens` rows at positions `pos..`.
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
