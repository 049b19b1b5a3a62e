//! Plans how a memory budget is spent, before anything is loaded (R1).
//!
//! The plan covers everything the process allocates: the always-used weights, the KV cache and scratch of one
//! session, the library's own memory, and the expert cache, which gets the rest. It depends only on the file,
//! the budget and the options, never on the machine's current load.

use crate::error::{Error, Result};
use crate::experts::LayerExperts;
use crate::quant::{Level, Matrix};
use crate::sched::{self, Refiner};
use serde::Serialize;

/// What a process with an open model uses beyond the listed parts: code, allocator and standard library.
const BASE_BYTES: u64 = 10 << 20;

/// What a GPU's driver uses on the host beyond our buffers.
const GPU_BASE_BYTES: u64 = 96 << 20;

/// Bytes of a tokenizer's tables per token of the vocabulary (measured: benches/records/streaming.md).
const BYTES_PER_TOKEN: u64 = 400;

/// Tokens per prefill chunk if everything is in memory. Longer chunks are not faster.
pub(super) const CHUNK: usize = 512;

/// The chunk sizes for streamed experts, largest first. Experts that do not fit the cache are read once per
/// chunk, so longer chunks read less.
const CHUNKS: [usize; 7] = [2048, 1024, CHUNK, 256, 128, 64, 32];

/// The longest chunk whose scratch may be taken from the cache. `left` is the memory for both. Scratch may
/// take an eighth of it, and for chunks longer than [`CHUNK`] a sixteenth: these speed up long prompts, but
/// slow down every later token (measured: benches/records/streaming.md).
fn longest_chunk(left: u64, scratch: &dyn Fn(usize) -> u64) -> Option<usize> {
    CHUNKS.into_iter().find(|&chunk| scratch(chunk) <= left / if chunk > CHUNK { 16 } else { 8 })
}

/// How a memory budget is spent, in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The memory budget; `None` if there is no limit.
    pub budget: Option<u64>,
    /// Whether a GPU computes. The plan counts its memory like the host's.
    pub gpu: bool,
    /// Whether experts are streamed. Otherwise everything is resident.
    pub streaming: bool,
    /// Whether experts are resident at a lower level than the stored one. A GPU with adaptive precision does
    /// so if the budget is too small for more: it then never waits for the router's choices to be read.
    pub lowered: bool,
    /// If experts are lowered: the refinements that the rest of the budget pays for.
    pub refinements: Option<RefinementPlan>,
    /// Positions of the planned KV cache.
    pub context: usize,
    /// Tokens per prefill chunk.
    pub chunk: usize,
    /// Program, tokenizer, tables, and buffers for reading rows of embeddings that stay in the file.
    pub overhead_bytes: u64,
    /// Always-used weights.
    pub dense_bytes: u64,
    /// Bytes of the embedding if it stays in the file, else 0. That is so if experts are streamed on a CPU
    /// and the output head is another matrix. Tokens' rows are then read from the file.
    pub unheld_embedding_bytes: u64,
    /// KV cache and other memory of earlier tokens: recurrent states with their marks, and copies of sliding
    /// windows.
    pub kv_bytes: u64,
    /// Activations and other scratch of one session.
    pub scratch_bytes: u64,
    /// Memory for experts: the cache, or all of them. With a GPU, it is on the GPU, and the host has only the
    /// file's mapping.
    pub expert_bytes: u64,
    /// Host memory through which streamed experts pass on their way to a GPU.
    pub staging_bytes: u64,
    /// The smallest budget that works, with the smallest chunk and one expert per layer.
    pub smallest_bytes: u64,
    /// What each stored level would mean under this plan.
    pub levels: Vec<LevelFit>,
    /// What one token passes through, for forecasts of speed.
    #[doc(hidden)]
    pub token: TokenWork,
}

