//! Encodes a list of matrices on all cores and writes each block of rows straight into the file.
//!
//! Threads take blocks in order and write the encoded bytes at their final offset. Reading, encoding and
//! writing overlap without queues, and memory is one block per thread, whatever the size of a matrix. Values
//! that depend on the whole matrix (corrections, errors, checksums) are joined in block order afterwards. So
//! the file does not depend on the number of threads.

use super::calibration::Importance;
use super::feedback::Feedbacks;
use super::source::Source;
use super::work::Work;
use super::{ConvertOptions, JobError};
use crate::error::{Error, Result};
use crate::format::{GgmlType, GgufWriter};
use crate::quant::{self, Anchor, EncodedRows, FitSums, Fits, GroupParams, Octave, PLANES, Shape};
use crate::telemetry::CancelToken;
use crc32fast::Hasher;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// A matrix's entries in the tables of the file.
pub(super) struct Summary {
    pub(super) fits: Fits,
    pub(super) errors: [f32; PLANES],
    /// Checksum of every plane.
    pub(super) checksums: Vec<Hasher>,
}

/// Data kept of a block after its bytes are in the file.
#[derive(Clone)]
struct Written {
    sums: FitSums,
    largest: f32,
    faint: bool,
    codes: Vec<Hasher>,
    scales: Scales,
    zeros: Hasher,
}

/// The scales of a block.
#[derive(Clone)]
enum Scales {
    /// Already in the file; their checksum.
    Written(Hasher),
    /// Held back until the octave of their whole matrix is known: 2 bytes a group.
    Kept(Vec<u8>),
}

/// Everything the threads share: source, options, calibration and output.
pub(super) struct Encoder<'a> {
    pub(super) source: &'a Source,
    pub(super) options: &'a ConvertOptions,
    pub(super) importance: Importance<'a>,
    pub(super) feedbacks: Feedbacks<'a>,
    pub(super) cancel: &'a CancelToken,
    pub(super) writer: Mutex<GgufWriter<File>>,
}

/// Whether the codes of the source are kept unchanged.
pub(super) fn is_kept(shape: Shape, ty: GgmlType) -> bool {
    shape.group == 32 && quant::kept(ty) == Some(shape.params)
}

