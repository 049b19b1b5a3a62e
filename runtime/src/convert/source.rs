//! One view over foreign models: GGUF files (split or not) and Hugging Face folders.
//!
//! Whatever the file says, callers see canonical names (GGUF's), shapes with rows first, stacked experts, and attention
//! rows in half-split rope order. Nothing is copied until rows are read.

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::format::hf::{self, Place};
use crate::format::{GgmlType, Gguf, Metadata, safetensors};
use crate::store;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAX_SHARDS: u64 = 1024;
const MAX_JSON_BYTES: u64 = 64 << 20;
const MAX_EXPERTS: usize = 4096;

/// A tensor under its canonical name: one piece, or one per expert.
#[derive(Debug)]
struct Tensor {
    name: String,
    /// `[n]`, `[rows, cols]` or `[experts, rows, cols]`.
    shape: Vec<usize>,
    ty: GgmlType,
    pieces: Pieces,
    /// Heads whose rows are interleaved (llama.cpp's `permute`), if they are.
    interleaved: Option<usize>,
}

/// Where the matrices of a tensor lie.
#[derive(Debug)]
enum Pieces {
    /// `count` of them, the first at `first`, each `stride` bytes behind the one before. A dense tensor is one.
    Even { first: Piece, stride: usize, count: usize },
    /// One tensor of the file per expert.
    Each(Vec<Piece>),
}

impl Pieces {
    fn get(&self, expert: usize) -> Option<Piece> {
        match self {
            Pieces::Even { first, stride, count } => {
                (expert < *count).then(|| Piece { offset: first.offset + expert * stride, ..*first })
            }
            Pieces::Each(all) => all.get(expert).copied(),
        }
    }

    fn count(&self) -> usize {
        match self {
            Pieces::Even { count, .. } => *count,
            Pieces::Each(all) => all.len(),
        }
    }

    /// All of them have the same shape and type, so one length.
    fn bytes(&self) -> u64 {
        self.get(0).map_or(0, |p| p.len as u64 * self.count() as u64)
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    file: usize,
    /// Where the rows of this piece begin in the file, and their length in bytes.
    offset: usize,
    len: usize,
}

/// An unquantized or foreign-quantized model.
#[derive(Debug)]
pub struct Source {
    metadata: Metadata,
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    files: Vec<(PathBuf, Bytes)>,
    others: Vec<PathBuf>,
}

impl Source {
    /// Opens a GGUF file (any shard opens all) or a Hugging Face folder (or its `config.json`).
    ///
    /// # Errors
    /// `Io`, `Malformed` or `Unsupported`, naming the file.
    pub fn open(path: &Path) -> Result<Source> {
        if path.is_dir() {
            return open_folder(path);
        }
        if path.file_name().is_some_and(|n| n == "config.json") {
            return open_folder(path.parent().unwrap_or(Path::new(".")));
        }
        open_gguf(path)
    }

    /// The keys.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Canonical names, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|t| t.name.as_str())
    }

    /// `[n]`, `[rows, cols]` or `[experts, rows, cols]`.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.find(name).map(|t| t.shape.as_slice())
    }

    /// How the elements are stored.
    pub fn dtype(&self, name: &str) -> Option<GgmlType> {
        self.find(name).map(|t| t.ty)
    }

    /// Every file read: what a cache must watch.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(p, _)| p.as_path()).chain(self.others.iter().map(PathBuf::as_path))
    }

    /// The file that a tensor (of one expert) lies in.
    pub(super) fn file(&self, name: &str, expert: usize) -> Option<&Path> {
        let piece = self.find(name)?.pieces.get(expert)?;
        Some(&self.files[piece.file].0)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.pieces.bytes()).sum()
    }

    /// Bytes of one tensor.
    pub fn tensor_bytes(&self, name: &str) -> u64 {
        self.find(name).map_or(0, |t| t.pieces.bytes())
    }

    fn find(&self, name: &str) -> Option<&Tensor> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }

    /// Rows of a matrix (of one expert of a stack) as they are stored, in canonical row order. A vector is one row.
    ///
    /// # Errors
    /// `Malformed` for a name, expert or row that does not exist.
    pub fn raw_rows(&self, name: &str, expert: usize, rows: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let none = |what: &str| Error::malformed(format!("tensor `{name}`"), what.to_owned());
        let t = self.find(name).ok_or_else(|| none("the file has no such tensor"))?;
        let piece = t.pieces.get(expert).ok_or_else(|| none("has fewer experts"))?;
        let (total, cols) = t.rows_cols();
        let row_bytes = t.ty.row_bytes(cols).ok_or_else(|| none("rows are no whole number of blocks"))?;
        if rows.start > rows.end || rows.end > total {
            return Err(none("has fewer rows"));
        }
        let data = &self.files[piece.file].1[piece.offset..piece.offset + piece.len];
        let Some(heads) = t.interleaved else {
            return Ok(Cow::Borrowed(&data[rows.start * row_bytes..rows.end * row_bytes]));
        };
        // llama.cpp stores the row pairs that rotate together side by side; rotation here wants half a head between.
        // Of a bias, the elements move as the rows of its matrix do.
        let (unit, moved) = match t.shape.len() {
            1 => (t.ty.block_bytes(), rows.start * cols..rows.end * cols),
            _ => (row_bytes, rows),
        };
        let head = t.shape[0] / heads;
        let mut out = Vec::with_capacity(moved.len() * unit);
        for row in moved {
            let (h, i) = (row / head, row % head);
            let stored = h * head + if i < head / 2 { 2 * i } else { 2 * (i - head / 2) + 1 };
            out.extend_from_slice(&data[stored * unit..(stored + 1) * unit]);
        }
        Ok(Cow::Owned(out))
    }

    /// [`Source::raw_rows`], decoded into `out` (`rows · cols` values).
    ///
    /// # Errors
    /// As [`Source::raw_rows`].
    pub fn read_rows(&self, name: &str, expert: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let ty = self.dtype(name);
        let raw = self.raw_rows(name, expert, rows)?;
        ty.expect("raw_rows found it").dequantize(&raw, out)
    }

    /// Tells the system that a tensor's pages are no longer needed.
    pub fn release(&self, name: &str) {
        let Some(t) = self.find(name) else { return };
        let (pieces, len) = match &t.pieces {
            Pieces::Even { first, stride, count } if *stride == first.len => (1, first.len * count),
            pieces => (pieces.count(), pieces.get(0).map_or(0, |p| p.len)),
        };
        for piece in (0..pieces).filter_map(|e| t.pieces.get(e)) {
            store::release(&self.files[piece.file].1[piece.offset..piece.offset + len]);
        }
    }
}

