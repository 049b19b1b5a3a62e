//! Calls that a constraint forces.

use dollop::sampler::Sampling;
use dollop::tools::{Format, Parser, Piece};
use dollop::{Engine, EngineOptions, Event, GenerateOptions, SessionOptions};
use dollop_tests::chance::Chance;
use dollop_tests::short_model;
use serde_json::{Value as Json, json};

/// A word of each form's templates, by which it is recognised.
const FORMS: [(&str, &str); 12] = [
    ("Hermes", "<tool_call>"),
    ("QwenCoder", "<tool_call><function="),
    ("Harmony", "<|channel|> to=functions"),
    ("Gemma", "<|tool_call>"),
    ("FunctionGemma", "<start_function_call>"),
    ("Lfm2", "<|tool_call_start|>"),
    ("Glm", "<tool_call><arg_key>"),
    ("DeepSeek", "<｜tool▁call▁begin｜>"),
    ("DeepSeekFenced", "<｜tool▁call▁begin｜>```json"),
    ("Mistral", "[TOOL_CALLS]"),
    ("MistralNamed", "[TOOL_CALLS][ARGS]"),
    ("Granite", "<|tool_call|>"),
];

fn tools() -> Json {
    let parameters = json!({
        "type": "object",
        "properties": {
            "place": {"type": "string", "enum": ["Bern", "Zürich"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "dry": {"type": "boolean"},
            "unit": {"type": "string", "maxLength": 8},
            "at": {"type": "object", "properties": {"lat": {"type": "integer", "minimum": -90, "maximum": 90}}, "required": ["lat"], "additionalProperties": false}
        },
        "required": ["place", "at"],
        "additionalProperties": false
    });
    json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": parameters}},
        {"name": "clock", "parameters": {"type": "object", "properties": {"utc": {"type": "boolean"}}, "additionalProperties": false}}
    ])
}

#[test]
fn gate_124_a_required_call_is_valid_in_every_form() {
    let engine = Engine::open(short_model(), &EngineOptions::default().with_threads(2)).unwrap();
    let mut session = engine.session(SessionOptions::default().with_context(1024)).unwrap();
    let prompt = engine.encode_text("The weather: ").unwrap();
    let (tools, mut chance) = (tools(), Chance(1));
    let schema = |name: &str| {
        let all = tools.as_array().unwrap();
        let of =
            |tool: &Json| if tool["function"].is_object() { tool["function"].clone() } else { tool.clone() };
        all.iter().map(of).find(|f| f["name"] == name).unwrap()["parameters"].clone()
    };
    let (mut whole, mut tried) = (0, 0);
    for (form, word) in FORMS {
        let format = Format::of(word).unwrap();
        assert_eq!(format!("{format:?}"), format!("Format({form})"));
        for (i, name) in [Some("get_weather"), Some("clock"), None].into_iter().enumerate() {
            let constraint = format.require(&tools, name).unwrap();
            let sampling = Sampling::default().with_temperature(0.9).with_seed(chance.below(1000) as u64);
            let options = GenerateOptions::default()
                .with_max_tokens(200)
                .with_sampling(sampling)
                .with_constraint(constraint)
                .with_tools(format);
            let mut parser = Parser::new(format, &tools);
            let mut pieces = Vec::new();
            let outcome = session
                .generate(&prompt, &options, &mut |event: Event| {
                    if let Event::Token { text, .. } | Event::Rest { text } = event {
                        pieces.extend(parser.push(&text));
                    }
                })
                .unwrap_or_else(|e| panic!("{form}: {e}"));
            pieces.extend(parser.finish());
            tried += 1;
            if outcome.stop == dollop::StopReason::MaxTokens {
                continue;
            }
            let text = &outcome.text;
            let [Piece::Call { name: called }, .., Piece::End] = &pieces[..] else {
                panic!("{form}, {i}: {text:?} is {pieces:?}")
            };
            assert!(name.is_none_or(|name| name == called), "{form}: {called}");
            let argument =
                |p: &Piece| if let Piece::Arguments(text) = p { text.clone() } else { String::new() };
            let arguments: String = pieces.iter().map(argument).collect();
            let arguments: Json = serde_json::from_str(&arguments).unwrap();
            let valid = jsonschema::validator_for(&schema(called)).unwrap();
            assert!(valid.is_valid(&arguments), "{form}: {arguments}");
            assert!(arguments.is_object() && outcome.forced_tokens > 0, "{form}: {text:?}");
            whole += 1;
        }
        assert!(
            format.require(&tools, Some("no_such")).is_err() && format.require(&json!([]), None).is_err()
        );
    }
    assert!(whole * 2 > tried, "{whole} of {tried} calls were not cut off");
}
