//! Routed experts on the device. Each layer has slots of equal size in as few buffers as possible. With a table, `route`
//! turns a choice into a job without a round trip to the host.
//!
//! An expert is identified by its layer and index. Its bytes are those of the file, from whatever host slab, so identity
//! and number of planes describe a slot's contents. New planes are appended to the old ones. If a layer has fewer slots
//! than experts, the source assigns the slots ([`Expert::place`]); otherwise the slot is the expert's index. If a layer
//! has all its experts, some may have one more plane, which is stored elsewhere (`refinements.rs`).

mod refinements;

use super::device::{Device, Memory};
use super::params::*;
use super::recorder::Recorder;
use super::weights::{Form, bytes, pieces, tiles};
use crate::error::{Error, Result};
use crate::experts::{Expert, Refinement};
use crate::kernels::{ExpertJob, Routed};
use crate::quant::{Level, Matrix, Nested, Shape};
use refinements::Refinements;
use std::collections::HashMap;
use std::sync::Arc;

/// The matrices of an expert in a slot: gate, up, down.
pub(super) const MATRICES: usize = 3;

/// Limits for the experts on the device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes for all layers together; `None` for no limit.
    pub(super) bytes: Option<u64>,
    /// The number of routed layers, which share the bytes.
    pub(super) layers: usize,
    /// The highest level at which experts are read.
    pub(super) level: Level,
    /// Experts of a layer that may have one more plane, if all experts are on the device.
    pub(super) refinements: usize,
}

/// A layer with all its experts on the device.
pub(super) struct Loaded {
    /// The index of the layer's first entry in the table.
    pub(super) table: u32,
    pub(super) banks: Banks,
    /// The buffers of their refinements.
    pub(super) refinements: Option<Banks>,
}

/// The buffers of a layer's slots.
pub(super) type Banks = Arc<[Arc<Memory>]>;

/// Buffers for `slots` slots, and the number of slots per buffer: as many as kernels can bind at once.
///
/// # Errors
/// `Device` if there is not enough memory, or kernels cannot bind even one slot.
pub(super) fn banks(gpu: &Device, slots: usize, slot_bytes: usize, what: &str) -> Result<(Banks, usize)> {
    let each = (gpu.max_binding as usize / slot_bytes).min(slots);
    if each == 0 {
        return Err(Error::Device(format!(
            "{what}: one takes {} MB, more than the adapter's kernels can read at once",
            slot_bytes >> 20
        )));
    }
    let count = slots.div_ceil(each);
    if count > MAX_BANKS {
        return Err(Error::Device(format!("{what}: {count} buffers; there may be {MAX_BANKS}")));
    }
    let bank = |n: usize| gpu.memory((n * slot_bytes) as u64, what).map(Arc::new);
    let banks = (0..count).map(|i| bank(each.min(slots - i * each))).collect::<Result<_>>()?;
    Ok((banks, each))
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The expert in the slot.
    expert: Option<u32>,
    /// The expert's planes; 1 if it is unquantized.
    planes: usize,
}

struct Layer {
    /// The layer's first entry in the table.
    table: u32,
    banks: Banks,
    slots_per_bank: usize,
    slot_bytes: usize,
    /// The offset of each matrix in a slot.
    at: [usize; MATRICES],
    slots: Vec<Slot>,
    /// Indexed by expert.
    slot_of: Vec<Option<u32>>,
    /// The number of planes of every expert, if all experts are loaded.
    complete: Option<usize>,
    /// Set if there is room for refinements.
    refinements: Option<Refinements>,
}

pub(super) struct Experts {
    room: Room,
    layers: HashMap<usize, Layer>,
    pub(super) table: Memory,
    table_entries: usize,
}

/// An expert's entry in the table.
pub(super) type Entry = [u32; ENTRY_WORDS];

/// Entries of the table: the most experts in all layers together.
const TABLE_ENTRIES: usize = 1 << 16;

/// Bytes of the table.
pub(super) const TABLE_BYTES: usize = TABLE_ENTRIES * ENTRY_WORDS * 4;

/// Bytes of one matrix of an expert, with room for the planes up to `level`.
fn reserved(m: &Matrix, level: Level) -> usize {
    match m {
        Matrix::F32 { .. } => bytes(m, tiles(m)),
        Matrix::Nested(n) => (0..level.planes()).map(|p| device_plane(n, p)).sum(),
    }
}

/// Bytes of plane `p` on the device, where the last tile is padded.
pub(super) fn device_plane(n: &Nested, p: usize) -> usize {
    let shape = n.shape();
    Shape { rows: shape.tiles() * crate::quant::TILE_ROWS, ..shape }.plane(p).len
}

fn planes(e: &Expert) -> usize {
    match &e.up {
        Matrix::F32 { .. } => 1,
        Matrix::Nested(n) => n.level().planes(),
    }
}

