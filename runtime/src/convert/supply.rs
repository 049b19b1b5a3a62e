//! A source whose bytes come while it is converted, and go when no later step reads them.
//!
//! The headers of such a source are there, and its weights may be holes. A [`Supply`] fills the holes before a
//! step reads them, and may free them after the step's result is on disk. The library only says which bytes:
//! the command line downloads and frees them.

use super::plan::Target;
use super::source::{Extent, Source};
use crate::error::Result;
use std::path::Path;

/// One step of a conversion: a tensor, or the experts of a layer.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The tensors that the step reads, for display.
    pub name: String,
    /// Bytes that this step reads, and no earlier one.
    pub first: Vec<Extent>,
    /// Bytes that this step reads, and no later one.
    pub last: Vec<Extent>,
}

/// Provides the bytes of a source step by step. Steps are numbered from 0; those of an earlier, interrupted
/// conversion are left out.
pub trait Supply {
    /// Receives all steps that follow, and how many an earlier run has finished.
    ///
    /// # Errors
    /// Any; the conversion ends with it.
    fn begin(&self, files: &[&Path], steps: Vec<Step>, before: usize) -> Result<()>;

    /// Returns when all bytes that a step reads are in the files. Calls `wait` now and then, and ends with its
    /// error.
    ///
    /// # Errors
    /// Any; the conversion ends with it.
    fn ready(&self, step: usize, wait: &mut dyn FnMut() -> Result<()>) -> Result<()>;

    /// The result of a step is on disk, and in the journal if there is one.
    ///
    /// # Errors
    /// Any; the conversion ends with it.
    fn done(&self, step: usize) -> Result<()>;

    /// All steps are done. An error keeps the result from getting its final name.
    ///
    /// # Errors
    /// Any; the conversion ends with it.
    fn finish(&self, wait: &mut dyn FnMut() -> Result<()>) -> Result<()>;
}

/// The supply of a source whose files are complete.
pub(super) struct Complete;

impl Supply for Complete {
    fn begin(&self, _: &[&Path], _: Vec<Step>, _: usize) -> Result<()> {
        Ok(())
    }

    fn ready(&self, _: usize, _: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        Ok(())
    }

    fn done(&self, _: usize) -> Result<()> {
        Ok(())
    }

    fn finish(&self, _: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        Ok(())
    }
}

/// The steps of these targets.
pub(super) fn steps(source: &Source, targets: &[Target]) -> Vec<Step> {
    let of = |target: &Target| -> Vec<Extent> {
        target.names().iter().flat_map(|name| source.extents(name)).collect()
    };
    let extents: Vec<Vec<Extent>> = targets.iter().map(of).collect();
    let name = |target: &Target| match target.names() {
        [first, _, ..] => format!("{}.ffn_*_exps", first.split(".ffn_").next().unwrap_or_default()),
        names => names.concat(),
    };
    let mut steps: Vec<Step> = targets.iter().map(|t| Step { name: name(t), ..Step::default() }).collect();
    for (extent, first, last) in uses(&extents) {
        push(&mut steps[first].first, extent.clone());
        push(&mut steps[last].last, extent);
    }
    steps
}

/// Appends an extent, joined to the one before if that ends where it begins.
fn push(all: &mut Vec<Extent>, extent: Extent) {
    match all.last_mut().filter(|l| l.file == extent.file && l.bytes.end == extent.bytes.start) {
        Some(last) => last.bytes.end = extent.bytes.end,
        None => all.push(extent),
    }
}

/// Cuts the extents of all steps into parts that do not overlap. Returns, in file order, each part with the
/// first and the last step that reads it.
fn uses(steps: &[Vec<Extent>]) -> Vec<(Extent, usize, usize)> {
    let all = || steps.iter().flatten();
    let mut edges: Vec<(usize, u64)> =
        all().flat_map(|e| [(e.file, e.bytes.start), (e.file, e.bytes.end)]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut spans: Vec<Option<(usize, usize)>> = vec![None; edges.len()];
    for (step, extents) in steps.iter().enumerate() {
        for extent in extents {
            let from = edges.partition_point(|edge| *edge < (extent.file, extent.bytes.start));
            let to = edges.partition_point(|edge| *edge < (extent.file, extent.bytes.end));
            for span in &mut spans[from..to] {
                *span = Some((span.map_or(step, |(first, _)| first), step));
            }
        }
    }
    let parts = edges.windows(2).zip(&spans).filter_map(|(edge, span)| {
        let (first, last) = (*span)?;
        Some((Extent { file: edge[0].0, bytes: edge[0].1..edge[1].1 }, first, last))
    });
    parts.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;

    fn extent(file: usize, bytes: Range<u64>) -> Extent {
        Extent { file, bytes }
    }

    #[test]
    fn shared_bytes_come_with_their_first_step_and_go_with_their_last() {
        let steps = [
            vec![extent(0, 10..30)],
            vec![extent(0, 40..50), extent(1, 0..5)],
            vec![extent(0, 20..45)],
            vec![extent(1, 0..5), extent(0, 60..60)],
        ];
        let got = uses(&steps);
        let want = [
            (extent(0, 10..20), 0, 0),
            (extent(0, 20..30), 0, 2),
            (extent(0, 30..40), 2, 2),
            (extent(0, 40..45), 1, 2),
            (extent(0, 45..50), 1, 1),
            (extent(1, 0..5), 1, 3),
        ];
        assert_eq!(got, want);
        let mut all = Vec::new();
        push(&mut all, extent(0, 1..2));
        push(&mut all, extent(0, 2..4));
        push(&mut all, extent(1, 4..5));
        assert_eq!(all, [extent(0, 1..4), extent(1, 4..5)]);
    }
}
