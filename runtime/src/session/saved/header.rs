//! How a saved session begins: what it is of and how long its parts are. Pure parsing; every byte is untrusted.
//!
//! ```text
//! header   magic, version, model, shape, lengths, manner; CRC-32 of all of it
//! tokens   u32 each; CRC-32
//! notes    JSON of a conversation, or nothing; CRC-32
//! memory   layer by layer keys, then values, of the positions held (`kernels/kv.rs`); CRC-32 behind every layer
//! ```
//! All numbers are little-endian. The lengths say how long the file is, so that a file of another length is refused before
//! anything is allocated for it.

use crate::error::{Error, Result};
use crate::kernels::KvShape;

/// What a saved session begins with.
const MAGIC: [u8; 8] = *b"DOLLOPKV";

/// The version of what follows.
const VERSION: u32 = 1;

/// Bytes of the header before the manner.
pub(super) const FIXED: usize = 72;

/// Bytes of a checksum.
pub(super) const SUM: usize = 4;

/// Bytes of a manner at most.
const MAX_MANNER: usize = 256;

/// Bytes of a conversation's notes at most.
const MAX_NOTES: u64 = 256 << 20;

/// What a session's keys and values follow from beside its tokens: a session is restored where these are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::session) struct Identity {
    /// Checksums of the model's header, and of the checksums of its weights.
    pub(in crate::session) model: [u32; 2],
    /// At which precision experts are computed, and how routing departs from the model's.
    pub(in crate::session) manner: String,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: Identity,
    pub(super) layers: usize,
    pub(super) shape: KvShape,
    /// Tokens of the timeline.
    pub(super) tokens: usize,
    /// Of these, the first whose keys and values are here.
    pub(super) held: usize,
    /// Bytes of the notes.
    pub(super) notes: usize,
}

impl Header {
    /// Its bytes, checksum included.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + self.identity.manner.len() + SUM);
        out.extend(MAGIC);
        let KvShape { heads, head_dim, number_bytes } = self.shape;
        let manner = self.identity.manner.as_bytes();
        assert!(manner.len() <= MAX_MANNER, "a manner is a few words");
        let words = [VERSION, self.identity.model[0], self.identity.model[1], manner.len() as u32];
        out.extend(words.into_iter().flat_map(u32::to_le_bytes));
        let sizes = [self.layers, heads, head_dim, number_bytes].map(|n| n as u32);
        out.extend(sizes.into_iter().flat_map(u32::to_le_bytes));
        let lengths = [self.tokens, self.held, self.notes].map(|n| n as u64);
        out.extend(lengths.into_iter().flat_map(u64::to_le_bytes));
        // What a later version may need without another number of it.
        out.extend([0; FIXED - 64]);
        out.extend(manner);
        let sum = crc32fast::hash(&out);
        out.extend(sum.to_le_bytes());
        out
    }

    /// How long the manner and the checksum behind the first [`FIXED`] bytes are.
    ///
    /// # Errors
    /// `Malformed` for what is no saved session, `Unsupported` for one of another version.
    pub(super) fn rest(fixed: &[u8; FIXED]) -> Result<usize> {
        if fixed[..8] != MAGIC {
            return Err(Error::malformed("header", "this is no saved session"));
        }
        match word(fixed, 8) {
            VERSION => {}
            other => {
                let what = format!("this session is of version {other}, and version {VERSION} is supported");
                return Err(Error::unsupported(what));
            }
        }
        let manner = word(fixed, 20) as usize;
        if manner > MAX_MANNER {
            return Err(damaged("header"));
        }
        Ok(manner + SUM)
    }

    /// Reads what [`Header::bytes`] made.
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
            shape: KvShape { heads: size(1), head_dim: size(2), number_bytes: size(3) },
            tokens: length(0)?,
            held: length(1)?,
            notes: length(2)?,
        };
        if header.held > header.tokens || header.notes as u64 > MAX_NOTES {
            return Err(damaged("header"));
        }
        Ok(header)
    }

    /// Bytes of the whole file; `None` where there are no such numbers.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        let KvShape { heads, head_dim, number_bytes } = self.shape;
        let head = FIXED + self.identity.manner.len() + SUM;
        let positions =
            self.held.checked_add(self.held.checked_next_multiple_of(crate::kernels::KV_BLOCK)?)?;
        let numbers = positions.checked_mul(heads)?.checked_mul(head_dim)?;
        let layer = numbers.checked_mul(number_bytes)?.checked_add(SUM)?;
        let memory = self.layers.checked_mul(layer)?;
        let tokens = self.tokens.checked_mul(4)?.checked_add(SUM)?;
        let notes = self.notes.checked_add(SUM)?;
        Some(head.checked_add(tokens)?.checked_add(notes)?.checked_add(memory)? as u64)
    }
}

fn word(bytes: &[u8; FIXED], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Bytes that are not those that were written.
pub(super) fn damaged(field: &str) -> Error {
    Error::malformed(field, "the bytes are not those that were saved: the file is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            identity: Identity { model: [1, 0xffff_0000], manner: "exact:4".into() },
            layers: 3,
            shape: KvShape { heads: 2, head_dim: 64, number_bytes: 2 },
            tokens: 100,
            held: 99,
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
        assert_eq!(header().file_bytes(), Some(83 + 404 + 21 + 3 * (4 + (99 + 112) * 2 * 64 * 2)));
        assert_eq!(Header { held: usize::MAX, ..header() }.file_bytes(), None);
        assert_eq!(Header { tokens: usize::MAX / 2, ..header() }.file_bytes(), None);
        let wide = KvShape { heads: u32::MAX as usize, head_dim: u32::MAX as usize, number_bytes: 4 };
        assert_eq!(Header { shape: wide, ..header() }.file_bytes(), None);
    }
}
