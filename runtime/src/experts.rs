//! The trait through which the model gets experts, and the description of where experts lie in a file.
//!
//! The model requests the experts of a layer and computes each one when the source hands it over. It never learns
//! whether the weights were resident, mapped or just read. [`AllResident`] is the trivial source and, because results
//! may not depend on the source (R2), the oracle for every other one.

use crate::bytes::Bytes;
use crate::error::Result;
use crate::quant::{Fit, Fits, Level, Matrix, Nested, PLANES, Rotation, Shape};

/// The weights of one expert: `down · (act(gate · x) ⊙ (up · x))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[ff, d]`; `None` if `up` is also the gate: `down · (act(up · x) ⊙ (up · x))`.
    pub gate: Option<Matrix>,
    /// `[ff, d]`.
    pub up: Matrix,
    /// `[d, ff]`.
    pub down: Matrix,
    /// The expert's slot in its layer's memory on a device, if the source chooses it. The device then holds every plane
    /// that is missing here.
    pub place: Option<u32>,
}

impl Expert {
    /// The matrix whose product goes through the activation.
    pub fn gate(&self) -> &Matrix {
        self.gate.as_ref().unwrap_or(&self.up)
    }

    /// The stored matrices: gate, if there is one, up and down.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.gate.iter().chain([&self.up, &self.down])
    }

    /// [`Expert::matrices`], mutable.
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        self.gate.iter_mut().chain([&mut self.up, &mut self.down])
    }
}

/// What the router wants from one expert for the current tokens.
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

/// Appends the experts that the next layer will probably want.
pub type Guess<'a> = &'a mut dyn FnMut(&mut Vec<Wanted>) -> Result<()>;

/// Work that may be done while experts are read. It changes no result, only what is in memory or in a cache by then.
#[derive(Default)]
pub struct Meanwhile<'a> {
    /// For prefetching; called once at most.
    pub guess: Option<Guess<'a>>,
    /// Called once at most, before the first wait, when the computing thread would be idle.
    pub idle: Option<&'a mut dyn FnMut()>,
}

/// Where the forward pass gets a layer's experts.
pub trait ExpertSource: Send + Sync {
    /// Calls `compute` with the index into `wanted` and the weights, once for every wanted expert, in batches as they
    /// become usable. The weights are valid only during the call.
    ///
    /// # Errors
    /// Errors of `compute` and `meanwhile`, and of reading weights from storage.
    fn serve(
        &self,
        layer: usize,
        wanted: &[Wanted],
        compute: &mut dyn FnMut(&[(usize, &Expert)]) -> Result<()>,
        meanwhile: Meanwhile,
    ) -> Result<()>;

    /// The layer's next tokens will need what `guess` says, at the next `serve` of this layer: reads may begin. By default
    /// nothing happens, and `guess` is not called.
    ///
    /// # Errors
    /// Errors of `guess`.
    fn announce(&self, layer: usize, guess: Guess) -> Result<()> {
        let _ = (layer, guess);
        Ok(())
    }

    /// The level at which `serve` hands out experts; `None` if levels vary.
    fn level(&self) -> Option<Level>;

    /// Whether each expert of a layer could be handed out without a read. By default all of them.
    fn resident(&self, layer: usize, out: &mut [bool]) {
        let _ = layer;
        out.fill(true);
    }

    /// All experts of a layer, if every one is in memory at one level for good: a backend may then choose and compute
    /// them without calling [`ExpertSource::serve`].
    fn all(&self, layer: usize) -> Option<&[Expert]> {
        let _ = layer;
        None
    }

    /// Refines some of [`ExpertSource::all`] by one more plane, if the source supports that.
    fn refine(&self) -> Option<&dyn Refine> {
        None
    }

