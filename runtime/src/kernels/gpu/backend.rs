//! The trait `Backend` on a GPU: every operation takes the lock and is recorded.
//!
//! Most operations cannot return an error. A failure is stored, and the next operation that can returns it.

use super::delta::MAX_KEY;
use super::device::Memory;
use super::params::{MAX_EXPERTS, MAX_HEAD, MAX_TOP_K, MAX_WIDE};
use super::{GpuBackend, GpuBuf, GpuKv, State, best};
use crate::error::Result;
use crate::experts::{Expert, Refinement};
use crate::kernels::{
    Absorbed, Activation, Added, AttendCall, Attention, Backend, Choice, Choosing, ExpertJob, Feed, FeedCall,
    Flow, Gated, GpuInputs, HeadsCall, KvCopy, KvPart, Linear, LinearCall, MAX_BEST, Norm, Placing,
    Projected, Recur, Routed, RoutedBufs, Sequence, SumCall, Uses,
};
use crate::quant::Matrix;
use dollop_shaders::{ADD, COPY, GATE, SOFTPLUS};

impl Backend for GpuBackend {
    type Buf = GpuBuf;
    type Kv = GpuKv;

    fn alloc(&self, len: usize) -> Result<GpuBuf> {
        // Bind groups of freed buffers are dropped before new buffers are allocated.
        self.lock().recorder.forget_gone(&self.gpu);
        Ok(GpuBuf { memory: self.gpu.memory(4 * len as u64, "a buffer of activations")?, len })
    }

    fn upload(&self, dst: &mut GpuBuf, at: usize, src: &[f32]) {
        assert!(at + src.len() <= dst.len, "{} values at {at} of {}", src.len(), dst.len);
        self.lock().recorder.write(&self.gpu, &dst.memory, 4 * at as u64, bytemuck::cast_slice(src));
    }

    fn best(&self, x: &GpuBuf, len: usize, k: usize, out: &mut GpuBuf) -> Result<bool> {
        assert!(len <= x.len && (1..=MAX_BEST).contains(&k) && 2 * k <= out.len, "{k} of {len} values");
        if !best::fits(&self.gpu, len, k) {
            return Ok(false);
        }
        self.lock().best(&self.gpu, &x.memory, len, k, &out.memory).map(|()| true)
    }

    fn copy(&self, src: &GpuBuf, at: usize, len: usize, dst: &mut GpuBuf) {
        self.lock().elementwise(&self.gpu, (COPY, 1.0), &src.memory, at, len, &dst.memory);
    }

    fn alloc_kv(&self, capacity: usize, heads: usize, dims: [usize; 2]) -> Result<GpuKv> {
        self.lock().recorder.forget_gone(&self.gpu);
        GpuKv::new(&self.gpu, capacity, heads, dims, self.kv_single)
    }

    fn copy_kv(&self, copy: KvCopy<'_, GpuKv>, part: &KvPart) -> Result<()> {
        let recorder = &mut self.lock().recorder;
        match copy {
            KvCopy::Out(kv, out) => kv.read(&self.gpu, recorder, part, out),
            KvCopy::In(kv, from) => {
                kv.restore(&self.gpu, recorder, part, from);
                Ok(())
            }
        }
    }

    fn recur(&self, call: Recur<'_, '_, GpuBuf>) {
        let mut state = self.lock();
        self.note(match call {
            Recur::Conv(call) => state.conv(&self.gpu, call),
            Recur::Delta(call) => state.delta(&self.gpu, call),
        });
    }

    fn tail(&self, tokens: usize) -> Option<usize> {
        // With half-precision inputs, a token computed alone gets other bits than among others.
        (self.gpu.variants.inputs != GpuInputs::Half).then_some(1.min(tokens))
    }

    fn embed(&self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut GpuBuf) {
        self.note(self.lock().embed(&self.gpu, table, tokens, scale, &out.memory));
    }

    fn route(
        &self,
        logits: &GpuBuf,
        tokens: usize,
        router: Choosing<'_>,
        out: &mut Vec<Choice>,
    ) -> Result<()> {
        self.lock().route(&self.gpu, &logits.memory, tokens, router, out)
    }

