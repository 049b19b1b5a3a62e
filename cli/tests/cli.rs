//! Gate 8: the command line: only results on stdout, one line per error, exit status 0, 1 or 2.

use dollop_tests::tiny::Tiny;
use dollop_tests::{default_model, golden, short_model};
use serde_json::Value as Json;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn dollop(args: &[&str], input: &[u8], cache: &Path) -> Output {
    dollop_of(&default_model(), args, input, cache)
}

/// The same with another default model.
fn dollop_of(model: &Path, args: &[&str], input: &[u8], cache: &Path) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dollop"))
        .args(args)
        .env("XDG_CACHE_HOME", cache)
        // Without it, a library under Vulkan writes an error to stderr.
        .env("XDG_RUNTIME_DIR", cache)
        .env("DOLLOP_MODEL", model)
        // All runs share the shader cache of a software driver.
        .env("MESA_SHADER_CACHE_DIR", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs; expects success; returns stdout.
fn ok(args: &[&str], input: &str) -> String {
    let cache = tempfile::tempdir().unwrap();
    let out = dollop(args, input.as_bytes(), cache.path());
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// Runs; expects exit status 1 and one line of error with these words.
fn fails(args: &[&str], input: &[u8], words: &[&str]) {
    let cache = tempfile::tempdir().unwrap();
    let out = dollop(args, input, cache.path());
    let errors = text(&out.stderr);
    let lines: Vec<&str> = errors.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!((out.status.code(), lines.len()), (Some(1), 1), "{args:?}: {errors}");
    for word in words {
        assert!(lines[0].contains(word), "{args:?}: `{}` does not say `{word}`", lines[0]);
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn v_shows_what_the_library_does_and_nothing_else_does() {
    let cache = tempfile::tempdir().unwrap();
    let lines = |v: &[&str]| {
        let run = ["run", "-p", "Hi", "-n", "2", "--backend", "cpu"];
        let out = dollop(&[&run[..], v].concat(), b"", cache.path());
        assert!(out.status.success(), "{}", text(&out.stderr));
        let errors = text(&out.stderr);
        let told = |level: &str| errors.lines().filter(|l| l.starts_with('[') && l.contains(level)).count();
        [" s INFO  dollop::", " s DEBUG dollop::", " s TRACE dollop::"].map(told)
    };
    assert_eq!(lines(&[]), [0; 3]);
    let [info, debug, trace] = lines(&["-v"]);
    assert!(info > 0 && debug == 0 && trace == 0);
    let [info, debug, trace] = lines(&["-vv"]);
    assert!(info > 0 && debug > 1 && trace == 0);
    let [.., trace] = lines(&["-vvv", "--memory", "100M", "--ctx", "64"]);
    assert!(trace > 10, "planes that are read");
    let help = ok(&["run", "--help"], "");
    assert!(help.contains("-v") && help.contains("-vvv"), "{help}");
}

#[test]
fn chat_answers_each_line_of_its_input() {
    let answers = ok(&["chat", "--temp", "0", "-n", "24"], "What is the capital of France?\n\nHello\n");
    assert!(answers.lines().next().unwrap().contains("Paris"), "{answers}");
    assert!(answers.lines().count() >= 2);
}

#[test]
fn run_prints_the_answer_or_json() {
    let json: Json = serde_json::from_str(&ok(
        &["run", "-p", "What is the capital of France?", "--temp", "0", "--json"],
        "",
    ))
    .unwrap();
    assert!(json["text"].as_str().unwrap().contains("Paris"));
    assert_eq!(json["stop"], "end_of_turn");
    assert!(json["prompt_tokens"].as_u64().unwrap() > 10 && json["decode_tps"].as_f64().unwrap() > 0.0);
    assert!(
        json["peak_memory_bytes"].as_u64().unwrap() > 1 << 20
            && json["mode"].as_str().unwrap().contains("exact")
    );
    assert_eq!(json["tokens"].as_array().unwrap().len() as u64, json["generated_tokens"].as_u64().unwrap());
    let raw = ok(&["run", "--raw", "-f", "-", "-n", "5", "--temp", "0"], "The capital of France is");
    assert!(raw.contains("Paris"), "{raw}");
}

#[test]
fn eval_writes_the_logits_of_every_position() {
    let tiny = Tiny::load("mixtral");
    let folder = tempfile::tempdir().unwrap();
    tiny.write_folder(folder.path());
    let out = folder.path().join("logits.json");
    let tokens = tiny.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let args = [
        "eval",
        folder.path().to_str().unwrap(),
        "--reference",
        "--tokens",
        &tokens,
        "--logits",
        out.to_str().unwrap(),
    ];
    assert_eq!(ok(&args, ""), "");
    let json: Json = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(json["tokens"].as_array().unwrap().len(), tiny.tokens.len());
    for (row, want) in json["logits"].as_array().unwrap().iter().zip(&tiny.logits) {
        for (got, want) in row.as_array().unwrap().iter().zip(want) {
            assert!((got.as_f64().unwrap() - f64::from(*want)).abs() < 1e-4);
        }
    }
}

#[test]
fn eval_measures_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    let novel = std::fs::read_to_string(golden("text/austen.txt")).unwrap();
    std::fs::write(&file, &novel[..novel.floor_char_boundary(2500)]).unwrap();
    let json: Json =
        serde_json::from_str(&ok(&["eval", "--text", file.to_str().unwrap(), "--json"], "")).unwrap();
    let bits = json["bits_per_byte"].as_f64().unwrap();
    assert!((0.5..2.5).contains(&bits), "{json}");
    let coarse: Json =
        serde_json::from_str(&ok(&["eval", "--text", file.to_str().unwrap(), "--json", "--level", "2"], ""))
            .unwrap();
    assert!(coarse["bits_per_byte"].as_f64().unwrap() > bits + 0.05, "two bits cost nothing? {coarse}");
}

#[test]
fn a_foreign_model_is_converted_once_and_runs() {
    let tiny = Tiny::load("qwen3moe");
    let folder = tempfile::tempdir().unwrap();
    tiny.write_gguf(&folder.path().join("m.gguf"));
    let source = folder.path().join("m.gguf");
    let cache = tempfile::tempdir().unwrap();
    let args = ["bench", source.to_str().unwrap(), "-p", "8", "-n", "4", "-r", "1"];
    let first = dollop(&args, b"", cache.path());
    assert!(first.status.success() && text(&first.stderr).contains("converting"), "{}", text(&first.stderr));
    let table = text(&first.stdout);
    assert!(table.contains("| pp8 |") && table.contains("| tg4 |") && table.contains(" ± "), "{table}");
    let second = dollop(&args, b"", cache.path());
    assert!(second.status.success() && !text(&second.stderr).contains("converting"));

    let out = folder.path().join("out.gguf");
    let printed = ok(&["convert", source.to_str().unwrap(), out.to_str().unwrap(), "--max-level", "4"], "");
    assert_eq!(printed.trim(), out.to_str().unwrap());
    let json: Json =
        serde_json::from_str(&ok(&["inspect", out.to_str().unwrap(), "--json", "--verify"], "")).unwrap();
    assert_eq!((json["kind"].as_str(), json["planes"].as_array().unwrap().len()), (Some("dollop"), 3));
    let place = out.to_str().unwrap();
    ok(&["convert", source.to_str().unwrap(), place, "--bits", "3.5", "--max-level", "4"], "");
    let shown = ok(&["inspect", place], "");
    assert!(shown.contains("at 3 bits") && shown.contains("on average"), "{shown}");
    let json: Json = serde_json::from_str(&ok(&["inspect", place, "--json"], "")).unwrap();
    let levels = json["expert_levels"].as_object().unwrap();
    assert!(levels.len() > 1 && levels.values().all(|n| n.as_u64() > Some(0)), "{levels:?}");
    fails(&["bench", out.to_str().unwrap(), "--level", "8"], b"", &["level 8", "--max-level"]);
}

#[test]
fn help_teaches_and_wrong_usage_is_status_2() {
    let help = ok(&["--help"], "");
    for command in ["chat", "run", "convert", "inspect", "eval", "bench"] {
        assert!(help.contains(command));
        assert!(ok(&[command, "--help"], "").len() > 300, "{command}");
    }
    let cache = tempfile::tempdir().unwrap();
    for args in [
        &["nonsense"][..],
        &["run"],
        &["chat", "--level", "5"],
        &["eval", "--tokens", "1,x", "--logits", "y"],
        &[],
    ] {
        let out = dollop(args, b"", cache.path());
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(out.stdout.is_empty());
    }
}

#[test]
fn errors_are_one_line_with_file_and_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    fails(&["run", "nowhere.gguf", "-p", "x"], b"", &["nowhere.gguf", "no such file"]);
    fails(&["run", &file("zip.gguf", b"PK\x03\x04xxxxxxxxxxxxxxxx"), "-p", "x"], b"", &["zip.gguf", "GGUF"]);
    fails(&["inspect", &file("empty.gguf", b"")], b"", &["empty.gguf", "empty"]);
    fails(&["run", "-f", &file("latin1.txt", b"caf\xe9")], b"", &["latin1.txt", "byte 3", "UTF-8"]);
    fails(&["chat"], b"caf\xe9\n", &["standard input", "UTF-8"]);
    fails(&["run", "-p", "x", "--ctx", "99999999"], b"", &["context", "8192"]);
    fails(&["run", "-p", &"word ".repeat(200), "--ctx", "64"], b"", &["context is full", "64"]);
    fails(&["run", "-p", "x", "--top-p", "0"], b"", &["top-p", "above 0"]);
    fails(&["run", "-p", "x", "--temp=-1"], b"", &["temperature"]);
    fails(&["eval", "--reference", "--text", &file("t.txt", b"hello there")], b"", &["--reference"]);
    fails(&["eval", "--text", &file("short.txt", b"a")], b"", &["too short"]);
    fails(&["chat", "--load", &file("bad.json", b"{}")], b"", &["bad.json", "/save"]);
    fails(&["run", "-p", "x", "-n", "0"], b"", &["-n 0", "1 token"]);
    fails(&["chat", "-n", "0"], b"hi\n", &["-n 0", "1 token"]);
    fails(&["bench", "-p", "0", "-n", "0"], b"", &["nothing to measure"]);
    fails(&["bench", "--backend", "cpu", "--gpu-clock"], b"", &["needs a GPU", "--backend gpu"]);
    fails(&["convert", &default_model().to_string_lossy()], b"", &["Dollop file already"]);
    fails(&["convert", &golden("text").to_string_lossy()], b"", &["config.json"]);
}

#[test]
fn a_template_that_does_not_parse_names_the_model() {
    let mut bytes = std::fs::read(default_model()).unwrap();
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|w| w == key).unwrap();
    let tag = at + bytes[at..].windows(2).position(|w| w == b"{%").unwrap();
    bytes[tag..tag + 4].copy_from_slice(b"{%%%");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template.gguf");
    std::fs::write(&path, bytes).unwrap();
    let words = ["template.gguf", "chat template", "--raw"];
    fails(&["run", path.to_str().unwrap(), "-p", "x"], b"", &words);
    fails(&["chat", path.to_str().unwrap()], b"x\n", &words);
}

#[test]
fn a_conversation_is_saved_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("talk.json");
    let path = saved.to_str().unwrap();
    ok(&["chat", "--commands", "--temp", "0", "-n", "8"], &format!("My name is Ada.\n/save {path}\n"));
    let json: Json = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!(json["messages"][0]["content"], "My name is Ada.");
    assert_eq!(json["messages"][1]["role"], "assistant");
    ok(&["chat", "--commands", "--temp", "0", "-n", "4", "--load", path], &format!("Hello\n/save {path}\n"));
    let json: Json = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!(json["messages"].as_array().unwrap().len(), 4);
}

