//! JSON as Python writes it: its `json` module writes and reads numbers that JSON has none for.

use serde_json::Value;

/// Parses a file that Python may have written. `NaN`, `Infinity` and `-Infinity` become those words as text: where such a number is
/// used, the caller's check of its kind names it, and elsewhere it does no harm.
///
/// # Errors
/// What the parser says of the text as it is.
pub(crate) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|e| match quoted(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(e),
    })
}

/// The text with such numbers in quotation marks; `None` where there are none.
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

/// The length of the string literal that a text begins with.
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
