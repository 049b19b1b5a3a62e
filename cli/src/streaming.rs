//! Options for memory, precision and streaming, and reports about streaming.

use crate::Failure;
use crate::note;
use crate::output::{bytes, write_file};
use clap::Args;
use dollop::Level;
use dollop::internal::Trace;
use dollop::internal::sched::{Precision, Verify};
use dollop::internal::store::Reads;
use dollop::{Engine, EngineOptions, StreamStats};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

#[derive(Args, Clone)]
#[command(next_help_heading = "Memory and streaming")]
pub struct StreamArgs {
    /// Total memory budget, e.g. 4G or 900M. Experts that do not fit are read when a token needs them. `all`
    /// uses the whole mapping without a limit [default: the available memory, less a margin]
    #[arg(long, value_name = "SIZE", value_parser = budget)]
    pub memory: Option<Budget>,
    /// exact:B computes every expert at B bits. adaptive or adaptive:Q reads more bits only where they are
    /// worth their bytes; an average expert gets Q bits [default: exact if everything fits, else adaptive]
    #[arg(long, value_name = "P", value_parser = precision, conflicts_with = "level")]
    pub precision: Option<Precision>,
    /// Fewest bits that adaptive precision uses [default: 3; 2-bit experts break the syntax of JSON and tool
    /// calls]
    #[arg(long, value_name = "B", value_parser = crate::values::level)]
    pub floor: Option<Level>,
    /// Show streaming statistics
    #[arg(long)]
    pub stats: bool,
    /// Write a trace of reads and computation, to open in ui.perfetto.dev
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Preload the experts that were hot when this file was last written, and update it at the end
    #[arg(long, value_name = "FILE")]
    pub heat: Option<PathBuf>,
    /// Guess the next layer's experts and prefetch up to N of them on idle lanes; does not change results
    /// (CPU only: a GPU would have to wait for the guess)
    #[arg(long, value_name = "N", num_args = 0..=1, default_value_t = 0, default_missing_value = "1")]
    pub lookahead: usize,
    /// Drop experts that are not in memory and have less than this share of a token's gate weights (lossy)
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub skip_cold: f32,
    /// Raise the rank of experts in memory by this fraction of the range of the router's logits (lossy)
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub cache_prior: f32,
    /// Experts per token, if fewer than the model's (lossy)
    #[arg(long, value_name = "K")]
    pub experts_used: Option<usize>,
    /// Adjust the quality of adaptive precision while generating, to reach this speed in tokens per second
    /// (not reproducible)
    #[arg(long, value_name = "TPS")]
    pub target_tps: Option<f64>,
    /// How experts are read: by the kernel (ring: io_uring on Linux) or by threads [default: the faster one,
    /// measured when the model is opened]
    #[arg(long, value_enum, value_name = "WHO")]
    pub reads: Option<ReadsArg>,
    /// Reads in flight [default: the best number, measured when the model is opened]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=dollop::internal::sched::MAX_LANES as i64))]
    pub lanes: Option<u8>,
    /// Wait for all reads of a layer before computing (for comparison; CPU only)
    #[arg(long)]
    pub no_overlap: bool,
    /// When to verify a plane's checksum: at its first read, always, or never
    #[arg(long, value_enum, default_value = "first")]
    pub verify: VerifyArg,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum VerifyArg {
    First,
    Always,
    Never,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum ReadsArg {
    Ring,
    Threads,
}

/// The value of `--memory`.
#[derive(Clone, Copy)]
pub enum Budget {
    Bytes(u64),
    All,
}

fn budget(text: &str) -> Result<Budget, String> {
    if text == "all" {
        return Ok(Budget::All);
    }
    size(text).map(Budget::Bytes).map_err(|e| format!("{e} or all"))
}

/// A number of bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no size; write for example 4G, 1.5G, 900M");
    let upper = text.to_ascii_uppercase();
    let digits = upper.trim_end_matches('B').trim_end_matches('I');
    let (number, unit) = match digits.chars().last() {
        Some('K') => (&digits[..digits.len() - 1], 1u64 << 10),
        Some('M') => (&digits[..digits.len() - 1], 1 << 20),
        Some('G') => (&digits[..digits.len() - 1], 1 << 30),
        _ => (digits, 1),
    };
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let size = number * unit as f64;
    if size.is_finite() && (1.0..1e18).contains(&size) { Ok(size as u64) } else { Err(wrong()) }
}

fn precision(text: &str) -> Result<Precision, String> {
    text.parse::<Precision>().map_err(|e| e.to_string())
}

impl StreamArgs {
    /// Adds these arguments to the engine's options.
    pub fn apply(&self, options: &mut EngineOptions) {
        options.memory = match self.memory {
            Some(Budget::Bytes(n)) => Some(n),
            Some(Budget::All) => None,
            None => dollop::internal::store::available_bytes()
                .map(|free| free - (free / 10).max(256 << 20).min(free / 2)),
        };
        options.precision = match (self.precision, self.floor) {
            (Some(Precision::Adaptive { quality, .. }), Some(floor)) => {
                Some(Precision::Adaptive { quality, floor })
            }
            (None, Some(floor)) => {
                Some(Precision::Adaptive { quality: dollop::internal::sched::DEFAULT_QUALITY, floor })
            }
            (other, _) => other,
        };
        let r = &mut options.routing;
        r.top_k = self.experts_used;
        r.skip_cold = self.skip_cold;
        r.cache_prior = self.cache_prior;
        r.lookahead = self.lookahead;
        let s = &mut options.streaming;
        s.lanes = self.lanes.map(usize::from);
        s.reads = match self.reads {
            None => Reads::Measured,
            Some(ReadsArg::Ring) => Reads::Ring,
            Some(ReadsArg::Threads) => Reads::Threads,
        };
        s.overlap = !self.no_overlap;
        s.verify = match self.verify {
            VerifyArg::First => Verify::First,
            VerifyArg::Always => Verify::Always,
            VerifyArg::Never => Verify::Never,
        };
        s.trace = self.trace.as_ref().map(|_| Arc::new(Trace::default()));
    }

