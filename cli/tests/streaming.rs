//! Streaming on the command line: a budget that is kept (R1), a plan that agrees, stats, traces, warm starts.

use dollop_tests::tiny::Tiny;
use serde_json::Value as Json;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn dollop(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dollop"));
    command.args(args);
    if !args.contains(&"--backend") {
        command.args(["--backend", "cpu"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    dollop(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(args: &[&str]) -> Json {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A command's peak of anonymous memory, the number of samples, and the command's output.
#[cfg(target_os = "linux")]
fn most_anonymous(args: &[&str]) -> (u64, usize, String) {
    // An answer fits into a pipe's buffer.
    let mut child = dollop(args).stderr(Stdio::null()).spawn().unwrap();
    let (mut most, mut samples) = (0, 0);
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        if let Some(kb) = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()) {
            most = most.max(kb << 10);
            samples += 1;
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{args:?}: {status}");
            let printed = std::io::read_to_string(child.stdout.take().unwrap()).unwrap();
            return (most, samples, printed);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a model with a backend's smallest budget plus each of `more`, in megabytes.
#[cfg(target_os = "linux")]
fn keeps_its_budget(backend: &str, tokens: &str, more: &[u64]) {
    let common = ["--backend", backend, "--ctx", "512", "--precision", "exact:4"];
    let plan = [&["plan", "--json"][..], &common].concat();
    let Output { status, stderr, .. } = run(&[&plan[..], &["--memory", "10M"]].concat());
    assert_eq!(status.code(), Some(1));
    let least = text(&stderr);
    let least: u64 =
        least.split_whitespace().find_map(|w| w.strip_suffix('M')?.parse().ok().filter(|&n| n > 10)).unwrap();
    for budget in more.iter().map(|more| least + more) {
        let memory = format!("{budget}M");
        let plan = json(&[&plan[..], &["--memory", &memory]].concat());
        assert_eq!(plan["streaming"], true);
        assert!(plan["smallest_bytes"].as_u64().unwrap().div_ceil(1 << 20) <= budget, "{plan}");
        let ask = ["run", "-p", "Tell me of the sea.", "-n", tokens, "--temp", "0", "--memory", &memory];
        // On a software adapter, a token takes seconds: without the chat template the prompt is short.
        let raw: &[&str] = if backend == "gpu" { &["--raw"] } else { &[] };
        let (most, samples, _) = most_anonymous(&[&ask[..], raw, &common].concat());
        println!("{backend}, budget {budget} MB: {} MB at most in {samples} samples", most >> 20);
        assert!(samples > 10 && most > 20 << 20, "{most} in {samples}");
        assert!(most <= budget << 20, "{most} bytes under a budget of {budget} MB");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_budget_is_kept_and_used() {
    keeps_its_budget("cpu", "24", &[0, 12]);
}

/// A software driver's device memory is the process's own memory, so all of it is measured.
#[test]
#[cfg(target_os = "linux")]
fn a_budget_is_kept_on_a_gpu() {
    if dollop_tests::has_gpu() {
        let more: &[u64] = if dollop_tests::full() { &[0, 24] } else { &[0] };
        keeps_its_budget("gpu", "4", more);
    }
}

/// All experts on a GPU at one level, some with one more plane: within the budget, as shown by `plan`, mode and stats.
#[test]
#[cfg(target_os = "linux")]
fn a_budget_is_kept_where_experts_are_refined() {
    if !dollop_tests::has_gpu() {
        return;
    }
    let common = ["--backend", "gpu", "--ctx", "512", "--precision", "adaptive", "--memory", "296M"];
    let plan = json(&[&["plan", "--json"][..], &common].concat());
    assert_eq!((&plan["streaming"], &plan["lowered"]), (&false.into(), &true.into()), "{plan}");
    assert!(plan["refinements"]["bits"] == 4 && plan["refinements"]["slots"].as_u64() > Some(0), "{plan}");
    let ask = ["run", "--raw", "-p", "Tell me of the sea.", "-n", "4", "--temp", "0", "--json"];
    let (most, samples, printed) = most_anonymous(&[&ask[..], &common].concat());
    println!("refined: {} MB at most in {samples} samples", most >> 20);
    assert!(samples > 10 && most > 20 << 20 && most <= 292 << 20, "{most} in {samples}");
    let run: Json = serde_json::from_str(&printed).unwrap();
    assert!(run["mode"].as_str().unwrap().contains("4 for"), "{}", run["mode"]);
    let stream = &run["stream"];
    assert!(stream["mean_bits"].as_f64() > Some(3.0) && stream["lanes"].as_u64() > Some(0), "{stream}");
    assert!(stream["upgrades"].as_u64() > Some(0) && stream["bytes_ahead"].is_u64(), "{stream}");
}

#[test]
fn an_answer_does_not_depend_on_the_budget() {
    let ask =
        ["run", "-p", "What is the capital of France?", "-n", "16", "--temp", "0", "--ctx", "256", "--json"];
    let resident = json(&[&ask[..], &["--memory", "all"]].concat());
    assert!(resident["mode"].as_str().unwrap().starts_with("resident") && resident["stream"].is_null());
    let streamed = json(&[&ask[..], &["--memory", "105M", "--precision", "exact:4"]].concat());
    assert!(streamed["mode"].as_str().unwrap().starts_with("streaming"), "{}", streamed["mode"]);
    assert_eq!(resident["text"], streamed["text"]);
    assert!(streamed["text"].as_str().unwrap().contains("Paris"));
    assert!(streamed["stream"]["bytes_wanted"].as_u64().unwrap() > 0, "{streamed}");
}

#[test]
fn stats_trace_and_heat_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, heat) = (folder.path().join("t.json"), folder.path().join("h.json"));
    let (trace_name, heat_name) = (trace.to_str().unwrap(), heat.to_str().unwrap());
    let args = [
        "run",
        "-p",
        "Hi",
        "-n",
        "4",
        "--temp",
        "0",
        "--ctx",
        "256",
        "--memory",
        "105M",
        "--precision",
        "exact:4",
        "-t",
        "2",
        "--stats",
        "--trace",
        trace_name,
        "--heat",
        heat_name,
    ];
    let output = run(&args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for part in ["experts", "reads", "time", "cache"] {
        assert!(text(&output.stderr).contains(part), "{}", text(&output.stderr));
    }
    let events: Json = serde_json::from_str(&std::fs::read_to_string(&trace).unwrap()).unwrap();
    let events = events["traceEvents"].as_array().unwrap();
    let names = |ph: &str| -> Vec<String> {
        let of = events.iter().filter(|e| e["ph"] == ph);
        of.map(|e| e["args"]["name"].as_str().or(e["name"].as_str()).unwrap().to_owned()).collect()
    };
    let tracks = names("M");
    assert!(
        tracks.iter().any(|t| t.contains("I/O lane")) && tracks.iter().any(|t| t.contains("compute")),
        "{tracks:?}"
    );
    assert!(tracks.iter().filter(|t| t.contains("compute")).count() == 2, "one for each thread: {tracks:?}");
    let spans = names("X");
    // Whether a read was waited for depends on timing: `tests/streaming.rs` tests that.
    for part in ["attention", "gate and up", "down", "dense product"] {
        assert!(spans.iter().any(|s| s == part), "no span of {part}");
    }
    assert!(spans.iter().any(|s| s.contains("read layer 0 expert")) && spans.len() > 100, "{}", spans.len());
    assert!(events.iter().filter(|e| e["ph"] == "X").all(|e| e["dur"].as_f64().unwrap() >= 0.0));

    // The second start finds the heat; a damaged file is refused.
    assert!(run(&args).status.success());
    std::fs::write(&heat, "{}").unwrap();
    let refused = run(&args);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("h.json"), "{}", text(&refused.stderr));
}

#[test]
fn an_embedding_that_is_not_held_is_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let (source, out) = (folder.path().join("m.gguf"), folder.path().join("out.gguf"));
    Tiny::load("olmoe").with_experts(64).write_gguf(&source);
    let (source, out) = (source.to_str().unwrap(), out.to_str().unwrap());
    let convert = Command::new(env!("CARGO_BIN_EXE_dollop")).args(["convert", source, out]).output().unwrap();
    assert!(convert.status.success(), "{}", text(&convert.stderr));
    let common = ["--ctx", "64", "--precision", "exact:4"];
    let plan = |memory: &str, json: bool| {
        let json: &[&str] = if json { &["--json"] } else { &[] };
        let output = run(&[&["plan", out, "--memory", memory][..], &common, json].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let whole: Json = serde_json::from_str(&plan("all", true)).unwrap();
    assert_eq!((&whole["streaming"], &whole["unheld_embedding_bytes"]), (&false.into(), &0.into()));
    assert!(!plan("all", false).contains("rows are read"));
    let parts = ["overhead_bytes", "dense_bytes", "kv_bytes", "scratch_bytes", "expert_bytes"];
    let memory: u64 = parts.iter().map(|part| whole[part].as_u64().unwrap()).sum();
    let memory = (memory - 1).to_string();
    let streamed: Json = serde_json::from_str(&plan(&memory, true)).unwrap();
    let unheld = streamed["unheld_embedding_bytes"].as_u64().unwrap();
    assert!(unheld > 256 * 64, "{streamed}");
    assert_eq!(streamed["dense_bytes"].as_u64().unwrap() + unheld, whole["dense_bytes"].as_u64().unwrap());
    let table = plan(&memory, false);
    assert!(table.contains("without the embedding") && table.contains("rows are read"), "{table}");

    let bench = ["bench", out, "-p", "8", "-n", "4", "-r", "1", "--memory", &memory, "--stats"];
    let output = run(&[&bench[..], &common].concat());
    assert!(text(&output.stderr).contains("embedding  not held"), "{}", text(&output.stderr));
    let tests = &json(&[&bench[..10], &common, &["--json"]].concat())["tests"];
    assert!(tests[0]["stream"]["bytes_embedding"].as_u64() > Some(0), "{tests}");
}

#[test]
fn contradictions_are_refused_in_one_line() {
    for (args, says) in [
        (&["--precision", "exact:4", "--skip-cold", "0.1"][..], "exact"),
        (&["--precision", "exact:5"], "exact:B"),
        (&["--memory", "lots"], "no size"),
        (&["--precision", "adaptive:9"], "2 to 8"),
        (&["--memory", "1M"], "too small"),
        (&["--experts-used", "99"], "experts per token"),
    ] {
        let output = run(&[&["run", "-p", "hi", "-n", "1"][..], args].concat());
        let message = text(&output.stderr);
        assert!(!output.status.success() && message.contains(says), "{args:?}: {message}");
        assert!(output.stdout.is_empty());
    }
}
