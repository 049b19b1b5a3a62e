//! Jinja2's filters for text.

use super::arguments::{bind, split};
use super::python::format;
use super::python::strings::{self, string};
use super::unicode;
use super::value::{self, Py, Result, pay, refuse};
use minijinja::State;
use minijinja::value::{Rest, Tuple, Value};

type Filter = fn(&mut State, &Value, &[Value]) -> Result<Value>;

pub const FILTERS: [(&str, Filter); 26] = [
    ("capitalize", |state, value, args| method(state, value, "capitalize", args)),
    ("center", |state, value, args| {
        let [width] = bind(args, ["width"])?;
        method(state, value, "center", &[width.unwrap_or_else(|| Value::from(80))])
    }),
    ("e", escape),
    ("escape", escape),
    ("filesizeformat", file_size),
    ("forceescape", |state, value, _| {
        let text = value::text(state, value)?;
        Ok(escaped(&text))
    }),
    ("format", |state, value, args| {
        let text = value::text(state, value)?;
        let (positional, named) = split(args);
        let values = match named {
            Some(_) if !positional.is_empty() => {
                return refuse("can't handle positional and keyword arguments at the same time");
            }
            Some(named) => Value::from_pairs(
                named.args().map(|k| Ok((k, named.peek::<Value>(k)?))).collect::<Result<Vec<_>>>()?,
            ),
            None => Value::from(Tuple::from(positional)),
        };
        Ok(Value::from(format::percent(state, &text, &values)?))
    }),
    ("indent", indent),
    ("join", join),
    ("lower", |state, value, args| method(state, value, "lower", args)),
    ("pprint", |state, value, _| {
        let sorted = by_key(state, value, 0)?;
        Ok(Value::from(value::repr(state, &sorted)?))
    }),
    ("replace", |state, value, args| {
        let [old, new, count] = bind(args, ["*old", "*new", "count"])?;
        let (old, new) =
            (value::text(state, &old.unwrap_or_default())?, value::text(state, &new.unwrap_or_default())?);
        let count = count.filter(|c| !c.is_none()).map_or(Some(-1), |c| Py::of(&c).index());
        let Some(count) = count else { return refuse("count must be an integer") };
        let most = usize::try_from(count).unwrap_or(usize::MAX);
        Ok(Value::from(strings::replace(state, &value::text(state, value)?, &old, &new, most)?))
    }),
    ("safe", |state, value, _| Ok(Value::from_safe_string(value::text(state, value)?))),
    ("string", |state, value, _| {
        if value.as_str().is_some() { Ok(value.clone()) } else { Ok(Value::from(value::text(state, value)?)) }
    }),
    ("striptags", strip_tags),
    ("title", title),
    ("tojson", |state, value, args| {
        super::json::to_json(state, value.clone(), Rest(args.to_vec())).map(Value::from)
    }),
    ("trim", |state, value, args| {
        let [chars] = bind(args, ["chars"])?;
        method(state, value, "strip", &[chars.unwrap_or_else(|| Value::from(()))])
    }),
    ("truncate", truncate),
    ("upper", |state, value, args| method(state, value, "upper", args)),
    ("urlencode", url_encode),
    ("urlize", |_, _, _| refuse("the filter urlize is not supported")),
    ("wordcount", |state, value, _| {
        let text = value::text(state, value)?;
        Ok(Value::from(
            text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).count(),
        ))
    }),
    ("wordwrap", word_wrap),
    ("xmlattr", xml_attributes),
    ("__text", |state, value, _| Ok(Value::from(value::text(state, value)?))),
];

/// The value with the keys of its dicts sorted, as `pprint` prints them. Unlike there, long values stay on
/// one line.
fn by_key(state: &State, value: &Value, depth: usize) -> Result<Value> {
    if depth > 50 {
        return refuse("a value is nested too deep to print");
    }
    Ok(match Py::of(value) {
        Py::Dict => {
            let less = |a: &(Value, Value), b: &(Value, Value)| {
                // Keys of different types are ordered by type, roughly as in Python.
                Ok(value::order(&a.0, &b.0, 0)
                    .map_or(a.0.kind() < b.0.kind(), |o| o == Some(std::cmp::Ordering::Less)))
            };
            let pairs = value::sort(state, value::pairs(value), &less)?;
            let pairs = pairs
                .into_iter()
                .map(|(k, v)| Ok((k, by_key(state, &v, depth + 1)?)))
                .collect::<Result<Vec<_>>>()?;
            Value::from_pairs(pairs)
        }
        Py::List => Value::from(
            value::items(state, value)?
                .iter()
                .map(|v| by_key(state, v, depth + 1))
                .collect::<Result<Vec<_>>>()?,
        ),
        _ => value.clone(),
    })
}

