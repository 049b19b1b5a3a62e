//! `dollop convert`.

use crate::args::{CalibrationArgs, ConvertArgs};
use crate::output::{Bar, Unit, bytes, peak_memory, read_text};
use crate::{Failure, interrupt};
use dollop::convert::{Calibration, imatrix};
use dollop::{CalibrateOptions, CancelToken};
use std::io::Write;
use std::sync::Arc;

/// What the arguments say of the inputs of the source's matrices.
fn calibration(args: &ConvertArgs, cancel: &CancelToken) -> Result<Option<Calibration>, Failure> {
    let CalibrationArgs { imatrix, calibrate, calibrate_tokens } = &args.calibration;
    if let Some(path) = imatrix {
        return Ok(Some(imatrix::read(path)?));
    }
    let Some(path) = calibrate else { return Ok(None) };
    let text = read_text(path)?;
    let named = path.file_name().filter(|n| *n != "-").unwrap_or("standard input".as_ref()).to_string_lossy();
    let options = CalibrateOptions { tokens: *calibrate_tokens, threads: args.how.threads };
    let mut bar = Bar::new(Unit::Bytes);
    let measured = dollop::calibrate(&args.source, &text, &named, &options, cancel, &mut |p| {
        bar.show(p.stage, p.done, p.total)
    })?;
    Ok(Some(measured))
}

pub fn convert(args: &ConvertArgs) -> Result<(), Failure> {
    let out = args.out.clone().unwrap_or_else(|| {
        let mut name = args.source.file_stem().unwrap_or(args.source.as_os_str()).to_os_string();
        name.push(".dollop.gguf");
        args.source.with_file_name(name)
    });
    if out.is_dir() {
        return Err(format!("{}: this is a folder; name the file to write", out.display()).into());
    }
    let (cancel, _guard) = interrupt::cancellable();
    let mut options = args.how.options();
    options.calibration = calibration(args, &cancel)?.map(Arc::new);
    let mut bar = Bar::new(Unit::Bytes);
    let report = dollop::convert::convert(&args.source, &out, &options, &cancel, &mut |p| {
        bar.show(p.stage, p.done, p.total)
    })?;
    drop(bar);
    let rate = report.bytes_in as f64 / report.seconds.max(1e-9);
    let peak = peak_memory();
    let mut stdout = std::io::stdout();
    if args.json {
        let mut json = serde_json::to_value(&report).map_err(|e| e.to_string())?;
        json["out"] = out.to_string_lossy().into();
        json["peak_memory_bytes"] = peak.into();
        writeln!(stdout, "{json}")?;
    } else {
        writeln!(stdout, "{}", out.display())?;
        if let Some(calibration) = &options.calibration {
            let of = (report.calibrated, report.matrices);
            eprintln!("{}: {} of {} matrices", calibration.description(), of.0, of.1);
        }
        let bits = report.bytes_out as f64 * 8.0 / report.weights as f64;
        eprintln!(
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
