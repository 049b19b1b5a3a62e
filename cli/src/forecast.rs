//! Forecasts how fast a model decodes, from a memory plan and this machine's rates. Pure arithmetic; docs/streaming.md
//! states the assumptions, benches/records/forecast.md compares them with measurements.
//!
//! A token takes the time of its always-used weights, and in each layer the longer of two: computing the experts, or
//! reading those that are not in memory and computing the last of them.

use crate::rates::{Burst, PART_SIZES, PARTS, Rates};
use dollop::internal::sched::{DEFAULT_FLOOR, DEFAULT_QUALITY, Precision};
use dollop::internal::store::PART_BYTES;
use dollop::{Level, LevelFit, MemoryPlan};
use serde::Serialize;

/// Operations of a layer whose threads start together: norm and projections, attention, output, router, gate
/// and up, down, sum.
const OPERATIONS: f64 = 7.0;
/// The part of a token's refinements that is read: adaptive precision takes the others from memory, or goes without
/// (benches/records/streaming.md).
const REFINEMENTS_READ: f64 = 0.3;
/// How far rates may be off, in either direction.
const RATES_OFF: f64 = 0.12;

/// Decoding at one budget and precision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// The memory budget, or what the model needs in all if everything fits.
    pub budget: u64,
    pub precision: String,
    pub streaming: bool,
    /// The expected share of a token's expert bytes that are in memory.
    pub hit_rate: f64,
    pub read_bytes_per_token: u64,
    pub tokens_per_second: f64,
    /// Slower and faster rates, and experts that are chosen again less and more often than expected.
    pub band: [f64; 2],
}

/// What a token costs.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// Seconds of what does not depend on experts.
    fixed: f64,
    /// Seconds of computing a layer's experts, and the number of these experts.
    compute: f64,
    used: usize,
    /// Layers with experts.
    layers: f64,
    /// Bytes that an expert must have in memory, and the share of all such bytes that is there.
    expert_bytes: f64,
    resident: f64,
    /// Parts in which an expert is read.
    parts: f64,
    /// Bytes that a layer reads to refine experts.
    refinements: f64,
    /// See [`hit_rate`].
    power: f64,
}

/// The forecast for a plan; `None` if a GPU computes, whose rates are not known.
pub fn forecast(plan: &MemoryPlan, precision: Precision, rates: &Rates) -> Option<Forecast> {
    if plan.gpu {
        return None;
    }
    let work = work(plan, precision, rates);
    let hits = hit_rate(work.resident, work.power);
    let at = |power: f64, slower: f64| {
        1.0 / (slower * seconds(&work, hit_rate(work.resident, power), &rates.bursts))
    };
    Some(Forecast {
        budget: plan.budget.filter(|_| plan.streaming).unwrap_or(plan.total_bytes()),
        precision: if plan.levels.is_empty() { "as stored".into() } else { precision.to_string() },
        streaming: plan.streaming,
        hit_rate: hits,
        read_bytes_per_token: (work.layers
            * ((1.0 - hits) * work.expert_bytes * work.used as f64 + work.refinements))
            as u64,
        tokens_per_second: at(work.power, 1.0),
        band: [at(1.0, 1.0 + RATES_OFF), at(1.5 * work.power, 1.0 - RATES_OFF)],
    })
}

/// The share of needed experts that are in a cache of a share of all. A token's experts are more likely than others
/// to be chosen again. If they were not, the power would be 1.
fn hit_rate(resident: f64, power: f64) -> f64 {
    1.0 - (1.0 - resident.clamp(0.0, 1.0)).powf(power)
}

/// The power grows with the experts that a token leaves out: it is 2 for 8 of 64 experts (measured:
/// benches/records/streaming.md).
fn power(experts: usize, used: usize) -> f64 {
    1.0 + (experts as f64 / used.max(1) as f64 - 1.0).max(0.0) / 7.0
}

