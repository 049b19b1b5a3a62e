//! Converts models from other formats (GGUF files, Hugging Face folders) into Dollop files.
//!
//! A conversion streams: each thread holds one block of rows, encodes it and writes it at its final offset.
//! The output has a temporary name until it is complete, and is then renamed (R6).

mod bits;
mod cache;
mod calibration;
mod check;
mod cut;
mod encode;
mod feedback;
#[doc(hidden)]
pub mod imatrix;
pub(crate) mod journal;
mod name;
mod outline;
pub(crate) mod packing;
pub(crate) mod partial;
mod plan;
mod rows;
#[doc(hidden)]
pub mod source;
mod supply;
mod work;

pub use crate::quant::GroupParams;
pub use bits::Size;
pub use cache::{Purpose, cached};
pub use calibration::{Calibration, Inputs};
#[doc(hidden)]
pub use journal::Journal;
pub use name::model_name;
#[doc(hidden)]
pub use outline::{Outline, outline};
pub use plan::Group;
#[doc(hidden)]
pub use rows::Rows;
#[doc(hidden)]
pub use source::Extent;
#[doc(hidden)]
pub use supply::{Step, Supply};

use crate::error::{Error, Result};
use crate::format::{GgufWriter, Value};
use crate::quant::{Anchor, Level, Rotation, Shape};
use crate::telemetry::{CancelToken, Progress};
use calibration::Importance;
use crc32fast::Hasher;
use encode::{Encoder, Summary};
use feedback::Feedbacks;
use journal::Record;
use partial::Partial;
use plan::{Plan, Target};
use source::Source;
use std::io::Seek;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use work::Work;

/// Options of a conversion.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// Level of dense matrices: attention, dense blocks, shared experts, output head.
    pub level_dense: Level,
    /// Level of the embedding, which a tied model also uses as its output head. `None` means `level_dense`.
    pub level_embed: Option<Level>,
    /// Highest level stored for the experts.
    pub max_level: Level,
    /// Number of weights that share a scale and a zero point.
    pub group: Group,
    /// Limit on the size of the result. Within it, each expert gets the level, up to `max_level`, that keeps
    /// the total error low. The complete file is first written beside the output, and then cut to the limit.
    pub size: Option<Size>,
    /// Format of scales and zero points. A matrix that keeps its source's codes uses the source's format
    /// instead.
    pub params: GroupParams,
    /// Number of threads; 0 means one per core.
    pub threads: usize,
    /// Measured inputs of the matrices. Errors then cost more in columns with large inputs. Codes kept from
    /// the source do not change.
    pub calibration: Option<Arc<Calibration>>,
    /// Journal of the finished work. A conversion that was killed resumes from it, and the result is
    /// byte-identical.
    #[doc(hidden)]
    pub resume: Option<Journal>,
    /// Passes over all codes of an expert matrix that look for better ones, after error feedback. This needs
    /// a calibration that kept the inputs themselves.
    pub sweeps: usize,
    /// Whether expert matrices encoded with error feedback are stored for rotated inputs, which lowers the
    /// error of low levels. Files before version 3 have no such matrices.
    pub rotate: bool,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        ConvertOptions {
            level_dense: Level::B8,
            level_embed: None,
            max_level: Level::B8,
            size: None,
            group: Group::Auto,
            params: GroupParams::Wide,
            threads: 0,
            calibration: None,
            resume: None,
            sweeps: 2,
            rotate: true,
        }
    }
}

impl ConvertOptions {
    /// Sets the level of dense matrices.
    #[must_use]
    pub fn with_level_dense(mut self, level: Level) -> Self {
        self.level_dense = level;
        self
    }

    /// Sets the highest level stored for the experts.
    #[must_use]
    pub fn with_max_level(mut self, level: Level) -> Self {
        self.max_level = level;
        self
    }

    /// Sets the number of threads; 0 means one per core.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }
}

impl ConvertOptions {
    /// The number of threads to use: `threads`, or one per core if that is 0.
    fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        if self.threads == 0 { cores() } else { self.threads }
    }
}

/// The result of a conversion.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Bytes of all tensors of the source.
    pub bytes_in: u64,
    /// Bytes of the file written.
    pub bytes_out: u64,
    /// Weights in nested matrices.
    pub weights: u64,
    /// Number of nested matrices. The experts of a layer count as three: gate, up and down.
    pub matrices: usize,
    /// Number of nested matrices whose inputs the calibration measured.
    pub calibrated: usize,
    /// Parts of the source that a text model does not use, each with the number of its tensors.
    pub left_out: Vec<String>,
    /// Wall time in seconds.
    pub seconds: f64,
}

