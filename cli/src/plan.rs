//! `dollop plan`.

use crate::args::PlanArgs;
use crate::forecast::{self, Forecast};
use crate::hub::{self, Ahead, Seen};
use crate::note;
use crate::output::bytes;
use crate::rates::Rates;
use crate::screen;
use crate::{Failure, locate};
use dollop::convert::Outline;
use dollop::internal::sched::Precision;
use dollop::{Engine, EngineOptions, Error, MemoryPlan};
use std::io::Write;
use std::path::Path;

pub fn plan(args: &PlanArgs) -> Result<(), Failure> {
    if args.calibrate {
        let folder = locate::cache_folder()?;
        let rates = Rates::measure(&folder)?;
        note!("{}: this machine's rates, for forecasts of speed", rates.keep(&folder)?.display());
        if args.model.is_none() {
            return measured(&rates, args.json);
        }
    }
    let seen = args.model.as_deref().map(hub::look).transpose()?;
    let (path, ahead) = match &seen {
        None => (None, None),
        Some(Seen::Here(path)) => (Some(path.as_path()), None),
        Some(Seen::Ahead(ahead)) => (Some(ahead.path.as_path()), Some(&**ahead)),
    };
    let rates = kept();
    let planned = locate::plan(path, args.engine.options(), &mut |path, options| {
        let plan = Engine::plan(path, options)?;
        let speeds = match &rates {
            _ if plan.gpu => Err("not known for a GPU; --backend cpu forecasts the CPU's".to_owned()),
            Ok(rates) => Ok(speeds(path, options, &plan, rates)?),
            Err(why) => Err(why.clone()),
        };
        Ok((plan, speeds))
    });
    if let Some(ahead) = ahead {
        ahead.forget();
    }
    let ((plan, speeds), outline) = planned?;
    if args.json {
        let mut json = serde_json::to_value(&plan).map_err(|e| e.to_string())?;
        json["conversion"] = serde_json::to_value(&outline).map_err(|e| e.to_string())?;
        json["forecast"] = match &speeds {
            Ok(rows) => serde_json::json!({ "rows": rows }),
            Err(why) => serde_json::json!({ "rows": [], "why_not": why }),
        };
        if let Some(ahead) = ahead {
            json["download"] = serde_json::json!({
                "taken": ahead.candidate, "why": ahead.why, "files": ahead.all,
                "bytes_read": ahead.bytes_read, "free_bytes": ahead.free_bytes,
            });
        }
        writeln!(screen::stdout(), "{}", screen::json(&json, true)?)?;
        return Ok(());
    }
    if let Some(ahead) = ahead {
        download(ahead)?;
    }
    if let Some(outline) = &outline {
        conversion(outline)?;
    }
    memory(&plan)?;
    speed(&speeds)
}

/// This machine's rates, or one line that says why there are none and how to get them.
fn kept() -> Result<Rates, String> {
    let how = "`dollop plan --calibrate` measures this machine, which takes some seconds";
    let folder = locate::cache_folder().map_err(|Failure(why)| why)?;
    match Rates::kept(&folder) {
        Ok(rates) => rates.ok_or_else(|| format!("not known yet: {how}")),
        Err(why) => Err(format!("not known, because {why}: {how}")),
    }
}

/// Forecasts at several budgets and precisions.
fn speeds(
    path: &Path,
    options: &EngineOptions,
    plan: &MemoryPlan,
    rates: &Rates,
) -> dollop::Result<Vec<Forecast>> {
    let at = |budget, precision| {
        let mut options = options.clone();
        (options.memory, options.level, options.precision) = (budget, None, Some(precision));
        Engine::plan(path, &options)
    };
    let asked = options.precision.or(options.level.map(Precision::Exact));
    let mut rows: Vec<Forecast> = Vec::new();
    for precision in forecast::precisions(asked, plan) {
        let whole = at(None, precision)?.total_bytes();
        for budget in forecast::budgets(plan, whole) {
            let plan = match at(Some(budget), precision) {
                Err(Error::Budget { .. }) => continue,
                plan => plan?,
            };
            let Some(row) = forecast::forecast(&plan, precision, rates) else { continue };
            // Beyond the first budget in which everything fits, nothing changes. Adaptive precision then takes
            // every bit, as the first row of exact precision does.
            let exact = matches!(precision, Precision::Exact(_));
            let is_known = |r: &Forecast| !r.streaming && (!exact || r.precision == row.precision);
            if row.streaming || !rows.iter().any(is_known) {
                rows.push(row);
            }
        }
    }
    rows.sort_by_key(|r| r.budget);
    Ok(rows)
}

fn speed(speeds: &Result<Vec<Forecast>, String>) -> Result<(), Failure> {
    let mut out = screen::stdout();
    let rows = match speeds {
        Ok(rows) => rows,
        Err(why) => return Ok(writeln!(out, "\nspeed: {}", screen::one_line(why))?),
    };
    writeln!(out, "\nForecast of decoding with a short context:\n")?;
    writeln!(
        out,
        "| memory | precision | experts in memory when needed | read per token | tok/s | between |"
    )?;
    writeln!(out, "|---:|---|---:|---:|---:|---:|")?;
    for r in rows {
        writeln!(
            out,
            "| {} | {} | {:.0} % | {} | {:.1} | {:.1} and {:.1} |",
            bytes(r.budget),
            r.precision,
            100.0 * r.hit_rate,
            bytes(r.read_bytes_per_token),
            r.tokens_per_second,
            r.band[0],
            r.band[1],
        )?;
    }
    Ok(())
}

