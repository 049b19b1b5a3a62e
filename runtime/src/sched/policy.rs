//! Determines how many bits of each expert are worth their bytes. Pure arithmetic on gates and error tables (R3).
//!
//! For a token, plane `p` of expert `e` reduces the squared error of the layer's output by `gate² · Δerror(e, p)`
//! and costs its bytes if it is not resident. [`Precision::Adaptive`] buys every plane whose reduction per bit
//! exceeds a price, most valuable first, and a base always before its refinements. This is D²MoE's
//! hottest-expert-bit-first order (arXiv 2504.15299) together with its bit-width router, but without training one.

use crate::cache::{LayerCache, Worth};
use crate::error::{Error, Result};
use crate::experts::Wanted;
use crate::quant::{Level, PLANE_BITS, PLANES};
use std::fmt;
use std::str::FromStr;

/// The precision at which experts are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Precision {
    /// Every expert at one level: bit-identical to the resident model.
    Exact(Level),
    /// As many bits as are worth their bytes.
    Adaptive {
        /// Bits that an expert of average gate weight gets if it has to be read: 2 to 8. Hotter experts get more,
        /// colder ones fewer, and resident planes are used anyway.
        quality: f32,
        /// The fewest bits of an expert.
        floor: Level,
    },
}

/// The quality of `adaptive` if none is given.
pub const DEFAULT_QUALITY: f32 = 4.0;

/// 2-bit experts break the syntax of JSON and tool calls, so fewer bits than this need an explicit option.
pub const DEFAULT_FLOOR: Level = Level::B3;

impl Precision {
    /// The level that every expert needs.
    #[doc(hidden)]
    pub fn floor(&self) -> Level {
        match *self {
            Precision::Exact(level) => level,
            Precision::Adaptive { floor, .. } => floor,
        }
    }

    /// The highest level of an expert on a device, whose slots all have room for it: the first level with at
    /// least the bits of an average expert. A higher one would help only the hottest experts, and leave fewer
    /// resident ones.
    pub(crate) fn place_level(&self, stored: Level) -> Level {
        match *self {
            Precision::Exact(level) => level,
            Precision::Adaptive { quality, floor } => {
                let enough = |l: &Level| *l >= floor && f32::from(l.bits()) >= quality;
                Level::ALL.into_iter().find(enough).unwrap_or(stored).min(stored)
            }
        }
    }

    /// The least gain per bit at which a plane is bought for an expert of hotness 1.
    ///
    /// The squared error of `b` bits is about `2.2 · 4⁻ᵇ` of the weights' energy (benches/records/nested-codec.md),
    /// so the step from `b` to `b + 1` gains three quarters of that; the price lies half way between two steps.
    fn price(quality: f32) -> f32 {
        0.75 * 2.2 * 4f32.powf(0.5 - quality)
    }

    /// The worth of an expert's planes in the cache; see [`Worth`]. Planes of the floor would be read again
    /// when next wanted: 1. The first refinement is worth what it would be bought for again at this price.
    /// Later ones count by their error reduction per bit relative to the first: if memory is short, third
    /// bits should not be evicted for other experts' fourth bits just because both are affordable.
    pub(super) fn worth(&self, errors: &[f32; PLANES]) -> Worth {
        let Precision::Adaptive { quality, floor } = *self else { return [1.0; PLANES] };
        let floor = floor.planes();
        let first = gain(errors, floor.min(PLANES - 1)).max(f32::MIN_POSITIVE);
        let bought = REFINEMENT * (first / Self::price(quality)).min(1.0);
        std::array::from_fn(|p| if p < floor { 1.0 } else { bought * (gain(errors, p) / first).min(1.0) })
    }
}

/// A refinement evicts a plane that must be read again only if its expert is this much hotter: the loss
/// certainly costs bytes, the gain is only precision (measured: benches/records/streaming.md).
const REFINEMENT: f32 = 0.5;

impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Precision> {
        let wrong = || {
            Error::Invalid(format!(
                "precision `{text}`: exact:B (B is 2, 3, 4, 6 or 8), adaptive, or adaptive:Q (bits of an average expert, 2 to 8)"
            ))
        };
        match text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest))) {
            ("exact", Some(bits)) => {
                bits.parse().ok().and_then(Level::from_bits).map(Precision::Exact).ok_or_else(wrong)
            }
            ("adaptive", quality) => {
                let quality = quality.map_or(Ok(DEFAULT_QUALITY), |q| q.parse().map_err(|_| wrong()))?;
                if !(2.0..=8.0).contains(&quality) {
                    return Err(wrong());
                }
                Ok(Precision::Adaptive { quality, floor: DEFAULT_FLOOR })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Precision::Exact(level) => write!(f, "exact:{level}"),
            Precision::Adaptive { quality, floor } => write!(f, "adaptive:{quality} (floor {floor})"),
        }
    }
}

/// The order in which refinements are bought. All but [`Order::Worth`] exist for comparison.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The largest error reduction per byte first.
    #[default]
    Worth,
    /// Experts in the router's order, with all bits of one before the next.
    Arrival,
    /// The largest gate first, with all its bits before the next.
    Gate,
}

/// Decays a layer's heat by a number of tokens, and returns the number of tokens as which their gate mass counts
/// together. A steady stream of tokens would leave the same heat: a long prompt is not hotter than a short one.
pub(super) fn cool(cache: &mut LayerCache, tokens: f32, half_life: f32) -> f32 {
    let decay = 0.5f32.powf(tokens / half_life);
    cache.cool(decay);
    (1.0 - decay) / (1.0 - 0.5f32.powf(1.0 / half_life))
}

/// Error reduction per bit of plane `p`.
pub(super) fn gain(errors: &[f32; PLANES], p: usize) -> f32 {
    let before = if p == 0 { 1.0 } else { errors[p - 1] };
    (before - errors[p]).max(0.0) / f32::from(PLANE_BITS[p])
}

/// One expert's part in a serving.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    /// Index into the wanted list.
    pub(super) index: usize,
    pub(super) expert: usize,
    /// Planes that the expert is computed with.
    pub(super) planes: usize,
    /// Its share of the gates' energy, relative to the average slot: an expert that serves a hundred tokens
    /// of a prompt counts a hundred times.
    pub(super) hotness: f32,
    pub(super) gate: f32,
}

/// The wanted experts, hottest first, at their lowest precision.
pub(super) fn asks(wanted: &[Wanted], planes: impl Fn(usize) -> usize) -> Vec<Ask> {
    let energy: f32 = wanted.iter().map(|w| w.energy).sum();
    let slots: u32 = wanted.iter().map(|w| w.tokens).sum();
    let scale = if energy > 0.0 { slots as f32 / energy } else { 0.0 };
    let mut asks: Vec<Ask> = (wanted.iter().enumerate())
        .map(|(index, w)| Ask {
            index,
            expert: w.expert as usize,
            planes: planes(w.expert as usize),
            hotness: w.energy * scale,
            gate: w.gate,
        })
        .collect();
    asks.sort_by(|a, b| b.hotness.total_cmp(&a.hotness).then(a.expert.cmp(&b.expert)));
    asks
}

/// A plane that could be bought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Offer {
    /// Position in the asks.
    pub(super) ask: usize,
    pub(super) plane: usize,
    pub(super) worth: f32,
}

