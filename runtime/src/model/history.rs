//! Records which experts the routers of a call chose, so that the cache and the refiner can learn from it. A
//! device writes the choices layer by layer. The host reads them together with the first logits, so that this
//! costs no extra wait.

use crate::error::{Error, Result};
use crate::experts::{Chosen, Refine};
use crate::kernels::{Backend, History, MANY, Router};

/// Only this many last tokens of a call are recorded. Heat halves within a few tokens, and no piece of a
/// prompt is shorter. So the result does not depend on how a prompt was cut.
const TOKENS: usize = MANY;

/// Values per choice: the expert and its gate.
const CHOICE: usize = 2;

/// The recorded choices of one call.
pub(super) struct Noted<B: Backend> {
    router: Router,
    /// `[layers, tokens, top_k, 2]`.
    buf: B::Buf,
    /// `buf`, copied to the host.
    host: Vec<f32>,
    /// Recorded tokens of this call.
    tokens: usize,
    /// Layers whose choices were recorded. Dense layers are not, nor layers whose experts came through
    /// `serve`.
    layers: Vec<bool>,
    read: bool,
}

/// Values of one layer's choices, for calls of up to `chunk` tokens.
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

    /// Bytes that [`Noted::new`] takes: on the device, on the host, and in the staging buffer between them.
    pub(super) fn bytes(layers: usize, top_k: usize, chunk: usize) -> usize {
        3 * 4 * layers * layer_values(top_k, chunk) + layers
    }

    /// Starts a call of `tokens` tokens.
    pub(super) fn begin(&mut self, tokens: usize) {
        self.tokens = tokens.min(TOKENS);
        self.layers.fill(false);
        self.read = false;
    }

    /// Where the backend writes a layer's choices.
    pub(super) fn of(&mut self, layer: usize) -> History<'_, B::Buf> {
        let at = layer * layer_values(self.router.top_k, self.tokens);
        History { buf: &mut self.buf, at, tokens: self.tokens }
    }

    /// Records that a layer's choices were written.
    pub(super) fn done(&mut self, layer: usize) {
        self.layers[layer] = true;
    }

    /// The buffer to download with the call's first result; `None` if it is already read or empty.
    pub(super) fn unread(&mut self) -> Option<(&B::Buf, usize, &mut [f32])> {
        if std::mem::replace(&mut self.read, true) || !self.layers.contains(&true) {
            return None;
        }
        let values = self.layers.len() * layer_values(self.router.top_k, self.tokens);
        Some((&self.buf, 0, &mut self.host[..values]))
    }

    /// Passes the choices to `refine`, if they were read.
    ///
    /// # Errors
    /// `Device` if an expert index is out of range: indices from a device are checked before use.
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
