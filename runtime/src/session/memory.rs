//! Memory given back and taken again while a model is open.
//!
//! What can give way is the cache of streamed experts; everything else is in use. Any thread may ask, also during a
//! generation; results at exact precision do not change (R2).

use super::engine::{Engine, Served};
use super::plan::MemoryPlan;
use crate::error::{Error, Result};
use std::sync::PoisonError;

/// How much memory a program wants back, as systems say it.
///
/// | | Android, `onTrimMemory` | iOS |
/// |---|---|---|
/// | `Normal` | the activity is in front again | `DispatchSource` memory pressure `.normal`; the app becomes active |
/// | `Moderate` | `RUNNING_MODERATE`, `RUNNING_LOW`, `UI_HIDDEN` | memory pressure `.warning` |
/// | `Critical` | `RUNNING_CRITICAL`, `BACKGROUND` | `didReceiveMemoryWarning`, memory pressure `.critical` |
/// | `Complete` | `MODERATE`, `COMPLETE` | the app goes to the background |
///
/// A level says how large the cache is, and not by how much it shrinks: the same warning twice does nothing the second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrimLevel {
    /// The whole budget may be used again.
    Normal,
    /// Half of the cache beyond the smallest that works.
    Moderate,
    /// An eighth of that.
    Critical,
    /// The smallest that works: every expert that a token chooses is read.
    Complete,
}

impl TrimLevel {
    /// The cache under this level, between the smallest and what the budget allows.
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
    /// What the memory is spent on now.
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

    /// Gives the engine another budget of memory, from any thread, with sessions open and tokens being computed. Where experts are
    /// streamed, the cache shrinks or grows to it: what is beyond goes back to the system before this returns, at the latest when
    /// the layer in hand is computed. Returns the bytes that went back. Texts at exact precision stay the same; speed does not.
    ///
    /// A cache that grows beyond what it was when the model was opened moves to new memory, which takes as long as copying it.
    ///
    /// # Errors
    /// `Budget` where that is too little, with the smallest that works beside the memory of sessions that the engine was opened for;
    /// nothing changes then. `Unsupported` where the cache is on a GPU.
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

    /// Gives memory back, or takes it again, as the system asks for it; the budget stays. Returns the bytes that went back. Where
    /// all experts are resident and mapped, the mapping's pages are let go of from [`TrimLevel::Critical`] on, if the system takes
    /// them, and come back as they are used; all of their bytes are returned then, though only those in memory can go back. What is
    /// on a GPU stays.
    ///
    /// # Errors
    /// `Invalid` where the system has no memory for a cache that is to grow.
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

    /// Bytes of everything but the cache of streamed experts, and of the smallest such cache.
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
