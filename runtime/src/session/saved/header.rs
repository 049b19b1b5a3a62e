//! The header of a saved session: its identity, and the lengths of its parts. Pure parsing; every byte is
//! untrusted.
//!
//! ```text
//! header   magic, version, model, shape, lengths, manner; CRC-32 of all of it
//! tokens   u32 each; CRC-32
//! notes    JSON of a conversation, or nothing; CRC-32
//! marks    positions of recurrent states, u64 each; the last is the end of what is held; CRC-32
//! memory   layer by layer, each with a CRC-32: keys, then values (`kernels/kv.rs`) of the positions held,
//!          or recurrent states in f32, one per mark
//! ```
//! A window layer begins at the first position that the token at `earliest` sees, or at that position's block
//! of 16. All numbers are little-endian. The lengths determine the file's length, so a file of another length
//! is rejected before anything is allocated.

use super::flow::{SUM, damaged};
use super::memory::{self, Extent, MAX_MARKS};
use crate::error::{Error, Result};
use crate::model::Spec;

/// The first bytes of a saved session.
const MAGIC: [u8; 8] = *b"DOLLOPKV";

/// The version of this format.
const VERSION: u32 = 2;

/// Bytes of the header before `manner`.
pub(super) const FIXED: usize = 72;

/// The most bytes of `manner`.
const MAX_MANNER: usize = 256;

/// The most bytes of a conversation's notes.
const MAX_NOTES: u64 = 256 << 20;

/// What a session's keys and values depend on besides its tokens. A session can be loaded only if this is
/// equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session) struct Identity {
    /// The checksums of the model's header, and of its weights' checksums.
    pub(in crate::session) model: [u32; 2],
    /// The precision of experts, and how the routing differs from the model's.
    pub(in crate::session) manner: String,
}

/// The parsed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) layers: usize,
    /// Bytes per number in the KV cache.
    pub(super) number_bytes: usize,
    /// Tokens of the session.
    pub(super) tokens: usize,
    /// The part of these that the layers hold.
    pub(super) extent: Extent,
    /// Bytes of the notes.
    pub(super) notes: usize,
}

impl Header {
    /// Encodes the header, including its checksum.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + self.identity.manner.len() + SUM);
        out.extend(MAGIC);
        let manner = self.identity.manner.as_bytes();
        assert!(manner.len() <= MAX_MANNER, "a manner is a few words");
        let words = [VERSION, self.identity.model[0], self.identity.model[1], manner.len() as u32];
        out.extend(words.into_iter().flat_map(u32::to_le_bytes));
        let sizes = [self.layers, self.number_bytes, self.extent.marks, 0].map(|n| n as u32);
        out.extend(sizes.into_iter().flat_map(u32::to_le_bytes));
        let Extent { held, earliest, .. } = self.extent;
        let lengths = [self.tokens, held, self.notes, earliest].map(|n| n as u64);
        out.extend(lengths.into_iter().flat_map(u64::to_le_bytes));
        debug_assert_eq!(out.len(), FIXED);
        out.extend(manner);
        let sum = crc32fast::hash(&out);
        out.extend(sum.to_le_bytes());
        out
    }

    /// The length of `manner` and the checksum, which follow the first [`FIXED`] bytes.
    ///
    /// # Errors
    /// `Malformed` for anything but a saved session, `Unsupported` for another version.
    pub(super) fn rest(fixed: &[u8; FIXED]) -> Result<usize> {
        if fixed[..8] != MAGIC {
            return Err(Error::malformed("header", "this is no saved session"));
        }
        match word(fixed, 8) {
            VERSION => {}
            other => {
                let what = format!(
                    "this session is of version {other}, and version {VERSION} is supported: its text is to be read again"
                );
                return Err(Error::unsupported(what));
            }
        }
        let manner = word(fixed, 20) as usize;
        if manner > MAX_MANNER {
            return Err(damaged("header"));
        }
        Ok(manner + SUM)
    }

    /// Decodes what [`Header::bytes`] encoded.
    ///
    /// # Errors
    /// `Malformed`.
    pub(super) fn parse(fixed: &[u8; FIXED], rest: &[u8]) -> Result<Header> {
        let bytes = [&fixed[..], rest].concat();
        let (body, sum) = bytes.split_last_chunk::<SUM>().ok_or_else(|| damaged("header"))?;
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return Err(damaged("header"));
        }
        let manner = std::str::from_utf8(&body[FIXED..]).map_err(|_| damaged("header"))?;
        let size = |i: usize| word(fixed, 24 + 4 * i) as usize;
        let length = |i: usize| {
            let at = 40 + 8 * i;
            let n = u64::from(word(fixed, at)) | u64::from(word(fixed, at + 4)) << 32;
            usize::try_from(n).map_err(|_| damaged("header"))
        };
        let header = Header {
            identity: Identity { model: [word(fixed, 12), word(fixed, 16)], manner: manner.to_owned() },
            layers: size(0),
            number_bytes: size(1),
            tokens: length(0)?,
            extent: Extent { held: length(1)?, earliest: length(3)?, marks: size(2) },
            notes: length(2)?,
        };
        let Extent { held, earliest, marks } = header.extent;
        let absurd = held > header.tokens || earliest > held || marks > MAX_MARKS;
        if absurd || header.notes as u64 > MAX_NOTES {
            return Err(damaged("header"));
        }
        Ok(header)
    }

    /// Bytes of the whole file for a model; `None` if they overflow.
    pub(super) fn file_bytes(&self, spec: &Spec) -> Option<u64> {
        let head = FIXED + self.identity.manner.len() + SUM;
        let memory = memory::bytes(spec, self.number_bytes, self.extent)?;
        let tokens = self.tokens.checked_mul(4)?.checked_add(SUM)?;
        let notes = self.notes.checked_add(SUM)?;
        let marks = 8 * self.extent.marks + SUM;
        let ends = head.checked_add(tokens)?.checked_add(notes)?.checked_add(marks)?;
        Some(ends.checked_add(memory)? as u64)
    }
}

