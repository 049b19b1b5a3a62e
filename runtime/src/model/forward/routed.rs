//! The forward pass of a layer with routed experts: routing, optional changes to the choice, and computing
//! the experts.
//!
//! If all experts are resident on the backend, the choice stays there, too. Otherwise it is read back, and
//! the trait [`ExpertSource`](crate::experts::ExpertSource) hands over experts in any order.

use super::scratch::MoeScratch;
use super::{Model, Scratch};
use crate::error::Result;
use crate::experts::{Expert, Guess, Meanwhile, Wanted};
use crate::kernels::{
    Backend, Choice, Choosing, ExpertJob, Feed, FeedCall, Flow, Linear, LinearCall, Norm, Routed, RoutedBufs,
    Router, SumCall,
};
use crate::model::routing::{self, Routing};
use crate::model::weights::{Beside, ExpertBiases, Ffn, Layer, Moe};
use crate::quant::Matrix;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// The most experts per call of the backend. The list is on the stack, because decoding must not allocate.
const JOBS: usize = 64;

/// Counter that identifies the inputs of each routed layer call, across all sessions.
static INPUTS: AtomicU64 = AtomicU64::new(1);

impl Model {
    /// `x += Σ gate · expert(h)` plus the shared expert, with the normed stream `h`. With a parallel dense
    /// block, `x += norm(norm(block(norm(x))) + norm(Σ gate · expert(norm(x))))`. A sum that is normed before it is
    /// added is in `y`.
    pub(super) fn moe<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        moe: &Moe,
        norms: &Layer,
        layer: usize,
        n: usize,
    ) -> Result<()> {
        let (c, Scratch { h, x, y, moe: scratch, noted, .. }) = (&self.spec, s);
        let (router, m) = c.layers[layer]
            .ffn
            .router
            .as_ref()
            .zip(scratch.as_mut())
            .expect("a routed layer implies a router");
        let eps = c.stream_eps;
        let norm = moe.router_norm.as_deref().map(|weight| Norm::rms(weight, eps)).or(norms.feed_norm(eps));
        let logits = Linear { matrix: &moe.router, bias: moe.router_bias.as_deref(), out: &mut m.router };
        if norm.is_none() {
            self.normed(b, (x, h), None, n);
        }
        let norm = norm.map(|norm| (norm, &mut *h));
        let project = |outs: &mut [Linear<'_, B::Buf>]| {
            b.linear(LinearCall { x, tokens: n, norm, outs, times: None, add: None });
        };
        let shared_gate =
            moe.shared_gate.as_ref().map(|matrix| Linear { matrix, bias: None, out: &mut m.shared_gate });
        match (shared_gate, c.layers[layer].ffn.early) {
            (Some(shared_gate), false) => project(&mut [logits, shared_gate]),
            (None, false) => project(&mut [logits]),
            (Some(shared_gate), true) => project(&mut [shared_gate]),
            (None, true) => project(&mut []),
        }
        if let Some(Beside { experts_norm, .. }) = &moe.beside {
            let norm = Some((Norm::rms(experts_norm, eps), &mut *h));
            b.linear(LinearCall { x, tokens: n, norm, outs: &mut [], times: None, add: None });
        }
        let adds = norms.ffn_post_norm.is_none();
        // If all experts are resident, the options cannot change the choice, so the backend can route by
        // itself.
        let done = match self.experts.all(layer) {
            Some(all) => {
                let history = noted.as_mut().map(|noted| noted.of(layer));
                let bufs = RoutedBufs {
                    h,
                    logits: &m.router,
                    slots: &mut m.slots,
                    y,
                    x: Some(&mut *x).filter(|_| adds),
                    history,
                };
                b.routed(bufs, n, choosing(router, moe), (layer, &self.feed(moe, layer)), all)?
            }
            None => false,
        };
        if let Some(noted) = noted.as_mut().filter(|_| done) {
            noted.done(layer);
        }
        if !done {
            self.serve(b, (h, x, y), m, (router, moe, adds), layer, n)?;
        }
        if let Some(shared) = &moe.shared {
            let gate = moe.shared_gate.as_ref().map(|_| &m.shared_gate);
            let activation = c.layers[layer].ffn.activation;
            let (y, to) = match m.both.as_mut() {
                Some(both) if !adds => (both, &mut *y),
                _ => (&mut *y, &mut *x),
            };
            b.feed(FeedCall { h, tokens: n, block: shared, activation, gate, y, x: Some(to) });
        }
        if let Some((beside, both)) = moe.beside.as_ref().zip(m.both.as_mut()) {
            self.beside(b, (h, y, both, x), (beside, norms), layer, n);
        } else if let Some(norm) = norms.ffn_post_norm.as_deref() {
            self.add_normed(b, (y, h, x), norm, norms.ffn_scale(), n);
        }
        Ok(())
    }

    /// The router's logits for some rows of the stream, if the router reads the layer's input. Those are the rows for
    /// which the rest of the layer is computed. Their experts are read while the mixer runs.
    pub(super) fn route_early<B: Backend>(
        &self,
        b: &B,
        s: &mut Scratch<B>,
        (layer, i): (&Layer, usize),
        rows: Range<usize>,
    ) -> Result<()> {
        let early = self.spec.layers[i].ffn.early && !rows.is_empty();
        let (Scratch { x, y, moe: Some(m), .. }, Ffn::Moe(moe), true) = (s, &layer.ffn, early) else {
            return Ok(());
        };
        let (d, tokens) = (self.spec.d, rows.len());
        let x = match rows.start {
            0 => &*x,
            first => {
                b.copy(x, first * d, tokens * d, y);
                &*y
            }
        };
        let logits = Linear { matrix: &moe.router, bias: moe.router_bias.as_deref(), out: &mut m.router };
        b.linear(LinearCall { x, tokens, norm: None, outs: &mut [logits], times: None, add: None });
        let Routing { skip_cold, cache_prior, .. } = self.routing;
        // These options choose among the experts that are resident later.
        let (Some(router), false) = (&self.spec.layers[i].ffn.router, skip_cold > 0.0 || cache_prior > 0.0)
        else {
            return Ok(());
        };
        let MoeScratch { router: logits, choices, by_expert, wanted, .. } = m;
        self.experts.announce(i, &mut |out| {
            b.route(logits, tokens, choosing(router, moe), choices)?;
            scale(choices, moe);
            group_by_expert(choices, by_expert, wanted);
            out.extend_from_slice(wanted);
            Ok(())
        })
    }

    /// Computes the parallel dense block, and adds it and the experts' sum (in `y`) to the stream.
    fn beside<B: Backend>(
        &self,
        b: &B,
        (h, y, both, x): (&mut B::Buf, &mut B::Buf, &mut B::Buf, &mut B::Buf),
        (beside, norms): (&Beside, &Layer),
        layer: usize,
        n: usize,
    ) {
        let eps = self.spec.norm_eps;
        let norm = Norm::rms(&beside.experts_post_norm, eps);
        b.linear(LinearCall {
            x: y,
            tokens: n,
            norm: Some((norm, &mut *both)),
            outs: &mut [],
            times: None,
            add: None,
        });
        self.normed(b, (x, &mut *h), norms.feed_norm(self.spec.stream_eps), n);
        let activation = self.spec.layers[layer].ffn.activation;
        b.feed(FeedCall { h, tokens: n, block: &beside.block, activation, gate: None, y, x: None });
        self.add_normed(b, (y, h, both), &beside.post_norm, 1.0, n);
        if let Some(norm) = norms.ffn_post_norm.as_deref() {
            self.add_normed(b, (both, h, x), norm, norms.ffn_scale(), n);
        }
    }

    /// Activation, biases and scales of a layer's experts.
    fn feed<'a>(&self, moe: &'a Moe, layer: usize) -> Feed<'a> {
        Feed {
            activation: self.spec.layers[layer].ffn.activation,
            biases: moe.biases.as_ref().map(ExpertBiases::slices),
            scales: moe.scales.as_deref(),
        }
    }

    /// `x += Σ gate · expert(h)`, or only the sum in `y`. The experts come from their source.
    fn serve<B: Backend>(
        &self,
        b: &B,
        (h, x, y): (&B::Buf, &mut B::Buf, &mut B::Buf),
        m: &mut MoeScratch<B>,
        (router, moe, adds): (&Router, &Moe, bool),
        layer: usize,
        n: usize,
    ) -> Result<()> {
        b.route(&m.router, n, choosing(router, moe), &mut m.choices)?;
        self.depart(b, m, (router, moe), layer, n)?;
        group_by_expert(&m.choices, &mut m.by_expert, &mut m.wanted);
        let of = Routed {
            layer,
            experts: router.experts,
            top_k: router.top_k,
            tokens: n,
            inputs: INPUTS.fetch_add(1, Ordering::Relaxed),
        };
        let feed = self.feed(moe, layer);
        let MoeScratch { slots, by_expert, wanted, router: logits, guess: choices, .. } = m;
        let (by_expert, wanted) = (&*by_expert, &*wanted);
        let next = self.weights.layers.get(layer + 1).filter(|_| self.routing.lookahead > 0 && n == 1);
        // `y` is free until the experts' sum is written to it.
        let mut guess = |out: &mut Vec<Wanted>| match next {
            Some(next) => self.guess(b, (&*x, &mut *y), (&mut *logits, &mut *choices), router, next, out),
            None => Ok(()),
        };
        let guess: Option<Guess> = next.map(|_| &mut guess as _);
        let mut idle = || {
            // An error can be ignored: prefetching does not affect results.
            let _ = b.flow(Flow::Soon(&mut self.soon(layer)));
        };
        // For one token, computing waits for memory and prefetching helps. For many tokens it does not.
        let idle = if n == 1 { Some(&mut idle as _) } else { None };
        let mut left = wanted.len();
        let mut compute = |batch: &[(usize, &Expert)]| {
            left -= batch.len();
            for batch in batch.chunks(JOBS) {
                let job = |&(i, expert): &(usize, _)| ExpertJob {
                    index: wanted[i].expert,
                    expert,
                    slots: &by_expert[wanted[i].expert as usize],
                };
                let Some(first) = batch.first().map(job) else { break };
                let mut jobs = [first; JOBS];
                jobs.iter_mut().zip(batch).for_each(|(to, from)| *to = job(from));
                b.experts(h, of, &feed, &jobs[..batch.len()], slots);
            }
            // More experts are being read. Start the device now, so that it does not wait for the disk, too.
            // After the last batch, reading a result starts it.
            if left > 0 { b.flow(Flow::Begin) } else { Ok(()) }
        };
        self.experts.serve(layer, wanted, &mut compute, Meanwhile { guess, idle })?;
        // Sum by rank, not by arrival: results must not depend on the order in which experts arrive (R2).
        let (slots, choices) = (&m.slots, &m.choices[..]);
        b.sum(SumCall {
            slots,
            choices,
            top_k: router.top_k,
            d: self.spec.d,
            y,
            x: Some(x).filter(|_| adds),
        });
        Ok(())
    }

    /// The matrices used after a layer's routed experts, in order, up to the next routed experts.
    fn soon(&self, layer: usize) -> impl Iterator<Item = &Matrix> {
        let (here, next) = (&self.weights.layers[layer], self.weights.layers.get(layer + 1));
        let shared = match &here.ffn {
            Ffn::Moe(moe) => moe.always(),
            Ffn::Dense(_) | Ffn::Nothing => None,
        };
        let shared = shared.into_iter().flat_map(Expert::matrices);
        let mixer = next.into_iter().flat_map(|l| l.mixer.matrices());
        let first = next.map_or(Some(&self.weights.head), |l| match &l.ffn {
            Ffn::Moe(moe) => Some(&moe.router),
            Ffn::Dense(ffn) => Some(ffn.gate()),
            Ffn::Nothing => None,
        });
        shared.chain(mixer).chain(first)
    }

    /// Applies the routing options to the choices.
    fn depart<B: Backend>(
        &self,
        b: &B,
        m: &mut MoeScratch<B>,
        (router, moe): (&Router, &Moe),
        layer: usize,
        n: usize,
    ) -> Result<()> {
        let Routing { skip_cold, cache_prior, .. } = self.routing;
        if skip_cold > 0.0 || cache_prior > 0.0 {
            self.experts.resident(layer, &mut m.resident);
        }
        if cache_prior > 0.0 {
            let logits = &mut m.logits[..n * router.experts];
            b.read(&mut [(&m.router, 0, logits)])?;
            routing::prefer_resident(
                logits,
                choosing(router, moe),
                &m.resident,
                cache_prior,
                &mut m.choices,
                &self.counters,
            );
        }
        scale(&mut m.choices, moe);
        if skip_cold > 0.0 {
            routing::drop_cold(&mut m.choices, router.top_k, &m.resident, skip_cold, &self.counters);
        }
        Ok(())
    }

    /// Applies the next layer's router to the current stream. The guess is right for four of five experts.
    fn guess<B: Backend>(
        &self,
        b: &B,
        (x, h): (&B::Buf, &mut B::Buf),
        (logits, choices): (&mut B::Buf, &mut Vec<Choice>),
        router: &Router,
        next: &Layer,
        out: &mut Vec<Wanted>,
    ) -> Result<()> {
        let Ffn::Moe(moe) = &next.ffn else { return Ok(()) };
        let eps = self.spec.stream_eps;
        // Layers with a router share its parameters, among them whether it reads the stream without a norm.
        let early = self.spec.layers.iter().any(|l| l.ffn.early);
        let own = moe.router_norm.as_deref().map(|weight| Norm::rms(weight, eps));
        let norm = own.or(next.feed_norm(eps)).filter(|_| !early).map(|norm| (norm, h));
        let outs = &mut [Linear { matrix: &moe.router, bias: moe.router_bias.as_deref(), out: logits }];
        b.linear(LinearCall { x, tokens: 1, norm, outs, times: None, add: None });
        b.route(logits, 1, choosing(router, moe), choices)?;
        scale(choices, moe);
        let wanted =
            |c: &Choice| Wanted { expert: c.expert, gate: c.gate, energy: c.gate * c.gate, tokens: 1 };
        out.extend(choices.iter().map(wanted));
        Ok(())
    }
}

