//! `dollop plan`.

use crate::args::PlanArgs;
use crate::output::bytes;
use crate::screen;
use crate::{Failure, locate};
use std::io::Write;

pub fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let plan = locate::plan(args.model.as_deref(), args.engine.options())?;
    let mut out = screen::stdout();
    if args.json {
        writeln!(out, "{}", screen::json(&plan, true)?)?;
        return Ok(());
    }
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
