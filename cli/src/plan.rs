//! `dollop plan`.

use crate::args::PlanArgs;
use crate::hub::{self, Ahead, Seen};
use crate::output::bytes;
use crate::screen;
use crate::{Failure, locate};
use dollop::MemoryPlan;
use dollop::convert::Outline;
use std::io::Write;

pub fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let seen = args.model.as_deref().map(hub::look).transpose()?;
    let (path, ahead) = match &seen {
        None => (None, None),
        Some(Seen::Here(path)) => (Some(path.as_path()), None),
        Some(Seen::Ahead(ahead)) => (Some(ahead.path.as_path()), Some(&**ahead)),
    };
    let planned = locate::plan(path, args.engine.options());
    if let Some(ahead) = ahead {
        ahead.forget();
    }
    let (plan, outline) = planned?;
    if args.json {
        let mut json = serde_json::to_value(&plan).map_err(|e| e.to_string())?;
        json["conversion"] = serde_json::to_value(&outline).map_err(|e| e.to_string())?;
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
    memory(&plan)
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
