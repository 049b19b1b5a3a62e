//! Reads from a file's keys how many layers there are, and which parts each has.

use super::{Keys, MAX_HEADS, MAX_LAYERS};
use crate::error::{Error, Result};
use crate::format::Value;

/// The number of layers to run. Draft-head layers are stored after them and not run.
pub(super) fn layers(keys: &Keys) -> Result<usize> {
    let blocks = keys.required("block_count", MAX_LAYERS)?;
    let draft = keys.optional("nextn_predict_layers", MAX_LAYERS)?.unwrap_or(0);
    blocks.checked_sub(draft).filter(|&layers| layers > 0).ok_or_else(|| {
        let what = format!("{draft} draft layers leave none of {blocks} layers");
        Error::malformed(keys.key("nextn_predict_layers"), what)
    })
}

/// Query heads of each layer: one number for all, or a list.
pub(super) fn heads(keys: &Keys, layers: usize) -> Result<Vec<usize>> {
    const NAME: &str = "attention.head_count";
    let wrong = |what| Error::malformed(keys.key(NAME), what);
    let listed = each(keys, NAME, layers)?.into_iter().map(|heads| match heads {
        None => Err(wrong("the key is missing")),
        Some(0) => Err(wrong("must not be zero")),
        Some(heads) => Ok(heads),
    });
    listed.collect()
}

/// Key/value heads of each layer: one number for all, or a list. `None` means as many as query heads; 0 means
/// no attention.
pub(super) fn kv_heads(keys: &Keys, layers: usize) -> Result<Vec<Option<usize>>> {
    each(keys, "attention.head_count_kv", layers)
}

/// A number of heads for each layer: one for all, or a list.
fn each(keys: &Keys, name: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    let key = keys.key(name);
    if !matches!(keys.meta.get(&key), Some(Value::Array(_))) {
        return Ok(vec![keys.optional(name, MAX_HEADS)?; layers]);
    }
    let listed = keys.meta.u64s(&key)?.unwrap_or_default();
    let blocks = keys.required("block_count", MAX_LAYERS)?;
    match listed.iter().find(|&&n| n > MAX_HEADS) {
        // The list may continue with the layers of a draft head, which are not run.
        _ if listed.len() != layers && listed.len() != blocks => {
            Err(Error::malformed(key, format!("{} entries for {layers} layers", listed.len())))
        }
        Some(n) => Err(Error::malformed(key, format!("{n} is more than the {MAX_HEADS} that are supported"))),
        None => Ok(listed.into_iter().take(layers).map(|n| Some(n as usize)).collect()),
    }
}

/// For each layer whether it is a feed-forward block, in models whose layers are one block each.
pub(super) fn feed_forwards(keys: &Keys, layers: usize) -> Result<Vec<bool>> {
    let key = keys.key("feed_forward_length");
    let listed = keys.meta.u64s(&key)?.unwrap_or_default();
    match listed.get(..layers) {
        // The list may continue with the layers of a draft head, which are not run.
        Some(widths) => Ok(widths.iter().map(|&width| width > 0).collect()),
        None => Err(Error::malformed(key, format!("{} entries for {layers} layers", listed.len()))),
    }
}

/// For each layer, the layer whose KV cache it reads. The last `shared_kv_layers` layers have no cache. Each
/// reads that of the last earlier layer of its kind (window or full).
pub(super) fn kv_sources(keys: &Keys, windows: &[Option<usize>]) -> Result<Vec<Option<usize>>> {
    const NAME: &str = "attention.shared_kv_layers";
    let shared = keys.optional(NAME, MAX_LAYERS)?.unwrap_or(0);
    let wrong = |what: &str| Error::malformed(keys.key(NAME), format!("{shared}: {what}"));
    let own = windows.len().checked_sub(shared).ok_or_else(|| wrong("the model has fewer layers"))?;
    let source = |layer: usize| -> Result<Option<usize>> {
        if layer < own {
            return Ok(None);
        }
        let found = (0..own).rev().find(|&l| windows[l].is_some() == windows[layer].is_some());
        found.map(Some).ok_or_else(|| wrong("no earlier layer of the same kind has a KV cache"))
    };
    (0..windows.len()).map(source).collect()
}
