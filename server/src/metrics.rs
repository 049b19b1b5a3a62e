//! Counters, and their output in Prometheus' text format.

use crate::answer::Usage;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

/// Counters since the server started.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// Requests by route and status.
    requests: BTreeMap<(&'static str, u16), u64>,
    cancelled: u64,
    usage: Usage,
}

/// Values that are read when metrics are requested.
pub struct Now {
    /// Numbers of running and waiting requests.
    pub load: (usize, usize),
    /// Number of constraints that are being compiled.
    pub compiling: usize,
    /// Number of sessions.
    pub sessions: usize,
    /// Bytes of the memory plan.
    pub planned_bytes: u64,
    /// Statistics of batched steps.
    pub batch: dollop::internal::BatchStats,
    /// Statistics of the prefix cache, if it is enabled.
    pub prefixes: Option<crate::prefix::PrefixCounts>,
    /// Statistics of streaming, if experts are streamed.
    pub stream: Option<dollop::StreamStats>,
}

impl Metrics {
    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request by route and response status.
    pub fn request(&self, route: &'static str, status: u16) {
        *self.counts().requests.entry((route, status)).or_default() += 1;
    }

    /// Counts a client that disconnected before its answer was complete.
    pub fn cancelled(&self) {
        self.counts().cancelled += 1;
    }

    /// Adds the token counts and times of a request.
    pub fn tokens(&self, more: &Usage) {
        let all = &mut self.counts().usage;
        all.prompt += more.prompt;
        all.cached += more.cached;
        all.output += more.output;
        all.reasoning += more.reasoning;
        all.prefill_s += more.prefill_s;
        all.decode_s += more.decode_s;
    }

    /// All counters and values in Prometheus' text format.
    pub fn text(&self, now: &Now) -> String {
        let counts = self.counts();
        let mut out = String::new();
        head(&mut out, "dollop_requests_total", "counter", "Requests by route and status.");
        for ((route, status), n) in &counts.requests {
            let _ = writeln!(out, "dollop_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
        }
        let u = &counts.usage;
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        };
        one(
            "dollop_requests_cancelled_total",
            "counter",
            "Requests whose client disconnected early.",
            counts.cancelled as f64,
        );
        one("dollop_requests_running", "gauge", "Requests that are running.", now.load.0 as f64);
        one("dollop_requests_waiting", "gauge", "Requests that wait in the queue.", now.load.1 as f64);
        let help = "Schemas and grammars that are being compiled.";
        one("dollop_constraints_compiling", "gauge", help, now.compiling as f64);
        one("dollop_sessions", "gauge", "Sessions that the server has opened.", now.sessions as f64);
        one("dollop_prompt_tokens_total", "counter", "Prompt tokens.", u.prompt as f64);
        one(
            "dollop_prompt_tokens_cached_total",
            "counter",
            "Prompt tokens that were reused instead of prefilled.",
            u.cached as f64,
        );
        one("dollop_generated_tokens_total", "counter", "Generated tokens.", u.output as f64);
        one("dollop_prefill_seconds_total", "counter", "Seconds of prefill.", u.prefill_s);
        one("dollop_decode_seconds_total", "counter", "Seconds of decoding.", u.decode_s);
        one("dollop_planned_bytes", "gauge", "Bytes of the memory plan.", now.planned_bytes as f64);
        if let Some(s) = &now.stream {
            one(
                "dollop_expert_bytes_read_total",
                "counter",
                "Bytes of experts read from storage.",
                (s.bytes_wanted + s.bytes_ahead) as f64,
            );
            one(
                "dollop_expert_evictions_total",
                "counter",
                "Bit planes of experts evicted from memory.",
                s.evictions as f64,
            );
            one(
                "dollop_expert_hit_rate",
                "gauge",
                "Share of the wanted bit planes that were in memory.",
                finite(s.hit_rate()),
            );
            one(
                "dollop_expert_mean_bits",
                "gauge",
                "Mean bits of the experts that tokens used.",
                finite(s.mean_bits()),
            );
        }
        now.more(&mut out);
        out
    }
}

impl Now {
    /// Writes the metrics of batched steps and of the prefix cache.
    fn more(&self, out: &mut String) {
        let now = self;
        let mut one = |name: &str, kind: &str, help: &str, value: f64| {
            head(out, name, kind, help);
            let _ = writeln!(out, "{name} {value}");
        };
        one(
            "dollop_steps_total",
            "counter",
            "Decode steps. A step appends a token to each answer that takes part.",
            now.batch.steps as f64,
        );
        one(
            "dollop_step_tokens_total",
            "counter",
            "Tokens that decode steps appended. Divided by the steps: mean answers in a step.",
            now.batch.tokens as f64,
        );
        one(
            "dollop_step_answers_max",
            "gauge",
            "Largest number of answers in a step.",
            now.batch.most as f64,
        );
        one(
            "dollop_stall_seconds_max",
            "gauge",
            "Longest time that decoding waited for prefill.",
            now.batch.stalled.as_secs_f64(),
        );
        if let Some(p) = &now.prefixes {
            one(
                "dollop_prefix_tokens_total",
                "counter",
                "Prompt tokens that were restored from prefix files.",
                p.tokens as f64,
            );
            one("dollop_prefix_files_saved_total", "counter", "Prefix files written.", p.saved as f64);
            one(
                "dollop_prefix_files_skipped_total",
                "counter",
                "Prefix files that could not be used.",
                p.skipped as f64,
            );
        }
    }
}

fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
