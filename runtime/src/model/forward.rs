//! The forward pass, top to bottom like the papers.
//!
//! [`Model`] is immutable and shared, [`Memory`] is what one sequence keeps, and [`Scratch`] holds the
//! buffers of a call. A call runs tokens through every layer: a chunk of one sequence, or one token each of
//! several sequences, which then share the reads of weights. Everything except the mixers works on rows,
//! whichever sequence they belong to. Layers with routed experts have their own file (`routed`).

mod delta;
mod inputs;
mod latent;
mod mixer;
mod routed;
mod scratch;
mod state;

pub use scratch::Scratch;
pub use state::Memory;

use super::history::Noted;
use super::routing::{Routing, RoutingCounters};
use super::spec::Spec;
use super::weights::{Ffn, Layer, Weights};
use crate::error::{Error, Result};
use crate::experts::{Expert, ExpertSource};
use crate::kernels::{
    Added, Backend, FeedCall, Flow, Linear, LinearCall, MANY, Norm, Recurrent, Sequence, best_of, from_bits,
};
use inputs::take_rows;
use std::sync::Arc;

/// The most rows of logits computed at once, which bounds their buffer to this many vocabularies. Fewer than
/// [`MANY`], from which on a backend may compute differently. So a position's logits do not depend on which
/// others are wanted.
const LOGIT_ROWS: usize = 8;
const _: () = assert!(LOGIT_ROWS < MANY);

/// A model's weights and fixed settings. A clone shares experts, counters and the bytes of matrices.
#[derive(Clone)]
pub struct Model {
    /// The model's structure and dimensions.
    pub spec: Spec,
    /// The always-used weights.
    pub weights: Weights,
    /// The source of routed experts.
    pub experts: Arc<dyn ExpertSource>,
    /// Options that change the router's choices.
    pub routing: Routing,
    /// How often they did.
    pub counters: Arc<RoutingCounters>,
}

/// The tokens of one sequence in a call.
pub struct Part<'a, B: Backend> {
    /// The memory of the sequence.
    pub memory: &'a mut Memory<B>,
    /// The tokens.
    pub tokens: &'a [u32],
    /// The position of the first token.
    pub pos: usize,
    /// The logits that the caller wants.
    pub want: Want,
}

/// The keys and values of one layer, for all parts.
fn sequences<'a, B: Backend>(
    parts: &'a mut [Part<'_, B>],
    layer: usize,
) -> impl Iterator<Item = Sequence<'a, B::Kv>> {
    parts.iter_mut().map(move |part| Sequence {
        pos: part.pos,
        tokens: part.tokens.len(),
        kv: part.memory.kv_mut(layer),
    })
}

/// The recurrent states of one layer, for all parts.
fn recurrences<'a, B: Backend>(
    parts: &'a mut [Part<'_, B>],
    layer: usize,
) -> impl Iterator<Item = Recurrent<'a, B::Buf>> {
    parts.iter_mut().map(move |part| part.memory.recurrent(layer, part.tokens.len()))
}

/// The logits that the caller wants of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: an earlier chunk of a prompt.
    Nothing,
    /// Those of the last position.
    Last,
    /// The greatest logits of the last position: this many, at most [`MAX_BEST`](crate::kernels::MAX_BEST).
    Best(usize),
    /// Those of every position.
    All,
    /// None, but check after every layer that values are finite, and return `NotFinite` if not.
    Finite,
}

