//! Opens a Hugging Face folder as a source: its configuration, tokenizer files and safetensors files.

use super::collector::Collector;
use super::heads::{self, Grouped};
use super::joined::Nets;
use super::packed::Blocks;
use super::{Layout, Piece, Pieces, Source};
use crate::convert::name::model_name;
use crate::error::{Error, Result};
use crate::format::hf::{self, Cut, Form, Place};
use crate::format::{Metadata, safetensors};
use crate::model::families;
use crate::store;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

const MAX_JSON_BYTES: u64 = 64 << 20;

const HEAD: &str = "lm_head.weight";

/// Opens the folder and reads everything but the rows of its tensors.
pub(super) fn open(folder: &Path) -> Result<Source> {
    let file = |name: &str| folder.join(name);
    let config_path = file("config.json");
    let config = read_text(&config_path)?.ok_or_else(|| {
        Error::malformed("folder", "has no config.json; name a Hugging Face model folder or a GGUF file")
            .at(folder)
    })?;
    let mut metadata = families::metadata_from_config(&config).map_err(|e| e.at(folder))?;
    let name = folder.canonicalize().ok().and_then(|p| Some(model_name(&p)?.to_string_lossy().into_owned()));
    metadata.insert("general.name", name.unwrap_or_else(|| "model".into()));
    let others = add_tokenizer(folder, &config, &mut metadata)?;

    let index_path = file("model.safetensors.index.json");
    let shards = match read_text(&index_path)? {
        Some(index) => safetensors::shards(&index).map_err(|e| e.at(folder))?,
        None if file("model.safetensors").exists() => vec!["model.safetensors".to_owned()],
        None => {
            let what = "has no model.safetensors and no model.safetensors.index.json; other weight files are not supported";
            return Err(Error::malformed("folder", what).at(folder));
        }
    };
    let adapter = file("adapter_config.json");
    if adapter.exists() {
        let what = "the folder holds an adapter beside the model, and adapters are not applied; merge it into the weights, or move it away";
        return Err(Error::unsupported(what).at(&adapter));
    }
    let tied = hf::is_tied(&config).map_err(|e| e.at(&config_path))?;
    let mut head = false;
    let dialect = families::dialect(&config).map_err(|e| e.at(&config_path))?;
    let mut collected =
        Collected { grouped: Grouped::of(&metadata)?, nets: Nets::of(&metadata), ..Collected::default() };
    let experts = metadata.u64(&format!("{}.expert_count", dialect.architecture))?;
    collected.routed = experts.is_some_and(|experts| experts > 0);
    let layers = metadata.u64(&format!("{}.block_count", dialect.architecture))?.unwrap_or(0);
    let mut files = Vec::new();
    let mut left_out = BTreeMap::<&str, usize>::new();
    for shard in shards {
        let path = file(&shard);
        let bytes = store::map(&path)?;
        for entry in safetensors::parse(&bytes).map_err(|e| e.at(&path))? {
            if entry.name == HEAD {
                head = true;
                // Some writers store the head of a tied model anyway; `transformers` uses the embedding.
                if tied == Some(true) {
                    continue;
                }
            }
            if let Some(part) = hf::left_out(&entry.name, dialect, layers) {
                *left_out.entry(part).or_default() += 1;
                continue;
            }
            collected.add(files.len(), entry, dialect).map_err(|e| e.at(&path))?;
        }
        files.push((path, bytes));
    }
    if tied == Some(false) && !head {
        let what = "the file has no such tensor, and `tie_word_embeddings` says that the embedding is not the head; is the download complete?";
        return Err(Error::malformed(format!("tensor `{HEAD}`"), what).at(folder));
    }
    let Collected { mut collector, blocks, .. } = collected;
    blocks.finish(&mut collector).map_err(|e| e.at(folder))?;
    if !left_out.is_empty() {
        let parts = left_out.iter().map(|(part, n)| format!("{} ({n})", part.trim_end_matches('.')));
        metadata.insert("dollop.source.left_out", parts.collect::<Vec<_>>());
    }
    let mut source = collector.finish(metadata, files, others).map_err(|e| e.at(folder))?;
    if dialect.interleaved {
        heads::mark_interleaved(&mut source, dialect.architecture).map_err(|e| e.at(folder))?;
    }
    Ok(source)
}

fn add_tokenizer(folder: &Path, config: &str, metadata: &mut Metadata) -> Result<Vec<PathBuf>> {
    let mut others = vec![folder.join("config.json")];
    let mut read = |name: &str| -> Result<Option<String>> {
        let path = folder.join(name);
        let text = read_text(&path)?;
        if text.is_some() {
            others.push(path);
        }
        Ok(text)
    };
    let tokenizer = read("tokenizer.json")?;
    let tokenizer_config = read("tokenizer_config.json")?;
    let special = read("special_tokens_map.json")?;
    let generation = read("generation_config.json")?;
    let mut template = read("chat_template.jinja")?;
    // The first file with a template is used. Processors of images and sound write `chat_template.json`.
    for (name, text) in [
        ("tokenizer_config.json", tokenizer_config.clone()),
        ("chat_template.json", read("chat_template.json")?),
    ] {
        if let (None, Some(text)) = (&template, text) {
            template = hf::chat_template(name, &text).map_err(|e| e.at(folder.join(name)))?;
        }
    }
    if let Some(template) = template {
        metadata.insert("tokenizer.chat_template", template);
    }
    let ids = tokenizer.as_deref().map(added_tokens).unwrap_or_default();
    let lookup = |token: &str| ids.get(token).copied();
    let files = hf::SmallFiles {
        config,
        tokenizer: tokenizer_config.as_deref(),
        special: special.as_deref(),
        generation: generation.as_deref(),
    };
    hf::special_tokens(metadata, files, &lookup).map_err(|e| e.at(folder))?;
    if let Some(generation) = &generation {
        hf::sampling(metadata, generation).map_err(|e| e.at(folder))?;
    }
    if let Some(json) = tokenizer {
        metadata.insert("tokenizer.huggingface.json", json);
    }
    Ok(others)
}

