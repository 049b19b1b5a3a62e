//! The weights of multi-head latent attention (MLA, arXiv 2405.04434) in absorbed form: queries are projected
//! into the latent space, and attention returns a latent.

use super::LayerOf;
use crate::model::spec::{AttentionSpec, LatentSpec};
use crate::model::tensors::{Declared, part};
use crate::quant::Matrix;

/// What the declarations of latent attention depend on.
#[derive(Clone, Copy)]
pub struct LatentOf<'a> {
    pub(super) layer: LayerOf<'a>,
    pub(super) spec: &'a AttentionSpec,
    pub(super) of: &'a LatentSpec,
}

impl LatentOf<'_> {
    fn matrix(&self, part: &str, rows: usize, cols: usize) -> Declared {
        Declared::matrix(self.layer.name(&format!("{part}.weight")), rows, cols)
    }

    fn vector(&self, part: &str, len: usize) -> Declared {
        Declared::vector(self.layer.name(part), len)
    }

    /// Rows of the query projection.
    fn q_rows(&self) -> usize {
        self.spec.heads * (self.of.nope_dim + self.of.rope_dim)
    }

    /// Rank of the query projection; 0 if queries come directly from the stream.
    fn q_rank(&self) -> usize {
        self.of.q_rank.unwrap_or(0)
    }

    /// The query projection, from the stream or from the low-rank query.
    fn queries(&self) -> Declared {
        match self.of.q_rank {
            None => self.matrix("attn_q", self.q_rows(), self.layer.d),
            Some(rank) => self.matrix("attn_q_b", self.q_rows(), rank),
        }
    }
}

part! {
    /// Latent attention.
    Latent(of: LatentOf) {
        /// Stream to low-rank query: `[q_rank, d]`.
        first q_a: Option<Matrix> =
            of.matrix("attn_q_a", of.q_rank(), of.layer.d).only_if(of.of.q_rank.is_some());
        /// `[q_rank]`.
        also q_a_bias: Option<Vec<f32>> =
            of.vector("attn_q_a.bias", of.q_rank()).maybe_if(of.of.q_rank.is_some());
        /// `[rope_dim + rank, d]`: stream to the rotated part of the key, and to the latent.
        also kv: Matrix = of.matrix("attn_kv_a_mqa", of.of.rope_dim + of.of.rank, of.layer.d);
        /// `[heads, d]`: gate of each head's output.
        also gate: Option<Matrix> = of.matrix("attn_gate", of.spec.heads, of.layer.d).only_if(of.spec.gated);
        /// `[rope_dim + rank]`.
        also kv_bias: Option<Vec<f32>> =
            of.vector("attn_kv_a_mqa.bias", of.of.rope_dim + of.of.rank).maybe();
        /// Norm of the low-rank query: `[q_rank]`.
        first q_a_norm: Option<Vec<f32>> =
            of.vector("attn_q_a_norm.weight", of.q_rank()).only_if(of.of.q_rank.is_some());
        /// Query projection: `[heads · (nope_dim + rope_dim), d or q_rank]`.
        first q: Matrix = of.queries();
        /// Norm of the latent: `[rank]`.
        first kv_norm: Vec<f32> = of.vector("attn_kv_a_norm.weight", of.of.rank);
        /// `[heads · rank, nope_dim]`: projects each head's query into the latent space.
        first k_b: Matrix = of.matrix("attn_k_b", of.spec.heads * of.of.rank, of.of.nope_dim);
        /// `[heads · v_dim, rank]`: projects the attention output from the latent space to values.
        first v_b: Matrix = of.matrix("attn_v_b", of.spec.heads * of.of.v_dim, of.of.rank);
        /// Output projection: `[d, heads · v_dim]`.
        first o: Matrix = of.matrix("attn_output", of.layer.d, of.spec.heads * of.of.v_dim);
        /// `[d]`.
        also o_bias: Option<Vec<f32>> = of.vector("attn_output.bias", of.layer.d).maybe();
    }
}
