//! `'…' % values` and `'…'.format(values)`, with Python's format specifications.

use super::spec::{MAX_WIDTH, Spec, base_prefix, cased, digits, float_digits, integer_digits};
use crate::template::arguments::split;
use crate::template::value::{self, MAX_TEXT_BYTES, Number, Py, Result, refuse};
use minijinja::State;
use minijinja::value::Value;

/// `format(value, spec)`.
fn by_spec(state: &State, value: &Value, text: &str) -> Result<String> {
    if text.is_empty() {
        return value::text(state, value);
    }
    let python = Py::of(value);
    if !matches!(python, Py::Str(_) | Py::Int(_) | Py::Bool(_) | Py::Float(_)) {
        return refuse(format!("unsupported format string passed to {}.__format__", python.name()));
    }
    let spec = Spec::parse(text)?;
    let wrong = |c: char| refuse(format!("Unknown format code '{c}' for object of type '{}'", python.name()));
    let number = match python {
        Py::Str(s) => {
            if let Some(c) = spec.kind.filter(|&c| c != 's') {
                return wrong(c);
            }
            return text_by_spec(s, spec);
        }
        // A bool counts as an integer if the format names a type.
        _ => match python.number() {
            Some(n) => n,
            None => return wrong('?'),
        },
    };
    match (number, spec.kind) {
        (Number::Int(n), None | Some('b' | 'o' | 'x' | 'X' | 'd' | 'n' | 'c')) => {
            if spec.precision.is_some() {
                return refuse("Precision not allowed in integer format specifier");
            }
            let kind = spec.kind.unwrap_or('d');
            if kind == 'c' {
                let c = u32::try_from(n).ok().and_then(char::from_u32);
                let Some(c) = c.filter(|_| spec.sign == '-' && !spec.alternate) else {
                    return refuse("%c arg not in range");
                };
                return Ok(spec.pad("", &c.to_string(), '<'));
            }
            let hex = !base_prefix(kind).is_empty();
            if hex && spec.grouping == Some(',') {
                return refuse("Cannot specify ',' with this type");
            }
            let base = if spec.alternate { base_prefix(kind) } else { "" };
            Ok(spec.number(n < 0, base, &integer_digits(n.unsigned_abs(), kind), if hex { 4 } else { 3 }))
        }
        (number, Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G' | 'n' | '%'))) => {
            let f = number.float();
            let style = if kind == 'n' { 'g' } else { kind };
            let text = float_digits(f, style, spec.precision.unwrap_or(6), spec.alternate);
            Ok(spec.number(f.is_sign_negative() && !f.is_nan(), "", &cased(text, kind), 3))
        }
        (Number::Float(f), None) => {
            let text = match spec.precision {
                Some(p) => float_by_default(f, p, spec.alternate),
                None => value::float_text(f.abs()),
            };
            Ok(spec.number(f.is_sign_negative() && !f.is_nan(), "", &text, 3))
        }
        (_, Some(kind)) => wrong(kind),
    }
}

fn text_by_spec(s: &str, spec: Spec) -> Result<String> {
    let zero = spec.fill == '0' && spec.align == Some('=');
    if spec.sign != '-' || spec.alternate || spec.grouping.is_some() || (spec.align == Some('=') && !zero) {
        return refuse("this format is not allowed for strings");
    }
    let cut: String = s.chars().take(spec.precision.unwrap_or(usize::MAX)).collect();
    let spec = if zero { Spec { align: Some('<'), ..spec } } else { spec };
    Ok(spec.pad("", &cut, '<'))
}

/// Like `g`, but with a digit after the point.
fn float_by_default(f: f64, precision: usize, alternate: bool) -> String {
    let text = float_digits(f, 'g', precision, alternate);
    let exponent = format!("{:.*e}", precision.max(1) - 1, f.abs());
    let exponent: i32 = exponent.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or_default();
    if text.contains(['.', 'e', 'n']) {
        text
    } else if exponent + 1 >= precision.max(1) as i32 {
        float_digits(f, 'e', precision.max(1) - 1, false)
    } else {
        text + ".0"
    }
}

