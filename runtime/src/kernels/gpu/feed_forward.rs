//! Feed-forward blocks as dispatches: dense blocks, routed experts with jobs from the host, and routed
//! experts with jobs from the device: from `route` for one token, from `group` for many.

use super::device::{Device, Memory};
use super::experts::Loaded;
use super::kv::GpuBuf;
use super::operations::{can_choose, gating, most_jobs};
use super::params::*;
use super::recorder::PUT_WORDS;
use super::weights::{Form, Placed};
use super::{State, groups, row_blocks};
use crate::error::Result;
use crate::experts::Expert;
use crate::kernels::{Activation, Choosing, ExpertJob, Feed, Linear, Routed, RoutedBufs, Router, Score};
use crate::quant::Rotation;
use dollop_shaders::{ADD, Kernel, MANY, SUM_ROWS, Variant};
use std::sync::Arc;

/// A job without slots, and the buffer of its matrices.
type Prepared = ([u32; JOB_WORDS], Arc<Memory>);

/// Parameters that the feed-forward dispatches of a block share.
struct FeedForward {
    d: usize,
    ff: usize,
    /// Group sizes of gate, up and down.
    groups: [u32; 3],
    top_k: usize,
    /// The rotation of the inputs of gate and up.
    rotation: Option<Rotation>,
    /// The rotation of hidden values.
    rotation_down: Option<Rotation>,
    /// The number of the layer's experts if they have biases, otherwise 0.
    biased: u32,
    activation: Activation,
}

impl FeedForward {
    fn of(e: &Expert, top_k: usize) -> FeedForward {
        let groups = [e.gate(), &e.up, &e.down].map(|m| Form::of(m, 0).group);
        assert!(e.gate().rotation() == e.up.rotation(), "gate and up have the same inputs");
        let (rotation, rotation_down) = (e.up.rotation(), e.down.rotation());
        let (d, ff, activation) = (e.up.cols(), e.up.rows(), Activation::default());
        FeedForward { d, ff, groups, top_k, rotation, rotation_down, biased: 0, activation }
    }

    /// For the routed experts of a layer.
    fn routed(e: &Expert, of: Routed, feed: &Feed) -> FeedForward {
        let biased = if feed.biases.is_some() { of.experts as u32 } else { 0 };
        FeedForward { biased, activation: feed.activation, ..FeedForward::of(e, of.top_k) }
    }

    /// Parameters of `gate_up`.
    fn gate_up(&self, first: u32, place: u32) -> GateUpParams {
        let (d, ff, top_k) = (self.d as u32, self.ff as u32, self.top_k as u32);
        let [group, group_up, _] = self.groups;
        let plain = self.rotation_down.is_some().into();
        let (kind, alpha, limit) = match self.activation {
            Activation::Swiglu => (0, 0.0, 0.0),
            Activation::Geglu => (1, 0.0, 0.0),
            Activation::Reglu => (2, 0.0, 0.0),
            Activation::Clamped { alpha, limit } => (0, alpha, limit),
        };
        let experts = self.biased;
        GateUpParams { d, ff, group, group_up, top_k, first, place, plain, experts, kind, alpha, limit }
    }

    /// Parameters of `down`.
    fn down(&self, first: u32, place: u32) -> DownParams {
        let (d, ff, experts) = (self.d as u32, self.ff as u32, self.biased);
        DownParams { d, ff, group: self.groups[2], first, place, experts }
    }

    /// Parameters of `down_sum`.
    fn down_sum(&self, first: u32, gated: bool) -> DownSumParams {
        let (d, ff, top_k) = (self.d as u32, self.ff as u32, self.top_k as u32);
        DownSumParams { d, ff, group: self.groups[2], top_k, first, gated: gated.into() }
    }

    /// Workgroups of `gate_up` for jobs of up to `each` slots.
    fn gate_grid(&self, planes: u32, jobs: usize, each: usize) -> [usize; 2] {
        [row_blocks(self.ff, planes, each), jobs]
    }

    /// Workgroups of `down` for jobs of up to `each` slots.
    fn down_grid(&self, planes: u32, jobs: usize, each: usize) -> [usize; 2] {
        [row_blocks(self.d, planes, each), jobs]
    }

    /// Workgroups of `down_sum` for one token.
    fn sum_grid(&self) -> [usize; 2] {
        [self.d.div_ceil(SUM_ROWS as usize), 1]
    }
}