/// Calls a string method on the value's text.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let text = value::text(state, value)?;
    Ok(strings::call(state, &text, name, args)?.unwrap_or_default())
}

fn escaped(text: &str) -> Value {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    Value::from_safe_string(out)
}

/// Escapes a text that is not marked safe. Other values stay unchanged.
pub fn safe(value: &Value) -> Value {
    match value.as_str() {
        Some(text) if !value.is_safe() => escaped(text),
        _ => value.clone(),
    }
}

fn escape(state: &mut State, value: &Value, _: &[Value]) -> Result<Value> {
    if value.is_safe() { Ok(value.clone()) } else { Ok(escaped(&value::text(state, value)?)) }
}

fn file_size(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [binary] = bind(args, ["binary"])?;
    let binary = binary.is_some_and(|v| v.is_true());
    let bytes = match Py::of(value) {
        Py::Str(s) => s.trim().parse().ok(),
        other => other.number().map(value::Number::float),
    };
    let Some(bytes) = bytes.filter(|b: &f64| b.is_finite()) else {
        return refuse("filesizeformat takes a number");
    };
    let base = if binary { 1024.0 } else { 1000.0 };
    let prefixes = if binary {
        ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]
    } else {
        ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]
    };
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc())));
    }
    let mut unit = base;
    for prefix in prefixes {
        unit *= base;
        if bytes < unit || prefix.starts_with('Y') {
            return Ok(Value::from(format!("{:.1} {prefix}", base * bytes / unit)));
        }
    }
    Ok(Value::from(""))
}

fn indent(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [width, first, blank] = bind(args, ["width", "first", "blank"])?;
    let flag = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let (first, blank) = (flag(first), flag(blank));
    let by = match width.as_ref().map(Py::of) {
        None => "    ".to_owned(),
        Some(Py::Str(s)) => s.to_owned(),
        Some(other) => match other.index() {
            Some(n) if n <= 1 << 20 => " ".repeat(n.max(0) as usize),
            _ => return refuse("indent: the width must be a number of spaces"),
        },
    };
    // With this line end, an empty last line counts as a line.
    let text = string(Some(value))?.to_owned() + "\n";
    let lines = unicode::lines(&text, false);
    pay(state, text.len() + lines.len().saturating_mul(by.len()))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&by);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn join(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [mark, path] = bind(args, ["d", "attribute"])?;
    let mut items = value::items(state, value)?;
    if let Some(path) = path.filter(|p| !p.is_none()) {
        let found = state.apply_filter("map", &[Value::from(items), attribute(path)])?;
        items = value::items(state, &found)?;
    }
    let mark = value::text(state, &mark.unwrap_or_else(|| Value::from("")))?;
    let texts = items.iter().map(|i| value::text(state, i).map(Value::from)).collect::<Result<Vec<_>>>()?;
    Ok(strings::call(state, &mark, "join", &[Value::from(texts)])?.unwrap_or_default())
}

fn attribute(path: Value) -> Value {
    let named: minijinja::value::Kwargs = std::iter::once(("attribute", path)).collect();
    named.into()
}

