//! Measures this machine: memory, products of the CPU's kernels, and random reads of a folder's disk. `doctor`
//! shows some of it; `plan --calibrate` keeps all of it in the cache folder for forecasts.
//!
//! Kept rates belong to one machine, processor and number of cores. Others, and damaged files, are refused.

use crate::Failure;
use crate::output::write_file;
use dollop::Level;
use dollop::internal::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use dollop::internal::kernels::{Backend, Linear};
use dollop::internal::quant::{self, Matrix, Shape};
use dollop::internal::store::{Access, FileStorage, Measured, PART_BYTES, Reads, Storage};
use serde::{Deserialize, Serialize};
use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Version of the kept file. Files of other versions are measured again.
const VERSION: u32 = 1;
/// Name of the kept file in the cache folder.
const NAME: &str = "rates.json";
/// The largest kept file that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Bytes of the disk test's file, and of one read: about the size of an expert of a 30B model.
const FILE_BYTES: usize = 256 << 20;
const READ_BYTES: usize = 2 << 20;
/// Bytes of the memory test: larger than most CPU caches.
const MEMORY_BYTES: usize = 256 << 20;
/// Rows and columns of the matrices of products, and their number: together larger than most CPU caches, even at 2 bits.
const SIDE: usize = 2048;
const MATRICES: usize = 64;
/// Rows and columns of a product that takes no time but that of the operation itself.
const LEAST_SIDE: usize = 64;
/// Bursts of reads to measure: bytes of a part, and parts that are read together. A layer of a token reads
/// the planes that it misses in one burst.
pub const PART_SIZES: [usize; 3] = [16 << 10, 128 << 10, PART_BYTES];
pub const PARTS: [usize; 4] = [1, 4, 16, 48];
/// Repetitions, of which the median counts.
const REPEATS: usize = 9;

/// What a disk gives.
pub struct Disk {
    pub measured: Measured,
    pub access: Access,
    pub bursts: Vec<Burst>,
}

/// Reads that begin together, and the time until the last has ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Burst {
    pub part_bytes: usize,
    pub parts: usize,
    pub seconds: f64,
}

/// Products of one token with matrices that lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// Bits of the codes.
    pub bits: u8,
    pub bytes_per_second: f64,
}

/// The machine that rates belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub cores: usize,
    pub instruction_set: String,
    /// Checksum of the system's name for this installation; 0 if it has none.
    pub id: u32,
}

/// Everything that a forecast needs to know about a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub version: u32,
    pub machine: Machine,
    /// All cores together.
    pub memory_bytes_per_second: f64,
    /// The time that an operation of the backend takes beside its work.
    pub operation_seconds: f64,
    pub products: Vec<Product>,
    /// Bursts of random reads that bypass the page cache, for every combination of [`PART_SIZES`] and [`PARTS`].
    pub bursts: Vec<Burst>,
}

impl Machine {
    /// This machine.
    pub fn here() -> Machine {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find_map(|l| l.strip_prefix("model name"));
        let id = read("/etc/machine-id");
        Machine {
            processor: model.map_or(std::env::consts::ARCH, |m| m.trim_matches([' ', '\t', ':'])).to_owned(),
            cores: cores(),
            instruction_set: Isa::best().to_string(),
            id: if id.is_empty() { 0 } else { crc32fast::hash(id.as_bytes()) },
        }
    }
}

