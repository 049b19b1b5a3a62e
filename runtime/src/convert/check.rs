//! Checks a source before anything is written: missing tensors, shapes that disagree with the config, unknown
//! tensors.

use super::source::Source;
use crate::error::{Error, Result};
use crate::format::dollop::is_dollop;
use crate::model::{Spec, tokens, weights};
use crate::template::ChatTemplate;
use std::collections::HashSet;
use std::path::Path;

/// Checks the metadata, tensors and tokenizer of a source.
///
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

/// Checks that a model can chat: it has a tokenizer, and a chat template that parses.
///
/// # Errors
/// `Unsupported` or `Template`, the same that an engine with this model would report later.
pub(super) fn can_chat(source: &Source) -> Result<()> {
    let meta = source.metadata();
    if !tokens::has_tokenizer(meta)? {
        return Err(tokens::no_tokenizer());
    }
    ChatTemplate::parse(meta.str("tokenizer.chat_template")?.ok_or_else(tokens::no_template)?).map(drop)
}

/// Refuses an output that would replace one of the source's files, under any name or link.
///
/// # Errors
/// `Invalid`.
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
    let spec = Spec::from_metadata(source.metadata())?;
    let declared = weights::declared(&spec, &|name| source.rows(name));
    let known: HashSet<&str> = declared.iter().map(|d| d.name.as_str()).collect();
    if let Some(name) = source.names().find(|name| !known.contains(name)) {
        let what = format!("tensor `{name}` is not part of a supported `{}` model", spec.family.name);
        return Err(Error::unsupported(what));
    }
    for tensor in &declared {
        tensor.check(source.shape(&tensor.name), "is the download complete?")?;
    }
    (0..spec.layers.len()).try_for_each(|layer| widths(source, &spec, layer))
}

/// Checks that the width of a layer's block, or of its experts, is the width in the metadata. A model whose
/// metadata has no single width for all layers passes.
fn widths(source: &Source, spec: &Spec, layer: usize) -> Result<()> {
    for (suffix, key) in [("_exps", spec.family.expert_width), ("", "feed_forward_length")] {
        let up = format!("blk.{layer}.ffn_up{suffix}.weight");
        let key = format!("{}.{key}", spec.family.name);
        let said = source.metadata().u64(&key).ok().flatten();
        if let Some((width, said)) = source.rows(&up).zip(said).filter(|&(width, said)| width as u64 != said)
        {
            let reason = format!("is {width} wide, but `{key}` says {said}");
            return Err(Error::malformed(format!("tensor `{up}`"), reason));
        }
    }
    Ok(())
}
