//! From foreign models to Dollop files.
//!
//! A conversion streams: it holds one matrix (or one layer's experts, one at a time) in memory, encodes its rows on all
//! cores, and writes to a temporary name that becomes the final one only when everything is there (R6).

mod cache;
mod plan;
pub mod source;

pub use cache::cached;
pub use plan::Group;

use crate::error::{Error, Result};
use crate::format::{GgufWriter, Value};
use crate::model::arch::knows_tensor;
use crate::model::config::Config;
use crate::quant::{self, Anchor, Encoded, EncodedRows, Level, Shape};
use crate::telemetry::{CancelToken, Progress};
use plan::{Plan, Target};
use source::Source;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// How a model is converted.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Level of dense matrices: attention, dense blocks, shared experts, head.
    pub level_dense: Level,
    /// Level of the embedding (which is also the head where the two are tied), if it is another.
    pub level_embed: Option<Level>,
    /// Highest level of the experts that is stored.
    pub max_level: Level,
    /// Weights that share a scale.
    pub group: Group,
    /// Threads; 0 for one per core.
    pub threads: usize,
    /// E(x²) of a matrix's inputs (`[cols]`) by its canonical name, where a calibration has measured them.
    pub importance: HashMap<String, Vec<f32>>,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        ConvertOptions {
            level_dense: Level::B8,
            level_embed: None,
            max_level: Level::B8,
            group: Group::Auto,
            threads: 0,
            importance: HashMap::new(),
        }
    }
}

/// What a conversion did.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Report {
    /// Bytes of the source's tensors.
    pub bytes_in: u64,
    /// Bytes of the file written.
    pub bytes_out: u64,
    /// Weights in nested matrices.
    pub weights: u64,
    /// Wall time.
    pub seconds: f64,
}

/// Weights of a block of rows that one thread encodes at a time: bounds the f32 scratch to 1 MB a thread.
const BLOCK_WEIGHTS: usize = 1 << 18;

/// Converts the model at `source` into a Dollop file `out`.
///
/// # Errors
/// Those of reading and writing; `Cancelled`. Nothing is left under `out` then, and an older file there is untouched.
pub fn convert(
    source: &Path,
    out: &Path,
    options: &ConvertOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let source = Source::open(source)?;
    convert_source(&source, out, options, cancel, progress)
}

