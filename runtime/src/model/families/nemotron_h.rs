//! Nemotron-H (arXiv 2504.03624): the blocks of Nemotron 3 without experts.

use super::{Family, nemotron_h_moe};

pub(super) const FAMILY: Family = Family {
    name: "nemotron_h",
    // GGUF files have two names for the two kinds. Folders have one, which the other family reads.
    dialects: &[],
    ..nemotron_h_moe::FAMILY
};
