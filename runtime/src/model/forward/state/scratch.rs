//! Scratch of layers of one kind: of routed experts, of inputs of their own, of delta nets.

use crate::error::Result;
use crate::experts::Wanted;
use crate::kernels::{Backend, Choice, Router};
use crate::model::{Model, Spec};

/// Scratch of the routed layers.
pub(in crate::model::forward) struct MoeScratch<B: Backend> {
    /// `[chunk, experts]`.
    pub(in crate::model::forward) router: B::Buf,
    /// `[chunk · top_k, d]`.
    pub(in crate::model::forward) slots: B::Buf,
    /// `[chunk, 1]`.
    pub(in crate::model::forward) shared_gate: B::Buf,
    /// What routed experts and the block beside them give, `[chunk, d]`.
    pub(in crate::model::forward) both: Option<B::Buf>,
    pub(in crate::model::forward) choices: Vec<Choice>,
    /// Where departures from the router's choice need them: logits on the host (`[chunk, experts]`), and who is resident.
    pub(in crate::model::forward) logits: Vec<f32>,
    pub(in crate::model::forward) resident: Vec<bool>,
    /// What the next layer's router says of this layer's input, where it is asked.
    pub(in crate::model::forward) guess: Vec<Choice>,
    /// For each expert, the slots that chose it.
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
            both: match model.spec.layers.iter().any(|l| l.ffn.beside) {
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

    /// Words of [`MoeScratch::new`].
    pub(in crate::model::forward) fn words(router: &Router, d: usize, chunk: usize, beside: bool) -> usize {
        let both = if beside { chunk * d } else { 0 };
        // Two lists of choices and of slots by expert; `by_expert` grows by doubling.
        both + chunk * (2 * router.experts + router.top_k * d + 1)
            + 6 * chunk * router.top_k
            + 16 * router.experts
    }
}

/// Scratch of inputs of layers.
pub(in crate::model::forward) struct InputScratch<B: Backend> {
    /// `[chunk, layers, per_layer]`.
    pub(in crate::model::forward) all: B::Buf,
    /// What the embedded stream adds, as `all`; and its norm.
    pub(in crate::model::forward) projected: B::Buf,
    pub(in crate::model::forward) normed: B::Buf,
    /// `[chunk, per_layer]`.
    pub(in crate::model::forward) gated: B::Buf,
    /// Rows of `all` before those of the stream, where that was cut.
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

    /// Words of [`InputScratch::new`].
    pub(in crate::model::forward) fn words(spec: &Spec, chunk: usize) -> usize {
        chunk * (3 * spec.layers.len() + 1) * spec.per_layer
    }

    /// The first rows of the stream are gone.
    pub(in crate::model::forward) fn cut(&mut self, rows: usize) {
        self.cut = rows;
    }
}

/// Scratch of such layers.
pub(in crate::model::forward) struct DeltaScratch<B: Backend> {
    /// Queries, keys and values, `[chunk, channels]`.
    pub(in crate::model::forward) qkv: B::Buf,
    /// The same behind the convolution.
    pub(in crate::model::forward) mixed: B::Buf,
    /// `[chunk, v_heads · v_dim]`.
    pub(in crate::model::forward) z: B::Buf,
    /// `[chunk, v_heads]`.
    pub(in crate::model::forward) beta: B::Buf,
    /// `[chunk, v_heads]`.
    pub(in crate::model::forward) alpha: B::Buf,
    /// `[chunk, v_heads · v_dim]`.
    pub(in crate::model::forward) out: B::Buf,
}

impl<B: Backend> DeltaScratch<B> {
    /// Where the model has such layers.
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
            alpha: backend.alloc(chunk * d.v_heads)?,
            out: backend.alloc(chunk * d.width())?,
        }))
    }

    /// Words of [`DeltaScratch::new`].
    pub(in crate::model::forward) fn words(spec: &Spec, chunk: usize) -> usize {
        spec.delta().map_or(0, |d| chunk * 2 * (d.channels() + d.width() + d.v_heads))
    }
}
