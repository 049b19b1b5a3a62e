//! Attention, and the steps between the projections and attention, as dispatches.

use super::State;
use super::device::{Device, Memory};
use super::kv::{GpuBuf, GpuKv};
use super::params::*;
use crate::error::{Error, Result};
use crate::kernels::{Attention, Placing, Projected};
use dollop_shaders::Variant;
use std::sync::Arc;

impl State {
    /// Memory that `place` and `attend_one` read besides the projections, and their parameters.
    fn placing(
        &mut self,
        gpu: &Device,
        how: &Placing<'_>,
        pos: usize,
        kv: &GpuKv,
        sinks: Option<&[f32]>,
    ) -> Result<(PlaceParams, [Arc<Memory>; 2])> {
        if kv.v_dim > MAX_HEAD || how.head_dim > MAX_WIDE {
            let what = format!("heads of {} values: kernels take up to {MAX_HEAD}", how.head_dim);
            return Err(Error::Device(what));
        }
        let of_heads = |norm: Option<&[f32]>| norm.is_none_or(|weight| weight.len() == how.head_dim);
        assert!(!how.late_norms || of_heads(how.q_norm) && of_heads(how.k_norm), "late norms run over heads");
        let half = how.rope.dims / 2;
        let rope = self.weights.rope(gpu, how.rope)?;
        let norms = match how.q_norm.or(how.k_norm) {
            // Sinks share the norms' binding, so there must be no norms.
            None if let Some(sinks) = sinks => self.weights.vector(gpu, sinks, || sinks.to_vec())?,
            Some(name) => {
                let both = || [how.q_norm.unwrap_or_default(), how.k_norm.unwrap_or_default()].concat();
                self.weights.vector(gpu, name, both)?
            }
            // Without norms, the binding still needs a buffer.
            None => rope.clone(),
        };
        let params = PlaceParams {
            heads: how.heads as u32,
            kv_heads: how.kv_heads as u32,
            head_dim: how.head_dim as u32,
            half: half as u32,
            pos: pos as u32,
            capacity: kv.capacity as u32,
            q_norm: how.q_norm.map_or(0, <[f32]>::len) as u32,
            k_norm: how.k_norm.map_or(0, <[f32]>::len) as u32,
            v_norm: how.v_norm.into(),
            eps: how.eps,
            limit: how.limit.unwrap_or(0.0),
            latent: if how.latent { how.rope.dims } else { 0 } as u32,
            late: how.late_norms.into(),
        };
        Ok((params, [norms, rope]))
    }

    pub(super) fn place(
        &mut self,
        gpu: &Device,
        x: Projected<'_, GpuBuf>,
        how: &Placing<'_>,
        (pos, tokens): (usize, usize),
        (kv, shared): (&GpuKv, bool),
        rotated: &Memory,
    ) -> Result<()> {
        let (params, [norms, rope]) = self.placing(gpu, how, pos, kv, None)?;
        let (q, k, v) = (&x.q.memory, &x.k.memory, &x.v.memory);
        let memory = [q, k, v, &norms, &rope, &kv.keys, &kv.values, rotated];
        let variant = Variant { half: kv.half, ..Variant::default() };
        let heads = if shared { how.heads } else { how.heads + 2 * how.kv_heads };
        self.recorder.run(gpu, variant, &params, &memory, [heads, tokens]);
        Ok(())
    }

