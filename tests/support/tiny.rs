//! Tiny models whose logits `goldens/models/make.py` computed with `transformers`. Their weights come from a counter-based
//! generator, implemented here again, and are written as a Hugging Face folder or as a GGUF file in llama.cpp's format.

use crate::{gemma, gptoss, hybrid, latent, routed, set};
use dollop::convert::{ConvertOptions, convert};
use dollop::internal::Keep;
use dollop::internal::format::{GgmlType, GgufWriter, Metadata, TensorDecl, Value, hf};
use dollop::internal::model::families;
use dollop::{CalibrateOptions, CancelToken, calibrate_tokens};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One golden.
pub struct Tiny {
    /// Its name.
    pub name: String,
    /// `config.json`.
    pub config: Json,
    /// Tensors under their Hugging Face names.
    pub tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// Input ids.
    pub tokens: Vec<u32>,
    /// Logits of every position.
    pub logits: Vec<Vec<f32>>,
}

/// Token ids that every tiny model has, in no order.
pub fn ids(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 3 + (i.wrapping_mul(2_654_435_761) >> 9) % 250).collect()
}

/// A golden's folder, which exists as long as its handle is held, and in it the model as a Dollop file.
pub fn converted(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    Tiny::load(name).write_folder(folder.path());
    let path = folder.path().join("dollop.gguf");
    dollop::convert::convert(folder.path(), &path, &Default::default(), &Default::default(), &mut |_| ())
        .expect("a golden can be converted");
    (folder, path)
}

/// Names of all goldens, sorted.
pub fn names() -> Vec<String> {
    let folder = crate::golden("models");
    let files = std::fs::read_dir(&folder).expect("the goldens are in the clone");
    let stem = |f: std::fs::DirEntry| Some(f.file_name().to_str()?.strip_suffix(".f32")?.to_owned());
    let mut names: Vec<_> = files.flatten().filter_map(stem).collect();
    names.sort();
    names
}

/// The 24-bit numbers of make.py.
fn numbers(name: &str, n: usize) -> impl Iterator<Item = u64> {
    let base = u64::from(crc32(name.as_bytes())) << 32;
    let value = move |i: u64| {
        let mut z = (base + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) >> 40
    };
    (0..n as u64).map(value)
}

/// `offset + scale · u`, as in make.py.
fn values(name: &str, n: usize, scale: f32, offset: f32) -> Vec<f32> {
    numbers(name, n).map(|v| offset + scale * (v as f32 / (1u32 << 23) as f32 - 1.0)).collect()
}

/// Whether a tensor contains bytes, here as integers.
fn is_bytes(name: &str) -> bool {
    name.ends_with("_blocks") || name.ends_with("_scales")
}

/// Bytes from `low` on and below `high`.
fn bytes(name: &str, n: usize, low: u64, high: u64) -> Vec<f32> {
    numbers(name, n).map(|v| (low + v % (high - low)) as f32).collect()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, &b| {
        crc ^= u32::from(b);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        crc
    })
}

impl Tiny {
    /// Pairs of `got` and this model's logits. Panics if `got` has other positions or another vocabulary,
    /// because a `zip` alone would compare fewer.
    fn pairs<'a>(&'a self, got: &'a [Vec<f32>]) -> impl Iterator<Item = (f32, f32)> + 'a {
        let shape = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(shape(got), shape(&self.logits), "{}: positions and vocabulary", self.name);
        got.iter().flatten().copied().zip(self.logits.iter().flatten().copied())
    }

    /// Asserts that every logit of `got` is within `bound` of this model's. `what` names the case.
    pub fn assert_near(&self, got: &[Vec<f32>], bound: f32, what: &str) {
        for (got, want) in self.pairs(got) {
            assert!((got - want).abs() < bound, "{}, {what}: {got} instead of {want}", self.name);
        }
    }

