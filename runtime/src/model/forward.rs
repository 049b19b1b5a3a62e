//! The forward pass, top to bottom like the papers.
//!
//! [`Model`] is immutable and shared; [`State`] is one timeline's cache and scratch, all of it allocated when it is
//! made. A call takes a chunk of tokens (a prompt's part, or one token) through every layer.

use super::config::Config;
use super::embedding::Embedding;
use super::history::Noted;
use super::routing::{self, Routing, RoutingCounters};
use super::weights::{Ffn, Layer, Moe, Weights};
use crate::error::Result;
use crate::experts::{Expert, ExpertSource, Guess, Meanwhile, Wanted};
use crate::kernels::{
    Attention, Backend, Choice, ExpertJob, Linear, MAX_BEST, Norm, Placing, Projected, RopeTable, Routed,
    RoutedBufs, Router, best_of, from_bits,
};
use crate::quant::Matrix;
use std::sync::Arc;

/// Rows of logits computed at once when every position's are wanted: bounds their buffer to this many vocabularies. Fewer
/// than what the CPU computes in another way, so that a position's logits do not depend on which others are wanted.
const LOGIT_ROWS: usize = 8;
const _: () = assert!(LOGIT_ROWS < crate::kernels::cpu::MANY);

/// Experts handed to the backend at once: a list on the stack, for a token's decoding allocates nothing.
const JOBS: usize = 64;

/// Weights and everything fixed about them. A clone shares experts, counters and the bytes of matrices.
#[derive(Clone)]
pub struct Model {
    /// Hyper-parameters.
    pub config: Config,
    /// Always-used weights.
    pub weights: Weights,
    /// Provider of routed experts.
    pub experts: Arc<dyn ExpertSource>,
    /// Departures from the router's choice.
    pub routing: Routing,
    /// How often they happened.
    pub counters: Arc<RoutingCounters>,
}

/// The memory of one timeline: KV cache, and scratch for chunks of up to `chunk` tokens.
pub struct State<B: Backend> {
    capacity: usize,
    chunk: usize,
    rope: RopeTable,
    kv: Vec<B::Kv>,
    /// Residual stream, `[chunk, d]`.
    x: B::Buf,
    /// Normed input of a sub-block, `[chunk, d]`.
    h: B::Buf,
    /// Output of a sub-block, `[chunk, d]`.
    y: B::Buf,
    /// `[chunk, heads · head_dim]`.
    q: B::Buf,
    /// `[chunk, kv_heads · head_dim]`.
    k: B::Buf,
    /// `[chunk, kv_heads · head_dim]`.
    v: B::Buf,
    /// `[chunk, heads · head_dim]`.
    attn: B::Buf,
    /// `[LOGIT_ROWS, vocab]`.
    logits: B::Buf,
    /// One row of logits, where the caller can read it.
    host: Vec<f32>,
    /// `[MAX_BEST, 2]`: the likeliest tokens and their logits, as the backend writes them; the same on the host; read.
    best: B::Buf,
    best_bits: Vec<f32>,
    likeliest: Vec<(u32, f32)>,
    moe: Option<MoeScratch<B>>,
    /// What the routers chose, where somebody learns from it.
    noted: Option<Noted<B>>,
}

/// Scratch of the routed layers.
struct MoeScratch<B: Backend> {
    /// `[chunk, experts]`.
    router: B::Buf,
    /// `[chunk · top_k, d]`.
    slots: B::Buf,
    /// `[chunk, 1]`.
    shared_gate: B::Buf,
    choices: Vec<Choice>,
    /// Where departures from the router's choice need them: logits on the host (`[chunk, experts]`), and who is resident.
    logits: Vec<f32>,
    resident: Vec<bool>,
    /// What the next layer's router says of this layer's input, where it is asked.
    guess: Vec<Choice>,
    /// For each expert, the slots that chose it.
    by_expert: Vec<Vec<u32>>,
    wanted: Vec<Wanted>,
}

/// Which positions of a chunk the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// None: a prompt's earlier chunk.
    Nothing,
    /// The last position's.
    Last,
    /// Of the last position's only so many of the greatest, at most [`MAX_BEST`], in [`State::likeliest`].
    Best(usize),
    /// Every position's.
    All,
}

