//! `dollop inspect`.

use crate::args::InspectArgs;
use crate::output::{bytes, count};
use crate::{Failure, locate};
use std::io::Write;

pub fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let path = match &args.file {
        Some(path) => path.clone(),
        None => locate::dollop_file(None)?,
    };
    let i = dollop::inspect::inspect(&path)?;
    let mut out = std::io::stdout();
    if args.verify {
        dollop::inspect::verify(&path)?;
        eprintln!("all checksums agree");
    }
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&i).map_err(|e| e.to_string())?)?;
        return Ok(());
    }
    writeln!(out, "{}: {} ({})", path.display(), i.name, i.kind)?;
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
    if let Some(dense) = i.dense_bits_per_weight {
        writeln!(out, "  dense: {dense:.3} bits per weight")?;
    }
    if let Some(calibration) = &i.calibration {
        writeln!(out, "calibration    {calibration}")?;
    }
    match &i.tokenizer {
        Some(t) => writeln!(out, "tokenizer      {t}")?,
        None => writeln!(out, "tokenizer      none")?,
    }
    match &i.chat_template {
        Some(first) => writeln!(out, "chat template  {first}")?,
        None => writeln!(out, "chat template  none")?,
    }
    Ok(())
}
