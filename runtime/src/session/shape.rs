//! Computes how much memory a session takes.

use super::info::ModelInfo;
use super::processor;
use crate::kernels::cpu::{CpuBackend, ScratchShape};
use crate::model::memory::MemorySpec;
use crate::model::spec::{AttentionSpec, DeltaSpec, LayerSpec};
use crate::model::weights::Ffn;
use crate::model::{Model, Scratch, Spec, Weights};

/// The dimensions that a session's memory depends on.
pub(super) struct Shape<'a> {
    spec: &'a Spec,
    vocab: usize,
    ff_routed: usize,
    rotated: [bool; 2],
    ff_dense: usize,
    single: bool,
    /// Whether a GPU computes.
    gpu: bool,
}

impl Shape<'_> {
    pub(super) fn of<'a>(model: &'a Model, info: &ModelInfo, gpu: bool) -> Shape<'a> {
        Shape::new(&model.spec, &model.weights, (info.expert_width, info.rotated), gpu)
    }

    pub(super) fn new<'a>(
        spec: &'a Spec,
        weights: &Weights,
        (ff_routed, rotated): (usize, [bool; 2]),
        gpu: bool,
    ) -> Shape<'a> {
        let always = weights.layers.iter().filter_map(|l| match &l.ffn {
            Ffn::Dense(e) => Some(e),
            Ffn::Moe(moe) => moe.always(),
            Ffn::Nothing => None,
        });
        Shape {
            spec,
            vocab: weights.vocab(),
            ff_routed,
            rotated,
            ff_dense: always.map(|e| e.up.rows()).max().unwrap_or(0),
            single: weights.are_single(),
            gpu,
        }
    }

    /// Bytes that the layers keep per session: KV caches, window copies, and recurrent states.
    pub(super) fn kv(&self, context: usize, chunk: usize) -> u64 {
        let layer = |l: &LayerSpec| match l.memory(self.spec.d) {
            MemorySpec::Kv(kv) => {
                let places = kv.places(context, chunk);
                let copies =
                    if places < context { kv.copied_bytes(if self.single { 4 } else { 2 }) } else { 0 };
                (processor::kv_bytes(self.gpu, places, kv.heads, [kv.head_dim, kv.v_dim], self.single)
                    + copies) as u64
            }
            // All slots: the current state, the next one, and the marks.
            MemorySpec::State(values) => 4 * (self.spec.slots() * values) as u64,
        };
        self.spec.layers.iter().map(layer).sum()
    }

    /// Bytes of everything else that a session allocates.
    pub(super) fn scratch(&self, context: usize, chunk: usize, threads: usize) -> u64 {
        let c = self.spec;
        let router = c.router();
        let shape = ScratchShape {
            chunk,
            d: c.d,
            widest: c.d.max(c.most(AttentionSpec::q_width)).max(c.delta().map_or(0, DeltaSpec::width)),
            of_heads: c.most(|a| if a.latent.is_some() { a.q_width() } else { 0 }),
            ff_routed: self.ff_routed,
            rotated: self.rotated,
            ff_dense: self.ff_dense,
            top_k: router.map_or(0, |r| r.top_k),
            experts: router.map_or(0, |r| r.experts),
            heads: c.most(|a| a.heads),
            head_dim: c.most(|a| a.head_dim),
            context,
            threads,
        };
        let backend =
            processor::scratch_bytes(self.gpu, &shape, self.vocab, c.ropes.iter().map(|r| r.dims).sum());
        let noted = if self.gpu { Scratch::<CpuBackend>::noted_bytes(c, chunk) } else { 0 };
        (backend + noted + Scratch::<CpuBackend>::bytes(c, self.vocab, context, chunk)) as u64
    }
}
