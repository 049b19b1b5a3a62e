//! JSON Schemas as values, and where in one something is wrong.

use serde_json::Value as Json;

/// Deepest nesting: real schemas have some ten levels.
const MAX_DEPTH: usize = 64;

/// Parts that are tried at most, to find the one that does not compile.
const MAX_TRIES: usize = 200;

/// Keywords whose value is a schema or a list of them, and keywords whose value has schemas by name.
const SCHEMAS: [&str; 8] =
    ["items", "prefixItems", "additionalProperties", "contains", "not", "allOf", "anyOf", "oneOf"];
const NAMED: [&str; 4] = ["$defs", "definitions", "properties", "patternProperties"];

/// The schema as a value, or what is wrong with its text: with line and column, where it is no JSON.
pub fn parse(text: &str) -> Result<Json, String> {
    let value = serde_json::from_str(text).map_err(|e| format!("it is no JSON: {e}"))?;
    match depth(&value, 0) > MAX_DEPTH {
        true => Err(format!("it is nested deeper than {MAX_DEPTH} levels")),
        false => Ok(value),
    }
}

/// Levels of nesting; the reader of JSON allows 128.
fn depth(value: &Json, above: usize) -> usize {
    let deepest = match value {
        Json::Array(list) => list.iter().map(|v| depth(v, above + 1)).max(),
        Json::Object(map) => map.values().map(|v| depth(v, above + 1)).max(),
        _ => None,
    };
    deepest.unwrap_or(above)
}

/// The innermost part of a schema that does not compile by itself, as a JSON pointer, and why.
pub fn place(whole: &Json, fails: &dyn Fn(Json) -> Option<String>) -> Option<(String, String)> {
    let (mut at, mut found, mut tries) = (whole, None, 0);
    let mut pointer = String::new();
    loop {
        let mut next = None;
        for (path, part) in parts(at) {
            tries += 1;
            if tries > MAX_TRIES {
                return found;
            }
            if let Some(why) = fails(alone(part, whole)) {
                next = Some((path, part, why));
                break;
            }
        }
        let Some((path, part, why)) = next else { return found };
        pointer.push_str(&path);
        (at, found) = (part, Some((pointer.clone(), why)));
    }
}

/// The schemas right below one, with their pointers.
fn parts(of: &Json) -> Vec<(String, &Json)> {
    let mut out = Vec::new();
    // Definitions first: a part that refers to one that does not compile fails too.
    for key in NAMED {
        let named = of.get(key).and_then(Json::as_object).into_iter().flatten();
        let escaped = |name: &str| name.replace('~', "~0").replace('/', "~1");
        out.extend(named.map(|(name, part)| (format!("/{key}/{}", escaped(name)), part)));
    }
    for key in SCHEMAS {
        match of.get(key) {
            Some(Json::Array(all)) => {
                out.extend(all.iter().enumerate().map(|(i, part)| (format!("/{key}/{i}"), part)));
            }
            Some(part @ Json::Object(_)) => out.push((format!("/{key}"), part)),
            _ => {}
        }
    }
    out
}

/// A part with the definitions that it may refer to.
fn alone(part: &Json, whole: &Json) -> Json {
    let mut part = part.clone();
    if let Json::Object(map) = &mut part {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = whole.get(key) {
                map.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    part
}
