//! Element encodings of GGUF tensors: their sizes, and dequantization to f32.
//!
//! Values are bit-identical to those of the `gguf` Python package's `quants.dequantize`
//! (`tests/goldens/ggml`).

mod blocks;

use crate::error::{Error, Result};
use std::fmt;

macro_rules! types {
    ($($variant:ident = $id:literal, $name:literal, $len:literal, $bytes:literal, $doc:literal;)*) => {
        /// An element encoding that this version reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(non_camel_case_types)]
        pub enum GgmlType { $(#[doc = $doc] $variant),* }

        impl GgmlType {
            /// Every type.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant),*];

            /// The type's number in a GGUF directory.
            pub const fn id(self) -> u32 { match self { $(GgmlType::$variant => $id),* } }

            /// The name that GGUF tools print.
            pub const fn name(self) -> &'static str { match self { $(GgmlType::$variant => $name),* } }

            /// Elements per block.
            pub const fn block_len(self) -> usize { match self { $(GgmlType::$variant => $len),* } }

            /// Bytes per block.
            pub const fn block_bytes(self) -> usize { match self { $(GgmlType::$variant => $bytes),* } }
        }
    };
}

types! {
    F32 = 0, "F32", 1, 4, "IEEE single.";
    F16 = 1, "F16", 1, 2, "IEEE half.";
    Q4_0 = 2, "Q4_0", 32, 18, "4 bits, symmetric, f16 scale.";
    Q4_1 = 3, "Q4_1", 32, 20, "4 bits, f16 scale and minimum.";
    Q5_0 = 6, "Q5_0", 32, 22, "5 bits, symmetric, f16 scale.";
    Q5_1 = 7, "Q5_1", 32, 24, "5 bits, f16 scale and minimum.";
    Q8_0 = 8, "Q8_0", 32, 34, "8 bits, symmetric, f16 scale.";
    Q2_K = 10, "Q2_K", 256, 84, "2 bits, groups of 16, 4-bit scales and minima.";
    Q3_K = 11, "Q3_K", 256, 110, "3 bits, groups of 16, 6-bit scales.";
    Q4_K = 12, "Q4_K", 256, 144, "4 bits, groups of 32, 6-bit scales and minima.";
    Q5_K = 13, "Q5_K", 256, 176, "5 bits, groups of 32, 6-bit scales and minima.";
    Q6_K = 14, "Q6_K", 256, 210, "6 bits, groups of 16, 8-bit scales.";
    IQ4_NL = 20, "IQ4_NL", 32, 18, "4-bit index into a fixed non-linear table, f16 scale.";
    IQ4_XS = 23, "IQ4_XS", 256, 136, "The same in groups of 32 with 6-bit scales.";
    I8 = 24, "I8", 1, 1, "Bytes; Dollop's planes.";
    I32 = 26, "I32", 1, 4, "Integers; Dollop's checksums.";
    BF16 = 30, "BF16", 1, 2, "The upper half of an IEEE single.";
    MXFP4 = 39, "MXFP4", 32, 17, "4-bit floats (E2M1) with a shared power of two.";
}

/// Encodings that we do not read, so that error messages can name them.
const OTHERS: [(u32, &str); 16] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (25, "I16"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl GgmlType {
    /// The type with this number. The error text names the type and lists the supported ones.
    pub fn from_id(id: u32) -> Result<GgmlType, String> {
        GgmlType::ALL.iter().copied().find(|t| t.id() == id).ok_or_else(|| {
            let known = OTHERS
                .iter()
                .find(|(i, _)| *i == id)
                .map_or_else(|| format!("number {id}"), |(_, n)| n.to_string());
            let names: Vec<_> = GgmlType::ALL.iter().map(|t| t.name()).collect();
            format!("element type {known} is not supported; supported are {}", names.join(", "))
        })
    }

    /// Bytes of a row of `n` elements; `None` if `n` is not a multiple of the block length.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        n.is_multiple_of(self.block_len()).then(|| n / self.block_len())?.checked_mul(self.block_bytes())
    }

    /// Whether the elements are weights, not bytes or integers.
    pub fn is_float(self) -> bool {
        !matches!(self, GgmlType::I8 | GgmlType::I32)
    }

    /// Decodes `bytes` into `out`.
    ///
    /// # Errors
    /// `Malformed` if the lengths do not match, `Invalid` for integer types.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        if self.row_bytes(out.len()) != Some(bytes.len()) {
            let reason = format!("{} bytes of {self} are not {} elements", bytes.len(), out.len());
            return Err(Error::malformed("tensor data", reason));
        }
        match self {
            GgmlType::F32 => blocks::f32s(bytes, out),
            GgmlType::F16 => blocks::f16s(bytes, out),
            GgmlType::BF16 => blocks::bf16s(bytes, out),
            GgmlType::Q4_0 => blocks::q4_0(bytes, out),
            GgmlType::Q4_1 => blocks::q4_1(bytes, out),
            GgmlType::Q5_0 => blocks::q5_0(bytes, out),
            GgmlType::Q5_1 => blocks::q5_1(bytes, out),
            GgmlType::Q8_0 => blocks::q8_0(bytes, out),
            GgmlType::Q2_K => blocks::q2_k(bytes, out),
            GgmlType::Q3_K => blocks::q3_k(bytes, out),
            GgmlType::Q4_K => blocks::q4_k(bytes, out),
            GgmlType::Q5_K => blocks::q5_k(bytes, out),
            GgmlType::Q6_K => blocks::q6_k(bytes, out),
            GgmlType::IQ4_NL => blocks::iq4_nl(bytes, out),
            GgmlType::IQ4_XS => blocks::iq4_xs(bytes, out),
            GgmlType::MXFP4 => blocks::mxfp4(bytes, out),
            GgmlType::I8 | GgmlType::I32 => {
                return Err(Error::Invalid(format!(
                    "{self} elements are not weights and cannot be dequantized"
                )));
            }
        }
        Ok(())
    }
}

