//! Options for opening a model or planning its memory: `dollop_engine_options`.

use crate::arguments::{self, Struct};
use crate::boundary::{Failure, Result, run};
use crate::status::dollop_status;
use runtime::Level;
use runtime::internal::sched::{DEFAULT_FLOOR, DEFAULT_QUALITY, MAX_LANES, Precision};
use runtime::{BackendChoice, EngineOptions};
use std::ffi::{c_char, c_void};

/// `dollop_engine_options.backend`: the CPU.
pub const DOLLOP_BACKEND_CPU: u32 = 0;
/// A hardware GPU if there is one, else the CPU.
pub const DOLLOP_BACKEND_AUTO: u32 = 1;
/// The GPU that `gpu_index` selects, even a software one; an error if there is none.
pub const DOLLOP_BACKEND_GPU: u32 = 2;

/// `dollop_engine_options.precision`: the highest stored level if everything fits the budget, else adaptive.
pub const DOLLOP_PRECISION_DEFAULT: u32 = 0;
/// Every expert at `level` bits. Results do not depend on the budget.
pub const DOLLOP_PRECISION_EXACT: u32 = 1;
/// As many bits as are worth their bytes, but at least `level`.
pub const DOLLOP_PRECISION_ADAPTIVE: u32 = 2;

/// More threads are a mistake: no supported machine has as many cores, and each thread has a stack.
const MAX_THREADS: usize = 1024;
/// More than any layer has experts.
const MAX_LOOKAHEAD: usize = 1024;

/// The progress of a long call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_progress {
    /// The current stage, for display. Valid during the callback.
    pub stage: *const c_char,
    /// Bytes done.
    pub done: u64,
    /// Total bytes.
    pub total: u64,
}

/// Receives progress, on the thread that opens the model. Returns 0 to continue, anything else to cancel: the call
/// then fails with `DOLLOP_CANCELLED`. May call any function of this library. Must not throw or `longjmp`.
pub type dollop_progress_callback =
    Option<unsafe extern "C-unwind" fn(progress: *const dollop_progress, user_data: *mut c_void) -> i32>;

/// Options for opening a model. Call `dollop_engine_options_init`, then change what should differ. Pointers must
/// stay valid until the call with these options returns.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct dollop_engine_options {
    /// Size of this struct, in bytes.
    pub struct_size: usize,
    /// A `DOLLOP_BACKEND_` constant; by default the CPU.
    pub backend: u32,
    /// Index of the GPU in `dollop_devices`; -1 for the first usable one.
    pub gpu_index: i32,
    /// Threads that compute, including the caller's; 0 for one per core.
    pub threads: u32,
    /// Positions of the KV cache that the budget must hold; 0 for the model's context, at most 4096.
    pub context: u32,
    /// Tokens per prefill chunk; 0 for 512 or, if experts are streamed, for what the budget allows, at most 2048.
    pub chunk: u32,
    /// A `DOLLOP_PRECISION_` constant.
    pub precision: u32,
    /// Bits of that precision: 2, 3, 4, 6 or 8. With adaptive precision 0 means 3.
    pub level: u32,
    /// With adaptive precision, the bits of an expert of average gate weight, 2 to 8; 0 means 4.
    pub quality: f32,
    /// Memory budget in bytes, for the engine and one session together. Experts are streamed if they do not fit it.
    /// 0 for no limit: everything is resident.
    pub memory_bytes: u64,
    /// Folder for converted models. Each GGUF file or Hugging Face folder is converted into it once. If NULL, only
    /// Dollop files can be opened; others are `DOLLOP_UNSUPPORTED`.
    pub cache_folder: *const c_char,
    /// Folder for compiled GPU kernels: read when the model is opened, written after new ones were compiled; NULL for none.
    pub pipelines_folder: *const c_char,
    /// Experts per token, if fewer than the model's; 0 for the model's. Changes results.
    pub experts_used: u32,
    /// Experts to prefetch on a guess of the next layer's choice; 0 for none. Does not change results.
    pub lookahead: u32,
    /// Skips an expert that is not resident if its share of the token's gate weights is below this; 0 for never. Changes results.
    pub skip_cold: f32,
    /// Raises the rank of resident experts by this fraction of the range of their scores; 0 for none. Changes results.
    pub cache_prior: f32,
    /// Reads in flight; 0 for the number that measures best when the model is opened.
    pub lanes: u32,
    /// 1 to stream experts even if all fit `memory_bytes`, so that the engine can give memory back later.
    pub always_stream: u32,
    /// Receives the progress of a conversion; NULL for none.
    pub on_progress: dollop_progress_callback,
    /// Passed to `on_progress`.
    pub progress_user_data: *mut c_void,
}