impl<B: Backend> State<B> {
    /// Memory for `capacity` positions, taken in chunks of up to `chunk` tokens.
    pub fn new(backend: &B, model: &Model, capacity: usize, chunk: usize) -> Result<State<B>> {
        let (c, w) = (&model.config, &model.weights);
        let (q_width, kv_width) = (c.heads * c.head_dim, c.kv_width());
        let moe = match c.router {
            None => None,
            Some(Router { experts, top_k, .. }) => Some(MoeScratch {
                router: backend.alloc(chunk * experts)?,
                slots: backend.alloc(chunk * top_k * c.d)?,
                shared_gate: backend.alloc(chunk)?,
                choices: Vec::with_capacity(chunk * top_k),
                logits: vec![0.0; if model.routing.cache_prior > 0.0 { chunk * experts } else { 0 }],
                resident: vec![true; experts],
                guess: Vec::with_capacity(top_k),
                by_expert: vec![Vec::new(); experts],
                wanted: Vec::with_capacity(experts),
            }),
        };
        Ok(State {
            capacity,
            chunk,
            rope: c.rope.table(capacity, w.rope_factors.as_deref()),
            kv: (0..c.layers)
                .map(|_| backend.alloc_kv(capacity, c.kv_heads, c.head_dim))
                .collect::<Result<_>>()?,
            x: backend.alloc(chunk * c.d)?,
            h: backend.alloc(chunk * c.d)?,
            y: backend.alloc(chunk * c.d)?,
            q: backend.alloc(chunk * q_width)?,
            k: backend.alloc(chunk * kv_width)?,
            v: backend.alloc(chunk * kv_width)?,
            attn: backend.alloc(chunk * q_width)?,
            logits: backend.alloc(LOGIT_ROWS.min(chunk) * w.vocab())?,
            host: vec![0.0; w.vocab()],
            best: backend.alloc(2 * MAX_BEST)?,
            best_bits: vec![0.0; 2 * MAX_BEST],
            likeliest: Vec::with_capacity(MAX_BEST),
            moe,
            noted: match (c.router, model.experts.refine()) {
                (Some(router), Some(_)) => Some(Noted::new(backend, c.layers, router, chunk)?),
                _ => None,
            },
        })
    }

    /// Bytes of [`State::new`] without the KV cache and what the backend keeps for itself.
    pub fn bytes(config: &Config, vocab: usize, capacity: usize, chunk: usize) -> usize {
        let c = config;
        let stream = chunk * (3 * c.d + 2 * c.heads * c.head_dim + 2 * c.kv_width());
        let moe = c.router.map_or(0, |r| {
            // Two lists of choices and of slots by expert; `by_expert` grows by doubling.
            chunk * (2 * r.experts + r.top_k * c.d + 1) + 6 * chunk * r.top_k + 16 * r.experts
        });
        let logits = (LOGIT_ROWS.min(chunk) + 2) * vocab + 6 * MAX_BEST;
        4 * (stream + moe + logits + capacity * (c.rope.dims + 1))
    }

    /// Bytes that [`State::new`] takes beyond [`State::bytes`] where somebody learns what routers choose.
    pub fn noted_bytes(config: &Config, chunk: usize) -> usize {
        config.router.map_or(0, |r| Noted::<B>::bytes(config.layers, r.top_k, chunk))
    }

    /// Positions that the cache holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The greatest logits that the last call was asked for ([`Want::Best`]), with their tokens, greatest first.
    pub fn likeliest(&self) -> &[(u32, f32)] {
        &self.likeliest
    }

    /// Tokens that one call may take.
    pub fn chunk(&self) -> usize {
        self.chunk
    }
}

impl Model {
    /// Takes `tokens` at positions `pos..` through the model and hands the logits of the wanted positions to `each`,
    /// in order, with their index in `tokens`.
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
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (c, w, n) = (&self.config, &self.weights, tokens.len());
        assert!(
            n > 0 && n <= s.chunk && pos + n <= s.capacity,
            "{n} tokens at {pos}: chunk {}, capacity {}",
            s.chunk,
            s.capacity
        );
        assert!(tokens.iter().all(|&t| (t as usize) < w.vocab()), "a token is outside the vocabulary");