/// What one token passes through, whatever the budget. Its experts are in [`LevelFit::touched_bytes`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[doc(hidden)]
#[non_exhaustive]
pub struct TokenWork {
    /// Layers.
    pub layers: usize,
    /// Layers with routed experts.
    pub routed_layers: usize,
    /// Experts per routed layer.
    pub experts: usize,
    /// Experts per routed layer that a token uses.
    pub experts_used: usize,
    /// Bytes of the always-used matrices, by the bits of their codes; 32 for unquantized ones.
    pub dense: Vec<(u8, u64)>,
}

impl TokenWork {
    /// Adds an always-used matrix.
    pub(super) fn add(&mut self, matrix: &Matrix) {
        let bits = match matrix {
            Matrix::Nested(n) => n.level().bits(),
            Matrix::F32 { .. } => 32,
        };
        let bytes = matrix.bytes() as u64;
        match self.dense.iter_mut().find(|(of, _)| *of == bits) {
            Some((_, sum)) => *sum += bytes,
            None => self.dense.push((bits, bytes)),
        }
    }
}

impl std::fmt::Display for MemoryPlan {
    /// One line, in MB.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes.div_ceil(1 << 20);
        match self.budget {
            Some(budget) => write!(f, "{} of {} MB", mb(self.total_bytes()), mb(budget))?,
            None => write!(f, "{} MB, no limit", mb(self.total_bytes()))?,
        }
        write!(
            f,
            ": program {}, dense weights {}, KV cache {} for {} tokens, scratch {} for chunks of {}, experts {}",
            mb(self.overhead_bytes),
            mb(self.dense_bytes),
            mb(self.kv_bytes),
            self.context,
            mb(self.scratch_bytes),
            self.chunk,
            mb(self.expert_bytes),
        )?;
        if self.staging_bytes > 0 {
            write!(f, ", on their way {}", mb(self.staging_bytes))?;
        }
        f.write_str(if self.streaming { " (streamed)" } else { " (resident)" })
    }
}

/// The experts that are resident with one plane more than the others.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RefinementPlan {
    /// Bits of the refined experts.
    pub bits: u8,
    /// The most experts per layer that are refined at one time.
    pub slots: usize,
    /// The refined share of all experts, from 0 to 1.
    pub share: f64,
    /// Bytes of the extra planes, on the GPU.
    pub bytes: u64,
    /// Bytes of host buffers that planes are read into.
    pub staging_bytes: u64,
}

/// What one level means under a plan.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LevelFit {
    /// Bits of the level.
    pub bits: u8,
    /// Bytes of all experts at this level.
    pub expert_bytes: u64,
    /// The share of these bytes that the cache holds, from 0 to 1.
    pub resident: f64,
    /// Bytes of the experts that one token uses.
    pub touched_bytes: u64,
    /// Bytes that one token reads if all experts are equally likely. Real routing reads less.
    pub read_bytes: u64,
}

/// An embedding that stays in the file.
#[derive(Clone, Copy, Default)]
pub(super) struct Unheld {
    /// Bytes that it would take in memory.
    pub(super) bytes: u64,
    /// Bytes of the buffers for its rows.
    pub(super) row_bytes: u64,
}

/// The inputs of a plan.
pub(super) struct Request<'a> {
    pub(super) vocab: usize,
    /// All always-used weights, in bytes.
    pub(super) dense_bytes: u64,
    /// The embedding that stays in the file if experts are streamed.
    pub(super) embedding: Unheld,
    /// Whether a GPU computes.
    pub(super) gpu: bool,
    /// The highest level of streamed experts on the device. Every slot has room for it.
    pub(super) device_level: Level,
    /// The experts' tables, by layer.
    pub(super) tables: &'a [Option<LayerExperts>],
    pub(super) budget: Option<u64>,
    /// Whether experts are streamed even if all fit.
    pub(super) always_streamed: bool,
    pub(super) context: usize,
    pub(super) chunk: Option<usize>,
    /// The level at which everything must fit to be resident.
    pub(super) whole: Level,
    /// Whether a lower level, down to `floor`, is good enough to be resident.
    pub(super) may_lower: bool,
    pub(super) floor: Level,
    pub(super) top_k: usize,
    pub(super) token: TokenWork,
    /// Bytes of a session's buffers for (context, chunk).
    pub(super) scratch: &'a dyn Fn(usize, usize) -> u64,
    /// Bytes of what a session's layers keep, for (context, chunk).
    pub(super) kv: &'a dyn Fn(usize, usize) -> u64,
}

