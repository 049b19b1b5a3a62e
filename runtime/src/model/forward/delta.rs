//! A layer with a gated delta net: its projections, the net, and what it gives.

use super::{Model, State};
use crate::error::Result;
use crate::kernels::{Added, Backend, DeltaCall, Linear, LinearCall, Norm, Recur};
use crate::model::Spec;
use crate::model::delta::{DeltaNet, DeltaSpec};

/// Scratch of such layers.
pub(super) struct DeltaScratch<B: Backend> {
    /// Queries, keys and values, `[chunk, channels]`.
    qkv: B::Buf,
    /// The same behind the convolution.
    mixed: B::Buf,
    /// `[chunk, v_heads · v_dim]`.
    z: B::Buf,
    /// `[chunk, v_heads]`.
    beta: B::Buf,
    /// `[chunk, v_heads]`.
    alpha: B::Buf,
    /// `[chunk, v_heads · v_dim]`.
    out: B::Buf,
}

impl<B: Backend> DeltaScratch<B> {
    /// Where the model has such layers.
    pub(super) fn new(backend: &B, spec: &Spec, chunk: usize) -> Result<Option<DeltaScratch<B>>> {
        let Some(d) = spec.delta() else { return Ok(None) };
        Ok(Some(DeltaScratch {
            qkv: backend.alloc(chunk * d.channels())?,
            mixed: backend.alloc(chunk * d.channels())?,
            z: backend.alloc(chunk * d.width())?,
            beta: backend.alloc(chunk * d.v_heads)?,
            alpha: backend.alloc(chunk * d.v_heads)?,
            out: backend.alloc(chunk * d.width())?,
        }))
    }

    /// Words of [`DeltaScratch::new`].
    pub(super) fn words(spec: &Spec, chunk: usize) -> usize {
        spec.delta().map_or(0, |d| chunk * 2 * (d.channels() + d.width() + d.v_heads))
    }
}

impl Model {
    /// `x += out · net(qkv, z, beta, alpha)` of the normed stream.
    pub(super) fn delta<B: Backend>(
        &self,
        b: &B,
        s: &mut State<B>,
        (norm, w, spec): (Norm<'_>, &DeltaNet, &DeltaSpec),
        i: usize,
        n: usize,
        add: bool,
    ) {
        let (turn, DeltaScratch { qkv, mixed, z, beta, alpha, out }) =
            (s.turn, s.delta.as_mut().expect("a layer with a delta net implies scratch"));
        b.linear(LinearCall {
            x: &s.x,
            tokens: n,
            norm: Some((norm, &mut s.h)),
            outs: &mut [
                Linear { matrix: &w.qkv, bias: None, out: qkv },
                Linear { matrix: &w.z, bias: None, out: z },
                Linear { matrix: &w.beta, bias: None, out: beta },
                Linear { matrix: &w.alpha, bias: None, out: alpha },
            ],
            times: None,
            add: None,
        });
        b.recur(Recur::Delta(DeltaCall {
            qkv,
            z,
            beta,
            alpha,
            tokens: n,
            shape: &w.shape(spec, norm.eps),
            state: s.memory[i].state(),
            from: turn.from,
            to: turn.to,
            mixed,
            out,
        }));
        let output = Linear { matrix: &w.out, bias: None, out: &mut s.y };
        let add = Some(Added { to: &mut s.x, scale: 1.0 }).filter(|_| add);
        b.linear(LinearCall { x: out, tokens: n, norm: None, outs: &mut [output], times: None, add });
    }
}
