//! The port between the model and whatever provides experts, and where experts lie in a file.
//!
//! The model asks for the experts of a layer and computes each one when the source hands it over; it never learns
//! whether the weights were resident, mapped or just read. [`AllResident`] is the trivial source and, because results
//! may not depend on the source (R2), the oracle for every other one.

use crate::bytes::Bytes;
use crate::error::Result;
use crate::quant::{Fit, Fits, Level, Matrix, Nested, PLANES, Rotation, Shape};

/// The weights of one expert: `down · (act(gate · x) ⊙ (up · x))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[ff, d]`.
    pub gate: Matrix,
    /// `[ff, d]`.
    pub up: Matrix,
    /// `[d, ff]`.
    pub down: Matrix,
    /// Where a device keeps it, among as many places as its layer has there, if whoever provides it decides that: the device
    /// has whatever planes are not here.
    pub place: Option<u32>,
}

/// What the router wants of one expert for the tokens in hand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wanted {
    /// The expert within the layer.
    pub expert: u32,
    /// Its gate weights summed over those tokens.
    pub gate: f32,
    /// The squares of its gate weights summed over those tokens: how much its error counts in the layer's output.
    pub energy: f32,
    /// How many of the tokens chose it.
    pub tokens: u32,
}

/// Appends what the next layer will probably want.
pub type Guess<'a> = &'a mut dyn FnMut(&mut Vec<Wanted>) -> Result<()>;

/// What may be done while experts are read. It changes no result, only what is in memory or in a cache by then.
#[derive(Default)]
pub struct Meanwhile<'a> {
    /// For whoever reads ahead; called once at most.
    pub guess: Option<Guess<'a>>,
    /// Called once at most, before the first wait: who computes has nothing else to do.
    pub idle: Option<&'a mut dyn FnMut()>,
}

/// Provides experts to the model.
pub trait ExpertSource: Send + Sync {
    /// Calls `compute` with the index into `wanted` and the weights, once for every wanted expert, in batches as they
    /// become usable. The weights stay valid for the duration of the call only.
    ///
    /// # Errors
    /// Those of `compute` and `meanwhile`, and of reading weights from storage.
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        meanwhile: Meanwhile,
    ) -> Result<()>;

    /// The level at which `serve` hands out experts, where that is one fixed level.
    fn level(&self) -> Option<Level>;

    /// Whether each expert of a layer could be handed out without reading anything. All of them, unless said otherwise.
    fn resident(&self, layer: usize, out: &mut [bool]) {
        let _ = layer;
        out.fill(true);
    }

    /// All experts of a layer, where every one is in memory at one level for good: a backend may then choose and compute
    /// them without asking.
    fn all(&self, layer: usize) -> Option<&[Expert]> {
        let _ = layer;
        None
    }

    /// Who gives some of [`ExpertSource::all`] a plane more, where somebody does.
    fn refine(&self) -> Option<&dyn Refine> {
        None
    }

    /// The device that kept the experts is gone: from now on they are kept on the host, in `bytes` of memory, of which nothing
    /// is in use at first. Nothing where they are there anyway.
    ///
    /// # Errors
    /// `Invalid` where that is too little, or the system has no such memory.
    fn keep_on_host(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }
}

/// Gives the hottest of a layer's experts, which a device holds all at one level, their next plane. Nothing waits for it:
/// what the router chose is learned when a token's logits are read back, and what follows from that takes effect some
/// tokens later.
pub trait Refine: Send + Sync {
    /// Before some tokens are computed: hands over what is to change, in order.
    ///
    /// # Errors
    /// Those of `apply`, and of reading planes. Whoever should have had a plane that could not be read goes on without it.
    fn begin(&self, apply: &mut dyn FnMut(&Refinement) -> Result<()>) -> Result<()>;

    /// After `tokens` tokens were computed: what the last `seen` of them chose, in all layers.
    fn end(&self, tokens: usize, seen: usize, chosen: &mut dyn Iterator<Item = Chosen>);

    /// The device is gone: nothing is read or decided any more, and the memory that planes passed through is given back.
    /// [`ExpertSource::refine`] is `None` from now on.
    fn stop(&self);
}

/// An expert gets one plane more than all experts of its layer have.
#[derive(Clone, Copy, Debug)]
pub struct Refinement<'a> {
    /// The layer.
    pub layer: usize,
    /// Where the layer keeps the plane, among as many places as it has for such. Whoever had this place has it no longer.
    pub slot: usize,
    /// The expert.
    pub expert: u32,
    /// Corrections of gate, up and down at the level that it then has.
    pub fits: [Fit; 3],
    /// The plane: gate, up, down.
    pub plane: &'a [u8],
}

