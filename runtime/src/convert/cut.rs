//! Copies a converted file, keeping only as many planes of each expert as fit a given size.
//!
//! The levels depend on the losses of all experts, and the layout of the file depends on the levels. So the
//! complete file is written first.

use super::bits::{self, Size};
use super::calibration::Calibration;
use super::partial::Partial;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::dollop::{self, LEVELS, slabs_name};
use crate::format::{GgmlType, GgufWriter, Metadata, TensorDecl};
use crate::model::file::NestedFile;
use crate::quant::Level;
use crate::store;
use crate::telemetry::{CancelToken, Progress};
use std::collections::HashMap;
use std::path::Path;

/// Bytes copied between two checks for cancellation.
const PIECE: usize = 8 << 20;

/// Copies the file `whole` into a new partial file for `out` that fits `size`. Returns the new file and its
/// length in bytes.
///
/// # Errors
/// `Invalid` if even the lowest levels do not fit; `Cancelled`; errors of reading and writing.
pub(super) fn cut(
    whole: &Partial,
    out: &Path,
    size: Size,
    calibration: Option<&Calibration>,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<(Partial, u64)> {
    let bytes = store::map(whole.path())?;
    let length = bytes.len() as u64;
    let file = NestedFile::new(bytes.clone())?;
    let cut = Cut { levels: levels(&file, length, size, calibration)?, file: &file, bytes };
    let partial = Partial::new(out)?;
    let failed = |e: std::io::Error| Error::io(out, e);
    let gguf = &file.directory().gguf;
    let writer = GgufWriter::new(partial.file()?, &cut.metadata(), &cut.tensors(), gguf.alignment);
    let mut writer = writer.map_err(failed)?;
    let (mut done, mut place) = (0, (0, 0));
    cut.parts(&mut |index, part| {
        for piece in part.chunks(PIECE) {
            let at = if place.0 == index { place.1 } else { 0 };
            writer.write(index, at, piece).map_err(failed)?;
            (place, done) = ((index, at + piece.len() as u64), done + piece.len() as u64);
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            progress(Progress { stage: "fitting the size", done: done.min(length), total: length });
        }
        Ok(())
    })?;
    let mut to = writer.finish().map_err(failed)?;
    let written = std::io::Seek::stream_position(&mut to).map_err(failed)?;
    to.sync_all().map_err(failed)?;
    Ok((partial, written))
}

/// Chooses the level of every expert, by layer.
fn levels(
    file: &NestedFile,
    length: u64,
    size: Size,
    calibration: Option<&Calibration>,
) -> Result<Vec<(usize, Vec<Level>)>> {
    let stored = file.expert_levels();
    let layers: Vec<usize> = stored.iter().map(|(layer, _)| *layer).collect();
    let experts: usize = stored.iter().map(|(_, levels)| levels.len()).sum();
    if experts == 0 {
        return Err(Error::Invalid(
            "a size limit lowers the bits of experts, and this model has no experts".into(),
        ));
    }
    let bytes = matches!(size, Size::File(_));
    let choices = bits::choices(file, &layers, calibration, bytes)?;
    let most: u64 = choices.iter().filter_map(|c| c.costs.last()).sum();
    let least: u64 = choices.iter().filter_map(|c| c.costs.first()).sum();
    let budget = match size {
        // Reserve the overhead of the cut file. The list of levels takes at most 8 bytes per expert in each
        // of three stacks. Padding after the header may take part of a slab's alignment.
        Size::File(size) => {
            (size + most).checked_sub(length + 24 * experts as u64 + 2 * file.directory().gguf.alignment)
        }
        Size::Bits(mean) => {
            let weights = file.sizes().expert_weights;
            mean.is_finite().then_some((mean * weights as f64) as u64)
        }
    };
    let chosen = budget.and_then(|budget| bits::allot(&choices, budget)).ok_or_else(|| {
        Error::Invalid(match size {
            Size::File(_) => format!(
                "the size is too small: with all experts at 2 bits the file takes {} MB; lower --level-dense or --level-embed",
                (length - most + least).div_ceil(1 << 20)
            ),
            Size::Bits(bits) => format!("{bits} bits an expert are too few: 2 are the least"),
        })
    })?;
    let mut chosen = chosen.into_iter().map(|index| Level::ALL[index]);
    Ok(stored.into_iter().map(|(layer, all)| (layer, chosen.by_ref().take(all.len()).collect())).collect())
}

/// A file, and the levels to keep of its experts.
struct Cut<'a> {
    file: &'a NestedFile,
    bytes: Bytes,
    levels: Vec<(usize, Vec<Level>)>,
}

