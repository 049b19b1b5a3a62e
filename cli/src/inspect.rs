//! `dollop inspect`.

use crate::args::InspectArgs;
use crate::note;
use crate::output::{bytes, count};
use crate::screen::{self, one_line};
use crate::{Failure, locate};
use dollop::convert::Purpose;
use std::io::Write;

pub fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => locate::dollop_file(None, Purpose::Weights)?,
    };
    let i = dollop::inspect::inspect(&path)?;
    let mut out = screen::stdout();
    if args.verify {
        dollop::inspect::verify(&path)?;
        note!("all checksums agree");
    }
    if args.json {
        writeln!(out, "{}", screen::json(&i, true)?)?;
        return Ok(());
    }
    writeln!(out, "{}: {} ({})", path.display(), one_line(&i.name), i.kind)?;
    writeln!(
        out,
        "architecture   {}, {} layers, width {}, context {}",
        i.architecture, i.layers, i.width, i.context
    )?;
    if i.experts > 0 {
        writeln!(out, "experts        {} per routed layer, {} per token", i.experts, i.experts_used)?;
    }
    writeln!(out, "weights        {} ({} in routed experts)", count(i.weights), count(i.expert_weights))?;
    writeln!(out, "file           {}", bytes(i.file_bytes))?;
    for t in &i.types {
        writeln!(out, "  {:<12} {:>6} tensors  {}", t.ty, t.tensors, bytes(t.bytes))?;
    }
    for p in &i.planes {
        writeln!(
            out,
            "  plane {} (+{} bit{})  {}  -> level {}: {:.3} bits per expert weight",
            p.plane,
            p.bits,
            if p.bits == 1 { "" } else { "s" },
            bytes(p.bytes),
            p.level,
            p.bits_per_weight
        )?;
    }
    if i.expert_levels.len() > 1 {
        let all = i.expert_levels.iter().map(|(level, n)| format!("{n} at {level} bits"));
        let experts: usize = i.expert_levels.values().sum();
        let mean = i.layer_bits.values().sum::<f64>() / i.layer_bits.len() as f64;
        writeln!(out, "  of {experts} experts {}: {mean:.3} on average", all.collect::<Vec<_>>().join(", "))?;
        let by_bits = |a: &(&usize, &f64), b: &(&usize, &f64)| a.1.total_cmp(b.1);
        if let Some(((a, least), (b, most))) =
            i.layer_bits.iter().min_by(by_bits).zip(i.layer_bits.iter().max_by(by_bits))
        {
            writeln!(out, "  layers from {least:.3} (layer {a}) to {most:.3} (layer {b})")?;
        }
    }
    if let Some(dense) = i.dense_bits_per_weight {
        writeln!(out, "  dense: {dense:.3} bits per weight")?;
    }
    if i.rotated_weights > 0 {
        writeln!(out, "rotated        inputs of {} weights", count(i.rotated_weights))?;
    }
    if i.table_weights > 0 {
        writeln!(out, "table codes    of {} weights, as in the source", count(i.table_weights))?;
    }
    if let Some(calibration) = &i.calibration {
        writeln!(out, "calibration    {}", one_line(calibration))?;
    }
    let or_none = |text: &Option<String>| one_line(text.as_deref().unwrap_or("none")).to_string();
    writeln!(out, "tokenizer      {}", or_none(&i.tokenizer))?;
    writeln!(out, "chat template  {}", or_none(&i.chat_template))?;
    if let Some(sampling) = &i.sampling {
        writeln!(out, "sampling       {}", one_line(sampling))?;
    }
    for note in &i.notes {
        writeln!(out, "note           {}", one_line(note))?;
    }
    Ok(())
}