        if let Some((refine, noted)) = self.experts.refine().zip(s.noted.as_mut()) {
            refine.begin(&mut |refinement| b.refine(refinement))?;
            noted.begin(n);
        }
        match &w.embed {
            Embedding::Held(table) => b.embed(table, tokens, &mut s.x),
            Embedding::Read(rows) => {
                rows.read(tokens, &mut |i, row| b.upload(&mut s.x, i * c.d, row))?;
            }
        }
        // Behind the last layer's keys and values only those positions count whose logits are wanted.
        // Who notes choices learns from all.
        let tail = if s.noted.is_some() { None } else { b.tail(n) };
        let needed = match (want, tail) {
            (Want::All, _) | (_, None) => n,
            (Want::Last | Want::Best(_), Some(tail)) => tail,
            (Want::Nothing, Some(_)) => 0,
        };
        let (mut n, before) = (n, n - needed);
        for (i, layer) in w.layers.iter().enumerate() {
            self.attention(b, s, layer, i, pos, n);
            if i + 1 == w.layers.len() && needed < n {
                if needed == 0 {
                    break;
                }
                b.copy(&s.x, before * c.d, needed * c.d, &mut s.h);
                std::mem::swap(&mut s.x, &mut s.h);
                n = needed;
            }
            match &layer.ffn {
                Ffn::Dense(ffn) => {
                    b.rms_norm(&s.x, &layer.ffn_norm, c.norm_eps, n, &mut s.h);
                    b.ffn_add(&s.h, n, ffn, None, &mut s.y, &mut s.x);
                }
                Ffn::Moe(moe) => self.moe(b, s, moe, layer, i, n)?,
            }
        }
        self.logits(b, s, n, want, &mut |i, logits| each(before + i, logits))?;
        match (self.experts.refine(), &s.noted) {
            (Some(refine), Some(noted)) => noted.end(refine, n),
            _ => Ok(()),
        }
    }

    /// `x += o · attention(rope(norm(q)), rope(norm(k)), v)` of the normed stream.
    fn attention<B: Backend>(&self, b: &B, s: &mut State<B>, layer: &Layer, i: usize, pos: usize, n: usize) {
        let c = &self.config;
        b.norm_linear(
            &s.x,
            Norm { weight: &layer.attn_norm, eps: c.norm_eps },
            n,
            &mut s.h,
            &mut [
                Linear { matrix: &layer.q.matrix, bias: layer.q.bias.as_deref(), out: &mut s.q },
                Linear { matrix: &layer.k.matrix, bias: layer.k.bias.as_deref(), out: &mut s.k },
                Linear { matrix: &layer.v.matrix, bias: layer.v.bias.as_deref(), out: &mut s.v },
            ],
        );
        let how = Placing {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            q_norm: layer.q_norm.as_deref(),
            k_norm: layer.k_norm.as_deref(),
            eps: c.norm_eps,
            limit: c.clip_qkv,
            rope: &s.rope,
        };
        let projected = Projected { q: &mut s.q, k: &mut s.k, v: &mut s.v };
        let shape = Attention {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: 1.0 / (c.head_dim as f32).sqrt(),
            window: c.windows[i],
        };
        b.attend(projected, &how, pos, n, &mut s.kv[i], &shape, &mut s.attn);
        let o = Linear { matrix: &layer.o.matrix, bias: layer.o.bias.as_deref(), out: &mut s.y };
        b.linear_add(&s.attn, n, o, &mut s.x);
    }

    /// `x += Σ gate · expert(h)`, and the shared expert, of the normed stream `h`.
    fn moe<B: Backend>(
        &self,
        b: &B,
        s: &mut State<B>,
        moe: &Moe,
        norms: &Layer,
        layer: usize,
        n: usize,
    ) -> Result<()> {
        let (c, State { h, x, y, moe: scratch, noted, .. }) = (&self.config, s);
        let (router, m) = c.router.as_ref().zip(scratch.as_mut()).expect("a routed layer implies a router");
        let norm = Norm { weight: &norms.ffn_norm, eps: c.norm_eps };
        let logits = Linear { matrix: &moe.router, bias: None, out: &mut m.router };
        match &moe.shared_gate {
            Some(matrix) => {
                let gate = Linear { matrix, bias: None, out: &mut m.shared_gate };
                b.norm_linear(x, norm, n, h, &mut [logits, gate]);
            }
            None => b.norm_linear(x, norm, n, h, &mut [logits]),
        }
        // With all experts resident there is nothing to decide on the way: no departure changes anything.
        let done = match self.experts.all(layer).filter(|_| !self.routing.ask) {
            Some(all) => {
                let history = noted.as_mut().map(|noted| noted.of(layer));
                let bufs = RoutedBufs { h, logits: &m.router, slots: &mut m.slots, y, x, history };
                b.routed(bufs, n, router, layer, all)?
            }
            None => false,
        };
        if let Some(noted) = noted.as_mut().filter(|_| done) {
            noted.done(layer);
        }
        if !done {
            self.serve(b, (h, x, y), m, router, layer, n)?;
            b.add(x, y, n * c.d);
        }
        if let Some(shared) = &moe.shared {
            let gate = moe.shared_gate.as_ref().map(|_| &m.shared_gate);
            b.ffn_add(h, n, shared, gate, y, x);
        }
        Ok(())
    }

    /// `y = Σ gate · expert(h)`, the experts as their source hands them over.
    fn serve<B: Backend>(
        &self,
        b: &B,
        (h, x, y): (&B::Buf, &B::Buf, &mut B::Buf),
        m: &mut MoeScratch<B>,
        router: &Router,
        layer: usize,
        n: usize,
    ) -> Result<()> {
        b.route(&m.router, n, router, &mut m.choices)?;
        self.depart(b, m, router, layer, n)?;
        group_by_expert(&m.choices, &mut m.by_expert, &mut m.wanted);
        let of = Routed { layer, experts: router.experts, top_k: router.top_k, tokens: n };
        let MoeScratch { slots, by_expert, wanted, router: logits, guess: choices, .. } = m;
        let (by_expert, wanted) = (&*by_expert, &*wanted);
        let next = self.weights.layers.get(layer + 1).filter(|_| self.routing.lookahead > 0 && n == 1);
        // `y` is free until the experts' sum is written to it.
        let mut guess = |out: &mut Vec<Wanted>| match next {
            Some(next) => self.guess(b, (x, &mut *y), (&mut *logits, &mut *choices), router, next, out),
            None => Ok(()),
        };
        let guess: Option<Guess> = next.map(|_| &mut guess as _);
        let mut idle = || b.warm(&mut self.soon(layer));
        // The products of many tokens do not wait for memory.
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
                b.experts(h, of, &jobs[..batch.len()], slots);
            }
            // The others are being read, and whoever waits for a disk should not keep a device waiting. With the last ones it
            // is told by whoever reads a result.
            if left > 0 { b.start() } else { Ok(()) }
        };
        self.experts.serve(layer, wanted, &mut compute, Meanwhile { guess, idle })?;
        // Summed by rank, not by arrival: the result may not depend on the order in which experts came (R2).
        b.combine(&m.slots, &m.choices, router.top_k, self.config.d, y);
        Ok(())
    }

    /// What is used behind a layer's routed experts, in order, up to the next ones.
    fn soon(&self, layer: usize) -> impl Iterator<Item = &Matrix> {
        let (here, next) = (&self.weights.layers[layer], self.weights.layers.get(layer + 1));
        let shared = match &here.ffn {
            Ffn::Moe(moe) => moe.shared.as_ref(),
            Ffn::Dense(_) => None,
        };
        let shared = shared.into_iter().flat_map(|e| [&e.gate, &e.up, &e.down]);
        let attention = next.into_iter().flat_map(|l| [&l.q, &l.k, &l.v, &l.o]).map(|p| &p.matrix);
        let first = next.map_or(&self.weights.head, |l| match &l.ffn {
            Ffn::Moe(moe) => &moe.router,
            Ffn::Dense(ffn) => &ffn.gate,
        });
        shared.chain(attention).chain([first])
    }

    /// Changes the choices as the options ask.
    fn depart<B: Backend>(
        &self,
        b: &B,
        m: &mut MoeScratch<B>,
        router: &Router,
        layer: usize,
        n: usize,
    ) -> Result<()> {
        let Routing { skip_cold, cache_prior, .. } = self.routing;
        if skip_cold > 0.0 || cache_prior > 0.0 {
            self.experts.resident(layer, &mut m.resident);
        }
        if cache_prior > 0.0 {
            let logits = &mut m.logits[..n * router.experts];
            b.download(&m.router, 0, logits)?;
            routing::prefer_resident(
                logits,
                router,
                &m.resident,
                cache_prior,
                &mut m.choices,
                &self.counters,
            );
        }
        if skip_cold > 0.0 {
            routing::drop_cold(&mut m.choices, router.top_k, &m.resident, skip_cold, &self.counters);
        }
        Ok(())
    }

    /// What the next layer's router says of the stream as it is now: right for four of five experts.
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
        let norm = Norm { weight: &next.ffn_norm, eps: self.config.norm_eps };
        b.norm_linear(x, norm, 1, h, &mut [Linear { matrix: &moe.router, bias: None, out: logits }]);
        b.route(logits, 1, router, choices)?;
        let wanted =
            |c: &Choice| Wanted { expert: c.expert, gate: c.gate, energy: c.gate * c.gate, tokens: 1 };
        out.extend(choices.iter().map(wanted));
        Ok(())
    }

    /// Final norm and output head of the wanted positions.
    fn logits<B: Backend>(
        &self,
        b: &B,
        s: &mut State<B>,
        n: usize,
        want: Want,
        each: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let (c, w) = (&self.config, &self.weights);
        let mut first = match want {
            Want::Nothing => return b.hand_over(),
            Want::Last | Want::Best(_) => n - 1,
            Want::All => 0,
        };
        while first < n {
            let rows = LOGIT_ROWS.min(s.chunk).min(n - first);
            b.copy(&s.x, first * c.d, rows * c.d, &mut s.h);
            let norm = Norm { weight: &w.norm, eps: c.norm_eps };
            let head = Linear { matrix: &w.head, bias: None, out: &mut s.logits };
            b.norm_linear(&s.h, norm, rows, &mut s.y, &mut [head]);
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
                return Ok(());
            }
            for row in 0..rows {
                read(b, &mut s.noted, (&s.logits, row * w.vocab(), &mut s.host[..]))?;
                each(first + row, &s.host);
            }
            first += rows;
        }
        Ok(())
    }
}

