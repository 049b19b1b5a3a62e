//! Gate 60: damaged, malformed or hostile models, and untrusted text. Nothing is silently ignored, nothing is lost, and input
//! changes no file and sends no control characters to a terminal.

use dollop_tests::talker::{END, Talker};
use serde_json::{Value as Json, json};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A template whose prompts a [`Talker`] answers: they end in a line feed.
const PLAIN: &str = "{{ messages[-1].content }}{{ '\\n' }}";

/// A folder with models, and a separate cache.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    /// A model folder `m` that answers with these bytes, after `change`.
    fn with(bytes: &[u8], change: impl FnOnce(&mut Talker)) -> Place {
        let place = Place::new();
        let mut talker = Talker::new(bytes, PLAIN);
        change(&mut talker);
        talker.write(&place.path("m"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `dollop` in the folder, on the CPU if the command has a backend and none is given.
    fn run(&self, args: &[&str], input: &[u8]) -> Output {
        let mut all = args.to_vec();
        if !matches!(args[0], "convert" | "inspect") && !args.contains(&"--backend") {
            all.extend(["--backend", "cpu", "-t", "1"]);
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_dollop"))
            .args(all)
            .current_dir(self.folder.path())
            .env("XDG_CACHE_HOME", self.path("cache"))
            // Without it, a library under Vulkan writes an error to stderr.
            .env("XDG_RUNTIME_DIR", self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that fails early does not read its input.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Runs; expects success; returns stdout without the line feed after an answer.
    fn ok(&self, args: &[&str], input: &str) -> String {
        let out = self.run(args, input.as_bytes());
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
    }

    fn json(&self, args: &[&str]) -> Json {
        serde_json::from_str(&self.ok(args, "")).unwrap()
    }

    /// Runs; expects status 1 and an error that contains all of `words`; returns it.
    fn fails(&self, args: &[&str], words: &[&str]) -> String {
        let out = self.run(args, b"");
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {text}");
        let error = text.lines().find(|l| l.starts_with("error: ")).unwrap_or_else(|| panic!("{text}"));
        for word in words {
            assert!(error.contains(word), "{args:?}: `{error}` does not say `{word}`");
        }
        assert!(!text.contains("panicked"), "{text}");
        error.to_owned()
    }

    /// Converted models in the cache.
    fn cached(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path("cache/dollop")).into_iter().flatten().flatten();
        files.map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect()
    }
}

#[test]
fn an_answer_goes_on_behind_bytes_that_are_no_character() {
    let answer = [b"\xc3\xc4\xc5\xc6\xc7\xc8\xc9".as_slice(), "😀 XYZW".as_bytes()].concat();
    let place = Place::with(&answer, |_| {});
    let want = String::from_utf8_lossy(&answer).into_owned();
    let json = place.json(&["run", "m", "-p", "hi", "--json"]);
    assert_eq!(json["text"], want.as_str());
    assert_eq!(json["tokens"].as_array().unwrap().len(), answer.len());
    assert_eq!(place.ok(&["run", "m", "-p", "hi"], ""), want, "what is streamed is the same");
}

#[test]
fn values_that_are_no_numbers_end_in_an_error_that_says_where() {
    let place = Place::with(b"ok", |t| t.norm = 3e38);
    for args in [
        &["run", "m", "-p", "hi"][..],
        &["run", "m", "-p", "hi", "--temp", "0.7", "--presence-penalty", "0.1"],
        &["eval", "m", "--tokens", "104,10", "--logits", "-"],
    ] {
        place.fails(args, &["not finite", "output head"]);
    }
    let place = Place::with(b"ok", |t| (t.overflow, t.layers) = (Some((1, b'h')), 3));
    place.fails(&["run", "m", "-p", "hi"], &["not finite", "in layer 1", "at token 0"]);
    // A prompt of several chunks: values stop being finite in a chunk whose logits are not computed.
    place.fails(
        &["run", "m", "-p", &format!("xh{}", "x".repeat(700))],
        &["not finite", "in layer 1", "at token 1"],
    );
    if dollop_tests::has_gpu() {
        let gpu = ["run", "m", "-p", "hi", "--backend", "gpu", "--ctx", "64"];
        place.fails(&gpu, &["not finite", "in layer 1", "at token 0"]);
    }
}

#[test]
fn small_weights_are_kept_within_the_usual_error() {
    for scale in [1.0, 1e-3, 1e-6, 1e-12, 1e-17] {
        let place = Place::with(b"ok", |t| t.head_scale = scale);
        assert_eq!(place.ok(&["run", "m", "-p", "hi", "--temp", "0"], ""), "ok", "{scale}");
        // If all logits are almost equal, sampling would be random: the answer must be the greedy one.
        if scale < 1e-4 {
            for args in [&["run", "m", "-p", "hi"][..], &["run", "m", "-p", "hi", "--top-k", "0"]] {
                assert_eq!(place.ok(args, ""), "ok", "{scale}");
            }
        }
        let args = ["eval", "m", "--tokens", "104,105,10,111", "--logits", "-"];
        let (got, want) = (place.json(&args), place.json(&[&args[..], &["--reference"]].concat()));
        let rows = |json: &Json| -> Vec<Vec<f64>> { serde_json::from_value(json["logits"].clone()).unwrap() };
        let (got, want) = (rows(&got).concat(), rows(&want).concat());
        let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        assert!(largest > 0.0);
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() < 0.005 * largest, "{scale}: {got} for {want}");
        }
    }
}

#[test]
fn a_prompt_is_tokenized_whole_whatever_a_trainer_left_in_the_tokenizer() {
    let truncation = json!({"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0});
    let padding = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end|>"});
    for (block, value) in [("truncation", truncation), ("padding", padding)] {
        let place = Place::with(b"ok", |t| t.tokenizer[block] = value);
        let json = place.json(&["run", "m", "-p", "hello my friend", "--json"]);
        assert_eq!((&json["prompt_tokens"], &json["text"]), (&json!(16), &json!("ok")), "{block}");
        assert!(place.ok(&["inspect", "m"], "").contains(&format!("{block} is not applied")));
    }
}

#[test]
fn small_files_are_read_as_python_reads_them_or_refused() {
    let write = |place: &Place, name: &str, text: &str| fs::write(place.path("m").join(name), text).unwrap();
    let config = |t: &Talker| t.tokenizer_config.to_string();
    let text = config(&Talker::new(b"ok", PLAIN));
    // A number that JSON does not allow, in a field that nothing reads.
    let place = Place::with(b"ok", |_| {});
    write(
        &place,
        "tokenizer_config.json",
        &text.replacen('{', "{\"model_max_length\": NaN, \"x\": -Infinity, ", 1),
    );
    assert_eq!(place.ok(&["run", "m", "-p", "hi"], ""), "ok");
    // And in a field that is read.
    let place = Place::with(b"ok", |_| {});
    let json = fs::read_to_string(place.path("m/config.json")).unwrap();
    write(&place, "config.json", &json.replacen("10000.0", "NaN", 1));
    place.fails(&["run", "m", "-p", "hi"], &["config.json", "rope_theta", "a number"]);
    for name in [
        "tokenizer_config.json",
        "generation_config.json",
        "special_tokens_map.json",
        "config.json",
        "tokenizer.json",
    ] {
        let place = Place::with(b"ok", |_| {});
        write(&place, name, "{\"a\": 1");
        place.fails(&["run", "m", "-p", "hi"], &[name]);
        assert!(place.cached().is_empty());
    }
    // The end of a turn and the template may be in other files.
    let place = Place::with(b"ok", |t| t.tokenizer_config = json!({}));
    write(&place, "special_tokens_map.json", "{\"eos_token\": {\"content\": \"<|end|>\"}}");
    write(&place, "chat_template.json", &json!({ "chat_template": PLAIN }).to_string());
    let json = place.json(&["run", "m", "-p", "hi", "--json"]);
    assert_eq!((&json["text"], &json["stop"]), (&json!("ok"), &json!("end_of_turn")));
    assert_eq!(json["tokens"].as_array().unwrap().len(), 2, "token {END} is no part of the answer");
}

#[test]
fn what_makes_a_model_unusable_is_told_before_its_conversion() {
    let told = |change: &dyn Fn(&mut Talker), words: &[&str]| {
        let place = Place::with(b"ok", change);
        let error = place.fails(&["run", "m", "-p", "hi"], words);
        assert!(!error.contains("cache/dollop"), "{error}");
        assert!(place.cached().is_empty(), "converted for nothing");
        place
    };
    told(&|t| t.tokenizer["model"] = json!({"type": "nothing"}), &["m/tokenizer.json"]);
    let place =
        told(&|t| t.tokenizer_config = json!({"eos_token": "<|end|>"}), &["m", "no chat template", "--raw"]);
    assert_eq!(place.ok(&["run", "m", "--raw", "-p", "hi\n"], ""), "ok", "plain text needs none");
    told(&|t| t.tokenizer_config["chat_template"] = "{% if %}".into(), &["m: chat template", "--raw"]);
    told(&|t| t.config["quantization_config"] = json!({"quant_method": "awq"}), &["awq", "not supported"]);
    told(&|t| t.config["partial_rotary_factor"] = json!(0.5), &["partial_rotary_factor"]);
    let place = Place::with(b"ok", |_| {});
    fs::write(place.path("m/adapter_config.json"), "{}").unwrap();
    place.fails(&["run", "m", "-p", "hi"], &["adapter_config.json", "merge"]);
    // An unknown key that does no harm is listed by `inspect`.
    let place = Place::with(b"ok", |t| t.config["mystery"] = 1.into());
    assert_eq!(place.ok(&["run", "m", "-p", "hi"], ""), "ok");
    assert!(place.ok(&["inspect", "m"], "").contains("not used: mystery"));
    place.ok(&["convert", "m", "out.gguf"], "");
    assert!(place.ok(&["inspect", "out.gguf"], "").contains("not used: mystery"));
}

#[test]
fn an_output_is_never_one_of_the_inputs() {
    let place = Place::with(b"ok", |_| {});
    let before = fs::read(place.path("m/model.safetensors")).unwrap();
    place.fails(&["convert", "m", "m/model.safetensors"], &["model.safetensors", "another file"]);
    place.fails(&["convert", "m", "m/../m/tokenizer.json"], &["tokenizer.json", "another file"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("m/model.safetensors", place.path("link.gguf")).unwrap();
        place.fails(&["convert", "m", "link.gguf"], &["link.gguf", "another file"]);
    }
    assert_eq!(fs::read(place.path("m/model.safetensors")).unwrap(), before);
    fs::write(place.path("text.txt"), "hello hello hello hello").unwrap();
    place.fails(&["convert", "m", "text.txt", "--calibrate", "text.txt"], &["text.txt", "is read"]);
    let eval = ["eval", "m", "--tokens", "104,10", "--logits"];
    place.fails(&[&eval[..], &["m/config.json"]].concat(), &["config.json", "is read"]);
    place.ok(&["convert", "m", "out.gguf"], "");
    place.fails(&[&eval[..], &["out.gguf"]].concat(), &["out.gguf", "is a model"]);
    place.ok(&["inspect", "out.gguf", "--verify"], "");
    // A second conversion replaces the file of the first, and reports it.
    let out = place.run(&["convert", "m", "out.gguf"], b"");
    assert!(out.status.success() && String::from_utf8_lossy(&out.stderr).contains("was replaced"));
}

#[test]
fn results_are_named_after_their_models() {
    let place = Place::new();
    for name in ["tiny-0.5B", "tiny-0.7B"] {
        Talker::new(b"ok", PLAIN).write(&place.path(name));
        assert_eq!(place.ok(&["convert", name], ""), format!("{name}.dollop.gguf"));
    }
    let first = fs::metadata(place.path("tiny-0.5B.dollop.gguf")).unwrap().modified().unwrap();
    let out = Command::new(env!("CARGO_BIN_EXE_dollop"))
        .args(["convert", "."])
        .current_dir(place.path("tiny-0.5B"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(fs::metadata(place.path("tiny-0.5B.dollop.gguf")).unwrap().modified().unwrap() > first);
    let inside = fs::read_dir(place.path("tiny-0.5B")).unwrap().flatten();
    assert!(inside.map(|f| f.file_name().into_string().unwrap()).all(|n| !n.contains("dollop")));
}

#[test]
fn a_damaged_file_in_the_cache_is_made_again() {
    let place = Place::with(b"ok", |_| {});
    assert_eq!(place.ok(&["run", "m", "-p", "hi"], ""), "ok");
    let [file] = &place.cached()[..] else { panic!("{:?}", place.cached()) };
    let whole = fs::read(file).unwrap();
    for cut in [whole.len() / 2, 100, 0, whole.len() * 99 / 100] {
        fs::write(file, &whole[..cut]).unwrap();
        assert_eq!(place.ok(&["run", "m", "-p", "hi"], ""), "ok", "cut to {cut} bytes");
        assert!(fs::read(file).unwrap() == whole, "another file than at first: cut to {cut} bytes");
    }
}

#[test]
fn two_conversions_at_a_time_both_end_well() {
    let place = Place::with(b"ok", |_| {});
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_dollop"))
            .args(["run", "m", "-p", "hi", "--backend", "cpu", "-t", "1"])
            .current_dir(place.folder.path())
            .env("XDG_CACHE_HOME", place.path("cache"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let all: Vec<_> = (0..4).map(|_| start()).collect();
    for child in all {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.stdout, b"ok\n");
    }
    // The conversion, and what it was made of.
    let left: Vec<_> =
        fs::read_dir(place.path("cache/dollop")).unwrap().flatten().map(|e| e.path()).collect();
    let one = |end: &str| left.iter().filter(|p| p.extension().is_some_and(|e| e == end)).count();
    assert_eq!((one("gguf"), one("source"), left.len()), (1, 1, 2), "{left:?}");
}

#[test]
fn what_is_piped_into_a_chat_is_only_said() {
    let place = Place::with(b"ok", |_| {});
    fs::write(place.path("victim.txt"), "keep").unwrap();
    let lines = "hi\n/save victim.txt\n/read victim.txt\n/exit\n/etc/hosts: what is that?\n// a comment?\n";
    assert_eq!(place.ok(&["chat", "m"], lines), ["ok"; 6].join("\n"));
    assert_eq!(fs::read_to_string(place.path("victim.txt")).unwrap(), "keep");
    // With `--commands`, a file that is not a saved conversation still stays unchanged.
    let out = place.run(&["chat", "m", "--commands"], b"hi\n/save victim.txt\n");
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(1), &b"ok\n"[..]));
    assert_eq!(fs::read_to_string(place.path("victim.txt")).unwrap(), "keep");
    let said = place
        .ok(&["chat", "m", "--commands"], "hi\n /exit\n//x\n/save talk.json\n/save talk.json\n/exit\nhi\n");
    assert_eq!(said, "ok\nok\nok");
    let saved: Json = serde_json::from_slice(&fs::read(place.path("talk.json")).unwrap()).unwrap();
    assert_eq!(saved["messages"][4]["content"], "//x");
    let out = place.run(&["chat", "m", "--commands"], b"/sav x\n");
    assert!(String::from_utf8_lossy(&out.stderr).contains("no command /sav"));
}

/// Clear the screen, set the title, and the eight-bit form of the first.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}";

#[test]
fn a_model_file_says_nothing_to_the_terminal() {
    let place = Place::with(b"ok", |t| {
        t.tokenizer_config["chat_template"] =
            format!("{HOSTILE}{{{{ raise_exception('{HOSTILE}\\nerror: x') }}}}").into();
        t.config[HOSTILE] = 1.into();
    });
    for args in [&["inspect", "m"][..], &["inspect", "m", "--json"], &["run", "m", "-p", "hi"]] {
        let out = place.run(args, b"");
        let all = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
        assert!(all.contains("owned"), "{args:?}: the text itself is shown: {all}");
        let raw = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!all.contains(raw), "{args:?}: {all:?}");
        assert!(all.lines().filter(|l| l.starts_with("error: ")).count() <= 1);
    }
}

/// An answer goes to a pipe unchanged, and to a terminal without control characters.
#[test]
#[cfg(target_os = "linux")]
fn an_answer_says_nothing_to_the_terminal() {
    let answer = b"\x1b]0;x\x07\xc2\x9b!\n";
    let place = Place::with(&answer[..answer.len() - 1], |_| {});
    let piped = place.run(&["run", "m", "-p", "hi"], b"");
    assert_eq!(piped.stdout, answer, "a pipe gets what the model said");
    let command = format!("{} run m -p hi --backend cpu -t 1", env!("CARGO_BIN_EXE_dollop"));
    let out = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .current_dir(place.folder.path())
        .env("XDG_CACHE_HOME", place.path("cache"))
        .stdin(Stdio::null())
        .output()
        .expect("`script` of util-linux makes a terminal");
    let shown = String::from_utf8(out.stdout).unwrap();
    assert!(shown.contains("\\x1b]0;x\\x07\\x9b!"), "{shown:?}");
    assert!(!shown.contains(|c: char| c.is_control() && !matches!(c, '\r' | '\n')), "{shown:?}");
}

#[test]
fn the_next_word_is_the_value_whatever_it_begins_with() {
    let place = Place::with(b"ok", |_| {});
    for args in [
        &["-p", "- a list"][..],
        &["-p", "-5 + 3 = ?"],
        &["-p", "--help"],
        &["-p", "hi", "--system", "- be brief"],
        &["-p", "hi", "--stop", "---", "--stop", "-"],
        &["-p", "hi", "--presence-penalty", "-0.5"],
    ] {
        assert_eq!(place.ok(&[&["run", "m"], args].concat(), ""), "ok", "{args:?}");
    }
    place.fails(&["run", "m", "-p", "hi", "--temp", "-1"], &["temperature -1", "between"]);
    place.fails(&["run", "m", "-p", "hi", "--min-p", "-1"], &["min-p -1", "between"]);
    let out = place.run(&["chat", "m", "--system", "-x"], b"hi\n");
    assert_eq!(out.stdout, b"ok\n");
}

#[test]
fn keys_of_a_gguf_are_understood_or_refused() {
    use dollop::internal::model::families;
    let tiny = dollop_tests::tiny::Tiny::load("llama-yarn");
    let place = Place::new();
    let meta = || families::metadata_from_config(&tiny.config.to_string()).unwrap();
    let logits = |name: &str, key: Option<(&str, f32)>| {
        let mut meta = meta();
        if let Some((key, value)) = key {
            meta.insert(key, value);
        }
        tiny.write_gguf_with(&place.path(name), &meta);
        place.json(&["eval", name, "--reference", "--tokens", "1,2,3,4,5,6,7,8", "--logits", "-"])
    };
    let plain = logits("plain.gguf", None);
    let same = logits("same.gguf", Some(("llama.rope.scaling.attn_factor", 1.0)));
    assert_eq!(plain, same);
    for (name, value) in [
        ("rope.scaling.attn_factor", 2.0),
        ("rope.scaling.yarn_attn_factor", 2.0),
        ("rope.scaling.yarn_ext_factor", 0.0),
        ("attention.scale", 0.5),
        ("embedding_scale", 2.0),
        ("final_logit_softcapping", 3.0),
    ] {
        let other = logits("other.gguf", Some((&format!("llama.{name}"), value)));
        assert_ne!(plain, other, "{name} is ignored");
    }
    let mut meta = meta();
    meta.insert("llama.attn_logit_softcapping", 30.0f32);
    tiny.write_gguf_with(&place.path("cap.gguf"), &meta);
    for command in ["inspect", "convert"] {
        place.fails(&[command, "cap.gguf"], &["cap.gguf", "llama.attn_logit_softcapping", "not understood"]);
    }
}