    fn supports(uses: &Uses) -> Result<(), String> {
        for (is, most, what) in [
            (uses.v_dim, MAX_HEAD, "values in a head"),
            (uses.head_dim, MAX_WIDE, "values in a key"),
            (uses.experts, MAX_EXPERTS, "experts in a layer"),
            (uses.top_k, MAX_TOP_K, "experts for a token"),
            (uses.key_dim, MAX_KEY, "values in a key of a delta net"),
        ] {
            if is > most {
                return Err(format!("the model has {is} {what}, and the GPU's kernels take up to {most}"));
            }
        }
        Ok(())
    }

    fn experts(&self, x: &GpuBuf, of: Routed, feed: &Feed<'_>, jobs: &[ExpertJob<'_>], slots: &mut GpuBuf) {
        self.note(self.lock().experts(&self.gpu, &x.memory, of, feed, jobs, &slots.memory));
    }

    fn routed(
        &self,
        bufs: RoutedBufs<'_, GpuBuf>,
        tokens: usize,
        choosing: Choosing<'_>,
        (layer, feed): (usize, &Feed<'_>),
        experts: &[Expert],
    ) -> Result<bool> {
        let router = choosing.router;
        let of = Routed { layer, experts: router.experts, top_k: router.top_k, tokens, inputs: 0 };
        self.lock().routed(&self.gpu, bufs, tokens, choosing, (of, feed), experts)
    }

    fn refine(&self, refinement: &Refinement) -> Result<()> {
        let State { recorder, experts, .. } = &mut *self.lock();
        experts.refine(&self.gpu, recorder, refinement)
    }

    fn read(&self, parts: &mut [(&GpuBuf, usize, &mut [f32])]) -> Result<()> {
        let mut parts: Vec<(&Memory, u64, &mut [u8])> = (parts.iter_mut())
            .map(|(src, at, dst)| {
                assert!(*at + dst.len() <= src.len, "{} values at {at} of {}", dst.len(), src.len);
                (&src.memory, 4 * *at as u64, bytemuck::cast_slice_mut(dst))
            })
            .collect();
        self.lock().recorder.read(&self.gpu, &mut parts)
    }

    fn flow(&self, flow: Flow<'_, '_>) -> Result<()> {
        match flow {
            Flow::Begin => {
                self.lock().recorder.submit(&self.gpu);
                self.gpu.check()
            }
            Flow::HandOver => self.lock().recorder.hand_over(&self.gpu),
            Flow::Soon(_) => Ok(()),
        }
    }

    fn linear(&self, call: LinearCall<'_, '_, GpuBuf>) {
        let LinearCall { x, tokens, norm, outs, times, add } = call;
        match (add, outs) {
            (Some(Added { to, scale }), [Linear { matrix, bias, out }]) if norm.is_none() => {
                debug_assert!(scale == 1.0, "products are added as they are");
                self.linear_add(x, tokens, Linear { matrix, bias: *bias, out }, to);
            }
            (add, []) => {
                let (norm, h) = norm.expect("without products the norm is the result");
                self.norm(x, norm, tokens, h);
                if let Some(Added { to, scale }) = add {
                    let len = tokens * norm.weight.len();
                    self.lock().elementwise(&self.gpu, (ADD, scale), &h.memory, 0, len, &to.memory);
                }
            }
            (add, outs) => {
                assert!(add.is_none(), "one product of what is no norm is added");
                match norm {
                    // Products norm their inputs only without a mean.
                    Some((norm, h)) if norm.bias.is_some() => {
                        self.norm(x, norm, tokens, h);
                        GpuBackend::linear(self, h, tokens, outs);
                    }
                    Some((norm, h)) => self.norm_linear(x, norm, tokens, h, outs),
                    None => GpuBackend::linear(self, x, tokens, outs),
                }
                if let (Some(times), [one]) = (times, outs) {
                    self.lock().gate(&self.gpu, &one.out.memory, one.matrix.rows(), tokens, &times);
                }
            }
        }
    }

    fn attend(&self, call: AttendCall<'_, '_, GpuBuf, GpuKv>) {
        let AttendCall { x, how, tokens: _, sequences, shared, shape, absorbed, gate, out } = call;
        let Sequence { pos, tokens, kv } = super::only(sequences);
        let heads = shape.heads;
        let Projected { q, k, v } = x;
        if let Some(Absorbed { queries: matrix, .. }) = absorbed {
            self.heads(HeadsCall { matrix, heads, x: q, tokens, kept: how.rope.dims, out });
            std::mem::swap(q, out);
        }
        let x = Projected { q: &mut *q, k, v };
        if tokens != 1 || shared || !self.attend_one(&x, how, pos, kv, shape, out) {
            let Projected { q, k, v } = x;
            self.place(Projected { q: &mut *q, k, v }, how, (pos, tokens), (kv, shared), out);
            self.attention(out, kv, pos, tokens, shape, q);
            std::mem::swap(q, out);
        }
        if let Some(Absorbed { values: matrix, .. }) = absorbed {
            self.heads(HeadsCall { matrix, heads, x: out, tokens, kept: 0, out: q });
            std::mem::swap(q, out);
        }
        if let Some(Gated { by, heads: whole, softplus }) = gate {
            let head = absorbed.map_or(kv.v_dim, |of| of.values.rows() / heads);
            let shared = if whole { head } else { 1 };
            let op = if softplus { SOFTPLUS } else { GATE };
            self.lock().gate_heads(&self.gpu, (op, &by.memory), shared, tokens * heads * head, &out.memory);
        }
    }

    fn feed(&self, call: FeedCall<'_, GpuBuf>) {
        let FeedCall { h, tokens, block, activation, gate, y, x } = call;
        if let Some(x) = x {
            return self.ffn_add(h, tokens, (block, activation), gate, y, x);
        }
        self.ffn(h, tokens, (block, activation), y);
        if let Some(gate) = gate {
            self.gate_rows(y, gate, tokens, block.down.rows());
        }
    }

    fn sum(&self, call: SumCall<'_, GpuBuf>) {
        let SumCall { slots, choices, top_k, d, y, x } = call;
        self.combine(slots, choices, top_k, d, y);
        if let Some(x) = x {
            self.add(x, y, choices.len() / top_k * d);
        }
    }
}