    /// The sum of squared errors of `got`, as a share of the sum of squares of this model's logits.
    pub fn error(&self, got: &[Vec<f32>]) -> f32 {
        let (mut error, mut all) = (0.0, 0.0);
        for (got, want) in self.pairs(got) {
            error += (got - want).powi(2);
            all += want.powi(2);
        }
        error / all
    }

    /// Reads a golden and generates its weights.
    pub fn load(name: &str) -> Tiny {
        let read = |ext: &str| {
            std::fs::read(crate::golden("models").join(format!("{name}.{ext}")))
                .expect("the golden is in the clone")
        };
        let json: Json = serde_json::from_slice(&read("json")).expect("make.py wrote JSON");
        let tensors = json["tensors"].as_array().expect("tensors").iter().map(|t| {
            let name = t[0].as_str().expect("name").to_owned();
            let shape: Vec<usize> =
                t[1].as_array().expect("shape").iter().map(|n| n.as_u64().expect("size") as usize).collect();
            let number = |i: usize| t[i].as_f64().expect("number") as f32;
            let n = shape.iter().product();
            let data = match is_bytes(&name) {
                true => bytes(&name, n, number(2) as u64, number(3) as u64),
                false => values(&name, n, number(2), number(3)),
            };
            (name, shape, data)
        });
        let tokens: Vec<u32> = json["tokens"]
            .as_array()
            .expect("tokens")
            .iter()
            .map(|t| t.as_u64().expect("id") as u32)
            .collect();
        let raw = read("f32");
        let vocab = raw.len() / 4 / tokens.len();
        let floats: Vec<f32> =
            raw.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Tiny {
            name: name.to_owned(),
            config: json["config"].clone(),
            tensors: tensors.collect(),
            logits: floats.chunks_exact(vocab).map(<[f32]>::to_vec).collect(),
            tokens,
        }
    }

