//! How a memory budget is spent, before a model is opened or after.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::engine::{OnProgress, with_progress};
use crate::handles::{self, dollop_engine, dollop_plan};
use crate::options::dollop_engine_options;
use crate::outputs::{Out, OutStruct};
use crate::status::dollop_status::{self, *};
use runtime::{Engine, MemoryPlan};
use std::ffi::c_char;
use std::sync::Arc;

/// How a budget is spent, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_plan_info {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// What may be used; 0 for no limit.
    pub budget_bytes: u64,
    /// Everything together.
    pub total_bytes: u64,
    /// The smallest budget that works.
    pub smallest_bytes: u64,
    /// Program, tokenizer and tables.
    pub overhead_bytes: u64,
    /// Weights that every token uses.
    pub dense_bytes: u64,
    /// KV cache of one session.
    pub kv_bytes: u64,
    /// Activations and other scratch of one session.
    pub scratch_bytes: u64,
    /// Experts: all of them, or the cache.
    pub expert_bytes: u64,
    /// Memory that streamed experts pass through on their way to a GPU.
    pub staging_bytes: u64,
    /// Positions of the KV cache.
    pub context: u32,
    /// Tokens of a prompt that pass through the layers together.
    pub chunk: u32,
    /// 1 if experts are streamed, 0 if all are resident.
    pub streaming: u32,
    /// 1 if a GPU computes.
    pub gpu: u32,
    /// 1 if experts are resident at fewer bits than are stored.
    pub lowered: u32,
    /// Levels that `dollop_plan_level_at` tells of.
    pub level_count: u32,
}

impl Default for dollop_plan_info {
    fn default() -> Self {
        dollop_plan_info {
            struct_size: size_of::<Self>(),
            budget_bytes: 0,
            total_bytes: 0,
            smallest_bytes: 0,
            overhead_bytes: 0,
            dense_bytes: 0,
            kv_bytes: 0,
            scratch_bytes: 0,
            expert_bytes: 0,
            staging_bytes: 0,
            context: 0,
            chunk: 0,
            streaming: 0,
            gpu: 0,
            lowered: 0,
            level_count: 0,
        }
    }
}

// SAFETY: `repr(C)`, a size first, then numbers.
unsafe impl Struct for dollop_plan_info {
    const NAME: &'static str = "dollop_plan_info";
}

/// What the experts at one level would mean.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_plan_level {
    /// Bytes of this struct.
    pub struct_size: usize,
    /// Bits.
    pub bits: u32,
    /// The part of the experts at this level that the memory holds, 0 to 1.
    pub resident: f64,
    /// Bytes of all experts.
    pub expert_bytes: u64,
    /// Expert bytes that a token touches.
    pub touched_bytes: u64,
    /// Bytes that a token reads if all experts are equally likely.
    pub read_bytes: u64,
}

impl Default for dollop_plan_level {
    fn default() -> Self {
        dollop_plan_level {
            struct_size: size_of::<Self>(),
            bits: 0,
            resident: 0.0,
            expert_bytes: 0,
            touched_bytes: 0,
            read_bytes: 0,
        }
    }
}

// SAFETY: `repr(C)`, a size first, then numbers.
unsafe impl Struct for dollop_plan_level {
    const NAME: &'static str = "dollop_plan_level";
}

/// Clears `info` and sets its size; `struct_size` is `sizeof *info`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_info_init(
    info: *mut dollop_plan_info,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(info, struct_size, |i| i.struct_size = struct_size) })
}

/// Clears `level` and sets its size; `struct_size` is `sizeof *level`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_level_init(
    level: *mut dollop_plan_level,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: the contract of pointers in `lib.rs`.
    run(|| unsafe { arguments::init(level, struct_size, |l| l.struct_size = struct_size) })
}

/// A plan with its sum, as a JSON object.
pub(crate) fn json(plan: &MemoryPlan) -> Result<String> {
    let value = serde_json::to_value(plan);
    let mut value = value.map_err(|e| Failure::new(DOLLOP_OTHER, format!("the plan: {e}")))?;
    value["total_bytes"] = plan.total_bytes().into();
    Ok(value.to_string())
}

