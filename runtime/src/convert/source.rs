//! One view over foreign models: GGUF files (whole or in shards) and Hugging Face folders.
//!
//! Callers always see canonical names (GGUF's), shapes with rows first, stacked experts, and attention rows
//! in half-split rope order. Nothing is copied until rows are read. Everything else about a format stays in
//! its own file (`gguf`, `folder`).

mod collector;
mod folder;
mod gguf;
mod heads;
mod joined;
mod packed;
#[cfg(test)]
mod tests;
mod widened;

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::hf::Stored;
use crate::format::{GgmlType, Metadata};
use crate::model::{Spec, weights};
use crate::store;
use packed::Packed;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A tensor under its canonical name, stored as one piece or as one per expert.
#[derive(Debug)]
struct Tensor {
    name: String,
    /// `[n]`, `[rows, cols]` or `[experts, rows, cols]`.
    shape: Vec<usize>,
    ty: GgmlType,
    pieces: Pieces,
    layout: Layout,
    /// How the stored values relate to the values used in computation.
    stored: Stored,
}

/// How the rows of a piece lie in the file.
#[derive(Debug)]
enum Layout {
    /// In order, without gaps.
    Rows,
    /// Interleaved within each head (llama.cpp's `permute`); the number of heads.
    Interleaved(usize),
    /// These ranges of the file's rows, one after another. For a vector, ranges of its elements.
    Runs(Vec<Range<usize>>),
    /// Element `[r, c]` has the index `first + r · row + c · col`.
    Strided { first: usize, row: usize, col: usize },
    /// Transposed head by head. A head has `head` rows of `rank` values of type `ty`; its first `nope` rows
    /// are transposed and read as f32.
    Turned { ty: GgmlType, rank: usize, nope: usize, head: usize },
    /// Parts from several tensors, one after another.
    Joined(Vec<joined::Part>),
    /// MXFP4 codes in this tensor, with their scales in another.
    Packed(Packed),
    /// Experts that are joined with narrow ones.
    Widened(Box<widened::Widened>),
}

/// Where the matrices of a tensor lie in the files.
#[derive(Clone, Debug)]
enum Pieces {
    /// `count` matrices, the first at `first`, each `stride` bytes after the one before. A dense tensor has
    /// one.
    Even { first: Piece, stride: usize, count: usize },
    /// One tensor of the file per expert, or per part of a joined tensor.
    Each(Vec<Piece>),
}

impl Pieces {
    fn get(&self, expert: usize) -> Option<Piece> {
        match self {
            Pieces::Even { first, stride, count } => {
                (expert < *count).then(|| Piece { offset: first.offset + expert * stride, ..*first })
            }
            Pieces::Each(all) => all.get(expert).copied(),
        }
    }

