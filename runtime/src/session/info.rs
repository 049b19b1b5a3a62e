//! Describes a loaded model: its dimensions and sizes, and how it runs.

use super::plan::MemoryPlan;
use crate::experts::Expert;
use crate::model::weights::Layer;
use crate::model::{Spec, Weights};
use crate::quant::{Level, Matrix};
use crate::sched::Precision;

/// A model's dimensions and sizes.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The model's name (`general.name`).
    pub name: String,
    /// The model's architecture (`general.architecture`).
    pub architecture: String,
    /// Transformer blocks.
    pub layers: usize,
    /// Experts per routed layer; 0 for a dense model.
    pub experts: usize,
    /// Experts per token.
    pub experts_used: usize,
    /// Hidden width of a routed expert; 0 for a dense model.
    pub expert_width: usize,
    /// The longest context that the model was trained for, in tokens.
    pub context: usize,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Weights in all matrices.
    pub parameters: u64,
    /// Weights in the matrices that one token uses. The one row of the embedding that it reads does not
    /// count.
    pub active_parameters: u64,
    /// Bytes of those weights at the level in use: what one token reads.
    pub active_bytes: u64,
    /// Bytes of all weights at the level in use.
    pub bytes: u64,
    /// How the model runs, for display: resident or streaming, precision, level.
    pub mode: String,
    /// The processor, for display.
    pub backend: String,
    /// Whether any routed expert has rotated inputs: of gate and up, and of down.
    #[serde(skip)]
    pub(super) rotated: [bool; 2],
}

impl ModelInfo {
    /// Describes a model, given its experts by layer and the embedding still in `weights`. The caller sets
    /// `backend` later.
    pub(super) fn new(
        spec: &Spec,
        weights: &Weights,
        experts: &[Vec<Expert>],
        tied: bool,
        mode: String,
    ) -> ModelInfo {
        let mut info = ModelInfo {
            name: spec.name.clone(),
            architecture: spec.family.name.to_owned(),
            layers: spec.layers.len(),
            experts: spec.router().map_or(0, |r| r.experts),
            experts_used: spec.router().map_or(0, |r| r.top_k),
            context: spec.context,
            vocab: weights.vocab(),
            expert_width: experts.iter().flatten().map(|e| e.up.rows()).next().unwrap_or(0),
            parameters: 0,
            active_parameters: 0,
            active_bytes: 0,
            bytes: 0,
            mode,
            backend: String::new(),
            rotated: rotated(experts),
        };
        let used = info.experts_used;
        let mut add = |m: &Matrix, whole: bool, active: bool| {
            let (n, bytes) = ((m.rows() * m.cols()) as u64, m.bytes() as u64);
            info.parameters += if whole { n } else { 0 };
            info.bytes += if whole { bytes } else { 0 };
            info.active_parameters += if active { n } else { 0 };
            info.active_bytes += if active { bytes } else { 0 };
        };
        weights.layers.iter().flat_map(Layer::matrices).flatten().for_each(|m| add(m, true, true));
        for experts in experts {
            for (i, e) in experts.iter().enumerate() {
                e.matrices().for_each(|m| add(m, true, i < used));
            }
        }
        // A tied head is the same matrix as the embedding, so it adds no weights. A token reads one row of
        // the embedding.
        if let Some(embed) = weights.embed.held() {
            add(embed, true, false);
        }
        add(&weights.head, !tied, true);
        info
    }
}

/// Whether any expert has rotated inputs: of gate and up, and of down.
pub(super) fn rotated(experts: &[Vec<Expert>]) -> [bool; 2] {
    let any = |of: fn(&Expert) -> &Matrix| experts.iter().flatten().any(|e| of(e).rotation().is_some());
    [any(|e| &e.up), any(|e| &e.down)]
}

/// What describes a model's precision, besides the memory plan.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    pub(super) precision: Precision,
    /// The level of resident routed experts, if they are quantized.
    pub(super) level: Option<Level>,
    /// The level of the always-used weights, if they are quantized.
    pub(super) dense: Option<Level>,
}

impl Manner {
    /// The precision as a string that is equal if results are equal, whatever is resident.
    pub(super) fn tag(&self, plan: &MemoryPlan) -> String {
        match (self.level, plan.is_tight()) {
            (Some(level), false) => Precision::Exact(level).to_string(),
            (None, false) => "full precision".to_owned(),
            (_, true) => self.precision.to_string(),
        }
    }

    pub(super) fn described(&self, plan: &MemoryPlan) -> String {
        let precision = self.precision;
        if plan.streaming {
            let floor = precision.floor();
            let all = plan.levels.iter().find(|l| l.bits == floor.bits()).map_or(0, |l| l.expert_bytes);
            let (cache, all) = (plan.expert_bytes >> 20, all >> 20);
            let at = if plan.gpu { " on the device" } else { "" };
            return format!(
                "streaming, {precision}, cache of {cache} MB{at} for {all} MB of experts at {floor} bits"
            );
        }
        match (self.level, self.dense) {
            (Some(level), _) if plan.lowered => {
                let refined = plan.refinements.map_or_else(String::new, |r| r.described());
                format!("resident, {precision}, level {level} for all experts{refined}")
            }
            (Some(level), _) => format!("resident, exact level {level}"),
            (None, Some(level)) => format!("resident, dense, exact level {level}"),
            (None, None) => "resident, reference f32".to_owned(),
        }
    }
}
