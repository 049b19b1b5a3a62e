//! Gate 66: sampling numbers come from the command line, else from the model, else from the program. A seed reproduces its
//! answer, and no option is silently ignored.

use dollop::sampler::Sampling;
use dollop_tests::talker::Talker;
use dollop_tests::tiny::Tiny;
use serde_json::Value as Json;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const PLAIN: &str = "{{ messages[-1].content }}{{ '\\n' }}";

/// A folder with a model `m` whose logits are close to each other, and with this `generation_config.json`.
fn unsure(generation: &str) -> TempDir {
    let place = tempfile::tempdir().unwrap();
    let mut talker = Talker::new(b"ok", PLAIN);
    talker.head_scale = 0.05;
    talker.write(&place.path().join("m"));
    std::fs::write(place.path().join("m/generation_config.json"), generation).unwrap();
    place
}

fn run(place: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dollop"))
        .args(args)
        .current_dir(place)
        .env("XDG_CACHE_HOME", place.join("cache"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that fails early does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Answers of the model `m`.
fn answer(place: &Path, command: &str, more: &[&str], input: &str) -> (String, String) {
    let common = [command, "m", "-n", "12", "--backend", "cpu", "-t", "1"];
    let out = run(place, &[&common[..], more].concat(), input);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(out.status.success(), "{more:?}: {}", text(&out.stderr));
    (text(&out.stdout), text(&out.stderr))
}

fn json(place: &Path, more: &[&str]) -> Json {
    serde_json::from_str(&answer(place, "run", &[&["-p", "hi", "--json"], more].concat(), "").0).unwrap()
}

fn fails(place: &Path, more: &[&str], word: &str) {
    let out = run(place, &[&["run", "m", "-p", "hi", "--backend", "cpu"], more].concat(), "");
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && text.contains(word) && !text.contains("panicked"), "{more:?}: {text}");
}

/// The number in `[… | seed N]`.
fn seed(line: &str) -> Option<&str> {
    line.rsplit_once("seed ").map(|(_, rest)| rest.trim().trim_end_matches(']'))
}

#[test]
fn a_seed_is_another_each_time_and_gives_the_answer_again() {
    let place = unsure("{}");
    let place = place.path();
    let (first, second) = (json(place, &[]), json(place, &[]));
    assert_ne!(first["seed"], second["seed"]);
    assert_ne!(first["tokens"], second["tokens"]);
    assert!(first["seed"].as_u64().unwrap() <= u64::from(u32::MAX));
    let seeded = first["seed"].to_string();
    let again = json(place, &["--seed", &seeded]);
    assert_eq!((&again["tokens"], &again["seed"]), (&first["tokens"], &first["seed"]));

    let (text, line) = answer(place, "run", &["-p", "hi"], "");
    let (same, other) = answer(place, "run", &["-p", "hi", "--seed", seed(&line).unwrap()], "");
    assert_eq!((text, seed(&line)), (same, seed(&other)));
    // The seed of its first answer reproduces a conversation.
    let (talk, line) = answer(place, "chat", &[], "hi\nho\n");
    assert_eq!(answer(place, "chat", &["--seed", seed(&line).unwrap()], "hi\nho\n").0, talk);

    // Greedy decoding shows no seed.
    let (_, line) = answer(place, "run", &["-p", "hi", "--temp", "0"], "");
    assert_eq!(seed(&line), None, "{line}");
    let exact = |more: &[&str]| json(place, &[&["--temp", "0"], more].concat())["tokens"].clone();
    assert_eq!(exact(&[]), exact(&["--seed", "1"]));
    assert_eq!(exact(&[]), exact(&["--xtc-probability", "1", "--typical", "0.1"]));
    assert_ne!(exact(&[]), exact(&["--logit-bias", "111-inf"]), "`o` is never said");
}

#[test]
fn the_models_numbers_count_where_none_are_typed() {
    let advice = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "min_p": 0.0, "repetition_penalty": 1.05,
        "typical_p": 0.9, "eos_token_id": 256}"#;
    let place = unsure(advice);
    let place = place.path();
    let number = |json: &Json, name: &str| json["sampling"][name].as_f64().unwrap() as f32;
    let all = |json: &Json| {
        ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "typical_p"].map(|n| number(json, n))
    };
    assert_eq!(all(&json(place, &[])), [0.6, 20.0, 0.95, 0.0, 1.05, 0.9]);
    let typed = json(place, &["--temp", "1.5", "--top-p", "1", "--repeat-penalty", "1"]);
    assert_eq!(all(&typed), [1.5, 20.0, 1.0, 0.0, 1.0, 0.9]);
    let (_, line) = answer(place, "chat", &["--commands", "--top-k", "7"], "hi\n/stats\n");
    assert!(line.contains("sampling: ") && line.contains("top-k 7, typical-p 0.9, top-p 0.95"), "{line}");

    // From the folder, after conversion, and from another program's file.
    let shown = "top-k 20, typical-p 0.9, top-p 0.95, temperature 0.6";
    let inspect = |name: &str| String::from_utf8(run(place, &["inspect", name], "").stdout).unwrap();
    assert!(inspect("m").contains(shown), "{}", inspect("m"));
    assert!(run(place, &["convert", "m", "out.gguf"], "").status.success());
    assert!(inspect("out.gguf").contains(shown), "{}", inspect("out.gguf"));
    let tiny = Tiny::load("llama");
    let mut meta = dollop::internal::model::families::metadata_from_config(&tiny.config.to_string()).unwrap();
    meta.insert("general.sampling.temp", 0.25f32);
    meta.insert("general.sampling.sequence", "temperature;min_p");
    tiny.write_gguf_with(&place.join("other.gguf"), &meta);
    assert!(run(place, &["convert", "other.gguf", "ours.gguf"], "").status.success());
    for name in ["other.gguf", "ours.gguf"] {
        assert!(inspect(name).contains("sampling       temperature 0.25, min-p 0.05"), "{}", inspect(name));
    }

    // Changed numbers in a folder take effect, although the weights are the same.
    std::fs::write(place.join("m/generation_config.json"), r#"{"do_sample": false}"#).unwrap();
    assert_eq!(json(place, &[])["sampling"]["temperature"], 0.0);
    std::fs::write(place.join("m/generation_config.json"), "{}").unwrap();
    assert_eq!(all(&json(place, &[])), [0.7, 40.0, 0.95, 0.05, 1.0, 1.0]);
}

#[test]
fn advice_that_makes_no_sense_is_told_and_left_out() {
    let place = unsure(
        r#"{"temperature": "hot", "top_k": 20, "top_p": 7, "min_p": NaN, "num_beams": 4, "repetition_penalty": [1]}"#,
    );
    let place = place.path();
    assert!(run(place, &["convert", "m", "out.gguf"], "").status.success());
    for name in ["m", "out.gguf"] {
        let told = String::from_utf8(run(place, &["inspect", name], "").stdout).unwrap();
        for words in [
            "general.sampling.temp is not used: a number",
            "general.sampling.top_p is not used: top-p 7",
            "general.sampling.min_p is not used",
            "generation_config.json that are not used: num_beams, repetition_penalty (a number is expected)",
            "sampling       top-k 20, top-p 0.95, min-p 0.05, temperature 0.7",
        ] {
            assert!(told.contains(words), "{name}: `{words}` is not in {told}");
        }
    }
    let with = json(place, &[]);
    let read: Sampling = serde_json::from_value(with["sampling"].clone()).unwrap();
    let seed = with["seed"].as_u64().unwrap();
    assert_eq!(read, Sampling::default().with_top_k(20).with_seed(seed));
}

#[test]
fn what_would_change_nothing_or_does_not_exist_is_an_error() {
    let place = unsure(r#"{"sequence": "top_k;temperature"}"#);
    let place = place.path();
    for (more, word) in [
        (&["--samplers", "top_k;magic"][..], "`magic`"),
        (&["--samplers", "top_k;top_k"], "twice"),
        (&["--min-p", "0.1"], "the samplers do not name min_p"),
        (&["--mirostat", "2", "--top-k", "3"], "mirostat takes the place"),
        (&["--mirostat", "3"], "0 (off), 1 and 2"),
        (&["--logit-bias", "7"], "15043+1"),
        (&["--logit-bias", "99999+1"], "token 99999"),
        (&["--dry-base", "0.5"], "dry-base 0.5"),
        (&["--temp", "1e-9"], "temperature"),
    ] {
        fails(place, more, word);
    }
    // Every name in the help is accepted.
    for more in [
        &["--samplers", "min_p;top-p", "--min-p", "0.1"][..],
        &["--mirostat", "1"],
        &["--mirostat", "2", "--mirostat-ent", "3", "--mirostat-lr", "0.2", "--temp", "0.9"],
        &[
            "--samplers",
            "dry;typ_p;top_n_sigma;xtc",
            "--dry-multiplier",
            "0.8",
            "--dry-sequence-breaker",
            "o",
        ],
        &["--frequency-penalty", "0.5", "--samplers", "penalties", "--logit-bias", "3-0.5"],
    ] {
        assert!(json(place, more)["sampling"]["seed"].is_u64(), "{more:?}");
    }
    let help = String::from_utf8(run(place, &["run", "--help"], "").stdout).unwrap();
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for words in [
        "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
        "[built in: 0.7]",
        "Sampling: against repetition:",
        "Sampling: mirostat:",
    ] {
        assert!(flat.contains(words), "`{words}` is not in {help}");
    }
}
