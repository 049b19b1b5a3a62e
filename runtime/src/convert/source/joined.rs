//! Joins tensors that files store separately and Dollop files as one: queries, keys and values of delta nets with one
//! decay per value of a key.

use super::Piece;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::hf::Place;
use crate::format::{GgmlType, Metadata};
use crate::model::Spec;
use crate::model::spec::MixerSpec;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::PathBuf;

/// The tensors of such nets that files name like those of attention, or store separately: the GGUF name, our name, and
/// the part.
const PARTS: [(&str, &str, Option<(usize, usize)>); 8] = [
    ("attn_q.weight", "attn_qkv.weight", Some((0, 3))),
    ("attn_k.weight", "attn_qkv.weight", Some((1, 3))),
    ("attn_v.weight", "attn_qkv.weight", Some((2, 3))),
    ("ssm_conv1d_q.weight", "ssm_conv1d.weight", Some((0, 3))),
    ("ssm_conv1d_k.weight", "ssm_conv1d.weight", Some((1, 3))),
    ("ssm_conv1d_v.weight", "ssm_conv1d.weight", Some((2, 3))),
    ("attn_gate.weight", "ssm_g_a.weight", None),
    ("attn_output.weight", "ssm_out.weight", None),
];

/// The layers that are such nets.
#[derive(Debug, Default)]
pub(super) struct Nets(Vec<bool>);

impl Nets {
    /// Empty if the metadata is invalid; a later check reports that.
    pub(super) fn of(metadata: &Metadata) -> Nets {
        let is = |mixer: &MixerSpec| matches!(mixer, MixerSpec::Delta(net) if net.decays_per_value());
        let spec = Spec::from_metadata(metadata);
        Nets(spec.map_or_else(|_| Vec::new(), |spec| spec.layers.iter().map(|l| is(&l.mixer)).collect()))
    }

    /// The destination of a tensor of such a net, if our name is another.
    pub(super) fn place(&self, name: &str) -> Option<Place> {
        let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
        let is_net = layer.parse::<usize>().is_ok_and(|layer| self.0.get(layer) == Some(&true));
        let (_, ours, part) = PARTS.iter().find(|(theirs, ..)| is_net && *theirs == part)?;
        Some(Place { part: *part, ..Place::whole(format!("blk.{layer}.{ours}"), None) })
    }
}

/// One part of a joined tensor.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) piece: Piece,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) ty: GgmlType,
}

/// The parts found so far, by name.
#[derive(Default)]
pub(super) struct Parts(HashMap<String, (usize, BTreeMap<usize, Part>)>);

impl Parts {
    /// Adds part `index` of `count`.
    pub(super) fn add(&mut self, name: String, (index, count): (usize, usize), part: Part) -> Result<()> {
        let parts = &mut self.0.entry(name.clone()).or_insert((count, BTreeMap::new())).1;
        match parts.insert(index, part) {
            None => Ok(()),
            Some(_) => {
                Err(Error::malformed(format!("tensor `{name}`"), format!("part {index} appears twice")))
            }
        }
    }

    /// The joined tensors, sorted by name.
    ///
    /// # Errors
    /// `Malformed` if a part is missing or narrower than another.
    pub(super) fn finish(self) -> Result<Vec<(String, Vec<Part>)>> {
        let mut all: Vec<_> = self.0.into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let whole = |(name, (count, parts)): (String, (usize, BTreeMap<usize, Part>))| {
            let parts: Vec<Part> = parts.into_values().collect();
            if parts.len() != count || parts.iter().any(|part| part.cols != parts[0].cols) {
                let what = format!("has {} parts of {count}, or parts of different widths", parts.len());
                return Err(Error::malformed(format!("tensor `{name}`"), what));
            }
            Ok((name, parts))
        };
        all.into_iter().map(whole).collect()
    }
}

/// The type of a joined tensor: that of its parts, or F32 if they differ.
pub(super) fn common_type(parts: &[Part]) -> GgmlType {
    let ty = parts[0].ty;
    if parts.iter().all(|part| part.ty == ty) { ty } else { GgmlType::F32 }
}

/// Rows of a joined tensor of type `ty`.
pub(super) fn rows<'a>(
    files: &'a [(PathBuf, Bytes)],
    parts: &[Part],
    ty: GgmlType,
    rows: Range<usize>,
) -> Result<Cow<'a, [u8]>> {
    let mut out = Cow::Borrowed(&[][..]);
    let mut first = 0;
    for &Part { piece, rows: count, cols, ty: stored } in parts {
        let of = rows.start.clamp(first, first + count) - first..rows.end.clamp(first, first + count) - first;
        first += count;
        if of.is_empty() {
            continue;
        }
        let row_bytes = stored.row_bytes(cols).unwrap_or(0);
        let data =
            &files[piece.file].1[piece.offset..][..piece.len][of.start * row_bytes..of.end * row_bytes];
        if stored != ty {
            let mut values = vec![0.0; of.len() * cols];
            stored.dequantize(data, &mut values)?;
            values.iter().for_each(|value| out.to_mut().extend_from_slice(&value.to_le_bytes()));
        } else if out.is_empty() {
            out = Cow::Borrowed(data);
        } else {
            out.to_mut().extend_from_slice(data);
        }
    }
    Ok(out)
}
