//! Joins experts with the narrow ones that they share in groups. A layer adds `factor · narrow(x)` to each chosen
//! expert's output, with the same gate: one expert with more hidden values computes both.

use super::{Layout, Source, Tensor};
use crate::error::{Error, Result};
use crate::format::GgmlType;
use crate::model::families::Family;
use std::ops::Range;

/// A stack of experts, and one of narrow experts.
#[derive(Debug)]
pub(super) struct Widened {
    wide: Tensor,
    narrow: Tensor,
    /// Consecutive experts that share a narrow one.
    group: usize,
    /// The factor on the narrow experts' columns; `None` if their rows come after those of the experts.
    factor: Option<f32>,
}

/// Keys about narrow experts, after `<arch>.`.
const KEYS: [&str; 3] = ["expert_chunk_feed_forward_length", "experts_per_group", FACTOR];
const FACTOR: &str = "expert_group_scale";

/// Joins the narrow experts of a family that has them, and writes the new width.
///
/// # Errors
/// `Malformed` if the stacks do not match.
pub(super) fn widen(source: &mut Source) -> Result<()> {
    let family = source.metadata.str("general.architecture")?.map(Family::find);
    let Some(Ok(family)) = family else { return Ok(()) };
    let Some(usual) = family.narrow_experts else { return Ok(()) };
    let key = |name: &str| format!("{}.{name}", family.name);
    let factor = source.metadata.f32(&key(FACTOR))?.unwrap_or(usual);
    if !factor.is_finite() {
        return Err(Error::malformed(key(FACTOR), format!("{factor} is not a finite number")));
    }
    KEYS.iter().for_each(|name| drop(source.metadata.remove(&key(name))));
    let (mut narrow, mut rest) = (Vec::new(), Vec::new());
    for t in std::mem::take(&mut source.tensors) {
        if t.name.ends_with("_chexps.weight") { narrow.push(t) } else { rest.push(t) }
    }
    for t in narrow {
        let name = t.name.replace("_chexps.", "_exps.");
        let wrong = |what: &str| Error::malformed(format!("tensor `{}`", t.name), what.to_owned());
        let at =
            rest.iter().position(|t| t.name == name).ok_or_else(|| wrong("there are no experts for it"))?;
        let wide = rest.swap_remove(at);
        let joined = join(wide, t, Some(factor).filter(|_| name.contains("ffn_down")))?;
        if name.contains("ffn_up") {
            source.metadata.insert(key(family.expert_width), joined.shape[1] as u32);
        }
        rest.push(joined);
    }
    source.index = rest.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
    source.tensors = rest;
    Ok(())
}

fn join(wide: Tensor, narrow: Tensor, factor: Option<f32>) -> Result<Tensor> {
    let wrong = || {
        let what = format!("shape {:?} does not match that of the experts, {:?}", narrow.shape, wide.shape);
        Error::malformed(format!("tensor `{}`", narrow.name), what)
    };
    let (&[experts, rows, cols], &[narrows, more_rows, more_cols]) = (&wide.shape[..], &narrow.shape[..])
    else {
        return Err(wrong());
    };
    let group = experts.checked_div(narrows).filter(|group| group * narrows == experts).ok_or_else(wrong)?;
    let shape = match factor {
        Some(_) if rows == more_rows => vec![experts, rows, cols.saturating_add(more_cols)],
        None if cols == more_cols => vec![experts, rows.saturating_add(more_rows), cols],
        _ => return Err(wrong()),
    };
    let (name, pieces, stored) = (wide.name.clone(), wide.pieces.clone(), wide.stored);
    let layout = Layout::Widened(Box::new(Widened { wide, narrow, group, factor }));
    Ok(Tensor { name, shape, ty: GgmlType::F32, pieces, layout, stored })
}

impl Widened {
    /// Rows of an expert, as the bytes of f32 numbers.
    pub(super) fn rows(&self, source: &Source, expert: usize, rows: Range<usize>) -> Result<Vec<u8>> {
        let read = |t: &Tensor, expert: usize, rows: Range<usize>| -> Result<Vec<f32>> {
            let mut out = vec![0.0; rows.len() * t.rows_cols().1];
            t.ty.dequantize(&source.stored_rows(t, expert, rows)?, &mut out)?;
            Ok(out)
        };
        let (own, group) = (self.wide.rows_cols().0, expert / self.group);
        let mut out = Vec::new();
        let mut put = |all: Vec<f32>| out.extend(all.iter().flat_map(|v| v.to_le_bytes()));
        match self.factor {
            None => {
                put(read(&self.wide, expert, rows.start.min(own)..rows.end.min(own))?);
                put(read(&self.narrow, group, rows.start.max(own) - own..rows.end.max(own) - own)?);
            }
            Some(factor) => {
                for row in rows {
                    put(read(&self.wide, expert, row..row + 1)?);
                    let mut more = read(&self.narrow, group, row..row + 1)?;
                    more.iter_mut().for_each(|v| *v *= factor);
                    put(more);
                }
            }
        }
        Ok(out)
    }
}
