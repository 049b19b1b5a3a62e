//! A SHA-256 that stops after any block and goes on in another process, from 32 bytes of state.
//!
//! The checksums of `ring` cannot be stored, so the stream uses the block function of `sha2`.

use sha2::compress256;
use sha2::digest::generic_array::GenericArray;

/// Bytes of a block.
pub const BLOCK: usize = 64;

/// The first words of the fractional parts of the square roots of the first eight primes (FIPS 180-4, 5.3.3).
const FIRST: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The state after a whole number of blocks.
#[derive(Clone, Copy)]
pub struct Sum([u32; 8]);

impl Sum {
    /// The state before the first block.
    pub fn new() -> Sum {
        Sum(FIRST)
    }

    /// A state that [`Sum::bytes`] returned.
    pub fn from_bytes(bytes: &[u8; 32]) -> Sum {
        let (words, _) = bytes.as_chunks::<4>();
        Sum(std::array::from_fn(|i| u32::from_be_bytes(words[i])))
    }

    /// The state; after [`Sum::end`], the checksum.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(4).zip(self.0).for_each(|(to, word)| to.copy_from_slice(&word.to_be_bytes()));
        bytes
    }

    /// Adds whole blocks, and returns the bytes after the last one.
    pub fn add<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        blocks.iter().for_each(|block| compress256(&mut self.0, &[GenericArray::clone_from_slice(block)]));
        rest
    }

    /// Adds the last bytes, less than a block, of a text of `len` bytes.
    pub fn end(&mut self, rest: &[u8], len: u64) {
        let mut last = rest.to_vec();
        last.push(0x80);
        last.resize((last.len() + 8).next_multiple_of(BLOCK) - 8, 0);
        last.extend((len.wrapping_mul(8)).to_be_bytes());
        self.add(&last);
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_in_parts_is_that_of_the_whole() {
        let text: Vec<u8> = (0..400u32).map(|i| (i * 37 % 251) as u8).collect();
        for len in [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 400] {
            for part in [64, 128] {
                let mut state = Sum::new().bytes();
                let mut rest = &text[..len];
                while rest.len() >= part {
                    let mut sum = Sum::from_bytes(&state);
                    assert!(sum.add(&rest[..part]).is_empty());
                    (state, rest) = (sum.bytes(), &rest[part..]);
                }
                let mut sum = Sum::from_bytes(&state);
                let rest = sum.add(rest);
                sum.end(rest, len as u64);
                let want = ring::digest::digest(&ring::digest::SHA256, &text[..len]);
                assert_eq!(sum.bytes(), want.as_ref(), "{len} bytes in parts of {part}");
            }
        }
    }
}
