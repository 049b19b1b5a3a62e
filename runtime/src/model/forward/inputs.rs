//! The layers' extra inputs: computed before the first layer from the token and its embedding, and added to
//! the stream after each layer's feed-forward.

use super::{Model, Scratch};
use crate::error::Result;
use crate::kernels::{Added, Backend, Linear, LinearCall, Norm, Times};
use crate::model::embedding::Embedding;
use crate::model::weights::{Layer, LayerInputs, PerLayer};

impl Model {
    /// The extra inputs of all layers: `(√per_layer · embed[token] + norm(proj · x / √d)) / √2`, with the
    /// embedded stream `x`.
    pub(super) fn inputs<B: Backend>(&self, b: &B, s: &mut Scratch<B>) -> Result<()> {
        let (c, Scratch { x, row, inputs, tokens, .. }) = (&self.spec, s);
        let (Some(LayerInputs { embed, proj, norm }), Some(s)) = (&self.weights.per_layer, inputs) else {
            return Ok(());
        };
        s.cut = 0;
        let (scale, n) = ((c.per_layer as f32).sqrt(), tokens.len());
        take_rows(b, embed, tokens, scale, (row, &mut s.all))?;
        let out = Linear { matrix: proj, bias: None, out: &mut s.projected };
        b.linear(LinearCall { x, tokens: n, norm: None, outs: &mut [out], times: None, add: None });
        // `norm(v / √d)` with epsilon e equals `norm(v)` with epsilon e · d, so we skip the division.
        let norm = Norm::rms(norm, c.norm_eps * c.d as f32);
        let add = Some(Added { to: &mut s.all, scale: std::f32::consts::FRAC_1_SQRT_2 });
        b.linear(LinearCall {
            x: &s.projected,
            tokens: n * c.layers.len(),
            norm: Some((norm, &mut s.normed)),
            outs: &mut [],
            times: None,
            add,
        });
        Ok(())
    }

    /// `x = scale · (x + norm(proj · (gelu(gate · x) ⊙ input)))`.
    pub(super) fn take_in<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        (layer, part): (&Layer, &PerLayer),
        i: usize,
        n: usize,
    ) {
        let (c, Scratch { h, y, x, inputs, .. }) = (&self.spec, s);
        let s = inputs.as_mut().expect("a layer with an input implies room for it");
        let (p, layers) = (c.per_layer, c.layers.len());
        let activation = c.layers[i].ffn.activation;
        let times = Some(Times { activation, by: &s.all, at: (s.cut * layers + i) * p, stride: layers * p });
        let gate = Linear { matrix: &part.gate, bias: None, out: &mut s.gated };
        b.linear(LinearCall { x, tokens: n, norm: None, outs: &mut [gate], times, add: None });
        let out = Linear { matrix: &part.proj, bias: None, out: &mut *y };
        b.linear(LinearCall { x: &s.gated, tokens: n, norm: None, outs: &mut [out], times: None, add: None });
        self.add_normed(b, (y, h, x), &part.norm, layer.scale(), n);
    }
}

/// `out[i] = scale · embed[tokens[i]]`. `row` is scratch for one row.
pub(super) fn take_rows<B: Backend>(
    b: &B,
    embed: &Embedding,
    tokens: &[u32],
    scale: f32,
    (row, out): (&mut [f32], &mut B::Buf),
) -> Result<()> {
    match embed {
        Embedding::Held(table) => {
            b.embed(table, tokens, scale, out);
            Ok(())
        }
        Embedding::Read(rows) => rows.read(tokens, &mut |i, from| {
            let row = &mut row[..from.len()];
            row.iter_mut().zip(from).for_each(|(to, from)| *to = scale * from);
            b.upload(out, i * from.len(), row);
        }),
    }
}
