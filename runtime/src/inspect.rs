//! Summarizes a model file without loading its weights.

use crate::convert::source::Source;
use crate::error::{Error, Result};
use crate::format::{GgmlType, Metadata, dollop};
use crate::model::file::NestedFile;
use crate::model::{Spec, Tensors, keys, sampling, tokens};
use crate::quant::{Level, PLANE_BITS};
use crate::store;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The kind of model at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// A Dollop file.
    Dollop,
    /// A GGUF file that is not a Dollop file.
    Gguf,
    /// A Hugging Face folder, with `config.json` and safetensors.
    HuggingFace,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::Dollop => "Dollop file",
            Kind::Gguf => "GGUF",
            Kind::HuggingFace => "Hugging Face folder",
        })
    }
}

/// The number and size of the tensors of one element type.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TypeTotal {
    /// Element type.
    pub ty: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Bytes of these tensors.
    pub bytes: u64,
}

/// One plane of all experts together.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct PlaneTotal {
    /// Number of the plane, from 0.
    pub plane: usize,
    /// Bits that the plane adds.
    pub bits: u8,
    /// Level, in bits, that the plane completes.
    pub level: u8,
    /// Bytes of the plane.
    pub bytes: u64,
    /// Bits per weight of this plane and all before it, metadata included.
    pub bits_per_weight: f64,
}

/// A summary of a model file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// Kind of file.
    pub kind: Kind,
    /// `general.name`.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Longest context, in tokens.
    pub context: usize,
    /// Experts per routed layer; 0 for a dense model.
    pub experts: usize,
    /// Experts active per token.
    pub experts_used: usize,
    /// Weights in all matrices.
    pub weights: u64,
    /// Weights in routed experts.
    pub expert_weights: u64,
    /// Bytes on disk, in all shards.
    pub file_bytes: u64,
    /// Tensors by element type.
    pub types: Vec<TypeTotal>,
    /// Planes of the experts; empty unless it is a Dollop file.
    pub planes: Vec<PlaneTotal>,
    /// In a Dollop file, the number of experts stored at each level, by the level's bits.
    pub expert_levels: BTreeMap<u8, usize>,
    /// In a Dollop file, the average bits of an expert's codes in each layer, without metadata.
    pub layer_bits: BTreeMap<usize, f64>,
    /// In a Dollop file, bits per weight of dense matrices.
    pub dense_bits_per_weight: Option<f64>,
    /// Kind of tokenizer, and size of its vocabulary.
    pub tokenizer: Option<String>,
    /// First line of the chat template, shortened.
    pub chat_template: Option<String>,
    /// Name of the file that a Dollop file was converted from.
    pub source: Option<String>,
    /// Weights in matrices that are stored for rotated inputs.
    pub rotated_weights: u64,
    /// Weights whose codes index a table, as in their source.
    pub table_weights: u64,
    /// Description of the calibration that a Dollop file was converted with.
    pub calibration: Option<String>,
    /// The sampling that the file recommends, if it does.
    pub sampling: Option<String>,
    /// Settings of the file that are not used, one line each.
    pub notes: Vec<String>,
}

/// Determines the kind of model at a path.
///
/// # Errors
/// `Io`; `Malformed` if the header does not parse.
pub fn kind(path: &Path) -> Result<Kind> {
    if path.is_dir() || path.file_name().is_some_and(|n| n == "config.json") {
        return Ok(Kind::HuggingFace);
    }
    let bytes = store::map(path)?;
    let gguf = crate::format::Gguf::parse(&bytes).map_err(|e| e.at(path))?;
    Ok(if dollop::is_dollop(&gguf.metadata) { Kind::Dollop } else { Kind::Gguf })
}

/// Compares the checksums of a Dollop file with its contents.
///
/// # Errors
/// `Malformed`, naming the tensor that differs; `Unsupported` for files that have no checksums.
pub fn verify(path: &Path) -> Result<()> {
    if kind(path)? != Kind::Dollop {
        return Err(Error::unsupported("only Dollop files have checksums").at(path));
    }
    NestedFile::new(store::map(path)?).and_then(|f| f.verify()).map_err(|e| e.at(path))
}

