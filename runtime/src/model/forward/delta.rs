//! The forward pass of a gated delta net layer.

use super::scratch::DeltaScratch;
use super::{Model, Part, Scratch, recurrences};
use crate::kernels::{Added, Backend, DeltaCall, Linear, LinearCall, Norm, Recur};
use crate::model::spec::DeltaSpec;
use crate::model::weights::DeltaNet;

impl Model {
    /// `x += out · net(qkv, z, beta, alpha)`, computed from the normed stream.
    pub(super) fn delta<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &mut [Part<'_, B>],
        (norm, w, spec): (Option<Norm<'_>>, &DeltaNet, &DeltaSpec),
        (i, n): (usize, usize),
        add: bool,
    ) {
        let DeltaScratch { qkv, mixed, z, beta, alpha, z_low, alpha_low, out } =
            s.delta.as_mut().expect("a layer with a delta net implies scratch");
        let second = w.z_b.as_ref().zip(w.alpha_b.as_ref());
        let (first_z, first_alpha) =
            if second.is_some() { (&mut *z_low, &mut *alpha_low) } else { (&mut *z, &mut *alpha) };
        let mut linear = |outs: &mut [Linear<'_, B::Buf>]| {
            let norm = norm.map(|norm| (norm, &mut s.h));
            b.linear(LinearCall { x: &s.x, tokens: n, norm, outs, times: None, add: None });
        };
        let qkv_of = Linear { matrix: &w.qkv, bias: None, out: &mut *qkv };
        let z_of = Linear { matrix: &w.z, bias: None, out: first_z };
        let alpha_of = Linear { matrix: &w.alpha, bias: None, out: first_alpha };
        match &w.beta {
            Some(matrix) => {
                linear(&mut [qkv_of, z_of, Linear { matrix, bias: None, out: &mut *beta }, alpha_of]);
            }
            None => linear(&mut [qkv_of, z_of, alpha_of]),
        }
        if let Some((z_b, alpha_b)) = second {
            for (x, matrix, out) in [(&*z_low, z_b, &mut *z), (&*alpha_low, alpha_b, &mut *alpha)] {
                let outs = &mut [Linear { matrix, bias: None, out }];
                b.linear(LinearCall { x, tokens: n, norm: None, outs, times: None, add: None });
            }
        }
        b.recur(Recur::Delta(DeltaCall {
            qkv,
            z,
            beta,
            alpha,
            sequences: &mut recurrences(parts, i),
            shape: &w.shape(spec, self.spec.norm_eps),
            mixed,
            out,
        }));
        let output = Linear { matrix: &w.out, bias: None, out: &mut s.y };
        let add = Some(Added { to: &mut s.x, scale: 1.0 }).filter(|_| add);
        b.linear(LinearCall { x: out, tokens: n, norm: None, outs: &mut [output], times: None, add });
    }
}