#[test]
fn backends_are_chosen_and_listed() {
    fails(&["run", "-p", "x", "--backend", "gpu:1000"], b"", &["GPU", "no adapter 1000"]);
    let devices: Json = serde_json::from_str(&ok(&["devices", "--json"], "")).unwrap();
    let run = |backend: &str| -> Json {
        // Few tokens: software adapters take long for each.
        let args = ["run", "--raw", "-p", "The capital of France is", "-n", "3", "--ctx", "64", "--json"];
        serde_json::from_str(&ok(&[&args[..], &["--temp", "0", "--backend", backend]].concat(), "")).unwrap()
    };
    let cpu = run("cpu");
    assert!(cpu["backend"].as_str().unwrap().starts_with("CPU") && cpu["gpu"].is_null());
    if !dollop_tests::has_gpu() {
        assert!(devices.as_array().unwrap().iter().all(|d| !d["missing"].is_null()));
        return;
    }
    assert!(!ok(&["devices"], "").is_empty());
    let answer = run("gpu");
    assert!(answer["text"].as_str().unwrap().contains("Paris"), "{answer}");
    // A short model: few layers need the same kinds of kernels.
    let cache = tempfile::tempdir().unwrap();
    let run_short = |more: &[&str], cache: &Path| -> Json {
        // Enough tokens for products with inputs in half precision or in 8 bits.
        let prompt = "Water boils at one hundred degrees Celsius at sea level.";
        let args = ["run", "--raw", "-p", prompt, "-n", "2", "--ctx", "64", "--json", "--backend", "gpu"];
        let out = dollop_of(&short_model(), &[&args[..], more].concat(), b"", cache);
        assert!(out.status.success(), "{}", text(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let gpu = run_short(&[], cache.path());
    assert!(
        gpu["backend"].as_str().unwrap().starts_with("GPU") && gpu["gpu"]["dispatches"].as_u64() > Some(0)
    );
    // Kernel variants are used if the adapter supports them, as listed by `dollop devices`.
    let both = dollop(&["run", "--gpu-kernels", "half,bytes"], b"", std::path::Path::new("."));
    assert_eq!(both.status.code(), Some(2), "{}", text(&both.stderr));
    let usable = devices.as_array().unwrap().iter().find(|d| d["missing"].is_null()).unwrap();
    let of = |json: &Json, what: &str| json["gpu"][what].as_u64().unwrap() > 0;
    assert_eq!(of(&gpu, "subgroup_dispatches"), !usable["subgroups"].is_null());
    let bytes = usable["software"] == false && usable["api"] != "Metal";
    assert_eq!((of(&gpu, "half_dispatches"), of(&gpu, "byte_dispatches")), (false, bytes));
    for (kernels, half, bytes) in
        [("plain", false, false), ("single", false, false), ("half", true, false), ("bytes", false, true)]
    {
        let other = run_short(&["--gpu-kernels", kernels], cache.path());
        assert!(!of(&other, "subgroup_dispatches"));
        assert_eq!(of(&other, "half_dispatches"), half && usable["f16"].as_bool().unwrap());
        assert_eq!(of(&other, "byte_dispatches"), bytes);
    }
    // Compiled pipelines are cached, if the adapter supports that.
    let cache = tempfile::tempdir().unwrap();
    let again = || run_short(&[], cache.path());
    assert_eq!(again()["gpu"]["pipelines_read_bytes"], 0);
    let kept = std::fs::read_dir(cache.path().join("dollop")).map_or(0, Iterator::count);
    assert!(kept <= 1);
    assert_eq!(again()["gpu"]["pipelines_read_bytes"].as_u64().unwrap() > 0, kept == 1);
    let chat = ["chat", "--backend", "gpu", "--temp", "0", "-n", "4", "--ctx", "128"];
    let out = dollop_of(&short_model(), &chat, b"Hi\n", cache.path());
    assert!(out.status.success() && !text(&out.stdout).trim().is_empty(), "{}", text(&out.stderr));
}

#[test]
fn a_gpu_that_is_lost_is_said_once_and_not_measured() {
    if !dollop_tests::has_gpu() {
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let gpu = ["--backend", "gpu", "--ctx", "64", "--lose-gpu", "4"];
    let run = ["run", "--raw", "-p", "The capital of France is", "-n", "8", "--temp", "0", "--json"];
    let out = dollop(&[&run[..], &gpu].concat(), b"", cache.path());
    let (json, errors) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{errors}");
    let json: Json = serde_json::from_str(&json).unwrap();
    assert!(json["text"].as_str().unwrap().contains("Paris"), "{json}");
    assert!(json["backend"].as_str().unwrap().starts_with("CPU"), "{json}");
    let said = |line: &&str| line.starts_with("the GPU was lost (") && line.ends_with("from here on");
    assert_eq!(errors.lines().filter(said).count(), 1, "{errors}");
    assert_eq!(json["gpu_lost"], errors.lines().find(said).unwrap());

    let bench = ["bench", "-p", "4", "-n", "4", "-r", "2"];
    let out = dollop_of(&short_model(), &[&bench[..], &gpu].concat(), b"", cache.path());
    let errors = text(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{errors}");
    assert!(out.stdout.is_empty() && errors.contains("error: the GPU was lost ("), "{errors}");
}
