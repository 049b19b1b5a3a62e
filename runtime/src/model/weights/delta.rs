//! The weights of a gated delta net layer (arXiv 2412.06464).

use super::LayerOf;
use crate::kernels::Delta;
use crate::model::spec::DeltaSpec;
use crate::model::tensors::{Declared, part};
use crate::quant::Matrix;

/// What the declarations of a gated delta net depend on.
#[derive(Clone, Copy)]
pub struct DeltaOf<'a> {
    pub(super) layer: LayerOf<'a>,
    pub(super) spec: &'a DeltaSpec,
}

impl DeltaOf<'_> {
    fn name(&self, part: &str) -> String {
        self.layer.name(part)
    }
}

part! {
    /// A gated delta net.
    DeltaNet(of: DeltaOf) {
        /// Projection to queries, keys and values: `[channels, d]`.
        first qkv: Matrix = Declared::matrix(of.name("attn_qkv.weight"), of.spec.channels(), of.layer.d);
        /// Projection to the gate of the output norm: `[v_heads · v_dim, d]`.
        also z: Matrix = Declared::matrix(of.name("attn_gate.weight"), of.spec.width(), of.layer.d);
        /// Projection to β, the write strength of the delta rule: `[v_heads, d]`, f32.
        also beta: Matrix = Declared::small(of.name("ssm_beta.weight"), of.spec.v_heads, of.layer.d);
        /// Projection to the step size: `[v_heads, d]`, f32.
        also alpha: Matrix = Declared::small(of.name("ssm_alpha.weight"), of.spec.v_heads, of.layer.d);
        /// Weights of the short convolution: `[channels, taps]`.
        first conv: Vec<f32> = Declared::small(of.name("ssm_conv1d.weight"), of.spec.channels(), of.spec.taps);
        /// Decay rates of the memory: `[v_heads]`, negative.
        first a: Vec<f32> = Declared::vector(of.name("ssm_a"), of.spec.v_heads);
        /// Bias of the step size: `[v_heads]`.
        first dt: Vec<f32> = Declared::vector(of.name("ssm_dt.bias"), of.spec.v_heads);
        /// Norm of each head's output: `[v_dim]`.
        first norm: Vec<f32> = Declared::vector(of.name("ssm_norm.weight"), of.spec.v_dim);
        /// Output projection: `[d, v_heads · v_dim]`.
        first out: Matrix = Declared::matrix(of.name("ssm_out.weight"), of.layer.d, of.spec.width());
    }
}

impl DeltaNet {
    /// The arguments that the kernels take.
    pub fn shape<'a>(&'a self, spec: &DeltaSpec, eps: f32) -> Delta<'a> {
        let &DeltaSpec { k_heads, v_heads, k_dim, v_dim, taps, tiled } = spec;
        let DeltaNet { conv, a, dt, norm, .. } = self;
        Delta { k_heads, v_heads, k_dim, v_dim, taps, tiled, conv, a, dt, norm, eps }
    }
}
