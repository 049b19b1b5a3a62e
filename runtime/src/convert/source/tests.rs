//! Tests of foreign layouts: files are written here and read back through the canonical view. Hostile files
//! are refused.

use super::*;
use crate::format::{GgufWriter, TensorDecl};
use ::safetensors::Dtype;
use ::safetensors::tensor::TensorView;
use std::fs::{self, File};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A temporary folder, deleted when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("dollop-source-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn text(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes a GGUF file. `tensors` has names and GGUF shapes (fastest dimension first); values of each count up
/// from 0.
fn gguf(path: &Path, keys: &[(&str, u32)], arch: &str, tensors: &[(&str, &[u64])]) {
    let mut meta = Metadata::new();
    meta.insert("general.architecture", arch);
    keys.iter().for_each(|&(k, v)| meta.insert(k, v));
    let decl = |&(name, shape): &(&str, &[u64])| TensorDecl {
        name: name.into(),
        shape: shape.to_vec(),
        ty: GgmlType::F32,
    };
    let decls: Vec<_> = tensors.iter().map(decl).collect();
    let mut w = GgufWriter::new(File::create(path).unwrap(), &meta, &decls, 32).unwrap();
    for (i, t) in decls.iter().enumerate() {
        w.write(i, 0, &counting(t.n_bytes() as usize / 4)).unwrap();
    }
    w.finish().unwrap();
}

fn counting(n: usize) -> Vec<u8> {
    (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

fn read(s: &Source, name: &str, expert: usize, rows: Range<usize>) -> Vec<f32> {
    let shape = s.shape(name).unwrap();
    let cols = *shape.last().unwrap();
    let mut out = vec![f32::NAN; rows.len() * cols];
    s.read_rows(name, expert, rows, &mut out).unwrap();
    out
}

const HEADS: [(&str, u32); 2] = [("llama.attention.head_count", 2), ("llama.attention.head_count_kv", 1)];

#[test]
fn interleaved_rows_come_out_half_split() {
    let folder = Folder::new();
    let path = folder.0.join("m.gguf");
    let tensors: [(&str, &[u64]); 4] = [
        ("blk.0.attn_q.weight", &[1, 8]),
        ("blk.0.attn_k.weight", &[2, 4]),
        ("blk.0.attn_v.weight", &[1, 4]),
        ("blk.0.attn_q.bias", &[8]),
    ];
    gguf(&path, &HEADS, "llama", &tensors);
    let s = Source::open(&path).unwrap();
    // Head 0 is stored as 0, 0', 1, 1'; its halves are (0, 1) and (0', 1').
    let half_split = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
    assert_eq!(read(&s, "blk.0.attn_q.weight", 0, 0..8), half_split);
    assert_eq!(read(&s, "blk.0.attn_q.weight", 0, 3..6), half_split[3..6]);
    assert_eq!(read(&s, "blk.0.attn_k.weight", 0, 0..4), [0.0, 1.0, 4.0, 5.0, 2.0, 3.0, 6.0, 7.0]);
    assert_eq!(read(&s, "blk.0.attn_v.weight", 0, 0..4), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(s.shape("blk.0.attn_q.bias"), Some(&[8][..]));
    assert_eq!(read(&s, "blk.0.attn_q.bias", 0, 0..1), half_split);
    // Windows does not allow a mapped file to be overwritten.
    drop(s);

    gguf(&path, &HEADS, "qwen2", &tensors);
    let s = Source::open(&path).unwrap();
    assert_eq!(read(&s, "blk.0.attn_q.weight", 0, 0..8), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
}

#[test]
fn heads_that_do_not_fit_are_errors() {
    let folder = Folder::new();
    let path = folder.0.join("m.gguf");
    for (heads, shape) in
        [(3, &[1u64, 8][..]), (u32::MAX, &[1, 8]), (0, &[1, 8]), (8, &[1, 8]), (2, &[4, 1, 8])]
    {
        gguf(&path, &[("llama.attention.head_count", heads)], "llama", &[("blk.0.attn_q.weight", shape)]);
        let text = Source::open(&path).unwrap_err().to_string();
        assert!(text.contains("attn_q") && text.contains("m.gguf"), "{text}");
    }
}

#[test]
fn experts_one_by_one_become_a_stack() {
    let folder = Folder::new();
    let path = folder.0.join("m.gguf");
    gguf(&path, &HEADS, "llama", &[("blk.3.ffn_up.1.weight", &[2, 3]), ("blk.3.ffn_up.0.weight", &[2, 3])]);
    let s = Source::open(&path).unwrap();
    assert_eq!(s.names().collect::<Vec<_>>(), ["blk.3.ffn_up_exps.weight"]);
    assert_eq!(s.shape("blk.3.ffn_up_exps.weight"), Some(&[2, 3, 2][..]));
    assert_eq!(read(&s, "blk.3.ffn_up_exps.weight", 1, 1..3), [2.0, 3.0, 4.0, 5.0]);
    assert_eq!((s.bytes(), s.tensor_bytes("blk.3.ffn_up_exps.weight")), (48, 48));
    assert!(s.raw_rows("blk.3.ffn_up_exps.weight", 2, 0..1).is_err());
    assert!(s.raw_rows("blk.3.ffn_up_exps.weight", 0, 0..4).is_err());
    s.release("blk.3.ffn_up_exps.weight");
    assert_eq!(read(&s, "blk.3.ffn_up_exps.weight", 0, 0..1), [0.0, 1.0], "released bytes come back");
    drop(s);

    let wrong: [(&[(&str, &[u64])], &str); 4] = [
        (&[("blk.0.ffn_up.4000.weight", &[2, 3])], "1 of 4001"),
        (&[("blk.0.ffn_up.99999.weight", &[2, 3])], "99999"),
        (&[("blk.0.ffn_up.0.weight", &[2, 3]), ("blk.0.ffn_up.1.weight", &[3, 2])], "differs"),
        (&[("blk.0.ffn_up_exps.weight", &[2, 3]), ("blk.0.ffn_up.0.weight", &[2, 3])], "whole"),
    ];
    for (tensors, want) in wrong {
        gguf(&path, &HEADS, "llama", tensors);
        let text = Source::open(&path).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    }
}

#[test]
fn any_shard_opens_all() {
    let folder = Folder::new();
    let shard = |i: u32| folder.0.join(format!("m-{i:05}-of-00002.gguf"));
    let write = |i: u32, no: u32| {
        let name = format!("blk.{i}.attn_v.weight");
        let keys = [("split.no", no), ("split.count", 2), ("split.tensors.count", 2)];
        gguf(&shard(i), &keys, "qwen2", &[(&name, &[2, 2])]);
    };
    (1..=2).for_each(|i| write(i, i - 1));
    for i in 1..=2 {
        let s = Source::open(&shard(i)).unwrap();
        assert_eq!(s.names().collect::<Vec<_>>(), ["blk.1.attn_v.weight", "blk.2.attn_v.weight"]);
        assert_eq!(s.files().count(), 2);
        assert!(s.metadata().get("split.count").is_none());
    }
    write(2, 0);
    assert!(Source::open(&shard(1)).unwrap_err().to_string().contains("split.no"));
    fs::remove_file(shard(2)).unwrap();
    let text = Source::open(&shard(1)).unwrap_err().to_string();
    assert!(text.contains("m-00002-of-00002.gguf"), "{text}");
    fs::rename(shard(1), folder.0.join("renamed.gguf")).unwrap();
    let text = Source::open(&folder.0.join("renamed.gguf")).unwrap_err().to_string();
    assert!(text.contains("split.count"), "{text}");
}

const CONFIG: &str = r#"{"model_type":"olmoe","num_hidden_layers":1,"hidden_size":4,"num_attention_heads":2,
    "max_position_embeddings":64,"intermediate_size":3,"num_experts":2,"num_experts_per_tok":1,
    "eos_token_id":[7,9],"rms_norm_eps":1e-5,"rope_theta":5000,"hidden_act":"silu"}"#;

fn safetensors_file(path: &Path, tensors: &[(String, Vec<usize>, Vec<u8>)]) {
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(path, ::safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

#[test]
fn both_layouts_of_experts_read_alike() {
    let (single, stacked) = (Folder::new(), Folder::new());
    let mut tensors = Vec::new();
    let all = counting(2 * 6 * 4);
    let down = counting(2 * 4 * 3);
    for e in 0..2 {
        let at = |part: &str| format!("model.layers.0.mlp.experts.{e}.{part}_proj.weight");
        tensors.push((at("gate"), vec![3, 4], all[e * 96..][..48].to_vec()));
        tensors.push((at("up"), vec![3, 4], all[e * 96 + 48..][..48].to_vec()));
        tensors.push((at("down"), vec![4, 3], down[e * 48..][..48].to_vec()));
    }
    safetensors_file(&single.0.join("model.safetensors"), &tensors);
    let tensors = [
        ("model.layers.0.mlp.experts.gate_up_proj".to_owned(), vec![2, 6, 4], all),
        ("model.layers.0.mlp.experts.down_proj".to_owned(), vec![2, 4, 3], down),
    ];
    safetensors_file(&stacked.0.join("a.safetensors"), &tensors[..1]);
    safetensors_file(&stacked.0.join("b.safetensors"), &tensors[1..]);
    stacked.text(
        "model.safetensors.index.json",
        r#"{"weight_map":{"model.layers.0.mlp.experts.gate_up_proj":"a.safetensors","x":"b.safetensors"}}"#,
    );
    let open = |f: &Folder| {
        f.text("config.json", CONFIG);
        Source::open(&f.0.join("config.json")).unwrap()
    };
    let (a, b) = (open(&single), open(&stacked));
    assert_eq!(a.bytes(), b.bytes());
    for (part, rows, cols) in [("gate", 3, 4), ("up", 3, 4), ("down", 4, 3)] {
        let name = format!("blk.0.ffn_{part}_exps.weight");
        assert_eq!(a.shape(&name), Some(&[2, rows, cols][..]));
        assert_eq!(b.shape(&name), Some(&[2, rows, cols][..]));
        for e in 0..2 {
            assert_eq!(read(&a, &name, e, 0..rows), read(&b, &name, e, 0..rows), "{name} {e}");
        }
    }
    assert_eq!(read(&b, "blk.0.ffn_up_exps.weight", 1, 0..1), [36.0, 37.0, 38.0, 39.0]);
    b.release("blk.0.ffn_up_exps.weight");
    assert_eq!(a.metadata().u64("olmoe.expert_count").unwrap(), Some(2));
    assert_eq!(a.metadata().u64s("dollop.tokenizer.eot_token_ids").unwrap(), Some(vec![7, 9]));
}

#[test]
fn folders_that_lack_something_say_what() {
    let folder = Folder::new();
    let text = |f: &Folder| Source::open(&f.0).unwrap_err().to_string();
    assert!(text(&folder).contains("config.json"));
    folder.text("config.json", CONFIG);
    assert!(text(&folder).contains("model.safetensors"));
    let empty = [("model.norm.weight".to_owned(), vec![0, 4], Vec::new())];
    safetensors_file(&folder.0.join("model.safetensors"), &empty);
    assert!(text(&folder).contains("output_norm"), "{}", text(&folder));
    safetensors_file(&folder.0.join("model.safetensors"), &[("vision.x".to_owned(), vec![1], counting(1))]);
    assert!(text(&folder).contains("vision.x"));
    folder.text("config.json", r#"{"model_type":"bert"}"#);
    assert!(text(&folder).contains("olmoe"), "the supported families are listed");
    folder.text("config.json", CONFIG);
    folder.text("model.safetensors.index.json", r#"{"weight_map":{"a":"../../etc/passwd"}}"#);
    assert!(text(&folder).contains("no file name"));
}