/// Shows what was measured.
fn measured(rates: &Rates, json: bool) -> Result<(), Failure> {
    let mut out = screen::stdout();
    if json {
        return Ok(writeln!(out, "{}", screen::json(rates, true)?)?);
    }
    let rate = |r: f64| format!("{}/s", bytes(r as u64));
    let m = &rates.machine;
    writeln!(
        out,
        "processor      {}, {} cores, {}",
        screen::one_line(&m.processor),
        m.cores,
        m.instruction_set
    )?;
    writeln!(out, "memory         {}", rate(rates.memory_bytes_per_second))?;
    let products = rates.products.iter().map(|p| format!("{} at {} bits", rate(p.bytes_per_second), p.bits));
    writeln!(out, "products       {}", products.collect::<Vec<_>>().join(", "))?;
    writeln!(out, "an operation   {:.1} µs", 1e6 * rates.operation_seconds)?;
    for b in &rates.bursts {
        let all = (b.part_bytes * b.parts) as f64;
        writeln!(
            out,
            "cold reads     {} of {} in {:.2} ms, {}",
            b.parts,
            bytes(b.part_bytes as u64),
            1e3 * b.seconds,
            rate(all / b.seconds)
        )?;
    }
    Ok(())
}

fn download(ahead: &Ahead) -> Result<(), Failure> {
    let mut out = screen::stdout();
    let why = if ahead.why.is_empty() { String::new() } else { format!(": {}", ahead.why) };
    writeln!(
        out,
        "supported           yes, as far as the headers say ({} were read)",
        bytes(ahead.bytes_read)
    )?;
    writeln!(
        out,
        "download            {:>12}  {}{why}",
        bytes(ahead.candidate.bytes),
        ahead.candidate.label
    )?;
    for other in ahead.all.iter().filter(|c| c.file != ahead.candidate.file) {
        writeln!(out, "  instead           {:>10}  {}", bytes(other.bytes), screen::one_line(&other.label))?;
    }
    writeln!(out, "free on the disk    {:>12}", bytes(ahead.free_bytes))?;
    Ok(())
}

fn conversion(outline: &Outline) -> Result<(), Failure> {
    let mut out = screen::stdout();
    for (bits, size) in outline.sizes.iter().rev() {
        let how = if *bits == 8 { "converted once".to_owned() } else { format!("--max-level {bits}") };
        writeln!(out, "  {how:<17} {:>10}", bytes(*size))?;
    }
    writeln!(out)?;
    Ok(())
}

fn memory(plan: &MemoryPlan) -> Result<(), Failure> {
    let mut out = screen::stdout();
    let budget = plan.budget.map_or("no limit".to_owned(), bytes);
    writeln!(out, "budget              {budget}")?;
    writeln!(out, "  program, tables   {:>10}", bytes(plan.overhead_bytes))?;
    let unheld = match plan.unheld_embedding_bytes {
        0 => String::new(),
        n => format!("  without the embedding, {}, of which rows are read from the file", bytes(n)),
    };
    writeln!(out, "  dense weights     {:>10}{unheld}", bytes(plan.dense_bytes))?;
    writeln!(out, "  KV cache          {:>10}  for {} tokens", bytes(plan.kv_bytes), plan.context)?;
    writeln!(
        out,
        "  scratch           {:>10}  for chunks of {} tokens",
        bytes(plan.scratch_bytes),
        plan.chunk
    )?;
    let what = match (plan.streaming, plan.gpu) {
        (true, true) => "cache on GPU",
        (true, false) => "expert cache",
        (false, true) => "experts on GPU",
        (false, false) => "experts, mapped",
    };
    writeln!(out, "  {what:<17} {:>10}", bytes(plan.expert_bytes))?;
    if plan.staging_bytes > 0 {
        writeln!(out, "  on their way      {:>10}", bytes(plan.staging_bytes))?;
    }
    if let Some(r) = &plan.refinements {
        let of = format!("their {} bits, for {:.0} % of them at a time", r.bits, 100.0 * r.share);
        writeln!(out, "  refinements       {:>10}  {of}", bytes(r.bytes))?;
        writeln!(out, "  on their way      {:>10}", bytes(r.staging_bytes))?;
    }
    writeln!(out, "  in all            {:>10}", bytes(plan.total_bytes()))?;
    writeln!(out, "smallest budget     {:>12}", bytes(plan.smallest_bytes))?;
    if plan.levels.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    writeln!(out, "| level | experts | in memory | a token touches | and reads at most about |")?;
    writeln!(out, "|---:|---:|---:|---:|---:|")?;
    for l in &plan.levels {
        writeln!(
            out,
            "| {} | {} | {:.0} % | {} | {} |",
            l.bits,
            bytes(l.expert_bytes),
            100.0 * l.resident,
            bytes(l.touched_bytes),
            bytes(l.read_bytes)
        )?;
    }
    writeln!(out)?;
    let bits = plan.levels.last().map_or(0, |l| l.bits);
    if plan.streaming {
        writeln!(
            out,
            "Experts will be streamed. Reads are what equally likely experts would need; real routing reads less."
        )?;
    } else if let Some(r) = &plan.refinements {
        writeln!(
            out,
            "All experts fit at {bits} bits, and {:.0} % of them at {}: the hottest get those while tokens are computed, and no token waits.",
            100.0 * r.share,
            r.bits
        )?;
    } else if plan.lowered {
        writeln!(out, "All experts fit at {bits} bits, and are used at that: nothing will be streamed.")?;
    } else {
        writeln!(out, "Everything fits: nothing will be streamed.")?;
    }
    Ok(())
}
