//! Collects the tensors of a foreign model while its files are read.
//!
//! Names are canonical already, but untrusted: sizes and numbers are checked here, once for all formats.

use super::joined::{self, Part, Parts};
use super::{Layout, Piece, Pieces, Source, Tensor};
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::hf::{Place, Stored};
use crate::format::{GgmlType, Metadata};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

const MAX_EXPERTS: usize = 4096;

/// The tensors found so far. Experts that come one by one are stacked at the end.
#[derive(Default)]
pub(super) struct Collector {
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    /// Experts that came one by one, by their position in `tensors`. These are maps and not lists: a hostile
    /// name can claim any expert number, and must not allocate memory for all numbers below it.
    stacks: BTreeMap<usize, BTreeMap<usize, Piece>>,
    /// Tensors that come in parts.
    parts: Parts,
}

impl Collector {
    /// Adds a tensor. If `place` names an expert, `pieces` is the one matrix of that expert.
    pub(super) fn add(
        &mut self,
        place: Place,
        shape: Vec<usize>,
        ty: GgmlType,
        pieces: Pieces,
        layout: Layout,
    ) -> Result<()> {
        let ty = if matches!(layout, Layout::Turned { .. }) { GgmlType::F32 } else { ty };
        let wrong = |what: String| Err(Error::malformed(format!("tensor `{}`", place.name), what));
        if shape.is_empty() || shape.len() > 3 || shape.contains(&0) || !ty.is_float() {
            return wrong(format!("shape {shape:?} with type {ty} is not supported for weights"));
        }
        if pieces.count() > MAX_EXPERTS {
            return wrong(format!("has {} experts; at most {MAX_EXPERTS} are supported", pieces.count()));
        }
        if let Some(index) = place.part {
            let (&[rows, cols], Some(piece), Layout::Rows) = (&shape[..], pieces.get(0), layout) else {
                return wrong(format!("has a part of shape {shape:?}, which must be a matrix"));
            };
            return self.parts.add(place.name, index, Part { piece, rows, cols, ty });
        }
        let (Some(expert), Some(piece)) = (place.expert, pieces.get(0)) else {
            if self.index.contains_key(&place.name) {
                return wrong("appears twice".into());
            }
            let stored = place.stored;
            if stored != Stored::Plain && shape.len() > 1 {
                return wrong(format!("has shape {shape:?}, and must be a vector"));
            }
            let at = self.push(place.name, shape, ty, pieces, layout);
            self.tensors[at].stored = stored;
            return Ok(());
        };
        if expert >= MAX_EXPERTS {
            return wrong(format!("has an expert {expert}; at most {MAX_EXPERTS} experts are supported"));
        }
        let at = match self.index.get(&place.name) {
            Some(&at) => at,
            None => self.push(place.name.clone(), shape.clone(), ty, Pieces::Each(Vec::new()), layout),
        };
        let tensor = &self.tensors[at];
        if !matches!(tensor.pieces, Pieces::Each(_)) {
            return wrong("appears both whole and expert by expert".into());
        }
        if shape.len() != 2 || tensor.shape != shape || tensor.ty != ty {
            return wrong(format!("expert {expert} differs from the others in shape or type"));
        }
        if self.stacks.entry(at).or_default().insert(expert, piece).is_some() {
            return wrong(format!("expert {expert} appears twice"));
        }
        Ok(())
    }

    fn push(
        &mut self,
        name: String,
        shape: Vec<usize>,
        ty: GgmlType,
        pieces: Pieces,
        layout: Layout,
    ) -> usize {
        let at = self.tensors.len();
        self.index.insert(name.clone(), at);
        self.tensors.push(Tensor { name, shape, ty, pieces, layout, stored: Stored::Plain });
        at
    }

    pub(super) fn finish(
        mut self,
        metadata: Metadata,
        files: Vec<(PathBuf, Bytes)>,
        others: Vec<PathBuf>,
    ) -> Result<Source> {
        for (name, parts) in std::mem::take(&mut self.parts).finish()? {
            if self.index.contains_key(&name) {
                return Err(Error::malformed(format!("tensor `{name}`"), "appears both whole and in parts"));
            }
            let rows = parts.iter().map(|part| part.rows).fold(0, usize::saturating_add);
            let (shape, ty) = (vec![rows, parts[0].cols], joined::common_type(&parts));
            let pieces = Pieces::Each(parts.iter().map(|part| part.piece).collect());
            self.push(name, shape, ty, pieces, Layout::Joined(parts));
        }
        for (at, stack) in self.stacks {
            let t = &mut self.tensors[at];
            let n = stack.last_key_value().map_or(0, |(&last, _)| last + 1);
            if stack.len() != n {
                let what =
                    format!("only {} of {n} experts are there; is the download complete?", stack.len());
                return Err(Error::malformed(format!("tensor `{}`", t.name), what));
            }
            t.pieces = Pieces::Each(stack.into_values().collect());
            t.shape.insert(0, n);
        }
        Ok(Source { metadata, tensors: self.tensors, index: self.index, files, others })
    }
}