impl Tensor {
    fn rows_cols(&self) -> (usize, usize) {
        match self.shape[..] {
            [n] => (1, n),
            [rows, cols] | [_, rows, cols] => (rows, cols),
            _ => unreachable!("shapes have one to three sides"),
        }
    }
}

/// Collects tensors while files are read; experts that come one by one are stacked at the end.
#[derive(Default)]
struct Collector {
    tensors: Vec<Tensor>,
    index: HashMap<String, usize>,
    /// Experts that came one by one, behind the position in `tensors`. Maps rather than lists: a hostile name can claim
    /// any number of an expert, and must not cost memory for those below it.
    stacks: BTreeMap<usize, BTreeMap<usize, Piece>>,
}

impl Collector {
    /// Adds a tensor; where `place` names an expert, `pieces` is that expert's one matrix.
    fn add(&mut self, place: Place, shape: Vec<usize>, ty: GgmlType, pieces: Pieces) -> Result<()> {
        let wrong = |what: String| Err(Error::malformed(format!("tensor `{}`", place.name), what));
        if shape.is_empty() || shape.len() > 3 || shape.contains(&0) || !ty.is_float() {
            return wrong(format!("shape {shape:?} of {ty} is not one of weights"));
        }
        if pieces.count() > MAX_EXPERTS {
            return wrong(format!(
                "{} experts are more than the {MAX_EXPERTS} that are supported",
                pieces.count()
            ));
        }
        let (Some(expert), Some(piece)) = (place.expert, pieces.get(0)) else {
            if self.index.contains_key(&place.name) {
                return wrong("appears twice".into());
            }
            self.push(place.name, shape, ty, pieces);
            return Ok(());
        };
        if expert >= MAX_EXPERTS {
            return wrong(format!("expert {expert} is past the {MAX_EXPERTS} that are supported"));
        }
        let at = match self.index.get(&place.name) {
            Some(&at) => at,
            None => self.push(place.name.clone(), shape.clone(), ty, Pieces::Each(Vec::new())),
        };
        let tensor = &self.tensors[at];
        if !matches!(tensor.pieces, Pieces::Each(_)) {
            return wrong("appears whole and expert by expert".into());
        }
        if shape.len() != 2 || tensor.shape != shape || tensor.ty != ty {
            return wrong(format!("expert {expert} differs from the others in shape or type"));
        }
        if self.stacks.entry(at).or_default().insert(expert, piece).is_some() {
            return wrong(format!("expert {expert} appears twice"));
        }
        Ok(())
    }

    fn push(&mut self, name: String, shape: Vec<usize>, ty: GgmlType, pieces: Pieces) -> usize {
        let at = self.tensors.len();
        self.index.insert(name.clone(), at);
        self.tensors.push(Tensor { name, shape, ty, pieces, interleaved: None });
        at
    }

