//! `dollop convert`.

use crate::args::{CalibrationArgs, ConvertArgs, Effort};
use crate::hub::conversion::{Done, Order, Output};
use crate::hub::{self, Keep};
use crate::note;
use crate::output::{Bar, Unit, bytes, not_an_input, peak_memory, read_text};
use crate::screen;
use crate::{Failure, interrupt};
use dollop::convert::{Calibration, ConvertOptions, Journal, Purpose, Report, Size, imatrix, model_name};
use dollop::{CalibrateOptions, CancelToken, Progress};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Measures or reads the inputs of the source's matrices, as the arguments say. Also opens the journal that
/// stores progress.
fn calibration(
    args: &ConvertArgs,
    source: &Path,
    out: &Path,
    options: &ConvertOptions,
    cancel: &CancelToken,
) -> Result<(Option<Calibration>, Option<Journal>), Failure> {
    let CalibrationArgs { imatrix, calibrate, calibrate_tokens, effort, .. } = &args.calibration;
    if let Some(path) = imatrix {
        return Ok((Some(imatrix::read(path)?), None));
    }
    let Some(text) = calibrate else { return Ok((None, None)) };
    let mut how = CalibrateOptions::default().with_tokens(*calibrate_tokens).with_threads(args.how.threads);
    let text = match text {
        Some(path) => {
            let name = path.file_name().filter(|n| *n != "-").unwrap_or("standard input".as_ref());
            Some((read_text(path)?, name.to_string_lossy()))
        }
        None => None,
    };
    let journal = match effort {
        // A conversion of minutes needs no journal.
        Effort::Low => None,
        Effort::Normal | Effort::High => {
            let options = options.clone().with_threads(0);
            Some(Journal::open(out, source, &format!("{calibrate_tokens} {text:?} {options:?}"))?)
        }
    };
    if let Some(journal) = &journal {
        match journal.done() {
            0 if journal.was_stale() => {
                note!("what was done before is of another source or of other options: begun anew")
            }
            0 => {}
            n => note!("going on where it was interrupted: {n} parts are done"),
        }
    }
    how.resume = journal.clone();
    let mut bar = Bar::new(Unit::Bytes);
    let progress = &mut |p: Progress| bar.show(p.stage, p.done, p.total);
    let measured = match text {
        Some((text, named)) => dollop::calibrate(source, &text, &named, &how, cancel, progress)?,
        None => dollop::calibrate_by_itself(source, &how, cancel, progress)?,
    };
    Ok((Some(measured), journal))
}

/// The default output: beside the source, with the source's name.
fn default_out(source: &Path) -> Result<PathBuf, Failure> {
    let mut name = model_name(source).ok_or_else(|| {
        format!("{}: there is no name for the result; name a file to write", source.display())
    })?;
    name.push(".dollop.gguf");
    let folder = if source.file_name().is_some_and(|n| n == "config.json") {
        source.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    } else {
        source
    };
    // A path without a name, such as `.`, is a folder whose real path has one.
    Ok(match folder.file_name() {
        Some(_) => folder.with_file_name(name),
        None => folder.canonicalize().map_err(|e| format!("{}: {e}", folder.display()))?.with_file_name(name),
    })
}

pub fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    let mut options = args.how.options();
    options.sweeps = if args.calibration.effort == Effort::High { 4 } else { 2 };
    options.size = args.size.map(Size::File).or(args.bits.map(Size::Bits));
    options.rotate = !args.calibration.no_rotation;
    match remote(args, &options)? {
        Some(Done { path, report: Some(report) }) => told(args, &path, &report, None),
        Some(Done { path, report: None }) => {
            // The conversion of a remote model is written to the current folder, not into the hub's cache.
            let out = args.out.clone().unwrap_or_else(|| result_of(&path));
            local(args, &path, &out, options)
        }
        None => {
            let out = match &args.out {
                Some(out) => out.clone(),
                None => default_out(&args.source)?,
            };
            local(args, &args.source, &out, options)
        }
    }
}