/// Multiplies gates by their experts' scales.
fn scale(choices: &mut [Choice], moe: &Moe) {
    if let Some(scales) = &moe.scales {
        choices.iter_mut().for_each(|c| c.gate *= scales[c.expert as usize]);
    }
}

/// The router and its choice bias.
fn choosing<'a>(router: &'a Router, moe: &'a Moe) -> Choosing<'a> {
    Choosing { router, bias: moe.choice_bias.as_deref() }
}

/// Groups the chosen slots by expert. `wanted` lists the chosen experts in index order.
fn group_by_expert(choices: &[Choice], by_expert: &mut [Vec<u32>], wanted: &mut Vec<Wanted>) {
    by_expert.iter_mut().for_each(Vec::clear);
    wanted.clear();
    // A gate of zero means that the expert was dropped.
    for (slot, choice) in choices.iter().enumerate().filter(|(_, c)| c.gate != 0.0) {
        by_expert[choice.expert as usize].push(slot as u32);
    }
    for (expert, slots) in by_expert.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
        let gates = || slots.iter().map(|&s| choices[s as usize].gate);
        let (gate, energy) = (gates().sum(), gates().map(|g| g * g).sum());
        wanted.push(Wanted { expert: expert as u32, gate, energy, tokens: slots.len() as u32 });
    }
}
