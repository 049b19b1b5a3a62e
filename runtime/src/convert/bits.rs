//! Chooses the level (bits) of each expert so that all experts together fit a given size.
//!
//! This is a linear programme with one level per expert. MC-MoE (arXiv 2410.06270) solves one over bits and
//! usage frequency; here the loss of each expert at each level is measured. An expert's error is weighted by
//! its contribution to the residual stream ([`Calibration::shares`]).

use super::calibration::Calibration;
use crate::error::Result;
use crate::format::dollop::part_name;
use crate::model::file::NestedFile;
use crate::quant::PLANE_BITS;

/// Fraction of the layer's mean weight that is added to the weight of every expert. Without it, errors of an
/// expert that the calibration text never reached would cost nothing.
const PRIOR: f64 = 0.05;

/// Cost and loss of one expert at each level, lowest level first. Costs increase.
#[derive(Clone, Debug)]
pub(super) struct Choice {
    pub(super) costs: Vec<u64>,
    pub(super) losses: Vec<f64>,
}

/// A rise: the step from one level to a higher one, on the lower convex hull of an expert's costs and losses.
struct Rise {
    expert: usize,
    to: usize,
    cost: u64,
    /// Loss removed per unit of cost.
    worth: f64,
}

impl Choice {
    /// The rises along the lower convex hull, as (level, cost, worth). Each rise is worth less than the one
    /// before, and all are worth more than 0.
    fn hull(&self) -> Vec<(usize, u64, f64)> {
        let (mut at, mut rises) = (0, Vec::new());
        loop {
            let worth = |to: usize| {
                (self.losses[at] - self.losses[to]) / (self.costs[to] - self.costs[at]).max(1) as f64
            };
            // Of rises with equal worth, take the longest.
            let best =
                (at + 1..self.costs.len()).max_by(|&a, &b| worth(a).total_cmp(&worth(b)).then(a.cmp(&b)));
            let Some(to) = best.filter(|&to| worth(to) > 0.0) else { return rises };
            rises.push((to, self.costs[to] - self.costs[at], worth(to)));
            at = to;
        }
    }
}

/// Chooses the level of each expert, as an index into its choices, with a total cost of at most `budget`.
/// Takes the rises of all hulls in order of their worth, as long as they fit.
///
/// If the rises use up the budget exactly, the result is optimal. Otherwise its loss is above the optimum of
/// the linear programme by less than one rise.
///
/// Returns `None` if the lowest levels already cost more than `budget`.
pub(super) fn allot(experts: &[Choice], budget: u64) -> Option<Vec<usize>> {
    let mut levels = vec![0; experts.len()];
    let mut left = budget.checked_sub(experts.iter().map(|e| e.costs[0]).sum())?;
    let mut rises: Vec<Rise> = Vec::new();
    for (expert, choice) in experts.iter().enumerate() {
        let of = |(to, cost, worth)| Rise { expert, to, cost, worth };
        rises.extend(choice.hull().into_iter().map(of));
    }
    rises.sort_by(|a, b| b.worth.total_cmp(&a.worth).then(a.expert.cmp(&b.expert)).then(a.to.cmp(&b.to)));
    // If a rise does not fit, the expert's later rises are skipped: they start where this one ends, and are
    // worth less.
    let mut stopped = vec![false; experts.len()];
    for rise in rises {
        if stopped[rise.expert] || rise.cost > left {
            stopped[rise.expert] = true;
            continue;
        }
        (levels[rise.expert], left) = (rise.to, left - rise.cost);
    }
    Some(levels)
}

/// The limit that a conversion's size must keep.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// At most this many bytes for the whole file.
    File(u64),
    /// At most this many bits of codes per expert weight, on average.
    Bits(f64),
}

/// Cost and loss of every expert of `layers` at each stored level, layer by layer. If `bytes` is set, costs
/// are bytes in the file; otherwise they are bits of codes.
///
/// # Errors
/// As [`NestedFile::layer_experts`].
pub(super) fn choices(
    file: &NestedFile,
    layers: &[usize],
    calibration: Option<&Calibration>,
    bytes: bool,
) -> Result<Vec<Choice>> {
    let mut all = Vec::new();
    for &layer in layers {
        let Some(table) = file.layer_experts(layer)? else { continue };
        let weights: u64 = table.stored_shapes().iter().map(|s| (s.rows * s.cols) as u64).sum();
        let stored = table.level().planes();
        let cost =
            |p: usize| if bytes { table.plane_bytes(p) as u64 } else { weights * u64::from(PLANE_BITS[p]) };
        let costs: Vec<u64> = (0..stored)
            .scan(0, |sum, p| {
                *sum += cost(p);
                Some(*sum)
            })
            .collect();
        let uses = uses(calibration, layer, table.count());
        for (errors, used) in table.errors.iter().zip(uses) {
            let losses = errors[..stored].iter().map(|&e| used * f64::from(e)).collect();
            all.push(Choice { costs: costs.clone(), losses });
        }
    }
    Ok(all)
}

