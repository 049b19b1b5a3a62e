//! Splits tensors that hold several parts head by head: queries and their gate, or queries, keys, values and
//! the output gate of each key head. Marks rows whose rotating pairs are neighbours.

use super::{Layout, Piece, Pieces, Source};
use crate::error::{Error, Result};
use crate::format::hf::{Heads, Place};
use crate::format::{GgmlType, Metadata};
use std::ops::Range;

/// The most rows of a tensor that can be split.
const MAX_ROWS: usize = 1 << 20;

/// How the rows of such tensors are grouped, from a file's metadata.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grouped {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    key_heads: usize,
    key_dim: usize,
    /// Value heads per key head, and the values of each.
    share: usize,
    value_dim: usize,
    latent: Latent,
}

/// Row layout of latent attention: of the projections that make queries, keys and values.
#[derive(Clone, Copy, Debug, Default)]
struct Latent {
    rank: usize,
    /// Values of a query head without rope (`nope`) and with it (`rope`).
    nope: usize,
    rope: usize,
    value: usize,
    /// Whether rope rotates neighbouring values together; if not, values half of `rope` apart.
    pairs: bool,
}

impl Latent {
    fn of(meta: &Metadata, number: &dyn Fn(&str) -> Result<usize>) -> Result<Latent> {
        let own = |name: &str| -> Result<usize> {
            Ok(Some(number(&format!("{name}_mla"))?).filter(|&n| n > 0).unwrap_or(number(name)?))
        };
        let rope = number("rope.dimension_count")?;
        Ok(Latent {
            rank: number("attention.kv_lora_rank")?,
            nope: own("attention.key_length")?.saturating_sub(rope),
            rope,
            value: own("attention.value_length")?,
            pairs: meta.bool("dollop.rope.pairs")?.unwrap_or(true),
        })
    }

    /// The rope rows from `first` on, in half-split order.
    fn turned(&self, first: usize) -> Vec<Range<usize>> {
        match self.pairs {
            false => std::iter::once(first..first + self.rope).collect(),
            true => (0..2)
                .flat_map(|half| (0..self.rope / 2).map(move |i| first + 2 * i + half))
                .map(|row| row..row + 1)
                .collect(),
        }
    }

    /// The file rows of a part, in output order; `None` if a tensor with `rows` rows does not fit the
    /// metadata.
    fn runs(&self, part: Heads, heads: usize, rows: usize) -> Option<Vec<Range<usize>>> {
        let &Latent { rank, nope, rope, value, .. } = self;
        if rank == 0 || nope == 0 || rope == 0 || value == 0 {
            return None;
        }
        if part == Heads::Latent {
            let latent = std::iter::once(0..rank);
            return (rank.checked_add(rope) == Some(rows))
                .then(|| self.turned(rank).into_iter().chain(latent).collect());
        }
        let whole = nope.checked_add(if part == Heads::Turned { rope } else { value })?;
        if heads.checked_mul(whole) != Some(rows) {
            return None;
        }
        let of_head = |head: usize| {
            let first = head * whole;
            match part {
                Heads::Turned => {
                    let turned = self.turned(first + nope);
                    std::iter::once(first..first + nope).chain(turned).collect::<Vec<_>>()
                }
                _ => std::iter::once(first + nope..first + whole).collect(),
            }
        };
        Some((0..heads).flat_map(of_head).collect())
    }
}

impl Grouped {
    /// Reads the grouping from a file's metadata. Missing keys count as zero.
    ///
    /// # Errors
    /// `Malformed` for a key that is not a number.
    pub(super) fn of(meta: &Metadata) -> Result<Grouped> {
        let arch = meta.str("general.architecture")?.unwrap_or_default();
        let number = |key: &str| -> Result<usize> {
            Ok(meta.u64(&format!("{arch}.{key}"))?.map_or(0, |n| usize::try_from(n).unwrap_or(0)))
        };
        // A list belongs to a family without such a tensor.
        let kv_heads = number("attention.head_count_kv").unwrap_or(0);
        let heads = number("attention.head_count").unwrap_or(0);
        let (key_heads, value_heads) = (number("ssm.group_count")?, number("ssm.time_step_rank")?);
        Ok(Grouped {
            heads,
            kv_heads,
            head_dim: number("attention.key_length")?,
            key_heads,
            key_dim: number("ssm.state_size")?,
            share: value_heads.checked_div(key_heads).unwrap_or(0),
            value_dim: number("ssm.inner_size")?.checked_div(value_heads).unwrap_or(0),
            latent: Latent::of(meta, &number)?,
        })
    }

