//! Copies of what layers with a window see at the beginnings and ends of turns, on the host.
//!
//! A window's cache holds the newest positions alone, and an answer may be longer than that: with a copy a timeline goes back to
//! where the answer began. It is made where a turn begins or ends, never for every token.

use super::LayerMemory;
use crate::error::Result;
use crate::kernels::{Backend, KvCopy, KvPart};
use crate::model::memory::COPIES;

/// Bytes that are copied at a time.
const PART_BYTES: usize = 1 << 20;

/// The copies of one timeline, oldest first.
pub(super) struct WindowMarks {
    copies: Vec<Copy>,
    /// Of a number of keys and values.
    number_bytes: usize,
}

/// What all layers with a window see at a position.
struct Copy {
    at: usize,
    /// The parts of the layers, one behind the other.
    bytes: Vec<u8>,
}

impl WindowMarks {
    /// None yet, of a timeline that has layers whose caches are shorter than itself.
    pub(super) fn new(number_bytes: usize) -> WindowMarks {
        WindowMarks { copies: Vec::with_capacity(COPIES), number_bytes }
    }

    /// Positions that there are copies for.
    pub(super) fn positions(&self) -> impl Iterator<Item = usize> {
        self.copies.iter().map(|copy| copy.at)
    }

    /// The text behind `pos` is another from now on.
    pub(super) fn forget_behind(&mut self, pos: usize) {
        self.copies.retain(|copy| copy.at <= pos);
    }

    /// Of a layer whose cache is shorter than the context the parts that a token at `at` sees.
    fn parts<'a, B: Backend>(
        number_bytes: usize,
        memory: &'a LayerMemory<B>,
        at: usize,
    ) -> impl Iterator<Item = KvPart> + use<'a, B> {
        let spec = memory.bounded().into_iter();
        spec.flat_map(move |(spec, places)| {
            spec.shape(number_bytes).parts(spec.first(at)..at, [places; 2], PART_BYTES)
        })
    }

    /// Copies what is seen at `at`, in the place of the oldest copy where there are as many as there may be.
    ///
    /// # Errors
    /// Those of the backend; there is no copy then.
    pub(super) fn keep<B: Backend>(&mut self, b: &B, memory: &[LayerMemory<B>], at: usize) -> Result<()> {
        if let Some(i) = self.copies.iter().position(|copy| copy.at == at) {
            let newest = self.copies.remove(i);
            self.copies.push(newest);
            return Ok(());
        }
        let mut bytes = if self.copies.len() == COPIES { self.copies.remove(0).bytes } else { Vec::new() };
        bytes.clear();
        for layer in memory {
            for part in Self::parts(self.number_bytes, layer, at) {
                let from = bytes.len();
                bytes.resize(from + part.bytes(), 0);
                b.copy_kv(KvCopy::Out(layer.kv(), &mut bytes[from..]), &part)?;
            }
        }
        self.copies.push(Copy { at, bytes });
        Ok(())
    }

    /// Gives the layers back what they saw at `at`.
    ///
    /// # Errors
    /// Those of the backend.
    pub(super) fn restore<B: Backend>(&self, b: &B, memory: &mut [LayerMemory<B>], at: usize) -> Result<()> {
        let Some(copy) = self.copies.iter().find(|copy| copy.at == at) else { return Ok(()) };
        let mut rest = &copy.bytes[..];
        for layer in memory {
            let parts: Vec<KvPart> = Self::parts(self.number_bytes, layer, at).collect();
            for part in parts {
                let (now, later) = rest.split_at(part.bytes());
                b.copy_kv(KvCopy::In(layer.kv_mut(), now), &part)?;
                rest = later;
            }
        }
        Ok(())
    }
}
