//! The operations of a model, as tasks of the pool.

use super::aligned::{Aligned, grow};
use super::product::{Out, Product};
use super::scratch::Scratch;
use super::{CpuBackend, CpuKv, MANY, SLOTS_AT_ONCE, attention, conv, delta, math, warm};
use crate::error::Result;
use crate::experts::Expert;
use crate::kernels::{
    Absorbed, Activation, Added, AttendCall, Attention, Backend, Choice, Choosing, ConvCall, DeltaCall,
    ExpertJob, Feed, FeedCall, Flow, Gated, HeadsCall, KvCopy, KvPart, Linear, LinearCall, Placing,
    Projected, Recur, Recurrent, Routed, Score, Sequence, SumCall, Summed, Times,
};
use crate::quant::Matrix;
use std::sync::PoisonError;

/// Outputs of one operation that are kept on the stack. There may be more, but rarely are.
const OUTS: usize = 4;

/// Clamps values to `±limit`.
fn clamp(x: &mut [f32], limit: f32) {
    x.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
}

impl Backend for CpuBackend {
    type Buf = Aligned<f32>;
    type Kv = CpuKv;

    const TOGETHER: usize = MANY - 1;

    fn alloc(&self, len: usize) -> Result<Aligned<f32>> {
        Aligned::zeroed(len)
    }

    fn upload(&self, dst: &mut Aligned<f32>, at: usize, src: &[f32]) {
        dst[at..at + src.len()].copy_from_slice(src);
    }

    fn copy(&self, src: &Aligned<f32>, at: usize, len: usize, dst: &mut Aligned<f32>) {
        dst[..len].copy_from_slice(&src[at..at + len]);
    }

    fn alloc_kv(&self, capacity: usize, heads: usize, dims: [usize; 2]) -> Result<CpuKv> {
        CpuKv::new(capacity, heads, dims, self.kv_single)
    }

    fn tail(&self, tokens: usize) -> Option<usize> {
        // An observer must get all tokens.
        let all = self.observer.get().is_some();
        let least = if self.isa.halves() { MANY } else { 1 };
        (!all).then_some(least.min(tokens))
    }

    fn copy_kv(&self, copy: KvCopy<'_, CpuKv>, part: &KvPart) -> Result<()> {
        match copy {
            KvCopy::Out(kv, out) => kv.read(part, out),
            KvCopy::In(kv, from) => kv.restore(part, from),
        }
        Ok(())
    }

    fn recur(&self, call: Recur<'_, '_, Aligned<f32>>) {
        match call {
            Recur::Conv(call) => self.conv(call),
            Recur::Delta(call) => self.delta(call),
        }
    }

    fn embed(&self, table: &Matrix, tokens: &[u32], scale: f32, out: &mut Aligned<f32>) {
        let cols = table.cols();
        self.pool.operation("embedding");
        self.each_row(&mut out[..tokens.len() * cols], cols, &|i, out| {
            match table {
                Matrix::F32 { data, .. } => out.copy_from_slice(&data[tokens[i] as usize * cols..][..cols]),
                Matrix::Nested(m) => m.dequantize_row(tokens[i] as usize, out),
            }
            out.iter_mut().for_each(|x| *x *= scale);
        });
    }