impl Cut<'_> {
    /// For each tensor of a plane: which experts keep their slab.
    fn kept(&self) -> HashMap<String, Vec<bool>> {
        let planes = self.levels.iter().flat_map(|(layer, levels)| {
            let keep = |p: usize| levels.iter().map(|l| l.planes() > p).collect();
            (0..Level::ALL.len()).map(move |p| (slabs_name(*layer, p), keep(p)))
        });
        planes.collect()
    }

    /// The metadata of the cut file. It lists the level of each expert if levels differ.
    fn metadata(&self) -> Metadata {
        let directory = self.file.directory();
        let mut metadata = directory.gguf.metadata.clone();
        let of = |name: &str| {
            let layer: usize = name.strip_prefix("blk.")?.split_once(".ffn_")?.0.parse().ok()?;
            Some(&self.levels.iter().find(|(l, _)| *l == layer)?.1)
        };
        let stacks = || directory.matrices.iter().map(|m| (m, of(&m.name).filter(|_| m.experts > 0)));
        let most = |(m, levels): (&dollop::MatrixEntry, Option<&Vec<Level>>)| {
            u64::from(levels.and_then(|l| l.iter().max()).map_or(m.level, |l| l.bits()))
        };
        metadata.insert("dollop.matrix.level", stacks().map(most).collect::<Vec<u64>>());
        let all = || stacks().filter_map(|(_, levels)| levels).flatten().map(|l| u64::from(l.bits()));
        if all().min() != all().max() {
            metadata.insert(LEVELS, all().collect::<Vec<u64>>());
            let version = metadata.u64("dollop.version").ok().flatten().unwrap_or_default() as u32;
            metadata.insert("dollop.version", version.max(dollop::VERSION_UNEVEN));
        }
        metadata
    }

    /// The tensors of the cut file.
    fn tensors(&self) -> Vec<TensorDecl> {
        let kept = self.kept();
        let mut sums = 0;
        let gguf = &self.file.directory().gguf;
        let mut tensors: Vec<TensorDecl> = (gguf.tensors.iter())
            .filter_map(|t| {
                let mut shape = t.shape.clone();
                if let Some(kept) = kept.get(&t.name) {
                    let count = kept.iter().filter(|k| **k).count();
                    shape = vec![*shape.first()?, count as u64];
                    sums += count;
                } else if t.ty == GgmlType::I8 {
                    sums += 1;
                }
                (!shape.contains(&0)).then(|| TensorDecl { name: t.name.clone(), shape, ty: t.ty })
            })
            .collect();
        for t in tensors.iter_mut().filter(|t| t.name == dollop::CHECKSUMS) {
            t.shape = vec![sums as u64];
        }
        tensors
    }

    /// Passes the data of each remaining tensor to `write` in parts, with the tensor's index in the cut file.
    fn parts(&self, write: &mut dyn FnMut(usize, &[u8]) -> Result<()>) -> Result<()> {
        let (kept, gguf) = (self.kept(), &self.file.directory().gguf);
        let table = self.file.directory().tensor(dollop::CHECKSUMS, GgmlType::I32, None)?;
        let (mut old, mut sums) = (self.bytes[table].chunks_exact(4), Vec::new());
        let mut index = 0;
        for t in &gguf.tensors {
            let bytes = &self.bytes[t.offset as usize..(t.offset + t.n_bytes) as usize];
            match kept.get(&t.name) {
                Some(kept) => {
                    let slabs = bytes.chunks_exact((bytes.len() / kept.len().max(1)).max(1));
                    for ((slab, sum), _) in slabs.zip(old.by_ref()).zip(kept).filter(|(_, kept)| **kept) {
                        sums.extend_from_slice(sum);
                        write(index, slab)?;
                    }
                    // A plane that no expert keeps has no tensor in the cut file.
                    index += usize::from(kept.contains(&true));
                    continue;
                }
                None if t.name == dollop::CHECKSUMS => write(index, &sums)?,
                None => {
                    if t.ty == GgmlType::I8 {
                        sums.extend_from_slice(old.next().unwrap_or_default());
                    }
                    write(index, bytes)?;
                }
            }
            index += 1;
        }
        Ok(())
    }
}
