//! Values as Python sees them: their types, their text and their order.
//!
//! minijinja prints floats, quotes, `Undefined` and dict views differently, and its order has no type errors.

use super::objects::{Generator, Group, Range, View};
use minijinja::value::{DynObject, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use std::cmp::Ordering;
use std::fmt::Write;

/// Longest text that one operation may produce.
pub const MAX_TEXT_BYTES: usize = 16 << 20;

/// Deepest nesting of containers that are printed or compared.
const MAX_DEPTH: usize = 100;

/// Jinja's limit for `range`.
pub const MAX_RANGE: i128 = 100_000;

pub type Result<T> = std::result::Result<T, Error>;

/// An error for which Python would raise a `TypeError` or `ValueError`.
pub fn refuse<T>(why: impl Into<std::borrow::Cow<'static, str>>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidOperation, why))
}

/// Charges fuel for `n` items or bytes that an operation is about to touch.
pub fn pay(state: &State, n: usize) -> Result<()> {
    if n > MAX_TEXT_BYTES {
        return refuse("a value is too large");
    }
    state.consume_fuel(n as u64 / 8)
}

/// A value by its Python type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Py<'a> {
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    /// Beyond `i128`: it can be printed and compared, but not computed with.
    Huge,
    Float(f64),
    Str(&'a str),
    List,
    Tuple,
    Dict,
    Range,
    View,
    Generator,
    Namespace,
    Other,
}

impl<'a> Py<'a> {
    pub fn of(value: &'a Value) -> Py<'a> {
        match value.kind() {
            ValueKind::Undefined => Py::Undefined,
            ValueKind::None => Py::None,
            ValueKind::Bool => Py::Bool(value.is_true()),
            ValueKind::Number if value.is_integer() => {
                i128::try_from(value.clone()).map_or(Py::Huge, Py::Int)
            }
            ValueKind::Number => f64::try_from(value.clone()).map_or(Py::Huge, Py::Float),
            ValueKind::String => value.as_str().map_or(Py::Other, Py::Str),
            ValueKind::Seq | ValueKind::Iterable => Py::of_sequence(value),
            ValueKind::Map => match value.as_object() {
                Some(o) if o.type_name().ends_with("::Namespace") => Py::Namespace,
                Some(o) if o.type_name().contains("loop_object") => Py::Other,
                _ => Py::Dict,
            },
            _ => Py::Other,
        }
    }

    fn of_sequence(value: &Value) -> Py<'a> {
        if value.is_tuple() {
            return Py::Tuple;
        }
        let Some(object) = value.as_object() else { return Py::List };
        if object.downcast_ref::<Group>().is_some() {
            Py::Tuple
        } else if object.downcast_ref::<Range>().is_some() {
            Py::Range
        } else if object.downcast_ref::<View>().is_some() {
            Py::View
        } else if object.downcast_ref::<Generator>().is_some() {
            Py::Generator
        } else {
            Py::List
        }
    }

    /// The value as a number, bools included.
    pub fn number(self) -> Option<Number> {
        match self {
            Py::Bool(b) => Some(Number::Int(i128::from(b))),
            Py::Int(i) => Some(Number::Int(i)),
            Py::Float(f) => Some(Number::Float(f)),
            _ => None,
        }
    }

    /// The value as an integer, bools included, as Python accepts it for an index or a width.
    pub fn index(self) -> Option<i128> {
        match self.number() {
            Some(Number::Int(i)) => Some(i),
            _ => None,
        }
    }

    /// The name of the type, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Py::Undefined => "Undefined",
            Py::None => "NoneType",
            Py::Bool(_) => "bool",
            Py::Int(_) | Py::Huge => "int",
            Py::Float(_) => "float",
            Py::Str(_) => "str",
            Py::List => "list",
            Py::Tuple => "tuple",
            Py::Dict => "dict",
            Py::Range => "range",
            Py::View => "dict view",
            Py::Generator => "generator",
            Py::Namespace => "Namespace",
            Py::Other => "object",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub fn float(self) -> f64 {
        match self {
            Number::Int(i) => i as f64,
            Number::Float(f) => f,
        }
    }
}

/// The items of an iterable value. Undefined has none, a string has its characters, a dict its keys.
pub fn items(state: &State, value: &Value) -> Result<Vec<Value>> {
    match Py::of(value) {
        Py::Undefined => Ok(Vec::new()),
        Py::Str(s) => {
            pay(state, s.len() * 8)?;
            Ok(s.chars().map(Value::from).collect())
        }
        Py::List | Py::Tuple | Py::Dict | Py::Range | Py::View | Py::Generator => {
            let mut out = Vec::new();
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                out.push(item?);
            }
            Ok(out)
        }
        other => refuse(format!("'{}' object is not iterable", other.name())),
    }
}

