//! Gate 135: bodies of random bytes and fields with random values are parsed or refused, without a panic.

use dollop_server::read_all;
use proptest::prelude::*;
use serde_json::{Value as Json, json};

/// Random JSON values, which use the field names and strings that the parsers look for.
fn value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        "\\PC{0,12}".prop_map(Json::from),
        prop_oneof!["user", "assistant", "text", "image_url", "tool", "function", "json_schema"]
            .prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let name = prop_oneof![
            "role",
            "content",
            "type",
            "text",
            "name",
            "function",
            "arguments",
            "tool_calls",
            "\\PC{0,4}"
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
            prop::collection::vec((name, inner), 0..6)
                .prop_map(|pairs| Json::Object(pairs.into_iter().collect())),
        ]
    })
}

const NAMES: [&str; 37] = [
    "model",
    "messages",
    "prompt",
    "input",
    "system",
    "instructions",
    "stream",
    "stream_options",
    "n",
    "stop",
    "stop_sequences",
    "max_tokens",
    "max_output_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "logit_bias",
    "samplers",
    "mirostat",
    "repeat_last_n",
    "dry_sequence_breakers",
    "tools",
    "tool_choice",
    "response_format",
    "format",
    "options",
    "think",
    "thinking",
    "reasoning",
    "chat_template_kwargs",
    "modalities",
    "text",
    "logprobs",
    "top_logprobs",
    "include",
];

proptest! {
    #[test]
    fn gate_135_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        read_all(&bytes);
    }

    #[test]
    fn gate_135_fields_of_any_value_are_read_or_refused(fields in prop::collection::vec((0..NAMES.len(), value()), 0..8)) {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "input": "Hi", "max_tokens": 1});
        for (name, value) in fields {
            body[NAMES[name]] = value;
        }
        read_all(body.to_string().as_bytes());
    }
}

#[test]
fn gate_135_what_is_sound_is_read() {
    // The properties above would also hold if every body were refused. So check that valid ones are accepted.
    let messages = r#""messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1"#;
    let reads = |more: &str| read_all(format!("{{{messages}{more}}}").as_bytes());
    assert_eq!(reads(""), 3, "chats, messages and Ollama's chat");
    assert_eq!(reads(r#", "input": "Hi""#), 4, "and responses");
    assert_eq!(reads(r#", "prompt": "Hi""#), 5, "and both that continue a prompt");
    assert_eq!(read_all(br#"{"messages": [{"role": "nobody", "content": "Hi"}]}"#), 0);
}
