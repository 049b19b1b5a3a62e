//! Opens a foreign GGUF file as a source: its shards, tensors of single experts, and rows that llama.cpp
//! interleaves.

use super::collector::Collector;
use super::heads::{self, Grouped};
use super::joined::Nets;
use super::{Layout, Piece, Pieces, Source};
use crate::error::{Error, Result};
use crate::format::dollop;
use crate::format::hf::{Heads, Place, Stored};
use crate::format::{Gguf, Metadata, TensorInfo};
use crate::model::families::{Deltas, Family};
use crate::store;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_SHARDS: u64 = 1024;

/// Suffix of a stack that holds gate and up together.
const FUSED: &str = "ffn_gate_up_exps.weight";

/// Opens the file and, if it is one of several shards, the others.
pub(super) fn open(path: &Path) -> Result<Source> {
    let first = store::map(path)?;
    let gguf = Gguf::parse(&first).map_err(|e| e.at(path))?;
    if dollop::is_dollop(&gguf.metadata) {
        let what = "this is a Dollop file already; it runs as it is (as a reference, name its source)";
        return Err(Error::malformed("dollop.version", what).at(path));
    }
    let shards = shard_paths(path, &gguf).map_err(|e| e.at(path))?;
    let (mut files, mut parsed) = (Vec::new(), Vec::new());
    let mut first = Some((first, gguf));
    for (i, shard) in shards.into_iter().enumerate() {
        let (bytes, gguf) = match first.take_if(|_| shard == path) {
            Some(known) => known,
            None => {
                let bytes = store::map(&shard)?;
                let gguf = Gguf::parse(&bytes).map_err(|e| e.at(&shard))?;
                (bytes, gguf)
            }
        };
        if let Some(no) =
            gguf.metadata.u64("split.no").map_err(|e| e.at(&shard))?.filter(|&no| no != i as u64)
        {
            let what = format!("is {no}, but the file's name says {i} (counted from 0)");
            return Err(Error::malformed("split.no", what).at(&shard));
        }
        parsed.push(gguf);
        files.push((shard, bytes));
    }
    // The first shard has all keys; the others have only their shard numbers.
    let mut metadata = std::mem::take(&mut parsed[0].metadata);
    let total = metadata.u64("split.tensors.count").ok().flatten();
    ["split.no", "split.count", "split.tensors.count"].iter().for_each(|k| drop(metadata.remove(k)));
    let found: usize = parsed.iter().map(|g| g.tensors.len()).sum();
    if total.is_some_and(|t| t != found as u64) {
        let what = format!(
            "all shards together have {found} tensors, but the first shard says {}",
            total.unwrap_or(0)
        );
        return Err(Error::malformed("split.tensors.count", what).at(path));
    }
    // An unknown architecture is refused by name later, when the model is checked.
    let architecture = metadata.require_str("general.architecture").map_err(|e| e.at(path))?;
    let family = Family::find(architecture).ok();
    // GGUF has no key for a router's choice bias, so look for its tensor.
    if family.is_some_and(|f| f.router_keys || f.biased) {
        let bias = |g: &Gguf| g.tensors.iter().any(|t| t.name.ends_with(".exp_probs_b.bias"));
        metadata.insert("dollop.router.choice_bias", parsed.iter().any(bias));
    }
    let grouped = Grouped::of(&metadata).map_err(|e| e.at(path))?;
    let nets = Nets::of(&metadata);
    let draft = draft_blocks(&metadata).map_err(|e| e.at(path))?;
    let mut collector = Collector::default();
    let mut left_out = 0;
    for (file, gguf) in parsed.iter().enumerate() {
        for t in &gguf.tensors {
            if block(&t.name).is_some_and(|block| draft.contains(&block)) {
                left_out += 1;
                continue;
            }
            add(&mut collector, file, t, family, (&grouped, &nets)).map_err(|e| e.at(&files[file].0))?;
        }
    }
    if left_out > 0 {
        metadata.insert("dollop.source.left_out", vec![format!("nextn ({left_out})")]);
    }
    let mut source = collector.finish(metadata, files, Vec::new()).map_err(|e| e.at(path))?;
    if let Some(family) = family.filter(|f| f.interleaved) {
        heads::mark_interleaved(&mut source, family.name).map_err(|e| e.at(path))?;
    }
    Ok(source)
}

