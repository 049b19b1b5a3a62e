//! The weights of a gated delta net layer (arXiv 2412.06464, 2510.26692).

use super::LayerOf;
use crate::kernels::{Decay, Delta, Rule};
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

    /// Rows of the matrix that a projection of `rows` values begins with.
    fn rank_or(&self, rows: usize) -> usize {
        if self.spec.low_rank { self.spec.rank() } else { rows }
    }

    /// From the stream to the gate of the output norm, or to its low-rank form.
    fn gate(&self) -> Declared {
        let name = if self.spec.decay == Decay::Heads { "attn_gate.weight" } else { "ssm_g_a.weight" };
        Declared::matrix(self.name(name), self.rank_or(self.spec.width()), self.layer.d)
    }

    /// From the stream to the step sizes, or to their low-rank form.
    fn steps(&self) -> Declared {
        let rows = self.rank_or(self.spec.decays());
        match self.spec.decay {
            // Few rows: f32.
            Decay::Heads => Declared::small(self.name("ssm_alpha.weight"), rows, self.layer.d),
            _ => Declared::matrix(self.name("ssm_f_a.weight"), rows, self.layer.d),
        }
    }

    /// The second step of a low-rank projection.
    fn second(&self, part: &str, rows: usize) -> Declared {
        Declared::matrix(self.name(part), rows, self.spec.rank()).only_if(self.spec.low_rank)
    }
}

part! {
    /// A gated delta net.
    DeltaNet(of: DeltaOf) {
        /// Projection to queries, keys and values: `[channels, d]`.
        first qkv: Matrix = Declared::matrix(of.name("attn_qkv.weight"), of.spec.channels(), of.layer.d);
        /// Projection to the gate of the output norm: `[v_heads · v_dim or rank, d]`.
        also z: Matrix = of.gate();
        /// Projection to β, the write strength of the delta rule: `[v_heads, d]`, f32. Mamba-2 has none.
        also beta: Option<Matrix> =
            Declared::small(of.name("ssm_beta.weight"), of.spec.v_heads, of.layer.d).only_if(!of.spec.adds);
        /// Projection to the step sizes: `[v_heads, d]`, f32; or `[v_heads · k_dim or rank, d]`.
        also alpha: Matrix = of.steps();
        /// `[v_heads · v_dim, rank]`: the second step of a low-rank gate.
        first z_b: Option<Matrix> = of.second("ssm_g_b.weight", of.spec.width());
        /// `[v_heads · k_dim, rank]`: the second step of low-rank step sizes.
        first alpha_b: Option<Matrix> = of.second("ssm_f_b.weight", of.spec.decays());
        /// Weights of the short convolution: `[channels, taps]`.
        first conv: Vec<f32> = Declared::small(of.name("ssm_conv1d.weight"), of.spec.channels(), of.spec.taps);
        /// `[channels]`: biases of the convolution.
        first bias: Option<Vec<f32>> =
            Declared::vector(of.name("ssm_conv1d.bias"), of.spec.channels()).maybe_if(of.spec.adds);
        /// `[v_heads]`: the value times this is added to the output.
        first skip: Option<Vec<f32>> = Declared::vector(of.name("ssm_d"), of.spec.v_heads).only_if(of.spec.adds);
        /// Decay rates of the memory: `[v_heads]`, negative.
        first a: Vec<f32> = Declared::vector(of.name("ssm_a"), of.spec.v_heads);
        /// Bias of the step sizes: `[v_heads]` or `[v_heads · k_dim]`.
        first dt: Vec<f32> = Declared::vector(of.name("ssm_dt.bias"), of.spec.decays());
        /// Weights of the output norm: `[v_dim]`, the same for each head; or `[v_heads · v_dim]`, with one norm over
        /// all value heads that share a key head.
        first norm: Vec<f32> = Declared::vector(
            of.name("ssm_norm.weight"),
            if of.spec.adds { of.spec.width() } else { of.spec.v_dim },
        );
        /// Output projection: `[d, v_heads · v_dim]`.
        first out: Matrix = Declared::matrix(of.name("ssm_out.weight"), of.layer.d, of.spec.width());
    }
}

impl DeltaNet {
    /// The arguments that the kernels take.
    pub fn shape<'a>(&'a self, spec: &DeltaSpec, eps: f32) -> Delta<'a> {
        let &DeltaSpec { k_heads, v_heads, k_dim, v_dim, taps, tiled, decay, gate, .. } = spec;
        let DeltaNet { conv, a, dt, norm, .. } = self;
        let rule = self.skip.as_deref().map_or(Rule::Correct, |skip| Rule::Add { skip });
        let bias = self.bias.as_deref();
        Delta { k_heads, v_heads, k_dim, v_dim, taps, tiled, rule, decay, gate, conv, bias, a, dt, norm, eps }
    }
}
