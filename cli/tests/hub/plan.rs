//! Gate 142: the plan of a model that is not here is that of the same model on the disk, from its headers alone; and no plan
//! converts. Gate 143: the doctor measures and leaves nothing.

use super::Place;
use super::server::Hub;
use dollop::internal::format::{GgmlType, GgufWriter, Metadata, TensorDecl};
use dollop_tests::talker::Talker;
use serde_json::Value as Json;
use std::fs::{self, File};
use std::path::Path;

/// A file of OLMoE-1B-7B's shape at 8 bits, whose weights are a hole, with keys of `filler` bytes. Returns its length.
fn olmoe(path: &Path, architecture: &str, filler: usize) -> u64 {
    let (width, heads, experts, inner, vocab, layers) = (2048, 16u32, 64, 1024, 50304, 16u32);
    let mut keys = Metadata::new();
    keys.insert("general.architecture", architecture.to_owned());
    keys.insert("general.description", "x".repeat(filler));
    for (key, value) in [
        ("block_count", layers),
        ("context_length", 4096),
        ("embedding_length", width as u32),
        ("feed_forward_length", inner as u32),
        ("attention.head_count", heads),
        ("attention.head_count_kv", heads),
        ("expert_count", experts as u32),
        ("expert_used_count", 8),
    ] {
        keys.insert(format!("{architecture}.{key}"), value);
    }
    keys.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5f32);
    keys.insert(format!("{architecture}.rope.freq_base"), 10000f32);
    let mut tensors = Vec::new();
    let mut add =
        |name: String, shape: &[u64], ty| tensors.push(TensorDecl { name, shape: shape.to_vec(), ty });
    add("token_embd.weight".into(), &[width, vocab], GgmlType::Q8_0);
    add("output.weight".into(), &[width, vocab], GgmlType::Q8_0);
    add("output_norm.weight".into(), &[width], GgmlType::F32);
    for layer in 0..layers {
        let mut add = |part: &str, shape: &[u64], ty| add(format!("blk.{layer}.{part}.weight"), shape, ty);
        for norm in ["attn_norm", "attn_q_norm", "attn_k_norm", "ffn_norm"] {
            add(norm, &[width], GgmlType::F32);
        }
        for part in ["attn_q", "attn_k", "attn_v", "attn_output"] {
            add(part, &[width, width], GgmlType::Q8_0);
        }
        add("ffn_gate_inp", &[width, experts], GgmlType::F32);
        add("ffn_gate_exps", &[width, inner, experts], GgmlType::Q8_0);
        add("ffn_up_exps", &[width, inner, experts], GgmlType::Q8_0);
        add("ffn_down_exps", &[inner, width, experts], GgmlType::Q8_0);
    }
    let file = File::create(path).unwrap();
    let end = GgufWriter::new(file.try_clone().unwrap(), &keys, &tensors, 32).unwrap().end();
    file.set_len(end).unwrap();
    end
}

/// The header of a file whose weights are a hole.
fn header(path: &Path, filler: usize) -> Vec<u8> {
    use std::io::Read;
    let mut bytes = Vec::new();
    File::open(path).unwrap().take(filler as u64 + (64 << 10)).read_to_end(&mut bytes).unwrap();
    bytes
}

fn plan(place: &Place, model: &str, more: &[&str]) -> Json {
    let args = [&["plan", model, "--json", "--backend", "cpu", "-t", "1"], more].concat();
    serde_json::from_str(&place.ok(&args).0).unwrap()
}