/// The result of a remote model, in the current folder.
fn result_of(model: &Path) -> PathBuf {
    let mut out = model_name(model).unwrap_or_else(|| "model".into());
    out.push(".dollop.gguf");
    out.into()
}

/// Converts a remote model while it is downloaded, or downloads it. `None` if the source is a path; without a
/// report if the download is here now.
fn remote(args: &ConvertArgs, options: &ConvertOptions) -> Result<Option<Done>, Failure> {
    let CalibrationArgs { imatrix, calibrate, .. } = &args.calibration;
    if args.keep_source || calibrate.is_some() {
        let path = hub::local(&args.source, Keep::Source)?;
        return Ok((path != args.source).then_some(Done { path, report: None }));
    }
    let mut order = Order {
        options: options.clone(),
        out: args.out.clone().map_or(Output::Current, Output::File),
        ..Order::cached(Purpose::Weights)
    };
    if let Some(path) = imatrix {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        order.inputs = format!("imatrix {:08x}", crc32fast::hash(&bytes));
        order.calibration = Some(Arc::new(imatrix::read(path)?));
    }
    hub::convert(&args.source, &order)
}

/// Fails for an output that is a folder, or an input of the command. The library checks the files of the
/// source itself.
fn check_out(args: &ConvertArgs, out: &Path) -> Result<(), Failure> {
    if out.is_dir() {
        return Err(format!("{}: this is a folder; name the file to write", out.display()).into());
    }
    let CalibrationArgs { imatrix, calibrate, .. } = &args.calibration;
    let read = [imatrix.as_deref(), calibrate.as_ref().and_then(Option::as_deref)];
    not_an_input(out, &read.into_iter().flatten().collect::<Vec<_>>())
}

/// Converts a model that is here.
fn local(args: &ConvertArgs, source: &Path, out: &Path, mut options: ConvertOptions) -> Result<(), Failure> {
    check_out(args, out)?;
    let older = out.exists();
    let (cancel, _guard) = interrupt::cancellable();
    let (measured, journal) = calibration(args, source, out, &options, &cancel)?;
    (options.calibration, options.resume) = (measured.map(Arc::new), journal);
    let mut bar = Bar::new(Unit::Bytes);
    let report = dollop::convert::convert(source, out, &options, &cancel, &mut |p| {
        bar.show(p.stage, p.done, p.total)
    })?;
    drop(bar);
    if older {
        note!("{}: an older file of this name was replaced", out.display());
    }
    told(args, out, &report, options.calibration.as_deref())
}

/// Prints what was converted.
fn told(
    args: &ConvertArgs,
    out: &Path,
    report: &Report,
    calibration: Option<&Calibration>,
) -> Result<(), Failure> {
    let rate = report.bytes_in as f64 / report.seconds.max(1e-9);
    let peak = peak_memory();
    let mut stdout = screen::answers();
    if args.json {
        let mut json = serde_json::to_value(report).map_err(|e| e.to_string())?;
        json["out"] = out.to_string_lossy().into();
        json["peak_memory_bytes"] = peak.into();
        writeln!(stdout, "{}", screen::json(&json, false)?)?;
    } else {
        writeln!(stdout, "{}", out.display())?;
        if let Some(calibration) = calibration {
            let of = (report.calibrated, report.matrices);
            note!("{}: {} of {} matrices", calibration.description(), of.0, of.1);
        }
        if !report.left_out.is_empty() {
            note!("left out, for the model takes text alone: {}", report.left_out.join(", "));
        }
        let bits = report.bytes_out as f64 * 8.0 / report.weights as f64;
        note!(
            "{} -> {} ({bits:.2} bits per weight) in {:.1} s, {}/s{}",
            bytes(report.bytes_in),
            bytes(report.bytes_out),
            report.seconds,
            bytes(rate as u64),
            peak.map_or_else(String::new, |p| format!(", peak memory {} with the mapped source", bytes(p))),
        );
    }
    Ok(())
}