    /// Loads the heat file, and returns the work to do at the end.
    pub fn watch(&self, engine: &Engine, options: &EngineOptions) -> Result<Watch, Failure> {
        let watch =
            Watch { args: self.clone(), engine: engine.clone(), trace: options.streaming.trace.clone() };
        if let (Some(path), Some(_)) = (self.heat.as_ref().filter(|p| p.exists()), engine.streamer()) {
            let failed = |e: String| Failure(format!("{}: {e}", path.display()));
            let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
            let heat: Heat =
                serde_json::from_str(&text).map_err(|e| failed(format!("this is no file of --heat: {e}")))?;
            engine.warm_start(&heat.heat).map_err(|e| failed(e.to_string()))?;
        }
        Ok(watch)
    }
}

#[derive(Serialize, Deserialize)]
struct Heat {
    model: String,
    heat: Vec<Vec<f32>>,
}

/// Writes traces and heat when a command is done.
pub struct Watch {
    args: StreamArgs,
    engine: Engine,
    trace: Option<Arc<Trace>>,
}

impl Watch {
    pub fn finish(&self) -> Result<(), Failure> {
        if let (Some(path), Some(trace)) = (&self.args.trace, &self.trace) {
            write_file(path, &trace.to_json(), &[])?;
            note!("trace written to {}; open it at ui.perfetto.dev", path.display());
            if trace.dropped() > 0 {
                note!("trace: the last {} spans found no room; trace a shorter run", trace.dropped());
            }
        }
        if let (Some(path), Some(streamer)) = (&self.args.heat, self.engine.streamer()) {
            let heat = Heat { model: self.engine.info().name.clone(), heat: streamer.heat() };
            write_file(path, &serde_json::to_string(&heat).map_err(|e| e.to_string())?, &[])?;
        }
        Ok(())
    }
}

/// A point in time with its counters, from which later reports count.
pub struct Mark {
    stats: StreamStats,
    departures: (u64, u64),
    at: Instant,
}

impl Mark {
    /// Now; `None` if nothing is streamed.
    pub fn now(engine: &Engine) -> Option<Mark> {
        let stats = engine.stream_stats()?;
        Some(Mark { stats, departures: engine.routing_departures(), at: Instant::now() })
    }

    /// The counters since then, as JSON.
    pub fn json(&self, engine: &Engine, tokens: usize) -> serde_json::Value {
        let s = engine.stream_stats().unwrap_or_default().since(&self.stats);
        let mut json = serde_json::to_value(&s).unwrap_or_default();
        let departures = engine.routing_departures();
        json["mean_bits"] = s.mean_bits().into();
        json["hit_rate"] = s.hit_rate().into();
        json["bytes_per_token"] = ((s.bytes_wanted + s.bytes_ahead) as f64 / tokens.max(1) as f64).into();
        json["wall_s"] = self.at.elapsed().as_secs_f64().into();
        json["choices_dropped"] = (departures.0 - self.departures.0).into();
        json["choices_redirected"] = (departures.1 - self.departures.1).into();
        if let Some(refiner) = engine.refiner() {
            json["access"] = serde_json::to_value(refiner.access()).unwrap_or_default();
            json["lanes"] = refiner.lanes().into();
        }
        if let Some(streamer) = engine.streamer() {
            json["access"] = serde_json::to_value(streamer.access()).unwrap_or_default();
            json["lanes"] = streamer.lanes().into();
            json["measured_at_open"] = serde_json::to_value(streamer.measured()).unwrap_or_default();
        }
        json
    }

