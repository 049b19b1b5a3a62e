//! Gate 142: the plan of a model that is not here is that of the same model on the disk, from its headers alone; and no plan
//! converts. Gate 143: the doctor measures and leaves nothing. Gate 200: forecasts follow from kept rates of this machine.

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

/// The forecast of a plan, by (budget, precision): its rows, or why there are none.
fn forecast(place: &Place, model: &str) -> Result<Vec<Json>, String> {
    let plan = plan(place, model, &["--memory", "2G"]);
    let why = plan["forecast"]["why_not"].as_str().map(str::to_owned);
    let rows = plan["forecast"]["rows"].as_array().unwrap().clone();
    assert_eq!(rows.is_empty(), why.is_some(), "{plan}");
    why.map_or(Ok(rows), Err)
}

#[test]
fn forecasts_follow_from_rates_that_were_measured_once() {
    let place = Place::new(Hub::start());
    let len = olmoe(&place.path("m-Q8_0.gguf"), "olmoe", 1000);
    place.hub.put_with_holes("m-Q8_0.gguf", &header(&place.path("m-Q8_0.gguf"), 1000), len);
    assert!(forecast(&place, "m-Q8_0.gguf").unwrap_err().contains("`dollop plan --calibrate`"));
    let (text, _) = place.ok(&["plan", "m-Q8_0.gguf", "--backend", "cpu"]);
    assert_eq!(text.lines().filter(|l| l.contains("--calibrate")).count(), 1, "{text}");
    // Measured, and kept: nothing else stays.
    let rates: Json = serde_json::from_str(&place.ok(&["plan", "--calibrate", "--json"]).0).unwrap();
    let file = place.path("cache/dollop/rates.json");
    let kept = || -> Json { serde_json::from_slice(&fs::read(&file).unwrap()).unwrap() };
    let keep = |rates: &Json| fs::write(&file, rates.to_string()).unwrap();
    assert_eq!(kept(), rates);
    assert!(
        rates["products"].as_array().unwrap().iter().all(|p| p["bytes_per_second"].as_f64().unwrap() > 1e6)
    );
    let names = fs::read_dir(place.path("cache/dollop")).unwrap().flatten().map(|e| e.file_name());
    assert!(names.into_iter().all(|name| name == "rates.json" || name == "headers"));
    let rows = forecast(&place, "m-Q8_0.gguf").unwrap();
    assert_eq!(kept(), rates, "a plan measures nothing");
    assert_eq!(forecast(&place, "hf:org/name:Q8_0").unwrap(), rows);
    let number = |row: &Json, key: &str| row[key].as_f64().unwrap();
    for row in &rows {
        let (slow, fast) = (row["band"][0].as_f64().unwrap(), row["band"][1].as_f64().unwrap());
        let speed = number(row, "tokens_per_second");
        assert!(slow > 0.0 && slow < speed && speed < fast, "{row}");
    }
    let streamed: Vec<&Json> = rows.iter().filter(|r| r["streaming"] == true).collect();
    assert!(streamed.len() >= 6 && streamed.len() < rows.len(), "{rows:?}");
    // Known rates, and a disk that takes no time: what a token uses, byte for byte.
    let mut known = rates.clone();
    known["operation_seconds"] = 1e-6.into();
    known["memory_bytes_per_second"] = 1e9.into();
    for product in known["products"].as_array_mut().unwrap() {
        product["bytes_per_second"] = 2e9.into();
    }
    let disk = |known: &mut Json, seconds: f64| {
        for burst in known["bursts"].as_array_mut().unwrap() {
            burst["seconds"] = seconds.into();
        }
    };
    disk(&mut known, 1e-12);
    keep(&known);
    let whole = plan(&place, "m-Q8_0.gguf", &["--memory", "all"]);
    let level = whole["levels"].as_array().unwrap().last().unwrap();
    let dense = whole["token"]["dense"].as_array().unwrap();
    let seconds: f64 = dense
        .iter()
        .map(|d| d[1].as_f64().unwrap() / if d[0] == 32 { 1e9 } else { 2e9 })
        .chain([number(level, "touched_bytes") / 2e9, 16.0 * 7.0 * 1e-6])
        .sum();
    let fast = forecast(&place, "m-Q8_0.gguf").unwrap();
    let exact = |rows: &[Json]| -> Vec<(bool, f64)> {
        let exact = rows.iter().filter(|r| r["precision"] == "exact:8");
        exact.map(|r| (r["streaming"] == true, number(r, "tokens_per_second"))).collect()
    };
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-3;
    assert!(
        exact(&fast).len() > 2 && exact(&fast).iter().all(|(_, tps)| near(*tps, 1.0 / seconds)),
        "{fast:?}"
    );
    // A slow disk slows down what is streamed, and less so with more memory.
    disk(&mut known, 0.1);
    keep(&known);
    let slow = exact(&forecast(&place, "m-Q8_0.gguf").unwrap());
    assert!(slow.windows(2).all(|w| w[0].1 < w[1].1), "{slow:?}");
    for (streaming, tps) in slow {
        assert!(if streaming { tps < 2.0 } else { near(tps, 1.0 / seconds) }, "{tps}");
    }
    refused_rates(&place, &file, &rates);
}

/// Rates that are not this machine's, or not whole, are refused; measuring again replaces them.
fn refused_rates(place: &Place, file: &Path, rates: &Json) {
    let changed = |change: &dyn Fn(&mut Json)| {
        let mut rates = rates.clone();
        change(&mut rates);
        rates.to_string()
    };
    let text = rates.to_string();
    for (content, why) in [
        (changed(&|r| r["machine"]["cores"] = 1000.into()), "another machine"),
        (changed(&|r| r["machine"]["processor"] = "abacus".into()), "another machine"),
        (changed(&|r| r["machine"]["id"] = 1.into()), "another machine"),
        (changed(&|r| r["version"] = 0.into()), "another version"),
        (changed(&|r| r["memory_bytes_per_second"] = (-1.0).into()), "damaged"),
        (changed(&|r| r["products"] = serde_json::json!([])), "damaged"),
        (changed(&|r| drop(r["bursts"].as_array_mut().unwrap().pop())), "damaged"),
        (text[..text.len() / 2].to_owned(), "damaged"),
        (String::new(), "damaged"),
    ] {
        fs::write(file, content).unwrap();
        let told = forecast(place, "m-Q8_0.gguf").unwrap_err();
        assert!(told.contains(why) && told.contains("`dollop plan --calibrate`"), "{why}: {told}");
    }
    let (text, _) = place.ok(&["plan", "m-Q8_0.gguf", "--calibrate", "--memory", "2G", "--backend", "cpu"]);
    assert!(text.contains("| exact:4 |") && text.contains("smallest budget"), "{text}");
    assert!(forecast(place, "m-Q8_0.gguf").is_ok());
}