fn shard_paths(path: &Path, gguf: &Gguf) -> Result<Vec<PathBuf>> {
    let count = gguf.metadata.u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![path.to_path_buf()]);
    }
    if count > MAX_SHARDS {
        return Err(Error::malformed(
            "split.count",
            format!("is {count}; at most {MAX_SHARDS} shards are supported"),
        ));
    }
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let stem = name
        .strip_suffix(&format!("-of-{count:05}.gguf"))
        .filter(|s| s.len() > 6)
        .and_then(|s| s.split_at_checked(s.len() - 6))
        .filter(|(_, no)| no.starts_with('-') && no[1..].bytes().all(|b| b.is_ascii_digit()))
        .ok_or_else(|| {
            Error::malformed(
                "split.count",
                format!("this is one of {count} shards, and must be named like …-00001-of-{count:05}.gguf"),
            )
        })?
        .0;
    Ok((1..=count).map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"))).collect())
}

/// The block number in a tensor's name.
fn block(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

/// The block numbers of a draft head. `block_count` includes them, after the model's own blocks.
fn draft_blocks(meta: &Metadata) -> Result<Range<u64>> {
    let arch = meta.require_str("general.architecture")?;
    let number = |key: &str| Ok(meta.u64(&format!("{arch}.{key}"))?.unwrap_or(0));
    let (blocks, draft): (u64, u64) = (number("block_count")?, number("nextn_predict_layers")?);
    Ok(blocks.saturating_sub(draft)..blocks)
}

/// The canonical name of a tensor. Files of some families use other names.
fn canonical(name: &str, family: Option<&Family>) -> String {
    let renamed = family.map_or(&[][..], |f| f.renamed);
    let canonical = |&(theirs, ours): &(&str, &str)| {
        let of_block = |b: &&str| b.is_empty() || b.starts_with("blk.") && b.ends_with('.');
        let block = name.strip_suffix(theirs).filter(of_block)?;
        Some(format!("{block}{ours}"))
    };
    renamed.iter().find_map(canonical).unwrap_or_else(|| name.to_owned())
}

/// The parts of a tensor that holds several, given by its canonical name; `None` if it is not split.
fn taken_apart(name: &str, family: Option<&Family>) -> Option<Vec<(String, Heads)>> {
    let (block, part) = name.split_at(name.strip_prefix("blk.")?.find('.')? + "blk..".len());
    let latent = family?.latent;
    let adding = matches!(family?.delta, Some(Deltas::Adding));
    let parts = match part {
        "ssm_in.weight" if adding => vec![
            ("attn_qkv.weight", Heads::Scanned),
            ("attn_gate.weight", Heads::ScannedGate),
            ("ssm_alpha.weight", Heads::ScannedSteps),
        ],
        "ssm_conv1d.weight" | "ssm_conv1d.bias" if adding => vec![(part, Heads::Scanned)],
        "attn_q.weight" | "attn_q_b.weight" if latent => vec![(part, Heads::Turned)],
        "attn_kv_a_mqa.weight" | "attn_kv_a_mqa.bias" if latent => vec![(part, Heads::Latent)],
        "attn_kv_b.weight" if latent => {
            vec![("attn_k_b.weight", Heads::Keys), ("attn_v_b.weight", Heads::Values)]
        }
        // In delta nets, this name has another meaning.
        "attn_qkv.weight" | "attn_qkv.bias" if family?.delta.is_none() => {
            let to = |(i, name)| (part.replace("attn_qkv", name), Heads::Fused(i));
            let parts = ["attn_q", "attn_k", "attn_v"].into_iter().enumerate().map(to);
            return Some(parts.map(|(part, heads)| (format!("{block}{part}"), heads)).collect());
        }
        "ssm_ba.weight" => vec![("ssm_beta.weight", Heads::Beta), ("ssm_alpha.weight", Heads::Alpha)],
        "attn_q.weight" if family?.gate_in_q => {
            vec![("attn_q.weight", Heads::Query), ("attn_gate.weight", Heads::Gate)]
        }
        "attn_q.bias" if family?.gate_in_q => {
            vec![("attn_q.bias", Heads::Query), ("attn_gate.bias", Heads::Gate)]
        }
        _ => return None,
    };
    Some(parts.into_iter().map(|(part, heads)| (format!("{block}{part}"), heads)).collect())
}

/// Whether a tensor stores one matrix per head.
fn of_heads(name: &str, family: Option<&Family>) -> bool {
    family.is_some_and(|f| f.latent)
        && (name.ends_with(".attn_k_b.weight") || name.ends_with(".attn_v_b.weight"))
}

fn add(
    collector: &mut Collector,
    file: usize,
    t: &TensorInfo,
    family: Option<&Family>,
    (grouped, nets): (&Grouped, &Nets),
) -> Result<()> {
    let mut shape: Vec<usize> = t.shape.iter().rev().map(|&n| n as usize).collect();
    // Old Mixtral files have one tensor per expert: `blk.0.ffn_gate.3.weight`.
    let parts: Vec<_> = t.name.split('.').collect();
    let place = match parts[..] {
        ["blk", layer, part @ ("ffn_gate" | "ffn_up" | "ffn_down"), expert, "weight"]
            if expert.parse::<usize>().is_ok() =>
        {
            Place::whole(format!("blk.{layer}.{part}_exps.weight"), expert.parse().ok())
        }
        _ => Place::whole(canonical(&t.name, family), None),
    };
    // Some writers store a one-row matrix as a vector, and others the reverse. Both read alike.
    if shape.len() > 1 && shape[0] == 1 && !t.name.contains("exps.") {
        shape.remove(0);
    }
    // Convolutions and decays of delta nets have further sides of one.
    if shape.len() > 2 && t.name.contains(".ssm_conv1d") {
        shape.retain(|&n| n != 1);
    }
    let adding = family.is_some_and(|f| matches!(f.delta, Some(Deltas::Adding)));
    let flat = t.name.ends_with(".ssm_a") || t.name.ends_with(".ssm_d");
    if flat || adding && t.name.ends_with(".ssm_norm.weight") {
        shape = vec![shape.iter().copied().fold(1, usize::saturating_mul)];
    }
    let ours = nets.place(&place.name);
    let is_net = ours.is_some();
    let mut place = ours.unwrap_or(place);
    let positive = |of: &Family| matches!(of.delta, Some(Deltas::Channels { positive: true, .. }));
    if t.name.ends_with(".ssm_a") && family.is_some_and(positive) {
        place.stored = Stored::Negated;
    }
    // Join the matrices of all heads into one.
    if let ([heads, rows, cols], true) = (&shape[..], of_heads(&place.name, family)) {
        shape = vec![heads.saturating_mul(*rows), *cols];
    }
    if let Some(parts) = taken_apart(&place.name, family).filter(|_| !is_net) {
        let whole = Piece { file, offset: t.offset as usize, len: t.n_bytes as usize };
        for (name, heads) in parts {
            let place = Place::of_heads(name, heads);
            let (shape, pieces, layout) = grouped.cut(&place, heads, (&shape, t.ty), whole)?;
            collector.add(place, shape, t.ty, pieces, layout)?;
        }
        return Ok(());
    }
    let count = if shape.len() == 3 { shape[0].max(1) } else { 1 };
    let len = t.n_bytes as usize / count;
    let first = Piece { file, offset: t.offset as usize, len };
    if let (Some(block), 3) = (t.name.strip_suffix(FUSED), shape.len()) {
        // For each expert, gate rows and then up rows.
        if !shape[1].is_multiple_of(2) {
            return Err(Error::malformed(
                format!("tensor `{}`", t.name),
                format!("shape {shape:?} has an odd number of rows, and must hold gate and up rows"),
            ));
        }
        shape[1] /= 2;
        for (half, part) in ["gate", "up"].iter().enumerate() {
            let place = Place::whole(format!("{block}ffn_{part}_exps.weight"), None);
            let first = Piece { offset: first.offset + half * (len / 2), len: len / 2, ..first };
            let pieces = Pieces::Even { first, stride: len, count };
            collector.add(place, shape.clone(), t.ty, pieces, Layout::Rows)?;
        }
        return Ok(());
    }
    collector.add(place, shape, t.ty, Pieces::Even { first, stride: len, count }, Layout::Rows)
}
