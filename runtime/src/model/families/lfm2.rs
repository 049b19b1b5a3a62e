//! LFM2 (arXiv 2511.23404): gated short convolutions, and attention in some layers; dense.

use super::{Family, Windows};
use crate::format::hf::Dialect;

/// The last norm's name: what it norms are no embeddings.
pub(super) const RENAMED: &[(&str, &str)] = &[("token_embd_norm.weight", "output_norm.weight")];

pub(super) const FAMILY: Family = Family {
    name: "lfm2",
    dialects: &[Dialect {
        model_type: "lfm2",
        architecture: "lfm2",
        rope_base: 1e6,
        conv: true,
        ..Dialect::USUAL
    }],
    conv: true,
    // Of layers with attention all have one, where a file has one at all.
    windows: Windows::All,
    renamed: RENAMED,
    ..Family::USUAL
};