/// Gate, up and down. Without a gate, up is also in its place.
pub(super) fn matrices(e: &Expert) -> [&Matrix; MATRICES] {
    [e.gate(), &e.up, &e.down]
}

impl Experts {
    pub(super) fn new(gpu: &Device, room: Room) -> Result<Experts> {
        let table = gpu.memory(TABLE_BYTES as u64, "the table of experts")?;
        Ok(Experts { room, layers: HashMap::new(), table, table_entries: 0 })
    }

    /// Drops all experts.
    pub(super) fn forget(&mut self) {
        self.layers.clear();
        self.table_entries = 0;
    }

    /// Creates a layer's slots when the layer is first used.
    fn open(&mut self, gpu: &Device, of: Routed, first: &Expert) -> Result<()> {
        if self.layers.contains_key(&of.layer) {
            return Ok(());
        }
        let mut sizes = matrices(first).map(|m| reserved(m, self.room.level.max(level(first))));
        sizes[0] *= usize::from(first.gate.is_some());
        let slot_bytes: usize = sizes.iter().sum();
        let share = self.room.bytes.map(|b| b as usize / self.room.layers.max(1));
        let slots = share.map_or(of.experts, |share| (share / slot_bytes).min(of.experts));
        if slots == 0 {
            return Err(Error::Device(format!("memory for no expert of layer {}", of.layer)));
        }
        if self.table_entries + of.experts > TABLE_ENTRIES {
            return Err(Error::Device(format!("more than {TABLE_ENTRIES} experts")));
        }
        let (banks, slots_per_bank) = banks(gpu, slots, slot_bytes, "experts")?;
        let room = self.room.refinements.min(of.experts);
        let refinements = match slots == of.experts {
            true => Refinements::new(gpu, first, room, of.experts)?,
            false => None,
        };
        let layer = Layer {
            table: self.table_entries as u32,
            banks,
            slots_per_bank,
            slot_bytes,
            at: [0, sizes[0], sizes[0] + sizes[1]],
            slots: vec![Slot::default(); slots],
            slot_of: vec![None; of.experts],
            complete: None,
            refinements,
        };
        self.table_entries += of.experts;
        self.layers.insert(of.layer, layer);
        Ok(())
    }

    /// Slots of a layer.
    fn slots(&mut self, gpu: &Device, of: Routed, first: &Expert) -> Result<usize> {
        self.open(gpu, of, first)?;
        Ok(self.layers[&of.layer].slots.len())
    }

    /// Uploads experts of a layer, each to its slot.
    pub(super) fn load(
        &mut self,
        gpu: &Device,
        recorder: &mut Recorder,
        of: Routed,
        experts: &[(u32, &Expert)],
    ) -> Result<()> {
        let Some(first) = experts.first() else { return Ok(()) };
        self.open(gpu, of, first.1)?;
        let layer = self.layers.get_mut(&of.layer).expect("was just opened");
        experts.iter().try_for_each(|&(index, expert)| layer.bring(gpu, recorder, index, expert, &self.table))
    }

    /// Uploads all experts of a layer, if all fit and have the same number of planes.
    pub(super) fn load_all(
        &mut self,
        gpu: &Device,
        recorder: &mut Recorder,
        of: Routed,
        experts: &[Expert],
    ) -> Result<Option<Loaded>> {
        let Some(first) = experts.first() else { return Ok(None) };
        // One launch computes all jobs with the same number of planes.
        if experts.iter().any(|e| planes(e) != planes(first)) || self.slots(gpu, of, first)? < experts.len() {
            return Ok(None);
        }
        if self.layers[&of.layer].complete != Some(planes(first)) {
            let all: Vec<(u32, &Expert)> = (0..).zip(experts).collect();
            self.load(gpu, recorder, of, &all)?;
            self.layers.get_mut(&of.layer).expect("is open").complete = Some(planes(first));
        }
        let layer = &self.layers[&of.layer];
        let refinements = layer.refinements.as_ref().map(|r| r.banks.clone());
        Ok(Some(Loaded { table: layer.table, banks: layer.banks.clone(), refinements }))
    }

