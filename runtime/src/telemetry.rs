//! Progress, cancellation, counters and traces of long operations, independent of the operations.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests that a running operation stop; may be used from any thread, any number of times. Clones share the request.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests that the operation stop at its next step.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether cancellation was requested.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How far a long operation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// The current stage, for display.
    pub stage: &'static str,
    /// Bytes done.
    pub done: u64,
    /// Total bytes.
    pub total: u64,
}

/// Counters of a streaming engine since it was opened. The difference of two snapshots describes the time between them.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct StreamStats {
    /// Layers served.
    pub servings: u64,
    /// Layers served with every expert already resident.
    pub servings_without_reads: u64,
    /// Planes that experts needed, lowest plane first.
    pub planes_wanted: [u64; 5],
    /// Needed planes that were resident.
    pub planes_hit: [u64; 5],
    /// Bytes read because a layer needed them.
    pub bytes_wanted: u64,
    /// Bytes prefetched.
    pub bytes_ahead: u64,
    /// Bytes read for embedding rows that are not held in memory. They belong to no expert and are in no other byte
    /// count.
    pub bytes_embedding: u64,
    /// Reads that added a plane to an expert that was partly resident.
    pub upgrades: u64,
    /// Planes above the base that were evicted.
    pub downgrades: u64,
    /// Base planes that were evicted.
    pub evictions: u64,
    /// Bytes moved to merge free memory.
    pub bytes_moved: u64,
    /// How often the cache was resized.
    pub resizes: u64,
    /// Bytes that resizes gave back to the system.
    pub bytes_given_back: u64,
    /// Sum of gate weights.
    pub gate_mass: f64,
    /// Sum of gate weights times bits. Divided by `gate_mass`, it is the mean precision.
    pub gate_mass_bits: f64,
    /// Nanoseconds spent computing experts.
    pub compute_ns: u64,
    /// Nanoseconds that computation waited for reads.
    pub wait_ns: u64,
    /// Calls that waited for a refinement that was due.
    pub stalls: u64,
    /// Nanoseconds that lanes spent reading, summed over lanes.
    pub lane_ns: u64,
    /// Reads that were repeated.
    pub retries: u64,
    /// Hash of every decision: equal inputs give equal hashes (R3).
    pub decisions: u64,
}

impl StreamStats {
    /// Adds values to the hash of decisions (FNV-1a over words).
    pub(crate) fn note(&mut self, values: [usize; 3]) {
        let mut hash = if self.decisions == 0 { 0xcbf2_9ce4_8422_2325 } else { self.decisions };
        for v in values {
            hash = (hash ^ v as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.decisions = hash;
    }

    /// Mean bits of the computed experts, weighted by gate.
    pub fn mean_bits(&self) -> f64 {
        if self.gate_mass > 0.0 { self.gate_mass_bits / self.gate_mass } else { 0.0 }
    }

    /// Share of the needed planes that were resident.
    pub fn hit_rate(&self) -> f64 {
        let sum = |planes: &[u64; 5]| planes.iter().sum::<u64>() as f64;
        let wanted = sum(&self.planes_wanted);
        if wanted > 0.0 { sum(&self.planes_hit) / wanted } else { 1.0 }
    }

    /// The counters since an earlier snapshot. The hash of decisions is not a difference.
    #[doc(hidden)]
    #[must_use]
    pub fn since(&self, earlier: &StreamStats) -> StreamStats {
        let planes = |now: &[u64; 5], then: &[u64; 5]| std::array::from_fn(|p| now[p] - then[p]);
        StreamStats {
            servings: self.servings - earlier.servings,
            servings_without_reads: self.servings_without_reads - earlier.servings_without_reads,
            planes_wanted: planes(&self.planes_wanted, &earlier.planes_wanted),
            planes_hit: planes(&self.planes_hit, &earlier.planes_hit),
            bytes_wanted: self.bytes_wanted - earlier.bytes_wanted,
            bytes_ahead: self.bytes_ahead - earlier.bytes_ahead,
            bytes_embedding: self.bytes_embedding - earlier.bytes_embedding,
            upgrades: self.upgrades - earlier.upgrades,
            downgrades: self.downgrades - earlier.downgrades,
            evictions: self.evictions - earlier.evictions,
            bytes_moved: self.bytes_moved - earlier.bytes_moved,
            resizes: self.resizes - earlier.resizes,
            bytes_given_back: self.bytes_given_back - earlier.bytes_given_back,
            gate_mass: self.gate_mass - earlier.gate_mass,
            gate_mass_bits: self.gate_mass_bits - earlier.gate_mass_bits,
            compute_ns: self.compute_ns - earlier.compute_ns,
            wait_ns: self.wait_ns - earlier.wait_ns,
            stalls: self.stalls - earlier.stalls,
            lane_ns: self.lane_ns - earlier.lane_ns,
            retries: self.retries - earlier.retries,
            decisions: self.decisions,
        }
    }
}

/// Counters of a GPU since it was opened. The difference of two snapshots describes the time between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct GpuStats {
    /// Kernels launched.
    pub dispatches: u64,
    /// Kernels launched that use subgroups.
    pub subgroup_dispatches: u64,
    /// Matrix products with half-precision inputs.
    pub half_dispatches: u64,
    /// Matrix products with 8-bit inputs.
    pub byte_dispatches: u64,
    /// Command buffers submitted.
    pub submits: u64,
    /// Command buffers recorded while the device computed the previous token.
    pub ahead: u64,
    /// Waits for a result.
    pub readbacks: u64,
    /// Bytes read back.
    pub read_bytes: u64,
    /// Pipelines created.
    pub pipelines: u64,
    /// Bind groups created. They are cached: a token usually creates none.
    pub bind_groups: u64,
    /// Bytes of compiled kernels that were loaded from the pipeline cache file.
    pub pipelines_read_bytes: u64,
    /// Bytes of weights copied to the device.
    pub uploaded_bytes: u64,
    /// Times that an upload waited, because all 16 MB of staging memory were in flight.
    pub upload_waits: u64,
    /// Bytes allocated on the device at present.
    pub held_bytes: u64,
    /// Kernel times, longest first, if [`crate::EngineOptions::gpu_clock`] is set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[doc(hidden)]
    pub kernels: Vec<GpuKernelTime>,
}

/// GPU time of one kernel's launches. Each launch counts from the end of the previous work to its own end.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
#[doc(hidden)]
pub struct GpuKernelTime {
    /// The kernel's name, with its variant.
    pub kernel: String,
    /// Workgroups per launch.
    pub workgroups: [u32; 2],
    /// Number of launches.
    pub launches: u64,
    /// Total nanoseconds.
    pub nanoseconds: u64,
}

/// Faults that tests inject into a GPU.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuFault {
    /// The device is lost.
    Lost,
    /// An allocation fails for lack of memory.
    OutOfMemory,
    /// The driver rejects a command.
    Invalid,
    /// The device does not answer.
    Hung,
}

