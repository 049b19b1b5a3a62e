//! Parses the safetensors container and its index of shards. It locates tensors but does not read them.

use super::ggml::GgmlType;
use crate::error::{Error, Result};
use ::safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

/// Where one tensor lies in its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name in the file.
    pub name: String,
    /// Sizes, slowest-varying first (a matrix is `[rows, cols]`).
    pub shape: Vec<usize>,
    /// Element type.
    pub ty: GgmlType,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub n_bytes: u64,
}

/// The tensors of one file. `bytes` must be the whole file, because offsets are checked against its length.
///
/// # Errors
/// `Malformed` if the header contradicts itself or the file. `Unsupported` for element types that are not
/// weights.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>> {
    let malformed = |e: ::safetensors::SafeTensorError| Error::malformed("safetensors header", e.to_string());
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let data_start = (header + 8) as u64;
    let mut entries = Vec::new();
    for (name, info) in metadata.tensors() {
        let ty = match info.dtype {
            Dtype::F32 => GgmlType::F32,
            Dtype::F16 => GgmlType::F16,
            Dtype::BF16 => GgmlType::BF16,
            // Blocks of MXFP4: the codes are in one tensor, their scales in another.
            Dtype::U8 => GgmlType::I8,
            other => {
                let what = format!(
                    "tensor `{name}`: element type {other:?} is not supported; F32, F16 and BF16 are"
                );
                return Err(Error::unsupported(what));
            }
        };
        let (from, to) = info.data_offsets;
        let end = data_start.checked_add(to as u64).filter(|&end| end <= bytes.len() as u64);
        if end.is_none() || from > to {
            return Err(Error::malformed(
                format!("tensor `{name}`"),
                "lies past the end of the file; is the download complete?",
            ));
        }
        entries.push(Entry {
            name: name.clone(),
            shape: info.shape.clone(),
            ty,
            offset: data_start + from as u64,
            n_bytes: (to - from) as u64,
        });
    }
    entries.sort_by_key(|e| e.offset);
    Ok(entries)
}

/// The shard files that `model.safetensors.index.json` names, sorted, without duplicates. Only plain file
/// names are accepted, so an index cannot refer outside its folder.
///
/// # Errors
/// `Malformed` if the text is not an index, or names a path.
pub fn shards(index: &str) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    const FIELD: &str = "model.safetensors.index.json";
    let index: Index = serde_json::from_str(index).map_err(|e| Error::malformed(FIELD, e.to_string()))?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort();
    files.dedup();
    for file in &files {
        if file.is_empty() || file.contains(['/', '\\']) || file == ".." {
            return Err(Error::malformed(FIELD, format!("`{file}` is no file name; paths are not allowed")));
        }
    }
    Ok(files)
}
