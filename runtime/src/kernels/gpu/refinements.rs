//! Planes that some experts of a layer have beyond those that all have: places of equal size in as few buffers as can be
//! bound, and who has which.
//!
//! What an expert without one looks like in the table is kept, to be written again when it loses its plane. Who should
//! have a plane is decided elsewhere.

use super::device::{Device, Memory};
use super::experts::{Banks, Entry, MATRICES, banks, device_plane, matrices};
use super::params::{ENTRY_WORDS, JOB_FITS, JOB_PLACE, JOB_TOPS, place};
use super::weights::centred;
use crate::error::{Error, Result};
use crate::experts::{Expert, Refinement};
use crate::quant::{Matrix, PLANES};

pub(super) struct Refinements {
    pub(super) banks: Banks,
    slots_per_bank: usize,
    slot_bytes: usize,
    /// Where each matrix begins in a place.
    at: [usize; MATRICES],
    /// By place: whose entry in the table names it.
    holders: Vec<Option<u32>>,
    /// By expert: its entry without a refinement.
    bases: Vec<Entry>,
}

impl Refinements {
    /// `slots` places for the next plane of experts like `first`; `None` where there are none, or no next plane.
    ///
    /// # Errors
    /// `Device` where the device has no room.
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
        let slot_bytes: usize = sizes.iter().sum();
        let (banks, slots_per_bank) = banks(gpu, slots, slot_bytes, "refinements")?;
        let at = [0, sizes[0], sizes[0] + sizes[1]];
        let (holders, bases) = (vec![None; slots], vec![[0; ENTRY_WORDS]; experts]);
        Ok(Some(Refinements { banks, slots_per_bank, slot_bytes, at, holders, bases }))
    }

    /// An expert's entry without a refinement.
    pub(super) fn base(&mut self, expert: u32, entry: Entry) {
        self.bases[expert as usize] = entry;
    }

    /// Empties a place: who has lost it, and the entry that is left.
    pub(super) fn leave(&mut self, slot: usize) -> Option<(u32, Entry)> {
        let loser = self.holders.get_mut(slot)?.take()?;
        Some((loser, self.bases[loser as usize]))
    }

    /// Where a place lies: the number of its buffer, and the byte at which it begins there.
    fn find(&self, slot: usize) -> (usize, usize) {
        (slot / self.slots_per_bank, slot % self.slots_per_bank * self.slot_bytes)
    }

    /// Where a plane goes, and its bytes.
    ///
    /// # Errors
    /// `Device` where it is shorter than its experts' planes are, or there is no such place.
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

    /// An expert has its plane in a place; what its entry is then.
    pub(super) fn enter(&mut self, r: &Refinement) -> Entry {
        // One that it had elsewhere is nobody's now.
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