    fn route(
        &self,
        logits: &Aligned<f32>,
        tokens: usize,
        choosing: Choosing<'_>,
        out: &mut Vec<Choice>,
    ) -> Result<()> {
        let router = choosing.router;
        out.clear();
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { weights, standings, order, .. } = &mut *scratch;
        grow(weights, router.experts);
        grow(standings, router.experts);
        order.clear();
        order.reserve_exact(router.experts);
        for logits in logits[..tokens * router.experts].chunks_exact(router.experts) {
            match router.score {
                Score::Softmax => {
                    weights.copy_from_slice(logits);
                    self.isa.run(
                        #[inline(always)]
                        || math::softmax(weights),
                    );
                }
                Score::Sigmoid { .. } => {
                    weights.iter_mut().zip(logits).for_each(|(w, &x)| *w = Choosing::sigmoid(x));
                }
                // These depend on the choice.
                Score::Mixer { .. } => {}
            }
            order.clear();
            order.extend(0..router.experts as u32);
            // `total_cmp` also orders NaN.
            choosing.standings(logits, standings);
            let standing = |e: u32| standings[e as usize];
            let best_first = |&a: &u32, &b: &u32| standing(b).total_cmp(&standing(a)).then(a.cmp(&b));
            if router.top_k < order.len() {
                order.select_nth_unstable_by(router.top_k, best_first);
            }
            order.truncate(router.top_k);
            order.sort_unstable_by(best_first);
            if let Score::Mixer { tolerance } = router.score {
                for (rank, &expert) in order.iter().enumerate() {
                    weights[expert as usize] = Choosing::mixed(logits, tolerance, &order[..rank], expert);
                }
            }
            let scale = choosing.factor(order.iter().map(|&e| weights[e as usize]).sum());
            out.extend(order.iter().map(|&expert| Choice { expert, gate: weights[expert as usize] * scale }));
        }
        Ok(())
    }

