//! The weights of a layer's token mixer: attention or one of its replacements.

use super::LayerOf;
use super::delta::{DeltaNet, DeltaOf};
use super::latent::{Latent, LatentOf};
use crate::error::Result;
use crate::model::spec::{AttentionSpec, MixerSpec};
use crate::model::tensors::{Declared, Held, Met, Tensors, part};
use crate::quant::Matrix;

/// The token mixer of a layer.
#[derive(Clone, Debug)]
// One per layer: the difference in size does not matter.
#[allow(clippy::large_enum_variant)]
pub enum Mixer {
    /// Grouped-query attention.
    Attention(Attention),
    /// Latent attention (MLA).
    Latent(Latent),
    /// A gated short convolution.
    Conv(Conv),
    /// A gated delta net.
    Delta(DeltaNet),
    /// Nothing: the layer is a feed-forward block.
    Nothing,
}

/// What the declarations of attention depend on.
#[derive(Clone, Copy)]
pub struct AttentionOf<'a> {
    layer: LayerOf<'a>,
    spec: &'a AttentionSpec,
}

impl AttentionOf<'_> {
    fn matrix(&self, part: &str, rows: usize, cols: usize) -> Declared {
        Declared::matrix(self.layer.name(&format!("{part}.weight")), rows, cols)
    }

    /// Whether the layer has a KV cache of its own.
    fn has_kv(&self) -> bool {
        self.spec.kv_of.is_none()
    }

    /// The value projection, which some families may leave out.
    fn values(&self) -> Declared {
        let values = self.matrix("attn_v", self.spec.kv_width(), self.layer.d);
        match self.spec.keys_as_values {
            true => values.maybe_if(self.has_kv()),
            false => values.only_if(self.has_kv()),
        }
    }

    /// The bias of a projection: required or optional, as the specification says.
    fn bias(&self, part: &str, len: usize) -> Declared {
        let bias = Declared::vector(self.layer.name(&format!("{part}.bias")), len);
        if self.spec.biases { bias } else { bias.maybe() }
    }

    /// A norm over each head, or over a whole row of `width` values unless it comes after RoPE.
    fn head_norm(&self, part: &str, width: usize) -> Declared {
        let norm = Declared::vector(self.layer.name(&format!("{part}.weight")), self.spec.head_dim);
        if self.spec.late_norms { norm } else { norm.or(width) }
    }
}

part! {
    /// Grouped-query attention.
    Attention(of: AttentionOf) {
        /// Query projection, `[heads · head_dim, d]`.
        first q: Matrix = of.matrix("attn_q", of.spec.q_width(), of.layer.d);
        /// `[heads · head_dim]`.
        also q_bias: Option<Vec<f32>> = of.bias("attn_q", of.spec.q_width());
        /// Key projection, `[kv_heads · head_dim, d]`; `None` if the layer reads another layer's cache.
        also k: Option<Matrix> = of.matrix("attn_k", of.spec.kv_width(), of.layer.d).only_if(of.has_kv());
        /// `[kv_heads · head_dim]`.
        also k_bias: Option<Vec<f32>> = of.bias("attn_k", of.spec.kv_width());
        /// Value projection, `[kv_heads · head_dim, d]`. If it is missing, the unrotated keys are the values.
        also v: Option<Matrix> = of.values();
        /// `[kv_heads · head_dim]`.
        also v_bias: Option<Vec<f32>> = of.bias("attn_v", of.spec.kv_width());
        /// Projection to the gate of the attention output: `[heads · head_dim, d]`, or `[heads, d]`.
        also gate: Option<Matrix> =
            of.matrix("attn_gate", of.spec.q_width(), of.layer.d).or_rows(of.spec.heads).only_if(of.spec.gated);
        /// `[heads · head_dim]`.
        also gate_bias: Option<Vec<f32>> = match of.spec.gated {
            true => of.bias("attn_gate", of.spec.q_width()),
            false => of.bias("attn_gate", of.spec.q_width()).only_if(false),
        };
        /// Output projection, `[d, heads · head_dim]`.
        first o: Matrix = of.matrix("attn_output", of.layer.d, of.spec.q_width());
        /// `[d]`.
        also o_bias: Option<Vec<f32>> = of.bias("attn_output", of.layer.d);
        /// Norm of queries, over each head (`[head_dim]`) or the whole row (`[heads · head_dim]`).
        first q_norm: Option<Vec<f32>> = of.head_norm("attn_q_norm", of.spec.q_width()).maybe();
        /// Norm of keys, over each head (`[head_dim]`) or the whole row (`[kv_heads · head_dim]`).
        first k_norm: Option<Vec<f32>> = of.head_norm("attn_k_norm", of.spec.kv_width()).maybe_if(of.has_kv());
        /// Attention sink logits, `[heads]`.
        first sinks: Option<Vec<f32>> =
            Declared::vector(of.layer.name("attn_sinks.weight"), of.spec.heads).only_if(of.spec.sinks);
    }
}

