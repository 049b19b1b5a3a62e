//! The filter `tojson` as transformers defines it: Python's `json.dumps` with some of its options.

use super::arguments::bind;
use super::value::{self, MAX_TEXT_BYTES, Py, Result, refuse};
use minijinja::State;
use minijinja::value::{Rest, Value};
use std::fmt::Write;

const MAX_DEPTH: usize = 200;

struct Writer<'a> {
    state: &'a State<'a, 'a>,
    ascii: bool,
    sort: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    out: String,
}

/// `value | tojson(ensure_ascii, indent, separators, sort_keys)`.
pub fn to_json(state: &State, value: Value, args: Rest<Value>) -> Result<String> {
    let [ascii, indent, separators, sort] =
        bind(&args, ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let is_true = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let indent = match indent.as_ref().map(Py::of) {
        None | Some(Py::None) => None,
        Some(Py::Str(s)) => Some(s.to_owned()),
        Some(python) => match python.index() {
            Some(n) if n <= 1000 => Some(" ".repeat(n.max(0) as usize)),
            _ => return refuse("tojson: indent must be a number of spaces"),
        },
    };
    let (item_separator, key_separator) = match separators.filter(|s| !s.is_none()) {
        Some(two) => match &value::items(state, &two)?[..] {
            [a, b] => match (a.as_str(), b.as_str()) {
                (Some(a), Some(b)) => (a.to_owned(), b.to_owned()),
                _ => return refuse("tojson: separators must be two strings"),
            },
            _ => return refuse("tojson: separators must be two strings"),
        },
        None => ((if indent.is_some() { "," } else { ", " }).to_owned(), ": ".to_owned()),
    };
    let mut writer = Writer {
        state,
        ascii: is_true(ascii),
        sort: is_true(sort),
        indent,
        item_separator,
        key_separator,
        out: String::new(),
    };
    writer.write(&value, 0)?;
    Ok(writer.out)
}

impl Writer<'_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<()> {
        self.state.consume_fuel(1)?;
        if depth > MAX_DEPTH || self.out.len() > MAX_TEXT_BYTES {
            return refuse("tojson: the value is too large");
        }
        match Py::of(value) {
            Py::None => self.out.push_str("null"),
            Py::Bool(b) => self.out.push_str(if b { "true" } else { "false" }),
            Py::Str(s) => self.string(s),
            Py::Int(_) | Py::Huge => self.out.push_str(&value::repr(self.state, value)?),
            Py::Float(f) => self.out.push_str(&number(f)),
            Py::List | Py::Tuple => {
                let items = value::items(self.state, value)?;
                self.container(['[', ']'], items.len(), depth, |w, i| w.write(&items[i], depth + 1))?;
            }
            Py::Dict => {
                let mut pairs = value::pairs(value);
                if self.sort {
                    let less = |a: &(Value, Value), b: &(Value, Value)| {
                        Ok(value::order(&a.0, &b.0, 0)? == Some(std::cmp::Ordering::Less))
                    };
                    pairs = value::sort(self.state, pairs, &less)?;
                }
                self.container(['{', '}'], pairs.len(), depth, |w, i| {
                    w.key(&pairs[i].0)?;
                    w.out.push_str(&w.key_separator.clone());
                    w.write(&pairs[i].1, depth + 1)
                })?;
            }
            other => return refuse(format!("Object of type {} is not JSON serializable", other.name())),
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        len: usize,
        depth: usize,
        mut item: impl FnMut(&mut Self, usize) -> Result<()>,
    ) -> Result<()> {
        self.out.push(open);
        for i in 0..len {
            if i > 0 {
                self.out.push_str(&self.item_separator.clone());
            }
            self.line(depth + 1);
            item(self, i)?;
        }
        if len > 0 {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn key(&mut self, key: &Value) -> Result<()> {
        match Py::of(key) {
            Py::Str(s) => self.string(s),
            Py::None => self.out.push_str("\"null\""),
            Py::Bool(b) => self.out.push_str(if b { "\"true\"" } else { "\"false\"" }),
            Py::Int(i) => self.out.push_str(&format!("\"{i}\"")),
            Py::Float(f) => self.out.push_str(&format!("\"{}\"", number(f))),
            other => {
                return refuse(format!("keys must be str, int, float, bool or None, not {}", other.name()));
            }
        }
        Ok(())
    }

    fn string(&mut self, s: &str) {
        self.out.push('"');
        for c in s.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(self.out, "\\u{unit:04x}");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// A float as `json.dumps` writes it, including the values that JSON lacks (NaN, infinities).
fn number(f: f64) -> String {
    match (f.is_nan(), f.is_infinite()) {
        (true, _) => "NaN".into(),
        (_, true) => if f > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        _ => value::float_text(f),
    }
}
