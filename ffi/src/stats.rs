//! Counters of an engine since it was opened: `dollop_stats`, and the same as JSON.

use crate::arguments::{self, Struct};
use crate::boundary::run;
use crate::handles::{self, dollop_engine};
use crate::outputs::{Out, OutStruct};
use crate::status::dollop_status;
use runtime::{Engine, GpuStats, StreamStats};
use std::ffi::c_char;

/// Counters of an engine since it was opened. Those of streaming are 0 if all experts are resident, those of a GPU
/// if the CPU computes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_stats {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// 1 if experts are streamed or refined.
    pub streaming: u32,
    /// 1 if a GPU computes.
    pub gpu: u32,
    /// Expert planes that layers needed.
    pub planes_wanted: u64,
    /// Needed planes that were resident.
    pub planes_hit: u64,
    /// Bytes read because a layer needed them.
    pub bytes_wanted: u64,
    /// Bytes prefetched.
    pub bytes_ahead: u64,
    /// Bytes read for embedding rows that are not held in memory.
    pub bytes_embedding: u64,
    /// Planes above the base that were evicted.
    pub downgrades: u64,
    /// Base planes that were evicted.
    pub evictions: u64,
    /// Reads that were repeated.
    pub retries: u64,
    /// Nanoseconds that computation waited for reads.
    pub wait_ns: u64,
    /// Nanoseconds spent computing experts.
    pub compute_ns: u64,
    /// Mean bits of the computed experts, weighted by gate; 0 before the first token.
    pub mean_bits: f64,
    /// `planes_hit` divided by `planes_wanted`; 1 before the first token.
    pub hit_rate: f64,
    /// Bytes now allocated on the GPU.
    pub gpu_bytes: u64,
    /// Kernels launched on the GPU.
    pub gpu_dispatches: u64,
    /// Waits for a result of the GPU.
    pub gpu_readbacks: u64,
}

impl Default for dollop_stats {
    fn default() -> Self {
        of(None, None)
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers.
unsafe impl Struct for dollop_stats {
    const NAME: &'static str = "dollop_stats";
}

fn of(stream: Option<&StreamStats>, gpu: Option<&GpuStats>) -> dollop_stats {
    let (s, g) = (stream.cloned().unwrap_or_default(), gpu.cloned().unwrap_or_default());
    dollop_stats {
        struct_size: size_of::<dollop_stats>(),
        streaming: u32::from(stream.is_some()),
        gpu: u32::from(gpu.is_some()),
        planes_wanted: s.planes_wanted.iter().sum(),
        planes_hit: s.planes_hit.iter().sum(),
        bytes_wanted: s.bytes_wanted,
        bytes_ahead: s.bytes_ahead,
        bytes_embedding: s.bytes_embedding,
        downgrades: s.downgrades,
        evictions: s.evictions,
        retries: s.retries,
        wait_ns: s.wait_ns,
        compute_ns: s.compute_ns,
        mean_bits: s.mean_bits(),
        hit_rate: s.hit_rate(),
        gpu_bytes: g.held_bytes,
        gpu_dispatches: g.dispatches,
        gpu_readbacks: g.readbacks,
    }
}

/// Initialises `stats`. `struct_size` must be `sizeof *stats`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_stats_init(stats: *mut dollop_stats, struct_size: usize) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(stats, struct_size, |s| s.struct_size = struct_size) })
}

/// Fills `stats`. `stats->struct_size` must be set. Any thread, also during a generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_stats(
    engine: *const dollop_engine,
    stats: *mut dollop_stats,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let stats = unsafe { OutStruct::new(stats) }?;
        stats.set(of(engine.stream_stats().as_ref(), engine.gpu_stats().as_ref()));
        Ok(())
    })
}

/// All counters, as a JSON object.
pub(crate) fn json(engine: &Engine) -> String {
    let (dropped, redirected) = engine.routing_departures();
    let stream = engine.stream_stats();
    serde_json::json!({
        "mean_bits": stream.as_ref().map(StreamStats::mean_bits),
        "hit_rate": stream.as_ref().map(StreamStats::hit_rate),
        "stream": stream,
        "gpu": engine.gpu_stats(),
        "dropped": dropped,
        "redirected": redirected,
    })
    .to_string()
}

/// All counters as a JSON object: `stream` and `gpu`, null if unused, and the number of the router's choices that
/// were dropped or redirected. Free `*json` with `dollop_text_free`. Any thread, also during a generation.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_stats_json(
    engine: *const dollop_engine,
    json: *mut *mut c_char,
) -> dollop_status {
    run(|| {
        let engine = handles::get(engine)?;
        // SAFETY: by the pointer contract of `lib.rs`.
        let out = unsafe { Out::new("json", json) }?;
        out.set_text(&self::json(&engine));
        Ok(())
    })
}