    /// The file rows of a part, in output order; `None` if a tensor with `rows` rows does not fit the
    /// metadata.
    fn runs(&self, part: Heads, rows: usize) -> Option<Vec<Range<usize>>> {
        let &Grouped { heads, kv_heads, head_dim, key_heads, key_dim, share, value_dim, .. } = self;
        let values = share.checked_mul(value_dim)?;
        if let Heads::Scanned | Heads::ScannedGate | Heads::ScannedSteps = part {
            return self.scanned(part, rows);
        }
        // The number of heads, and the lengths of the runs of rows in each.
        let (heads, lengths) = match part {
            Heads::Fused(which) => {
                let width = |heads: usize| heads.checked_mul(head_dim);
                let (q, kv) = (width(heads)?, width(kv_heads)?);
                let fits = q.checked_add(kv.checked_mul(2)?) == Some(rows) && kv > 0 && rows <= MAX_ROWS;
                return fits.then(|| vec![[0..q, q..q + kv, q + kv..rows][which].clone()]);
            }
            Heads::Query | Heads::Gate => (heads, [head_dim, head_dim, 0, 0]),
            Heads::Mixed | Heads::Z => (key_heads, [key_dim, key_dim, values, values]),
            Heads::Beta | Heads::Alpha => (key_heads, [share, share, 0, 0]),
            Heads::Turned | Heads::Latent | Heads::Values if rows <= MAX_ROWS => {
                return self.latent.runs(part, heads, rows);
            }
            _ => return None,
        };
        let whole = lengths.iter().try_fold(0usize, |sum, n| sum.checked_add(*n))?;
        let taken: &[usize] = match part {
            Heads::Query | Heads::Beta => &[0],
            Heads::Gate | Heads::Alpha => &[1],
            Heads::Mixed => &[0, 1, 2],
            Heads::Z => &[3],
            _ => return None,
        };
        let empty = taken.iter().any(|&which| lengths[which] == 0);
        if empty || rows > MAX_ROWS || heads.checked_mul(whole) != Some(rows) {
            return None;
        }
        let run = |which: usize, head: usize| {
            let first = head * whole + lengths[..which].iter().sum::<usize>();
            first..first + lengths[which]
        };
        Some(taken.iter().flat_map(|&which| (0..heads).map(move |head| run(which, head))).collect())
    }

    /// The rows of a part of Mamba-2's projection or convolution. The convolution has no gate and no steps.
    fn scanned(&self, part: Heads, rows: usize) -> Option<Vec<Range<usize>>> {
        let &Grouped { key_heads, key_dim, share, value_dim, .. } = self;
        let heads = key_heads.checked_mul(share)?;
        let (values, keys) = (heads.checked_mul(value_dim)?, key_heads.checked_mul(key_dim)?);
        let inner = values.checked_add(keys.checked_mul(2)?)?;
        let whole = inner.checked_add(values)?.checked_add(heads)?;
        let first = match rows {
            _ if rows > MAX_ROWS || values == 0 || keys == 0 => return None,
            _ if rows == whole => values,
            _ if rows == inner && part == Heads::Scanned => 0,
            _ => return None,
        };
        let (gate, steps) = (0..values, whole - heads..whole);
        Some(match part {
            Heads::ScannedGate => vec![gate],
            Heads::ScannedSteps => vec![steps],
            _ => {
                let (keys_at, queries_at) = (first + values, first + values + keys);
                vec![queries_at..queries_at + keys, keys_at..keys_at + keys, first..first + values]
            }
        })
    }

    /// Shape, pieces and layout of a part of a tensor; the whole tensor lies at `first`.
    ///
    /// # Errors
    /// `Malformed` if the tensor does not have the rows that the metadata says, or is a block-quantized
    /// vector.
    pub(super) fn cut(
        &self,
        place: &Place,
        part: Heads,
        (shape, ty): (&[usize], GgmlType),
        first: Piece,
    ) -> Result<(Vec<usize>, Pieces, Layout)> {
        if part == Heads::Keys {
            return self.turned_keys(place, (shape, ty), first);
        }
        let even = shape.len() == 2 || shape.len() == 1 && ty.block_len() == 1;
        let runs = shape.first().filter(|_| even).and_then(|&rows| self.runs(part, rows));
        let runs = runs.ok_or_else(|| {
            let what = format!(
                "is part of a tensor of shape {shape:?} and type {ty}, which does not fit the heads in the config"
            );
            Error::malformed(format!("tensor `{}`", place.name), what)
        })?;
        let mut shape = shape.to_vec();
        shape[0] = runs.iter().map(Range::len).sum();
        Ok((shape, Pieces::Even { first, stride: first.len, count: 1 }, Layout::Runs(runs)))
    }
}