/// Converts the model at `source` into a Dollop file `out`.
///
/// # Errors
/// Errors of reading and writing; `Invalid` if `out` is one of the files being read; `Cancelled`. After an
/// error no new file exists at `out`, and an older file there is untouched.
pub fn convert(
    source: &Path,
    out: &Path,
    options: &ConvertOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    convert_opened(&Source::open(source)?, out, options, cancel, progress)
}

/// [`convert`] of a source that is open.
fn convert_opened(
    source: &Source,
    out: &Path,
    options: &ConvertOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    convert_source(source, out, options, &supply::Complete, cancel, progress)
}

/// [`convert`] of a source whose bytes come while it is converted.
///
/// # Errors
/// As [`convert`], and those of `supply`.
#[doc(hidden)]
pub fn convert_supplied(
    source: &Path,
    out: &Path,
    options: &ConvertOptions,
    supply: &dyn Supply,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let source = Source::open(source)?;
    convert_source(&source, out, options, supply, cancel, progress)
}

/// Checks that the model at `source` can be converted for `purpose`. Reads no weights.
///
/// # Errors
/// As [`convert`] before it writes its first byte; `Unsupported` or `Template` if the model does not serve
/// `purpose`.
#[doc(hidden)]
pub fn check_for(source: &Path, purpose: Purpose) -> Result<()> {
    let opened = Source::open(source)?;
    check::check(&opened)?;
    match purpose {
        Purpose::Chat => check::can_chat(&opened).map_err(|e| e.at(source)),
        Purpose::Weights => Ok(()),
    }
}