/// The pairs of a dict, in its order.
pub fn pairs(value: &Value) -> Vec<(Value, Value)> {
    value.as_object().and_then(DynObject::try_iter_pairs).into_iter().flatten().collect()
}

/// The shortest digits of a float, laid out as in Python's `repr`.
pub fn float_text(f: f64) -> String {
    if f.is_nan() {
        return "nan".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{f:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = format!("{f}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Whether Python's `repr` of a string prints the character unescaped. Quotes and backslashes are handled by
/// [`quote`].
fn is_printable(c: char) -> bool {
    match c {
        ' ' => true,
        '\0'..='\x1f' | '\x7f'..='\u{a0}' | '\u{ad}' => false,
        _ if c.is_whitespace() || c.is_control() => false,
        '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}' | '\u{200b}'..='\u{200f}' => {
            false
        }
        '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => false,
        '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..='\u{10ffff}' | '\u{e0000}'..='\u{e0fff}' => false,
        _ => true,
    }
}

pub fn printable(s: &str) -> bool {
    s.chars().all(is_printable)
}

/// `repr` of a string. With `ascii`, every character beyond ASCII is escaped too.
pub fn quote(s: &str, ascii: bool, out: &mut String) {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in s.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) && (c.is_ascii() || !ascii) => out.push(c),
            c => {
                let n = u32::from(c);
                let _ = match n {
                    0..=0xff => write!(out, "\\x{n:02x}"),
                    0x100..=0xffff => write!(out, "\\u{n:04x}"),
                    _ => write!(out, "\\U{n:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `str(value)`.
pub fn text(state: &State, value: &Value) -> Result<String> {
    if let Some(s) = value.as_str() {
        return Ok(s.to_owned());
    }
    let mut out = String::new();
    if !value.is_undefined() {
        write_repr(state, value, 0, &mut out)?;
    }
    Ok(out)
}

/// `repr(value)`.
pub fn repr(state: &State, value: &Value) -> Result<String> {
    let mut out = String::new();
    write_repr(state, value, 0, &mut out)?;
    Ok(out)
}

fn write_repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<()> {
    if depth > MAX_DEPTH || out.len() > MAX_TEXT_BYTES {
        return refuse("a value is too large to print");
    }
    state.consume_fuel(1)?;
    let mut list = |open: &str, close: &str, values: &mut dyn Iterator<Item = Value>| -> Result<()> {
        out.push_str(open);
        for (i, item) in values.enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            write_repr(state, &item, depth + 1, out)?;
        }
        out.push_str(close);
        Ok(())
    };
    match Py::of(value) {
        Py::Undefined => out.push_str("Undefined"),
        Py::None => out.push_str("None"),
        Py::Bool(b) => out.push_str(if b { "True" } else { "False" }),
        Py::Int(i) => out.push_str(&i.to_string()),
        Py::Float(f) => out.push_str(&float_text(f)),
        Py::Str(s) => {
            if value.is_safe() {
                out.push_str("Markup(");
            }
            quote(s, false, out);
            if value.is_safe() {
                out.push(')');
            }
        }
        Py::List => list("[", "]", &mut value.try_iter()?)?,
        Py::Tuple => {
            let close = if value.len() == Some(1) { ",)" } else { ")" };
            list("(", close, &mut value.try_iter()?)?;
        }
        Py::View => {
            let view = value.downcast_object_ref::<View>();
            out.push_str(view.map_or("", |v| v.name));
            return match view {
                Some(v) => {
                    out.push('(');
                    write_repr(state, &Value::from(v.items.clone()), depth + 1, out)?;
                    out.push(')');
                    Ok(())
                }
                None => Ok(()),
            };
        }
        Py::Range => {
            if let Some(r) = value.downcast_object_ref::<Range>() {
                let _ = write!(out, "range({}, {}", r.start, r.stop);
                let _ = if r.step == 1 { write!(out, ")") } else { write!(out, ", {})", r.step) };
            }
        }
        Py::Dict | Py::Namespace => {
            if Py::of(value) == Py::Namespace {
                out.push_str("<Namespace ");
            }
            out.push('{');
            for (i, (key, item)) in pairs(value).into_iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                write_repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                write_repr(state, &item, depth + 1, out)?;
            }
            out.push('}');
            if Py::of(value) == Py::Namespace {
                out.push('>');
            }
        }
        Py::Generator => out.push_str("<generator object>"),
        Py::Huge | Py::Other => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// The order of two values: `None` if neither is smaller (nan), an error if Python cannot compare them.
pub fn order(a: &Value, b: &Value, depth: usize) -> Result<Option<Ordering>> {
    let (x, y) = (Py::of(a), Py::of(b));
    if depth > MAX_DEPTH {
        return refuse("values are nested too deep to compare");
    }
    if let (Some(m), Some(n)) = (x.number(), y.number()) {
        return Ok(match (m, n) {
            (Number::Int(m), Number::Int(n)) => Some(m.cmp(&n)),
            _ => m.float().partial_cmp(&n.float()),
        });
    }
    match (x, y) {
        (Py::Str(s), Py::Str(t)) => Ok(Some(s.cmp(t))),
        (Py::List, Py::List) | (Py::Tuple, Py::Tuple) => {
            let (mut left, mut right) = (a.try_iter()?, b.try_iter()?);
            loop {
                match (left.next(), right.next()) {
                    (None, None) => return Ok(Some(Ordering::Equal)),
                    (None, Some(_)) => return Ok(Some(Ordering::Less)),
                    (Some(_), None) => return Ok(Some(Ordering::Greater)),
                    (Some(m), Some(n)) if m == n => {}
                    (Some(m), Some(n)) => return order(&m, &n, depth + 1),
                }
            }
        }
        (Py::Huge, Py::Huge | Py::Int(_) | Py::Bool(_) | Py::Float(_))
        | (Py::Int(_) | Py::Bool(_) | Py::Float(_), Py::Huge) => Ok(Some(a.cmp(b))),
        _ => refuse(format!("'<' not supported between instances of '{}' and '{}'", x.name(), y.name())),
    }
}

/// A stable sort by an order that may fail, or that is inconsistent (nan). The standard library's sort may
/// panic on an inconsistent order.
pub fn sort<T: Clone>(state: &State, items: Vec<T>, less: &dyn Fn(&T, &T) -> Result<bool>) -> Result<Vec<T>> {
    if items.len() < 2 {
        return Ok(items);
    }
    state.consume_fuel(items.len() as u64)?;
    let mut left = items;
    let right = left.split_off(left.len() / 2);
    let (left, right) = (sort(state, left, less)?, sort(state, right, less)?);
    let mut out = Vec::with_capacity(left.len() + right.len());
    let (mut i, mut k) = (0, 0);
    while i < left.len() && k < right.len() {
        if less(&right[k], &left[i])? {
            out.push(right[k].clone());
            k += 1;
        } else {
            out.push(left[i].clone());
            i += 1;
        }
    }
    out.extend_from_slice(&left[i..]);
    out.extend_from_slice(&right[k..]);
    Ok(out)
}

/// Python's `len`; `None` if the value has no length.
pub fn length_of(value: &Value) -> Option<usize> {
    match Py::of(value) {
        Py::Undefined => Some(0),
        Py::Str(s) => Some(s.chars().count()),
        Py::List => value.len().or_else(|| Some(value.try_iter().ok()?.count())),
        Py::Tuple | Py::Dict | Py::Range => value.len(),
        Py::View => value.downcast_object_ref::<View>().map(|v| v.items.len()),
        _ => None,
    }
}
