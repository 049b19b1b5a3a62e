//! A gated delta net as dispatches: what it works on, its memory token by token, its norm.

use super::State;
use super::device::Device;
use super::kv::GpuBuf;
use super::params::{DeltaMixParams, DeltaParams, GatedNormParams};
use crate::error::Result;
use crate::kernels::{Decay, DeltaCall, Gate, Recurrent, Rule};
use dollop_shaders::Variant;

/// Invocations of a workgroup.
const LANES: usize = 128;

/// Values of a key that `delta.wgsl` has room for.
pub(super) const MAX_KEY: usize = 256;

impl State {
    pub(super) fn delta(&mut self, gpu: &Device, call: DeltaCall<'_, '_, GpuBuf>) -> Result<()> {
        let DeltaCall { qkv, z, beta, alpha, sequences, shape: d, mixed, out } = call;
        let Recurrent { tokens, state, from, to } = super::only(sequences);
        let (channels, width, values) = (d.channels(), d.v_heads * d.v_dim, d.state_values());
        assert!(from != Some(to), "what is read is not written");
        assert!(tokens * channels <= qkv.len.min(mixed.len) && tokens * width <= z.len.min(out.len));
        assert!(tokens * d.v_heads <= beta.len && tokens * d.decays() <= alpha.len);
        assert!((to.max(from.unwrap_or(0)) + 1) * values <= state.len && d.k_dim <= MAX_KEY);
        let [k_heads, v_heads, k_dim, v_dim] = [d.k_heads, d.v_heads, d.k_dim, d.v_dim].map(|n| n as u32);
        let (taps, rows, values) = (d.taps as u32, tokens as u32, values as u32);
        let (before_slot, after_slot) = (from.unwrap_or(0) as u32, to as u32);
        let before = from.is_some().into();
        let adds = u32::from(d.adds());
        let skip = if let Rule::Add { skip } = d.rule { skip } else { &[] };
        let taps_of = self.weights.vector(gpu, d.conv, || [d.conv, d.bias.unwrap_or_default()].concat())?;
        let fades = self.weights.vector(gpu, d.a, || [d.a, d.dt, skip].concat())?;
        let norm = self.weights.vector(gpu, d.norm, || d.norm.to_vec())?;
        let usual = Variant::default();
        let mix = DeltaMixParams {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            tokens: rows,
            values,
            before_slot,
            after_slot,
            before,
            bias: d.bias.is_some().into(),
            adds,
        };
        let heads = 2 * d.k_heads + d.v_heads;
        let memory = [&qkv.memory, &taps_of, &state.memory, &mixed.memory];
        self.recorder.run(gpu, usual, &mix, &memory, [heads, tokens + d.taps - 1]);
        let rule = DeltaParams {
            k_heads,
            v_heads,
            k_dim,
            v_dim,
            taps,
            tokens: rows,
            values,
            before_slot,
            after_slot,
            before,
            tiled: d.tiled.into(),
            decays: d.decays() as u32,
            adds,
            lower: if let Decay::Bounded(lower) = d.decay { lower } else { 0.0 },
        };
        let memory = [&beta.memory, &alpha.memory, &fades, &state.memory, &mixed.memory];
        self.recorder.run(gpu, usual, &rule, &memory, [d.v_heads, d.v_dim.div_ceil(LANES)]);
        let (first, sigmoid) = ((channels - width) as u32, (d.gate == Gate::Sigmoid).into());
        let params = GatedNormParams {
            heads: (width / d.norm_dim()) as u32,
            dim: d.norm_dim() as u32,
            weights: d.norm.len() as u32,
            gate_first: adds,
            stride: channels as u32,
            first,
            sigmoid,
            eps: d.eps,
        };
        let memory = [&mixed.memory, &norm, &z.memory, &out.memory];
        self.recorder.run(gpu, usual, &params, &memory, [width / d.norm_dim(), tokens]);
        Ok(())
    }
}
