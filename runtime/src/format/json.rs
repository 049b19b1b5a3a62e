//! Parses JSON as Python's `json` module writes it, which includes numbers that JSON does not have.

use serde_json::Value;

/// Parses a file that Python may have written. `NaN`, `Infinity` and `-Infinity` become strings. If such a
/// value is used, the caller's type check reports it; otherwise it does no harm.
///
/// # Errors
/// The parser's error for the original text.
pub(crate) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|e| match quoted(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(e),
    })
}

/// Puts such numbers in quotation marks; `None` if there are none.
fn quoted(text: &str) -> Option<String> {
    let (mut out, mut rest, mut found) = (String::with_capacity(text.len()), text, false);
    while let Some(c) = rest.chars().next() {
        let n = match c {
            '"' => string_len(rest),
            _ => match ["NaN", "Infinity", "-Infinity"].into_iter().find(|w| rest.starts_with(w)) {
                Some(word) => {
                    out.push_str(&format!("\"{word}\""));
                    (found, rest) = (true, &rest[word.len()..]);
                    continue;
                }
                None => c.len_utf8(),
            },
        };
        out.push_str(&rest[..n]);
        rest = &rest[n..];
    }
    found.then_some(out)
}

/// Length of the string literal at the start of a text.
fn string_len(text: &str) -> usize {
    let mut escaped = false;
    for (i, b) in text.bytes().enumerate().skip(1) {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return i + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_of_python_are_read_and_strings_left_alone() {
        let text = r#"{"a": NaN, "b": [Infinity, -Infinity, -1], "NaN \" NaN": "Infinity\\", "c": "é"}"#;
        let want =
            json!({"a": "NaN", "b": ["Infinity", "-Infinity", -1], "NaN \" NaN": "Infinity\\", "c": "é"});
        assert_eq!(parse(text).unwrap(), want);
        assert_eq!(parse("[1]").unwrap(), json!([1]));
        for broken in [r#"{"a": NaN"#, r#"{"a": "x"#, "NaNa", "[nan]", r#"{"a": "\"#, ""] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }
}
