//! The forward pass, top to bottom like the papers.
//!
//! [`Model`] is immutable and shared; [`State`] is one timeline's cache and scratch. A call takes a chunk of tokens (a prompt's
//! part, or one token) through every layer; a layer of routed experts is long enough for a file (`routed`).

mod delta;
mod inputs;
mod latent;
mod mixer;
mod routed;
mod state;

pub use state::State;

use super::history::Noted;
use super::routing::{Routing, RoutingCounters};
use super::spec::Spec;
use super::weights::{Ffn, Layer, Weights};
use crate::error::{Error, Result};
use crate::experts::{Expert, ExpertSource};
use crate::kernels::{Added, Backend, FeedCall, Flow, Linear, LinearCall, MANY, Norm, best_of, from_bits};
use inputs::take_rows;
use std::sync::Arc;

/// Rows of logits computed at once when every position's are wanted: bounds their buffer to this many vocabularies. Fewer
/// than what a backend may compute in another way, so that a position's logits do not depend on which others are wanted.
const LOGIT_ROWS: usize = 8;
const _: () = assert!(LOGIT_ROWS < MANY);

/// Weights and everything fixed about them. A clone shares experts, counters and the bytes of matrices.
#[derive(Clone)]
pub struct Model {
    /// What is computed.
    pub spec: Spec,
    /// Always-used weights.
    pub weights: Weights,
    /// Provider of routed experts.
    pub experts: Arc<dyn ExpertSource>,
    /// Departures from the router's choice.
    pub routing: Routing,
    /// How often they happened.
    pub counters: Arc<RoutingCounters>,
}

/// Which positions of a chunk the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: a prompt's earlier chunk.
    Nothing,
    /// The last position's.
    Last,
    /// Of the last position's only so many of the greatest, at most [`MAX_BEST`](crate::kernels::MAX_BEST), in
    /// [`State::likeliest`].
    Best(usize),
    /// Every position's.
    All,
    /// None, but after every layer a look at whether the values are still finite numbers: `NotFinite` where they are not.
    Finite,
}

/// What is heard while tokens pass through a model.
#[derive(Clone, Copy, Debug)]
pub enum Passing<'a> {
    /// So many layers are computed; on a GPU, told to it.
    Layers(usize),
    /// The logits of a wanted position, by its index in the tokens.
    Logits(usize, &'a [f32]),
}

impl Model {
    /// Takes `tokens` at positions `pos..` through the model and hands the logits of the wanted positions to `hear`, in order,
    /// and between them how far it is. An error of `hear` ends the call: what the cache holds at these positions is then of no
    /// use.
    ///
    /// # Panics
    /// Where the tokens are none or more than a chunk, do not fit the cache, or are not in the vocabulary: the session
    /// checks.
    pub fn forward<B: Backend>(
        &self,
        b: &B,
        s: &mut State<B>,
        tokens: &[u32],
        pos: usize,
        want: Want,
        hear: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        let (c, w, n) = (&self.spec, &self.weights, tokens.len());
        assert!(
            n > 0 && n <= s.chunk && pos + n <= s.capacity,
            "{n} tokens at {pos}: chunk {}, capacity {}",
            s.chunk,
            s.capacity
        );
        assert!(tokens.iter().all(|&t| (t as usize) < w.vocab()), "a token is outside the vocabulary");

        s.begin(pos, pos + n);
        if let Some((refine, noted)) = self.experts.refine().zip(s.noted.as_mut()) {
            refine.begin(&mut |refinement| b.refine(refinement))?;
            noted.begin(n);
        }
        take_rows(b, &w.embed, tokens, c.embed_scale, (&mut s.row, &mut s.x))?;
        self.inputs(b, s, tokens)?;
        // Behind the last keys and values only those positions count whose logits are wanted.
        // Who notes choices learns from all.
        let tail = if s.noted.is_some() { None } else { b.tail(n) };
        let needed = match (want, tail) {
            (Want::All | Want::Finite, _) | (_, None) => n,
            (Want::Last | Want::Best(_), Some(tail)) => tail,
            (Want::Nothing, Some(_)) => 0,
        };
        let (mut n, before, mut at) = (n, n - needed, pos);
        if want == Want::Finite {
            finite(b, s, n, c.d, pos, || "in the embedding".into())?;
        }
        for (i, layer) in w.layers.iter().enumerate() {
            self.mixer(b, s, layer, i, at, n);
            if i == c.last_with_kv() && needed < n {
                if needed == 0 {
                    break;
                }
                s.inputs.iter_mut().for_each(|inputs| inputs.cut(before));
                at += before;
                b.copy(&s.x, before * c.d, needed * c.d, &mut s.h);
                std::mem::swap(&mut s.x, &mut s.h);
                n = needed;
            }
            match &layer.ffn {
                Ffn::Dense(ffn) => self.dense(b, s, ffn, layer, i, n),
                Ffn::Moe(moe) => self.moe(b, s, moe, layer, i, n)?,
            }
            if let Some(part) = &layer.per_layer {
                self.take_in(b, s, (layer, part), i, n);
            }
            if want == Want::Finite {
                finite(b, s, n, c.d, pos, || format!("in layer {i}"))?;
            }
            hear(Passing::Layers(i + 1))?;
        }
        self.logits(b, s, n, want, &mut |i, logits| hear(Passing::Logits(before + i, logits)))?;
        if let (Some(refine), Some(noted)) = (self.experts.refine(), &s.noted) {
            noted.end(refine, n)?;
        }
        s.done(pos + tokens.len());
        Ok(())
    }

