//! The default model with only its first layers and tokens, for GPU gates on software adapters. There each layer, and
//! a head of many tokens, takes seconds, and the rest would test nothing new. Routing is made realistic: in the
//! default model all experts but one are active, and almost equal. All other remaining bytes are the default model's.

use crate::{default_model, root};
use dollop::internal::format::dollop::{Directory, MatrixEntry};
use dollop::internal::format::{Array, GgufWriter, Metadata, TensorDecl, Value};
use dollop::internal::quant::{GroupParams, Level, Shape};
use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::OnceLock;

/// Remaining layers: enough for experts of some layers to be evicted for those of others.
const LAYERS: u32 = 4;

/// Remaining tokens; the most likely come first. A multiple of a tile's rows.
const TOKENS: usize = 4096;

/// Experts per token, and the factor of the routers' weights, so that some experts are chosen more often.
const USED: u32 = 8;
const SHARPER: f32 = 100.0;

/// Tables with a row per matrix, and per expert.
const TABLES: [&str; 3] = ["dollop.fits", "dollop.errors", "dollop.checksums"];

/// The file, written once per process.
pub fn short_model() -> PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(write).clone()
}

/// Whether a tensor or matrix belongs to a remaining layer, or to none.
fn stays(name: &str) -> bool {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
    layer.is_none_or(|layer| layer.parse::<u32>().expect("a number") < LAYERS)
}

fn write() -> PathBuf {
    let whole = std::fs::read(default_model()).expect("the default model is there");
    let directory = Directory::parse(&whole).expect("it is a Dollop file");
    let mut meta = directory.gguf.metadata.clone();
    meta.insert("qwen2moe.block_count", LAYERS);
    meta.insert("qwen2moe.expert_used_count", USED);
    let kept: Vec<_> = directory.matrices.iter().map(|m| stays(&m.name)).collect();
    for column in ["names", "rows", "cols", "experts", "group", "level"] {
        let key = format!("dollop.matrix.{column}");
        let value = meta.get(&key).expect("every file has it").clone();
        meta.insert(&key, only(value, &kept));
    }
    // It is the first in every table.
    let embedding = &directory.matrices[0];
    assert_eq!(embedding.name, "token_embd.weight");
    let mut sides = meta.u64s("dollop.matrix.rows").expect("numbers").expect("every file has it");
    sides[0] = TOKENS as u64;
    meta.insert("dollop.matrix.rows", Value::Array(Array::Unsigned(sides)));
    first_tokens(&mut meta);
    // Rows of the tables that stay, like the matrices.
    let rows: Vec<bool> =
        directory.matrices.iter().zip(&kept).flat_map(|(m, &kept)| vec![kept; m.count()]).collect();
    let left = rows.iter().filter(|kept| **kept).count() as u64;
    let mut parts: Vec<(TensorDecl, Vec<u8>)> = Vec::new();
    let mut checksum = 0;
    for t in &directory.gguf.tensors {
        let (mut shape, mut bytes) =
            (t.shape.clone(), whole[t.offset as usize..(t.offset + t.n_bytes) as usize].to_vec());
        if TABLES.contains(&t.name.as_str()) {
            *shape.last_mut().expect("a table has rows") = left;
            let row = bytes.len() / rows.len();
            bytes = bytes.chunks(row).zip(&rows).filter(|r| *r.1).flat_map(|r| r.0.to_vec()).collect();
        }
        if t.name == embedding.planes_name() {
            bytes = first_rows(embedding, &bytes);
            shape = vec![bytes.len() as u64];
            checksum = crc32fast::hash(&bytes);
        }
        if t.name.ends_with("ffn_gate_inp.weight") {
            bytes = bytes.chunks_exact(4).flat_map(sharper).collect();
        }
        if t.name == "dollop.checksums" {
            bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        }
        if stays(&t.name) {
            parts.push((TensorDecl { name: t.name.clone(), shape, ty: t.ty }, bytes));
        }
    }
    // Renamed when it is complete: other processes may read it.
    let folder = root().join("target/short");
    std::fs::create_dir_all(&folder).expect("the build folder is writable");
    let (path, partial) = (folder.join("smollm2-moe.gguf"), folder.join(std::process::id().to_string()));
    let decls: Vec<TensorDecl> = parts.iter().map(|p| p.0.clone()).collect();
    let file = File::create(&partial).expect("the build folder is writable");
    let mut w = GgufWriter::new(file, &meta, &decls, directory.gguf.alignment).expect("writable");
    parts.iter().enumerate().for_each(|(i, p)| w.write(i, 0, &p.1).expect("writable"));
    w.finish().expect("writable");
    std::fs::rename(&partial, &path).expect("the build folder is writable");
    path
}

fn sharper(weight: &[u8]) -> [u8; 4] {
    let weight = f32::from_le_bytes(weight.try_into().expect("routers are f32"));
    (SHARPER * weight).to_le_bytes()
}

/// The rows of a matrix's planes that belong to the remaining tokens.
fn first_rows(entry: &MatrixEntry, bytes: &[u8]) -> Vec<u8> {
    let params = GroupParams::numbered(entry.params).expect("the file is sound");
    let whole = Shape::new(entry.rows, entry.cols, entry.group).expect("the file is sound").with(params);
    let short = Shape { rows: TOKENS, ..whole };
    let level = Level::from_bits(entry.level).expect("the file is sound");
    let (mut from, mut out) = (0, Vec::new());
    for p in 0..level.planes() {
        let (all, some) = (whole.plane(p), short.plane(p));
        let start = out.len();
        out.resize(start + some.len, 0);
        for (to, all) in [(some.codes, all.codes), (some.scales, all.scales), (some.zeros, all.zeros)] {
            out[start + to.start..start + to.end].copy_from_slice(&bytes[from + all.start..][..to.len()]);
        }
        from += all.len;
    }
    out
}

/// Reduces a byte-pair tokenizer to its first tokens, and the merges that produce them.
fn first_tokens(meta: &mut Metadata) {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let strings = |meta: &Metadata, name: &str| {
        meta.strings(&key(name)).expect("texts").expect("byte pairs have them").to_vec()
    };
    let (mut tokens, mut merges) = (strings(meta, "tokens"), strings(meta, "merges"));
    let mut types = meta.i64s(&key("token_type")).expect("numbers").expect("every token has one");
    tokens.truncate(TOKENS);
    types.truncate(TOKENS);
    let left: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    merges.retain(|pair| left.contains(pair.replace(' ', "").as_str()));
    meta.insert(key("merges"), merges);
    meta.insert(key("token_type"), Value::Array(Array::Signed(types)));
    meta.insert(key("tokens"), tokens);
}

/// The array's remaining values.
fn only(value: Value, kept: &[bool]) -> Value {
    fn some<T: Clone>(all: &[T], kept: &[bool]) -> Vec<T> {
        all.iter().zip(kept).filter(|v| *v.1).map(|v| v.0.clone()).collect()
    }
    match value {
        Value::Array(Array::String(all)) => Value::Array(Array::String(some(&all, kept))),
        Value::Array(Array::Unsigned(all)) => Value::Array(Array::Unsigned(some(&all, kept))),
        other => panic!("no column of a table: {other:?}"),
    }
}
