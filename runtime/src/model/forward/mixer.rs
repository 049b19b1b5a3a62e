//! The forward pass of a layer's token mixer. Attention and short convolutions are here; latent attention and
//! delta nets have files of their own.

use super::{Model, Part, Scratch, recurrences, sequences};
use crate::kernels::{
    Added, AttendCall, Attention, Backend, ConvCall, Gated, Linear, LinearCall, Norm, Placing, Projected,
    Recur,
};
use crate::model::spec::{AttentionSpec, MixerSpec};
use crate::model::weights::{self, Conv, Layer, Mixer};

impl Model {
    /// `h = norm(x)`, or `x` itself without a norm.
    pub(super) fn normed<B: Backend>(
        &self,
        b: &B,
        (x, h): (&B::Buf, &mut B::Buf),
        norm: Option<Norm<'_>>,
        n: usize,
    ) {
        let Some(norm) = norm else { return b.copy(x, 0, n * self.spec.d, h) };
        let norm = Some((norm, h));
        b.linear(LinearCall { x, tokens: n, norm, outs: &mut [], times: None, add: None });
    }

    /// `x += mixer(norm(x))`.
    pub(super) fn mixer<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &mut [Part<'_, B>],
        layer: &Layer,
        i: usize,
        n: usize,
    ) {
        let norm = layer.mixer_norm(self.spec.stream_eps);
        // The output is added to the stream directly, or normed first.
        let post = layer.mixer_post_norm.as_deref();
        let add = post.is_none();
        match (&layer.mixer, &self.spec.layers[i].mixer) {
            (Mixer::Attention(w), MixerSpec::Attention(a)) => {
                self.attention(b, s, parts, (norm, w, a), (i, n), add)
            }
            (Mixer::Latent(w), MixerSpec::Attention(a)) => {
                self.latent(b, s, parts, (norm, w, a), (i, n), add)
            }
            (Mixer::Conv(w), MixerSpec::Conv { taps }) => {
                self.conv(b, s, parts, (norm, w, *taps), (i, n), add)
            }
            (Mixer::Delta(w), MixerSpec::Delta(of)) => self.delta(b, s, parts, (norm, w, of), (i, n), add),
            (Mixer::Nothing, _) => return,
            _ => unreachable!("weights are read as the specification says"),
        }
        if let Some(norm) = post {
            self.add_normed(b, (&s.y, &mut s.h, &mut s.x), norm, 1.0, n);
        }
    }

    /// `x += o · attention(rope(norm(q)), rope(norm(k)), v)` of the normed stream.
    fn attention<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &mut [Part<'_, B>],
        (norm, w, a): (Option<Norm<'_>>, &weights::Attention, &AttentionSpec),
        (i, n): (usize, usize),
        add: bool,
    ) {
        let eps = self.spec.norm_eps;
        let q = Linear { matrix: &w.q, bias: w.q_bias.as_deref(), out: &mut s.q };
        let (k_bias, v_bias) = (w.k_bias.as_deref(), w.v_bias.as_deref());
        let k = w.k.as_ref().map(|matrix| Linear { matrix, bias: k_bias, out: &mut s.k });
        let v = w.v.as_ref().map(|matrix| Linear { matrix, bias: v_bias, out: &mut s.v });
        let gate_bias = w.gate_bias.as_deref();
        let gate = w.gate.as_ref().map(|matrix| Linear { matrix, bias: gate_bias, out: &mut s.gate });
        let norm = norm.map(|norm| (norm, &mut s.h));
        let linear = |outs: &mut [Linear<'_, B::Buf>]| {
            b.linear(LinearCall { x: &s.x, tokens: n, norm, outs, times: None, add: None });
        };
        match (k, v, gate) {
            (Some(k), Some(v), None) => linear(&mut [q, k, v]),
            (Some(k), Some(v), Some(gate)) => linear(&mut [q, k, v, gate]),
            (Some(k), None, _) => {
                linear(&mut [q, k]);
                b.copy(&s.k, 0, n * a.kv_width(), &mut s.v);
            }
            // The other layer's keys and values are already in its cache.
            (None, _, _) => linear(&mut [q]),
        }
        let how = Placing {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            q_norm: w.q_norm.as_deref(),
            k_norm: w.k_norm.as_deref(),
            v_norm: a.v_norm,
            late_norms: a.late_norms,
            latent: false,
            eps,
            limit: a.limit,
            rope: &s.ropes[a.rope],
        };
        let projected = Projected { q: &mut s.q, k: &mut s.k, v: &mut s.v };
        let shape = Attention {
            heads: a.heads,
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            scale: a.scale,
            window: a.window,
            sinks: w.sinks.as_deref(),
        };
        let out = &mut s.attn;
        let gate = w.gate.as_ref().map(|gate| Gated {
            by: &s.gate,
            heads: gate.rows() == a.heads,
            softplus: a.softplus,
        });
        let shared = a.kv_of.is_some();
        b.attend(AttendCall {
            x: projected,
            how: &how,
            tokens: n,
            sequences: &mut sequences(parts, a.kv_of.unwrap_or(i)),
            shared,
            shape: &shape,
            absorbed: None,
            gate,
            out,
        });
        let o = Linear { matrix: &w.o, bias: w.o_bias.as_deref(), out: &mut s.y };
        let add = Some(Added { to: &mut s.x, scale: 1.0 }).filter(|_| add);
        b.linear(LinearCall { x: &s.attn, tokens: n, norm: None, outs: &mut [o], times: None, add });
    }

    /// `x += output · (C ⊙ conv(B ⊙ v))` with `[B, C, v] = input · h` of the normed stream.
    fn conv<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &mut [Part<'_, B>],
        (norm, w, taps): (Option<Norm<'_>>, &Conv, usize),
        (i, n): (usize, usize),
        add: bool,
    ) {
        let input = Linear { matrix: &w.input, bias: w.input_bias.as_deref(), out: &mut s.conv };
        b.linear(LinearCall {
            x: &s.x,
            tokens: n,
            norm: norm.map(|norm| (norm, &mut s.h)),
            outs: &mut [input],
            times: None,
            add: None,
        });
        b.recur(Recur::Conv(ConvCall {
            x: &s.conv,
            sequences: &mut recurrences(parts, i),
            weight: &w.weight,
            bias: w.bias.as_deref(),
            taps,
            out: &mut s.h,
        }));
        let output = Linear { matrix: &w.output, bias: w.output_bias.as_deref(), out: &mut s.y };
        let add = Some(Added { to: &mut s.x, scale: 1.0 }).filter(|_| add);
        b.linear(LinearCall { x: &s.h, tokens: n, norm: None, outs: &mut [output], times: None, add });
    }
}
