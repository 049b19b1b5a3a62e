//! Operations as dispatches.

use super::device::{Device, Memory};
use super::kv::GpuBuf;
use super::params::*;
use super::recorder::PUT_WORDS;
use super::weights::{Form, Placed};
use super::{MAX_TOKENS, State, by_tokens, groups, row_blocks};
use crate::error::{Error, Result};
use crate::kernels::{
    Activation, Choice, Choosing, ConvCall, History, Linear, Norm, Recurrent, Router, Score, Times,
};
use crate::quant::{Matrix, TILE_ROWS};
use dollop_shaders::{GEGLU, Kernel, MANY, REGLU, SWIGLU, Variant};
use std::sync::Arc;

/// Enough workgroups to keep any adapter busy.
const ENOUGH: usize = 1024;

/// The most matrices of one dispatch of `linear`.
const PARTS: usize = 3;

impl State {
    /// An operation of `elementwise.wgsl`: reads `from` at `at`, and multiplies the result by `scale`.
    pub(super) fn elementwise(
        &mut self,
        gpu: &Device,
        (op, scale): (u32, f32),
        from: &Memory,
        at: usize,
        len: usize,
        to: &Memory,
    ) {
        self.elementwise_rows(gpu, (op, scale), from, (at, len, 0, 1), len, to);
    }

    /// `x[i] *= sigmoid(gate[i / shared])`, or softplus, for the first `len` values of `x`.
    pub(super) fn gate_heads(
        &mut self,
        gpu: &Device,
        (op, gate): (u32, &Memory),
        shared: usize,
        len: usize,
        x: &Memory,
    ) {
        self.elementwise_rows(gpu, (op, 1.0), gate, (0, len, 0, shared), len, x);
    }

    /// Multiplies the values that a product gates.
    pub(super) fn gate(
        &mut self,
        gpu: &Device,
        x: &Memory,
        width: usize,
        rows: usize,
        times: &Times<'_, GpuBuf>,
    ) {
        let by = (times.at, width, times.stride, 1);
        self.elementwise_rows(gpu, (gating(times.activation), 1.0), &times.by.memory, by, rows * width, x);
    }

    /// [`State::elementwise`] with rows of `from` that are a stride apart. Each value of a row applies to as many adjacent
    /// values of `to` as the last number says.
    fn elementwise_rows(
        &mut self,
        gpu: &Device,
        (op, scale): (u32, f32),
        from: &Memory,
        (at, row, stride, each): (usize, usize, usize, usize),
        len: usize,
        to: &Memory,
    ) {
        let [len_words, at, row, stride, each] = [len, at, row.max(1), stride, each].map(|n| n as u32);
        let n = groups(len);
        let x = n.min(gpu.max_groups);
        let params = ElementwiseParams { len: len_words, at, row, stride, each, scale };
        let variant = Variant { op, ..Variant::default() };
        self.recorder.run(gpu, variant, &params, &[from, to], [x, n.div_ceil(x.max(1))]);
    }

    pub(super) fn embed(
        &mut self,
        gpu: &Device,
        table: &Matrix,
        tokens: &[u32],
        scale: f32,
        out: &Memory,
    ) -> Result<()> {
        let parts = self.weights.place(gpu, &[table])?.remove(0);
        let cols = table.cols();
        assert!(tokens.len() <= MAX_TOKENS, "{} tokens at once", tokens.len());
        let ids = self.recorder.put(gpu, tokens, 1);
        for Placed { memory, form, first, rows } in parts.iter() {
            let Form { base, planes, group, alpha, centre } = *form;
            let (first, rows, cols) = (*first as u32, *rows as u32, cols as u32);
            let params = EmbedParams { base, first, rows, cols, group, alpha, centre, ids, scale };
            let variant = Variant { planes, ..Variant::default() };
            let grid = [groups(cols.div_ceil(4) as usize), tokens.len()];
            self.recorder.run_with_ring(gpu, variant, &params, &[memory, out], 1, grid);
        }
        Ok(())
    }