    fn experts(
        &self,
        x: &Aligned<f32>,
        of: Routed,
        feed: &Feed<'_>,
        jobs: &[ExpertJob<'_>],
        slots: &mut Aligned<f32>,
    ) {
        let top_k = of.top_k;
        let mut from = 0;
        while from < jobs.len() {
            let (mut to, mut n) = (from, 0);
            while to < jobs.len() && (to == from || n + jobs[to].slots.len() <= SLOTS_AT_ONCE) {
                n += jobs[to].slots.len();
                to += 1;
            }
            let rows = (of.tokens, of.tokens >= MANY, of.inputs);
            self.feed_forward(x, rows, top_k, feed, &jobs[from..to], slots);
            from = to;
        }
    }

    fn read(&self, parts: &mut [(&Aligned<f32>, usize, &mut [f32])]) -> Result<()> {
        parts.iter_mut().try_for_each(|(src, at, dst)| self.download(src, *at, dst))
    }

    fn flow(&self, flow: Flow<'_, '_>) -> Result<()> {
        if let Flow::Soon(matrices) = flow {
            self.pool.operation("weights used next");
            warm::read(&self.pool, matrices, self.warm_bytes);
        }
        Ok(())
    }

    fn linear(&self, call: LinearCall<'_, '_, Aligned<f32>>) {
        let LinearCall { x, tokens, norm, outs, times, add } = call;
        let norm_len = norm.as_ref().map_or(0, |(norm, _)| norm.weight.len());
        let x = match norm {
            Some((norm, h)) => {
                match norm.bias {
                    None => self.rms_norm(x, norm.weight, norm.eps, tokens, h),
                    Some(bias) => self.layer_norm(x, (norm.weight, bias), norm.eps, tokens, h),
                }
                h
            }
            None => x,
        };
        CpuBackend::linear(self, x, tokens, outs);
        if let (Some(times), [one]) = (times, &mut *outs) {
            self.gate(one.out, one.matrix.rows(), tokens, times);
        }
        match (add, outs) {
            (Some(Added { to, scale }), [one]) => {
                debug_assert!(scale == 1.0, "products are added as they are");
                self.add(to, one.out, tokens * one.matrix.rows());
            }
            (Some(Added { to, scale }), []) => {
                self.add(to, x, tokens * norm_len);
                if scale != 1.0 {
                    self.each_row(&mut to[..tokens * norm_len], norm_len, &|_, row| {
                        row.iter_mut().for_each(|x| *x *= scale);
                    });
                }
            }
            _ => {}
        }
    }

    fn attend(&self, call: AttendCall<'_, '_, Aligned<f32>, CpuKv>) {
        let AttendCall { x, how, tokens, sequences, shared, shape, absorbed, gate, out } = call;
        let Projected { q, k, v } = x;
        let (heads, q_width, kv_width) = (shape.heads, how.heads * how.head_dim, how.kv_heads * how.head_dim);
        if let Some(Absorbed { queries: matrix, .. }) = absorbed {
            self.heads(HeadsCall { matrix, heads, x: q, tokens, kept: how.rope.dims, out });
            std::mem::swap(q, out);
        }
        let (mut row, mut head) = (0, 0);
        for Sequence { pos, tokens, kv } in sequences {
            let (q, k) = (&mut q[row * q_width..], &mut k[row * kv_width..]);
            // A latent is also the value.
            let v = if how.latent { &mut [][..] } else { &mut v[row * kv_width..] };
            let written = if shared { None } else { Some(&mut *kv) };
            self.place([&mut *q, k, v], how, pos, tokens, written);
            head = kv.v_dim;
            self.attention(q, kv, pos, tokens, shape, &mut out[row * heads * head..]);
            row += tokens;
        }
        debug_assert_eq!(row, tokens, "every row is one sequence's");
        if let Some(Absorbed { values: matrix, .. }) = absorbed {
            self.heads(HeadsCall { matrix, heads, x: out, tokens, kept: 0, out: q });
            std::mem::swap(q, out);
            head = matrix.rows() / heads;
        }
        if let Some(Gated { by, heads: whole, softplus }) = gate {
            let width = heads * head;
            let factor = if softplus { math::softplus } else { math::sigmoid };
            self.pool.operation("gate");
            self.each_row(&mut out[..tokens * width], width, &|t, out| match whole {
                false if !softplus => math::times_sigmoid(out, &by[t * width..][..width]),
                false => out.iter_mut().zip(&by[t * width..]).for_each(|(out, gate)| *out *= factor(*gate)),
                true => {
                    for (out, gate) in out.chunks_exact_mut(head).zip(&by[t * heads..]) {
                        let factor = factor(*gate);
                        out.iter_mut().for_each(|out| *out *= factor);
                    }
                }
            });
        }
    }

    fn feed(&self, call: FeedCall<'_, Aligned<f32>>) {
        let FeedCall { h, tokens, block, activation, gate, y, x } = call;
        let d = block.down.rows();
        self.ffn(h, tokens, (block, activation), y);
        if let Some(gate) = gate {
            self.gate_rows(y, gate, tokens, d);
        }
        if let Some(x) = x {
            self.add(x, y, tokens * d);
        }
    }

    fn sum(&self, call: SumCall<'_, Aligned<f32>>) {
        let SumCall { slots, choices, top_k, d, y, x } = call;
        if let Some(observer) = self.observer.get() {
            observer.summed(&Summed { slots, choices, top_k, x: x.as_deref().map(|x| &**x), d });
        }
        self.combine(slots, choices, top_k, d, y);
        if let Some(x) = x {
            self.add(x, y, choices.len() / top_k * d);
        }
    }
}

/// The steps of these calls.
impl CpuBackend {
    fn conv(&self, call: ConvCall<'_, '_, Aligned<f32>>) {
        let ConvCall { x, sequences, weight, bias, taps, out } = call;
        let (kept, d) = (taps - 1, weight.len() / taps);
        let mut row = 0;
        for Recurrent { tokens, state, from, to } in sequences {
            assert!(from != Some(to), "what is read is not written");
            self.pool.operation("convolution");
            let x = &x[3 * row * d..];
            let before = from.map(|from| &state[from * kept * d..][..kept * d]);
            let inputs = conv::Inputs { x, before, weight, taps };
            self.each_row(&mut out[row * d..][..tokens * d], d, &|t, out| inputs.row(t, bias, out));
            conv::keep(x, tokens, (kept, d), state, (from, to));
            row += tokens;
        }
    }

    fn delta(&self, call: DeltaCall<'_, '_, Aligned<f32>>) {
        let DeltaCall { qkv, z, beta, alpha, sequences, shape, mixed, out } = call;
        let (channels, width, heads) = (shape.channels(), shape.v_heads * shape.v_dim, shape.v_heads);
        let mut row = 0;
        for Recurrent { tokens, state, from, to } in sequences {
            let rows = delta::Rows {
                qkv: &qkv[row * channels..],
                z: &z[row * width..],
                beta: &beta[row * heads..],
                alpha: &mut alpha[row * shape.decays()..],
                mixed: &mut mixed[row * channels..],
                out: &mut out[row * width..],
            };
            delta::delta(&self.pool, self.isa, shape, tokens, rows, delta::Slots { state, from, to });
            row += tokens;
        }
    }