impl Default for dollop_engine_options {
    fn default() -> Self {
        dollop_engine_options {
            struct_size: size_of::<Self>(),
            backend: DOLLOP_BACKEND_CPU,
            gpu_index: -1,
            threads: 0,
            context: 0,
            chunk: 0,
            precision: DOLLOP_PRECISION_DEFAULT,
            level: 0,
            quality: 0.0,
            memory_bytes: 0,
            cache_folder: std::ptr::null(),
            pipelines_folder: std::ptr::null(),
            experts_used: 0,
            lookahead: 0,
            skip_cold: 0.0,
            cache_prior: 0.0,
            lanes: 0,
            always_stream: 0,
            on_progress: None,
            progress_user_data: std::ptr::null_mut(),
        }
    }
}

// SAFETY: `repr(C)`; the first field is the size, the others are numbers, raw pointers and an optional function.
unsafe impl Struct for dollop_engine_options {
    const NAME: &'static str = "dollop_engine_options";
}

/// Sets all fields of `options` to their defaults. `struct_size` must be `sizeof *options`. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dollop_engine_options_init(
    options: *mut dollop_engine_options,
    struct_size: usize,
) -> dollop_status {
    // SAFETY: by the pointer contract of `lib.rs`.
    run(|| unsafe { arguments::init(options, struct_size, |o| o.struct_size = struct_size) })
}

/// The options in the library's types.
pub(crate) struct Opening {
    pub(crate) engine: EngineOptions,
    pub(crate) on_progress: dollop_progress_callback,
    pub(crate) user_data: *mut c_void,
}

/// 0 means the default.
fn given(n: u32) -> Option<usize> {
    (n != 0).then_some(n as usize)
}

fn level(bits: u32) -> Result<Option<Level>> {
    if bits == 0 {
        return Ok(None);
    }
    let level = u8::try_from(bits).ok().and_then(Level::from_bits);
    level.map(Some).ok_or_else(|| Failure::invalid(format!("level {bits}: it must be 2, 3, 4, 6 or 8")))
}

impl dollop_engine_options {
    /// # Safety
    /// Texts are NULL or NUL-terminated, and do not change during the call.
    pub(crate) unsafe fn opening(&self) -> Result<Opening> {
        let backend = match (self.backend, usize::try_from(self.gpu_index)) {
            (DOLLOP_BACKEND_CPU, _) => BackendChoice::Cpu,
            (DOLLOP_BACKEND_AUTO, _) => BackendChoice::Auto,
            (DOLLOP_BACKEND_GPU, index) => BackendChoice::Gpu(index.ok()),
            (other, _) => {
                return Err(Failure::invalid(format!("backend {other}: not a DOLLOP_BACKEND_ constant")));
            }
        };
        for (name, value, most) in [
            ("threads", self.threads as usize, MAX_THREADS),
            ("lanes", self.lanes as usize, MAX_LANES),
            ("lookahead", self.lookahead as usize, MAX_LOOKAHEAD),
        ] {
            if value > most {
                return Err(Failure::invalid(format!("{name} {value}: it must be at most {most}")));
            }
        }
        let bits = level(self.level)?;
        let mut engine = EngineOptions::default().with_backend(backend).with_threads(self.threads as usize);
        engine.memory = (self.memory_bytes != 0).then_some(self.memory_bytes);
        engine.context = given(self.context);
        engine.chunk = given(self.chunk);
        engine.routing.top_k = given(self.experts_used);
        engine.routing.skip_cold = self.skip_cold;
        engine.routing.cache_prior = self.cache_prior;
        engine.routing.lookahead = self.lookahead as usize;
        match self.precision {
            DOLLOP_PRECISION_DEFAULT if bits.is_none() => {}
            DOLLOP_PRECISION_EXACT if bits.is_some() => engine.precision = bits.map(Precision::Exact),
            DOLLOP_PRECISION_DEFAULT => {
                return Err(Failure::invalid(
                    "level is set without a precision: also set DOLLOP_PRECISION_EXACT",
                ));
            }
            DOLLOP_PRECISION_EXACT => {
                return Err(Failure::invalid("exact precision needs a level: 2, 3, 4, 6 or 8"));
            }
            DOLLOP_PRECISION_ADAPTIVE => {
                let quality = if self.quality == 0.0 { DEFAULT_QUALITY } else { self.quality };
                if !(2.0..=8.0).contains(&quality) {
                    return Err(Failure::invalid(format!("quality {quality}: it must be 2 to 8 bits")));
                }
                let floor = bits.unwrap_or(DEFAULT_FLOOR);
                engine.precision = Some(Precision::Adaptive { quality, floor });
            }
            other => {
                return Err(Failure::invalid(format!("precision {other}: not a DOLLOP_PRECISION_ constant")));
            }
        }
        engine.streaming.lanes = given(self.lanes);
        engine.streaming.always = self.always_stream != 0;
        let folder = |name, text: *const c_char| {
            // SAFETY: by this function's contract.
            (!text.is_null()).then(|| unsafe { arguments::path(name, text) }).transpose()
        };
        engine.pipelines = folder("pipelines_folder", self.pipelines_folder)?;
        engine.cache = folder("cache_folder", self.cache_folder)?;
        Ok(Opening { engine, on_progress: self.on_progress, user_data: self.progress_user_data })
    }
}