impl Encoder<'_> {
    /// Encodes and writes all of `works`. Calls `done`, on this thread, with the number of source bytes
    /// processed so far.
    pub(super) fn run(
        &self,
        works: &[Work],
        done: &mut dyn FnMut(u64) -> Result<(), JobError>,
    ) -> Result<Vec<Summary>, JobError> {
        let every: Vec<(usize, i32)> = (0..works.len()).map(|w| (w, 0)).collect();
        let mut read = 0;
        let mut written = self.pass(works, &every, &mut |bytes| {
            read = bytes;
            done(bytes)
        })?;
        // A matrix of very small weights is encoded again, multiplied by a power of two. This is rare, and
        // only known now.
        let faint = |blocks: &[Written]| blocks.iter().any(|b| b.faint);
        let largest = |blocks: &[Written]| blocks.iter().fold(0.0f32, |m, b| m.max(b.largest));
        let again: Vec<(usize, i32)> = (every.iter())
            .filter(|&&(w, _)| faint(&written[w]))
            .map(|&(w, _)| (w, quant::lift(largest(&written[w]))))
            .filter(|&(_, lift)| lift > 0)
            .collect();
        for (&(w, _), blocks) in again.iter().zip(self.pass(works, &again, &mut |_| done(read))?) {
            written[w] = blocks;
        }
        let mut lifts = vec![0; works.len()];
        again.iter().for_each(|&(w, lift)| lifts[w] = lift);
        let all = works.iter().zip(written).zip(lifts);
        all.map(|((work, blocks), lift)| self.join(work, blocks, lift)).collect()
    }

    /// Encodes and writes some of `works`, given as (index, lift): the weights are multiplied by 2^lift.
    /// Returns the kept data of their blocks.
    fn pass(
        &self,
        works: &[Work],
        which: &[(usize, i32)],
        done: &mut dyn FnMut(u64) -> Result<(), JobError>,
    ) -> Result<Vec<Vec<Written>>, JobError> {
        let blocks: Vec<(usize, i32, usize)> =
            (which.iter()).flat_map(|&(w, lift)| (0..works[w].blocks()).map(move |b| (w, lift, b))).collect();
        let threads = self.options.threads();
        let (next, read, failed) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let written: Mutex<Vec<Option<Written>>> = Mutex::new(vec![None; blocks.len()]);
        let step = |scratch: &mut Vec<f32>| -> Result<bool, JobError> {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(w, lift, b)) = blocks.get(at).filter(|_| !failed.load(Ordering::Relaxed)) else {
                return Ok(false);
            };
            let (block, bytes) = self.block(&works[w], works[w].rows(b), lift, scratch)?;
            read.fetch_add(bytes, Ordering::Relaxed);
            written.lock().expect("no thread panics with the lock")[at] = Some(block);
            Ok(true)
        };
        let work = |after: &mut dyn FnMut() -> Result<(), JobError>| -> Result<(), JobError> {
            let mut scratch = Vec::new();
            let mut all = || {
                while step(&mut scratch)? {
                    after()?;
                }
                Ok(())
            };
            all().inspect_err(|_| failed.store(true, Ordering::Relaxed))
        };
        std::thread::scope(|scope| {
            let others: Vec<_> =
                (1..threads.min(blocks.len())).map(|_| scope.spawn(|| work(&mut || Ok(())))).collect();
            let mine = work(&mut || done(read.load(Ordering::Relaxed)));
            let all = others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            [mine].into_iter().chain(all).collect::<Result<Vec<()>, JobError>>()
        })?;
        let written = written.into_inner().expect("no thread panicked");
        let mut written = written.into_iter().map(|w| w.expect("no thread failed"));
        Ok(which.iter().map(|&(w, _)| written.by_ref().take(works[w].blocks()).collect()).collect())
    }

    /// Encodes rows of a matrix and writes them at their offsets. Also returns the number of source bytes
    /// read.
    fn block(
        &self,
        work: &Work,
        rows: Range<usize>,
        lift: i32,
        scratch: &mut Vec<f32>,
    ) -> Result<(Written, u64), JobError> {
        let at = |e: Error| {
            let e = match e {
                Error::Malformed { path, field, reason } => {
                    Error::Malformed { path, field: format!("tensor `{}`: {field}", work.name), reason }
                }
                other => other,
            };
            e.at(self.source.file(work.name, work.expert).unwrap_or(Path::new("model")))
        };
        let shape = work.shape;
        let raw = self.source.raw_rows(work.name, work.expert, rows.clone())?;
        let part = self.encode(work, rows.clone(), &raw, lift, scratch).map_err(at)?;
        let tile = rows.start / quant::TILE_ROWS;
        let groups = tile * shape.groups();
        // Hash before taking the lock: under the lock we only copy into the page cache.
        let hashed = |bytes: &[u8]| {
            let mut hasher = Hasher::new();
            hasher.update(bytes);
            hasher
        };
        let written = Written {
            codes: (0..work.places.len()).map(|p| hashed(part.codes(p))).collect(),
            scales: match shape.params {
                GroupParams::Narrow => Scales::Kept(part.scales().to_vec()),
                _ => Scales::Written(hashed(part.scales())),
            },
            zeros: hashed(part.zeros()),
            sums: part.sums().clone(),
            largest: part.largest(),
            faint: part.faint(),
        };
        let mut writer = self.writer.lock().expect("no thread panics with the lock");
        // A matrix is lifted only after it was written once without a lift, so overwrite it.
        let mut put = |tensor, at, bytes: &[u8]| match lift {
            0 => writer.write(tensor, at, bytes),
            _ => writer.rewrite(tensor, at, bytes),
        };
        for (p, &(tensor, from)) in work.places.iter().enumerate() {
            put(tensor, from + (tile * shape.tile_bytes(p)) as u64, part.codes(p))?;
        }
        let (layout, (tensor, from)) = (shape.plane(0), work.places[0]);
        if shape.params != GroupParams::Narrow {
            put(
                tensor,
                from + (layout.scales.start + groups * shape.params.scale_bytes()) as u64,
                part.scales(),
            )?;
        }
        put(tensor, from + (layout.zeros.start + groups * shape.params.zero_bytes()) as u64, part.zeros())?;
        Ok((written, raw.len() as u64))
    }

    fn encode(
        &self,
        work: &Work,
        rows: Range<usize>,
        raw: &[u8],
        lift: i32,
        scratch: &mut Vec<f32>,
    ) -> Result<EncodedRows> {
        let factor = 2f32.powi(lift);
        let ty = self.source.dtype(work.name).expect("the plan is made of tensors that exist");
        let importance = self.importance.of(work.name, work.expert);
        let importance = importance.as_deref();
        if is_kept(work.shape, ty) {
            assert!(work.rotation.is_none(), "codes are kept of weights as they are");
            return quant::keep_rows(work.shape, rows.start, ty, raw, importance, work.level, factor);
        }
        scratch.resize(rows.len() * work.shape.cols, 0.0);
        ty.dequantize(raw, scratch)?;
        if lift != 0 {
            scratch.iter_mut().for_each(|w| *w *= factor);
        }
        if let Some(rotation) = work.rotation {
            rotation.apply_rows(scratch);
        }
        if work.anchor == Anchor::Nested
            && let Some(feedback) = self.feedbacks.of(work, lift)?
        {
            return feedback.encode_rows(work.shape, rows.start, scratch, work.level);
        }
        assert!(work.rotation.is_none(), "E(x²) is that of inputs as they are");
        quant::encode_rows(work.shape, rows.start, scratch, importance, work.level, work.anchor)
    }

    /// Joins the data of a matrix's blocks. Writes held-back scales, and the padding between the arrays.
    fn join(&self, work: &Work, blocks: Vec<Written>, lift: i32) -> Result<Summary, JobError> {
        let mut sums = FitSums::default();
        let mut codes = vec![Hasher::new(); work.places.len()];
        let (mut scales, mut zeros) = (Hasher::new(), Hasher::new());
        let octave = (blocks.iter())
            .map(|block| match &block.scales {
                Scales::Written(_) => Octave::default(),
                Scales::Kept(kept) => Octave::of(kept),
            })
            .max();
        let octave = octave.unwrap_or_default();
        let (tensor, from) = work.places[0];
        let mut at = from + work.shape.plane(0).scales.start as u64;
        for block in blocks {
            sums.merge(&block.sums);
            codes.iter_mut().zip(&block.codes).for_each(|(all, part)| all.combine(part));
            match &block.scales {
                Scales::Written(part) => scales.combine(part),
                Scales::Kept(kept) => {
                    let stored = octave.stored(kept);
                    scales.update(&stored);
                    self.writer.lock().expect("no thread panics with the lock").write(tensor, at, &stored)?;
                    at += stored.len() as u64;
                }
            }
            zeros.combine(&block.zeros);
        }
        for (p, hasher) in codes.iter_mut().enumerate() {
            let layout = work.shape.plane(p);
            self.pad(work.places[p], layout.codes.end..layout.scales.start, hasher)?;
            if p == 0 {
                hasher.combine(&scales);
                self.pad(work.places[p], layout.scales.end..layout.zeros.start, hasher)?;
                hasher.combine(&zeros);
            }
            self.pad(work.places[p], layout.zeros.end..layout.len, hasher)?;
        }
        let (fits, errors) = sums.solve(work.shape.params);
        let fits = fits.map(|fit| fit.lowered(lift).raised(work.shape.params, octave));
        Ok(Summary { fits, errors, checksums: codes })
    }

    /// Writes zeros to `range` of a tensor, counted from the offset `from`, and adds them to the checksum.
    pub(super) fn pad(
        &self,
        (tensor, from): (usize, u64),
        range: Range<usize>,
        hasher: &mut Hasher,
    ) -> Result<(), JobError> {
        if range.is_empty() {
            return Ok(());
        }
        let zeros = vec![0; range.len()];
        hasher.update(&zeros);
        let mut writer = self.writer.lock().expect("no thread panics with the lock");
        Ok(writer.write(tensor, from + range.start as u64, &zeros)?)
    }
}