/// The jobs of one place, as kernels read them: up to `many` slots each.
fn job_words(jobs: &[Prepared], slots: &[&[u32]], at: u32, many: usize) -> Vec<u32> {
    let mut words = Vec::new();
    for ((job, _), slots) in jobs.iter().zip(slots).filter(|((job, _), _)| job[JOB_PLACE] == at) {
        for slots in slots.chunks(many) {
            let mut job = *job;
            job[JOB_COUNT] = slots.len() as u32;
            job[JOB_SLOTS..JOB_SLOTS + slots.len()].copy_from_slice(slots);
            words.extend(job);
        }
    }
    words
}

/// The tokens of the slots, in order: a call may have only some of the tokens.
fn tokens_of(slots: &[&[u32]], top_k: usize) -> Vec<u32> {
    let mut of: Vec<u32> = slots.iter().copied().flatten().map(|slot| slot / top_k as u32).collect();
    of.sort_unstable();
    of.dedup();
    of
}

impl State {
    /// The job of a dense block; `None` if its matrices do not fit one buffer, or have different levels.
    fn block(&mut self, gpu: &Device, expert: &Expert) -> Result<Option<Prepared>> {
        debug_assert!(
            expert.up.rotation().is_none() && expert.down.rotation().is_none(),
            "only experts are rotated"
        );
        let placed = self.weights.place(gpu, &[expert.gate(), &expert.up, &expert.down])?;
        let first = &placed[0][0];
        let alike = |p: &Placed| Arc::ptr_eq(&p.memory, &first.memory) && p.form.planes == first.form.planes;
        if !placed.iter().all(|p| p.len() == 1 && alike(&p[0])) {
            return Ok(None);
        }
        let mut words = [0; JOB_WORDS];
        for (m, p) in placed.iter().enumerate() {
            let form = p[0].form;
            words[m] = form.base;
            words[JOB_PLACE] = place(0, 0, form.planes);
            words[JOB_FITS + 2 * m] = form.alpha.to_bits();
            words[JOB_FITS + 2 * m + 1] = form.centre.to_bits();
            words[JOB_TOPS + m] = NOWHERE;
        }
        Ok(Some((words, first.memory.clone())))
    }

    pub(super) fn ffn(
        &mut self,
        gpu: &Device,
        x: &Memory,
        tokens: usize,
        (expert, activation): (&Expert, Activation),
        out: &mut GpuBuf,
    ) -> Result<()> {
        let Some(job) = self.block(gpu, expert)? else {
            return self.ffn_by_matrix(gpu, x, tokens, (expert, activation), out);
        };
        let slots: Vec<u32> = (0..tokens as u32).collect();
        let shape = FeedForward { activation, ..FeedForward::of(expert, 1) };
        self.feed_forward(gpu, x, &shape, None, &[job], &[&slots], tokens, &out.memory)
    }