/// The steps of these calls.
impl GpuBackend {
    /// The backend's name for display: the adapter's name and API.
    pub fn name(&self) -> String {
        let info = &self.gpu.info;
        format!("GPU {} ({}{})", info.name, info.api, if info.software { ", in software" } else { "" })
    }

    /// Copies `src[at..]` to `dst`, after all earlier operations have finished.
    pub fn download(&self, src: &GpuBuf, at: usize, dst: &mut [f32]) -> Result<()> {
        assert!(at + dst.len() <= src.len, "{} values at {at} of {}", dst.len(), src.len);
        let bytes = bytemuck::cast_slice_mut(dst);
        self.lock().recorder.read(&self.gpu, &mut [(&src.memory, 4 * at as u64, bytes)])
    }

    /// `out = x / sqrt(mean(x²) + eps) · weight` over each of `rows` rows of `weight.len()` values.
    pub fn rms_norm(&self, x: &GpuBuf, weight: &[f32], eps: f32, rows: usize, out: &mut GpuBuf) {
        self.norm(x, Norm::rms(weight, eps), rows, out);
    }

    /// An RMS norm or layer norm of each of `rows` rows.
    pub fn norm(&self, x: &GpuBuf, norm: Norm<'_>, rows: usize, out: &mut GpuBuf) {
        self.note(self.lock().rms_norm(&self.gpu, &x.memory, norm, rows, &out.memory));
    }