    /// The device that kept the experts is lost: the source moves to the host, with an empty cache of `bytes`. Does
    /// nothing if the experts are on the host already.
    ///
    /// # Errors
    /// `Invalid` if `bytes` is too little, or the system has not enough memory.
    fn keep_on_host(&self, bytes: u64) -> Result<()> {
        let _ = bytes;
        Ok(())
    }
}

/// Gives the hottest experts of a layer their next plane. A device already holds all of them at one common
/// level. No token waits for a decision: a token's choices are read back with its logits, and the resulting
/// planes take effect some tokens later.
pub trait Refine: Send + Sync {
    /// Called before tokens are computed. Passes the due changes to `apply`, in order.
    ///
    /// # Errors
    /// Errors of `apply`, and of reading planes. An expert whose plane could not be read stays without it.
    fn begin(&self, apply: &mut dyn FnMut(&Refinement) -> Result<()>) -> Result<()>;

    /// Called after `tokens` tokens were computed. `chosen` are the choices of the last `seen` of them, in
    /// all layers.
    fn end(&self, tokens: usize, seen: usize, chosen: &mut dyn Iterator<Item = Chosen>);

    /// The device is lost: reads and decisions stop, and the staging memory is freed. [`ExpertSource::refine`] is
    /// `None` from now on.
    fn stop(&self);
}

/// Gives an expert one plane more than its layer's common level.
#[derive(Clone, Copy, Debug)]
pub struct Refinement<'a> {
    /// The layer.
    pub layer: usize,
    /// The plane's slot among the layer's slots for extra planes. The expert that had the slot loses its
    /// plane.
    pub slot: usize,
    /// The expert.
    pub expert: u32,
    /// Scale corrections of gate, up and down at the new level.
    pub fits: [Fit; 3],
    /// The bytes of the plane: gate (if stored), up, down.
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

    fn announce(&self, layer: usize, guess: Guess) -> Result<()> {
        (**self).announce(layer, guess)
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
    /// File offset of the first slab.
    pub offset: u64,
    /// Distance between slabs: the bytes of one slab, padding included.
    pub stride: usize,
    /// CRC-32 of every slab, padding included.
    pub checksums: Vec<u32>,
    /// The slab index of each expert, if experts are stored at different levels. Otherwise empty, and the
    /// slabs are in expert order.
    pub slots: Vec<Option<u32>>,
}

impl PlaneSlabs {
    /// File offset and checksum of an expert's slab; `None` if the expert is stored without this plane.
    pub fn slab(&self, expert: usize) -> Option<(u64, u32)> {
        let slot = match self.slots.get(expert) {
            Some(slot) => (*slot)? as usize,
            None => expert,
        };
        Some((self.offset + (slot * self.stride) as u64, *self.checksums.get(slot)?))
    }
}

/// Where the experts of one layer lie in the file, and how to decode them.
#[derive(Clone, Debug)]
pub struct LayerExperts {
    /// Whether experts have a gate of their own. If not, the entries for gates repeat those for ups.
    pub gated: bool,
    /// Shapes of gate, up and down. A slab stores them in this order.
    pub shapes: [Shape; 3],
    /// Rotations of the inputs of gate, up and down. Gate and up share one rotation.
    pub rotations: [Option<Rotation>; 3],
    /// Scale corrections of every expert's gate, up and down.
    pub fits: Vec<[Fits; 3]>,
    /// Squared error of every expert at every level, relative to its weights' energy, averaged over its matrices.
    pub errors: Vec<[f32; PLANES]>,
    /// The stored planes, lowest first. All experts have the first.
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

    /// How many planes of an expert are stored.
    pub fn stored(&self, expert: usize) -> usize {
        self.planes.iter().take_while(|plane| plane.slab(expert).is_some()).count()
    }

    /// Whether experts are stored at different levels.
    pub fn is_uneven(&self) -> bool {
        self.planes.iter().any(|plane| !plane.slots.is_empty())
    }