/// Weight of each expert's error in a layer: its measured contribution to the residual stream. Without one, it
/// is how often the expert was chosen. If that was not counted either, all experts have the same weight.
fn uses(calibration: Option<&Calibration>, layer: usize, count: usize) -> Vec<f64> {
    let counted = || {
        let of = |part| calibration?.get(&part_name(layer, part));
        let inputs = of("gate").or_else(|| of("up"))?;
        let sum: f32 = inputs.counts.iter().sum();
        // If no token was counted, dividing by the sum would make every weight NaN.
        (inputs.counts.len() == count && sum > 0.0)
            .then(|| inputs.counts.iter().map(|c| f64::from(c / sum)).collect())
    };
    let shares = calibration.and_then(|c| c.shares(layer)).filter(|s| s.len() == count);
    let seen: Option<Vec<f64>> = shares.map(|s| s.iter().map(|&s| f64::from(s)).collect()).or_else(counted);
    let mut uses = seen.unwrap_or_else(|| vec![1.0 / count as f64; count]);
    let mean = uses.iter().sum::<f64>() / count as f64;
    uses.iter_mut().for_each(|u| *u += PRIOR * mean);
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 20 experts whose losses fall roughly like those of real codes, some of them unevenly.
    fn toy() -> Vec<Choice> {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        (0..20)
            .map(|_| {
                let (unit, used) = (1 + (3.0 * next()) as u64, next());
                let mut loss = used;
                let losses = (0..5).map(|_| {
                    loss *= 0.05 + 0.6 * next();
                    loss
                });
                Choice { losses: losses.collect(), costs: [2, 3, 4, 6, 8].map(|bits| bits * unit).to_vec() }
            })
            .collect()
    }

    fn loss(experts: &[Choice], levels: &[usize]) -> f64 {
        experts.iter().zip(levels).map(|(e, &l)| e.losses[l]).sum()
    }

    fn cost(experts: &[Choice], levels: &[usize]) -> u64 {
        experts.iter().zip(levels).map(|(e, &l)| e.costs[l]).sum()
    }

    /// The lowest loss at every budget up to `most`, found by trying every level of every expert.
    fn optima(experts: &[Choice], most: u64) -> Vec<f64> {
        let mut best = vec![0.0; most as usize + 1];
        for e in experts {
            let tried = |budget: usize| {
                let fits = e.costs.iter().zip(&e.losses).filter(|(c, _)| **c as usize <= budget);
                fits.map(|(&c, l)| best[budget - c as usize] + l).fold(f64::INFINITY, f64::min)
            };
            best = (0..=most as usize).map(tried).collect();
        }
        best
    }

    /// Gate 101.
    #[test]
    fn twenty_experts_get_the_bits_that_trying_all_finds_best() {
        let experts = toy();
        let most: u64 = experts.iter().map(|e| e.costs[4]).sum();
        let least: u64 = experts.iter().map(|e| e.costs[0]).sum();
        let optima = optima(&experts, most);
        let largest = experts.iter().flat_map(Choice::hull).map(|(_, cost, worth)| cost as f64 * worth);
        let largest = largest.fold(0.0, f64::max);
        assert_eq!(allot(&experts, least - 1), None);
        let (mut equal, mut above) = (0, 0);
        for budget in least..=most {
            let levels = allot(&experts, budget).unwrap();
            let (spent, got, best) =
                (cost(&experts, &levels), loss(&experts, &levels), optima[budget as usize]);
            assert!(spent <= budget && got >= best - 1e-12, "{spent} of {budget}: {got}, optimum {best}");
            assert!(got <= best + largest, "{budget}: {got} is more than a rise above {best}");
            let same = got <= best + 1e-12;
            (equal, above) = (equal + u32::from(same), above + u32::from(!same));
        }
        // At each corner of the hull the rises use up the budget exactly, so the result must be the optimum.
        let mut rises: Vec<(f64, u64)> =
            experts.iter().flat_map(Choice::hull).map(|(_, cost, worth)| (worth, cost)).collect();
        rises.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut at = least;
        for (_, cost) in &rises {
            at += cost;
            let levels = allot(&experts, at).unwrap();
            let (got, best) = (loss(&experts, &levels), optima[at as usize]);
            assert!((got - best).abs() < 1e-12, "at {at}: {got}, and {best} is the optimum");
        }
        assert!(rises.len() > 40 && equal > above);
    }

    #[test]
    fn what_is_not_worth_its_bytes_is_left_out() {
        // The second level is no better than the first, the third is much better: the hull has one rise, from
        // 2 to 4.
        let odd = Choice { costs: vec![2, 3, 4], losses: vec![1.0, 1.0, 0.1] };
        assert_eq!(allot(std::slice::from_ref(&odd), 3).unwrap(), [0]);
        assert_eq!(allot(std::slice::from_ref(&odd), 4).unwrap(), [2]);
        // Higher levels lose as much as the lowest: nothing is spent on them.
        let flat = Choice { costs: vec![2, 3], losses: vec![0.5, 0.5] };
        assert_eq!(allot(&[flat], 100).unwrap(), [0]);
    }

    #[test]
    fn experts_that_a_text_left_out_still_count() {
        let mut seen = Calibration::new("a text");
        seen.insert_shares(3, vec![0.0, 1.0, 3.0]).unwrap();
        let uses = uses(Some(&seen), 3, 3);
        assert!(uses[0] > 0.0 && uses[0] < uses[1] && uses[1] < uses[2]);
        assert_eq!(super::uses(None, 3, 2), super::uses(Some(&seen), 4, 2));
    }
}
