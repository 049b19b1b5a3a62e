//! Phi-3.5-MoE (Microsoft, arXiv 2404.14219): layer norms, LongRoPE, and two experts chosen by SparseMixer.

use super::{Family, Windows};
use crate::format::hf::{Dialect, Sliding};
use crate::kernels::Score;

pub(super) const FAMILY: Family = Family {
    name: "phimoe",
    dialects: &[Dialect {
        model_type: "phimoe",
        architecture: "phimoe",
        rope_base: 1e6,
        routed: true,
        renormalize: Some(false),
        mixer: true,
        sliding: Some(Sliding { switched: false, listed: false, rhythm: None, on: |_, _| true }),
        ..Dialect::USUAL
    }],
    // Twice the default of `router_jitter_noise`.
    score: Score::Mixer { tolerance: 0.02 },
    windows: Windows::All,
    expert_width: "feed_forward_length",
    renamed: &[("rope_factors_short.weight", "rope_freqs.weight")],
    layer_norms: true,
    long_rope: true,
    ..Family::USUAL
};
