//! Random tools and calls.

use dollop_tests::chance::Chance;
use serde_json::{Map, Value as Json, json};

const WORDS: [&str; 32] = [
    "a",
    "Zürich",
    "\"",
    "'",
    "\\",
    "\n",
    "\t",
    " ",
    "  ",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ":",
    "=",
    "日本",
    "😀",
    "é",
    "</",
    "<b>",
    "null",
    "True",
    "5",
    "1.5",
    "{\"k\": [1]}",
    "\\n",
    "\u{2028}",
    "x=1, y=2",
    "|",
];

pub fn text(chance: &mut Chance) -> String {
    (0..chance.below(6)).map(|_| chance.pick(&WORDS)).collect()
}

const KEYS: [&str; 8] = ["place", "days", "Unit", "tags", "at", "x1", "deep_key", "name"];

/// A random value, nested.
fn value(chance: &mut Chance, depth: usize) -> Json {
    match chance.below(if depth == 0 { 5 } else { 7 }) {
        0 => text(chance).into(),
        1 => (chance.below(2000) as i64 - 1000).into(),
        2 => chance.pick(&[0.5, -1.25, 3.0, 1e20, 0.001]).into(),
        3 => chance.one_in(2).into(),
        4 => Json::Null,
        5 => (0..chance.below(4)).map(|_| value(chance, depth - 1)).collect::<Vec<_>>().into(),
        _ => object(chance, depth - 1).into(),
    }
}

fn object(chance: &mut Chance, depth: usize) -> Map<String, Json> {
    (0..chance.below(4)).map(|_| (chance.pick(&KEYS).to_owned(), value(chance, depth))).collect()
}

/// A value and a schema under which it is valid.
fn argument(chance: &mut Chance) -> (Json, Json) {
    match chance.below(7) {
        0 | 1 => (text(chance).into(), json!({"type": "string"})),
        2 => (chance.below(100).into(), json!({"type": "integer"})),
        3 => (chance.pick(&[0.5, -2.0, 1e3]).into(), json!({"type": "number"})),
        4 => (chance.one_in(2).into(), json!({"type": "boolean"})),
        5 => ((0..3).map(|_| value(chance, 2)).collect::<Vec<_>>().into(), json!({"type": "array"})),
        _ => (object(chance, 3).into(), json!({"type": "object"})),
    }
}

/// Tools, and calls of them: names with arguments.
pub fn some(chance: &mut Chance, most: usize) -> (Json, Vec<(String, Json)>) {
    let (mut tools, mut calls) = (Vec::new(), Vec::new());
    for i in 0..1 + chance.below(most) {
        let name = format!("{}_{i}", chance.pick(&["get_weather", "clock", "f", "Search"]));
        let (mut properties, mut arguments) = (Map::new(), Map::new());
        for _ in 0..chance.below(5) {
            let (key, (value, schema)) = (chance.pick(&KEYS), argument(chance));
            properties.insert(key.to_owned(), schema);
            arguments.insert(key.to_owned(), value);
        }
        let parameters = json!({"type": "object", "properties": properties});
        let function = json!({"name": name, "description": "A tool.", "parameters": parameters});
        tools.push(json!({"type": "function", "function": function}));
        calls.push((name, Json::Object(arguments)));
    }
    (tools.into(), calls)
}