impl Request<'_> {
    /// Bytes of all experts at a level.
    fn all(&self, level: Level) -> u64 {
        let layers = self.tables.iter().flatten();
        // On a device, every expert's slot has room for all planes of the level.
        let all = |t: &LayerExperts| match self.gpu {
            true => t.expert_bytes(level.min(t.level())) * t.count(),
            false => t.total_bytes(level),
        };
        layers.map(|t| all(t) as u64).sum()
    }

    /// The fewest cache bytes that one expert of a layer needs.
    fn place(&self, t: &LayerExperts) -> u64 {
        match self.gpu {
            true => t.device_bytes(self.device_level) as u64,
            false => t.expert_bytes(self.floor) as u64,
        }
    }

    /// Advice for a budget that is too small.
    fn hint(&self, kv_bytes: u64, has_experts: bool) -> String {
        let (context, mb) = (self.context, kv_bytes >> 20);
        match (context > 512, has_experts) {
            (true, _) => {
                format!(" (with a context of {context} tokens, which takes {mb} MB; --ctx lowers it)")
            }
            (false, true) => String::new(),
            (false, false) => " (the model has no experts that could be streamed)".to_owned(),
        }
    }

    /// What a level means if the cache has `expert_bytes`, in equal shares for all layers.
    fn fit(&self, level: Level, expert_bytes: u64, streaming: bool) -> LevelFit {
        let routed = || self.tables.iter().flatten();
        let layers = routed().count().max(1) as u64;
        let share = expert_bytes / layers;
        let places = |t: &LayerExperts| (share / self.place(t).max(1)).min(t.count() as u64);
        let count = |t: &LayerExperts| t.count() as u64;
        let whole = self.all(level);
        let resident = match (streaming, self.gpu) {
            (false, _) => 1.0,
            (true, false) => (share as f64 * layers as f64 / whole as f64).min(1.0),
            (true, true) => {
                routed().map(places).sum::<u64>() as f64 / routed().map(count).sum::<u64>() as f64
            }
        };
        let touched = routed().map(|t| (t.total_bytes(level) * self.top_k / t.count().max(1)) as u64).sum();
        LevelFit {
            bits: level.bits(),
            expert_bytes: whole,
            resident,
            touched_bytes: touched,
            read_bytes: ((1.0 - resident) * touched as f64) as u64,
        }
    }
}

