//! Gives memory back and takes it again while a model is open.

use crate::boundary::{Failure, Result, run};
use crate::handles::{self, dollop_engine};
use crate::outputs::Out;
use crate::status::dollop_status;
use runtime::TrimLevel;

/// A level of `dollop_engine_trim`: the whole budget may be used again.
pub const DOLLOP_TRIM_NORMAL: u32 = 0;
/// Half of the cache beyond the smallest that works. Android: `RUNNING_MODERATE`, `RUNNING_LOW`, `UI_HIDDEN`; iOS: memory
/// pressure `.warning`.
pub const DOLLOP_TRIM_MODERATE: u32 = 1;
/// An eighth of that. Android: `RUNNING_CRITICAL`, `BACKGROUND`; iOS: `didReceiveMemoryWarning`, memory pressure `.critical`.
pub const DOLLOP_TRIM_CRITICAL: u32 = 2;
/// The smallest that works: every expert that a token chooses is read. Android: `MODERATE`, `COMPLETE`; iOS: the app goes to
/// the background.
pub const DOLLOP_TRIM_COMPLETE: u32 = 3;

/// A level by its number.
pub(crate) fn level(number: u32) -> Result<TrimLevel> {
    match number {
        DOLLOP_TRIM_NORMAL => Ok(TrimLevel::Normal),
        DOLLOP_TRIM_MODERATE => Ok(TrimLevel::Moderate),
        DOLLOP_TRIM_CRITICAL => Ok(TrimLevel::Critical),
        DOLLOP_TRIM_COMPLETE => Ok(TrimLevel::Complete),
        other => Err(Failure::invalid(format!("level {other}: it must be 0 to 3"))),
    }
}

/// Gives the engine another budget, in bytes. Where experts are streamed, their cache shrinks or grows to it, and what is
/// beyond goes back to the system before this returns; `given`, if not NULL, gets the bytes that did. Texts at exact precision
/// stay the same. A budget that cannot work is `DOLLOP_BUDGET` and changes nothing; `DOLLOP_UNSUPPORTED` where the cache is on
/// a GPU. Any thread, also during a generation and from its callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_set_memory(
    engine: *const dollop_engine,
    bytes: u64,
    given: *mut u64,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let given = unsafe { Out::optional(given) };
        given.set(engine.set_memory(bytes)?);
        Ok(())
    })
}

/// Gives memory back, or takes it again, as the system asks for it; the budget stays. `level` is a `DOLLOP_TRIM_`, which says
/// how large the cache is: the same warning twice does nothing the second time. `given`, if not NULL, gets the bytes that went
/// back to the system. Any thread, also during a generation and from its callback.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_trim(
    engine: *const dollop_engine,
    level: u32,
    given: *mut u64,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let given = unsafe { Out::optional(given) };
        given.set(engine.trim(self::level(level)?)?);
        Ok(())
    })
}