    /// The same with `count` experts in every layer, without reference logits.
    pub fn with_experts(mut self, count: usize) -> Tiny {
        self.config["num_experts"] = count.into();
        self.logits.clear();
        let mut more = Vec::new();
        for (name, shape, data) in &mut self.tensors {
            if name.ends_with("mlp.gate.weight") {
                shape[0] = count;
                *data = values(name, count * shape[1], 0.275, 0.0);
            } else if name.contains(".experts.0.") {
                let name = |i: usize| name.replace(".experts.0.", &format!(".experts.{i}."));
                more.extend(
                    (1..count).map(|i| (name(i), shape.clone(), values(&name(i), data.len(), 0.25, 0.0))),
                );
            }
        }
        self.tensors.retain(|t| !t.0.contains(".experts.") || t.0.contains(".experts.0."));
        self.tensors.extend(more);
        self
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write_folder(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("the folder is writable");
        let stored = |t: &(String, Vec<usize>, Vec<f32>)| match is_bytes(&t.0) {
            true => (Dtype::U8, t.2.iter().map(|&v| v as u8).collect()),
            false => (Dtype::F32, le_bytes(&t.2)),
        };
        let stored: Vec<(Dtype, Vec<u8>)> = self.tensors.iter().map(stored).collect();
        let views: BTreeMap<&str, TensorView> = (self.tensors.iter().zip(&stored))
            .map(|(t, (ty, b))| (t.0.as_str(), TensorView::new(*ty, t.1.clone(), b).expect("sizes agree")))
            .collect();
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))
            .expect("the folder is writable");
    }

    /// Writes the folder, and a Dollop file beside it whose experts were encoded with error feedback, for rotated inputs or not.
    pub fn write_fed_back(&self, folder: &Path, rotate: bool) -> PathBuf {
        self.write_folder(folder);
        let path = folder.join(if rotate { "rotated.gguf" } else { "fed-back.gguf" });
        let keep = Keep { path: path.with_extension("inputs"), dense: false };
        let measure = CalibrateOptions::default().with_threads(2).with_keep(keep);
        let ids: Vec<u32> = (0..1000u32).map(|i| 3 + (i.wrapping_mul(2_246_822_519) >> 13) % 250).collect();
        let measured = calibrate_tokens(folder, &ids, "noise", &measure, &CancelToken::new(), &mut |_| ());
        let calibration = Some(Arc::new(measured.expect("the source runs")));
        let options = set!(ConvertOptions { calibration, rotate, ..ConvertOptions::default() });
        convert(folder, &path, &options, &CancelToken::new(), &mut |_| ()).expect("the source is sound");
        path
    }

    /// Writes an F32 GGUF like llama.cpp's converter: experts stacked, and for the `llama` architecture the
    /// rows of queries and keys interleaved.
    pub fn write_gguf(&self, path: &Path) {
        let meta = families::metadata_from_config(&self.config.to_string()).expect("the family is supported");
        self.write_gguf_with(path, &meta);
    }

    /// [`Tiny::write_gguf`] with other keys.
    pub fn write_gguf_with(&self, path: &Path, meta: &Metadata) {
        let architecture = meta.require_str("general.architecture").expect("is there");
        if architecture == "gpt-oss" {
            return write(path, &gptoss::keys(meta), gptoss::tensors(self));
        }
        if architecture.starts_with("qwen35") || architecture == "qwen3next" {
            return write(path, &hybrid::keys(meta, &self.config), hybrid::tensors(self, architecture));
        }
        let dialect = families::dialect(&self.config.to_string()).expect("the family is supported");
        if architecture.starts_with("gemma") {
            return write(path, &gemma::keys(meta, architecture), gemma::tensors(self, dialect, meta));
        }
        if ["glm4moe", "deepseek2", "kimi-linear", "bailingmoe3"].contains(&architecture) {
            let keys = latent::keys(meta, &self.config);
            return write(path, &keys, latent::tensors(self, dialect, false));
        }
        let own = || ["granitehybrid", "nemotron_h_moe"].contains(&architecture).then(|| gptoss::keys(meta));
        if let Some(keys) = routed::keys(&self.name).or_else(own) {
            return write(path, &keys, routed::tensors(self, dialect));
        }
        let conv = architecture.starts_with("lfm2");
        let keys = if conv && !self.name.ends_with("-plain") { lfm2_keys(meta) } else { meta.clone() };
        let number = |key: &str| self.config[key].as_u64().unwrap_or(0) as usize;
        let (heads, kv_heads) = (number("num_attention_heads"), number("num_key_value_heads"));
        let llama = architecture == "llama";
        let mut stacks: BTreeMap<String, (Vec<usize>, BTreeMap<usize, Vec<f32>>)> = BTreeMap::new();
        for (name, shape, data) in &self.tensors {
            let places = hf::places(name, dialect).expect("the tensor is known");
            let [place] = &places[..] else { panic!("{name} has {} places", places.len()) };
            let (mut data, mut shape) = (data.clone(), shape.clone());
            let mut to = place.name.clone();
            place.stored.turn(&mut data);
            if conv {
                to = to.replace("output_norm", "token_embd_norm");
                shape.retain(|&n| n > 1);
            }
            let cols = if shape.len() == 2 { shape[1] } else { 1 };
            match place.name.as_str() {
                n if llama && n.contains("attn_q.") => data = interleave(&data, heads, cols),
                n if llama && n.contains("attn_k.") => data = interleave(&data, kv_heads, cols),
                _ => {}
            }
            let stack = stacks.entry(to).or_insert_with(|| (shape.clone(), BTreeMap::new()));
            stack.1.insert(place.expert.unwrap_or(0), data);
        }
        let tensors = stacks.into_iter().map(|(name, (mut shape, parts))| {
            if name.contains("_exps.") {
                shape.insert(0, parts.len());
            }
            let all: Vec<f32> = parts.into_values().flatten().collect();
            (name, shape, GgmlType::F32, le_bytes(&all))
        });
        write(path, &keys, tensors.collect());
    }
}

