//! `dollop doctor`: measures what this machine offers for running models, and suggests the next step.

use crate::hub::settings::Settings;
use crate::hub::{self, Seen};
use crate::output::bytes;
use crate::{Failure, locate, rates, screen};
use clap::Args;
use dollop::Engine;
use dollop::internal::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use dollop::internal::store::available_bytes;
use serde::Serialize;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Checks what this machine offers for running models: disk, memory, cores, GPUs, limits and the cache
/// folder. Suggests the next step.
///
/// Takes some seconds, and writes and reads 256 MB in the cache folder. With MODEL, also plans that model for
/// the free memory.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop doctor\n  dollop doctor hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M\n  dollop doctor model.gguf --json"
)]
pub struct DoctorArgs {
    /// The model to plan for: a path, or a name (hf:ORG/NAME[:QUANT])
    pub model: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Serialize)]
struct Disk {
    folder: PathBuf,
    free_bytes: u64,
    /// Random reads that bypass the page cache.
    read_bytes_per_second: f64,
    reads_in_flight: usize,
    access: String,
}

#[derive(Serialize)]
struct Gpu {
    name: String,
    software: bool,
    lacks: Option<String>,
}

#[derive(Serialize)]
struct Findings {
    cores: usize,
    instruction_sets: Vec<String>,
    memory_bytes_per_second: f64,
    free_memory_bytes: Option<u64>,
    /// The limit of the control group, if there is one.
    memory_limit_bytes: Option<u64>,
    open_files_limit: Option<u64>,
    gpus: Vec<Gpu>,
    /// An error says why the cache folder cannot be used.
    disk: Result<Disk, String>,
    advice: String,
}

pub fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let disk = locate::cache_folder().and_then(|folder| disk(&folder)).map_err(|Failure(why)| why);
    let gpu = |d: dollop::Device| Gpu { name: d.name, software: d.software, lacks: d.missing };
    let found = Findings {
        cores: rates::cores(),
        instruction_sets: Isa::available().iter().map(ToString::to_string).collect(),
        memory_bytes_per_second: rates::memory(&CpuBackend::new(CpuOptions::default())?),
        free_memory_bytes: available_bytes(),
        memory_limit_bytes: first_number("/sys/fs/cgroup/memory.max"),
        open_files_limit: open_files(),
        gpus: dollop::devices().into_iter().skip(1).map(gpu).collect(),
        advice: advice(args.model.as_deref(), disk.as_ref().err()),
        disk,
    };
    let mut out = screen::stdout();
    if args.json {
        writeln!(out, "{}", screen::json(&found, true)?)?;
        return Ok(());
    }
    print(&found, &mut out)
}

fn print(found: &Findings, out: &mut dyn Write) -> Result<(), Failure> {
    let rate = |r: f64| format!("{}/s", bytes(r as u64));
    writeln!(out, "cores          {}, with {}", found.cores, found.instruction_sets.join(", "))?;
    let free = found.free_memory_bytes.map_or("unknown".into(), bytes);
    let limit = found
        .memory_limit_bytes
        .map_or(String::new(), |n| format!(", limited to {} by the control group", bytes(n)));
    writeln!(out, "memory         {free} free{limit}; read at {}", rate(found.memory_bytes_per_second))?;
    match &found.disk {
        Ok(d) => {
            let how = format!("{} reads in flight, {}", d.reads_in_flight, d.access);
            writeln!(
                out,
                "disk           {} free; cold reads of 2 MiB at {} ({how})",
                bytes(d.free_bytes),
                rate(d.read_bytes_per_second)
            )?;
            writeln!(out, "cache folder   {}, can be written", d.folder.display())?;
        }
        Err(why) => writeln!(out, "cache folder   cannot be used: {why}")?,
    }
    for gpu in &found.gpus {
        let what = match (&gpu.lacks, gpu.software) {
            (Some(lacks), _) => format!("cannot compute models: it lacks {lacks}"),
            (None, true) => "in software: slower than the CPU itself".into(),
            (None, false) => "can compute models".into(),
        };
        writeln!(out, "GPU            {}: {what}", screen::one_line(&gpu.name))?;
    }
    if found.gpus.is_empty() {
        writeln!(out, "GPU            none (Vulkan, Metal or DirectX 12)")?;
    }
    if let Some(files) = found.open_files_limit {
        writeln!(out, "limits         {files} open files")?;
    }
    writeln!(out, "\n{}", found.advice)?;
    Ok(())
}

/// What the folder's disk gives.
fn disk(folder: &Path) -> Result<Disk, Failure> {
    let rates::Disk { measured, access, .. } = rates::disk(folder, false)?;
    Ok(Disk {
        folder: folder.to_path_buf(),
        free_bytes: hub::free_bytes(folder),
        read_bytes_per_second: measured.bytes_per_second,
        reads_in_flight: measured.lanes,
        access: format!("{access:?}").to_lowercase(),
    })
}

/// The first word of a file, if it is a number.
fn first_number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

fn open_files() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    limits.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_whitespace().next()?.parse().ok()
}

/// One suggestion, with its command.
fn advice(model: Option<&Path>, cache_fault: Option<&String>) -> String {
    if cache_fault.is_some() {
        return "Set XDG_CACHE_HOME to a folder that can be written; then run `dollop doctor` again.".into();
    }
    if let Err(Failure(why)) = Settings::read() {
        return format!("Models cannot be fetched by name: {why}.");
    }
    let Some(model) = model else {
        return "Next: `dollop chat` talks to the model that comes with Dollop; `dollop plan hf:ORG/NAME` says what another needs.".into();
    };
    match fit(model) {
        Ok((how, memory)) => format!("Next: `dollop chat {} --memory {memory}M`: {how}.", model.display()),
        Err(Failure(why)) => format!("This model does not run here: {why}."),
    }
}

/// How a model would run in the free memory, and the budget in MiB.
fn fit(model: &Path) -> Result<(String, u64), Failure> {
    let seen = hub::look(model)?;
    let (path, ahead) = match &seen {
        Seen::Here(path) => (path, None),
        Seen::Ahead(ahead) => (&ahead.path, Some(ahead)),
    };
    let mut options = dollop::EngineOptions::default();
    options.memory = available_bytes().map(|free| free - free / 10);
    let planned = locate::plan(Some(path), options, &mut |path, options| Engine::plan(path, options));
    if let Some(ahead) = ahead {
        ahead.forget();
    }
    let (plan, _) = planned?;
    let how = match plan.streaming {
        true => "experts that do not fit are read as tokens ask for them",
        false => "everything fits",
    };
    Ok((how.to_owned(), plan.budget.unwrap_or(plan.total_bytes()) >> 20))
}