/// Summarizes a Dollop file, a GGUF file or a Hugging Face folder.
///
/// # Errors
/// `Io`, `Malformed` or `Unsupported`, naming the file.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let kind = kind(path)?;
    if kind == Kind::Dollop {
        let bytes = store::map(path)?;
        let size = bytes.len() as u64;
        return NestedFile::new(bytes).and_then(|file| of_dollop(&file, size)).map_err(|e| e.at(path));
    }
    let source = Source::open(path)?;
    let mut file_bytes = 0;
    for file in source.files() {
        file_bytes += std::fs::metadata(file).map_err(|e| Error::io(file, e))?.len();
    }
    let mut i = common(kind, source.metadata(), file_bytes).map_err(|e| e.at(path))?;
    let mut types = BTreeMap::new();
    for name in source.names() {
        let (shape, ty) =
            (source.shape(name).unwrap_or_default(), source.dtype(name).unwrap_or(GgmlType::F32));
        add_type(&mut types, ty, source.tensor_bytes(name));
        if shape.len() > 1 {
            let n = shape.iter().product::<usize>() as u64;
            i.weights += n;
            i.expert_weights += if shape.len() == 3 { n } else { 0 };
        }
    }
    i.types = types.into_values().collect();
    Ok(i)
}

fn of_dollop(file: &NestedFile, file_bytes: u64) -> Result<Inspection> {
    let mut i = common(Kind::Dollop, file.metadata(), file_bytes)?;
    let sizes = file.sizes();
    (i.weights, i.expert_weights) = (sizes.weights, sizes.expert_weights);
    (i.rotated_weights, i.table_weights) = (sizes.rotated_weights, sizes.table_weights);
    let dense = sizes.weights - sizes.expert_weights;
    i.dense_bits_per_weight = (dense > 0).then(|| sizes.dense_bytes as f64 * 8.0 / dense as f64);
    let mut sum = 0;
    for (p, (bytes, level)) in
        sizes.plane_bytes.into_iter().zip(Level::ALL).enumerate().filter(|(_, (b, _))| *b > 0)
    {
        sum += bytes;
        let bits_per_weight = sum as f64 * 8.0 / sizes.expert_weights as f64;
        i.planes.push(PlaneTotal {
            plane: p,
            bits: PLANE_BITS[p],
            level: level.bits(),
            bytes,
            bits_per_weight,
        });
    }
    for (layer, levels) in file.expert_levels() {
        let bits = levels.iter().map(|&l| f64::from(l)).sum::<f64>() / levels.len().max(1) as f64;
        i.layer_bits.insert(layer, bits);
        levels.into_iter().for_each(|level| *i.expert_levels.entry(level).or_default() += 1);
    }
    let mut types = BTreeMap::new();
    file.directory().gguf.tensors.iter().for_each(|t| add_type(&mut types, t.ty, t.n_bytes));
    i.types = types.into_values().collect();
    i.source = file.metadata().str("dollop.source")?.map(str::to_owned);
    i.calibration = file.metadata().str("dollop.calibration")?.map(str::to_owned);
    Ok(i)
}

fn add_type(types: &mut BTreeMap<u32, TypeTotal>, ty: GgmlType, bytes: u64) {
    let total =
        types.entry(ty.id()).or_insert_with(|| TypeTotal { ty: ty.to_string(), tensors: 0, bytes: 0 });
    total.tensors += 1;
    total.bytes += bytes;
}

fn common(kind: Kind, meta: &Metadata, file_bytes: u64) -> Result<Inspection> {
    let c = Spec::from_metadata(meta)?;
    let tokens = meta.strings("tokenizer.ggml.tokens")?.map(<[String]>::len);
    let tokenizer = match (meta.str("tokenizer.ggml.model")?, tokens) {
        _ if meta.get("tokenizer.huggingface.json").is_some() => Some("tokenizer.json".to_owned()),
        (Some(model), Some(n)) => {
            let pre = meta.str("tokenizer.ggml.pre")?.map_or_else(String::new, |p| format!(" ({p})"));
            Some(format!("{model}{pre}, {n} tokens"))
        }
        _ => None,
    };
    let advice = sampling::advice(meta);
    let template = meta.str("tokenizer.chat_template")?.and_then(|t| t.lines().next());
    Ok(Inspection {
        kind,
        name: c.name.clone(),
        architecture: c.family.name.to_owned(),
        layers: c.layers.len(),
        width: c.d,
        context: c.context,
        experts: c.router().map_or(0, |r| r.experts),
        experts_used: c.router().map_or(0, |r| r.top_k),
        weights: 0,
        expert_weights: 0,
        rotated_weights: 0,
        table_weights: 0,
        file_bytes,
        types: Vec::new(),
        planes: Vec::new(),
        expert_levels: BTreeMap::new(),
        layer_bits: BTreeMap::new(),
        dense_bits_per_weight: None,
        tokenizer,
        chat_template: template.map(|line| line.chars().take(100).collect()),
        source: None,
        calibration: None,
        sampling: (advice.used > 0).then(|| advice.sampling.to_string()),
        notes: [keys::notes(meta)?, tokens::notes(meta)?, advice.notes].concat(),
    })
}