    /// Several products of the same `x` (`[tokens, cols]`).
    pub fn linear(&self, x: &GpuBuf, tokens: usize, outs: &mut [Linear<'_, GpuBuf>]) {
        self.note(self.lock().linear(&self.gpu, &x.memory, None, tokens, outs, false));
    }

    /// `h = rms_norm(x)`, and several products of `h`.
    pub fn norm_linear(
        &self,
        x: &GpuBuf,
        norm: Norm<'_>,
        tokens: usize,
        h: &mut GpuBuf,
        outs: &mut [Linear<'_, GpuBuf>],
    ) {
        self.note(self.lock().linear(&self.gpu, &x.memory, Some((norm, &h.memory)), tokens, outs, false));
    }

    /// `x += matrix · y + bias`, added directly.
    pub fn linear_add(&self, y: &GpuBuf, tokens: usize, linear: Linear<'_, GpuBuf>, x: &mut GpuBuf) {
        let Linear { matrix, bias, .. } = linear;
        let mut outs = [Linear { matrix, bias, out: x }];
        self.note(self.lock().linear(&self.gpu, &y.memory, None, tokens, &mut outs, true));
    }

    /// Prepares the queries of `tokens` rows at positions `pos..`, in `rotated`, and writes their keys and
    /// values to the cache, unless those of another layer are `shared`. Overwrites the projections.
    pub fn place(
        &self,
        x: Projected<'_, GpuBuf>,
        how: &Placing<'_>,
        (pos, tokens): (usize, usize),
        (kv, shared): (&mut GpuKv, bool),
        rotated: &mut GpuBuf,
    ) {
        self.note(self.lock().place(&self.gpu, x, how, (pos, tokens), (kv, shared), &rotated.memory));
    }

    /// Causal attention of `tokens` queries at positions `pos..`, each to the positions of `kv` up to its own.
    pub fn attention(
        &self,
        q: &GpuBuf,
        kv: &GpuKv,
        pos: usize,
        tokens: usize,
        shape: &Attention,
        out: &mut GpuBuf,
    ) {
        self.note(self.lock().attention(&self.gpu, &q.memory, kv, pos, tokens, shape, &out.memory));
    }

    /// Per-head products.
    pub fn heads(&self, call: HeadsCall<'_, GpuBuf>) {
        self.note(self.lock().heads(&self.gpu, call));
    }

    /// [`Backend::attend`] for one token in one step; `false` if the kernel does not support the combination.
    pub fn attend_one(
        &self,
        x: &Projected<'_, GpuBuf>,
        how: &Placing<'_>,
        pos: usize,
        kv: &mut GpuKv,
        shape: &Attention,
        out: &mut GpuBuf,
    ) -> bool {
        // Sinks share the norms' binding.
        if shape.sinks.is_some() && how.q_norm.or(how.k_norm).is_some() {
            return false;
        }
        self.note(self.lock().attend_one(&self.gpu, x, how, pos, kv, shape, &out.memory));
        true
    }

    /// Feed-forward of `x` (`[tokens, d]`) through one expert or dense block.
    pub fn ffn(&self, x: &GpuBuf, tokens: usize, block: (&Expert, Activation), out: &mut GpuBuf) {
        self.note(self.lock().ffn(&self.gpu, &x.memory, tokens, block, out));
    }

    /// `x += sigmoid(gate) · ffn(h)`, or without a gate `x += ffn(h)`. Uses `y`, unless one kernel does
    /// everything. `gate` is `[tokens, 1]`.
    pub fn ffn_add(
        &self,
        h: &GpuBuf,
        tokens: usize,
        block: (&Expert, Activation),
        gate: Option<&GpuBuf>,
        y: &mut GpuBuf,
        x: &mut GpuBuf,
    ) {
        let gate = gate.map(|g| &g.memory);
        self.note(self.lock().ffn_add(&self.gpu, &h.memory, tokens, block, gate, y, &x.memory));
    }

    /// `out[t] = Σ_r choices[t·k + r].gate · slots[t·k + r]`, in order of rank, with rows of `d` values.
    pub fn combine(&self, slots: &GpuBuf, choices: &[Choice], top_k: usize, d: usize, out: &mut GpuBuf) {
        self.lock().combine(&self.gpu, &slots.memory, choices, top_k, d, &out.memory);
    }

    /// `x[t] *= sigmoid(gate[t])` for `rows` rows of `d` values; `gate` is `[rows, 1]`.
    pub fn gate_rows(&self, x: &mut GpuBuf, gate: &GpuBuf, rows: usize, d: usize) {
        self.lock().gate_rows(&self.gpu, &gate.memory, rows, d, &x.memory);
    }

    /// `x[..len] += y[..len]`.
    pub fn add(&self, x: &mut GpuBuf, y: &GpuBuf, len: usize) {
        self.lock().elementwise(&self.gpu, (ADD, 1.0), &y.memory, 0, len, &x.memory);
    }
}
