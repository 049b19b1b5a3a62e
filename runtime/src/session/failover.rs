//! Holds what an engine computes on: the processor that it was opened with, and the CPU if that was a GPU and
//! failed.
//!
//! A failed GPU takes its weights and caches with it, and what the CPU needs takes over their part of the
//! budget. This happens at most once. Each session moves when it next computes (`timeline.rs`), and computes
//! its tokens again.

use super::dense::{copy_dense, dense_bytes, is_tied};
use super::info::{Manner, ModelInfo};
use super::plan::MemoryPlan;
use super::processor::{self, Processor, most_threads};
use super::shape::Shape;
use crate::error::{Error, Result};
use crate::kernels::cpu::CpuOptions;
use crate::model::Model;
use crate::model::file::DenseSums;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A processor, the model as it reads it, and the memory plan for both.
pub(super) struct Computing {
    pub(super) model: Model,
    pub(super) processor: Box<dyn Processor>,
    pub(super) info: ModelInfo,
    pub(super) plan: MemoryPlan,
    /// Bytes of the open sessions.
    sessions: Arc<AtomicU64>,
}

pub(super) struct Processors {
    pub(super) first: Computing,
    /// How to open the CPU if it must take over.
    cpu: CpuOptions,
    fallback: Fallback,
    /// How the GPU failed, in one line.
    lost: OnceLock<String>,
    second: OnceLock<Computing>,
    /// Held while `second` is created.
    making: Mutex<()>,
}

/// What the CPU needs to take over.
pub(super) struct Fallback {
    pub(super) manner: Manner,
    /// The smallest cache for streamed experts, in bytes.
    pub(super) least_cache: u64,
    /// Checksums of the always-used weights. The CPU verifies them when it copies the weights, if experts are
    /// streamed.
    pub(super) sums: DenseSums,
}

impl Computing {
    pub(super) fn new(
        model: Model,
        processor: Box<dyn Processor>,
        info: ModelInfo,
        plan: MemoryPlan,
    ) -> Computing {
        Computing { model, processor, info, plan, sessions: Arc::default() }
    }

    /// Reserves memory for a session in the budget.
    pub(super) fn book(&self, context: usize, chunk: usize) -> Result<Booking> {
        let shape = Shape::of(&self.model, &self.info, self.processor.is_gpu());
        let bytes = shape.kv(context, chunk) + shape.scratch(context, chunk, self.processor.threads());
        let planned = self.plan.kv_bytes + self.plan.scratch_bytes;
        let mut open = self.sessions.load(Ordering::Relaxed);
        loop {
            if self.plan.is_tight() && open + bytes > planned {
                return Err(Error::Invalid(format!(
                    "a session with a context of {context} tokens needs {} MB, and the budget was planned for {} MB of sessions; open the model with a larger context (--ctx) or budget (--memory)",
                    bytes.div_ceil(1 << 20),
                    (planned - open.min(planned)) >> 20
                )));
            }
            let sum = open + bytes;
            match self.sessions.compare_exchange(open, sum, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(Booking { sessions: self.sessions.clone(), bytes }),
                Err(now) => open = now,
            }
        }
    }
}

/// A session's reserved memory, released when it is dropped.
pub(super) struct Booking {
    sessions: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.sessions.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Processors {
    pub(super) fn new(first: Computing, cpu: CpuOptions, fallback: Fallback) -> Processors {
        let (lost, second, making) = (OnceLock::new(), OnceLock::new(), Mutex::default());
        Processors { first, cpu, fallback, lost, second, making }
    }

    /// The processor that computes now.
    pub(super) fn now(&self) -> &Computing {
        self.second.get().unwrap_or(&self.first)
    }

    /// The processor of a timeline: the first one if the timeline is on a GPU, else the current one.
    pub(super) fn of(&self, gpu: bool) -> &Computing {
        if gpu { &self.first } else { self.now() }
    }

    /// The precision at which experts are computed, on which a session's keys and values depend.
    pub(super) fn manner(&self) -> String {
        self.fallback.manner.tag(&self.first.plan)
    }

    /// How the GPU failed, in one line; `None` if it did not.
    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.get().map(String::as_str)
    }

    /// Gives up the GPU and frees its memory.
    pub(super) fn lose(&self, why: &str) {
        // A driver's message may have several lines.
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        self.lost.get_or_init(|| {
            log::warn!("the GPU was lost ({why}); computing on the CPU from here on");
            format!("the GPU was lost ({why}); computing on the CPU from here on")
        });
        if let Some(refine) = self.first.model.experts.refine() {
            refine.stop();
        }
        if let Some(gpu) = self.first.processor.accelerator() {
            gpu.abandon();
        }
    }

    /// Opens the CPU in place of the lost GPU.
    ///
    /// # Errors
    /// `Budget` if the budget is too small for the CPU; those of opening it and of reading weights. The
    /// caller may try again.
    pub(super) fn take_over(&self) -> Result<&Computing> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(second) = self.second.get() {
            return Ok(second);
        }
        let first = &self.first;
        let plan = self.plan()?;
        let mut model = first.model.clone();
        if plan.streaming {
            let tied = is_tied(&model.weights);
            copy_dense(&mut model.weights, tied, &self.fallback.sums)?;
            model.experts.keep_on_host(plan.expert_bytes)?;
        }
        let processor = processor::cpu(self.cpu.clone())?;
        let mode = self.fallback.manner.described(&plan);
        let info = ModelInfo { backend: processor.name(), mode, ..first.info.clone() };
        log::info!("taken over by {}, {}", info.backend, info.mode);
        log::debug!("memory: {plan}");
        Ok(self.second.get_or_init(|| Computing::new(model, processor, info, plan)))
    }

    /// The plan for the CPU, with its weights, KV cache and scratch. Experts are either all at the level that
    /// all had, read from the mapping, or streamed into an empty cache. The driver may keep its memory on the
    /// host, so that stays counted.
    fn plan(&self) -> Result<MemoryPlan> {
        let Computing { model, info, plan, .. } = &self.first;
        let shape = Shape::of(model, info, false);
        let threads = most_threads(self.cpu.threads, self.cpu.cores.as_deref());
        let kv = shape.kv(plan.context, plan.chunk);
        let scratch = shape.scratch(plan.context, plan.chunk, threads);
        plan.on_cpu(dense_bytes(&model.weights, false), kv, scratch, self.fallback.least_cache).map_err(
            |smallest| {
                let lost = self.lost().unwrap_or_default();
                let hint = format!(" to compute on the CPU ({lost}); the session's tokens are kept");
                Error::Budget { budget: plan.budget.unwrap_or(smallest), smallest, hint }
            },
        )
    }
}
