//! What the routers of a call chose, on its way back from a device: noted layer by layer, read together with the first
//! logits, so that learning from it costs no wait.

use crate::error::{Error, Result};
use crate::experts::{Chosen, Refine};
use crate::kernels::{Backend, History, MANY, Router};

/// Of a longer call so many last tokens are noted: heat halves in a few, and no piece of a prompt is shorter, so what is
/// learned from a prompt does not depend on how it was cut.
const TOKENS: usize = MANY;

/// Values of a choice: the expert and its gate.
const CHOICE: usize = 2;

/// The choices of a call.
pub(super) struct Noted<B: Backend> {
    router: Router,
    /// `[layers, tokens, top_k, 2]`.
    buf: B::Buf,
    /// The same where the host can read it.
    host: Vec<f32>,
    /// Tokens that are noted of this call.
    tokens: usize,
    /// Layers whose choices were noted: none of those that are dense, or whose experts were served.
    layers: Vec<bool>,
    read: bool,
}

/// Values of a layer's part for calls of up to `chunk` tokens.
fn layer_values(top_k: usize, chunk: usize) -> usize {
    chunk.min(TOKENS) * top_k * CHOICE
}

impl<B: Backend> Noted<B> {
    pub(super) fn new(backend: &B, layers: usize, router: Router, chunk: usize) -> Result<Noted<B>> {
        let values = layers * layer_values(router.top_k, chunk);
        Ok(Noted {
            router,
            buf: backend.alloc(values)?,
            host: vec![0.0; values],
            tokens: 0,
            layers: vec![false; layers],
            read: false,
        })
    }

    /// Bytes of [`Noted::new`], on the device and on the host, and of where they land between the two.
    pub(super) fn bytes(layers: usize, top_k: usize, chunk: usize) -> usize {
        3 * 4 * layers * layer_values(top_k, chunk) + layers
    }

    /// A call of so many tokens begins.
    pub(super) fn begin(&mut self, tokens: usize) {
        self.tokens = tokens.min(TOKENS);
        self.layers.fill(false);
        self.read = false;
    }

    /// Where a layer's choices are noted.
    pub(super) fn of(&mut self, layer: usize) -> History<'_, B::Buf> {
        let at = layer * layer_values(self.router.top_k, self.tokens);
        History { buf: &mut self.buf, at, tokens: self.tokens }
    }

    /// They have been.
    pub(super) fn done(&mut self, layer: usize) {
        self.layers[layer] = true;
    }

    /// What is to be downloaded with the call's first result.
    pub(super) fn unread(&mut self) -> Option<(&B::Buf, usize, &mut [f32])> {
        if std::mem::replace(&mut self.read, true) || !self.layers.contains(&true) {
            return None;
        }
        let values = self.layers.len() * layer_values(self.router.top_k, self.tokens);
        Some((&self.buf, 0, &mut self.host[..values]))
    }

    /// Tells what was chosen, where it was read.
    ///
    /// # Errors
    /// `Device` for a choice that cannot be: what came back from a device is not to be trusted with an index.
    pub(super) fn end(&self, refine: &dyn Refine, tokens: usize) -> Result<()> {
        if !self.read || !self.layers.contains(&true) {
            refine.end(tokens, 0, &mut std::iter::empty());
            return Ok(());
        }
        let layer_values = layer_values(self.router.top_k, self.tokens);
        let mut chosen = (self.host.chunks_exact(layer_values.max(1)).zip(&self.layers).enumerate())
            .filter(|(_, (_, done))| **done)
            .flat_map(|(layer, (values, _))| values.chunks_exact(CHOICE).map(move |c| (layer, c)))
            .map(|(layer, c)| Chosen { layer, expert: c[0].to_bits(), gate: c[1] });
        if let Some(c) = chosen.clone().find(|c| c.expert as usize >= self.router.experts) {
            return Err(Error::Device(format!("the router of layer {} chose expert {}", c.layer, c.expert)));
        }
        refine.end(tokens, self.tokens, &mut chosen);
        Ok(())
    }
}