    /// Bytes per second read since this mark.
    pub fn read_rate(&self, engine: &Engine) -> f64 {
        let s = engine.stream_stats().unwrap_or_default().since(&self.stats);
        (s.bytes_wanted + s.bytes_ahead) as f64 / self.at.elapsed().as_secs_f64()
    }

    /// One line: mean bits, hit rate, bytes per token.
    pub fn line(&self, engine: &Engine, tokens: usize) -> String {
        let s = engine.stream_stats().unwrap_or_default().since(&self.stats);
        let read = (s.bytes_wanted + s.bytes_ahead) / tokens.max(1) as u64;
        format!("{:.2} bits, {:.0} % hits, {}/token", s.mean_bits(), 100.0 * s.hit_rate(), bytes(read))
    }

    /// A report of several lines.
    pub fn report(&self, engine: &Engine, tokens: usize) -> String {
        let s = engine.stream_stats().unwrap_or_default().since(&self.stats);
        let wall = self.at.elapsed().as_nanos() as f64;
        let share = |ns: u64| 100.0 * ns as f64 / wall.max(1.0);
        let (compute, wait) = (share(s.compute_ns), share(s.wait_ns));
        let hits: Vec<String> = (s.planes_wanted.iter().zip(&s.planes_hit))
            .zip(Level::ALL)
            .filter(|((wanted, _), _)| **wanted > 0)
            .map(|((wanted, hit), level)| {
                format!("{:.0} % to {level} bits", 100.0 * *hit as f64 / *wanted as f64)
            })
            .collect();
        let read = s.bytes_wanted + s.bytes_ahead;
        let lanes = s.lane_ns as f64 / 1e9;
        let rate = if lanes > 0.0 { read as f64 / lanes } else { 0.0 };
        if let Some(refiner) = engine.refiner() {
            return format!(
                "experts    {:.2} bits on average; planes in memory: {}\n\
                 reads      {} in all, {} a token, {} {} lanes: {}/s each; {} repeated\n\
                 upgrades   {} planes came, {} gave way; {} times a token waited for one, {wait:.1} % of the time",
                s.mean_bits(),
                hits.join(", "),
                bytes(read),
                bytes(read / tokens.max(1) as u64),
                refiner.lanes(),
                format!("{:?}", refiner.access()).to_lowercase(),
                bytes(rate as u64),
                s.retries,
                s.upgrades,
                s.downgrades,
                s.stalls,
            );
        }
        let access = engine.streamer().map(|s| {
            let at_open = s.measured().map_or_else(String::new, |m| {
                format!(" ({}/s at open with {})", bytes(m.bytes_per_second as u64), m.lanes)
            });
            format!("{} {:?} lanes{at_open}", s.lanes(), s.access()).to_lowercase()
        });
        let departures = engine.routing_departures();
        let mut text = format!(
            "experts    {:.2} bits on average; planes in memory: {}\n\
             reads      {} in all, {} a token, {}: {}/s each; {} ahead of need, {} repeated\n\
             time       {compute:.0} % computing experts, {wait:.0} % waiting for reads, {:.0} % other\n\
             cache      {} bases and {} refinements given up, {} upgrades, {} moved",
            s.mean_bits(),
            hits.join(", "),
            bytes(read),
            bytes(read / tokens.max(1) as u64),
            access.unwrap_or_default(),
            bytes(rate as u64),
            bytes(s.bytes_ahead),
            s.retries,
            (100.0 - compute - wait).max(0.0),
            s.evictions,
            s.downgrades,
            s.upgrades,
            bytes(s.bytes_moved),
        );
        if s.bytes_embedding > 0 {
            let each = bytes(s.bytes_embedding / tokens.max(1) as u64);
            text +=
                &format!("\nembedding  not held; {} read in all, {each} a token", bytes(s.bytes_embedding));
        }
        let (dropped, redirected) = (departures.0 - self.departures.0, departures.1 - self.departures.1);
        if dropped + redirected > 0 {
            text += &format!("\nrouting    {dropped} choices dropped, {redirected} redirected");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let size = |text: &str| match budget(text) {
            Ok(Budget::Bytes(n)) => Some(n),
            _ => None,
        };
        assert_eq!(size("2G"), Some(2 << 30));
        assert_eq!(size("1.5g"), Some(3 << 29));
        assert_eq!(size("900MB"), Some(900 << 20));
        assert_eq!(size("512MiB"), Some(512 << 20));
        assert_eq!(size("1000000"), Some(1_000_000));
        assert!(matches!(budget("all"), Ok(Budget::All)));
        for bad in ["", "G", "-1G", "0", "NaN", "1T4", "inf"] {
            assert!(budget(bad).is_err(), "{bad}");
        }
    }
}