    /// `x += ffn(norm(x))`, of one block.
    fn dense<B: Backend>(&self, b: &B, s: &mut State<B>, block: &Expert, layer: &Layer, i: usize, n: usize) {
        let State { h, y, x, .. } = &mut *s;
        let norm = Norm { weight: &layer.ffn_norm, eps: self.spec.norm_eps };
        b.linear(LinearCall { x, tokens: n, norm: Some((norm, h)), outs: &mut [], times: None, add: None });
        let activation = self.spec.layers[i].ffn.activation;
        match layer.ffn_post_norm.as_deref() {
            None => b.feed(FeedCall { h, tokens: n, block, activation, gate: None, y, x: Some(x) }),
            Some(norm) => {
                b.feed(FeedCall { h, tokens: n, block, activation, gate: None, y, x: None });
                self.add_normed(b, (y, h, x), norm, layer.ffn_scale(), n);
            }
        }
    }

    /// `x = scale · (x + norm(y))`, by way of `h`.
    fn add_normed<B: Backend>(
        &self,
        b: &B,
        (y, h, to): (&B::Buf, &mut B::Buf, &mut B::Buf),
        weight: &[f32],
        scale: f32,
        n: usize,
    ) {
        let norm = Some((Norm { weight, eps: self.spec.norm_eps }, h));
        b.linear(LinearCall {
            x: y,
            tokens: n,
            norm,
            outs: &mut [],
            times: None,
            add: Some(Added { to, scale }),
        });
    }

    /// Final norm and output head of the wanted positions.
    fn logits<B: Backend>(
        &self,
        b: &B,
        s: &mut State<B>,
        n: usize,
        want: Want,
        each: &mut dyn FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let (c, w) = (&self.spec, &self.weights);
        let mut first = match want {
            Want::Nothing | Want::Finite => return b.flow(Flow::HandOver),
            Want::Last | Want::Best(_) => n - 1,
            Want::All => 0,
        };
        while first < n {
            let rows = LOGIT_ROWS.min(s.chunk).min(n - first);
            b.copy(&s.x, first * c.d, rows * c.d, &mut s.h);
            let norm = Norm { weight: &w.norm, eps: c.norm_eps };
            let head = Linear { matrix: &w.head, bias: None, out: &mut s.logits };
            let norm = Some((norm, &mut s.y));
            b.linear(LinearCall { x: &s.h, tokens: rows, norm, outs: &mut [head], times: None, add: None });
            if let Want::Best(k) = want {
                if b.best(&s.logits, w.vocab(), k, &mut s.best)? {
                    let bits = &mut s.best_bits[..2 * k];
                    read(b, &mut s.noted, (&s.best, 0, bits))?;
                    from_bits(bits, &mut s.likeliest);
                } else {
                    read(b, &mut s.noted, (&s.logits, 0, &mut s.host[..]))?;
                    s.likeliest.resize(k, (0, 0.0));
                    let n = best_of(&s.host, &mut s.likeliest);
                    s.likeliest.truncate(n);
                }
                s.likeliest.iter_mut().for_each(|(_, logit)| *logit = c.capped(*logit));
                return Ok(());
            }
            for row in 0..rows {
                read(b, &mut s.noted, (&s.logits, row * w.vocab(), &mut s.host[..]))?;
                if c.logit_cap.is_some() {
                    s.host.iter_mut().for_each(|logit| *logit = c.capped(*logit));
                }
                each(first + row, &s.host)?;
            }
            first += rows;
        }
        Ok(())
    }
}

/// Whether the first `n` rows of the residual stream are finite numbers.
///
/// # Errors
/// `NotFinite`, with the place and the position of the first row that is not.
fn finite<B: Backend>(
    b: &B,
    s: &State<B>,
    n: usize,
    d: usize,
    pos: usize,
    place: impl FnOnce() -> String,
) -> Result<()> {
    let mut rows = vec![0.0; n * d];
    b.read(&mut [(&s.x, 0, &mut rows)])?;
    match rows.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => Err(Error::NotFinite { place: format!("{} at token {}", place(), pos + at / d) }),
    }
}

/// Downloads a result, and with the first of a call what its routers chose: one wait for both.
fn read<B: Backend>(b: &B, noted: &mut Option<Noted<B>>, result: (&B::Buf, usize, &mut [f32])) -> Result<()> {
    match noted.as_mut().and_then(Noted::unread) {
        Some(choices) => b.read(&mut [result, choices]),
        None => b.read(&mut [result]),
    }
}