/// The track of a trace that a span is drawn on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub enum Track {
    /// A thread that computes.
    Compute(usize),
    /// An I/O lane.
    Lane(usize),
}

impl Track {
    fn id(self) -> usize {
        match self {
            Track::Compute(i) => i,
            Track::Lane(i) => 1000 + i,
        }
    }
}

#[derive(Debug)]
struct Span {
    track: Track,
    name: String,
    start: Duration,
    length: Duration,
}

/// The most spans kept, about 100 bytes each: a forgotten trace must not fill memory.
const MAX_SPANS: usize = 1 << 18;

/// A timeline of which thread or lane did what, for a trace viewer.
#[derive(Debug)]
pub struct Trace {
    start: Instant,
    spans: Mutex<Vec<Span>>,
    /// Compute threads that get a track, even if they never run a task.
    threads: AtomicUsize,
    /// Spans dropped because the trace was full.
    dropped: AtomicU64,
}

impl Default for Trace {
    fn default() -> Self {
        let (spans, threads, dropped) = Default::default();
        Trace { start: Instant::now(), spans, threads, dropped }
    }
}

impl Trace {
    /// Gives each of `count` compute threads a track.
    #[doc(hidden)]
    pub fn threads(&self, count: usize) {
        self.threads.fetch_max(count, Ordering::Relaxed);
    }

    /// Records that `track` did something from `from` until now.
    #[doc(hidden)]
    pub fn span(&self, track: Track, from: Instant, name: impl FnOnce() -> String) {
        let length = from.elapsed();
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        if spans.len() < MAX_SPANS {
            spans.push(Span {
                track,
                name: name(),
                start: from.saturating_duration_since(self.start),
                length,
            });
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Number of spans dropped because the trace was full. The latest spans are missing.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The spans in Chrome's trace event format, which Perfetto opens.
    pub fn to_json(&self) -> String {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = self.threads.load(Ordering::Relaxed);
        let mut tracks: Vec<Track> = (0..threads).map(Track::Compute).collect();
        for span in spans.iter() {
            if !tracks.contains(&span.track) {
                tracks.push(span.track);
            }
        }
        let names = tracks.iter().map(|track| {
            let name = match track {
                Track::Compute(i) => format!("compute {i}"),
                Track::Lane(i) => format!("I/O lane {i}"),
            };
            serde_json::json!({"ph": "M", "name": "thread_name", "pid": 1, "tid": track.id(), "args": {"name": name}})
        });
        let micros = |d: Duration| d.as_nanos() as f64 / 1000.0;
        let spans = spans.iter().map(|s| {
            serde_json::json!({
                "ph": "X", "name": s.name, "pid": 1, "tid": s.track.id(), "ts": micros(s.start), "dur": micros(s.length),
            })
        });
        serde_json::json!({ "traceEvents": names.chain(spans).collect::<Vec<_>>() }).to_string()
    }
}