    /// Gives an expert of a complete layer one more plane, and takes it from the expert that had this slot.
    ///
    /// Recorded commands are submitted first, so all writes happen after the commands of earlier submissions
    /// and before those of the next. No token reads a partial change: one in flight still reads the old
    /// plane. The old expert's table entry is written before the plane, the new expert's after it.
    pub(super) fn refine(&mut self, gpu: &Device, recorder: &mut Recorder, r: &Refinement) -> Result<()> {
        let layer = self.layers.get_mut(&r.layer);
        let Some((refinements, first)) = layer.and_then(|l| Some((l.refinements.as_mut()?, l.table))) else {
            return Ok(());
        };
        let table = &self.table;
        let enter = |recorder: &mut Recorder, expert: u32, entry: &Entry| {
            let at = (first + expert) as usize * ENTRY_WORDS * 4;
            recorder.write(gpu, table, at as u64, bytemuck::cast_slice(entry));
        };
        if let Some((loser, entry)) = refinements.leave(r.slot) {
            enter(recorder, loser, &entry);
        }
        let (memory, at, plane) = refinements.place(r)?;
        recorder.write(gpu, memory, at, plane);
        enter(recorder, r.expert, &refinements.enter(r));
        gpu.check()
    }

    /// The first words of a loaded expert's job, and the buffer of its matrices.
    pub(super) fn job(&self, layer: usize, job: &ExpertJob) -> ([u32; JOB_WORDS], Arc<Memory>) {
        let layer = &self.layers[&layer];
        let slot = layer.slot_of[job.index as usize].expect("was loaded");
        let (entry, bank) = layer.entry(slot, job.expert);
        let mut words = [0; JOB_WORDS];
        words[..ENTRY_WORDS].copy_from_slice(&entry);
        words[JOB_EXPERT] = job.index;
        (words, layer.banks[bank].clone())
    }
}

fn level(e: &Expert) -> Level {
    match &e.up {
        Matrix::F32 { .. } => Level::B2,
        Matrix::Nested(n) => n.level(),
    }
}

impl Layer {
    /// The entry of an expert in `slot`, read at the level of `expert`, and its bank.
    fn entry(&self, slot: u32, expert: &Expert) -> (Entry, usize) {
        let (bank, in_bank) = (slot as usize / self.slots_per_bank, slot as usize % self.slots_per_bank);
        let mut words = [0; ENTRY_WORDS];
        for (m, matrix) in matrices(expert).into_iter().enumerate() {
            let base = (in_bank * self.slot_bytes + self.at[m]) / 4;
            let form = Form::of(matrix, base as u32);
            words[m] = form.base;
            words[JOB_PLACE] = place(bank, 0, form.planes);
            words[JOB_FITS + 2 * m] = form.alpha.to_bits();
            words[JOB_FITS + 2 * m + 1] = form.centre.to_bits();
            words[JOB_TOPS + m] = NOWHERE;
        }
        (words, bank)
    }

    /// Uploads an expert's missing planes.
    fn bring(
        &mut self,
        gpu: &Device,
        recorder: &mut Recorder,
        index: u32,
        expert: &Expert,
        table: &Memory,
    ) -> Result<()> {
        let wanted = planes(expert);
        let slot = expert.place.unwrap_or(index);
        self.settle(index, slot)?;
        let have = self.slots[slot as usize].planes;
        if have >= wanted {
            return Ok(());
        }
        let lacks = |m: &Matrix| matches!(m, Matrix::Nested(n) if (have..wanted).any(|p| !n.has(p)));
        if matrices(expert).into_iter().any(lacks) {
            return Err(Error::Device(format!(
                "planes of expert {index} are neither here nor on the device"
            )));
        }
        let (entry, bank) = self.entry(slot, expert);
        let start = slot as usize % self.slots_per_bank * self.slot_bytes;
        let unstored = usize::from(expert.gate.is_none());
        for (m, matrix) in matrices(expert).into_iter().enumerate().skip(unstored) {
            let base = (start + self.at[m]) as u64;
            pieces(matrix, 0, tiles(matrix), have, &mut |at, bytes| {
                recorder.write(gpu, &self.banks[bank], base + at as u64, bytes);
            });
        }
        let at = (self.table as usize + index as usize) * ENTRY_WORDS * 4;
        recorder.write(gpu, table, at as u64, bytemuck::cast_slice(&entry));
        if let Some(refinements) = &mut self.refinements {
            refinements.base(index, entry);
        }
        self.slots[slot as usize].planes = wanted;
        gpu.check()
    }

    /// Assigns a slot to an expert. The slot's former expert and the expert's former slot are cleared.
    fn settle(&mut self, index: u32, slot: u32) -> Result<()> {
        let count = self.slots.len();
        let there = self
            .slots
            .get_mut(slot as usize)
            .ok_or_else(|| Error::Device(format!("slot {slot} for expert {index}: the layer has {count}")))?;
        if there.expert == Some(index) {
            return Ok(());
        }
        let loser = std::mem::replace(there, Slot { expert: Some(index), planes: 0 }).expert;
        if let Some(loser) = loser {
            self.slot_of[loser as usize] = None;
            self.complete = None;
        }
        if let Some(old) = self.slot_of[index as usize].replace(slot) {
            self.slots[old as usize] = Slot::default();
        }
        Ok(())
    }
}
