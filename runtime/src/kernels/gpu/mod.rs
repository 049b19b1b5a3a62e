//! The GPU backend: WGSL kernels (crate `dollop-shaders`) through wgpu, which only this module uses.
//!
//! Operations are recorded, and submitted when a result is read back or the caller announces a pause. Weights
//! are uploaded at first use and stay on the device. Activations are f32; how products convert them is an
//! option (`variants`). An operation's result does not depend on the rest of the call: the kernels for one
//! token and for many add in the same order.
//!
//! This file owns a device and the memory on it. `backend` has the operations of the trait; `operations`,
//! `attend`, `feed_forward` and `best` implement them.

mod ahead;
mod attend;
mod backend;
mod best;
mod clock;
mod delta;
mod device;
mod experts;
mod feed_forward;
mod heads;
mod kv;
mod operations;
mod options;
mod params;
mod pipelines;
mod prepare;
mod recorder;
mod rotate;
#[cfg(test)]
mod tests;
mod variants;
mod weights;

pub(crate) use device::worth_asking;
pub use device::{AdapterInfo, adapters};
pub use kv::{GpuBuf, GpuKv};
pub use options::GpuOptions;

use super::Routed;
use super::cpu::ScratchShape;
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::quant::Matrix;
use crate::telemetry::{GpuFault, GpuStats};
use device::{Device, Memory};
use dollop_shaders::{MANY, MANY_ROWS, PLAIN_ROWS, ROWS, SINGLE, Variant, WORKGROUP};
use experts::{Experts, Room};
use params::*;
use pipelines::Pipelines;
use recorder::Recorder;
use rotate::Turned;
use std::sync::{Mutex, MutexGuard, PoisonError};
use weights::Weights;

/// The most tokens of one call: their tables fit the ring, and their number fits a dispatch.
pub const MAX_TOKENS: usize = 2048;

/// The only sequence of a call ([`Backend::TOGETHER`](super::Backend::TOGETHER) is 1).
fn only<'s, T>(sequences: &mut (dyn Iterator<Item = T> + 's)) -> T {
    let one = sequences.next().expect("a call has a sequence");
    assert!(sequences.next().is_none(), "calls with several sequences are for other backends");
    one
}

/// The GPU backend.
pub struct GpuBackend {
    gpu: Device,
    kv_single: bool,
    state: Mutex<State>,
}

/// State that operations modify.
struct State {
    recorder: Recorder,
    weights: Weights,
    experts: Experts,
    /// Bound to unused bindings: the first buffer for reading, the others for writing.
    spare: [Memory; 4],
    /// Prepared inputs of products of many tokens.
    prepared: Grown,
    /// Rotated inputs of experts.
    turned: Turned,
    /// Hidden values of feed-forward blocks, `[slots, ff]`; for many tokens in prepared form.
    hidden: Grown,
    /// The same for `up` alone, if a block does not fit one dispatch.
    ups: Grown,
    /// `[tokens, top_k, 2]`.
    choices: Grown,
    /// `[top_k]` jobs of one token.
    jobs: Grown,
    /// Attention's partial results of tiles, `[heads, tiles, values]`.
    partials: Grown,
    /// Intermediate pairs of the search for the most likely tokens.
    best: [Grown; 2],
}

/// Memory that grows to the requested size.
#[derive(Default)]
struct Grown(Option<GpuBuf>);

impl Grown {
    fn at_least(&mut self, gpu: &Device, len: usize, what: &str) -> Result<&Memory> {
        if self.0.as_ref().is_none_or(|b| b.len < len) {
            self.0 = None;
            self.0 = Some(GpuBuf { memory: gpu.memory(4 * len as u64, what)?, len });
        }
        Ok(self.get())
    }

    /// The memory of the last [`Grown::at_least`].
    fn get(&self) -> &Memory {
        &self.0.as_ref().expect("was asked for before").memory
    }
}

impl GpuBackend {
    /// Opens an adapter.
    ///
    /// # Errors
    /// `Device` if there is no adapter, or it lacks what the kernels need.
    pub fn new(options: &GpuOptions) -> Result<GpuBackend> {
        let mut gpu = Device::open(options)?;
        let GpuOptions { expert_bytes, routed_layers, level, refinements, .. } = *options;
        let room = Room { bytes: expert_bytes, layers: routed_layers, level, refinements };
        let spare = || gpu.memory(16, "a spare");
        let state = State {
            recorder: Recorder::new(&gpu, options.clock)?,
            weights: Weights::default(),
            experts: Experts::new(&gpu, room)?,
            spare: [spare()?, spare()?, spare()?, spare()?],
            prepared: Grown::default(),
            turned: Turned::default(),
            hidden: Grown::default(),
            ups: Grown::default(),
            choices: Grown::default(),
            jobs: Grown::default(),
            partials: Grown::default(),
            best: Default::default(),
        };
        gpu.max_binding = gpu.max_binding.min(options.binding_bytes.unwrap_or(u64::MAX) & !255);
        gpu.max_groups = gpu.max_groups.min(options.max_groups.unwrap_or(usize::MAX)).max(1);
        Ok(GpuBackend { gpu, kv_single: options.kv_single, state: Mutex::new(state) })
    }

