//! The weights of a gated delta net.

use super::LayerOf;
use crate::kernels::Delta;
use crate::model::spec::DeltaSpec;
use crate::model::tensors::{Declared, part};
use crate::quant::Matrix;

/// A layer with a gated delta net, as its declarations need it.
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
    /// What a gated delta net has.
    DeltaNet(of: DeltaOf) {
        /// Queries, keys and values: `[channels, d]`.
        first qkv: Matrix = Declared::matrix(of.name("attn_qkv.weight"), of.spec.channels(), of.layer.d);
        /// The gate behind the norm: `[v_heads · v_dim, d]`.
        also z: Matrix = Declared::matrix(of.name("attn_gate.weight"), of.spec.width(), of.layer.d);
        /// How much of a correction is written: `[v_heads, d]`, f32.
        also beta: Matrix = Declared::small(of.name("ssm_beta.weight"), of.spec.v_heads, of.layer.d);
        /// How long a step is: `[v_heads, d]`, f32.
        also alpha: Matrix = Declared::small(of.name("ssm_alpha.weight"), of.spec.v_heads, of.layer.d);
        /// Of the convolution: `[channels, taps]`.
        first conv: Vec<f32> = Declared::small(of.name("ssm_conv1d.weight"), of.spec.channels(), of.spec.taps);
        /// How fast memory fades: `[v_heads]`, below zero.
        first a: Vec<f32> = Declared::vector(of.name("ssm_a"), of.spec.v_heads);
        /// Added to the length of a step: `[v_heads]`.
        first dt: Vec<f32> = Declared::vector(of.name("ssm_dt.bias"), of.spec.v_heads);
        /// Of each head: `[v_dim]`.
        first norm: Vec<f32> = Declared::vector(of.name("ssm_norm.weight"), of.spec.v_dim);
        /// `[d, v_heads · v_dim]`.
        first out: Matrix = Declared::matrix(of.name("ssm_out.weight"), of.layer.d, of.spec.width());
    }
}

impl DeltaNet {
    /// As kernels take it.
    pub fn shape<'a>(&'a self, spec: &DeltaSpec, eps: f32) -> Delta<'a> {
        let &DeltaSpec { k_heads, v_heads, k_dim, v_dim, taps, tiled } = spec;
        let DeltaNet { conv, a, dt, norm, .. } = self;
        Delta { k_heads, v_heads, k_dim, v_dim, taps, tiled, conv, a, dt, norm, eps }
    }
}