/// A choice of a layer's router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Chosen {
    /// The layer.
    pub layer: usize,
    /// The expert within the layer.
    pub expert: u32,
    /// Its weight in the sum.
    pub gate: f32,
}

impl<T: ExpertSource + ?Sized> ExpertSource for std::sync::Arc<T> {
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        meanwhile: Meanwhile,
    ) -> Result<()> {
        (**self).serve(layer, wanted, compute, meanwhile)
    }

    fn level(&self) -> Option<Level> {
        (**self).level()
    }

    fn resident(&self, layer: usize, out: &mut [bool]) {
        (**self).resident(layer, out);
    }

    fn all(&self, layer: usize) -> Option<&[Expert]> {
        (**self).all(layer)
    }

    fn refine(&self) -> Option<&dyn Refine> {
        (**self).refine()
    }

    fn keep_on_host(&self, bytes: u64) -> Result<()> {
        (**self).keep_on_host(bytes)
    }
}

/// One plane of all experts of a layer, as it lies in a file.
#[derive(Clone, Debug)]
pub struct PlaneSlabs {
    /// Where the slab of expert 0 begins.
    pub offset: u64,
    /// From one slab to the next: the bytes of a slab, padding included.
    pub stride: usize,
    /// CRC-32 of every expert's slab, padding included.
    pub checksums: Vec<u32>,
}

/// Where the experts of one layer lie, and what their bits mean.
#[derive(Clone, Debug)]
pub struct LayerExperts {
    /// Of gate, up and down, which lie in a slab in this order.
    pub shapes: [Shape; 3],
    /// What the inputs of gate, up and down are rotated by; those of the first two are the same.
    pub rotations: [Option<Rotation>; 3],
    /// Corrections of every expert's gate, up and down.
    pub fits: Vec<[Fits; 3]>,
    /// Squared error of every expert at every level, relative to its weights' energy, averaged over its three matrices.
    pub errors: Vec<[f32; PLANES]>,
    /// The planes stored, lowest first.
    pub planes: Vec<PlaneSlabs>,
}

impl LayerExperts {
    /// Number of experts.
    pub fn count(&self) -> usize {
        self.fits.len()
    }

    /// The highest level stored.
    pub fn level(&self) -> Level {
        Level::ALL[self.planes.len() - 1]
    }

    /// Bytes of one expert's plane `p` in memory.
    pub fn plane_bytes(&self, p: usize) -> usize {
        self.planes[p].stride
    }

    /// Bytes of one expert at `level`.
    pub fn expert_bytes(&self, level: Level) -> usize {
        (0..level.planes()).map(|p| self.plane_bytes(p)).sum()
    }

    /// Bytes of one expert at `level` on a device, where nothing is padded.
    pub fn device_bytes(&self, level: Level) -> usize {
        let planes = |shape: &Shape| -> usize { (0..level.planes()).map(|p| shape.plane(p).len).sum() };
        self.shapes.iter().map(planes).sum()
    }

    /// An expert whose slabs are in memory, at the level that they complete.
    ///
    /// # Errors
    /// `Malformed` where a slab is too short.
    pub fn view(&self, expert: usize, slabs: &[Bytes]) -> Result<Expert> {
        self.view_at(expert, slabs, None)
    }

    /// [`LayerExperts::view`] of an expert that may have a place on a device, and has there whatever slabs are empty.
    ///
    /// # Errors
    /// As [`LayerExperts::view`].
    pub fn view_at(&self, expert: usize, slabs: &[Bytes], place: Option<u32>) -> Result<Expert> {
        let matrix = |m: usize| -> Result<Matrix> {
            let planes = slabs.iter().enumerate().map(|(p, slab)| {
                if slab.is_empty() && place.is_some() {
                    return Ok(Bytes::default());
                }
                let lens = self.shapes.map(|shape| shape.plane(p).len);
                let from: usize = lens[..m].iter().sum();
                slab.slice(from..from + lens[m]).ok_or_else(|| {
                    crate::error::Error::malformed(format!("plane {p}"), "a slab is too short")
                })
            });
            let planes = planes.collect::<Result<_>>()?;
            let nested = Nested::partly(self.shapes[m], planes, self.fits[expert][m])?;
            Ok(Matrix::Nested(nested.rotated(self.rotations[m])))
        };
        Ok(Expert { gate: matrix(0)?, up: matrix(1)?, down: matrix(2)?, place })
    }
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
        _: Meanwhile,
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

    fn all(&self, layer: usize) -> Option<&[Expert]> {
        self.layers.get(layer).map(Vec::as_slice)
    }
}
