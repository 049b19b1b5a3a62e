//! LFM2 (arXiv 2511.23404), dense: gated short convolutions, and attention in some layers.

use super::{Family, Windows};
use crate::format::hf::Dialect;

/// The name of the final norm misleads: it does not norm embeddings.
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
    // If a file has a window, all attention layers use it.
    windows: Windows::All,
    renamed: RENAMED,
    ..Family::USUAL
};
