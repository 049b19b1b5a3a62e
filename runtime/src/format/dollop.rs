//! The directory of a Dollop file: its matrices, and where their planes are.
//!
//! A Dollop file is a GGUF file (version 3) that contains
//! - the keys of its source, and keys under `dollop.*`: the version, plane widths, and the table of matrices
//!   as parallel arrays (`dollop.matrix.{names,rows,cols,experts,group,level}`);
//! - for each dense matrix `X.weight`, a byte tensor `X.planes` with its planes one after another;
//! - for each layer with experts and each plane `p`, a byte tensor `blk.N.ffn_exps.plane{p}` of equal slabs,
//!   one per expert. A slab holds the plane's gate, up and down parts; in families without gates, up and down.
//!   Slabs are aligned, so that one direct read fetches a slab;
//! - since version 3, for matrices that need it: how group parameters are stored (`dollop.matrix.params`),
//!   and how an expert's inputs are rotated (`dollop.matrix.rotation`);
//! - since version 4, if experts of a layer are stored at different levels: the level of each expert
//!   (`dollop.matrix.levels`, all stacks concatenated). A plane's tensor has slabs only for the experts that
//!   have the plane, in expert order;
//! - since version 5, if codes index a table: more values of `dollop.matrix.params`, and no planes above 4
//!   bits;
//! - norms, biases and routers as F32 under their own names;
//! - at the end, `dollop.fits` and `dollop.errors` (per matrix, each expert counted), and `dollop.checksums`
//!   (CRC-32 of every dense planes tensor and of every slab, in file order).
//!
//! This file knows only the numbers; `quant` knows what planes mean.

use super::{GgmlType, Gguf, Metadata, TensorInfo};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

/// The newest layout version. It is written only if a matrix's codes index a table. Older versions are still
/// read, and are written if they suffice: other programs read them, and conversions stay byte-identical.
pub const VERSION: u32 = 5;
/// The version in which experts of a layer may have different levels.
pub const VERSION_UNEVEN: u32 = 4;
/// The version in which matrices may have rotated inputs or narrow group parameters.
pub const VERSION_ROTATED: u32 = 3;
/// The version without either.
pub const VERSION_PLAIN: u32 = 2;

const MAX_MATRICES: usize = 1 << 20;
/// The most experts per layer.
pub const MAX_EXPERTS: u64 = 4096;
const MAX_SIDE: u64 = 1 << 24;

/// Name of the tensor with the weights' checksums.
pub const CHECKSUMS: &str = "dollop.checksums";

/// The parts of an expert, in slab order.
pub const PARTS: [&str; 3] = ["gate", "up", "down"];

/// One matrix, or one stack of expert matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixEntry {
    /// Canonical name, ending in `.weight`.
    pub name: String,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Matrices in the stack; 0 for a dense matrix.
    pub experts: usize,
    /// Weights per group.
    pub group: usize,
    /// Highest level stored, in bits.
    pub level: u8,
    /// The highest level of each expert if they differ, otherwise empty.
    pub levels: Vec<u8>,
    /// The rotation of the inputs, as `quant` numbers it; 0 for none.
    pub rotation: u8,
    /// How group parameters are stored, as `quant::GroupParams` numbers it.
    pub params: u8,
}

impl MatrixEntry {
    /// Number of matrices that the entry describes.
    pub fn count(&self) -> usize {
        self.experts.max(1)
    }

    /// Name of a dense matrix's tensor.
    pub fn planes_name(&self) -> String {
        format!("{}.planes", self.name.strip_suffix(".weight").unwrap_or(&self.name))
    }
}

/// Name of the tensor with plane `p` of a layer's experts.
pub fn slabs_name(layer: usize, p: usize) -> String {
    format!("blk.{layer}.ffn_exps.plane{p}")
}

/// Name of one part of a layer's experts.
pub fn part_name(layer: usize, part: &str) -> String {
    format!("blk.{layer}.ffn_{part}_exps.weight")
}

/// Whether this is the metadata of a Dollop file.
pub fn is_dollop(metadata: &Metadata) -> bool {
    metadata.get("dollop.version").is_some()
}

/// A parsed Dollop file.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The GGUF header.
    pub gguf: Gguf,
    /// The table of matrices.
    pub matrices: Vec<MatrixEntry>,
    index: HashMap<String, usize>,
    /// Index of each entry's first matrix in `dollop.fits` and `dollop.errors`.
    first: Vec<usize>,
}