    fn count(&self) -> usize {
        match self {
            Pieces::Even { count, .. } => *count,
            Pieces::Each(all) => all.len(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    file: usize,
    /// Offset of this piece's first row in the file, and the length of the piece, in bytes.
    offset: usize,
    len: usize,
}

/// Bytes of one of the source's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Index of the file.
    pub file: usize,
    /// The bytes.
    pub bytes: Range<u64>,
}

/// A model in a foreign format, quantized or not.
#[derive(Debug)]
pub struct Source {
    metadata: Metadata,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    files: Vec<(PathBuf, Bytes)>,
    others: Vec<PathBuf>,
}

impl Source {
    /// Opens a GGUF file (any shard opens all) or a Hugging Face folder (or its `config.json`).
    ///
    /// # Errors
    /// `Io`, `Malformed` or `Unsupported`, naming the file.
    pub fn open(path: &Path) -> Result<Source> {
        let mut source = if path.is_dir() {
            folder::open(path)?
        } else if path.file_name().is_some_and(|n| n == "config.json") {
            folder::open(path.parent().unwrap_or(Path::new(".")))?
        } else {
            gguf::open(path)?
        };
        widened::widen(&mut source).map_err(|e| e.at(path))?;
        source.leave_out();
        Ok(source)
    }

    /// Drops tensors that the model does not use. Faults in the metadata are reported later, when it is
    /// checked.
    fn leave_out(&mut self) {
        let Ok(spec) = Spec::from_metadata(&self.metadata) else { return };
        self.tensors.retain(|t| !weights::unused(&spec, &t.name));
        self.index = self.tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Canonical names, in file order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// Shape of a tensor: `[n]`, `[rows, cols]` or `[experts, rows, cols]`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|t| t.shape.as_slice())
    }

    /// Rows of a matrix, or of each matrix of a stack.
    pub fn rows(&self, name: &str) -> Option<usize> {
        self.find(name).filter(|t| t.shape.len() > 1).map(|t| t.rows_cols().0)
    }

    /// Element type of a tensor.
    pub fn dtype(&self, name: &str) -> Option<GgmlType> {
        self.find(name).map(|t| t.ty)
    }

    /// Every file that was read, so that a cache can watch them for changes.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(p, _)| p.as_path()).chain(self.others.iter().map(PathBuf::as_path))
    }

    /// The files that hold tensors.
    pub(super) fn weight_files(&self) -> Vec<&Path> {
        self.files.iter().map(|(path, _)| path.as_path()).collect()
    }

    /// Where the bytes of a tensor lie. Tensors may share bytes.
    pub(super) fn extents(&self, name: &str) -> Vec<Extent> {
        let Some(t) = self.find(name) else { return Vec::new() };
        let extent = |piece: Piece| {
            let start = piece.offset as u64;
            Extent { file: piece.file, bytes: start..start + piece.len as u64 }
        };
        let scales = |expert| match &t.layout {
            Layout::Packed(packed) => Some(packed.scales_piece(expert)),
            _ => None,
        };
        let pieces = (0..t.pieces.count()).flat_map(|e| [t.pieces.get(e), scales(e)]);
        pieces.flatten().map(extent).collect()
    }

    /// The file that holds a tensor (of one expert).
    pub(super) fn file(&self, name: &str, expert: usize) -> Option<&Path> {
        let piece = self.find(name)?.pieces.get(expert)?;
        Some(&self.files[piece.file].0)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(Tensor::bytes).sum()
    }

    /// Bytes of one tensor.
    pub fn tensor_bytes(&self, name: &str) -> u64 {
        self.find(name).map_or(0, Tensor::bytes)
    }

    fn find(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// Rows of a matrix (of one expert of a stack) as stored, in canonical row order. A vector is one row.
    /// Its stored values may differ from those that [`Source::read_rows`] returns.
    ///
    /// # Errors
    /// `Malformed` for a name, expert or row that does not exist.
    pub fn raw_rows(&self, name: &str, expert: usize, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let none = || Error::malformed(format!("tensor `{name}`"), "the file has no such tensor");
        self.stored_rows(self.find(name).ok_or_else(none)?, expert, rows)
    }

    /// [`Source::raw_rows`] of a tensor.
    fn stored_rows(&self, t: &Tensor, expert: usize, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let none = |what: &str| Error::malformed(format!("tensor `{}`", t.name), what.to_owned());
        let piece = t.pieces.get(expert).ok_or_else(|| none("does not have this expert"))?;
        let (total, cols) = t.rows_cols();
        let row_bytes = t.ty.row_bytes(cols).ok_or_else(|| none("a row is not a whole number of blocks"))?;
        if rows.start > rows.end || rows.end > total {
            return Err(none("does not have these rows"));
        }
        let data = &self.files[piece.file].1[piece.offset..piece.offset + piece.len];
        // In a vector, single elements are reordered as the rows of its matrix are.
        let (unit, moved) = match t.shape.len() {
            1 => (t.ty.block_bytes(), rows.start * cols..rows.end * cols),
            _ => (row_bytes, rows.clone()),
        };
        let gathered = |stored: &dyn Fn(usize) -> usize| {
            let mut out = Vec::with_capacity(moved.len() * unit);
            moved.clone().for_each(|row| out.extend_from_slice(&data[stored(row) * unit..][..unit]));
            out
        };
        match &t.layout {
            Layout::Rows => Ok(Cow::Borrowed(&data[rows.start * row_bytes..rows.end * row_bytes])),
            // llama.cpp stores the two rows that rotate together side by side; our rope expects them half a
            // head apart.
            Layout::Interleaved(heads) => {
                let head = t.shape[0] / heads;
                Ok(Cow::Owned(gathered(&|row| {
                    let (h, i) = (row / head, row % head);
                    h * head + if i < head / 2 { 2 * i } else { 2 * (i - head / 2) + 1 }
                })))
            }
            Layout::Runs(runs) => Ok(Cow::Owned(gathered(&|row| heads::stored(runs, row)))),
            Layout::Strided { first, row, col } => {
                let unit = t.ty.block_bytes();
                let at = |r: usize, c: usize| (first + r * row + c * col) * unit;
                let elements = rows.flat_map(|r| (0..cols).map(move |c| (r, c)));
                let bytes = elements.flat_map(|(r, c)| &data[at(r, c)..at(r, c) + unit]);
                Ok(Cow::Owned(bytes.copied().collect()))
            }
            &Layout::Turned { ty, rank, nope, head } => {
                Ok(Cow::Owned(heads::turned(data, (ty, rank, nope, head), rows)?))
            }
            Layout::Joined(parts) => joined::rows(&self.files, parts, t.ty, rows),
            Layout::Packed(packed) => {
                let scales = packed.scales(&self.files, expert);
                Ok(Cow::Owned(packed.rows(data, scales, rows, cols)))
            }
            Layout::Widened(of) => Ok(Cow::Owned(of.rows(self, expert, rows)?)),
        }
    }

    /// Reads rows as [`Source::raw_rows`] does, and decodes them into `out` (`rows · cols` values).
    ///
    /// # Errors
    /// As [`Source::raw_rows`].
    pub fn read_rows(&self, name: &str, expert: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let ty = self.dtype(name);
        let raw = self.raw_rows(name, expert, rows)?;
        ty.expect("raw_rows found it").dequantize(&raw, out)?;
        self.find(name).map_or(Stored::Plain, |t| t.stored).turn(out);
        Ok(())
    }

    /// Tells the operating system that a tensor's pages are no longer needed.
    pub fn release(&self, name: &str) {
        let Some(t) = self.find(name) else { return };
        let whole = match &t.pieces {
            Pieces::Even { first, stride, count } if *stride == first.len => Some(first.len * count),
            _ => None,
        };
        for piece in (0..if whole.is_some() { 1 } else { t.pieces.count() }).filter_map(|e| t.pieces.get(e)) {
            let len = whole.unwrap_or(piece.len);
            store::release(&self.files[piece.file].1[piece.offset..piece.offset + len]);
        }
    }
}

impl Tensor {
    /// Bytes of the tensor in the file.
    fn bytes(&self) -> u64 {
        let (rows, cols) = self.rows_cols();
        let matrix = self.ty.row_bytes(cols).unwrap_or(0) as u64 * rows as u64;
        if self.shape.len() == 3 { matrix * self.shape[0] as u64 } else { matrix }
    }

    fn rows_cols(&self) -> (usize, usize) {
        match self.shape[..] {
            [n] => (1, n),
            [rows, cols] | [_, rows, cols] => (rows, cols),
            _ => unreachable!("shapes have one to three sides"),
        }
    }
}