/// A progress report or result of a call.
#[derive(Clone, Copy, Debug)]
pub enum Passing<'a> {
    /// This many layers are computed; on a GPU, submitted.
    Layers(usize),
    /// The logits of a wanted position, by its index among the call's tokens.
    Logits(usize, &'a [f32]),
    /// A wanted position's greatest logits with their tokens, greatest first; fewer if some are not numbers.
    Best(usize, &'a [(u32, f32)]),
}

impl Model {
    /// Runs the tokens of `parts` through the model, each part at its own positions. Passes progress and the
    /// logits of the wanted positions to `emit`, in order. With several parts, each has one token, and its
    /// result is bit-identical to that of a call on its own. An error of `emit` ends the call; the caches'
    /// contents at these positions are then invalid.
    ///
    /// # Panics
    /// If there are no tokens, more than a chunk, or more parts than [`Backend::TOGETHER`]; if one of several
    /// parts has more than one token; if tokens do not fit the cache or are not in the vocabulary. The
    /// session checks all this.
    pub fn forward<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &mut [Part<'_, B>],
        emit: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        let (c, w, n) = (&self.spec, &self.weights, parts.iter().map(|p| p.tokens.len()).sum());
        let several = parts.len() > 1;
        assert!(n > 0 && n <= s.chunk && parts.len() <= B::TOGETHER, "{n} tokens: chunk {}", s.chunk);
        s.tokens.clear();
        for Part { memory, tokens, pos, .. } in parts.iter_mut() {
            let end = *pos + tokens.len();
            assert!(end <= memory.capacity().min(s.capacity), "{pos}..{end} of {}", memory.capacity());
            assert!(!several || tokens.len() == 1, "several sequences go on by a token each");
            assert!(tokens.iter().all(|&t| (t as usize) < w.vocab()), "a token is outside the vocabulary");
            memory.begin(*pos, end);
            s.tokens.extend_from_slice(tokens);
        }
        if let Some((refine, noted)) = self.experts.refine().zip(s.noted.as_mut()) {
            refine.begin(&mut |refinement| b.refine(refinement))?;
            noted.begin(n);
        }
        take_rows(b, &w.embed, &s.tokens, c.embed_scale, (&mut s.row, &mut s.x))?;
        self.inputs(b, s)?;
        let (want, ends) = (parts[0].want, n);
        // After the last layer with keys and values, only wanted positions, unless choices are recorded.
        let tail = if s.noted.is_some() || several { None } else { b.tail(n) };
        let needed = match (want, tail) {
            (Want::All | Want::Finite, _) | (_, None) => n,
            (Want::Last | Want::Best(_), Some(tail)) => tail,
            (Want::Nothing, Some(_)) => 0,
        };
        let (mut n, before) = (n, n - needed);
        if want == Want::Finite {
            finite(b, s, n, c.d, parts[0].pos, || "in the embedding".into())?;
        }
        for (i, layer) in w.layers.iter().enumerate() {
            let cuts = i == c.last_with_kv() && needed < n;
            self.route_early(b, s, (layer, i), if cuts { before..n } else { 0..n })?;
            self.mixer(b, s, parts, layer, i, n);
            if cuts {
                if needed == 0 {
                    break;
                }
                s.inputs.iter_mut().for_each(|inputs| inputs.cut(before));
                parts[0].tokens = &parts[0].tokens[before..];
                parts[0].pos += before;
                b.copy(&s.x, before * c.d, needed * c.d, &mut s.h);
                std::mem::swap(&mut s.x, &mut s.h);
                n = needed;
            }
            match &layer.ffn {
                Ffn::Dense(ffn) => self.dense(b, s, ffn, layer, i, n),
                Ffn::Moe(moe) => self.moe(b, s, moe, layer, i, n)?,
                Ffn::Nothing => {}
            }
            if let Some(part) = &layer.per_layer {
                self.take_in(b, s, (layer, part), i, n);
            }
            if want == Want::Finite {
                finite(b, s, n, c.d, parts[0].pos, || format!("in layer {i}"))?;
            }
            emit(Passing::Layers(i + 1))?;
        }
        self.logits(b, s, parts, n, &mut |passing| {
            emit(match passing {
                Passing::Logits(i, logits) => Passing::Logits(before + i, logits),
                Passing::Best(i, best) => Passing::Best(before + i, best),
                other => other,
            })
        })?;
        if let (Some(refine), Some(noted)) = (self.experts.refine(), &s.noted) {
            noted.end(refine, ends)?;
        }
        parts.iter_mut().for_each(|part| part.memory.done(part.pos + part.tokens.len()));
        Ok(())
    }

    /// `x += ffn(norm(x))`, for one dense block.
    fn dense<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        block: &Expert,
        layer: &Layer,
        i: usize,
        n: usize,
    ) {
        let Scratch { h, y, x, .. } = &mut *s;
        self.normed(b, (x, h), layer.feed_norm(self.spec.stream_eps), n);
        let activation = self.spec.layers[i].ffn.activation;
        match layer.ffn_post_norm.as_deref() {
            None => b.feed(FeedCall { h, tokens: n, block, activation, gate: None, y, x: Some(x) }),
            Some(norm) => {
                b.feed(FeedCall { h, tokens: n, block, activation, gate: None, y, x: None });
                self.add_normed(b, (y, h, x), norm, layer.ffn_scale(), n);
            }
        }
    }

    /// `x = scale · (x + norm(y))`, with `h` as scratch.
    fn add_normed<B: Backend>(
        &self,
        b: &B,
        (y, h, to): (&B::Buf, &mut B::Buf, &mut B::Buf),
        weight: &[f32],
        scale: f32,
        n: usize,
    ) {
        let norm = Some((Norm::rms(weight, self.spec.norm_eps), h));
        b.linear(LinearCall {
            x: y,
            tokens: n,
            norm,
            outs: &mut [],
            times: None,
            add: Some(Added { to, scale }),
        });
    }

    /// The final norm and output head, for the wanted positions among the `n` rows.
    fn logits<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        parts: &[Part<'_, B>],
        n: usize,
        emit: &mut dyn FnMut(Passing) -> Result<()>,
    ) -> Result<()> {
        let (c, w) = (&self.spec, &self.weights);
        let mut first = match parts {
            [Part { want: Want::Nothing | Want::Finite, .. }] => return b.flow(Flow::HandOver),
            [Part { want: Want::Last | Want::Best(_), .. }] => n - 1,
            _ => 0,
        };
        while first < n {
            let rows = LOGIT_ROWS.min(s.chunk).min(n - first);
            b.copy(&s.x, first * c.d, rows * c.d, &mut s.h);
            let norm = Norm { weight: &w.norm, bias: w.norm_bias.as_deref(), eps: c.stream_eps };
            let head = Linear { matrix: &w.head, bias: w.head_bias.as_deref(), out: &mut s.logits };
            let norm = Some((norm, &mut s.y));
            b.linear(LinearCall { x: &s.h, tokens: rows, norm, outs: &mut [head], times: None, add: None });
            for row in 0..rows {
                // With several parts, each has one row. Otherwise, all rows belong to the only part.
                let want = parts.get(first + row).filter(|_| parts.len() > 1).unwrap_or(&parts[0]).want;
                let k = match want {
                    Want::Nothing => continue,
                    Want::Best(k) => k,
                    Want::Last | Want::All | Want::Finite => 0,
                };
                if k > 0 && rows == 1 && b.best(&s.logits, w.vocab(), k, &mut s.best)? {
                    let bits = &mut s.best_bits[..2 * k];
                    read(b, &mut s.noted, (&s.best, 0, bits))?;
                    from_bits(bits, &mut s.likeliest);
                } else {
                    read(b, &mut s.noted, (&s.logits, row * w.vocab(), &mut s.host[..]))?;
                    s.likeliest.resize(k, (0, 0.0));
                    let found = if k > 0 { best_of(&s.host, &mut s.likeliest) } else { 0 };
                    s.likeliest.truncate(found);
                }
                if k > 0 {
                    s.likeliest.iter_mut().for_each(|(_, logit)| *logit = c.capped(*logit));
                    emit(Passing::Best(first + row, &s.likeliest))?;
                } else {
                    if c.logit_cap.is_some() {
                        s.host.iter_mut().for_each(|logit| *logit = c.capped(*logit));
                    }
                    emit(Passing::Logits(first + row, &s.host))?;
                }
            }
            first += rows;
        }
        Ok(())
    }
}

/// Checks that the first `n` rows of the residual stream are finite.
///
/// # Errors
/// `NotFinite`, with the place and the position of the first row that is not.
fn finite<B: Backend>(
    b: &B,
    s: &Scratch<B>,
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

/// Downloads a result. A call's first download also fetches its routers' recorded choices: one wait, not two.
fn read<B: Backend>(b: &B, noted: &mut Option<Noted<B>>, result: (&B::Buf, usize, &mut [f32])) -> Result<()> {
    match noted.as_mut().and_then(Noted::unread) {
        Some(choices) => b.read(&mut [result, choices]),
        None => b.read(&mut [result]),
    }
}