    /// Bytes of all experts at `level`, or at their highest stored level if that is lower.
    pub fn total_bytes(&self, level: Level) -> usize {
        let planes = self.planes.iter().take(level.planes());
        planes.map(|plane| plane.stride * plane.checksums.len()).sum()
    }

    /// Bytes of one expert's plane `p` in memory.
    pub fn plane_bytes(&self, p: usize) -> usize {
        self.planes[p].stride
    }

    /// Bytes of one expert with all planes up to `level` that the layer stores.
    pub fn expert_bytes(&self, level: Level) -> usize {
        (0..level.planes().min(self.planes.len())).map(|p| self.plane_bytes(p)).sum()
    }

    /// Shapes of the stored matrices, in the order in which a slab stores them.
    pub fn stored_shapes(&self) -> &[Shape] {
        &self.shapes[usize::from(!self.gated)..]
    }

    /// Bytes of one expert at `level` on a device, where slabs have no padding.
    pub fn device_bytes(&self, level: Level) -> usize {
        let planes = |shape: &Shape| -> usize { (0..level.planes()).map(|p| shape.plane(p).len).sum() };
        self.stored_shapes().iter().map(planes).sum()
    }

    /// An expert with its slabs in memory, at the level of its last slab.
    ///
    /// # Errors
    /// `Malformed` if a slab is too short.
    pub fn view(&self, expert: usize, slabs: &[Bytes]) -> Result<Expert> {
        self.view_at(expert, slabs, None)
    }

    /// Like [`LayerExperts::view`], but `place` may name a slot on a device. The device then holds the planes
    /// whose slabs are empty.
    ///
    /// # Errors
    /// Those of [`LayerExperts::view`].
    pub fn view_at(&self, expert: usize, slabs: &[Bytes], place: Option<u32>) -> Result<Expert> {
        let matrix = |m: usize| -> Result<Matrix> {
            let planes = slabs.iter().enumerate().map(|(p, slab)| {
                if slab.is_empty() && place.is_some() {
                    return Ok(Bytes::default());
                }
                let len = |shape: &Shape| shape.plane(p).len;
                let from = self.shapes[usize::from(!self.gated)..m].iter().map(len).sum::<usize>();
                slab.slice(from..from + len(&self.shapes[m])).ok_or_else(|| {
                    crate::error::Error::malformed(format!("plane {p}"), "a slab is too short")
                })
            });
            let planes = planes.collect::<Result<_>>()?;
            let nested = Nested::partly(self.shapes[m], planes, self.fits[expert][m])?;
            Ok(Matrix::Nested(nested.rotated(self.rotations[m])))
        };
        let gate = self.gated.then(|| matrix(0)).transpose()?;
        Ok(Expert { gate, up: matrix(1)?, down: matrix(2)?, place })
    }
}

/// Every expert of every layer, in memory or mapped.
pub struct AllResident {
    layers: Vec<Vec<Expert>>,
    level: Option<Level>,
}

impl AllResident {
    /// `layers[l]` are the experts of layer `l`, empty for a dense layer; `level` is their level.
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
        // Batches are on the stack, because decoding must not allocate.
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

/// Reads rows of a matrix from storage. Any thread may call it; concurrent calls wait for each other.
pub trait Rows: Send + Sync {
    /// Number of rows.
    fn count(&self) -> usize;

    /// Reads the row of each of `tokens` (all below [`Rows::count`]). Calls `each` with the index in `tokens`
    /// and the row, in any order.
    ///
    /// # Errors
    /// `Io`. `each` may already have been called for some rows.
    fn read(&self, tokens: &[u32], each: &mut dyn FnMut(usize, &[f32])) -> Result<()>;

    /// Counters since the rows were opened.
    fn reads(&self) -> RowReads;
}

/// What reading rows cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowReads {
    /// Bytes read.
    pub bytes: u64,
    /// Nanoseconds in which computing waited for them.
    pub wait_ns: u64,
    /// Reads that were repeated.
    pub retries: u64,
}