    /// `place` and `attention` for one token: one launch, or two if it attends to several tiles of positions.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attend_one(
        &mut self,
        gpu: &Device,
        x: &Projected<'_, GpuBuf>,
        how: &Placing<'_>,
        pos: usize,
        kv: &GpuKv,
        shape: &Attention,
        out: &Memory,
    ) -> Result<()> {
        let (p, [norms, rope]) = self.placing(gpu, how, pos, kv, shape.sinks)?;
        let seen = shape.window.unwrap_or(usize::MAX).min(pos + 1);
        let tiles = seen.div_ceil(TILE);
        let params = AttendOneParams {
            heads: p.heads,
            kv_heads: p.kv_heads,
            head_dim: p.head_dim,
            half: p.half,
            pos: p.pos,
            capacity: p.capacity,
            base: base(kv, shape, pos),
            q_norm: p.q_norm,
            k_norm: p.k_norm,
            v_norm: p.v_norm,
            eps: p.eps,
            limit: p.limit,
            window: window(shape),
            scale: shape.scale,
            tiles: tiles as u32,
            sinks: shape.sinks.is_some().into(),
            latent: p.latent,
            late: p.late,
            v_dim: kv.v_dim as u32,
        };
        let (q, k, v) = (&x.q.memory, &x.k.memory, &x.v.memory);
        // Allocate for the whole cache: a buffer that grew with it would be reallocated again and again.
        let most = how.heads * kv.capacity.div_ceil(TILE) * partial_values(kv.v_dim);
        let to = match tiles {
            1 => out,
            _ => self.partials.at_least(gpu, most, "attention's tiles")?,
        };
        let memory = [q, k, v, &norms, &rope, &kv.keys, &kv.values, to];
        let variant = Variant { half: kv.half, ..Variant::default() };
        self.recorder.run(gpu, variant, &params, &memory, [how.heads, tiles]);
        if tiles > 1 {
            let sinks = shape.sinks.is_some().into();
            let params = AttendMergeParams { v_dim: kv.v_dim as u32, tiles: tiles as u32, sinks };
            let to = self.partials.get();
            self.recorder.run(gpu, Variant::default(), &params, &[to, out, &norms], [how.heads, 1]);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn attention(
        &mut self,
        gpu: &Device,
        q: &Memory,
        kv: &GpuKv,
        pos: usize,
        tokens: usize,
        shape: &Attention,
        out: &Memory,
    ) -> Result<()> {
        let variant = Variant { half: kv.half, ..Variant::default() };
        let sinks = match shape.sinks {
            Some(sinks) => Some(self.weights.vector(gpu, sinks, || sinks.to_vec())?),
            None => None,
        };
        let has = u32::from(sinks.is_some());
        let memory = [q, &kv.keys, &kv.values, out, sinks.as_deref().unwrap_or(&self.spare[0])];
        let of_head = tokens * (shape.heads / shape.kv_heads);
        let queries = queries_at_once(shape.head_dim);
        // If a window hides positions, neighbouring tokens' tiles begin at different positions; few queries would
        // leave most of a workgroup idle. If it hides none, positions have not wrapped around in the cache.
        let hidden = shape.window.is_some_and(|window| window < pos + tokens);
        if !hidden && queries > 0 && of_head >= queries {
            let params = AttentionManyParams {
                heads: shape.heads as u32,
                kv_heads: shape.kv_heads as u32,
                head_dim: shape.head_dim as u32,
                capacity: kv.capacity as u32,
                pos: pos as u32,
                tokens: tokens as u32,
                queries: queries as u32,
                scale: shape.scale,
                sinks: has,
                v_dim: kv.v_dim as u32,
            };
            let grid = [shape.kv_heads, of_head.div_ceil(queries)];
            self.recorder.run(gpu, variant, &params, &memory, grid);
            return Ok(());
        }
        let params = AttentionParams {
            heads: shape.heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            capacity: kv.capacity as u32,
            base: base(kv, shape, pos),
            pos: pos as u32,
            window: window(shape),
            scale: shape.scale,
            sinks: has,
            v_dim: kv.v_dim as u32,
        };
        self.recorder.run(gpu, variant, &params, &memory, [shape.heads, tokens]);
        Ok(())
    }
}

/// The position at place 0, in the round of the cache where the positions that `pos` attends to begin.
fn base(kv: &GpuKv, shape: &Attention, pos: usize) -> u32 {
    let first = shape.window.map_or(0, |window| (pos + 1).saturating_sub(window));
    (first / kv.capacity * kv.capacity) as u32
}

/// The length of the window; 0 for no limit.
fn window(shape: &Attention) -> u32 {
    shape.window.unwrap_or(0) as u32
}