    /// An upper bound for the bytes, on the device and on the host, of a backend's own memory, for any
    /// computation with a model of this shape in chunks of this size: hidden values, choices, tables, uploads in
    /// flight. It excludes weights, buffers and caches that the caller allocates, and the driver's own memory.
    pub fn scratch_bytes(shape: &ScratchShape, vocab: usize, rope_dims: usize) -> usize {
        let s = shape;
        let rows = |cols: usize| prepare::row_words(cols, SINGLE);
        let hidden = s.chunk * (s.top_k * rows(s.ff_routed)).max(rows(s.ff_dense));
        // If a dense block does not fit one dispatch, its hidden values are prepared like other inputs.
        let prepared = s.chunk * rows(s.widest.max(s.ff_dense));
        let turned = [s.d, s.top_k * (s.ff_routed + rows(s.ff_routed))];
        let turned = turned.iter().zip(s.rotated).map(|(&words, is)| if is { s.chunk * words } else { 0 });
        let prepared = prepared + turned.sum::<usize>();
        let choices = 2 * s.chunk * s.top_k + operations::most_jobs(s.experts, s.chunk, s.top_k) * JOB_WORDS;
        let tiles = s.heads * s.context.div_ceil(TILE) * partial_values(s.head_dim.min(params::MAX_HEAD));
        let words =
            hidden + prepared + choices + tiles + vocab + best::most_words(vocab) + s.context * rope_dims;
        4 * words + recorder::RING_BYTES + experts::TABLE_BYTES + device::STAGED_BYTES
    }

    /// Bytes of a matrix on the device.
    pub fn matrix_bytes(m: &Matrix) -> usize {
        weights::bytes(m, weights::tiles(m))
    }

    /// The adapter.
    pub fn adapter(&self) -> &AdapterInfo {
        &self.gpu.info
    }

    /// Counters since the backend was opened.
    pub fn stats(&self) -> GpuStats {
        let state = self.lock();
        let mut stats = state.recorder.stats();
        stats.uploaded_bytes += state.weights.uploaded_bytes;
        stats.upload_waits = self.gpu.upload_waits();
        stats.held_bytes = self.gpu.held();
        stats.pipelines_read_bytes = self.gpu.pipelines().as_ref().map_or(0, Pipelines::read_bytes);
        stats
    }

    /// Writes the kernels compiled so far to the folder of [`GpuOptions::pipelines`], for the next backend on
    /// this adapter. Returns `false` if there is nothing new, no folder, or the adapter has no pipeline cache.
    ///
    /// # Errors
    /// `Io`.
    pub fn save_pipelines(&self) -> Result<bool> {
        let compiled = self.lock().recorder.stats().pipelines;
        match &mut *self.gpu.pipelines() {
            Some(pipelines) if !self.failed() => pipelines.save(compiled),
            _ => Ok(false),
        }
    }

    /// Uploads the matrices of one operation before they are used.
    ///
    /// # Errors
    /// `Device`.
    pub fn bring_matrices(&self, together: &[&Matrix]) -> Result<()> {
        self.lock().weights.place(&self.gpu, together)?;
        self.gpu.check()
    }

    /// Uploads experts of a layer before they are used.
    ///
    /// # Errors
    /// `Device`.
    pub fn bring(&self, of: Routed, experts: &[(u32, &Expert)]) -> Result<()> {
        let State { recorder, experts: held, .. } = &mut *self.lock();
        held.load(&self.gpu, recorder, of, experts)?;
        self.gpu.check()
    }

    /// Gives up the device and everything on it. From now on, all operations that can return an error do.
    pub fn abandon(&self) {
        self.gpu.fail("the device was given up");
        let mut state = self.lock();
        let state = &mut *state;
        state.recorder.forget();
        self.gpu.forget_staged();
        state.weights = Weights::default();
        state.experts.forget();
        state.best = Default::default();
        state.turned = Turned::default();
        for grown in [
            &mut state.prepared,
            &mut state.hidden,
            &mut state.ups,
            &mut state.choices,
            &mut state.jobs,
            &mut state.partials,
        ] {
            *grown = Grown::default();
        }
        self.gpu.device.destroy();
    }

    /// Whether the device has failed for good.
    pub fn failed(&self) -> bool {
        self.gpu.check().is_err()
    }

    /// For tests: the device fails with `fault` after `submissions` more submissions.
    #[doc(hidden)]
    pub fn lose_after(&self, submissions: u64, fault: GpuFault) {
        self.lock().recorder.fault = Some((submissions, fault));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // If a panic poisoned the lock, the recording is between two commands and still valid.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a failure for the next operation that returns errors.
    fn note(&self, result: Result<()>) {
        if let Err(e) = result {
            self.gpu.fail(match e {
                Error::Device(what) => what,
                other => other.to_string(),
            });
        }
    }
}

/// Workgroups for a number of invocations.
fn groups(invocations: usize) -> usize {
    invocations.div_ceil(WORKGROUP as usize)
}

/// Workgroups for `rows` rows of a matrix of `planes` planes, with `tokens` tokens.
fn row_blocks(rows: usize, planes: u32, tokens: usize) -> usize {
    let each = match (tokens, planes) {
        (1, 0) => PLAIN_ROWS,
        (1, _) => ROWS,
        _ => MANY_ROWS,
    };
    rows.div_ceil(each as usize)
}

/// The variant for a number of tokens, and the workgroups along the tokens.
fn by_tokens(planes: u32, tokens: usize) -> (Variant, usize) {
    let tokens_each = if tokens == 1 { 1 } else { MANY };
    (Variant { planes, tokens: tokens_each, ..Variant::default() }, tokens.div_ceil(tokens_each as usize))
}
