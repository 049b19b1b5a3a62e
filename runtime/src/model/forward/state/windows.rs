//! Copies, on the host, of the keys and values that window layers see at the beginnings and ends of turns.
//!
//! A window layer's cache holds only the newest positions, and an answer may be longer. With a copy, a
//! timeline can rewind to where the answer began. Copies are made only at the beginning and end of a turn,
//! not per token.

use super::LayerMemory;
use crate::error::Result;
use crate::kernels::{Backend, KvCopy, KvPart};
use crate::model::memory::COPIES;

/// The most bytes copied at once.
const PART_BYTES: usize = 1 << 20;

/// The copies of one timeline, oldest first.
pub(super) struct WindowMarks {
    copies: Vec<Copy>,
    /// Bytes per number in the KV cache.
    number_bytes: usize,
}

/// The keys and values that all window layers see at one position.
struct Copy {
    at: usize,
    /// The parts of all layers, concatenated.
    bytes: Vec<u8>,
}

impl WindowMarks {
    /// No copies yet, for a timeline with window layers whose caches are shorter than the context.
    pub(super) fn new(number_bytes: usize) -> WindowMarks {
        WindowMarks { copies: Vec::with_capacity(COPIES), number_bytes }
    }

    /// The positions that have copies.
    pub(super) fn positions(&self) -> impl Iterator<Item = usize> {
        self.copies.iter().map(|copy| copy.at)
    }

    /// Drops the copies after `pos`, because the text there changes.
    pub(super) fn forget_behind(&mut self, pos: usize) {
        self.copies.retain(|copy| copy.at <= pos);
    }

    /// The parts of a layer's cache that a token at `at` sees; none if the cache is as long as the context.
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

    /// Copies what is visible at `at`. If [`COPIES`] exist, this replaces the oldest.
    ///
    /// # Errors
    /// Those of the backend. No copy is made then.
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

    /// Writes back what the layers saw at `at`.
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