    fn finish(
        mut self,
        metadata: Metadata,
        files: Vec<(PathBuf, Bytes)>,
        others: Vec<PathBuf>,
    ) -> Result<Source> {
        for (at, stack) in self.stacks {
            let t = &mut self.tensors[at];
            let n = stack.last_key_value().map_or(0, |(&last, _)| last + 1);
            if stack.len() != n {
                let what = format!("{} of {n} experts are there; is the download complete?", stack.len());
                return Err(Error::malformed(format!("tensor `{}`", t.name), what));
            }
            t.pieces = Pieces::Each(stack.into_values().collect());
            t.shape.insert(0, n);
        }
        Ok(Source { metadata, tensors: self.tensors, index: self.index, files, others })
    }
}

fn open_gguf(path: &Path) -> Result<Source> {
    let first = store::map(path)?;
    let gguf = Gguf::parse(&first).map_err(|e| e.at(path))?;
    if crate::format::dollop::is_dollop(&gguf.metadata) {
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
            let what = format!("{no}, but the file's name says {i} (counted from 0)");
            return Err(Error::malformed("split.no", what).at(&shard));
        }
        parsed.push(gguf);
        files.push((shard, bytes));
    }
    // The first shard has all keys; the others only say which shard they are.
    let mut metadata = std::mem::take(&mut parsed[0].metadata);
    let total = metadata.u64("split.tensors.count").ok().flatten();
    ["split.no", "split.count", "split.tensors.count"].iter().for_each(|k| drop(metadata.remove(k)));
    let found: usize = parsed.iter().map(|g| g.tensors.len()).sum();
    if total.is_some_and(|t| t != found as u64) {
        let what =
            format!("{found} tensors in all shards together; the first shard says {}", total.unwrap_or(0));
        return Err(Error::malformed("split.tensors.count", what).at(path));
    }
    let mut collector = Collector::default();
    for (file, gguf) in parsed.iter().enumerate() {
        for t in &gguf.tensors {
            add_gguf(&mut collector, file, t).map_err(|e| e.at(&files[file].0))?;
        }
    }
    let mut source = collector.finish(metadata, files, Vec::new()).map_err(|e| e.at(path))?;
    if source.metadata.require_str("general.architecture").map_err(|e| e.at(path))? == "llama" {
        mark_interleaved(&mut source).map_err(|e| e.at(path))?;
    }
    Ok(source)
}

