//! DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437) and what has their shape (Moonlight, GLM-4.7-Flash): attention to a latent, small
//! experts behind dense layers, and shared ones.

use super::Family;
use crate::format::hf::{Dialect, Sparse};

const V3: Dialect = Dialect {
    model_type: "deepseek_v3",
    architecture: "deepseek2",
    sparse: Some(Sparse { sigmoid: true, renormalize: None }),
    latent: true,
    draft_layers: true,
    ..Dialect::USUAL
};

pub(super) const FAMILY: Family = Family {
    name: "deepseek2",
    dialects: &[
        // `transformers` does not read norm_topk_prob there, and published models say false.
        Dialect {
            model_type: "deepseek_v2",
            sparse: Some(Sparse { sigmoid: false, renormalize: Some(false) }),
            ..V3
        },
        V3,
        Dialect { model_type: "glm4_moe_lite", ..V3 },
    ],
    router_keys: true,
    latent: true,
    ..Family::USUAL
};