impl Directory {
    /// # Errors
    /// `Malformed` if the file contradicts itself, `Unsupported` for another version.
    pub fn parse(bytes: &[u8]) -> Result<Directory> {
        let gguf = Gguf::parse(bytes)?;
        let meta = &gguf.metadata;
        match meta.u64("dollop.version")? {
            Some(v) if (VERSION_PLAIN.into()..=VERSION.into()).contains(&v) => {}
            Some(v) => {
                let what = format!(
                    "this is a Dollop file of version {v}, and versions {VERSION_PLAIN} to {VERSION} are supported; convert the model again"
                );
                return Err(Error::unsupported(what));
            }
            None => {
                return Err(Error::malformed("dollop.version", "the key is missing: this is no Dollop file"));
            }
        };
        let names = meta.strings("dollop.matrix.names")?.unwrap_or_default();
        if names.len() > MAX_MATRICES {
            return Err(Error::malformed("dollop.matrix.names", format!("{} matrices", names.len())));
        }
        let column = |key: &str, max: u64| -> Result<Vec<u64>> {
            let key = format!("dollop.matrix.{key}");
            let values = meta.u64s(&key)?.unwrap_or_default();
            if values.len() != names.len() {
                return Err(Error::malformed(
                    key,
                    format!("{} entries for {} matrices", values.len(), names.len()),
                ));
            }
            match values.iter().find(|&&v| v > max) {
                Some(v) => Err(Error::malformed(key, format!("{v} is more than {max}"))),
                None => Ok(values),
            }
        };
        let (rows, cols) = (column("rows", MAX_SIDE)?, column("cols", MAX_SIDE)?);
        let (experts, group, level) =
            (column("experts", MAX_EXPERTS)?, column("group", 256)?, column("level", 8)?);
        // Columns that version 2 does not have.
        let added = |key: &str, max: u64| -> Result<Vec<u64>> {
            match meta.get(&format!("dollop.matrix.{key}")) {
                None => Ok(vec![0; names.len()]),
                Some(_) => column(key, max),
            }
        };
        let (params, rotation) = (added("params", 255)?, added("rotation", 255)?);
        let mut levels = levels(meta, experts.iter().sum())?.into_iter();
        let mut matrices = Vec::with_capacity(names.len());
        let mut index = HashMap::with_capacity(names.len());
        let mut first = Vec::with_capacity(names.len());
        let mut total = 0;
        for (i, name) in names.iter().enumerate() {
            if index.insert(name.clone(), i).is_some() {
                return Err(Error::malformed("dollop.matrix.names", format!("`{name}` appears twice")));
            }
            let entry = MatrixEntry {
                name: name.clone(),
                rows: rows[i] as usize,
                cols: cols[i] as usize,
                experts: experts[i] as usize,
                group: group[i] as usize,
                level: level[i] as u8,
                levels: levels.by_ref().take(experts[i] as usize).collect(),
                rotation: rotation[i] as u8,
                params: params[i] as u8,
            };
            first.push(total);
            total += entry.count();
            matrices.push(entry);
        }
        Ok(Directory { gguf, matrices, index, first })
    }

    /// Whether experts of a layer are stored at different levels.
    pub fn is_uneven(&self) -> bool {
        self.matrices.iter().any(|m| !m.levels.is_empty())
    }

    /// A matrix by canonical name, and its index in the tables of fits and errors.
    pub fn matrix(&self, name: &str) -> Option<(&MatrixEntry, usize)> {
        let &i = self.index.get(name)?;
        Some((&self.matrices[i], self.first[i]))
    }

    /// Number of matrices, each expert counted.
    pub fn total(&self) -> usize {
        self.matrices.iter().map(MatrixEntry::count).sum()
    }

    /// The file range of a tensor of type `ty`.
    ///
    /// # Errors
    /// `Malformed` if it is missing, or has another type or length.
    pub fn tensor(&self, name: &str, ty: GgmlType, n_bytes: Option<usize>) -> Result<Range<usize>> {
        let wrong = |what: String| Error::malformed(format!("tensor `{name}`"), what);
        let t: &TensorInfo = self
            .gguf
            .tensor(name)
            .ok_or_else(|| wrong("is missing; was the conversion cut short?".into()))?;
        if t.ty != ty {
            return Err(wrong(format!("is {}; {ty} is expected", t.ty)));
        }
        match n_bytes {
            Some(n) if n as u64 != t.n_bytes => {
                Err(wrong(format!("has {} bytes; {n} are expected", t.n_bytes)))
            }
            _ => Ok(t.offset as usize..(t.offset + t.n_bytes) as usize),
        }
    }
}

/// The key with each expert's level.
pub const LEVELS: &str = "dollop.matrix.levels";

/// The levels of all experts, stacks concatenated; empty if the file has none.
fn levels(meta: &Metadata, experts: u64) -> Result<Vec<u8>> {
    let Some(levels) = meta.u64s(LEVELS)? else { return Ok(Vec::new()) };
    if levels.len() as u64 != experts {
        return Err(Error::malformed(LEVELS, format!("{} entries for {experts} experts", levels.len())));
    }
    match levels.iter().find(|&&l| l > 8) {
        Some(l) => Err(Error::malformed(LEVELS, format!("{l} is more than 8"))),
        None => Ok(levels.into_iter().map(|l| l as u8).collect()),
    }
}
