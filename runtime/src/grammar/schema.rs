//! Parses JSON Schemas, and finds the place of an error in one.

use serde_json::Value as Json;

/// Deepest nesting allowed; real schemas have about ten levels.
const MAX_DEPTH: usize = 64;

/// The most parts to try when looking for the one that does not compile.
const MAX_TRIES: usize = 200;

/// Keywords whose value is a schema or a list of schemas (`SCHEMAS`), or a map from names to schemas
/// (`NAMED`).
const SCHEMAS: [&str; 8] =
    ["items", "prefixItems", "additionalProperties", "contains", "not", "allOf", "anyOf", "oneOf"];
const NAMED: [&str; 4] = ["$defs", "definitions", "properties", "patternProperties"];

/// Parses a schema. The error text has line and column if the text is not JSON.
pub fn parse(text: &str) -> Result<Json, String> {
    let value = serde_json::from_str(text).map_err(|e| format!("it is no JSON: {e}"))?;
    match depth(&value, 0) > MAX_DEPTH {
        true => Err(format!("it is nested deeper than {MAX_DEPTH} levels")),
        false => Ok(value),
    }
}

/// Levels of nesting. The JSON parser allows at most 128.
fn depth(value: &Json, above: usize) -> usize {
    let deepest = match value {
        Json::Array(list) => list.iter().map(|v| depth(v, above + 1)).max(),
        Json::Object(map) => map.values().map(|v| depth(v, above + 1)).max(),
        _ => None,
    };
    deepest.unwrap_or(above)
}

/// Finds the innermost part that does not compile by itself: its JSON pointer, and why.
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

/// The schemas directly below this one, with their relative JSON pointers.
fn parts(of: &Json) -> Vec<(String, &Json)> {
    let mut out = Vec::new();
    // Definitions first: a part that refers to a broken definition fails, too.
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

/// A part of a schema, with the definitions that it may refer to.
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