#[test]
fn a_plan_needs_headers_alone() {
    let place = Place::new(Hub::start());
    let filler = 5 << 20;
    let len = olmoe(&place.path("m-Q8_0.gguf"), "olmoe", filler);
    assert!(len > 7_000_000_000);
    place.hub.put_with_holes("m-Q8_0.gguf", &header(&place.path("m-Q8_0.gguf"), filler), len);
    place.hub.put_with_holes("m-F16.gguf", b"GGUF", 2 * len);
    let local = plan(&place, "m-Q8_0.gguf", &["--memory", "2G"]);
    let mut far = plan(&place, "hf:org/name:Q8_0", &["--memory", "2G"]);
    let download = far.as_object_mut().unwrap().remove("download").unwrap();
    assert_eq!(far, local);
    assert_eq!(download["taken"]["bytes"].as_u64(), Some(len));
    assert_eq!(download["files"].as_array().unwrap().len(), 2);
    let sent = place.hub.bytes_sent();
    assert!(sent > filler as u64 && sent < 9_000_000, "{sent} bytes were sent");
    assert!(download["bytes_read"].as_u64().unwrap().abs_diff(sent) < 1 << 20);
    assert_eq!(far["streaming"], true);
    let sizes = far["conversion"]["sizes"].as_array().unwrap();
    let size = |i: usize| sizes[i][1].as_u64().unwrap();
    assert!(sizes.len() == 5 && size(0) < size(2) / 3 * 2 && size(4) > len * 9 / 10, "{sizes:?}");
    // Nothing stays, and nothing was converted or fetched whole.
    assert!(place.files(".gguf").len() == 1 && !place.path("hf/hub").exists());
    let (text, _) = place.ok(&["plan", "hf:org/name:Q8_0", "--memory", "2G", "--backend", "cpu"]);
    for words in ["supported           yes", "download", "F16", "--max-level 3", "smallest budget"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    place.fails(&["plan", "hf:org/name:Q8_0", "--memory", "100M", "--backend", "cpu"], &["budget"]);
}

#[test]
fn folders_are_planned_without_their_weights() {
    let place = Place::new(Hub::start());
    Talker::saying("Paris.", "{{ messages[-1].content }}{{ '\\n' }}").write(&place.path("talker"));
    place.hub.put_folder(&place.path("talker"));
    let local = plan(&place, "talker", &["--memory", "1G"]);
    let mut far = plan(&place, "hf:org/name", &["--memory", "1G"]);
    far.as_object_mut().unwrap().remove("download").unwrap();
    assert_eq!(far, local);
    let weights = fs::metadata(place.path("talker/model.safetensors")).unwrap().len();
    assert!(place.hub.bytes_sent() < weights, "{} of {weights}", place.hub.bytes_sent());
    // The same as of the conversion itself.
    place.ok(&["convert", "talker", "talker.gguf"]);
    let mut converted = plan(&place, "talker.gguf", &["--memory", "1G"]);
    assert!(converted["conversion"].is_null());
    converted["conversion"] = far["conversion"].clone();
    assert_eq!(far, converted);
}

#[test]
fn what_is_not_supported_is_told_before_it_is_fetched() {
    let place = Place::new(Hub::start());
    let len = olmoe(&place.path("m.gguf"), "falcon-h9", 1000);
    place.hub.put_with_holes("m-Q8_0.gguf", &header(&place.path("m.gguf"), 1000), len);
    place.fails(&["plan", "hf:org/name"], &["falcon-h9", "not supported"]);
    assert!(place.hub.bytes_sent() < 3 << 20);
    place.hub.put("m-Q8_0.gguf", b"no model");
    place.fails(&["plan", "hf:org/name"], &["no GGUF file"]);
}

#[test]
fn the_doctor_measures_and_says_what_to_do() {
    let place = Place::new(Hub::start());
    Talker::saying("Paris.", "{{ messages[-1].content }}{{ '\\n' }}").write(&place.path("talker"));
    place.hub.put_folder(&place.path("talker"));
    let found: Json = serde_json::from_str(&place.ok(&["doctor", "hf:org/name", "--json"]).0).unwrap();
    for rate in [&found["memory_bytes_per_second"], &found["disk"]["Ok"]["read_bytes_per_second"]] {
        assert!(rate.as_f64().unwrap() > 1e6, "{found}");
    }
    assert!(found["cores"].as_u64().unwrap() > 0 && found["disk"]["Ok"]["free_bytes"].as_u64().unwrap() > 0);
    let advice = found["advice"].as_str().unwrap();
    assert!(
        advice.contains("dollop chat hf:org/name --memory") && advice.contains("everything fits"),
        "{advice}"
    );
    assert!(fs::read_dir(place.path("cache/dollop")).unwrap().flatten().all(|e| e.file_name() == "headers"));
    // A cache folder that cannot be one.
    let file = place.path("file");
    fs::write(&file, "x").unwrap();
    let out = place.command(&["doctor"]).env("XDG_CACHE_HOME", &file).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("cannot be used") && text.contains("Set XDG_CACHE_HOME"), "{text}");
}