impl MemoryPlan {
    /// # Errors
    /// `Budget`, naming the smallest that works.
    pub(super) fn new(r: &Request) -> Result<MemoryPlan> {
        let routed = || r.tables.iter().flatten();
        let base = BASE_BYTES + if r.gpu { GPU_BASE_BYTES } else { 0 };
        let overhead = base + BYTES_PER_TOKEN * r.vocab as u64 + table_bytes(r.tables);
        let least_chunk = r.chunk.unwrap_or(CHUNKS[CHUNKS.len() - 1]).min(r.context);
        let kv = |chunk: usize| (r.kv)(r.context, chunk);
        // A window's cache has room for a chunk. What this takes beyond the smallest chunk counts as scratch
        // of the chunk.
        let scratch_of = |chunk: usize| (r.scratch)(r.context, chunk) + kv(chunk) - kv(least_chunk);
        let fixed = overhead + r.dense_bytes + kv(least_chunk);
        let (one_staged, well_staged) = match r.gpu {
            true => sched::staging_bytes(r.tables, r.device_level, r.top_k),
            false => (0, 0),
        };
        // Every layer gets the same share.
        let one_each = routed().map(|t| r.place(t)).max().unwrap_or(0) * routed().count() as u64 + one_staged;
        // Either all is resident, also the embedding, or experts are streamed and get the embedding's memory.
        let unheld = if one_each > 0 { r.embedding } else { Unheld::default() };
        let streamed = fixed - unheld.bytes + unheld.row_bytes;
        let smallest = streamed + scratch_of(least_chunk) + one_each;
        let largest = r.chunk.unwrap_or(CHUNK).min(r.context);
        let rest = fixed + scratch_of(largest);
        let lowest = if r.may_lower { r.floor.min(r.whole) } else { r.whole };
        let mut levels = Level::ALL.into_iter().rev().filter(|l| (lowest..=r.whole).contains(l));
        let fits = |level: &Level| r.budget.is_none_or(|budget| rest + r.all(*level) <= budget);
        let stream = r.always_streamed && r.budget.is_some() && one_each > 0;
        let held = levels.find(|level| !stream && fits(level));
        let streaming = held.is_none() && one_each > 0;
        let held = held.unwrap_or(r.whole);
        let chunk = match (r.budget, r.chunk) {
            (Some(budget), None) if streaming => {
                let left = budget.saturating_sub(streamed + one_each);
                let scratch = |chunk: usize| scratch_of(chunk.min(r.context));
                longest_chunk(left, &scratch).unwrap_or(least_chunk).min(r.context)
            }
            _ => largest,
        };
        let scratch = scratch_of(chunk);
        if let Some(budget) = r.budget.filter(|&budget| budget < smallest) {
            return Err(Error::Budget { budget, smallest, hint: r.hint(kv(least_chunk), one_each > 0) });
        }
        // Like a chunk's scratch, staging is useful as long as it leaves the cache most of the memory.
        let (expert_bytes, staging_bytes) = match r.budget {
            Some(budget) if streaming => {
                let left = budget - streamed - scratch;
                let staging = well_staged.min((left - one_each) / 8).max(one_staged);
                // If experts are streamed although they fit, memory beyond all of them is useless.
                let most = if stream { r.all(r.whole).max(one_each) } else { u64::MAX };
                ((left - staging).min(most), staging)
            }
            _ => (r.all(held), 0),
        };
        let unheld = if streaming { unheld } else { Unheld::default() };
        let stored = routed().map(LayerExperts::level).max();
        let listed = |l: &Level| stored.is_some_and(|s| *l <= s) && (*l <= held || held == r.whole);
        let fit = |level| r.fit(level, expert_bytes, streaming);
        let levels = Level::ALL.into_iter().filter(listed).map(fit).collect();
        Ok(MemoryPlan {
            budget: r.budget,
            gpu: r.gpu,
            streaming,
            lowered: held < r.whole,
            refinements: r
                .budget
                .filter(|_| held < r.whole)
                .and_then(|budget| RefinementPlan::new(r.tables, held, budget - rest - r.all(held))),
            context: r.context,
            chunk,
            overhead_bytes: overhead + unheld.row_bytes,
            dense_bytes: r.dense_bytes - unheld.bytes,
            unheld_embedding_bytes: unheld.bytes,
            kv_bytes: kv(chunk),
            scratch_bytes: (r.scratch)(r.context, chunk),
            expert_bytes,
            staging_bytes,
            smallest_bytes: smallest,
            levels,
            token: r.token.clone(),
        })
    }

    /// Whether the plan uses the whole budget: streamed and lowered experts take all they can get.
    pub(super) fn is_tight(&self) -> bool {
        self.streaming || self.lowered
    }

    /// The level of resident experts, if it is lower than the stored one.
    pub(super) fn lowered_level(&self) -> Option<Level> {
        let bits = self.levels.last().filter(|_| self.lowered)?.bits;
        Level::from_bits(bits)
    }