pub(crate) fn convert_source(
    source: &Source,
    out: &Path,
    options: &ConvertOptions,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report> {
    let start = Instant::now();
    check(source)?;
    let plan = Plan::new(source, options)?;
    let temporary = Temporary::new(out)?;
    let file = File::create(&temporary.path).map_err(|e| Error::io(&temporary.path, e))?;
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
        Value::from(if options.importance.is_empty() { "none" } else { "input energies" }),
    );
    let writer =
        GgufWriter::new(BufWriter::with_capacity(1 << 20, file), &metadata, &plan.tensors, plan.alignment)
            .map_err(failed)?;
    let mut job = Job {
        source,
        options,
        cancel,
        writer,
        done: 0,
        total: source.bytes(),
        progress,
        tables: Tables::default(),
    };
    for target in &plan.targets {
        job.target(target).map_err(|e| match e {
            JobError::Io(e) => failed(e),
            JobError::Other(e) => e,
        })?;
    }
    let Job { mut writer, tables, .. } = job;
    for (index, bytes) in plan.tables.iter().zip([tables.fits, tables.errors, tables.checksums]) {
        writer.write(*index, 0, &bytes).map_err(failed)?;
    }
    let mut buffered = writer.finish().map_err(failed)?;
    buffered.flush().map_err(failed)?;
    let bytes_out = buffered.stream_position().map_err(failed)?;
    buffered.get_ref().sync_all().map_err(failed)?;
    drop(buffered);
    temporary.keep(out)?;
    Ok(Report {
        bytes_in: source.bytes(),
        bytes_out,
        weights: plan.weights,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// What can be known to be wrong before anything is written.
fn check(source: &Source) -> Result<()> {
    let file = source.files().next().unwrap_or(Path::new("model")).to_path_buf();
    let at = |e: Error| e.at(&file);
    if crate::format::dollop::is_dollop(source.metadata()) {
        return Err(at(Error::malformed(
            "dollop.version",
            "this is a Dollop file already; it runs as it is",
        )));
    }
    let config = Config::from_metadata(source.metadata()).map_err(at)?;
    for name in source.names() {
        if !knows_tensor(name) {
            let what =
                format!("tensor `{name}` is no part of a `{}` model that is supported", config.family.name);
            return Err(at(Error::unsupported(what)));
        }
    }
    let expect = |name: String, shape: &[usize]| match source.shape(&name) {
        None => Err(at(Error::malformed(
            format!("tensor `{name}`"),
            "the file has no such tensor; is the download complete?",
        ))),
        Some(found) if !found.ends_with(shape) => {
            let reason = format!("has shape {found:?}; the config asks for {shape:?}");
            Err(at(Error::malformed(format!("tensor `{name}`"), reason)))
        }
        Some(_) => Ok(()),
    };
    expect("token_embd.weight".into(), &[config.d])?;
    expect("output_norm.weight".into(), &[config.d])?;
    for i in 0..config.layers {
        let q = config.heads * config.head_dim;
        for (part, shape) in [
            ("attn_norm", &[config.d][..]),
            ("ffn_norm", &[config.d]),
            ("attn_q", &[q, config.d]),
            ("attn_k", &[config.kv_width(), config.d]),
            ("attn_v", &[config.kv_width(), config.d]),
            ("attn_output", &[config.d, q]),
        ] {
            expect(format!("blk.{i}.{part}.weight"), shape)?;
        }
    }
    Ok(())
}

/// A file under a temporary name, deleted unless kept.
struct Temporary {
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    /// Beside `out`, so that the rename stays within one file system. Leftovers of a conversion that was killed go.
    fn new(out: &Path) -> Result<Temporary> {
        let name =
            out.file_name().ok_or_else(|| Error::Invalid(format!("{} is no file name", out.display())))?;
        let stem = format!("{}.partial-", name.to_string_lossy());
        let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, e))?.flatten() {
            let name = entry.file_name();
            let owner =
                name.to_str().and_then(|n| n.strip_prefix(&stem)).and_then(|pid| pid.parse::<u32>().ok());
            if owner.is_some_and(|pid| {
                !Path::new("/proc").join(pid.to_string()).exists() || pid == std::process::id()
            }) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Temporary { path: folder.join(format!("{stem}{}", std::process::id())), kept: false })
    }

    fn keep(mut self, out: &Path) -> Result<()> {
        fs::rename(&self.path, out).map_err(|e| Error::io(out, e))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
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

/// The tables at the end of the file, as bytes.
#[derive(Default)]
struct Tables {
    fits: Vec<u8>,
    errors: Vec<u8>,
    checksums: Vec<u8>,
}

struct Job<'a> {
    source: &'a Source,
    options: &'a ConvertOptions,
    cancel: &'a CancelToken,
    writer: GgufWriter<BufWriter<File>>,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
    tables: Tables,
}

impl Job<'_> {
    fn target(&mut self, target: &Target) -> Result<(), JobError> {
        match target {
            Target::Plain { name, index } => {
                let n = self.source.shape(name).map_or(0, |s| s.iter().product());
                let mut values = vec![0.0f32; n];
                let (rows, cols) = rows_cols(self.source.shape(name).unwrap_or_default());
                debug_assert_eq!(rows * cols, n);
                self.source.read_rows(name, 0, 0..rows, &mut values)?;
                if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                    let what = format!("value {i} is infinite or not a number; is the file damaged?");
                    return Err(Error::malformed(format!("tensor `{name}`"), what).into());
                }
                self.writer.write(*index, 0, bytemuck::cast_slice(&values))?;
                self.advance(self.source.tensor_bytes(name))
            }
            Target::Dense { name, shape, level, index } => {
                let encoded = self.encode(name, 0, *shape, *level, Anchor::fixed(*level))?;
                let bytes = encoded.planes.concat();
                self.tables.checksums.extend(crc32fast::hash(&bytes).to_le_bytes());
                self.table(&encoded);
                self.writer.write(*index, 0, &bytes)?;
                self.advance(self.source.tensor_bytes(name))?;
                self.source.release(name);
                Ok(())
            }
            Target::Experts { names, shapes, experts, level, planes } => {
                self.experts(names, shapes, *experts, *level, planes)
            }
        }
    }

    fn experts(
        &mut self,
        names: &[String; 3],
        shapes: &[Shape; 3],
        experts: usize,
        level: Level,
        planes: &[(usize, usize)],
    ) -> Result<(), JobError> {
        let mut sums = vec![0u8; 4 * experts * planes.len()];
        let mut tables: [Vec<Encoded>; 3] = Default::default();
        let bytes = names.each_ref().map(|n| self.source.tensor_bytes(n) / experts as u64);
        for e in 0..experts {
            let mut slabs: Vec<Vec<u8>> =
                planes.iter().map(|&(_, stride)| Vec::with_capacity(stride)).collect();
            for m in 0..3 {
                let mut encoded = self.encode(&names[m], e, shapes[m], level, Anchor::Nested)?;
                slabs.iter_mut().zip(&encoded.planes).for_each(|(slab, plane)| slab.extend_from_slice(plane));
                encoded.planes.clear();
                tables[m].push(encoded);
                self.advance(bytes[m])?;
            }
            for (p, (slab, &(index, stride))) in slabs.iter_mut().zip(planes).enumerate() {
                slab.resize(stride, 0);
                sums[4 * (p * experts + e)..][..4].copy_from_slice(&crc32fast::hash(slab).to_le_bytes());
                self.writer.write(index, (e * stride) as u64, slab)?;
            }
        }
        tables.iter().flatten().for_each(|encoded| self.table(encoded));
        self.tables.checksums.extend(sums);
        names.iter().for_each(|n| self.source.release(n));
        Ok(())
    }

    fn table(&mut self, encoded: &Encoded) {
        self.tables.fits.extend_from_slice(bytemuck::cast_slice(&encoded.fits));
        self.tables.errors.extend_from_slice(bytemuck::cast_slice(&encoded.errors));
    }

    fn advance(&mut self, bytes: u64) -> Result<(), JobError> {
        self.done += bytes;
        (self.progress)(Progress { stage: "converting", done: self.done.min(self.total), total: self.total });
        if self.cancel.is_cancelled() { Err(Error::Cancelled.into()) } else { Ok(()) }
    }

    /// Encodes one matrix, its rows split among threads.
    fn encode(
        &self,
        name: &str,
        expert: usize,
        shape: Shape,
        level: Level,
        anchor: Anchor,
    ) -> Result<Encoded> {
        let per_block = (BLOCK_WEIGHTS / shape.cols).max(1).next_multiple_of(quant::TILE_ROWS);
        let blocks = shape.rows.div_ceil(per_block);
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if self.options.threads == 0 { cores() } else { self.options.threads }.min(blocks);
        let ty = self.source.dtype(name).expect("the plan is made of tensors that exist");
        let importance = self.options.importance.get(name).map(Vec::as_slice);
        let keep = shape.group == 32 && quant::keeps(ty) && importance.is_none();
        let (next, parts) = (AtomicUsize::new(0), Mutex::new(vec![None; blocks]));
        let work = || -> Result<()> {
            let mut scratch = Vec::new();
            loop {
                let block = next.fetch_add(1, Ordering::Relaxed);
                if block >= blocks || self.cancel.is_cancelled() {
                    return Ok(());
                }
                let rows = block * per_block..((block + 1) * per_block).min(shape.rows);
                let raw = self.source.raw_rows(name, expert, rows.clone())?;
                let part: EncodedRows = if keep {
                    quant::keep_rows(shape, rows.start, ty, &raw, level)?
                } else {
                    scratch.resize(rows.len() * shape.cols, 0.0);
                    ty.dequantize(&raw, &mut scratch)?;
                    quant::encode_rows(shape, rows.start, &scratch, importance, level, anchor)?
                };
                parts.lock().expect("no thread panics with the lock")[block] = Some(part);
            }
        };
        let at = |e: Error| match e {
            Error::Malformed { path, field, reason } => {
                Error::Malformed { path, field: format!("tensor `{name}`: {field}"), reason }
            }
            other => other,
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mine = work();
            let all = others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            all.chain([mine]).collect::<Result<Vec<()>>>()
        })
        .map_err(at)?;
        let parts: Option<Vec<EncodedRows>> =
            parts.into_inner().expect("no thread panicked").into_iter().collect();
        // A block is missing only where the others stopped for a cancellation.
        Ok(Encoded::join(shape, &parts.ok_or(Error::Cancelled)?))
    }
}

fn rows_cols(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [rows, cols] => (rows, cols),
        [n] => (1, n),
        _ => (0, 0),
    }
}