impl Grouped {
    /// The keys of latent attention, transposed head by head: from `[heads · (nope + value), rank]` to
    /// `[heads · rank, nope]`.
    fn turned_keys(
        &self,
        place: &Place,
        (shape, ty): (&[usize], GgmlType),
        first: Piece,
    ) -> Result<(Vec<usize>, Pieces, Layout)> {
        let Latent { rank, nope, value, .. } = self.latent;
        let heads = self.heads;
        let rows = nope.checked_add(value).and_then(|n| n.checked_mul(heads)).filter(|&n| n <= MAX_ROWS);
        let out = heads.checked_mul(rank).filter(|&n| n <= MAX_ROWS && n > 0 && nope > 0);
        match (rows, out, shape) {
            (Some(rows), Some(out), &[r, c]) if r == rows && c == rank => {
                let layout = Layout::Turned { ty, rank, nope, head: nope + value };
                Ok((vec![out, nope], Pieces::Even { first, stride: first.len, count: 1 }, layout))
            }
            _ => {
                let what = format!(
                    "shape {shape:?} does not fit {heads} heads with {nope} + {value} rows of {rank} values"
                );
                Err(Error::malformed(format!("tensor `{}`", place.name), what))
            }
        }
    }
}

/// Marks query and key rows whose rotating pairs are neighbours: llama.cpp permutes them for some architectures,
/// and some families have them so from the start.
pub(super) fn mark_interleaved(source: &mut Source, architecture: &str) -> Result<()> {
    let number = |key: &str| source.metadata.u64(&format!("{architecture}.attention.{key}"));
    let heads = number("head_count")?.unwrap_or(0) as usize;
    let kv_heads = number("head_count_kv")?.map_or(heads, |n| n as usize);
    for t in &mut source.tensors {
        let heads =
            match t.name.rsplit_once('.').map_or("", |(n, _)| n.rsplit_once('.').map_or("", |(_, n)| n)) {
                "attn_q" => heads,
                "attn_k" => kv_heads,
                _ => continue,
            };
        let rows = t.shape[0];
        let whole =
            heads > 0 && heads <= rows && rows.is_multiple_of(heads) && (rows / heads).is_multiple_of(2);
        if !whole || t.shape.len() > 2 {
            let what = format!("shape {:?} does not fit {heads} heads", t.shape);
            return Err(Error::malformed(format!("tensor `{}`", t.name), what));
        }
        if t.shape.len() == 1 && t.ty.block_len() != 1 {
            let what =
                format!("tensor `{}`: a bias of {} is not supported; F32, F16 and BF16 are", t.name, t.ty);
            return Err(Error::unsupported(what));
        }
        t.layout = Layout::Interleaved(heads);
    }
    Ok(())
}

/// Maps a row of a part to its row in the file.
pub(super) fn stored(runs: &[Range<usize>], mut row: usize) -> usize {
    for run in runs {
        if row < run.len() {
            return run.start + row;
        }
        row -= run.len();
    }
    unreachable!("a tensor has as many rows as its runs")
}

/// Rows of [`Layout::Turned`], as f32.
pub(super) fn turned(
    data: &[u8],
    (ty, rank, nope, head): (GgmlType, usize, usize, usize),
    rows: Range<usize>,
) -> Result<Vec<u8>> {
    let row_bytes = ty.row_bytes(rank).unwrap_or(0);
    let mut out = Vec::with_capacity(4 * rows.len() * nope);
    let mut values = vec![0.0; nope * rank];
    let mut at = usize::MAX;
    for row in rows {
        if row / rank != at {
            at = row / rank;
            ty.dequantize(&data[at * head * row_bytes..][..nope * row_bytes], &mut values)?;
        }
        (0..nope).for_each(|n| out.extend_from_slice(&values[n * rank + row % rank].to_le_bytes()));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_tensor_are_all_of_it() {
        let of = Grouped {
            heads: 3,
            kv_heads: 1,
            head_dim: 4,
            key_heads: 2,
            key_dim: 5,
            share: 3,
            value_dim: 7,
            latent: Latent::default(),
        };
        for (parts, rows) in [
            (&[Heads::Query, Heads::Gate][..], 24),
            (&[Heads::Fused(0), Heads::Fused(1), Heads::Fused(2)], (3 + 2) * 4),
            (&[Heads::Mixed, Heads::Z], 2 * (5 + 5 + 21 + 21)),
            (&[Heads::Beta, Heads::Alpha], 12),
        ] {
            let all = parts.iter().flat_map(|&part| of.runs(part, rows).unwrap());
            let mut all: Vec<usize> = all.flatten().collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..rows), "{parts:?}");
            assert!(parts.iter().all(|&part| of.runs(part, rows + 1).is_none()));
        }
        let runs = of.runs(Heads::Mixed, 104).unwrap();
        assert_eq!(runs, [0..5, 52..57, 5..10, 57..62, 10..31, 62..83]);
        assert_eq!([0, 4, 5, 10, 20].map(|row| stored(&runs, row)), [0, 4, 52, 5, 10]);
        let vast = Grouped { heads: usize::MAX, head_dim: usize::MAX, share: usize::MAX, ..of };
        assert!(vast.runs(Heads::Query, 24).is_none() && vast.runs(Heads::Z, 104).is_none());
    }
}