/// The keys of llama.cpp's converter (`conversion/lfm2.py`), without ours and those that follow from others.
fn lfm2_keys(meta: &Metadata) -> Metadata {
    let mut keys = gptoss::keys(meta);
    let architecture = meta.require_str("general.architecture").expect("is there").to_owned();
    for key in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
        keys.remove(&format!("{architecture}.{key}"));
    }
    if keys.get(&format!("{architecture}.expert_count")).is_some() {
        keys.insert(format!("{architecture}.expert_gating_func"), 2u32);
    }
    keys
}

impl Tiny {
    /// [`Tiny::write_gguf`] in the form of old files, from before caches held latents.
    pub fn write_old_gguf(&self, path: &Path) {
        let config = self.config.to_string();
        let meta = families::metadata_from_config(&config).expect("the family is supported");
        let mut keys = latent::keys(&meta, &self.config);
        latent::old(&mut keys);
        let dialect = families::dialect(&config).expect("the family is supported");
        write(path, &keys, latent::tensors(self, dialect, true));
    }

    /// [`Tiny::write_gguf`] with a draft head after the layers: a block that is counted with them, and three tensors.
    pub fn write_gguf_with_draft(&self, path: &Path) {
        let meta = families::metadata_from_config(&self.config.to_string()).expect("the family is supported");
        let architecture = meta.require_str("general.architecture").expect("is there").to_owned();
        let recurrent = architecture.starts_with("qwen");
        let mut keys =
            if recurrent { hybrid::keys(&meta, &self.config) } else { latent::keys(&meta, &self.config) };
        let key = |name: &str| format!("{architecture}.{name}");
        let layers = keys.u64(&key("block_count")).expect("is a number").expect("is there");
        keys.insert(key("block_count"), layers as u32 + 1);
        keys.insert(key("nextn_predict_layers"), 1u32);
        if let Some(listed) = keys.bools(&key("attention.recurrent_layers")).expect("a list") {
            let listed = [listed, &[false]].concat();
            keys.insert(key("attention.recurrent_layers"), listed);
        }
        let heads = key("attention.head_count_kv");
        if matches!(keys.get(&heads), Some(Value::Array(_))) {
            let listed = keys.u64s(&heads).expect("a list").expect("is there");
            keys.insert(heads, [listed, vec![1]].concat());
        }
        let dialect = families::dialect(&self.config.to_string()).expect("the family is supported");
        let mut tensors = match recurrent {
            true => hybrid::tensors(self, &architecture),
            false => latent::tensors(self, dialect, false),
        };
        for part in ["nextn.eh_proj.weight", "nextn.enorm.weight", "attn_q.weight"] {
            tensors.push((format!("blk.{layers}.{part}"), vec![3, 32], GgmlType::F32, le_bytes(&[1.0; 96])));
        }
        write(path, &keys, tensors);
    }
}

/// Writes a GGUF file.
fn write(path: &Path, meta: &Metadata, tensors: Vec<gptoss::Written>) {
    let decl = |(name, shape, ty, _): &gptoss::Written| TensorDecl {
        name: name.clone(),
        shape: shape.iter().rev().map(|&n| n as u64).collect(),
        ty: *ty,
    };
    let decls: Vec<TensorDecl> = tensors.iter().map(decl).collect();
    let mut w = GgufWriter::new(File::create(path).expect("writable"), meta, &decls, 32).expect("writable");
    for (i, (.., bytes)) in tensors.iter().enumerate() {
        w.write(i, 0, bytes).expect("writable");
    }
    w.finish().expect("writable");
}

/// llama.cpp's `permute`: rows `i` and `i + half` of each head become neighbours.
pub(crate) fn interleave(rows: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let n = rows.len() / cols;
    let head = n / heads;
    let from = |to: usize| to / head * head + to % head / 2 + to % 2 * (head / 2);
    (0..n).flat_map(|to| rows[from(to) * cols..][..cols].to_vec()).collect()
}

pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