    /// The backend's name for display: instruction set and threads.
    pub fn name(&self) -> String {
        let threads = self.threads();
        format!("CPU {}, {threads} thread{}", self.isa, if threads == 1 { "" } else { "s" })
    }

    /// Copies `src[at..]` to `dst`, after all earlier operations have finished.
    pub fn download(&self, src: &Aligned<f32>, at: usize, dst: &mut [f32]) -> Result<()> {
        dst.copy_from_slice(&src[at..at + dst.len()]);
        Ok(())
    }

    /// `out = x / sqrt(mean(x²) + eps) · weight` over each of `rows` rows of `weight.len()` values.
    pub fn rms_norm(&self, x: &Aligned<f32>, weight: &[f32], eps: f32, rows: usize, out: &mut Aligned<f32>) {
        let n = weight.len();
        self.pool.operation("norm");
        self.each_row(&mut out[..rows * n], n, &|row, out| {
            math::rms_norm(&x[row * n..][..n], weight, eps, out)
        });
    }

    /// `out = (x − mean) / sqrt(mean((x − mean)²) + eps) · weight + bias` over each of `rows` rows.
    fn layer_norm(
        &self,
        x: &Aligned<f32>,
        (weight, bias): (&[f32], &[f32]),
        eps: f32,
        rows: usize,
        out: &mut Aligned<f32>,
    ) {
        let n = weight.len();
        self.pool.operation("norm");
        self.each_row(&mut out[..rows * n], n, &|row, out| {
            math::layer_norm(&x[row * n..][..n], weight, bias, eps, out)
        });
    }

    /// Several products of the same `x` (`[tokens, cols]`).
    pub fn linear(&self, x: &Aligned<f32>, tokens: usize, outs: &mut [Linear<'_, Aligned<f32>>]) {
        let Some(cols) = outs.first().map(|l| l.matrix.cols()) else { return };
        if let Some(observer) = self.observer.get() {
            outs.iter().for_each(|l| observer.inputs(l.matrix, x, &mut (0..tokens)));
        }
        self.pool.operation("dense product");
        debug_assert!(outs.iter().all(|l| l.matrix.rotation().is_none()), "only experts are rotated");
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { inputs, tokens: all, .. } = &mut *scratch;
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
            self.products(inputs, (x, tokens, cols), many, None, count, &|i| {
                let (matrix, bias, out) = parts[i].expect("one part for each output");
                Product { matrix, up: None, tokens: all, part: None, first: 0, bias, to: None, out }
            });
        }
    }

    /// Prepares the queries of `tokens` rows at positions `pos..` in place, and writes their keys and values
    /// to the cache, if there is one. The keys and values are overwritten.
    pub fn place(
        &self,
        [q, k, v]: [&mut [f32]; 3],
        how: &Placing<'_>,
        pos: usize,
        tokens: usize,
        kv: Option<&mut CpuKv>,
    ) {
        let (q_len, kv_len) = (tokens * how.heads * how.head_dim, tokens * how.kv_heads * how.head_dim);
        if let Some(weight) = how.q_norm.filter(|_| !how.late_norms) {
            self.rms_norm_in_place(q, weight, how.eps, q_len / weight.len());
        }
        if let (Some(weight), true, Some(_)) = (how.k_norm, how.latent, &kv) {
            let turned = how.rope.dims;
            self.pool.operation("norm");
            self.each_row(&mut k[..kv_len], how.head_dim, &|_, k| {
                math::rms_norm_in_place(&mut k[turned..], weight, how.eps);
            });
        } else if let (Some(weight), Some(_), false) = (how.k_norm, &kv, how.late_norms) {
            self.rms_norm_in_place(k, weight, how.eps, kv_len / weight.len());
        }
        if how.v_norm && kv.is_some() {
            self.pool.operation("norm");
            self.each_row(&mut v[..kv_len], how.head_dim, &|_, x| math::rms_in_place(x, how.eps));
        }
        if let Some(limit) = how.limit {
            clamp(&mut q[..q_len], limit);
            clamp(&mut k[..kv_len], limit);
            clamp(if how.latent { v } else { &mut v[..kv_len] }, limit);
        }
        self.rope(q, pos, tokens, how.heads, how.head_dim, how.rope);
        if let Some(weight) = how.q_norm.filter(|_| how.late_norms) {
            self.rms_norm_in_place(q, weight, how.eps, tokens * how.heads);
        }
        if let Some(kv) = kv {
            self.rope(k, pos, tokens, how.kv_heads, how.head_dim, how.rope);
            if let Some(weight) = how.k_norm.filter(|_| how.late_norms) {
                self.rms_norm_in_place(k, weight, how.eps, tokens * how.kv_heads);
            }
            let values: &[f32] = if how.latent { &*k } else { &*v };
            self.write_kv(kv, pos, tokens, k, values);
        }
    }

