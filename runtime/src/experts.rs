//! The port between the model and whatever provides experts.
//!
//! The model asks for the experts of a layer and computes each one when the source hands it over; it never learns
//! whether the weights were resident, mapped or just read. [`AllResident`] is the trivial source and, because results
//! may not depend on the source (R2), the oracle for every other one.

use crate::error::Result;
use crate::quant::{Level, Matrix};

/// The weights of one expert: `down · (act(gate · x) ⊙ (up · x))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[ff, d]`.
    pub gate: Matrix,
    /// `[ff, d]`.
    pub up: Matrix,
    /// `[d, ff]`.
    pub down: Matrix,
}

/// What the router wants of one expert for the tokens in hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// The expert within the layer.
    pub expert: u32,
    /// Its gate weights summed over those tokens: how much its precision matters.
    pub gate: f32,
    /// How many of the tokens chose it.
    pub tokens: u32,
}

/// Provides experts to the model.
pub trait ExpertSource: Send + Sync {
    /// Calls `compute` with the index into `wanted` and the weights, once for every wanted expert, in batches as they
    /// become usable. The weights stay valid for the duration of the call only.
    ///
    /// # Errors
    /// Those of `compute`, and of reading weights from storage.
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
    ) -> Result<()>;

    /// The level at which `serve` hands out experts, where that is one fixed level.
    fn level(&self) -> Option<Level>;
}

/// Every expert of every layer, in memory or mapped.
pub struct AllResident {
    layers: Vec<Vec<Expert>>,
    level: Option<Level>,
}

impl AllResident {
    /// `layers[l]` are the experts of block `l`, empty where the block is dense; `level` is what they are read at.
    pub fn new(layers: Vec<Vec<Expert>>, level: Option<Level>) -> Self {
        AllResident { layers, level }
    }
}

impl ExpertSource for AllResident {
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
    ) -> Result<()> {
        let experts = &self.layers[layer];
        // Lists on the stack: decoding allocates nothing.
        const BATCH: usize = 64;
        for (n, wanted) in wanted.chunks(BATCH).enumerate() {
            let mut batch = [(0, &experts[wanted[0].expert as usize]); BATCH];
            for (i, (to, wanted)) in batch.iter_mut().zip(wanted).enumerate() {
                *to = (n * BATCH + i, &experts[wanted.expert as usize]);
            }
            compute(&batch[..wanted.len()])?;
        }
        Ok(())
    }

    fn level(&self) -> Option<Level> {
        self.level
    }
}