/// Downloads a result, and with the first of a call what its routers chose: one wait for both.
fn read<B: Backend>(b: &B, noted: &mut Option<Noted<B>>, result: (&B::Buf, usize, &mut [f32])) -> Result<()> {
    match noted.as_mut().and_then(Noted::unread) {
        Some(choices) => b.download_together(&mut [result, choices]),
        None => b.download(result.0, result.1, result.2),
    }
}

/// Sorts the chosen slots by expert; `wanted` lists the experts that were chosen, in index order.
fn group_by_expert(choices: &[Choice], by_expert: &mut [Vec<u32>], wanted: &mut Vec<Wanted>) {
    by_expert.iter_mut().for_each(Vec::clear);
    wanted.clear();
    // A gate of zero is an expert that was dropped.
    for (slot, choice) in choices.iter().enumerate().filter(|(_, c)| c.gate != 0.0) {
        by_expert[choice.expert as usize].push(slot as u32);
    }
    for (expert, slots) in by_expert.iter().enumerate().filter(|(_, slots)| !slots.is_empty()) {
        let gates = || slots.iter().map(|&s| choices[s as usize].gate);
        let (gate, energy) = (gates().sum(), gates().map(|g| g * g).sum());
        wanted.push(Wanted { expert: expert as u32, gate, energy, tokens: slots.len() as u32 });
    }
}