/// Ids of the added (special) tokens of a `tokenizer.json`. Only this list is kept, because the rest is
/// megabytes.
fn added_tokens(json: &str) -> HashMap<String, u32> {
    #[derive(serde::Deserialize)]
    struct Added {
        content: String,
        id: u32,
    }
    #[derive(serde::Deserialize)]
    struct Tokenizer {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    let tokens = serde_json::from_str::<Tokenizer>(json).map_or_else(|_| Vec::new(), |t| t.added_tokens);
    tokens.into_iter().map(|t| (t.content, t.id)).collect()
}

/// The tensors found in the folder's files so far.
#[derive(Default)]
struct Collected {
    collector: Collector,
    blocks: Blocks,
    grouped: Grouped,
    nets: Nets,
    /// Whether the model has routed experts.
    routed: bool,
}

impl Collected {
    fn add(&mut self, file: usize, entry: safetensors::Entry, dialect: &hf::Dialect) -> Result<()> {
        let Some(places) = hf::places(&entry.name, dialect) else {
            let what = format!("tensor `{}` is not part of a supported model", entry.name);
            return Err(Error::unsupported(what));
        };
        // Delta nets have names of attention for some of their tensors.
        let ours = places.iter().find_map(|place| self.nets.place(&place.name));
        let mut places = ours.map_or(places, |place| vec![place]);
        if !self.routed {
            // Without routed experts, the shared expert is the dense block.
            places.iter_mut().for_each(|place| place.name = place.name.replace("_shexp.", "."));
        }
        let shape = sides(&entry.shape, &places);
        for place in places {
            if place.form != Form::Values {
                self.blocks.add(place, file, &entry)?;
                continue;
            }
            if !entry.ty.is_float() {
                let what = format!(
                    "tensor `{}`: element type U8 is not supported; F32, F16 and BF16 are",
                    entry.name
                );
                return Err(Error::unsupported(what));
            }
            let (shape, pieces, layout) = match place.cut {
                Cut::Heads(part) => {
                    let whole = Piece { file, offset: entry.offset as usize, len: entry.n_bytes as usize };
                    self.grouped.cut(&place, part, (&shape, entry.ty), whole)?
                }
                _ => cut(&entry, file, &shape, &place)?,
            };
            self.collector.add(place, shape, entry.ty, pieces, layout)?;
        }
        Ok(())
    }
}

/// A tensor's shape without dimensions of size 1: the one row of a vector, or the one input channel of a
/// depthwise convolution.
fn sides(shape: &[usize], places: &[Place]) -> Vec<usize> {
    match *shape {
        [1, n] if places.iter().all(|p| p.expert.is_none()) => vec![n],
        [1, 1, n, 1] => vec![n],
        [channels, 1, taps] if places.iter().all(|p| !p.name.contains("_exps.")) => vec![channels, taps],
        _ => shape.to_vec(),
    }
}

/// The part of a tensor that `place` takes: its shape, pieces and layout.
fn cut(
    entry: &safetensors::Entry,
    file: usize,
    shape: &[usize],
    place: &Place,
) -> Result<(Vec<usize>, Pieces, Layout)> {
    let wrong = || {
        Err(Error::malformed(
            format!("tensor `{}`", entry.name),
            format!("has the unexpected shape {:?}", entry.shape),
        ))
    };
    let (offset, all) = (entry.offset as usize, entry.n_bytes as usize);
    let even =
        |offset, len, stride, count| Pieces::Even { first: Piece { file, offset, len }, stride, count };
    let parts = if place.cut == Cut::Whole { 1 } else { 2 };
    Ok(match (place.cut, place.turned, shape) {
        (Cut::Whole, false, _) => {
            let count = if shape.len() == 3 { shape[0].max(1) } else { 1 };
            (shape.to_vec(), even(offset, all / count, all / count, count), Layout::Rows)
        }
        // For each expert, gate rows and then up rows.
        (Cut::Half(half), false, &[experts, rows, cols]) if experts > 0 && rows.is_multiple_of(2) => {
            let len = all / (2 * experts);
            (vec![experts, rows / 2, cols], even(offset + half * len, len, 2 * len, experts), Layout::Rows)
        }
        (Cut::Half(half), false, &[rows, cols]) if rows.is_multiple_of(2) => {
            let len = all / 2;
            (vec![rows / 2, cols], even(offset + half * len, len, len, 1), Layout::Rows)
        }
        (Cut::Whole | Cut::Alternate(_), true, &[experts, cols, rows])
            if experts > 0 && rows.is_multiple_of(parts) =>
        {
            let first = if let Cut::Alternate(first) = place.cut { first } else { 0 };
            let len = all / experts;
            let layout = Layout::Strided { first, row: parts, col: rows };
            (vec![experts, rows / parts, cols], even(offset, len, len, experts), layout)
        }
        // In a bias, gate and up values alternate.
        (Cut::Alternate(first), false, &[experts, values]) if values.is_multiple_of(2) => {
            let layout = Layout::Strided { first, row: values, col: 2 };
            (vec![experts, values / 2], even(offset, all, all, 1), layout)
        }
        _ => return wrong(),
    })
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
        Ok(m) if m.len() > MAX_JSON_BYTES => {
            return Err(Error::malformed(
                "file",
                format!("has {} bytes; at most {MAX_JSON_BYTES} are read", m.len()),
            )
            .at(path));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map(Some).map_err(|_| Error::malformed("file", "is not UTF-8").at(path))
}
