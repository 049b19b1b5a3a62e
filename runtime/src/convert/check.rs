//! What can be known to be wrong with a source before anything is written: missing tensors, shapes that disagree with the
//! config, tensors of no known part.

use super::source::Source;
use crate::error::{Error, Result};
use crate::format::dollop::is_dollop;
use crate::model::arch::knows_tensor;
use crate::model::config::Config;
use crate::model::tokens;
use crate::template::ChatTemplate;
use std::path::Path;

/// # Errors
/// `Malformed` or `Unsupported`, naming file and tensor.
pub(super) fn check(source: &Source) -> Result<()> {
    let file = source.files().next().unwrap_or(Path::new("model")).to_path_buf();
    all(source).map_err(|e| e.at(&file))?;
    let json = source.files().find(|f| f.file_name().is_some_and(|n| n == "tokenizer.json"));
    let tokenizer = tokens::tokenizer(source.metadata());
    tokenizer
        .and_then(|t| tokens::special_tokens(source.metadata(), t.as_ref()))
        .map_err(|e| e.at(json.unwrap_or(&file)))?;
    Ok(())
}

/// Whether a model can chat: it has a tokenizer, and a template that parses.
///
/// # Errors
/// `Unsupported` or `Template`, as an engine with this model would say later.
pub(super) fn can_chat(source: &Source) -> Result<()> {
    let meta = source.metadata();
    if !tokens::has_tokenizer(meta)? {
        return Err(tokens::no_tokenizer());
    }
    ChatTemplate::parse(meta.str("tokenizer.chat_template")?.ok_or_else(tokens::no_template)?).map(drop)
}

/// # Errors
/// `Invalid` where a conversion would replace a file that it reads, by whatever name or link.
pub(super) fn not_a_source(source: &Source, out: &Path) -> Result<()> {
    let Ok(place) = out.canonicalize() else { return Ok(()) };
    if source.files().any(|f| f.canonicalize().is_ok_and(|f| f == place)) {
        let what = "this file is part of the model that is read; name another file to write";
        return Err(Error::Invalid(format!("{}: {what}", out.display())));
    }
    Ok(())
}

fn all(source: &Source) -> Result<()> {
    if is_dollop(source.metadata()) {
        return Err(Error::malformed("dollop.version", "this is a Dollop file already; it runs as it is"));
    }
    let config = Config::from_metadata(source.metadata())?;
    for name in source.names() {
        if !knows_tensor(name) {
            let what =
                format!("tensor `{name}` is no part of a `{}` model that is supported", config.family.name);
            return Err(Error::unsupported(what));
        }
    }
    expect(source, "token_embd.weight", &[config.d])?;
    expect(source, "output_norm.weight", &[config.d])?;
    for i in 0..config.layers {
        let q = config.heads * config.head_dim;
        for (part, shape) in [
            ("attn_norm", &[config.d][..]),
            ("ffn_norm", &[config.d]),
            ("attn_q", &[q, config.d]),
            ("attn_k", &[config.kv_width(), config.d]),
            ("attn_v", &[config.kv_width(), config.d]),
            ("attn_output", &[config.d, q]),
        ] {
            expect(source, &format!("blk.{i}.{part}.weight"), shape)?;
        }
        feed_forward(source, config.family.name, i, config.d)?;
    }
    Ok(())
}

/// The three matrices of a block, or of its experts: they agree with one another, and with the width that the config
/// gives, where it gives one for all layers.
fn feed_forward(source: &Source, arch: &str, layer: usize, d: usize) -> Result<()> {
    let sparse = source.shape(&format!("blk.{layer}.ffn_gate_inp.weight")).is_some();
    let said = |key: &str| {
        let key = format!("{arch}.{key}");
        source.metadata().u64(&key).ok().flatten().map(|width| (key, width))
    };
    let (suffix, said) = match sparse {
        // Families whose every block has experts have one key for both.
        true if matches!(arch, "olmoe" | "llama") => ("_exps", said("feed_forward_length")),
        true => ("_exps", said("expert_feed_forward_length")),
        false => ("", said("feed_forward_length")),
    };
    let name = |part: &str| format!("blk.{layer}.ffn_{part}{suffix}.weight");
    let up = name("up");
    expect(source, &up, &[d])?;
    let width = source.shape(&up).and_then(|s| s.iter().rev().nth(1).copied()).unwrap_or(0);
    if let Some((key, said)) = said.filter(|(_, said)| *said != width as u64) {
        let reason = format!("is {width} wide; `{key}` says {said}");
        return Err(Error::malformed(format!("tensor `{up}`"), reason));
    }
    expect(source, &name("gate"), &[width, d])?;
    expect(source, &name("down"), &[d, width])
}

/// A tensor is there, and its shape ends in `shape` (a stack of experts has their number before).
fn expect(source: &Source, name: &str, shape: &[usize]) -> Result<()> {
    match source.shape(name) {
        None => Err(Error::malformed(
            format!("tensor `{name}`"),
            "the file has no such tensor; is the download complete?",
        )),
        Some(found) if !found.ends_with(shape) => {
            let reason = format!("has shape {found:?}; the config asks for {shape:?}");
            Err(Error::malformed(format!("tensor `{name}`"), reason))
        }
        Some(_) => Ok(()),
    }
}
