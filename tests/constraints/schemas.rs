//! Random schemas with the supported keywords.

use dollop_tests::chance::Chance;
use serde_json::{Map, Value as Json, json};

const KEYS: [&str; 8] = ["name", "first name", "größe", "x", "is_it", "\"quoted\"", "items", "日本"];
const PATTERNS: [&str; 5] = ["^[a-z]{2,5}$", "^(yes|no)$", "^\\d{4}-\\d{2}$", "^[A-Z][a-zé]*-?[0-9]+$", "b"];
const FORMATS: [&str; 5] = ["date", "time", "uuid", "ipv4", "email"];

/// A schema, nested to at most this depth.
pub fn schema(chance: &mut Chance, depth: usize) -> Json {
    // Definitions are only at the top.
    match chance.below([7, 10, 11][depth.min(2)]) {
        0 => text(chance),
        1 => {
            let low = chance.below(2000) as i64 - 1000;
            json!({"type": "integer", "minimum": low, "maximum": low + chance.below(500) as i64})
        }
        2 => json!({"type": "number", "minimum": -1.5, "exclusiveMaximum": 1 + chance.below(100)}),
        3 => json!({"type": "boolean"}),
        4 => {
            let all =
                [json!("a"), json!("two words"), json!(3), json!(null), json!(true), json!({"k": [1, "é"]})];
            json!({"enum": all[..2 + chance.below(5)]})
        }
        5 => json!({"const": chance.pick(&["x", "\\ \"", "ünï"])}),
        6 => json!({"type": ["null", "boolean"]}),
        7 => {
            let least = chance.below(3);
            json!({"type": "array", "items": schema(chance, depth - 1), "minItems": least, "maxItems": least + chance.below(3)})
        }
        8 => json!({"anyOf": [schema(chance, depth - 1), schema(chance, depth - 1)]}),
        10 => {
            let item = schema(chance, depth - 1);
            let list = json!({"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 2});
            json!({"$defs": {"item": item}, "type": "object", "properties": {"all": list}, "additionalProperties": false,
                "required": ["all"]})
        }
        _ => object(chance, depth - 1),
    }
}

fn text(chance: &mut Chance) -> Json {
    match chance.below(3) {
        0 => json!({"type": "string", "maxLength": 1 + chance.below(12)}),
        1 => json!({"type": "string", "pattern": chance.pick(&PATTERNS[..4])}),
        _ => json!({"type": "string", "format": chance.pick(&FORMATS)}),
    }
}

fn object(chance: &mut Chance, depth: usize) -> Json {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for _ in 0..1 + chance.below(4) {
        let key = chance.pick(&KEYS);
        properties.insert(key.to_owned(), schema(chance, depth));
        if chance.below(2) == 0 && !required.contains(&key) {
            required.push(key);
        }
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}