fn shard_paths(path: &Path, gguf: &Gguf) -> Result<Vec<PathBuf>> {
    let count = gguf.metadata.u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![path.to_path_buf()]);
    }
    if count > MAX_SHARDS {
        return Err(Error::malformed("split.count", format!("{count} is more than {MAX_SHARDS}")));
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
                format!("one of {count} shards, but not named …-00001-of-{count:05}.gguf"),
            )
        })?
        .0;
    Ok((1..=count).map(|i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"))).collect())
}

fn add_gguf(collector: &mut Collector, file: usize, t: &crate::format::TensorInfo) -> Result<()> {
    let mut shape: Vec<usize> = t.shape.iter().rev().map(|&n| n as usize).collect();
    // Old Mixtral files have one tensor per expert: `blk.0.ffn_gate.3.weight`.
    let parts: Vec<_> = t.name.split('.').collect();
    let place = match parts[..] {
        ["blk", layer, part @ ("ffn_gate" | "ffn_up" | "ffn_down"), expert, "weight"]
            if expert.parse::<usize>().is_ok() =>
        {
            Place { name: format!("blk.{layer}.{part}_exps.weight"), expert: expert.parse().ok() }
        }
        _ => Place { name: t.name.clone(), expert: None },
    };
    // A one-row matrix is stored as a vector by some writers and the other way round; both read alike.
    if shape.len() > 1 && shape[0] == 1 && !t.name.contains("_exps") {
        shape.remove(0);
    }
    let count = if shape.len() == 3 { shape[0] } else { 1 };
    let len = t.n_bytes as usize / count;
    let first = Piece { file, offset: t.offset as usize, len };
    collector.add(place, shape, t.ty, Pieces::Even { first, stride: len, count })
}

/// llama.cpp permutes the query and key rows of the `llama` architecture (and of no other that is supported here).
fn mark_interleaved(source: &mut Source) -> Result<()> {
    let heads = source.metadata.u64("llama.attention.head_count")?.unwrap_or(0) as usize;
    let kv_heads = source.metadata.u64("llama.attention.head_count_kv")?.map_or(heads, |n| n as usize);
    for t in &mut source.tensors {
        let heads =
            match t.name.rsplit_once('.').map_or("", |(n, _)| n.rsplit_once('.').map_or("", |(_, n)| n)) {
                "attn_q" => heads,
                "attn_k" => kv_heads,
                _ => continue,
            };
        let rows = t.shape[0];
        let whole =
            heads > 0 && heads <= rows && rows.is_multiple_of(heads) && (rows / heads).is_multiple_of(2);
        if !whole || t.shape.len() > 2 {
            let what = format!("shape {:?} for {heads} heads", t.shape);
            return Err(Error::malformed(format!("tensor `{}`", t.name), what));
        }
        if t.shape.len() == 1 && t.ty.block_len() != 1 {
            let what =
                format!("tensor `{}`: a bias of {} is not supported; F32, F16 and BF16 are", t.name, t.ty);
            return Err(Error::unsupported(what));
        }
        t.interleaved = Some(heads);
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, e)),
        Ok(m) if m.len() > MAX_JSON_BYTES => {
            return Err(
                Error::malformed("file", format!("{} bytes are too many for this file", m.len())).at(path)
            );
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(|e| Error::io(path, e))?;
    String::from_utf8(bytes).map(Some).map_err(|_| Error::malformed("file", "is not UTF-8").at(path))
}

fn open_folder(folder: &Path) -> Result<Source> {
    let file = |name: &str| folder.join(name);
    let config_path = file("config.json");
    let config = read_text(&config_path)?.ok_or_else(|| {
        Error::malformed(
            "folder",
            "has no config.json; a Hugging Face model folder or a GGUF file is expected",
        )
        .at(folder)
    })?;
    let mut metadata = hf::metadata_from_config(&config).map_err(|e| e.at(folder))?;
    let name = folder.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_string_lossy().into_owned()));
    metadata.insert("general.name", name.unwrap_or_else(|| "model".into()));
    let others = add_tokenizer(folder, &config, &mut metadata)?;

    let index_path = file("model.safetensors.index.json");
    let shards = match read_text(&index_path)? {
        Some(index) => safetensors::shards(&index).map_err(|e| e.at(folder))?,
        None if file("model.safetensors").exists() => vec!["model.safetensors".to_owned()],
        None => {
            let what = "has no model.safetensors and no model.safetensors.index.json; other weight files are not read";
            return Err(Error::malformed("folder", what).at(folder));
        }
    };
    let mut collector = Collector::default();
    let mut files = Vec::new();
    for shard in shards {
        let path = file(&shard);
        let bytes = store::map(&path)?;
        for entry in safetensors::parse(&bytes).map_err(|e| e.at(&path))? {
            add_safetensors(&mut collector, files.len(), entry).map_err(|e| e.at(&path))?;
        }
        files.push((path, bytes));
    }
    // A tied head that some writers store all the same would be a second copy of the embedding; keeping it is harmless.
    collector.finish(metadata, files, others).map_err(|e| e.at(folder))
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
    let generation = read("generation_config.json")?;
    let template = match read("chat_template.jinja")? {
        Some(t) => Some(t),
        None => tokenizer_config.as_deref().and_then(hf::chat_template),
    };
    if let Some(template) = template {
        metadata.insert("tokenizer.chat_template", template);
    }
    let ids = tokenizer.as_deref().map(added_tokens).unwrap_or_default();
    let lookup = |token: &str| ids.get(token).copied();
    hf::special_tokens(metadata, config, tokenizer_config.as_deref(), generation.as_deref(), &lookup);
    if let Some(json) = tokenizer {
        metadata.insert("tokenizer.huggingface.json", json);
    }
    Ok(others)
}

/// Ids of the added (special) tokens of a `tokenizer.json`. Only that list is kept: the rest is megabytes.
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

fn add_safetensors(collector: &mut Collector, file: usize, entry: safetensors::Entry) -> Result<()> {
    let Some(places) = hf::places(&entry.name) else {
        let what = format!("tensor `{}` belongs to no part of a model that is supported", entry.name);
        return Err(Error::unsupported(what));
    };
    let mut shape = entry.shape;
    let (offset, len) = (entry.offset as usize, entry.n_bytes as usize);
    match &places[..] {
        [] => Ok(()),
        [place] => {
            if shape.len() == 2 && shape[0] == 1 && place.expert.is_none() {
                shape.remove(0);
            }
            let count = if shape.len() == 3 { shape[0].max(1) } else { 1 };
            let len = len / count;
            let pieces = Pieces::Even { first: Piece { file, offset, len }, stride: len, count };
            collector.add(place.clone(), shape, entry.ty, pieces)
        }
        halves => {
            // `[experts, 2 · ff, d]`: gate rows, then up rows, of each expert.
            if shape.len() != 3 || shape[0] == 0 || !shape[1].is_multiple_of(2) {
                return Err(Error::malformed(format!("tensor `{}`", entry.name), format!("shape {shape:?}")));
            }
            shape[1] /= 2;
            let len = len / (2 * shape[0]);
            for (half, place) in halves.iter().enumerate() {
                let first = Piece { file, offset: offset + half * len, len };
                let pieces = Pieces::Even { first, stride: 2 * len, count: shape[0] };
                collector.add(place.clone(), shape.clone(), entry.ty, pieces)?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
