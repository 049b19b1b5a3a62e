//! DeepSeek-V2 and V3 (arXiv 2405.04434, 2412.19437) and models of the same architecture (Moonlight,
//! GLM-4.7-Flash): latent attention, dense first layers, then small routed experts and shared ones.

use super::Family;
use crate::format::hf::{Dialect, Sparse};

const V3: Dialect = Dialect {
    model_type: "deepseek_v3",
    architecture: "deepseek2",
    sparse: Some(Sparse::SIGMOID),
    latent: true,
    draft_layers: true,
    ..Dialect::USUAL
};

pub(super) const FAMILY: Family = Family {
    name: "deepseek2",
    dialects: &[
        // `transformers` ignores `norm_topk_prob` for this type, and published models set it to false.
        Dialect {
            model_type: "deepseek_v2",
            sparse: Some(Sparse { sigmoid: false, biased: None, renormalize: Some(false) }),
            ..V3
        },
        V3,
        Dialect { model_type: "glm4_moe_lite", ..V3 },
    ],
    router_keys: true,
    latent: true,
    ..Family::USUAL
};
