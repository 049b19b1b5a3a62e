//! Scores answers that must be JSON.

use super::schema;
use super::score::Verdict;
use serde_json::Value as Json;

/// Right if the answer is JSON that meets the schema, and nothing else.
pub fn score(answer: &str, schema: &Json) -> Verdict {
    let value = parse(answer)?;
    schema::check(&value, schema)
}

/// The JSON of an answer; a fence may enclose it.
pub fn parse(answer: &str) -> Result<Json, String> {
    let text = unfenced(answer.trim());
    serde_json::from_str(text).map_err(|e| format!("is no JSON: {e}"))
}

/// The text between the lines of a fence, if the fence encloses the whole text.
fn unfenced(text: &str) -> &str {
    let inner = || {
        let (language, rest) = text.strip_prefix("```")?.split_once('\n')?;
        let inner = rest.strip_suffix("```")?;
        (language.trim().is_empty() || language.trim().eq_ignore_ascii_case("json")).then_some(inner)
    };
    inner().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_answer_is_json_and_nothing_else() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}});
        for (answer, want) in [
            (r#"{"a": 1}"#, true),
            (" \n{\"a\": 1}\n", true),
            ("```json\n{\"a\": 1}\n```", true),
            ("```\n{\"a\": 1}\n```\n", true),
            ("```JSON\n{\"a\":\n1}```", true),
            ("```python\n{\"a\": 1}\n```", false),
            ("```json\n{\"a\": 1}", false),
            ("Here it is:\n```json\n{\"a\": 1}\n```", false),
            ("{\"a\": 1} I hope that this helps.", false),
            ("{\"a\": 1}{\"a\": 1}", false),
            ("```json\n{\"a\": 1}\n```\n```json\n{\"a\": 1}\n```", false),
            ("{'a': 1}", false),
            ("{\"a\": 1,}", false),
            ("{\"a\": 1", false),
            ("{a: 1}", false),
            ("{\"a\": \"1\"}", false),
            ("{\"b\": 1}", false),
            ("1", false),
            ("", false),
            ("```", false),
            ("``````", false),
        ] {
            assert_eq!(score(answer, &schema).is_ok(), want, "{answer}");
        }
    }
}