    /// The plan for the CPU after a GPU was lost, given the CPU's weights and session. Experts are all
    /// resident at the same level as before, or cached in what is left, at least `least` bytes.
    ///
    /// # Errors
    /// The bytes that the CPU needs, if the budget is smaller.
    pub(super) fn on_cpu(
        &self,
        dense_bytes: u64,
        kv_bytes: u64,
        scratch_bytes: u64,
        least: u64,
    ) -> Result<MemoryPlan, u64> {
        let mut plan = MemoryPlan {
            gpu: false,
            dense_bytes,
            unheld_embedding_bytes: 0,
            kv_bytes,
            scratch_bytes,
            staging_bytes: 0,
            refinements: None,
            ..self.clone()
        };
        if plan.streaming {
            let rest = plan.total_bytes() - plan.expert_bytes;
            let left = plan.budget.map_or(plan.expert_bytes, |budget| budget.saturating_sub(rest));
            plan.expert_bytes = left.max(least);
            plan.resize(plan.expert_bytes);
        }
        let total = plan.total_bytes();
        if plan.budget.is_some_and(|budget| budget < total) { Err(total) } else { Ok(plan) }
    }

    /// Gives streamed experts `expert_bytes`.
    pub(super) fn resize(&mut self, expert_bytes: u64) {
        self.expert_bytes = expert_bytes;
        for level in &mut self.levels {
            level.resident = (expert_bytes as f64 / level.expert_bytes as f64).min(1.0);
            level.read_bytes = ((1.0 - level.resident) * level.touched_bytes as f64) as u64;
        }
    }

    /// The sum of all parts, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.overhead_bytes
            + self.dense_bytes
            + self.kv_bytes
            + self.scratch_bytes
            + self.expert_bytes
            + self.staging_bytes
            + self.refinements.map_or(0, |r| r.bytes + r.staging_bytes)
    }
}

impl RefinementPlan {
    /// Describes the refinements, to follow the description of the common level.
    pub(super) fn described(&self) -> String {
        format!(" and {} for {:.0} % of them, on the device", self.bits, 100.0 * self.share)
    }

    /// What `left` bytes buy beside experts at `level`: slots for their next plane, equally many in every
    /// layer.
    fn new(tables: &[Option<LayerExperts>], level: Level, left: u64) -> Option<RefinementPlan> {
        // If experts are stored at different levels, some have no next plane.
        if tables.iter().flatten().any(LayerExperts::is_uneven) {
            return None;
        }
        let plane = level.planes();
        let finer = || tables.iter().flatten().filter(|t| t.planes.len() > plane);
        let staging_bytes = Refiner::staging_bytes(tables, level);
        let slot: u64 = finer().map(|t| t.plane_bytes(plane) as u64).sum();
        let most = finer().map(LayerExperts::count).max()?;
        let slots = (left.checked_sub(staging_bytes)? / slot.max(1)).min(most as u64) as usize;
        let refined: usize = finer().map(|t| slots.min(t.count())).sum();
        let experts: usize = tables.iter().flatten().map(LayerExperts::count).sum();
        (slots > 0).then(|| RefinementPlan {
            bits: Level::ALL[plane].bits(),
            slots,
            share: refined as f64 / experts as f64,
            bytes: slots as u64 * slot,
            staging_bytes,
        })
    }
}

/// Bytes of the tables and bookkeeping of a streamed model.
fn table_bytes(tables: &[Option<LayerExperts>]) -> u64 {
    const PER_EXPERT: usize = 1200;
    tables.iter().flatten().map(|t| (t.count() * PER_EXPERT) as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_takes_an_eighth_of_what_is_left_and_a_long_one_a_sixteenth() {
        let scratch = |chunk: usize| 1000 * chunk as u64;
        let at = |left: u64| longest_chunk(left, &scratch);
        assert_eq!(at(8 * 32_000 - 1), None);
        assert_eq!(at(8 * 32_000), Some(32));
        assert_eq!(at(8 * 512_000), Some(512));
        assert_eq!(at(16 * 1_024_000 - 1), Some(512));
        assert_eq!(at(16 * 1_024_000), Some(1024));
        assert_eq!(at(u64::MAX), Some(2048));
    }
}