/// Cores of this machine.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Rates {
    /// Measures this machine, and the disk of `folder`.
    ///
    /// # Errors
    /// If the folder cannot be written, or memory is short.
    pub fn measure(folder: &Path) -> Result<Rates, Failure> {
        let disk = disk(folder, true)?;
        let cpu = CpuBackend::new(CpuOptions::default())?;
        let (operation_seconds, products) = products(&cpu)?;
        Ok(Rates {
            version: VERSION,
            machine: Machine::here(),
            memory_bytes_per_second: memory(&cpu),
            operation_seconds,
            products,
            bursts: disk.bursts,
        })
    }

    /// Keeps the rates in `folder`, and returns the file.
    ///
    /// # Errors
    /// System errors, naming the file.
    pub fn keep(&self, folder: &Path) -> Result<PathBuf, Failure> {
        let path = folder.join(NAME);
        write_file(&path, &crate::screen::json(self, true)?, &[])?;
        Ok(path)
    }

    /// The rates kept in `folder`; `None` if there are none.
    ///
    /// # Errors
    /// Why the kept rates cannot be used.
    pub fn kept(folder: &Path) -> Result<Option<Rates>, String> {
        let path = folder.join(NAME);
        let len = match fs::metadata(&path) {
            Ok(meta) => meta.len(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let damaged = || "the kept measurement is damaged".to_owned();
        let text = if len > MOST_BYTES { None } else { fs::read_to_string(&path).ok() };
        let json: serde_json::Value = text.and_then(|t| serde_json::from_str(&t).ok()).ok_or_else(damaged)?;
        if json["version"].as_u64() != Some(VERSION.into()) {
            return Err("the kept measurement is of another version of Dollop".into());
        }
        let rates: Rates = serde_json::from_value(json).map_err(|_| damaged())?;
        if !rates.are_sound() {
            return Err(damaged());
        }
        if rates.machine != Machine::here() {
            return Err("the kept measurement is of another machine".into());
        }
        Ok(Some(rates))
    }

    /// Whether all numbers are there, and none is absurd.
    fn are_sound(&self) -> bool {
        let good = |n: f64| n.is_finite() && n > 0.0;
        let there = |level: &Level| self.products.iter().any(|p| p.bits == level.bits());
        let combinations = PART_SIZES.iter().flat_map(|&size| PARTS.map(|parts| (size, parts)));
        good(self.memory_bytes_per_second)
            && good(self.operation_seconds)
            && self.products.iter().all(|p| good(p.bytes_per_second))
            && Level::ALL.iter().all(there)
            && self.bursts.iter().all(|b| good(b.seconds))
            && combinations.eq(self.bursts.iter().map(|b| (b.part_bytes, b.parts)))
    }
}

/// Memory bandwidth of all of the backend's threads together, in bytes per second.
pub fn memory(cpu: &CpuBackend) -> f64 {
    let words: Vec<u64> = (0..(MEMORY_BYTES / 8) as u64).collect();
    let once = |_| {
        let start = Instant::now();
        black_box(cpu.read(&words));
        MEMORY_BYTES as f64 / start.elapsed().as_secs_f64()
    };
    (0..4).map(once).fold(0.0, f64::max)
}

/// Seconds of an operation without work, and rates of products at every level.
fn products(cpu: &CpuBackend) -> Result<(f64, Vec<Product>), Failure> {
    let rows = |side: usize| -> Result<(Shape, quant::EncodedRows), Failure> {
        let shape = Shape::new(side, side, 32)?;
        let weights: Vec<f32> = (0..(side * side) as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5)
            .collect();
        let rows = quant::encode_rows(shape, 0, &weights, None, Level::B8, quant::Anchor::Nested)?;
        Ok((shape, rows))
    };
    let copy = |(shape, rows): &(Shape, quant::EncodedRows)| {
        quant::Encoded::join(*shape, std::slice::from_ref(rows)).into_nested()
    };
    let x = cpu.alloc(SIDE)?;
    let mut out = cpu.alloc(SIDE)?;
    let mut multiply =
        |matrix: &Matrix| cpu.linear(&x, 1, &mut [Linear { matrix, bias: None, out: &mut out }]);
    let least = Matrix::Nested(copy(&rows(LEAST_SIDE)?)?);
    const OPERATIONS: usize = 1000;
    let operation = median((0..REPEATS).map(|_| {
        let start = Instant::now();
        (0..OPERATIONS).for_each(|_| multiply(black_box(&least)));
        start.elapsed().as_secs_f64() / OPERATIONS as f64
    }));
    let one = rows(SIDE)?;
    let all = (0..MATRICES).map(|_| copy(&one)).collect::<dollop::Result<Vec<_>>>()?;
    let mut products = Vec::new();
    for level in Level::ALL {
        let matrices: Vec<Matrix> = all.iter().filter_map(|m| m.at(level).map(Matrix::Nested)).collect();
        let bytes: usize = matrices.iter().map(Matrix::bytes).sum();
        let seconds = median((0..REPEATS).map(|_| {
            let start = Instant::now();
            matrices.iter().for_each(&mut multiply);
            start.elapsed().as_secs_f64()
        }));
        let work = (seconds - operation * MATRICES as f64).max(seconds / 2.0);
        products.push(Product { bits: level.bits(), bytes_per_second: bytes as f64 / work });
    }
    Ok((operation, products))
}

/// The median of some numbers.
fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Measures the folder's disk as an engine does, with a temporary file; also bursts of reads, if these are wanted.
///
/// # Errors
/// If the folder cannot be written.
pub fn disk(folder: &Path, with_bursts: bool) -> Result<Disk, Failure> {
    let failed = |e: std::io::Error| Failure(format!("{}: {e}", folder.display()));
    fs::create_dir_all(folder).map_err(failed)?;
    let path = folder.join(format!("rates-{}", std::process::id()));
    let measured = write(&path).map_err(failed).and_then(|()| {
        // Reads the whole file, each part once, and each far from the part before.
        let count = FILE_BYTES / READ_BYTES;
        let probes: Vec<_> = (0..count).map(|i| ((i * 37 % count * READ_BYTES) as u64, READ_BYTES)).collect();
        let storage = FileStorage::open_measured(&path, &probes, count, None, Reads::Measured)?;
        let measured = storage.measured().ok_or("the disk could not be read")?;
        let access = storage.access();
        let bursts = if with_bursts { bursts(&path, measured.lanes, access)? } else { Vec::new() };
        Ok(Disk { measured, access, bursts })
    });
    let _ = fs::remove_file(&path);
    measured
}

/// Measures bursts of every size, read in the way that an engine would choose.
fn bursts(path: &Path, lanes: usize, access: Access) -> Result<Vec<Burst>, Failure> {
    let reads = if access == Access::Ring { Reads::Ring } else { Reads::Threads };
    let slots = FILE_BYTES / PART_BYTES;
    let mut slot = 0;
    let mut bursts = Vec::new();
    for part_bytes in PART_SIZES {
        for parts in PARTS {
            let mut times = Vec::new();
            for _ in 0..REPEATS {
                // Threads are tried with and without the page cache, each with half of the probes.
                let probe = |i: usize| (((slot + i) * 37 % slots * PART_BYTES) as u64, part_bytes);
                let probes: Vec<_> = (0..2 * parts).map(probe).collect();
                slot += probes.len();
                let storage = FileStorage::open_measured(path, &probes, parts, Some(lanes), reads)?;
                let rate = storage.measured().ok_or("the disk could not be read")?.bytes_per_second;
                times.push((part_bytes * parts) as f64 / rate);
            }
            bursts.push(Burst { part_bytes, parts, seconds: median(times.into_iter()) });
        }
    }
    Ok(bursts)
}

fn write(path: &Path) -> std::io::Result<()> {
    let mut file = fs::File::create_new(path)?;
    // Not zeros, because some file systems do not store these.
    let part: Vec<u8> = (0..1u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for _ in 0..FILE_BYTES / part.len() {
        file.write_all(&part)?;
    }
    file.sync_all()
}