/// Plans what `dollop_engine_open` with the same arguments would do with the memory. Loads nothing, but converts a foreign
/// model as that call would. A budget that cannot work is `DOLLOP_BUDGET`. Writes a handle to `*plan`, which
/// `dollop_plan_free` closes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_new(
    path: *const c_char,
    options: *const dollop_engine_options,
    plan: *mut *mut dollop_plan,
) -> dollop_status {
    run(|| {
        // SAFETY: the contract of pointers in `lib.rs`, for a path, options with theirs, and a place for a handle.
        let (path, opening, plan) = unsafe {
            (
                arguments::path("path", path)?,
                dollop_engine_options::read_or_default(options)?.opening()?,
                Out::new("plan", plan)?,
            )
        };
        let work = |progress: OnProgress| Engine::plan_with(&path, &opening.engine, progress);
        plan.set(handles::open(Arc::new(with_progress(&opening, work)?))?);
        Ok(())
    })
}

/// The plan that an open model follows. Writes a handle to `*plan`, which `dollop_plan_free` closes. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_plan(
    engine: *const dollop_engine,
    plan: *mut *mut dollop_plan,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let plan = unsafe { Out::new("plan", plan) }?;
        plan.set(handles::open(Arc::new(engine.memory_plan().clone()))?);
        Ok(())
    })
}

/// Closes the handle; NULL is fine. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_free(plan: *mut dollop_plan) -> dollop_status {
    run(|| handles::close(plan).map(drop))
}

/// Fills `info`, whose `struct_size` is set. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_get(
    plan: *const dollop_plan,
    info: *mut dollop_plan_info,
) -> dollop_status {
    run(|| {
        let plan: Arc<MemoryPlan> = handles::get(plan)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let info = unsafe { OutStruct::new(info) }?;
        let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        info.set(dollop_plan_info {
            budget_bytes: plan.budget.unwrap_or(0),
            total_bytes: plan.total_bytes(),
            smallest_bytes: plan.smallest_bytes,
            overhead_bytes: plan.overhead_bytes,
            dense_bytes: plan.dense_bytes,
            kv_bytes: plan.kv_bytes,
            scratch_bytes: plan.scratch_bytes,
            expert_bytes: plan.expert_bytes,
            staging_bytes: plan.staging_bytes,
            context: n(plan.context),
            chunk: n(plan.chunk),
            streaming: u32::from(plan.streaming),
            gpu: u32::from(plan.gpu),
            lowered: u32::from(plan.lowered),
            level_count: n(plan.levels.len()),
            ..dollop_plan_info::default()
        });
        Ok(())
    })
}

/// Fills `level`, whose `struct_size` is set, with the level at `index`, lowest first. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_level_at(
    plan: *const dollop_plan,
    index: usize,
    level: *mut dollop_plan_level,
) -> dollop_status {
    run(|| {
        let plan: Arc<MemoryPlan> = handles::get(plan)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let level = unsafe { OutStruct::new(level) }?;
        let count = plan.levels.len();
        let l = plan.levels.get(index);
        let l = l.ok_or_else(|| Failure::invalid(format!("level {index}: the plan has {count}")))?;
        level.set(dollop_plan_level {
            bits: l.bits.into(),
            resident: l.resident,
            expert_bytes: l.expert_bytes,
            touched_bytes: l.touched_bytes,
            read_bytes: l.read_bytes,
            ..dollop_plan_level::default()
        });
        Ok(())
    })
}

/// The whole plan as a JSON object. `*json` is freed with `dollop_text_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_json(plan: *const dollop_plan, json: *mut *mut c_char) -> dollop_status {
    run(|| {
        let plan: Arc<MemoryPlan> = handles::get(plan)?;
        // SAFETY: the contract of pointers in `lib.rs`.
        let json = unsafe { Out::new("json", json) }?;
        json.set_text(&self::json(&plan)?);
        Ok(())
    })
}