/// What a token costs under a plan.
fn work(plan: &MemoryPlan, precision: Precision, rates: &Rates) -> Work {
    let token = &plan.token;
    let dense: f64 = token.dense.iter().map(|&(bits, bytes)| bytes as f64 / rate(rates, bits)).sum();
    let fixed = dense + token.layers as f64 * OPERATIONS * rates.operation_seconds;
    let Some(highest) = plan.levels.last() else { return Work { fixed, power: 1.0, ..Work::default() } };
    let at = |bits: f32| plan.levels.iter().find(|l| f32::from(l.bits) >= bits).unwrap_or(highest);
    let (low, high) = match precision {
        Precision::Exact(level) => (at(level.bits().into()), at(level.bits().into())),
        // Without a shortage, adaptive precision takes all bits.
        Precision::Adaptive { .. } if !plan.streaming => (highest, highest),
        Precision::Adaptive { quality, floor } => {
            let floor = f32::from(floor.bits());
            (at(floor), at(quality.max(floor)))
        }
    };
    let layers = token.routed_layers.max(1) as f64;
    let used = token.experts_used.max(1);
    let expert = |bytes: u64| bytes as f64 / layers / used as f64;
    // A plane is read at once, or in parts.
    let mut below = 0;
    let parts = plan.levels.iter().filter(|l| l.bits <= low.bits).map(|l| {
        let plane = expert(l.touched_bytes - below);
        below = l.touched_bytes;
        (plane / PART_BYTES as f64).max(1.0)
    });
    let parts = parts.sum();
    let time = |l: &LevelFit| l.touched_bytes as f64 / rate(rates, l.bits) / layers;
    let refined = (high.touched_bytes - low.touched_bytes) as f64 / layers;
    let shortage = if plan.streaming { (4.0 * (1.0 - high.resident)).clamp(0.0, 1.0) } else { 0.0 };
    Work {
        fixed,
        // About half of the refinements are used.
        compute: (time(low) + time(high)) / 2.0,
        used,
        layers,
        expert_bytes: expert(low.touched_bytes),
        resident: if plan.streaming { low.resident } else { 1.0 },
        parts,
        refinements: REFINEMENTS_READ * refined * shortage,
        power: power(token.experts, used),
    }
}

/// Bytes per second of products with codes of some bits; 32 for unquantized weights.
fn rate(rates: &Rates, bits: u8) -> f64 {
    let product = rates.products.iter().find(|p| p.bits == bits);
    product.map_or(rates.memory_bytes_per_second, |p| p.bytes_per_second)
}

/// Seconds of one token.
fn seconds(work: &Work, hits: f64, bursts: &[Burst]) -> f64 {
    let one = work.compute / work.used.max(1) as f64;
    // A layer misses each of its experts with the same chance.
    let layer = |(missed, chance): (usize, f64)| {
        let bytes = missed as f64 * work.expert_bytes + work.refinements;
        if bytes < 1.0 {
            return chance * work.compute;
        }
        let parts = (missed as f64 * work.parts + work.refinements / PART_BYTES as f64).max(1.0);
        chance * work.compute.max(burst(bursts, bytes / parts, parts) + one)
    };
    work.fixed + work.layers * misses(work.used, 1.0 - hits).enumerate().map(layer).sum::<f64>()
}

/// The chances that 0, 1, … of `used` experts are missed.
fn misses(used: usize, chance: f64) -> impl Iterator<Item = f64> {
    let mut ways = 1.0;
    (0..=used).map(move |n| {
        if n > 0 {
            ways *= (used + 1 - n) as f64 / n as f64;
        }
        ways * chance.powi(n as i32) * (1.0 - chance).powi((used - n) as i32)
    })
}

/// Seconds of a burst of `parts` reads of `part_bytes` each, between the measured ones; beyond them, as long per part
/// as the last ones took.
fn burst(measured: &[Burst], part_bytes: f64, parts: f64) -> f64 {
    let of_size = |i: usize| -> f64 {
        let times = &measured[i * PARTS.len()..(i + 1) * PARTS.len()];
        let points = times.iter().map(|b| (b.parts as f64, b.seconds));
        between(&points.collect::<Vec<_>>(), parts)
    };
    let sizes: Vec<_> = PART_SIZES.iter().enumerate().map(|(i, &size)| (size as f64, of_size(i))).collect();
    between(&sizes, part_bytes)
}

/// A line through neighbouring points. Below the first point, its value; beyond the last, the last line goes on.
fn between(points: &[(f64, f64)], at: f64) -> f64 {
    let at = at.max(points[0].0);
    let next = points.iter().position(|p| p.0 >= at).unwrap_or(points.len() - 1).max(1);
    let ((x0, y0), (x1, y1)) = (points[next - 1], points[next]);
    (y0 + (y1 - y0) * (at - x0) / (x1 - x0)).max(y0.min(y1))
}

/// The budgets to show: that of the plan, and parts of what the whole model takes, in whole MiB.
pub fn budgets(plan: &MemoryPlan, whole: u64) -> Vec<u64> {
    let mib = |bytes: u64| bytes.next_multiple_of(1 << 20);
    let fits = |budget: &u64| *budget >= plan.smallest_bytes && *budget <= mib(whole);
    let asked = plan.budget.filter(fits);
    // Budgets that hardly differ say the same.
    let is_news = |budget: &u64| asked.is_none_or(|asked| asked.abs_diff(*budget) > asked / 20);
    let parts =
        [whole / 4, whole / 2, whole * 3 / 4, whole].map(mib).into_iter().filter(fits).filter(is_news);
    let mut all: Vec<u64> = parts.chain(asked).collect();
    all.sort_unstable();
    all
}

