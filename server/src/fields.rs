//! Typed access to the fields of a JSON object from a client. A `null` field counts as absent.

use crate::refusal::Refusal;
use serde_json::{Map, Value as Json};

/// A JSON object, and the prefix of its field names in errors.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    map: &'a Map<String, Json>,
    prefix: &'a str,
}

/// Parses a request body as a JSON object.
///
/// # Errors
/// 400 for anything else.
pub fn parse(body: &[u8]) -> Result<Json, Refusal> {
    let json: Json = serde_json::from_slice(body)
        .map_err(|e| Refusal::invalid(format!("the body is not valid JSON: {e}")))?;
    if json.is_object() { Ok(json) } else { Err(Refusal::invalid("the body must be a JSON object")) }
}

impl<'a> Fields<'a> {
    /// The fields of an object. `prefix` precedes their names in errors, for example `options.`.
    ///
    /// # Errors
    /// 400 if `json` is not an object.
    pub fn of(json: &'a Json, prefix: &'a str) -> Result<Fields<'a>, Refusal> {
        match json {
            Json::Object(map) => Ok(Fields { map, prefix }),
            _ if prefix.is_empty() => Err(Refusal::invalid("the body must be a JSON object")),
            _ => Err(Refusal::field(prefix.trim_end_matches('.'), "must be an object")),
        }
    }

    /// The field's name with the prefix.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A 400 error that names the field.
    pub fn wrong(&self, name: &str, message: impl std::fmt::Display) -> Refusal {
        Refusal::field(&self.name(name), message)
    }

    /// The field's value, or `None` if it is absent or `null`.
    pub fn get(&self, name: &str) -> Option<&'a Json> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        name: &str,
        what: &str,
        of: impl Fn(&'a Json) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let read = |value| of(value).ok_or_else(|| self.wrong(name, format!("must be {what}")));
        self.get(name).map(read).transpose()
    }

    /// A string field.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        self.read(name, "a string", Json::as_str)
    }

    /// A required string field.
    pub fn need_text(&self, name: &str) -> Result<&'a str, Refusal> {
        self.text(name)?.ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// A boolean field.
    pub fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.read(name, "true or false", Json::as_bool)
    }

    /// A finite number field.
    pub fn number(&self, name: &str) -> Result<Option<f32>, Refusal> {
        self.read(name, "a number", |v| v.as_f64().map(|v| v as f32).filter(|v| v.is_finite()))
    }

    /// An integer field. A float without a fraction, such as `1.0`, is accepted.
    pub fn whole(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.read(name, "an integer", |v| {
            let whole = |f: f64| (f.fract() == 0.0 && f.abs() < 9e15).then_some(f as i64);
            v.as_i64().or_else(|| v.as_f64().and_then(whole))
        })
    }

    /// An integer field of at least `least`.
    pub fn count(&self, name: &str, least: usize) -> Result<Option<usize>, Refusal> {
        let number = self.whole(name)?;
        let fits = |n: i64| usize::try_from(n).ok().filter(|&n| n >= least);
        let read = |n| fits(n).ok_or_else(|| self.wrong(name, format!("must be at least {least}")));
        number.map(read).transpose()
    }

    /// An array field.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Json]>, Refusal> {
        self.read(name, "an array", |v| v.as_array().map(Vec::as_slice))
    }

    /// A field that is a string or an array of strings.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Refusal> {
        let list = |v: &Json| match v {
            Json::String(text) => Some(vec![text.clone()]),
            Json::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        Ok(self.read(name, "a string or an array of strings", list)?.unwrap_or_default())
    }

    /// Refuses a field, unless it is absent or has an empty value: `false`, 0, an empty string or an empty
    /// array.
    ///
    /// # Errors
    /// 400 with `why` as the reason.
    pub fn refuse(&self, name: &str, why: &str) -> Result<(), Refusal> {
        let says_no = |v: &Json| match v {
            Json::Bool(on) => !on,
            Json::Number(n) => n.as_f64() == Some(0.0),
            Json::String(text) => text.is_empty(),
            Json::Array(list) => list.is_empty(),
            Json::Object(_) | Json::Null => false,
        };
        match self.get(name) {
            Some(value) if !says_no(value) => Err(Refusal::unsupported(&self.name(name), why)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_have_types_and_null_is_absent() {
        let json = json!({"a": 1.0, "b": "x", "c": null, "d": [1], "e": 0, "f": 1.5, "g": ["p", "q"]});
        let f = Fields::of(&json, "o.").unwrap();
        assert_eq!(f.whole("a").unwrap(), Some(1));
        assert_eq!(f.number("c").unwrap(), None);
        assert_eq!(f.texts("b").unwrap(), ["x"]);
        assert_eq!(f.texts("g").unwrap(), ["p", "q"]);
        assert!(f.refuse("e", "no").is_ok() && f.refuse("d", "no").is_err());
        for (name, result) in [
            ("b", f.whole("b").map(drop)),
            ("f", f.count("f", 1).map(drop)),
            ("e", f.count("e", 1).map(drop)),
        ] {
            let refusal = result.unwrap_err();
            assert_eq!(refusal.field.as_deref(), Some(&*format!("o.{name}")), "{}", refusal.message);
        }
    }
}