/// The planes that could be bought beyond those of the asks, in the order of purchase.
pub(super) fn offers(
    asks: &[Ask],
    stored: usize,
    order: Order,
    quality: f32,
    unlimited: bool,
    errors: impl Fn(usize) -> [f32; PLANES],
) -> Vec<Offer> {
    let price = if unlimited { 0.0 } else { Precision::price(quality) };
    let mut offers = Vec::new();
    for (i, ask) in asks.iter().enumerate() {
        let errors = errors(ask.expert);
        // A higher plane is never worth more than the one below, because it is useless without it.
        let mut worth = f32::INFINITY;
        for plane in ask.planes..stored {
            worth = worth.min(ask.hotness * gain(&errors, plane));
            if worth < price || worth <= 0.0 {
                break;
            }
            offers.push(Offer { ask: i, plane, worth });
        }
    }
    match order {
        Order::Worth => offers.sort_by(|a, b| b.worth.total_cmp(&a.worth).then(a.plane.cmp(&b.plane))),
        Order::Arrival => offers.sort_by_key(|o| (asks[o.ask].index, o.plane)),
        Order::Gate => offers.sort_by(|a, b| {
            let gate = |o: &Offer| asks[o.ask].gate;
            gate(b).total_cmp(&gate(a)).then(a.ask.cmp(&b.ask)).then(a.plane.cmp(&b.plane))
        }),
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERRORS: [f32; PLANES] = [0.138, 0.042, 0.012, 0.001, 0.0001];

    fn wanted(energies: &[f32]) -> Vec<Wanted> {
        let one =
            |(i, &energy): (usize, &f32)| Wanted { expert: i as u32, gate: energy.sqrt(), energy, tokens: 1 };
        energies.iter().enumerate().map(one).collect()
    }

    #[test]
    fn quality_is_the_bits_of_an_average_expert() {
        for (quality, planes) in [(2.0, 1), (3.0, 2), (4.0, 3), (6.0, 4)] {
            let asks = asks(&wanted(&[1.0; 4]), |_| 1);
            let offers = offers(&asks, PLANES, Order::Worth, quality, false, |_| ERRORS);
            for i in 0..4 {
                assert_eq!(1 + offers.iter().filter(|o| o.ask == i).count(), planes, "quality {quality}");
            }
        }
    }

    #[test]
    fn places_have_room_for_the_bits_of_an_average_expert_and_no_more() {
        let level = |quality, floor, stored| Precision::Adaptive { quality, floor }.place_level(stored);
        assert_eq!(level(DEFAULT_QUALITY, DEFAULT_FLOOR, Level::B8), Level::B4);
        assert_eq!(level(3.2, Level::B2, Level::B8), Level::B4);
        assert_eq!(level(4.1, Level::B3, Level::B8), Level::B6);
        assert_eq!(level(8.0, Level::B3, Level::B8), Level::B8);
        // Never less than the floor, nor more than is stored.
        assert_eq!(level(2.0, Level::B3, Level::B8), Level::B3);
        assert_eq!(level(6.0, Level::B3, Level::B4), Level::B4);
        assert_eq!(Precision::Exact(Level::B6).place_level(Level::B8), Level::B6);
    }

    #[test]
    fn hotter_experts_get_more_bits_first_and_bases_come_before_refinements() {
        let asks = asks(&wanted(&[0.01, 4.0, 1.0]), |_| 1);
        assert_eq!(asks.iter().map(|a| a.expert).collect::<Vec<_>>(), [1, 2, 0]);
        let offers = offers(&asks, PLANES, Order::Worth, 3.5, true, |_| ERRORS);
        assert_eq!((offers[0].ask, offers[0].plane), (0, 1));
        assert!(offers.windows(2).all(|w| w[0].worth >= w[1].worth));
        for i in 0..3 {
            let planes: Vec<_> = offers.iter().filter(|o| o.ask == i).map(|o| o.plane).collect();
            assert_eq!(planes, (1..PLANES).collect::<Vec<_>>(), "a prefix, in order");
        }
    }

    #[test]
    fn other_orders_finish_one_expert_before_the_next() {
        let asks = asks(&wanted(&[0.5, 2.0]), |_| 2);
        let by = |order| -> Vec<(usize, usize)> {
            offers(&asks, 4, order, 8.0, true, |_| ERRORS)
                .iter()
                .map(|o| (asks[o.ask].expert, o.plane))
                .collect()
        };
        assert_eq!(by(Order::Arrival), [(0, 2), (0, 3), (1, 2), (1, 3)]);
        assert_eq!(by(Order::Gate), [(1, 2), (1, 3), (0, 2), (0, 3)]);
    }

    #[test]
    fn precisions_are_read_and_nonsense_is_refused() {
        assert_eq!("exact:4".parse::<Precision>().unwrap(), Precision::Exact(Level::B4));
        let adaptive = "adaptive:3".parse::<Precision>().unwrap();
        assert_eq!(adaptive, Precision::Adaptive { quality: 3.0, floor: Level::B3 });
        for bad in ["", "exact", "exact:5", "adaptive:1", "adaptive:NaN", "adaptive:x", "best"] {
            assert!(bad.parse::<Precision>().is_err(), "{bad}");
        }
    }
}