    /// Causal attention of `tokens` queries at positions `pos..`, each to the positions of `kv` up to its own.
    pub fn attention(
        &self,
        q: &[f32],
        kv: &CpuKv,
        pos: usize,
        tokens: usize,
        shape: &Attention,
        out: &mut [f32],
    ) {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        self.pool.operation("attention");
        attention::attend(&self.pool, self.isa, &mut scratch.attending, q, kv, pos, tokens, shape, out);
    }

    /// Feed-forward of `x` (`[tokens, d]`) through one expert or dense block.
    pub fn ffn(
        &self,
        x: &Aligned<f32>,
        tokens: usize,
        (expert, activation): (&Expert, Activation),
        out: &mut Aligned<f32>,
    ) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.clear();
        slots.reserve_exact(tokens);
        slots.extend(0..tokens as u32);
        for slots in slots.chunks(SLOTS_AT_ONCE) {
            self.feed_forward(
                x,
                (tokens, tokens >= MANY, 0),
                1,
                &Feed { activation, ..Feed::default() },
                &[ExpertJob { index: 0, expert, slots }],
                out,
            );
        }
    }

    /// `out[t] = Σ_r choices[t·k + r].gate · slots[t·k + r]`, in order of rank, with rows of `d` values.
    pub fn combine(
        &self,
        slots: &Aligned<f32>,
        choices: &[Choice],
        top_k: usize,
        d: usize,
        out: &mut Aligned<f32>,
    ) {
        let tokens = choices.len() / top_k;
        self.pool.operation("weighted sum");
        self.each_row(&mut out[..tokens * d], d, &|t, out| {
            out.fill(0.0);
            // A gate of zero means that the expert was not computed: its row holds stale values.
            for slot in (t * top_k..(t + 1) * top_k).filter(|&slot| choices[slot].gate != 0.0) {
                math::axpy(choices[slot].gate, &slots[slot * d..][..d], out);
            }
        });
    }

    /// `x = activation(x) · by` for rows of `width` values.
    fn gate(&self, x: &mut Aligned<f32>, width: usize, rows: usize, times: Times<'_, Aligned<f32>>) {
        let Times { activation, by, at, stride } = times;
        self.pool.operation("activation");
        self.each_row(&mut x[..rows * width], width, &|t, x| {
            math::activate(activation, x, &by[at + t * stride..][..width]);
        });
    }

    /// `x[t] *= sigmoid(gate[t])` for `rows` rows of `d` values; `gate` is `[rows, 1]`.
    pub fn gate_rows(&self, x: &mut Aligned<f32>, gate: &Aligned<f32>, rows: usize, d: usize) {
        for (x, gate) in x[..rows * d].chunks_exact_mut(d).zip(gate.iter()) {
            let factor = 1.0 / (1.0 + (-gate).exp());
            x.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// `x[..len] += y[..len]`.
    pub fn add(&self, x: &mut Aligned<f32>, y: &Aligned<f32>, len: usize) {
        // Pieces for the threads; short or odd lengths are not split.
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
