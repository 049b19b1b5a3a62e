//! The forward pass of multi-head latent attention: queries are projected into the latent space head by head,
//! and the attention output is projected from there to values.

use super::{Model, Part, Scratch, sequences};
use crate::kernels::{
    Absorbed, Added, AttendCall, Attention, Backend, Gated, Linear, LinearCall, Norm, Placing, Projected,
};
use crate::model::spec::AttentionSpec;
use crate::model::weights::Latent;

/// Epsilon of the norms between the projections. It is fixed, whatever the model's other norms use.
const EPS: f32 = 1e-6;

impl Model {
    /// `x += o · v_b · attention(rope(q) and k_b · q, rope(k) and c, c)` of the normed stream, with the
    /// latent `c`.
    pub(super) fn latent<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &mut [Part<'_, B>],
        (norm, w, a): (Option<Norm<'_>>, &Latent, &AttentionSpec),
        (i, n): (usize, usize),
        add: bool,
    ) {
        let kv = Linear { matrix: &w.kv, bias: w.kv_bias.as_deref(), out: &mut s.k };
        let norm = norm.map(|norm| (norm, &mut s.h));
        let q = Linear { matrix: &w.q, bias: None, out: &mut s.q };
        let low = w.q_a.as_ref().zip(w.q_a_norm.as_ref());
        let (first, second) = match low {
            None => (q, None),
            Some((matrix, weight)) => {
                (Linear { matrix, bias: w.q_a_bias.as_deref(), out: &mut s.v }, Some((weight, q)))
            }
        };
        let gate = w.gate.as_ref().map(|matrix| Linear { matrix, bias: None, out: &mut s.gate });
        let linear = |outs: &mut [Linear<'_, B::Buf>]| {
            b.linear(LinearCall { x: &s.x, tokens: n, norm, outs, times: None, add: None });
        };
        match gate {
            None => linear(&mut [first, kv]),
            Some(gate) => linear(&mut [first, kv, gate]),
        }
        if let Some((weight, q)) = second {
            let norm = Some((Norm::rms(weight, EPS), &mut s.y));
            b.linear(LinearCall { x: &s.v, tokens: n, norm, outs: &mut [q], times: None, add: None });
        }
        let how = Placing {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            q_norm: None,
            k_norm: Some(&w.kv_norm),
            v_norm: false,
            late_norms: false,
            latent: true,
            eps: EPS,
            limit: a.limit,
            rope: &s.ropes[a.rope],
        };
        let shape = Attention {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            window: a.window,
            sinks: None,
        };
        b.attend(AttendCall {
            x: Projected { q: &mut s.q, k: &mut s.k, v: &mut s.v },
            how: &how,
            tokens: n,
            sequences: &mut sequences(parts, i),
            shared: false,
            shape: &shape,
            absorbed: Some(Absorbed { queries: &w.k_b, values: &w.v_b }),
            gate: w.gate.as_ref().map(|_| Gated { by: &s.gate, heads: true, softplus: false }),
            out: &mut s.attn,
        });
        let o = Linear { matrix: &w.o, bias: w.o_bias.as_deref(), out: &mut s.y };
        let add = Some(Added { to: &mut s.x, scale: 1.0 }).filter(|_| add);
        b.linear(LinearCall { x: &s.attn, tokens: n, norm: None, outs: &mut [o], times: None, add });
    }
}
