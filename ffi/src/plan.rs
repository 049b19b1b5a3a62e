//! How a memory budget is spent, before a model is opened and after.

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

/// How a memory budget is spent, in bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_plan_info {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// The memory budget; 0 for no limit.
    pub budget_bytes: u64,
    /// The sum of all parts.
    pub total_bytes: u64,
    /// The smallest budget that works.
    pub smallest_bytes: u64,
    /// Program, tokenizer, tables, and buffers for reading embedding rows.
    pub overhead_bytes: u64,
    /// Weights that every token uses.
    pub dense_bytes: u64,
    /// KV cache of one session.
    pub kv_bytes: u64,
    /// Activations and other scratch of one session.
    pub scratch_bytes: u64,
    /// Memory for experts: the cache, or all of them.
    pub expert_bytes: u64,
    /// Host memory through which streamed experts pass on their way to a GPU.
    pub staging_bytes: u64,
    /// Positions of the KV cache.
    pub context: u32,
    /// Tokens per prefill chunk.
    pub chunk: u32,
    /// 1 if experts are streamed, 0 if all are resident.
    pub streaming: u32,
    /// 1 if a GPU computes.
    pub gpu: u32,
    /// 1 if experts are resident at fewer bits than the file stores.
    pub lowered: u32,
    /// Number of levels for `dollop_plan_level_at`.
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

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for dollop_plan_info {
    const NAME: &'static str = "dollop_plan_info";
}

/// What one level of experts means under a plan.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_plan_level {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// Bits of the level.
    pub bits: u32,
    /// The share of the experts at this level that the memory holds, from 0 to 1.
    pub resident: f64,
    /// Bytes of all experts at this level.
    pub expert_bytes: u64,
    /// Bytes of the experts that one token uses.
    pub touched_bytes: u64,
    /// Bytes that one token reads if all experts are equally likely.
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

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for dollop_plan_level {
    const NAME: &'static str = "dollop_plan_level";
}

/// Initialises `info`. `struct_size` must be `sizeof *info`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_info_init(
    info: *mut dollop_plan_info,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(info, struct_size, |i| i.struct_size = struct_size) })
}

/// Initialises `level`. `struct_size` must be `sizeof *level`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_level_init(
    level: *mut dollop_plan_level,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(level, struct_size, |l| l.struct_size = struct_size) })
}

/// A plan and its total, as a JSON object.
pub(crate) fn json(plan: &MemoryPlan) -> Result<String> {
    let value = serde_json::to_value(plan);
    let mut value = value.map_err(|e| Failure::new(DOLLOP_OTHER, format!("the plan: {e}")))?;
    value["total_bytes"] = plan.total_bytes().into();
    Ok(value.to_string())
}

/// Plans the memory for `dollop_engine_open` with the same arguments. Loads nothing, but converts a model of
/// another format as that call would. `DOLLOP_BUDGET` if the budget is too small. Writes a new handle to `*plan`;
/// close it with `dollop_plan_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_new(
    path: *const c_char,
    options: *const dollop_engine_options,
    plan: *mut *mut dollop_plan,
) -> dollop_status {
    run(|| {
        // SAFETY: by the pointer contract of `lib.rs`, for a path, options with their pointers, and a handle's destination.
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

/// The plan of an open model. Writes a new handle to `*plan`; close it with `dollop_plan_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_plan(
    engine: *const dollop_engine,
    plan: *mut *mut dollop_plan,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let plan = unsafe { Out::new("plan", plan) }?;
        plan.set(handles::open(Arc::new(engine.memory_plan().clone()))?);
        Ok(())
    })
}

/// Closes the handle. NULL does nothing. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_free(plan: *mut dollop_plan) -> dollop_status {
    run(|| handles::close(plan).map(drop))
}

/// Fills `info`. `info->struct_size` must be set. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_get(
    plan: *const dollop_plan,
    info: *mut dollop_plan_info,
) -> dollop_status {
    run(|| {
        let plan: Arc<MemoryPlan> = handles::get(plan)?;
        // SAFETY: by the pointer contract of `lib.rs`.
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

/// Fills `level` with the level at `index`, lowest first. `level->struct_size` must be set. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_level_at(
    plan: *const dollop_plan,
    index: usize,
    level: *mut dollop_plan_level,
) -> dollop_status {
    run(|| {
        let plan: Arc<MemoryPlan> = handles::get(plan)?;
        // SAFETY: by the pointer contract of `lib.rs`.
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

/// The whole plan as a JSON object. Free `*json` with `dollop_text_free`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_plan_json(plan: *const dollop_plan, json: *mut *mut c_char) -> dollop_status {
    run(|| {
        let plan: Arc<MemoryPlan> = handles::get(plan)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let json = unsafe { Out::new("json", json) }?;
        json.set_text(&self::json(&plan)?);
        Ok(())
    })
}