    pub(super) fn rms_norm(
        &mut self,
        gpu: &Device,
        x: &Memory,
        norm: Norm<'_>,
        rows: usize,
        out: &Memory,
    ) -> Result<()> {
        let Norm { weight, bias, eps } = norm;
        let both = || [weight, bias.unwrap_or_default()].concat();
        let norm = self.weights.vector(gpu, weight, both)?;
        let (cols, rows, centred) = (weight.len() as u32, rows, bias.is_some().into());
        let params = RmsNormParams { cols, rows: rows as u32, eps, centred };
        let across = rows.min(gpu.max_groups);
        let grid = [across, rows.div_ceil(across.max(1))];
        self.recorder.run(gpu, Variant::default(), &params, &[x, &norm, out], grid);
        Ok(())
    }

    pub(super) fn linear(
        &mut self,
        gpu: &Device,
        x: &Memory,
        norm: Option<(Norm<'_>, &Memory)>,
        tokens: usize,
        outs: &mut [Linear<'_, GpuBuf>],
        add: bool,
    ) -> Result<()> {
        // The format of the many tokens' inputs prepared so far.
        let mut form = None;
        for outs in outs.chunks_mut(PARTS) {
            let matrices: Vec<&Matrix> = outs.iter().map(|l| l.matrix).collect();
            let placed = self.weights.place(gpu, &matrices)?;
            let together = placed.iter().all(|p| {
                p.len() == 1
                    && Arc::ptr_eq(&p[0].memory, &placed[0][0].memory)
                    && p[0].form.planes == placed[0][0].form.planes
            });
            if together {
                let parts: Vec<(&Placed, &Linear<'_, GpuBuf>)> =
                    placed.iter().map(|p| &p[0]).zip(&*outs).collect();
                self.linear_parts(gpu, x, norm, tokens, &parts, add, &mut form)?;
            } else {
                for (placed, out) in placed.iter().zip(&*outs) {
                    for placed in placed.iter() {
                        self.linear_parts(gpu, x, norm, tokens, &[(placed, out)], add, &mut form)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// One dispatch. Before it, the inputs of many tokens are prepared, unless they already have the format
    /// that it reads.
    #[allow(clippy::too_many_arguments)]
    fn linear_parts(
        &mut self,
        gpu: &Device,
        x: &Memory,
        norm: Option<(Norm<'_>, &Memory)>,
        tokens: usize,
        parts: &[(&Placed, &Linear<'_, GpuBuf>)],
        add: bool,
        prepared: &mut Option<u32>,
    ) -> Result<()> {
        let (first, of) = parts[0];
        let (variant, blocks) = by_tokens(first.form.planes, tokens);
        let form = self.recorder.form(gpu, Kernel::Linear, variant);
        if tokens > 1 && *prepared != Some(form) {
            self.prepare(gpu, x, of.matrix.cols(), tokens, None, norm, form)?;
            *prepared = Some(form);
        }
        let mut params = LinearParams {
            cols: of.matrix.cols() as u32,
            tokens: tokens as u32,
            flags: if add { ADDED } else { 0 },
            eps: 0.0,
            parts: parts.len() as u32,
            bias: (first.first / TILE_ROWS) as u32,
            each: 1,
            part: Default::default(),
        };
        let mut tiles = 0;
        for (part, (placed, linear)) in params.part.iter_mut().zip(parts) {
            let Form { base, group, alpha, centre, .. } = placed.form;
            let (rows, at) = (placed.rows as u32, placed.first as u32);
            *part = Part { base, rows, group, tiles, alpha, centre, at, stride: linear.matrix.rows() as u32 };
            tiles += rows.div_ceil(TILE_ROWS as u32);
        }
        let bias = match parts.iter().find_map(|(_, l)| l.bias) {
            Some(name) => {
                params.flags |= BIAS;
                Some(self.weights.vector(gpu, name, || padded_biases(parts))?)
            }
            None => None,
        };
        if let Some((norm, _)) = norm {
            params.flags |= NORM;
            params.eps = norm.eps;
        }
        let weight = self.norm_weight(gpu, norm)?;
        let [none, spare @ ..] = &self.spare;
        let out = |i: usize| parts.get(i).map_or(&spare[i], |(_, l)| &l.out.memory);
        let memory = [
            &*first.memory,
            if tokens == 1 { x } else { self.prepared.get() },
            bias.as_deref().unwrap_or(none),
            out(0),
            out(1),
            out(2),
            weight.as_deref().unwrap_or(none),
            norm.map_or(&spare[0], |(_, h)| h),
        ];
        // The inputs of many tokens are normed by `prepare`.
        let memory = if tokens == 1 { &memory[..] } else { &memory[..6] };
        let rows: usize =
            parts.iter().map(|(placed, _)| row_blocks(placed.rows, first.form.planes, tokens)).sum();
        // Every workgroup reads, and norms, one token's inputs again. So for a large vocabulary each
        // workgroup takes several row blocks.
        let each = if tokens == 1 { rows / ENOUGH } else { 1 };
        let each = each.max(rows.div_ceil(gpu.max_groups)).max(1);
        params.each = each as u32;
        self.recorder.run(gpu, variant, &params, memory, [rows.div_ceil(each), blocks]);
        Ok(())
    }

    /// Dispatches `route`. It writes choices, with a layer's first table entry also jobs, and a history.
    pub(super) fn route_on(
        &mut self,
        gpu: &Device,
        logits: &Memory,
        tokens: usize,
        (choosing, scales): (Choosing<'_>, Option<&[f32]>),
        table: Option<u32>,
        history: Option<&History<'_, GpuBuf>>,
    ) -> Result<()> {
        can_choose(choosing.router)?;
        let Router { experts, top_k, renormalize, scale, score, groups } = *choosing.router;
        let (kind, eps) = match score {
            Score::Softmax => (0, 0.0),
            Score::Sigmoid { eps } => (1, eps),
            Score::Mixer { tolerance } => (2, tolerance),
        };
        let bias = match choosing.bias {
            Some(bias) => Some(self.weights.vector(gpu, bias, || bias.to_vec())?),
            None => None,
        };
        let params = RouteParams {
            experts: experts as u32,
            top_k: top_k as u32,
            renormalize: renormalize.into(),
            scale,
            scaled: scales.is_some().into(),
            jobs: table.is_some().into(),
            table: table.unwrap_or(0),
            at: history.map_or(0, |h| h.at) as u32,
            first: (tokens - history.map_or(0, |h| h.tokens)) as u32,
            kind,
            eps,
            biased: bias.is_some().into(),
            groups: groups.map_or(1, |g| g.count) as u32,
            kept: groups.map_or(1, |g| g.kept) as u32,
        };
        let choices = self.choices.at_least(gpu, 2 * tokens * top_k, "the router's choices")?;
        let jobs = self.jobs.at_least(gpu, most_jobs(experts, tokens, top_k) * JOB_WORDS, "jobs")?;
        let scales = match scales {
            Some(scales) => Some(self.weights.vector(gpu, scales, || scales.to_vec())?),
            None => None,
        };
        let [none, spare, ..] = &self.spare;
        let history = history.map_or(none, |h| &h.buf.memory);
        let (scales, bias) = (scales.as_deref().unwrap_or(spare), bias.as_deref().unwrap_or(spare));
        let memory = [logits, &self.experts.table, choices, jobs, history, scales, bias];
        self.recorder.run(gpu, Variant::default(), &params, &memory, [tokens, 1]);
        Ok(())
    }

    pub(super) fn conv(&mut self, gpu: &Device, call: ConvCall<'_, '_, GpuBuf>) -> Result<()> {
        let ConvCall { x, sequences, weight, bias, taps, out } = call;
        let Recurrent { tokens, state, from, to } = super::only(sequences);
        let d = weight.len() / taps;
        assert!(from != Some(to), "what is read is not written");
        assert!(3 * tokens * d <= x.len && tokens * d <= out.len && (to + 1) * (taps - 1) * d <= state.len);
        let params = ConvParams {
            d: d as u32,
            taps: taps as u32,
            tokens: tokens as u32,
            before_slot: from.unwrap_or(0) as u32,
            after_slot: to as u32,
            before: from.is_some().into(),
            bias: bias.is_some().into(),
        };
        let both = || [weight, bias.unwrap_or_default()].concat();
        let weight = self.weights.vector(gpu, weight, both)?;
        let memory = [&x.memory, &weight, &state.memory, &out.memory];
        self.recorder.run(gpu, Variant::default(), &params, &memory, [groups(d), tokens + taps - 1]);
        Ok(())
    }

    pub(super) fn route(
        &mut self,
        gpu: &Device,
        logits: &Memory,
        tokens: usize,
        choosing: Choosing<'_>,
        out: &mut Vec<Choice>,
    ) -> Result<()> {
        let router = choosing.router;
        self.route_on(gpu, logits, tokens, (choosing, None), None, None)?;
        let mut words = vec![0u32; 2 * tokens * router.top_k];
        self.recorder.read(gpu, &mut [(self.choices.get(), 0, bytemuck::cast_slice_mut(&mut words))])?;
        out.clear();
        out.extend(words.chunks_exact(2).map(|w| Choice { expert: w[0], gate: f32::from_bits(w[1]) }));
        // Indices from a device are not trusted.
        match out.iter().find(|c| c.expert as usize >= router.experts) {
            Some(c) => Err(Error::Device(format!("the router chose expert {}", c.expert))),
            None => Ok(()),
        }
    }

    pub(super) fn gate_rows(&mut self, gpu: &Device, gate: &Memory, rows: usize, d: usize, x: &Memory) {
        let params = GateRowsParams { d: d as u32 };
        self.recorder.run(gpu, Variant::default(), &params, &[gate, x], [groups(d), rows]);
    }

    pub(super) fn combine(
        &mut self,
        gpu: &Device,
        slots: &Memory,
        choices: &[Choice],
        top_k: usize,
        d: usize,
        out: &Memory,
    ) {
        assert!(2 * choices.len() <= PUT_WORDS, "{} choices at once", choices.len());
        let words: Vec<u32> = choices.iter().flat_map(|c| [c.expert, c.gate.to_bits()]).collect();
        let at = self.recorder.put(gpu, &words, 2);
        let params = CombineParams { d: d as u32, top_k: top_k as u32, at };
        let grid = [groups(d), choices.len() / top_k];
        self.recorder.run_with_ring(gpu, Variant::default(), &params, &[slots, out], 1, grid);
    }
}

/// The most jobs for the choices of `tokens` tokens: each chosen expert may have one job that is not full.
pub(super) fn most_jobs(experts: usize, tokens: usize, top_k: usize) -> usize {
    let slots = tokens * top_k;
    (experts.min(slots) + slots / MANY as usize).min(slots)
}

/// The operation of `elementwise` for an activation.
pub(super) fn gating(activation: Activation) -> u32 {
    match activation {
        Activation::Swiglu => SWIGLU,
        Activation::Geglu => GEGLU,
        Activation::Reglu => REGLU,
        // Used by experts only, which have kernels of their own.
        Activation::Clamped { .. } => unreachable!("nothing but experts is limited"),
    }
}

/// Checks that kernels support this number of experts.
pub(super) fn can_choose(router: &Router) -> Result<()> {
    let Router { experts, top_k, .. } = *router;
    if experts > MAX_EXPERTS || top_k > MAX_TOP_K {
        return Err(Error::Device(format!(
            "{top_k} of {experts} experts: kernels choose up to {MAX_TOP_K} of {MAX_EXPERTS}"
        )));
    }
    Ok(())
}

/// The biases of several parts, with zeros for parts without, each padded to whole tiles.
fn padded_biases(parts: &[(&Placed, &Linear<'_, GpuBuf>)]) -> Vec<f32> {
    let mut all = Vec::new();
    for (_, linear) in parts {
        let rows = linear.matrix.rows();
        let end = all.len() + rows.next_multiple_of(TILE_ROWS);
        all.extend(linear.bias.map_or_else(|| vec![0.0; rows], <[f32]>::to_vec));
        all.resize(end, 0.0);
    }
    all
}
