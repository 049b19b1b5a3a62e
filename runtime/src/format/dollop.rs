//! The directory of a Dollop file: which matrices it holds, where their planes lie, and the plan by which a converter
//! lays them out.
//!
//! A Dollop file is a GGUF file (version 3) with
//! - the keys of its source, and `dollop.*`: version, plane widths, and the table of matrices as parallel arrays
//!   (`dollop.matrix.{names,rows,cols,experts,group,level}`);
//! - per dense matrix `X.weight` one byte tensor `X.planes`: its planes one behind the other;
//! - per layer with experts and per plane `p` one byte tensor `blk.N.ffn_exps.plane{p}` of equal slabs, one per expert:
//!   the plane's gate, up and down parts, contiguous, each slab aligned so that one direct read fetches it;
//! - in version 3, where a matrix has either: how groups' parameters are stored (`dollop.matrix.params`), and by what an
//!   expert's inputs are rotated (`dollop.matrix.rotation`);
//! - in version 4, where the experts of a layer are stored at different levels: the level of each (`dollop.matrix.levels`, of
//!   all stacks one after another); a plane's tensor has slabs of those that reach it, in their order;
//! - in version 5, where codes index a table: further numbers of `dollop.matrix.params`, and no planes beyond 4 bits;
//! - norms, biases and routers as F32 under their own names;
//! - at the end `dollop.fits`, `dollop.errors` (per matrix, experts counted singly) and `dollop.checksums` (CRC-32 of
//!   every dense planes tensor and of every slab, in the order of the file).
//!
//! This file knows numbers only; what the planes mean is `quant`'s.

use super::{GgmlType, Gguf, Metadata, TensorInfo};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;

/// Version of the layout that this code reads, and writes where codes of a matrix index a table. Those before are read as well,
/// and still written where they will do: other programs read them, and conversions stay the same files.
pub const VERSION: u32 = 5;
/// The version in which experts of a layer may differ in their level.
pub const VERSION_UNEVEN: u32 = 4;
/// The version in which matrices may be rotated or have narrow parameters.
pub const VERSION_ROTATED: u32 = 3;
/// The version in which no matrix is either.
pub const VERSION_PLAIN: u32 = 2;

const MAX_MATRICES: usize = 1 << 20;
/// Experts of a layer at most.
pub const MAX_EXPERTS: u64 = 4096;
const MAX_SIDE: u64 = 1 << 24;

/// The tensor with the checksums of weights.
pub const CHECKSUMS: &str = "dollop.checksums";

/// The parts of an expert, in the order in which they lie in a slab.
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
    /// The highest level of each expert, where they differ; else empty.
    pub levels: Vec<u8>,
    /// What its inputs are rotated by: 0 for nothing; the other numbers are `quant`'s.
    pub rotation: u8,
    /// How groups' parameters are stored, as `quant::GroupParams` numbers it.
    pub params: u8,
}

impl MatrixEntry {
    /// How many matrices the entry stands for.
    pub fn count(&self) -> usize {
        self.experts.max(1)
    }

    /// The name of a dense matrix's tensor.
    pub fn planes_name(&self) -> String {
        format!("{}.planes", self.name.strip_suffix(".weight").unwrap_or(&self.name))
    }
}

/// The name of the tensor with plane `p` of a layer's experts.
pub fn slabs_name(layer: usize, p: usize) -> String {
    format!("blk.{layer}.ffn_exps.plane{p}")
}

/// The name of one part of a layer's experts.
pub fn part_name(layer: usize, part: &str) -> String {
    format!("blk.{layer}.ffn_{part}_exps.weight")
}

/// Whether these keys are a Dollop file's.
pub fn is_dollop(metadata: &Metadata) -> bool {
    metadata.get("dollop.version").is_some()
}

/// A parsed Dollop file.
#[derive(Clone, Debug)]
pub struct Directory {
    /// The container.
    pub gguf: Gguf,
    /// The table of matrices.
    pub matrices: Vec<MatrixEntry>,
    index: HashMap<String, usize>,
    /// Position of each entry's first matrix in `dollop.fits` and `dollop.errors`.
    first: Vec<usize>,
}

impl Directory {
    /// # Errors
    /// `Malformed` where the file contradicts itself, `Unsupported` for another version.
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
        // Attributes that version 2 has not.
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

    /// A matrix by canonical name, with its position in the tables of fits and errors.
    pub fn matrix(&self, name: &str) -> Option<(&MatrixEntry, usize)> {
        let &i = self.index.get(name)?;
        Some((&self.matrices[i], self.first[i]))
    }

    /// Number of matrices, experts counted singly.
    pub fn total(&self) -> usize {
        self.matrices.iter().map(MatrixEntry::count).sum()
    }

    /// The bytes of a tensor of type `ty`, as a range of the file.
    ///
    /// # Errors
    /// `Malformed` where it is missing or of another type or length.
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

/// The key with the level of each expert.
pub const LEVELS: &str = "dollop.matrix.levels";

/// Levels of all experts, stack after stack; empty where the file has none.
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
