//! Scratch buffers for layers of one kind: routed experts, extra layer inputs, and delta nets.

use crate::error::Result;
use crate::experts::Wanted;
use crate::kernels::{Backend, Choice, Router};
use crate::model::spec::DeltaSpec;
use crate::model::{Model, Spec};

/// Scratch of routed layers.
pub(in crate::model::forward) struct MoeScratch<B: Backend> {
    /// Router logits, `[chunk, experts]`.
    pub(in crate::model::forward) router: B::Buf,
    /// Outputs of the chosen experts, `[chunk · top_k, d]`.
    pub(in crate::model::forward) slots: B::Buf,
    /// Gate of the shared expert, `[chunk, 1]`.
    pub(in crate::model::forward) shared_gate: B::Buf,
    /// Sum of the routed experts and the parallel dense block, or scratch of a shared expert whose sum with them is
    /// normed, `[chunk, d]`.
    pub(in crate::model::forward) both: Option<B::Buf>,
    pub(in crate::model::forward) choices: Vec<Choice>,
    /// For the routing options: logits on the host (`[chunk, experts]`), and whether each expert is resident.
    pub(in crate::model::forward) logits: Vec<f32>,
    pub(in crate::model::forward) resident: Vec<bool>,
    /// The guessed choices of the next layer, for prefetching.
    pub(in crate::model::forward) guess: Vec<Choice>,
    /// The slots that chose each expert.
    pub(in crate::model::forward) by_expert: Vec<Vec<u32>>,
    pub(in crate::model::forward) wanted: Vec<Wanted>,
}

impl<B: Backend> MoeScratch<B> {
    pub(in crate::model::forward) fn new(
        backend: &B,
        model: &Model,
        router: &Router,
        chunk: usize,
    ) -> Result<MoeScratch<B>> {
        let &Router { experts, top_k, .. } = router;
        Ok(MoeScratch {
            router: backend.alloc(chunk * experts)?,
            slots: backend.alloc(chunk * top_k * model.spec.d)?,
            shared_gate: backend.alloc(chunk)?,
            both: match model.spec.layers.iter().any(|l| l.sandwich) {
                true => Some(backend.alloc(chunk * model.spec.d)?),
                false => None,
            },
            choices: Vec::with_capacity(chunk * top_k),
            logits: vec![0.0; if model.routing.cache_prior > 0.0 { chunk * experts } else { 0 }],
            resident: vec![true; experts],
            guess: Vec::with_capacity(top_k),
            by_expert: vec![Vec::new(); experts],
            wanted: Vec::with_capacity(experts),
        })
    }

    /// Words (4 bytes) that [`MoeScratch::new`] allocates.
    pub(in crate::model::forward) fn words(router: &Router, d: usize, chunk: usize, sandwich: bool) -> usize {
        let both = if sandwich { chunk * d } else { 0 };
        // The lists of choices, and of slots by expert, take twice their size: `by_expert` grows by doubling.
        both + chunk * (2 * router.experts + router.top_k * d + 1)
            + 6 * chunk * router.top_k
            + 16 * router.experts
    }
}

/// Scratch of the extra layer inputs.
pub(in crate::model::forward) struct InputScratch<B: Backend> {
    /// The inputs of all layers, `[chunk, layers, per_layer]`.
    pub(in crate::model::forward) all: B::Buf,
    /// The projection of the embedded stream, and its norm, each as large as `all`.
    pub(in crate::model::forward) projected: B::Buf,
    pub(in crate::model::forward) normed: B::Buf,
    /// The gated input of one layer, `[chunk, per_layer]`.
    pub(in crate::model::forward) gated: B::Buf,
    /// Rows of `all` to skip, if the first rows of the stream were dropped.
    pub(in crate::model::forward) cut: usize,
}

impl<B: Backend> InputScratch<B> {
    pub(in crate::model::forward) fn new(
        backend: &B,
        spec: &Spec,
        chunk: usize,
    ) -> Result<Option<InputScratch<B>>> {
        if spec.per_layer == 0 {
            return Ok(None);
        }
        let all = || backend.alloc(chunk * spec.layers.len() * spec.per_layer);
        let gated = backend.alloc(chunk * spec.per_layer)?;
        Ok(Some(InputScratch { all: all()?, projected: all()?, normed: all()?, gated, cut: 0 }))
    }

    /// Words (4 bytes) that [`InputScratch::new`] allocates.
    pub(in crate::model::forward) fn words(spec: &Spec, chunk: usize) -> usize {
        chunk * (3 * spec.layers.len() + 1) * spec.per_layer
    }

    /// Records that the first `rows` rows of the stream were dropped.
    pub(in crate::model::forward) fn cut(&mut self, rows: usize) {
        self.cut = rows;
    }
}

/// Scratch of gated delta nets.
pub(in crate::model::forward) struct DeltaScratch<B: Backend> {
    /// Queries, keys and values, `[chunk, channels]`.
    pub(in crate::model::forward) qkv: B::Buf,
    /// The same after the convolution, `[chunk, channels]`.
    pub(in crate::model::forward) mixed: B::Buf,
    /// Output gate, `[chunk, v_heads · v_dim]`.
    pub(in crate::model::forward) z: B::Buf,
    /// `[chunk, v_heads]`.
    pub(in crate::model::forward) beta: B::Buf,
    /// `[chunk, decays]`.
    pub(in crate::model::forward) alpha: B::Buf,
    /// Between the two steps of low-rank projections, `[chunk, rank]`; empty without them.
    pub(in crate::model::forward) z_low: B::Buf,
    /// The same.
    pub(in crate::model::forward) alpha_low: B::Buf,
    /// Output of the heads, `[chunk, v_heads · v_dim]`.
    pub(in crate::model::forward) out: B::Buf,
}

impl<B: Backend> DeltaScratch<B> {
    /// `None` if the model has no gated delta nets.
    pub(in crate::model::forward) fn new(
        backend: &B,
        spec: &Spec,
        chunk: usize,
    ) -> Result<Option<DeltaScratch<B>>> {
        let Some(d) = spec.delta() else { return Ok(None) };
        Ok(Some(DeltaScratch {
            qkv: backend.alloc(chunk * d.channels())?,
            mixed: backend.alloc(chunk * d.channels())?,
            z: backend.alloc(chunk * d.width())?,
            beta: backend.alloc(chunk * d.v_heads)?,
            alpha: backend.alloc(chunk * d.decays())?,
            z_low: backend.alloc(chunk * d.rank())?,
            alpha_low: backend.alloc(chunk * d.rank())?,
            out: backend.alloc(chunk * d.width())?,
        }))
    }

    /// Words (4 bytes) that [`DeltaScratch::new`] allocates.
    pub(in crate::model::forward) fn words(spec: &Spec, chunk: usize) -> usize {
        let words = |d: &DeltaSpec| 2 * (d.channels() + d.width() + d.rank()) + d.v_heads + d.decays();
        spec.delta().map_or(0, |d| chunk * words(d))
    }
}