fn convert_source(
    source: &Source,
    out: &Path,
    options: &ConvertOptions,
    supply: &dyn Supply,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let start = Instant::now();
    check::check(source)?;
    let plan = Plan::new(source, options)?;
    log::info!("converting into {}: {} MB", out.display(), plan.bytes() >> 20);
    let importance = Importance::new(options.calibration.as_deref(), source)?;
    let calibrated = plan.matrices().filter(|name| importance.has(name)).count();
    check::not_a_source(source, out)?;
    let (partial, written) = destination(out, options, plan.targets.len())?;
    let steps = supply::steps(source, &plan.targets[written.len()..]);
    supply.begin(&source.weight_files(), steps, written.len())?;
    let file = partial.file()?;
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::StorageFull => Error::io(
            out,
            std::io::Error::other(format!(
                "{e}: {} MB are needed; free some space or name another folder",
                plan.bytes() >> 20
            )),
        ),
        _ => Error::io(out, e),
    };
    let mut metadata = plan.metadata.clone();
    metadata.insert(
        "dollop.calibration",
        Value::from(options.calibration.as_ref().map_or("none", |c| c.description())),
    );
    let writer = GgufWriter::new(file, &metadata, &plan.tensors, plan.alignment).map_err(failed)?;
    let rows = options.calibration.as_ref().and_then(|c| c.rows()).map(|rows| &**rows);
    let feedbacks = Feedbacks::new(source, rows, options.sweeps, options.threads());
    let mut job = Job {
        encoder: Encoder { source, options, importance, feedbacks, cancel, writer: Mutex::new(writer) },
        supply,
        done: 0,
        total: source.bytes(),
        progress,
        tables: Tables::default(),
    };
    job.all(&plan.targets, written).map_err(|e| match e {
        JobError::Io(e) => failed(e),
        JobError::Other(e) => e,
    })?;
    let Job { encoder, tables, progress, .. } = job;
    let mut writer = encoder.writer.into_inner().expect("no thread panicked with the lock");
    for (index, bytes) in plan.tables.iter().zip([tables.fits, tables.errors, tables.checksums]) {
        writer.write(*index, 0, &bytes).map_err(failed)?;
    }
    let mut file = writer.finish().map_err(failed)?;
    let bytes_out = file.stream_position().map_err(failed)?;
    file.sync_all().map_err(failed)?;
    drop(file);
    let (partial, bytes_out) = match options.size {
        Some(size) => cut::cut(&partial, out, size, options.calibration.as_deref(), cancel, progress)?,
        None => (partial, bytes_out),
    };
    partial.keep(out)?;
    if let Some(journal) = &options.resume {
        journal.remove();
    }
    log::info!("converted into {} in {:.1} s", out.display(), start.elapsed().as_secs_f64());
    Ok(Report {
        bytes_in: source.bytes(),
        bytes_out,
        weights: plan.weights,
        matrices: plan.matrices().count(),
        calibrated,
        left_out: source.metadata().strings("dollop.source.left_out")?.unwrap_or_default().to_vec(),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Opens the file to write. When resuming, also returns the table parts of the targets already written.
fn destination(out: &Path, options: &ConvertOptions, targets: usize) -> Result<(Partial, Vec<[Vec<u8>; 3]>)> {
    let Some(journal) = &options.resume else { return Ok((Partial::new(out)?, Vec::new())) };
    let written = journal.records().into_iter().filter_map(|record| match record {
        Record::Written(tables) => Some(tables),
        _ => None,
    });
    let mut written: Vec<_> = written.take(targets).collect();
    let (file, path) = journal.file("-file", false)?;
    // The journal lists written targets, but the file is empty: it was deleted. Drop those records.
    if !written.is_empty() && file.metadata().map_err(|e| Error::io(&path, e))?.len() == 0 {
        journal.cut(journal.done() - written.len())?;
        written.clear();
    }
    Ok((Partial::lasting(path, file), written))
}

enum JobError {
    Io(std::io::Error),
    Other(Error),
}

impl From<std::io::Error> for JobError {
    fn from(e: std::io::Error) -> Self {
        JobError::Io(e)
    }
}

impl From<Error> for JobError {
    fn from(e: Error) -> Self {
        JobError::Other(e)
    }
}

/// The tables at the end of the file, as raw bytes.
#[derive(Default)]
struct Tables {
    fits: Vec<u8>,
    errors: Vec<u8>,
    checksums: Vec<u8>,
}

impl Tables {
    fn lens(&self) -> [usize; 3] {
        [&self.fits, &self.errors, &self.checksums].map(Vec::len)
    }

    fn since(&self, [fits, errors, checksums]: [usize; 3]) -> [Vec<u8>; 3] {
        [self.fits[fits..].to_vec(), self.errors[errors..].to_vec(), self.checksums[checksums..].to_vec()]
    }
}

struct Job<'a> {
    encoder: Encoder<'a>,
    supply: &'a dyn Supply,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
    tables: Tables,
}

impl Job<'_> {
    /// Writes all targets. The first `written.len()` of them are already in the file; `written` holds their
    /// table parts.
    fn all(&mut self, targets: &[Target], written: Vec<[Vec<u8>; 3]>) -> Result<(), JobError> {
        for (target, [fits, errors, checksums]) in targets.iter().zip(&written) {
            let writer = self.encoder.writer.get_mut().expect("no thread panicked with the lock");
            target.tensors().for_each(|index| writer.resume(index));
            self.tables.fits.extend_from_slice(fits);
            self.tables.errors.extend_from_slice(errors);
            self.tables.checksums.extend_from_slice(checksums);
            self.advance(target.names().iter().map(|name| self.encoder.source.tensor_bytes(name)).sum())?;
        }
        for (step, target) in targets[written.len()..].iter().enumerate() {
            let before = self.tables.lens();
            self.wait(&mut |supply, wait| supply.ready(step, wait))?;
            self.target(target)?;
            if let Some(journal) = &self.encoder.options.resume {
                let writer = self.encoder.writer.get_mut().expect("no thread panicked with the lock");
                writer.out().sync_data()?;
                journal.add(Record::Written(self.tables.since(before)))?;
            }
            self.supply.done(step)?;
        }
        self.wait(&mut |supply, wait| supply.finish(wait))
    }

    /// Waits for the supply. Progress is reported meanwhile, and ^C ends the wait.
    fn wait(
        &mut self,
        until: &mut dyn FnMut(&dyn Supply, &mut dyn FnMut() -> Result<()>) -> Result<()>,
    ) -> Result<(), JobError> {
        let (done, total, cancel) = (self.done, self.total, self.encoder.cancel);
        let progress = &mut self.progress;
        Ok(until(self.supply, &mut || report(*progress, done, total, cancel))?)
    }

    fn target(&mut self, target: &Target) -> Result<(), JobError> {
        match target {
            Target::Plain { name, index } => {
                let source = self.encoder.source;
                let n = source.shape(name).map_or(0, |s| s.iter().product());
                let mut values = vec![0.0f32; n];
                let (rows, cols) = rows_cols(source.shape(name).unwrap_or_default());
                debug_assert_eq!(rows * cols, n);
                source.read_rows(name, 0, 0..rows, &mut values)?;
                if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                    let what = format!("value {i} is infinite or not a number; is the file damaged?");
                    let error = Error::malformed(format!("tensor `{name}`"), what);
                    return Err(error.at(source.file(name, 0).unwrap_or(Path::new("model"))).into());
                }
                let writer = self.encoder.writer.get_mut().expect("no thread panicked with the lock");
                writer.write(*index, 0, bytemuck::cast_slice(&values))?;
                self.advance(source.tensor_bytes(name))
            }
            Target::Dense { name, shape, level, index } => {
                let mut end = 0;
                let places = (0..level.planes()).map(|p| {
                    let start = end;
                    end += shape.plane(p).len as u64;
                    (*index, start)
                });
                let (anchor, places) = (Anchor::fixed(*level), places.collect());
                let work =
                    Work { name, expert: 0, shape: *shape, level: *level, anchor, rotation: None, places };
                let summaries = self.encode(&[work])?;
                self.table(&summaries[0]);
                self.checksum(&summaries[0].checksums);
                self.advance(self.encoder.source.tensor_bytes(name))?;
                self.encoder.source.release(name);
                Ok(())
            }
            Target::Experts { names, shapes, rotations, experts, level, planes } => {
                self.experts(names, shapes, rotations, *experts, *level, planes)
            }
        }
    }

    fn experts(
        &mut self,
        names: &[String],
        shapes: &[Shape],
        rotations: &[Option<Rotation>],
        experts: usize,
        level: Level,
        planes: &[(usize, usize)],
    ) -> Result<(), JobError> {
        let count = names.len();
        // Go expert by expert, so that the parts of a slab are written close together.
        let part = |p: usize, m: usize| shapes[..m].iter().map(|s| s.plane(p).len).sum::<usize>();
        let works: Vec<Work> = (0..count * experts)
            .map(|i| {
                let (expert, m) = (i / count, i % count);
                let place = |(p, &(index, stride))| (index, (expert * stride + part(p, m)) as u64);
                let places = planes.iter().enumerate().map(place).collect();
                let (name, shape, rotation) = (&names[m], shapes[m], rotations[m]);
                Work { name, expert, shape, level, anchor: Anchor::Nested, rotation, places }
            })
            .collect();
        let summaries = self.encode(&works)?;
        for (p, &(index, stride)) in planes.iter().enumerate() {
            for (e, parts) in summaries.chunks_exact(count).enumerate() {
                let mut slab = Hasher::new();
                parts.iter().for_each(|part| slab.combine(&part.checksums[p]));
                self.encoder.pad((index, (e * stride) as u64), part(p, count)..stride, &mut slab)?;
                self.checksum(&[slab]);
            }
        }
        (0..count)
            .flat_map(|m| summaries.iter().skip(m).step_by(count))
            .for_each(|summary| self.table(summary));
        self.advance(names.iter().map(|n| self.encoder.source.tensor_bytes(n)).sum())?;
        names.iter().for_each(|n| self.encoder.source.release(n));
        Ok(())
    }

    fn encode(&mut self, works: &[Work]) -> Result<Vec<Summary>, JobError> {
        let (before, total, cancel) = (self.done, self.total, self.encoder.cancel);
        let progress = &mut self.progress;
        self.encoder.run(works, &mut |bytes| Ok(report(*progress, before + bytes, total, cancel)?))
    }

    fn table(&mut self, of: &Summary) {
        self.tables.fits.extend_from_slice(bytemuck::cast_slice(&of.fits));
        self.tables.errors.extend_from_slice(bytemuck::cast_slice(&of.errors));
    }

    /// Adds one checksum, combined from `parts`: a slab, or all planes of a dense matrix in order.
    fn checksum(&mut self, parts: &[Hasher]) {
        let mut all = Hasher::new();
        parts.iter().for_each(|part| all.combine(part));
        self.tables.checksums.extend(all.finalize().to_le_bytes());
    }

    fn advance(&mut self, bytes: u64) -> Result<(), JobError> {
        self.done += bytes;
        Ok(report(self.progress, self.done, self.total, self.encoder.cancel)?)
    }
}

fn report(progress: &mut dyn FnMut(Progress), done: u64, total: u64, cancel: &CancelToken) -> Result<()> {
    if !cancel.is_cancelled() {
        progress(Progress { stage: "converting", done: done.min(total), total });
    }
    if cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
}

fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [rows, cols] => (rows, cols),
        [n] => (1, n),
        _ => (0, 0),
    }
}
