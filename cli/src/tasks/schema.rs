//! Checks values against the part of JSON Schema that the items use.

use serde_json::Value as Json;

/// The keywords that are checked. A description is only for the model.
#[cfg(test)]
const KEYWORDS: [&str; 8] =
    ["type", "required", "properties", "items", "enum", "minimum", "maximum", "description"];

/// Whether a value meets a schema.
///
/// # Errors
/// The first place that does not, and why.
pub fn check(value: &Json, schema: &Json) -> Result<(), String> {
    at("", value, schema)
}

fn at(path: &str, value: &Json, schema: &Json) -> Result<(), String> {
    let here = if path.is_empty() { "the value" } else { path };
    if let Some(ty) = schema["type"].as_str().filter(|ty| !is(value, ty)) {
        return Err(format!("{here} is {}, not {ty}", name(value)));
    }
    let listed = |list: &Vec<Json>| list.iter().any(|one| same(one, value));
    if schema["enum"].as_array().is_some_and(|list| !listed(list)) {
        return Err(format!("{here} is {value}, which is none of {}", schema["enum"]));
    }
    if let Some(number) = value.as_f64() {
        let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
        if least.is_some_and(|least| number < least) || most.is_some_and(|most| number > most) {
            return Err(format!("{here} is {value}, which is out of range"));
        }
    }
    if let Some(object) = value.as_object() {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str);
        if let Some(key) = required.into_iter().find(|key| !object.contains_key(*key)) {
            return Err(format!("{here} has no key `{key}`"));
        }
        for (key, schema) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = object.get(key) {
                at(&format!("{path}.{key}"), value, schema)?;
            }
        }
    }
    if let (Some(list), Some(items)) = (value.as_array(), schema.get("items")) {
        for (i, value) in list.iter().enumerate() {
            at(&format!("{path}[{i}]"), value, items)?;
        }
    }
    Ok(())
}

fn is(value: &Json, ty: &str) -> bool {
    match ty {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        // 5.0 is an integer in JSON Schema.
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

fn name(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

fn same(a: &Json, b: &Json) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// A keyword or a type of a schema that [`check`] does not know: items must not rely on one.
#[cfg(test)]
pub fn unknown(schema: &Json) -> Option<String> {
    let Some(object) = schema.as_object() else { return Some(schema.to_string()) };
    let types = ["object", "array", "string", "boolean", "null", "number", "integer"];
    let ty = object.get("type").filter(|ty| !ty.as_str().is_some_and(|ty| types.contains(&ty)));
    let key = object.keys().find(|key| !KEYWORDS.contains(&key.as_str())).cloned();
    let within = object.get("properties").and_then(Json::as_object).into_iter().flat_map(|all| all.values());
    let mut within = within.chain(object.get("items"));
    key.or_else(|| ty.map(Json::to_string)).or_else(|| within.find_map(unknown))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_keyword_can_fail() {
        let person = json!({
            "type": "object",
            "required": ["name", "age"],
            "properties": {
                "name": {"type": "string", "enum": ["Ada", "Bob"]},
                "age": {"type": "integer", "minimum": 1, "maximum": 120},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
        });
        for (value, wrong) in [
            (json!({"name": "Ada", "age": 36}), ""),
            (json!({"name": "Ada", "age": 36.0, "tags": [], "more": null}), ""),
            (json!({"name": "Bob", "age": 120, "tags": ["a", "b"]}), ""),
            (json!([]), "the value is an array, not object"),
            (json!({"name": "Ada"}), "the value has no key `age`"),
            (json!({"name": "Eve", "age": 36}), r#".name is "Eve", which is none of ["Ada","Bob"]"#),
            (json!({"name": "Ada", "age": "36"}), ".age is a string, not integer"),
            (json!({"name": "Ada", "age": 36.5}), ".age is a number, not integer"),
            (json!({"name": "Ada", "age": 0}), ".age is 0, which is out of range"),
            (json!({"name": "Ada", "age": 121}), ".age is 121, which is out of range"),
            (json!({"name": "Ada", "age": 5, "tags": ["a", 1]}), ".tags[1] is a number, not string"),
            (json!({"name": "Ada", "age": 5, "tags": {"a": 1}}), ".tags is an object, not array"),
        ] {
            let said = check(&value, &person).err().unwrap_or_default();
            assert_eq!(said, wrong, "{value}");
        }
    }

    #[test]
    fn types_exclude_each_other() {
        let values = [json!({}), json!([]), json!(""), json!(true), json!(null), json!(1.5)];
        let types = ["object", "array", "string", "boolean", "null", "number"];
        for (i, value) in values.iter().enumerate() {
            for (j, ty) in types.iter().enumerate() {
                assert_eq!(check(value, &json!({"type": ty})).is_ok(), i == j, "{value} {ty}");
            }
        }
        assert!(check(&json!(1), &json!({"enum": [1.0]})).is_ok());
        assert!(check(&json!("1"), &json!({"enum": [1]})).is_err());
    }

    #[test]
    fn keywords_that_are_not_checked_are_found() {
        assert_eq!(unknown(&json!({"type": "string", "description": "x"})), None);
        assert_eq!(unknown(&json!({"pattern": "x"})), Some("pattern".into()));
        assert_eq!(unknown(&json!({"items": {"properties": {"a": {"const": 1}}}})), Some("const".into()));
        assert_eq!(unknown(&json!({"type": "text"})), Some("\"text\"".into()));
    }
}
