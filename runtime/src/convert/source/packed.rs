//! MXFP4 as Hugging Face stores it, with codes in one tensor and scales in another. Rows are repacked into
//! GGUF's blocks.

use super::collector::Collector;
use super::{Layout, Piece, Pieces};
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::hf::{Cut, Form, Place};
use crate::format::{GgmlType, safetensors};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

/// Weights per block.
const BLOCK: usize = 32;

/// Bytes of a block's codes.
const CODES: usize = BLOCK / 2;

/// Where the rows and the scales of a stack of packed matrices lie.
#[derive(Debug)]
pub(super) struct Packed {
    /// The first row of a matrix in the file, and the distance to its next row, in rows.
    first: usize,
    step: usize,
    /// Scales of expert 0; those of the other experts follow.
    scales: Piece,
}

impl Packed {
    /// The scales of one expert.
    pub(super) fn scales<'a>(&self, files: &'a [(PathBuf, Bytes)], expert: usize) -> &'a [u8] {
        let Piece { file, offset, len } = self.scales_piece(expert);
        &files[file].1[offset..][..len]
    }

    /// Where the scales of one expert lie.
    pub(super) fn scales_piece(&self, expert: usize) -> Piece {
        Piece { offset: self.scales.offset + expert * self.scales.len, ..self.scales }
    }

    /// Repacks rows into GGUF's blocks: the scale, then 16 bytes with values `j` (low half) and `j + 16`
    /// (high half). In `codes`, byte `j` holds values `2j` and `2j + 1`.
    pub(super) fn rows(&self, codes: &[u8], scales: &[u8], rows: Range<usize>, cols: usize) -> Vec<u8> {
        let blocks = cols / BLOCK;
        let mut out = Vec::with_capacity(rows.len() * blocks * GgmlType::MXFP4.block_bytes());
        for block in rows.map(|r| self.first + r * self.step).flat_map(|r| r * blocks..(r + 1) * blocks) {
            let codes = &codes[block * CODES..][..CODES];
            let value = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
            out.push(scales[block]);
            out.extend((0..CODES).map(|j| value(j) | value(j + CODES) << 4));
        }
        out
    }
}

/// Codes and scales by canonical name, collected until both are found.
#[derive(Default)]
pub(super) struct Blocks(BTreeMap<String, [Option<(Place, usize, safetensors::Entry)>; 2]>);

impl Blocks {
    /// Adds the codes or the scales of a tensor.
    ///
    /// # Errors
    /// `Malformed` if this part was added before, or is not of bytes.
    pub(super) fn add(&mut self, place: Place, file: usize, entry: &safetensors::Entry) -> Result<()> {
        let wrong = |what: &str| Err(Error::malformed(format!("tensor `{}`", entry.name), what.to_owned()));
        if entry.ty != GgmlType::I8 {
            return wrong("has MXFP4 blocks, and its element type must be U8");
        }
        let both = self.0.entry(place.name.clone()).or_default();
        let part = &mut both[usize::from(place.form == Form::Scales)];
        match part.replace((place, file, entry.clone())) {
            Some(_) => wrong("appears twice"),
            None => Ok(()),
        }
    }

    /// Adds all packed tensors to `collector`.
    ///
    /// # Errors
    /// `Malformed` if codes or scales are missing, or their shapes differ.
    pub(super) fn finish(self, collector: &mut Collector) -> Result<()> {
        for (name, [codes, scales]) in self.0 {
            let wrong = |what: String| Error::malformed(format!("tensor `{name}`"), what);
            let (Some((place, file, codes)), Some((_, scales_file, scales))) = (codes, scales) else {
                return Err(wrong("has only codes or only scales; is the download complete?".into()));
            };
            let (first, step) = match place.cut {
                Cut::Alternate(first) => (first, 2),
                Cut::Whole | Cut::Half(_) | Cut::Heads(_) => (0, 1),
            };
            let (&[experts, rows, blocks, CODES], true) =
                (&codes.shape[..], codes.shape[..].starts_with(&scales.shape))
            else {
                return Err(wrong(format!(
                    "codes of shape {:?} do not fit scales of shape {:?}",
                    codes.shape, scales.shape
                )));
            };
            if scales.shape.len() != 3 || experts == 0 || !rows.is_multiple_of(step) {
                return Err(wrong(format!(
                    "codes of shape {:?} do not fit scales of shape {:?}",
                    codes.shape, scales.shape
                )));
            }
            let piece = |file, entry: &safetensors::Entry| Piece {
                file,
                offset: entry.offset as usize,
                len: entry.n_bytes as usize / experts,
            };
            let at = piece(file, &codes);
            let pieces = Pieces::Even { first: at, stride: at.len, count: experts };
            let cols = blocks.checked_mul(BLOCK).ok_or_else(|| wrong("has too many columns".into()))?;
            let packed = Packed { first, step, scales: piece(scales_file, &scales) };
            let shape = vec![experts, rows / step, cols];
            collector.add(place, shape, GgmlType::MXFP4, pieces, Layout::Packed(packed))?;
        }
        Ok(())
    }
}