pub use blocks::{iq4_xs_scale, k_scale_min, le_f16};

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of every type, with the values from the `gguf` package (`tests/goldens/ggml/make.py`).
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/goldens/ggml/blocks.bin");

    #[test]
    fn values_are_those_of_the_gguf_package_bit_for_bit() {
        let (mut rest, mut seen) = (GOLDEN, Vec::new());
        while let Some((head, tail)) = rest.split_first_chunk::<12>() {
            let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let ty = GgmlType::from_id(word(0)).unwrap();
            let (blocks, tail) = tail.split_at(word(4) as usize);
            let (values, tail) = tail.split_at(4 * word(8) as usize);
            let mut out = vec![f32::NAN; word(8) as usize];
            ty.dequantize(blocks, &mut out).unwrap();
            for (i, (got, want)) in out.iter().zip(values.chunks_exact(4)).enumerate() {
                let want = f32::from_le_bytes([want[0], want[1], want[2], want[3]]);
                assert_eq!(got.to_bits(), want.to_bits(), "{ty}: element {i} is {got}, not {want}");
            }
            seen.push(ty);
            rest = tail;
        }
        assert!(rest.is_empty());
        for ty in GgmlType::ALL.iter().filter(|t| t.is_float()) {
            assert!(seen.contains(ty), "the golden file has no {ty}");
        }
    }

    #[test]
    fn lengths_that_do_not_belong_together_are_errors() {
        let mut out = [0.0; 64];
        assert!(GgmlType::Q8_0.dequantize(&[0; 34], &mut out).is_err());
        assert!(GgmlType::Q8_0.dequantize(&[0; 33], &mut out[..32]).is_err());
        assert!(GgmlType::Q4_K.dequantize(&[0; 36], &mut out).is_err());
        assert!(GgmlType::I8.dequantize(&[0; 64], &mut out).is_err());
        assert_eq!(GgmlType::F32.row_bytes(usize::MAX), None);
    }

    #[test]
    fn unknown_types_are_named_and_the_known_listed() {
        let text = GgmlType::from_id(21).unwrap_err();
        assert!(text.contains("IQ3_S") && text.contains("Q4_K"), "{text}");
        assert!(GgmlType::from_id(4).unwrap_err().contains("number 4"));
    }
}