fn word(bytes: &[u8; FIXED], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Metadata;

    fn header() -> Header {
        Header {
            identity: Identity { model: [1, 0xffff_0000], manner: "exact:4".into() },
            layers: 3,
            number_bytes: 2,
            tokens: 100,
            extent: Extent { held: 99, earliest: 40, marks: 2 },
            notes: 17,
        }
    }

    fn read(bytes: &[u8]) -> Result<Header> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED>().ok_or_else(|| damaged("header"))?;
        let len = Header::rest(fixed)?;
        Header::parse(fixed, rest.get(..len).ok_or_else(|| damaged("header"))?)
    }

    #[test]
    fn a_header_comes_back_and_no_changed_bit_does() {
        let bytes = header().bytes();
        assert_eq!(read(&bytes).unwrap(), header());
        for bit in 0..8 * bytes.len() {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn absurd_lengths_are_no_length() {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", "llama");
        for (key, value) in [
            ("block_count", 3u32),
            ("context_length", 64),
            ("embedding_length", 128),
            ("attention.head_count", 2),
            ("attention.sliding_window", 20),
        ] {
            meta.insert(format!("llama.{key}"), value);
        }
        meta.insert("llama.attention.layer_norm_rms_epsilon", 1e-5f32);
        meta.insert("dollop.attention.window_layers", vec![false, true, false]);
        let spec = Spec::from_metadata(&meta).unwrap();
        // The layer with a window begins at the block of position 40 - 19.
        let (layer, windowed) = (4 + (99 + 112) * 2 * 64 * 2, 4 + (83 + 96) * 2 * 64 * 2);
        assert_eq!(header().file_bytes(&spec), Some(83 + 404 + 21 + 20 + 2 * layer + windowed));
        let extent = |held, earliest| Header { extent: Extent { held, earliest, marks: 0 }, ..header() };
        assert_eq!(extent(usize::MAX, 0).file_bytes(&spec), None);
        assert_eq!(extent(usize::MAX, usize::MAX).file_bytes(&spec), None);
        assert_eq!(Header { tokens: usize::MAX / 2, ..header() }.file_bytes(&spec), None);
        assert_eq!(Header { number_bytes: usize::MAX, ..header() }.file_bytes(&spec), None);
    }
}