/// `format % values`.
pub fn percent(state: &State, format: &str, values: &Value) -> Result<String> {
    let python = Py::of(values);
    let list: Vec<Value> =
        if python == Py::Tuple { value::items(state, values)? } else { vec![values.clone()] };
    let chars: Vec<char> = format.chars().collect();
    let mut next = list.iter();
    let mut out = String::new();
    let mut i = 0;
    let mut named = false;
    let missing = || refuse("not enough arguments for format string");
    while let Some(&c) = chars.get(i) {
        i += 1;
        if c != '%' {
            out.push(c);
            continue;
        }
        let start = i;
        let mut spec = Spec::default();
        let mut by_name = None;
        if chars.get(i) == Some(&'(') {
            let end = (i..chars.len()).find(|&k| chars[k] == ')');
            let Some(end) = end else { return refuse("incomplete format key") };
            let key: String = chars[i + 1..end].iter().collect();
            if python != Py::Dict {
                return refuse("format requires a mapping");
            }
            let item = values.as_object().and_then(|o| o.get_value(&Value::from(key.as_str())));
            let Some(item) = item else { return refuse(format!("there is no key `{key}`")) };
            (by_name, named, i) = (Some(item), true, end + 1);
        }
        let zero = flags(&chars, &mut i, &mut spec);
        if let Some(width) = star(&chars, &mut i, &mut next)? {
            if width < 0 {
                spec.align = Some('<');
            }
            spec.width = width.unsigned_abs() as usize;
        }
        if chars.get(i) == Some(&'.') {
            i += 1;
            spec.precision = Some(star(&chars, &mut i, &mut next)?.unwrap_or(0).max(0) as usize);
        }
        while matches!(chars.get(i), Some('h' | 'l' | 'L')) {
            i += 1;
        }
        let Some(&kind) = chars.get(i) else { return refuse("incomplete format") };
        i += 1;
        if kind == '%' {
            if i > start + 1 {
                return refuse("unsupported format character '%'");
            }
            out.push('%');
            continue;
        }
        let item = match by_name.as_ref().or_else(|| next.next()) {
            Some(item) => item,
            None => return missing(),
        };
        if zero && spec.align.is_none() && kind.is_ascii_alphabetic() && !"srac".contains(kind) {
            (spec.fill, spec.align) = ('0', Some('='));
        }
        out.push_str(&conversion(state, item, kind, &spec)?);
        if out.len() > MAX_TEXT_BYTES {
            return refuse("a text is too long");
        }
    }
    // As in Python, a dict or a list may be left over.
    if !named
        && next.next().is_some()
        && !matches!(python, Py::Dict | Py::List | Py::Range | Py::View | Py::Undefined)
    {
        return refuse("not all arguments converted during string formatting");
    }
    Ok(out)
}

/// Reads flags into `spec`. Returns whether `0` was among them.
fn flags(chars: &[char], i: &mut usize, spec: &mut Spec) -> bool {
    let mut zero = false;
    while let Some(c @ ('-' | '+' | ' ' | '#' | '0')) = chars.get(*i) {
        match c {
            '-' => spec.align = Some('<'),
            '+' => spec.sign = '+',
            ' ' if spec.sign != '+' => spec.sign = ' ',
            '#' => spec.alternate = true,
            '0' => zero = true,
            _ => {}
        }
        *i += 1;
    }
    zero
}

/// Reads a number from the format. For a `*`, takes the next value instead.
fn star<'v>(
    chars: &[char],
    i: &mut usize,
    values: &mut impl Iterator<Item = &'v Value>,
) -> Result<Option<i128>> {
    if chars.get(*i) == Some(&'*') {
        *i += 1;
        return match values.next().map(|v| Py::of(v).index()) {
            Some(Some(n)) if n.unsigned_abs() <= MAX_WIDTH as u128 => Ok(Some(n)),
            _ => refuse("* wants int"),
        };
    }
    Ok(digits(chars, *i)?.map(|(n, k)| {
        *i = k;
        n as i128
    }))
}

/// Formats one conversion of [`percent`].
fn conversion(state: &State, item: &Value, kind: char, spec: &Spec) -> Result<String> {
    let python = Py::of(item);
    let cut = |text: String| -> String { text.chars().take(spec.precision.unwrap_or(usize::MAX)).collect() };
    match kind {
        's' => Ok(spec.pad("", &cut(value::text(state, item)?), '>')),
        'r' => Ok(spec.pad("", &cut(value::repr(state, item)?), '>')),
        'a' => Ok(spec.pad("", &cut(ascii(state, item)?), '>')),
        'c' => {
            let c = match python {
                Py::Str(s) if s.chars().count() == 1 => s.to_owned(),
                _ => match python.index().and_then(|n| u32::try_from(n).ok()).and_then(char::from_u32) {
                    Some(c) => c.to_string(),
                    None => return refuse("%c requires int or char"),
                },
            };
            Ok(spec.pad("", &c, '>'))
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let n = match python.number() {
                Some(Number::Int(n)) => n,
                Some(Number::Float(f)) if "diu".contains(kind) && f.is_finite() && f.abs() < 1e38 => {
                    f.trunc() as i128
                }
                _ => return refuse(format!("%{kind} format: a number is required, not {}", python.name())),
            };
            let mut digits = integer_digits(n.unsigned_abs(), kind);
            if let Some(p) = spec.precision {
                digits = "0".repeat(p.saturating_sub(digits.len())) + &digits;
            }
            Ok(spec.number(n < 0, if spec.alternate { base_prefix(kind) } else { "" }, &digits, 3))
        }
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let Some(n) = python.number() else { return refuse("must be real number") };
            let f = n.float();
            let text = float_digits(f, kind, spec.precision.unwrap_or(6), spec.alternate);
            Ok(spec.number(f.is_sign_negative() && !f.is_nan(), "", &cased(text, kind), 3))
        }
        _ => refuse(format!("unsupported format character '{kind}'")),
    }
}

