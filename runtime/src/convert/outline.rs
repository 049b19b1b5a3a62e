//! Predicts the result of a conversion from the source's headers alone, without reading weights.

use super::plan::Plan;
use super::source::Source;
use super::{ConvertOptions, check};
use crate::error::{Error, Result};
use crate::format::GgufWriter;
use crate::quant::Level;
use std::fs::File;
use std::path::Path;

/// The predicted sizes of a conversion.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Outline {
    /// Bytes of all tensors of the source.
    pub source_bytes: u64,
    /// For each level as the highest one stored: its bits, and the bytes of the file.
    pub sizes: Vec<(u8, u64)>,
}

/// Writes a file to `out` that memory planning accepts as the source's conversion: its header, with holes in
/// place of the weights. Reads no weights of the source.
///
/// # Errors
/// As [`super::convert`] before it writes its first byte.
pub fn outline(source: &Path, out: &Path) -> Result<Outline> {
    let source = Source::open(source)?;
    check::check(&source)?;
    let size = |max| Ok((max, Plan::new(&source, &ConvertOptions::default().with_max_level(max))?.bytes()));
    let sizes = Level::ALL.into_iter().map(size).collect::<Result<Vec<_>>>()?;
    let plan = Plan::new(&source, &ConvertOptions::default())?;
    let failed = |e: std::io::Error| Error::io(out, e);
    let file = File::create(out).map_err(failed)?;
    let kept = file.try_clone().map_err(failed)?;
    let writer = GgufWriter::new(file, &plan.metadata, &plan.tensors, plan.alignment).map_err(failed)?;
    kept.set_len(writer.end()).map_err(failed)?;
    let sizes = sizes.into_iter().map(|(level, bytes)| (level.bits(), bytes)).collect();
    Ok(Outline { source_bytes: source.bytes(), sizes })
}