    /// A block with one dispatch for each matrix.
    fn ffn_by_matrix(
        &mut self,
        gpu: &Device,
        x: &Memory,
        tokens: usize,
        (expert, activation): (&Expert, Activation),
        out: &mut GpuBuf,
    ) -> Result<()> {
        let op = gating(activation);
        let len = tokens * expert.up.rows();
        self.hidden.at_least(gpu, len, "hidden values")?;
        self.ups.at_least(gpu, len, "hidden values")?;
        let (Some(mut hidden), Some(mut ups)) = (self.hidden.0.take(), self.ups.0.take()) else {
            unreachable!("both were just made");
        };
        let mut outs = [
            Linear { matrix: expert.gate(), bias: None, out: &mut hidden },
            Linear { matrix: &expert.up, bias: None, out: &mut ups },
        ];
        let first = self.linear(gpu, x, None, tokens, &mut outs, false);
        self.elementwise(gpu, (op, 1.0), &ups.memory, 0, len, &hidden.memory);
        let mut outs = [Linear { matrix: &expert.down, bias: None, out }];
        let second = self.linear(gpu, &hidden.memory, None, tokens, &mut outs, false);
        (self.hidden.0, self.ups.0) = (Some(hidden), Some(ups));
        first.and(second)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn ffn_add(
        &mut self,
        gpu: &Device,
        h: &Memory,
        tokens: usize,
        (expert, activation): (&Expert, Activation),
        gate: Option<&Memory>,
        y: &mut GpuBuf,
        x: &Memory,
    ) -> Result<()> {
        let block = if tokens == 1 { self.block(gpu, expert)? } else { None };
        let Some((mut job, memory)) = block else {
            let d = expert.down.rows();
            self.ffn(gpu, h, tokens, (expert, activation), y)?;
            if let Some(gate) = gate {
                self.gate_rows(gpu, gate, tokens, d, &y.memory);
            }
            self.elementwise(gpu, (ADD, 1.0), &y.memory, 0, tokens * d, x);
            return Ok(());
        };
        let shape = FeedForward { activation, ..FeedForward::of(expert, 1) };
        job[JOB_COUNT] = 1;
        job[JOB_GATE] = 1.0f32.to_bits();
        let first = self.recorder.put(gpu, &job, JOB_WORDS) / JOB_WORDS as u32;
        let hidden = self.hidden.at_least(gpu, shape.ff, "hidden values")?;
        let up = shape.gate_up(first, job[JOB_PLACE]);
        let down = shape.down_sum(first, gate.is_some());
        let variant = Variant { planes: planes_of(job[JOB_PLACE]), ..Variant::default() };
        self.recorder.run_with_ring(
            gpu,
            variant,
            &up,
            &[&memory, h, hidden, &self.spare[0]],
            2,
            shape.gate_grid(variant.planes, 1, 1),
        );
        let memory = [&*memory, hidden, x, gate.unwrap_or(&self.spare[0])];
        self.recorder.run_with_ring(gpu, variant, &down, &memory, 2, shape.sum_grid());
        Ok(())
    }

    pub(super) fn experts(
        &mut self,
        gpu: &Device,
        x: &Memory,
        of: Routed,
        feed: &Feed<'_>,
        jobs: &[ExpertJob<'_>],
        out: &Memory,
    ) -> Result<()> {
        let Some(first) = jobs.first() else { return Ok(()) };
        let shape = FeedForward::routed(first.expert, of, feed);
        let biases = self.biases(gpu, feed)?;
        let highest = jobs.iter().flat_map(|j| j.slots.last()).max().map_or(0, |&s| s as usize + 1);
        let named: Vec<(u32, &Expert)> = jobs.iter().map(|j| (j.index, j.expert)).collect();
        self.experts.load(gpu, &mut self.recorder, of, &named)?;
        let prepared: Vec<_> = jobs.iter().map(|j| self.experts.job(of.layer, j)).collect();
        let slots: Vec<&[u32]> = jobs.iter().map(|j| j.slots).collect();
        self.feed_forward(gpu, x, &shape, biases, &prepared, &slots, highest, out)
    }

    /// Gate, up, activation and down of several jobs, each over its own slots, into rows of `out`.
    #[allow(clippy::too_many_arguments)]
    fn feed_forward(
        &mut self,
        gpu: &Device,
        x: &Memory,
        shape: &FeedForward,
        biases: Option<Arc<Memory>>,
        jobs: &[Prepared],
        slots: &[&[u32]],
        rows: usize,
        out: &Memory,
    ) -> Result<()> {
        // Jobs of one buffer and one level share a dispatch; a word of the job contains their number.
        let mut places: Vec<(u32, &Arc<Memory>)> = Vec::new();
        for (words, memory) in jobs {
            if !places.iter().any(|p| p.0 == words[JOB_PLACE]) {
                places.push((words[JOB_PLACE], memory));
            }
        }
        let many = if slots.iter().all(|s| s.len() == 1) { 1 } else { MANY as usize };
        if let Some(rotation) = shape.rotation {
            self.turn(gpu, rotation, x, rows.div_ceil(shape.top_k))?;
        }
        let mut prepared = None;
        for (at, memory) in places {
            let variant = Variant { planes: planes_of(at), tokens: many as u32, ..Variant::default() };
            let words = job_words(jobs, slots, at, many);
            let form = self.recorder.form(gpu, Kernel::GateUp, variant);
            let form_down = Some(form).filter(|_| many > 1);
            self.hidden_rows(gpu, shape.ff, rows, form_down.filter(|_| shape.rotation_down.is_none()))?;
            if many > 1 && prepared != Some(form) {
                let (of, tokens) = (tokens_of(slots, shape.top_k), rows.div_ceil(shape.top_k));
                self.prepare_turned(gpu, shape.rotation, x, shape.d, tokens, Some(&of), form)?;
                prepared = Some(form);
            }
            const AT_ONCE: usize = PUT_WORDS / JOB_WORDS;
            for words in words.chunks(AT_ONCE * JOB_WORDS) {
                let first = self.recorder.put(gpu, words, JOB_WORDS) / JOB_WORDS as u32;
                let count = words.len() / JOB_WORDS;
                let (up, down) = (shape.gate_up(first, at), shape.down(first, at));
                let x = match many {
                    1 => self.turned.inputs(shape.rotation, x),
                    _ => self.prepared.get(),
                };
                let bank: &Memory = memory;
                let spare = biases.as_deref().unwrap_or(&self.spare[0]);
                let memory = [bank, x, self.hidden.get(), spare];
                self.recorder.run_with_ring(
                    gpu,
                    variant,
                    &up,
                    &memory,
                    2,
                    shape.gate_grid(variant.planes, count, many),
                );
                // Rotates all rows, including those of other dispatches.
                if let Some(rotation) = shape.rotation_down {
                    self.turn_hidden(gpu, rotation, rows, form_down)?;
                }
                let spare = biases.as_deref().unwrap_or(&self.spare[0]);
                let inputs = self.turned.down_inputs(shape.rotation_down, &self.hidden, form_down);
                let memory = [bank, inputs, out, spare];
                self.recorder.run_with_ring(
                    gpu,
                    variant,
                    &down,
                    &memory,
                    2,
                    shape.down_grid(variant.planes, count, many),
                );
            }
        }
        Ok(())
    }

    /// The number of jobs for the choices. With many tokens, the choices are first sorted by expert.
    fn jobs_of(&mut self, gpu: &Device, of: Routed, table: u32) -> usize {
        if of.tokens == 1 {
            return of.top_k;
        }
        let (experts, slots) = (of.experts as u32, (of.tokens * of.top_k) as u32);
        let count = most_jobs(of.experts, of.tokens, of.top_k);
        let group = GroupParams { experts, slots, jobs: count as u32, table };
        let memory = [self.choices.get(), &self.experts.table, self.jobs.get()];
        self.recorder.run(gpu, Variant::default(), &group, &memory, [1, 1]);
        count
    }

    /// All biases of a layer's experts, as kernels index them.
    fn biases(&mut self, gpu: &Device, feed: &Feed) -> Result<Option<Arc<Memory>>> {
        let Some(biases) = feed.biases else { return Ok(None) };
        let all = || [biases.gate, biases.up, biases.down].concat();
        self.weights.vector(gpu, biases.gate, all).map(Some)
    }

    /// Routing and experts without a round trip to the host.
    pub(super) fn routed(
        &mut self,
        gpu: &Device,
        bufs: RoutedBufs<'_, GpuBuf>,
        tokens: usize,
        choosing: Choosing<'_>,
        (of, feed): (Routed, &Feed<'_>),
        experts: &[Expert],
    ) -> Result<bool> {
        let Some(first) = experts.first() else { return Ok(false) };
        let Some(Loaded { table, banks, refinements }) =
            self.experts.load_all(gpu, &mut self.recorder, of, experts)?
        else {
            return Ok(false);
        };
        let shape = FeedForward::routed(first, of, feed);
        let biases = self.biases(gpu, feed)?;
        let planes = Form::of(&first.up, 0).planes;
        // If some experts are refined, all are computed with the extra plane; unrefined ones read zeros there.
        let mixed = refinements.is_some();
        let finer = refinements.as_deref().unwrap_or_default();
        let each = if tokens == 1 { 1 } else { MANY };
        let variant =
            Variant { planes: planes + u32::from(mixed), mixed, tokens: each, ..Variant::default() };
        // If one launch can access all experts, it chooses and computes them.
        let router = choosing.router;
        let softmax = router.score == Score::Softmax && choosing.bias.is_none();
        let plain = *feed == Feed::default() && softmax && router.groups.is_none();
        let one = plain && tokens == 1 && banks.len() == 1 && finer.len() <= 1;
        if let Some(x) = bufs.x.as_ref().filter(|_| one && of.experts <= MAX_CHOSEN_AMONG) {
            let to = &x.memory;
            self.routed_token(gpu, (&bufs, to), router, &shape, table, variant, &banks[0], finer.first())?;
            return Ok(true);
        }
        let RoutedBufs { h, logits, slots, y, x, history } = bufs;
        let jobs_of = Some(table).filter(|_| tokens == 1);
        self.route_on(gpu, &logits.memory, tokens, (choosing, feed.scales), jobs_of, history.as_ref())?;
        let form = self.recorder.form(gpu, Kernel::GateUp, variant);
        let form_down = Some(form).filter(|_| tokens > 1);
        let rows = tokens * of.top_k;
        self.hidden_rows(gpu, shape.ff, rows, form_down.filter(|_| shape.rotation_down.is_none()))?;
        if let Some(rotation) = shape.rotation {
            self.turn(gpu, rotation, &h.memory, tokens)?;
        }
        if tokens > 1 {
            self.prepare_turned(gpu, shape.rotation, &h.memory, shape.d, tokens, None, form)?;
        }
        let count = self.jobs_of(gpu, of, table);
        let all = banks.iter().enumerate().flat_map(|(i, bank)| {
            (0..finer.len().max(1)).map(move |j| (bank, finer.get(j), place(i, j, planes)))
        });
        for (bank, finer, at) in all.clone() {
            let inputs = match tokens {
                1 => self.turned.inputs(shape.rotation, &h.memory),
                _ => self.prepared.get(),
            };
            let finer = finer.map_or(&self.spare[0], |memory| memory);
            let biases = biases.as_deref().unwrap_or(&self.spare[0]);
            let memory = [bank, inputs, self.jobs.get(), self.hidden.get(), biases, finer];
            let memory = &memory[..5 + usize::from(mixed)];
            let grid = shape.gate_grid(variant.planes, count, each as usize);
            self.recorder.run(gpu, variant, &shape.gate_up(0, at), memory, grid);
        }
        if let Some(rotation) = shape.rotation_down {
            self.turn_hidden(gpu, rotation, rows, form_down)?;
        }
        for (bank, finer, at) in all {
            let hidden = self.turned.down_inputs(shape.rotation_down, &self.hidden, form_down);
            let finer = finer.map_or(&self.spare[0], |memory| memory);
            let biases = biases.as_deref().unwrap_or(&self.spare[0]);
            let memory = [bank, hidden, self.jobs.get(), &slots.memory, biases, finer];
            let memory = &memory[..5 + usize::from(mixed)];
            let grid = shape.down_grid(variant.planes, count, each as usize);
            self.recorder.run(gpu, variant, &shape.down(0, at), memory, grid);
        }
        self.sum_slots(gpu, (&slots.memory, &y.memory, x.map(|x| &x.memory)), shape.d, of);
        Ok(true)
    }

    /// The weighted sum of the experts chosen on the device, in `y`, and added to `x`.
    fn sum_slots(
        &mut self,
        gpu: &Device,
        (slots, y, x): (&Memory, &Memory, Option<&Memory>),
        d: usize,
        of: Routed,
    ) {
        let choices = self.choices.get();
        let sum = CombineParams { d: d as u32, top_k: of.top_k as u32, at: 0 };
        let grid = [groups(d), of.tokens];
        self.recorder.run(gpu, Variant::default(), &sum, &[slots, choices, y], grid);
        if let Some(x) = x {
            self.elementwise(gpu, (ADD, 1.0), y, 0, of.tokens * d, x);
        }
    }

    /// The same for one token whose experts all lie in one buffer.
    #[allow(clippy::too_many_arguments)]
    fn routed_token(
        &mut self,
        gpu: &Device,
        (bufs, x): (&RoutedBufs<'_, GpuBuf>, &Memory),
        router: &Router,
        shape: &FeedForward,
        table: u32,
        variant: Variant,
        bank: &Memory,
        finer: Option<&Arc<Memory>>,
    ) -> Result<()> {
        can_choose(router)?;
        let [group, group_up, _] = shape.groups;
        let up = RouteGateUpParams {
            d: shape.d as u32,
            ff: shape.ff as u32,
            group,
            group_up,
            experts: router.experts as u32,
            top_k: router.top_k as u32,
            renormalize: router.renormalize.into(),
            scale: router.scale,
            table,
            kept: bufs.history.as_ref().is_some_and(|h| h.tokens > 0).into(),
            at: bufs.history.as_ref().map_or(0, |h| h.at) as u32,
        };
        if let Some(rotation) = shape.rotation {
            self.turn(gpu, rotation, &bufs.h.memory, 1)?;
        }
        let h = self.turned.inputs(shape.rotation, &bufs.h.memory);
        let hidden = self.hidden.at_least(gpu, router.top_k * shape.ff, "hidden values")?;
        let jobs = self.jobs.at_least(gpu, router.top_k * JOB_WORDS, "jobs")?;
        let [none, unkept, ..] = &self.spare;
        let history = bufs.history.as_ref().map_or(unkept, |h| &h.buf.memory);
        let up_finer = finer.map_or(none, |memory| memory);
        let mixed = usize::from(variant.mixed);
        let memory = [bank, h, &bufs.logits.memory, &self.experts.table, hidden, jobs, history, up_finer];
        let grid = shape.gate_grid(variant.planes, router.top_k, 1);
        self.recorder.run(gpu, variant, &up, &memory[..7 + mixed], grid);
        if let Some(rotation) = shape.rotation_down {
            self.turn_hidden(gpu, rotation, router.top_k, None)?;
        }
        let hidden = self.turned.down_inputs(shape.rotation_down, &self.hidden, None);
        let memory =
            [bank, hidden, self.jobs.get(), x, &self.spare[0], finer.map_or(&self.spare[0], |memory| memory)];
        let grid = shape.sum_grid();
        self.recorder.run(gpu, variant, &shape.down_sum(0, false), &memory[..5 + mixed], grid);
        Ok(())
    }
}
