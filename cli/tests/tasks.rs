//! Gate 61: `dollop eval --tasks` counts right answers and no others. A model gives one text, chosen here, to every question,
//! so its right answers are known.

use dollop_tests::short_model;
use dollop_tests::talker::{Talker, WHOLE};
use serde_json::Value as Json;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A [`Talker`] reads only the end of a prompt; whole prompts would take long.
const SHORT: &str = "{{ messages[-1].content[-40:] }}{{ '\\n' }}";

fn run(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dollop"));
    command.arg("eval").args(args).args(["--backend", "cpu"]);
    command.current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn ok(folder: &Path, args: &[&str]) -> String {
    let out = run(folder, args);
    assert_eq!(out.status.code(), Some(0), "{args:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// A folder with a model `m` that gives `answer` to everything.
fn saying(answer: &str, template: &str, change: impl FnOnce(&mut Talker)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut talker = Talker::saying(answer, template);
    change(&mut talker);
    talker.write(&folder.path().join("m"));
    folder
}

fn column(answer: &str, template: &str, tasks: &str) -> Json {
    let folder = saying(answer, template, |_| ());
    let json: Json = serde_json::from_str(&ok(folder.path(), &["m", "--tasks", tasks, "--json"])).unwrap();
    assert_eq!(json["columns"].as_array().unwrap().len(), 1);
    json["columns"][0].clone()
}

/// For each kind, the number of right answers and of all items.
fn right(column: &Json) -> Vec<(String, u64, u64)> {
    let kinds = column["kinds"].as_array().unwrap().iter();
    kinds
        .map(|k| {
            (k["kind"].as_str().unwrap().into(), k["right"].as_u64().unwrap(), k["total"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn a_right_answer_counts_where_it_is_right() {
    let call = r#"<tool_call>{"name": "set_timer", "arguments": {"minutes": 10}}</tool_call>"#;
    for (kind, answer, want) in [
        ("json", r#"{"city": "Paris"}"#, &[2][..]),
        ("tools", call, &[2, 9, 15]),
        ("arithmetic", "It is 43.", &[1, 11]),
        ("copy", "hello world", &[4]),
        ("retrieval", "They used rhubarb.", &[11]),
        ("facts", "The capital is Paris.", &[1]),
    ] {
        let column = column(answer, SHORT, kind);
        let found = right(&column);
        let answers = column["answers"].as_array().unwrap();
        assert_eq!((found.len(), found[0].0.as_str()), (1, kind));
        assert_eq!((found[0].1, found[0].2), (want.len() as u64, answers.len() as u64), "{kind}: {column}");
        for one in answers {
            let number = one["number"].as_u64().unwrap();
            assert_eq!(one["answer"], answer);
            assert_eq!(one["right"].as_bool(), Some(want.contains(&number)), "{one}");
            assert_eq!(one["why"].is_null(), one["right"] == true, "{one}");
            assert_eq!((one["tokens"].as_u64(), one["loops"].as_bool()), (Some(1), Some(false)));
        }
    }
}

#[test]
fn a_wrong_answer_counts_nowhere_and_is_no_failure() {
    let all = right(&column("I cannot say.", SHORT, "all"));
    let kinds: Vec<&str> = all.iter().map(|kind| kind.0.as_str()).collect();
    assert_eq!(kinds, ["json", "tools", "arithmetic", "copy", "retrieval", "facts"]);
    assert!(all.iter().all(|kind| kind.1 == 0 && kind.2 >= 15), "{all:?}");
    assert_eq!(all.last().unwrap().2, 200);
}

/// A question ends in a line feed, as a [`Talker`] requires, only if the template got tools.
#[test]
fn tools_come_through_the_chat_template_where_it_shows_them() {
    let call = r#"{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}"#;
    let template = "{{ messages[-1].content[-9:] }}{% if tools %}{{ tools | tojson }}{{ '\\n' }}{% endif %}";
    let shown = column(call, template, "tools,arithmetic");
    assert_eq!(shown["tools"], "template");
    assert_eq!(right(&shown)[0], ("tools".into(), 3, 16));
    assert_eq!(shown["answers"][16]["answer"], "");
    let system = format!("{{{{ messages[0].content[:9] }}}}{SHORT}");
    assert_eq!(column(call, &system, "tools")["tools"], "system");
    let question = column(call, SHORT, "tools");
    assert_eq!((&question["tools"], right(&question)[0].1), (&"question".into(), 3));
}

#[test]
fn an_endless_answer_loops_and_may_be_right() {
    let folder = saying("43 ", SHORT, |talker| talker.next[WHOLE as usize] = WHOLE);
    let table = ok(folder.path(), &["m", "--tasks", "arithmetic,copy", "--verbose"]);
    assert!(table.contains("\n| arithmetic | 2/20 | 20 |\n| copy | 0/20 | 20 |\n"), "{table}");
    let wrong: Vec<&str> = table.lines().filter(|line| line.starts_with("as opened ")).collect();
    assert_eq!(wrong.len(), 38, "{table}");
    assert!(wrong[0].starts_with("as opened arithmetic 2: ends with 43, not 33 (loops): "), "{}", wrong[0]);
    let stderr = text(&run(folder.path(), &["m", "--tasks", "arithmetic"]).stderr);
    assert!(stderr.contains("as opened: 20 of 20 tasks, 2 right so far"), "{stderr}");
}

#[test]
fn columns_are_levels_that_the_file_has() {
    let folder = saying("43", SHORT, |_| ());
    let dense = run(folder.path(), &["m", "--tasks", "arithmetic", "--levels", "2,3"]);
    assert!(dense.status.success() && text(&dense.stderr).contains("dense"), "{}", text(&dense.stderr));
    assert!(text(&dense.stdout).contains("\n| arithmetic | 2/20 | 0 |\n"), "{}", text(&dense.stdout));
    let f32 = ok(folder.path(), &["m", "--tasks", "arithmetic", "--reference"]);
    assert!(f32.contains("| f32 | loops |") && f32.contains("reference f32"), "{f32}");

    // With experts: the shortened default model gives no right answer, and different ones at different levels.
    let model = short_model();
    let ask = [model.to_str().unwrap(), "--tasks", "copy", "--json", "--levels"];
    let out = run(folder.path(), &[&ask[..], &["2,4,8,adaptive"]].concat());
    let said = text(&out.stderr);
    assert!(out.status.success() && said.contains("levels 2, 3, 4, and not exact:8"), "{said}");
    let json: Json = serde_json::from_slice(&out.stdout).unwrap();
    let columns = json["columns"].as_array().unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column["column"].as_str().unwrap()).collect();
    assert_eq!(names, ["exact:2", "exact:4", "adaptive:4 (floor 3)"]);
    let mode = |i: usize| columns[i]["mode"].as_str().unwrap();
    assert!(mode(0).contains("exact level 2") && mode(1).contains("exact level 4"), "{said}");
    assert_ne!(columns[0]["answers"], columns[1]["answers"]);
    let none = run(folder.path(), &[&ask[..], &["8"]].concat());
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stderr).contains("error: --levels: the file has levels 2, 3, 4"));
}

#[test]
fn wrong_kinds_and_levels_are_status_2() {
    let folder = tempfile::tempdir().unwrap();
    for (args, word) in [
        (&["--tasks", "poems"][..], "`poems` is no kind of task"),
        (&["--tasks", "json,"], "is no kind of task"),
        (&["--tasks", "json", "--levels", "5"], "neither a level"),
        (&["--tasks", "json", "--levels", "2", "--level", "3"], "cannot be used with"),
        (&["--tasks", "json", "--text", "t.txt"], "cannot be used with"),
        (&["--levels", "2"], "--tasks"),
        (&["--levels", "2", "--text", "t.txt"], "cannot be used with"),
        (&["--verbose", "--text", "t.txt"], "cannot be used with"),
    ] {
        let out = run(folder.path(), args);
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(text(&out.stderr).contains(word), "{args:?}: {}", text(&out.stderr));
    }
}