/// The precisions to show: the one that was asked for, else every bit, 4 bits if there are more, and the default of a
/// streamed model.
pub fn precisions(asked: Option<Precision>, plan: &MemoryPlan) -> Vec<Precision> {
    if let Some(precision) = asked {
        return vec![precision];
    }
    let stored = plan.levels.last().and_then(|l| Level::from_bits(l.bits)).unwrap_or(Level::B8);
    let mut all = vec![Precision::Exact(stored)];
    if stored > Level::B4 {
        all.push(Precision::Exact(Level::B4));
    }
    all.push(Precision::Adaptive { quality: DEFAULT_QUALITY, floor: DEFAULT_FLOOR.min(stored) });
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every burst takes 1 ms, and 1 ms for each MiB.
    fn bursts() -> Vec<Burst> {
        let burst = |part_bytes, parts| Burst {
            part_bytes,
            parts,
            seconds: 1e-3 + 1e-3 * (part_bytes * parts) as f64 / 1048576.0,
        };
        PART_SIZES.iter().flat_map(|&size| PARTS.map(|parts| burst(size, parts))).collect()
    }

    fn is(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9 * expected.abs().max(1.0), "{value} is not {expected}");
    }

    #[test]
    fn bursts_lie_on_lines_between_the_measured_ones() {
        let measured = bursts();
        // Measured; between two numbers of parts; between two sizes; beyond the last number.
        is(burst(&measured, PART_BYTES as f64, 4.0), 3e-3);
        is(burst(&measured, PART_BYTES as f64, 10.0), 6e-3);
        is(burst(&measured, 262144.0, 8.0), 3e-3);
        is(burst(&measured, PART_BYTES as f64, 100.0), 51e-3);
        // Nothing is faster than the smallest.
        is(burst(&measured, 16384.0, 0.1), 1e-3 + 1e-3 / 64.0);
        is(burst(&measured, 10.0, 1.0), 1e-3 + 1e-3 / 64.0);
    }

    #[test]
    fn hits_grow_with_the_share_and_with_the_experts_left_out() {
        is(power(64, 8), 2.0);
        is(power(31, 31), 1.0);
        is(power(128, 8), 22.0 / 7.0);
        is(hit_rate(0.5, 1.0), 0.5);
        is(hit_rate(0.5, 2.0), 0.75);
        is(hit_rate(0.0, 3.0), 0.0);
        is(hit_rate(1.0, 1.0), 1.0);
    }

    #[test]
    fn misses_are_binomial() {
        let chances: Vec<f64> = misses(3, 0.5).collect();
        for (chance, expected) in chances.iter().zip([0.125, 0.375, 0.375, 0.125]) {
            is(*chance, expected);
        }
        is(misses(8, 0.37).sum(), 1.0);
        is(misses(2, 0.0).next().unwrap(), 1.0);
    }

    #[test]
    fn a_token_takes_the_longer_of_reading_and_computing() {
        let half = PART_BYTES as f64;
        let work = Work {
            fixed: 5e-3,
            compute: 2e-3,
            used: 2,
            layers: 10.0,
            expert_bytes: half,
            resident: 0.5,
            parts: 1.0,
            refinements: 0.0,
            power: 1.0,
        };
        let bursts = bursts();
        // Everything is in memory.
        is(seconds(&work, 1.0, &bursts), 5e-3 + 10.0 * 2e-3);
        // Both experts are read, 1 MiB in 2 parts: 2 ms, and the last one is computed afterwards: 1 ms.
        is(seconds(&work, 0.0, &bursts), 5e-3 + 10.0 * 3e-3);
        // One of two: 1.5 ms and 1 ms. None, one or two with chances of 1/4, 1/2, 1/4.
        is(seconds(&work, 0.5, &bursts), 5e-3 + 10.0 * (0.25 * 2e-3 + 0.5 * 2.5e-3 + 0.25 * 3e-3));
        // Computing hides reading.
        let slow = Work { compute: 20e-3, used: 1, ..work };
        is(seconds(&slow, 1.0, &bursts), 5e-3 + 10.0 * 20e-3);
        let hidden = Work { compute: 20e-3, used: 8, ..work };
        is(seconds(&hidden, 0.9, &bursts), 5e-3 + 10.0 * 20e-3);
        // Refinements are read even if nothing is missed: 2 MiB in 4 parts.
        let refined = Work { refinements: 4.0 * half, ..work };
        is(seconds(&refined, 1.0, &bursts), 5e-3 + 10.0 * (3e-3 + 1e-3));
    }

    #[test]
    fn lines_go_on_beyond_their_ends() {
        let points = [(1.0, 2.0), (3.0, 6.0), (4.0, 6.0)];
        for (at, expected) in [(0.0, 2.0), (1.0, 2.0), (2.0, 4.0), (3.0, 6.0), (3.5, 6.0), (9.0, 6.0)] {
            is(between(&points, at), expected);
        }
    }
}
