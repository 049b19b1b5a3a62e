//! Changes the memory of an open engine.

use crate::boundary::{Failure, Result, run};
use crate::handles::{self, dollop_engine};
use crate::outputs::Out;
use crate::status::dollop_status;
use runtime::TrimLevel;

/// `level` of `dollop_engine_trim`: the cache may use the whole budget.
pub const DOLLOP_TRIM_NORMAL: u32 = 0;
/// The smallest cache that works, plus half of what the budget allows beyond it. Android: `RUNNING_MODERATE`,
/// `RUNNING_LOW`, `UI_HIDDEN`; iOS: memory pressure `.warning`.
pub const DOLLOP_TRIM_MODERATE: u32 = 1;
/// An eighth instead of half. Android: `RUNNING_CRITICAL`, `BACKGROUND`; iOS: `didReceiveMemoryWarning`, pressure `.critical`.
pub const DOLLOP_TRIM_CRITICAL: u32 = 2;
/// The smallest cache that works. Every expert that a token chooses is then read. Android: `MODERATE`, `COMPLETE`;
/// iOS: the app goes to the background.
pub const DOLLOP_TRIM_COMPLETE: u32 = 3;

/// The level with this number.
pub(crate) fn level(number: u32) -> Result<TrimLevel> {
    match number {
        DOLLOP_TRIM_NORMAL => Ok(TrimLevel::Normal),
        DOLLOP_TRIM_MODERATE => Ok(TrimLevel::Moderate),
        DOLLOP_TRIM_CRITICAL => Ok(TrimLevel::Critical),
        DOLLOP_TRIM_COMPLETE => Ok(TrimLevel::Complete),
        other => Err(Failure::invalid(format!("level {other}: it must be 0 to 3"))),
    }
}

/// Sets another memory budget, in bytes. If experts are streamed, their cache shrinks or grows to fit. Memory
/// beyond the budget is freed before this returns; `given`, if not NULL, receives the number of freed bytes. Text
/// at exact precision stays the same. `DOLLOP_BUDGET` if the budget is too small; nothing changes then.
/// `DOLLOP_UNSUPPORTED` if the cache is on a GPU. Any thread, also during a generation and from its callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_set_memory(
    engine: *const dollop_engine,
    bytes: u64,
    given: *mut u64,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let given = unsafe { Out::optional(given) };
        given.set(engine.set_memory(bytes)?);
        Ok(())
    })
}

/// Shrinks or grows the expert cache in response to the system's memory warnings; the budget stays. `level`, a
/// `DOLLOP_TRIM_` constant, sets the size of the cache, so the same level twice has no further effect. `given`, if not
/// NULL, receives the number of bytes freed to the system. Any thread, also during a generation and from its callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_trim(
    engine: *const dollop_engine,
    level: u32,
    given: *mut u64,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let given = unsafe { Out::optional(given) };
        given.set(engine.trim(self::level(level)?)?);
        Ok(())
    })
}
