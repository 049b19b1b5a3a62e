//! Planes that some experts of a layer have beyond the common ones: slots of equal size in as few buffers as
//! possible, and the assignment of slots to experts.
//!
//! The table entry of an unrefined expert is kept, and written again when the expert loses its plane. Other
//! code chooses the experts that get a plane.

use super::{Banks, Entry, MATRICES, banks, device_plane, matrices};
use crate::error::{Error, Result};
use crate::experts::{Expert, Refinement};
use crate::kernels::gpu::device::{Device, Memory};
use crate::kernels::gpu::params::{ENTRY_WORDS, JOB_FITS, JOB_PLACE, JOB_TOPS, place};
use crate::kernels::gpu::weights::centred;
use crate::quant::{Matrix, PLANES};

pub(super) struct Refinements {
    pub(super) banks: Banks,
    slots_per_bank: usize,
    slot_bytes: usize,
    /// The offset of each matrix in a slot.
    at: [usize; MATRICES],
    /// Indexed by slot: the expert whose table entry points to it.
    holders: Vec<Option<u32>>,
    /// Indexed by expert: its entry without a refinement.
    bases: Vec<Entry>,
}

impl Refinements {
    /// `slots` slots for the next plane of experts like `first`; `None` if there are no slots, or no next plane.
    ///
    /// # Errors
    /// `Device` if there is not enough memory.
    pub(super) fn new(
        gpu: &Device,
        first: &Expert,
        slots: usize,
        experts: usize,
    ) -> Result<Option<Refinements>> {
        let mut sizes = [0; MATRICES];
        for (size, matrix) in sizes.iter_mut().zip(matrices(first)) {
            let Matrix::Nested(n) = matrix else { return Ok(None) };
            if slots == 0 || n.level().planes() == PLANES {
                return Ok(None);
            }
            *size = device_plane(n, n.level().planes());
        }
        sizes[0] *= usize::from(first.gate.is_some());
        let slot_bytes: usize = sizes.iter().sum();
        let (banks, slots_per_bank) = banks(gpu, slots, slot_bytes, "refinements")?;
        let at = [0, sizes[0], sizes[0] + sizes[1]];
        let (holders, bases) = (vec![None; slots], vec![[0; ENTRY_WORDS]; experts]);
        Ok(Some(Refinements { banks, slots_per_bank, slot_bytes, at, holders, bases }))
    }

    /// Stores an expert's entry without a refinement.
    pub(super) fn base(&mut self, expert: u32, entry: Entry) {
        self.bases[expert as usize] = entry;
    }

    /// Empties a slot; returns the expert that lost it and the entry to restore.
    pub(super) fn leave(&mut self, slot: usize) -> Option<(u32, Entry)> {
        let loser = self.holders.get_mut(slot)?.take()?;
        Some((loser, self.bases[loser as usize]))
    }

    /// The index of a slot's buffer, and the slot's first byte in it.
    fn find(&self, slot: usize) -> (usize, usize) {
        (slot / self.slots_per_bank, slot % self.slots_per_bank * self.slot_bytes)
    }

    /// Where to write a plane, and its bytes.
    ///
    /// # Errors
    /// `Device` if the plane is too short, or there is no such slot.
    pub(super) fn place<'a>(&self, r: &Refinement<'a>) -> Result<(&Memory, u64, &'a [u8])> {
        match r.plane.get(..self.slot_bytes) {
            Some(plane) if r.slot < self.holders.len() => {
                let (bank, at) = self.find(r.slot);
                Ok((&self.banks[bank], at as u64, plane))
            }
            _ => Err(Error::Device(format!(
                "{} bytes for refinement {} of layer {}: there are {} places of {} bytes",
                r.plane.len(),
                r.slot,
                r.layer,
                self.holders.len(),
                self.slot_bytes
            ))),
        }
    }

    /// Assigns a slot to an expert that has its plane there; returns its new entry.
    pub(super) fn enter(&mut self, r: &Refinement) -> Entry {
        // If it had another slot before, that slot becomes free.
        self.holders.iter_mut().filter(|h| **h == Some(r.expert)).for_each(|h| *h = None);
        self.holders[r.slot] = Some(r.expert);
        let mut entry = self.bases[r.expert as usize];
        let (bank, start) = self.find(r.slot);
        entry[JOB_PLACE] |= place(0, bank, 0);
        for (m, fit) in r.fits.iter().enumerate() {
            entry[JOB_FITS + 2 * m..][..2].copy_from_slice(&centred(*fit).map(f32::to_bits));
            entry[JOB_TOPS + m] = ((start + self.at[m]) / 4) as u32;
        }
        entry
    }
}