fn strip_tags(state: &mut State, value: &Value, _: &[Value]) -> Result<Value> {
    let mut text = value::text(state, value)?;
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        let mut out = String::new();
        let mut rest = &text[..];
        while let Some((before, inside)) = rest.split_once(open) {
            let Some((_, after)) = inside.split_once(close) else { break };
            out.push_str(before);
            rest = after;
        }
        out.push_str(rest);
        text = out;
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let entities =
        [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#34;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    Ok(Value::from(entities.iter().fold(text, |text, (name, c)| text.replace(name, c))))
}

/// Jinja's title case: a word begins only after white space, a dash or an opening bracket.
fn title(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    let text = value::text(state, value)?;
    let ends = |c: char| unicode::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let mut out = String::new();
    for word in text.split_inclusive(ends) {
        let mut chars = word.chars();
        if let Some(c) = chars.next() {
            out.extend(c.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
    }
    Ok(Value::from(out))
}

fn truncate(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [length, kill, end, leeway] = bind(args, ["length", "killwords", "end", "leeway"])?;
    let number = |v: Option<Value>, missing: i128| {
        v.filter(|v| !v.is_none()).map_or(Some(missing), |v| Py::of(&v).index())
    };
    let (Some(length), Some(leeway)) = (number(length, 255), number(leeway, 5)) else {
        return refuse("truncate takes integers");
    };
    let end = end.unwrap_or_else(|| Value::from("..."));
    if value::length_of(value).is_some_and(|n| n as i128 <= length + leeway)
        && string(Some(&end))?.chars().count() as i128 <= length
    {
        return Ok(value.clone());
    }
    let (s, end) = (string(Some(value))?, string(Some(&end))?);
    let end_length = end.chars().count() as i128;
    if length < end_length || leeway < 0 {
        return refuse("truncate: the length is shorter than the end");
    }
    if s.chars().count() as i128 <= length + leeway {
        return Ok(value.clone());
    }
    let cut: String = s.chars().take((length - end_length) as usize).collect();
    let kept = if kill.is_some_and(|v| v.is_true()) {
        &cut[..]
    } else {
        cut.rsplit_once(' ').map_or(&cut[..], |(a, _)| a)
    };
    Ok(Value::from(format!("{kept}{end}")))
}

fn url_encode(state: &mut State, value: &Value, _: &[Value]) -> Result<Value> {
    let quote = |text: &str, query: bool| -> String {
        let mut out = String::new();
        for b in text.bytes() {
            match b {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => {
                    out.push(char::from(b))
                }
                b'/' if !query => out.push('/'),
                b' ' if query => out.push('+'),
                b => out.push_str(&format!("%{b:02X}")),
            }
        }
        out
    };
    let pairs = match Py::of(value) {
        Py::Dict => value::pairs(value),
        Py::List | Py::Tuple | Py::Range | Py::View | Py::Generator | Py::Undefined => {
            let mut pairs = Vec::new();
            for item in value::items(state, value)? {
                match <[Value; 2]>::try_from(value::items(state, &item)?) {
                    Ok([k, v]) => pairs.push((k, v)),
                    Err(_) => return refuse("urlencode takes pairs"),
                }
            }
            pairs
        }
        _ => return Ok(Value::from(quote(&value::text(state, value)?, false))),
    };
    let mut parts = Vec::new();
    for (k, v) in pairs {
        parts.push(format!(
            "{}={}",
            quote(&value::text(state, &k)?, true),
            quote(&value::text(state, &v)?, true)
        ));
    }
    Ok(Value::from(parts.join("&")))
}

/// Wraps lines at `width` characters. Longer words are broken by default, and white space at a line break is
/// dropped.
fn word_wrap(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [width, long, mark, hyphens] =
        bind(args, ["width", "break_long_words", "wrapstring", "break_on_hyphens"])?;
    let _ = hyphens;
    let width = width
        .map_or(Some(79), |v| Py::of(&v).index())
        .and_then(|n| usize::try_from(n).ok())
        .filter(|n| *n > 0);
    let Some(width) = width else { return refuse("wordwrap: the width must be a positive number") };
    let long = long.is_none_or(|v| v.is_true());
    let mark =
        mark.filter(|m| !m.is_none()).map_or_else(|| Ok("\n".to_owned()), |m| value::text(state, &m))?;
    let text = string(Some(value))?;
    pay(state, text.len().saturating_mul(8 + mark.len()))?;
    let mut lines: Vec<String> = Vec::new();
    for paragraph in unicode::lines(text, false) {
        let mut line = String::new();
        let mut space = "";
        let mut rest = paragraph;
        let start = lines.len();
        while !rest.is_empty() {
            let gap = rest.len() - rest.trim_start_matches(' ').len();
            if gap > 0 {
                (space, rest) = rest.split_at(gap);
                continue;
            }
            let (mut word, after) = rest.split_at(rest.find(' ').unwrap_or(rest.len()));
            rest = after;
            if !line.is_empty() && line.chars().count() + space.len() + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            } else {
                line.push_str(if line.is_empty() && lines.len() > start { "" } else { space });
            }
            while long && word.chars().count() + line.chars().count() > width && !word.is_empty() {
                let room = width.saturating_sub(line.chars().count());
                let cut = word.char_indices().nth(room).map_or(word.len(), |(i, _)| i);
                line.push_str(&word[..cut]);
                word = &word[cut..];
                lines.push(std::mem::take(&mut line));
            }
            line.push_str(word);
            space = "";
        }
        if !line.is_empty() || lines.len() == start {
            lines.push(line);
        }
    }
    Ok(Value::from(lines.join(&mark)))
}

fn xml_attributes(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [space] = bind(args, ["autospace"])?;
    if Py::of(value) != Py::Dict {
        return refuse("xmlattr takes a dict");
    }
    let mut parts = Vec::new();
    for (key, item) in value::pairs(value) {
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = string(Some(&key))?;
        if name.contains(|c: char| unicode::is_space(c) || matches!(c, '/' | '>' | '=')) {
            return refuse("Invalid character in attribute name");
        }
        let (name, text) = (escaped(name), escape(state, &item, &[])?);
        parts.push(format!("{name}=\"{text}\""));
    }
    let out = parts.join(" ");
    let space = space.is_none_or(|v| v.is_true()) && !out.is_empty();
    Ok(Value::from(if space { format!(" {out}") } else { out }))
}
