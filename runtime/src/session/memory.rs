//! Changes the memory of an open engine. Only the cache of streamed experts can shrink; all other memory is
//! in use.
//!
//! Any thread may call this, even during a generation. Results at exact precision do not change (R2).

use super::engine::{Engine, Served};
use super::plan::MemoryPlan;
use crate::error::{Error, Result};
use std::sync::PoisonError;

/// How much memory the program should give back, in the terms of operating systems.
///
/// | | Android, `onTrimMemory` | iOS |
/// |---|---|---|
/// | `Normal` | the activity is in front again | `DispatchSource` memory pressure `.normal`; the app becomes active |
/// | `Moderate` | `RUNNING_MODERATE`, `RUNNING_LOW`, `UI_HIDDEN` | memory pressure `.warning` |
/// | `Critical` | `RUNNING_CRITICAL`, `BACKGROUND` | `didReceiveMemoryWarning`, memory pressure `.critical` |
/// | `Complete` | `MODERATE`, `COMPLETE` | the app goes to the background |
///
/// A level sets the size of the cache; it does not shrink it by an amount. The same level twice has no
/// further effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimLevel {
    /// The cache may use the whole budget.
    Normal,
    /// The smallest cache that works, plus half of what the budget allows beyond it.
    Moderate,
    /// The smallest cache that works, plus an eighth of what the budget allows beyond it.
    Critical,
    /// The smallest cache that works. Every expert that a token chooses is then read.
    Complete,
}

impl TrimLevel {
    /// The cache's size in bytes under this level, between the smallest and the largest.
    fn cache(self, least: u64, most: u64) -> u64 {
        let beyond = most.saturating_sub(least);
        match self {
            TrimLevel::Normal => most,
            TrimLevel::Moderate => least + beyond / 2,
            TrimLevel::Critical => least + beyond / 8,
            TrimLevel::Complete => least,
        }
    }
}

impl Engine {
    /// What the engine's memory is used for now.
    pub fn memory_plan(&self) -> MemoryPlan {
        let mut plan = self.now().plan.clone();
        if let (Served::Streamed(streamer), false) = (&self.0.served, plan.gpu) {
            plan.resize(streamer.cache_bytes());
            plan.budget = self.budget();
        }
        plan
    }

    fn budget(&self) -> Option<u64> {
        *self.0.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets another memory budget, in bytes. Works from any thread, with sessions open and while tokens are
    /// computed. If experts are streamed, their cache shrinks or grows to fit. Memory beyond the budget is
    /// freed before this returns; that may wait for the current layer. Returns the bytes that were freed.
    /// Text at exact precision stays the same; the speed changes.
    ///
    /// If the cache becomes larger than when the model was opened, it moves to new memory, which takes the
    /// time of a copy.
    ///
    /// # Errors
    /// `Budget` if `bytes` is too small, naming the smallest budget that works with the sessions that the
    /// engine was opened for; nothing changes then. `Unsupported` if the experts are in a GPU's memory.
    pub fn set_memory(&self, bytes: u64) -> Result<u64> {
        if self.now().plan.gpu && self.now().plan.is_tight() {
            return Err(Error::unsupported(
                "the experts are in a GPU's memory, which was divided when the model was opened",
            ));
        }
        let (fixed, least) = self.fixed_and_least();
        if bytes < fixed + least {
            let streams = matches!(self.0.served, Served::Streamed(_));
            let hint = match streams {
                true => " beside the sessions that the model was opened for",
                false => {
                    "; its experts are not streamed: open it with this budget, or with `StreamingOptions::always`"
                }
            };
            return Err(Error::Budget { budget: bytes, smallest: fixed + least, hint: hint.to_owned() });
        }
        let mut budget = self.0.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let given = match &self.0.served {
            Served::Streamed(streamer) => streamer.resize(bytes - fixed)?,
            Served::Resident | Served::Refined(_) => 0,
        };
        *budget = Some(bytes);
        log::debug!("a budget of {bytes} bytes from here on: {given} bytes went back to the system");
        Ok(given)
    }

    /// Frees memory, or takes it back, at the system's request. The budget stays. Returns the bytes that were
    /// freed.
    ///
    /// If all experts are resident and mapped, this releases the mapping's pages from [`TrimLevel::Critical`]
    /// on, if the system allows that. Pages return when they are used. The result then counts all their
    /// bytes, even those that were not in memory. Memory on a GPU stays.
    ///
    /// # Errors
    /// `Invalid` if the cache should grow and the system has no memory for it.
    pub fn trim(&self, level: TrimLevel) -> Result<u64> {
        let (fixed, least) = self.fixed_and_least();
        let on_gpu = self.now().plan.gpu;
        let given = match (&self.0.served, self.budget()) {
            (Served::Streamed(streamer), Some(budget)) if !on_gpu => {
                streamer.resize(level.cache(least, budget.saturating_sub(fixed)))?
            }
            (Served::Resident, _)
                if !on_gpu && matches!(level, TrimLevel::Critical | TrimLevel::Complete) =>
            {
                super::engine::release_experts(self.model())
            }
            _ => 0,
        };
        log::debug!("trimmed to {level:?}: {given} bytes went back to the system");
        Ok(given)
    }

    /// Bytes of everything except the cache of streamed experts, and of the smallest cache that works.
    fn fixed_and_least(&self) -> (u64, u64) {
        let plan = &self.now().plan;
        match &self.0.served {
            Served::Streamed(streamer) if !plan.gpu => {
                (plan.total_bytes() - plan.expert_bytes, streamer.least_host_bytes())
            }
            _ => (plan.total_bytes(), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_lie_between_the_smallest_cache_and_the_budget() {
        use TrimLevel::{Complete, Critical, Moderate, Normal};
        let caches = [Normal, Moderate, Critical, Complete].map(|level| level.cache(100, 900));
        assert_eq!(caches, [900, 500, 200, 100]);
        assert_eq!(Moderate.cache(100, 90), 100, "a budget that is all in use");
    }
}