fn ascii(state: &State, value: &Value) -> Result<String> {
    if let Some(s) = value.as_str() {
        let mut out = String::new();
        value::quote(s, true, &mut out);
        return Ok(out);
    }
    let mut out = String::new();
    for c in value::repr(state, value)?.chars() {
        if c.is_ascii() { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    Ok(out)
}

/// `format.format(*args, **kwargs)`.
pub fn braces(state: &State, format: &str, args: &[Value]) -> Result<String> {
    let mut at = Numbering::Unknown;
    expand(state, format, args, &mut at, 0)
}

/// Fields are numbered either automatically or in the text, never both.
#[derive(PartialEq)]
enum Numbering {
    Unknown,
    Automatic(usize),
    Manual,
}

fn expand(state: &State, format: &str, args: &[Value], at: &mut Numbering, depth: usize) -> Result<String> {
    if depth > 2 {
        return refuse("Max string recursion exceeded");
    }
    let chars: Vec<char> = format.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    while let Some(&c) = chars.get(i) {
        i += 1;
        if (c == '{' || c == '}') && chars.get(i) == Some(&c) {
            out.push(c);
            i += 1;
        } else if c == '}' {
            return refuse("Single '}' encountered in format string");
        } else if c == '{' {
            let mut open = 1;
            let end = (i..chars.len()).find(|&k| {
                open += i32::from(chars[k] == '{') - i32::from(chars[k] == '}');
                open == 0
            });
            let Some(end) = end else { return refuse("expected '}' before end of string") };
            let field: String = chars[i..end].iter().collect();
            out.push_str(&replacement(state, &field, args, at, depth)?);
            i = end + 1;
        } else {
            out.push(c);
        }
        if out.len() > MAX_TEXT_BYTES {
            return refuse("a text is too long");
        }
    }
    Ok(out)
}

/// Expands one field: `name[.attribute|[item]]…[!conversion][:spec]`.
fn replacement(
    state: &State,
    field: &str,
    args: &[Value],
    at: &mut Numbering,
    depth: usize,
) -> Result<String> {
    let mut brackets = 0;
    let end = field.char_indices().find(|&(_, c)| {
        brackets += i32::from(c == '[') - i32::from(c == ']');
        brackets == 0 && (c == '!' || c == ':')
    });
    let (name, rest) = field.split_at(end.map_or(field.len(), |(i, _)| i));
    let (conversion, spec) = match rest.strip_prefix('!') {
        Some(rest) => {
            let (c, spec) = rest.split_once(':').unwrap_or((rest, ""));
            (c, spec)
        }
        None => ("", rest.strip_prefix(':').unwrap_or_default()),
    };
    let value = lookup(state, name, args, at)?;
    let spec =
        if spec.contains(['{', '}']) { expand(state, spec, args, at, depth + 1)? } else { spec.to_owned() };
    match (conversion, rest.starts_with('!')) {
        ("", false) => by_spec(state, &value, &spec),
        ("s", _) => by_spec(state, &Value::from(value::text(state, &value)?), &spec),
        ("r", _) => by_spec(state, &Value::from(value::repr(state, &value)?), &spec),
        ("a", _) => by_spec(state, &Value::from(ascii(state, &value)?), &spec),
        _ => refuse("Unknown conversion specifier"),
    }
}

fn lookup(state: &State, name: &str, args: &[Value], at: &mut Numbering) -> Result<Value> {
    let (positional, named) = split(args);
    let first_end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut rest) = name.split_at(first_end);
    let by_index = |n: usize| match positional.get(n) {
        Some(v) => Ok(v.clone()),
        None => refuse("Replacement index out of range for positional args tuple"),
    };
    let mut value = if first.is_empty() {
        let n = match at {
            Numbering::Unknown => 0,
            Numbering::Automatic(n) => *n,
            Numbering::Manual => {
                return refuse("cannot switch from manual field specification to automatic field numbering");
            }
        };
        *at = Numbering::Automatic(n + 1);
        by_index(n)?
    } else if let Ok(n) = first.parse::<usize>() {
        if matches!(at, Numbering::Automatic(_)) {
            return refuse("cannot switch from automatic field numbering to manual field specification");
        }
        *at = Numbering::Manual;
        by_index(n)?
    } else {
        match named.map(|n| n.peek::<Value>(first)) {
            Some(Ok(v)) => v,
            _ => return refuse(format!("there is no argument `{first}`")),
        }
    };
    while !rest.is_empty() {
        let key;
        if let Some(inner) = rest.strip_prefix('[') {
            let Some((item, more)) = inner.split_once(']') else {
                return refuse("Missing ']' in format string");
            };
            (key, rest) = (item, more);
        } else {
            let inner = rest.strip_prefix('.').unwrap_or_default();
            let (name, more) = inner.split_at(inner.find(['.', '[']).unwrap_or(inner.len()));
            value = super::get_attr(state, &value, name)?;
            rest = more;
            continue;
        }
        let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
        value = super::get_item(state, &value, &key)?;
        if value.is_undefined() {
            return refuse("there is no such item");
        }
    }
    Ok(value)
}