/// What the declarations of a short convolution depend on.
#[derive(Clone, Copy)]
pub struct ConvOf<'a> {
    layer: LayerOf<'a>,
    taps: usize,
}

impl ConvOf<'_> {
    fn name(&self, part: &str) -> String {
        self.layer.name(&format!("shortconv.{part}"))
    }
}

part! {
    /// A gated short convolution: `out · (C ⊙ conv(B ⊙ v))` with `[B, C, v] = input · h`.
    Conv(of: ConvOf) {
        /// `[3 · d, d]`.
        first input: Matrix = Declared::matrix(of.name("in_proj.weight"), 3 * of.layer.d, of.layer.d);
        /// `[3 · d]`.
        also input_bias: Option<Vec<f32>> = Declared::vector(of.name("in_proj.bias"), 3 * of.layer.d).maybe();
        /// `[d, taps]`, the weight of the newest input last.
        first weight: Vec<f32> = Declared::small(of.name("conv.weight"), of.layer.d, of.taps);
        /// `[d]`.
        first bias: Option<Vec<f32>> = Declared::vector(of.name("conv.bias"), of.layer.d).maybe();
        /// `[d, d]`.
        first output: Matrix = Declared::matrix(of.name("out_proj.weight"), of.layer.d, of.layer.d);
        /// `[d]`.
        also output_bias: Option<Vec<f32>> = Declared::vector(of.name("out_proj.bias"), of.layer.d).maybe();
    }
}

impl Mixer {
    /// The mixer's matrices, in the order of use.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let all = match self {
            Mixer::Attention(a) => {
                [Some(&a.q), a.k.as_ref(), a.v.as_ref(), a.gate.as_ref(), Some(&a.o), None, None]
            }
            Mixer::Latent(l) => {
                let (q_a, gate) = (l.q_a.as_ref(), l.gate.as_ref());
                [q_a, Some(&l.kv), gate, Some(&l.q), Some(&l.k_b), Some(&l.v_b), Some(&l.o)]
            }
            Mixer::Conv(c) => [Some(&c.input), Some(&c.output), None, None, None, None, None],
            Mixer::Delta(d) => {
                let (z_b, alpha_b) = (d.z_b.as_ref(), d.alpha_b.as_ref());
                [Some(&d.qkv), Some(&d.z), d.beta.as_ref(), Some(&d.alpha), z_b, alpha_b, Some(&d.out)]
            }
            Mixer::Nothing => [None; 7],
        };
        all.into_iter().flatten()
    }
}

impl Held for Mixer {
    type Of<'o> = LayerOf<'o>;

    fn declare(of: LayerOf<'_>, to: &mut Vec<Declared>) {
        match &of.spec.mixer {
            MixerSpec::Attention(spec) => match &spec.latent {
                None => Attention::declare(AttentionOf { layer: of, spec }, to),
                Some(latent) => Latent::declare(LatentOf { layer: of, spec, of: latent }, to),
            },
            MixerSpec::Conv { taps } => Conv::declare(ConvOf { layer: of, taps: *taps }, to),
            MixerSpec::Delta(spec) => DeltaNet::declare(DeltaOf { layer: of, spec }, to),
            MixerSpec::Nothing => {}
        }
    }

    fn read(from: &dyn Tensors, of: LayerOf<'_>) -> Result<Mixer> {
        Ok(match &of.spec.mixer {
            MixerSpec::Attention(spec) => match &spec.latent {
                None => Mixer::Attention(Attention::read(from, AttentionOf { layer: of, spec })?),
                Some(latent) => Mixer::Latent(Latent::read(from, LatentOf { layer: of, spec, of: latent })?),
            },
            MixerSpec::Conv { taps } => Mixer::Conv(Conv::read(from, ConvOf { layer: of, taps: *taps })?),
            MixerSpec::Delta(spec) => Mixer::Delta(DeltaNet::read(from, DeltaOf { layer: of, spec })?),
            MixerSpec::Nothing => Mixer::Nothing,
        })
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        match self {
            Mixer::Attention(attention) => attention.each(met),
            Mixer::Latent(latent) => latent.each(met),
            Mixer::Conv(conv) => conv.each(met),
            Mixer::Delta(delta) => delta.each(met),
            Mixer::Nothing => {}
        }
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        match self {
            Mixer::Attention(attention) => attention.each_mut(met),
            Mixer::Latent(latent) => latent.each_mut(met),
            Mixer::Conv(conv) => conv.each_mut(met),
            Mixer::Delta(delta) => delta.each_mut(met),
            Mixer::Nothing => {}
        }
    }
}
