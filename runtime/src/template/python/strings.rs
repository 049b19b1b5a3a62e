//! The methods of Python's `str`.

use super::format;
use crate::template::arguments::bind;
use crate::template::unicode;
use crate::template::value::{self, MAX_TEXT_BYTES, Py, Result, pay, refuse};
use minijinja::State;
use minijinja::value::{Tuple, Value};

/// Methods that this file implements, and those that return bytes or tables, which templates do not need.
pub const METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Calls `s.name(args)`; `None` if strings have no such method.
pub fn call(state: &State, s: &str, name: &str, args: &[Value]) -> Result<Option<Value>> {
    pay(state, s.len())?;
    let nothing = || bind(args, []).map(|[]| ());
    if let Some(holds) = test(s, name) {
        nothing()?;
        return Ok(Some(holds.into()));
    }
    let changed = |change: &dyn Fn(&str) -> String| -> Result<Value> {
        nothing()?;
        Ok(Value::from(change(s)))
    };
    Ok(Some(match name {
        "capitalize" => changed(&unicode::capitalize)?,
        "casefold" => changed(&unicode::casefold)?,
        "lower" => changed(&|s| s.to_lowercase())?,
        "upper" => changed(&|s| s.to_uppercase())?,
        "swapcase" => changed(&unicode::swapcase)?,
        "title" => changed(&unicode::title)?,
        "strip" | "lstrip" | "rstrip" => strip(s, name, args)?,
        "center" | "ljust" | "rjust" => justify(state, s, name, args)?,
        "zfill" => {
            let [width] = bind(args, ["*/width"])?;
            let missing = room(state, &width)?.saturating_sub(s.chars().count());
            let (sign, rest) = s.split_at(usize::from(s.starts_with(['+', '-'])));
            Value::from(format!("{sign}{}{rest}", "0".repeat(missing)))
        }
        "expandtabs" => {
            let [size] = bind(args, ["tabsize"])?;
            expand_tabs(state, s, size.as_ref().map_or(8, |v| Py::of(v).index().unwrap_or(8)))?
        }
        "count" | "find" | "index" | "rfind" | "rindex" => search(s, name, args)?,
        "startswith" | "endswith" => affix(state, s, name, args)?,
        "removeprefix" | "removesuffix" => {
            let [part] = bind(args, ["*/part"])?;
            let part = string(part.as_ref())?;
            let rest = if name == "removeprefix" { s.strip_prefix(part) } else { s.strip_suffix(part) };
            Value::from(rest.unwrap_or(s))
        }
        "partition" | "rpartition" => partition(s, name, args)?,
        "split" | "rsplit" => split(state, s, name, args)?,
        "splitlines" => {
            let [keep] = bind(args, ["keepends"])?;
            let lines = unicode::lines(s, keep.is_some_and(|v| v.is_true()));
            pay(state, lines.len() * 8)?;
            Value::from(lines.into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "join" => {
            let [list] = bind(args, ["*/iterable"])?;
            join(state, s, &value::items(state, &list.unwrap_or_default())?)?
        }
        "replace" => {
            let [old, new, count] = bind(args, ["*/old", "*/new", "/count"])?;
            let most = most("count", count.as_ref())?;
            Value::from(replace(state, s, string(old.as_ref())?, string(new.as_ref())?, most)?)
        }
        "format" => Value::from(format::braces(state, s, args)?),
        "format_map" => {
            let [map] = bind(args, ["*/mapping"])?;
            let pairs = value::pairs(&map.unwrap_or_default());
            let named: minijinja::value::Kwargs =
                pairs.iter().filter_map(|(k, v)| Some((k.as_str()?.to_owned(), v.clone()))).collect();
            Value::from(format::braces(state, s, &[named.into()])?)
        }
        "translate" => translate(s, args)?,
        "encode" | "maketrans" => return refuse(format!("str.{name} is not supported")),
        _ => return Ok(None),
    }))
}

/// `s.isalnum()` and similar tests; `None` if `name` is not a test.
fn test(s: &str, name: &str) -> Option<bool> {
    let every = |holds: fn(char) -> bool| !s.is_empty() && s.chars().all(holds);
    Some(match name {
        "isalnum" => every(|c| c.is_alphabetic() && !unicode::is_mark(c) || unicode::is_numeric(c)),
        "isalpha" => every(|c| c.is_alphabetic() && !unicode::is_numeric(c) && !unicode::is_mark(c)),
        "isascii" => s.is_ascii(),
        "isdecimal" => every(unicode::is_decimal),
        "isdigit" => every(unicode::is_digit),
        "isnumeric" => every(unicode::is_numeric),
        "isspace" => every(unicode::is_space),
        "isprintable" => value::printable(s),
        "isidentifier" => {
            let mut chars = s.chars();
            chars.next().is_some_and(|c| c == '_' || c.is_alphabetic())
                && chars.all(|c| c == '_' || c.is_alphanumeric())
        }
        "islower" => s.chars().any(char::is_lowercase) && !s.chars().any(unicode::is_upper_or_title),
        "isupper" => {
            s.chars().any(char::is_uppercase) && !s.chars().any(|c| c.is_lowercase() || unicode::is_title(c))
        }
        "istitle" => unicode::is_titled(s),
        _ => return None,
    })
}

fn partition(s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let [mark] = bind(args, ["*/sep"])?;
    let mark = string(mark.as_ref())?;
    if mark.is_empty() {
        return refuse("empty separator");
    }
    let found = if name == "partition" { s.split_once(mark) } else { s.rsplit_once(mark) };
    let three = match (found, name) {
        (Some((a, b)), _) => [a, mark, b],
        (None, "partition") => [s, "", ""],
        (None, _) => ["", "", s],
    };
    Ok(Value::from(Tuple::from(three.map(Value::from))))
}

fn split(state: &State, s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let [mark, count] = bind(args, ["sep", "maxsplit"])?;
    let most = most("maxsplit", count.as_ref())?;
    let parts = match mark.as_ref().filter(|v| !v.is_none()) {
        None => unicode::split_space(s, most, name == "rsplit"),
        Some(mark) => match string(Some(mark))? {
            "" => return refuse("empty separator"),
            mark if name == "split" => s.splitn(most.saturating_add(1), mark).collect(),
            mark => {
                let mut parts: Vec<&str> = s.rsplitn(most.saturating_add(1), mark).collect();
                parts.reverse();
                parts
            }
        },
    };
    pay(state, parts.len() * 8)?;
    Ok(Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>()))
}

fn translate(s: &str, args: &[Value]) -> Result<Value> {
    let [table] = bind(args, ["*/table"])?;
    let table = table.unwrap_or_default();
    let mut out = String::new();
    for c in s.chars() {
        let found = table.as_object().and_then(|o| o.get_value(&Value::from(u32::from(c))));
        match found.as_ref().map(|v| (v.as_str(), Py::of(v).index())) {
            None => out.push(c),
            Some((Some(text), _)) => out.push_str(text),
            Some((_, Some(n))) => out.extend(u32::try_from(n).ok().and_then(char::from_u32)),
            Some(_) => {}
        }
        if out.len() > MAX_TEXT_BYTES {
            return refuse("a text is too long");
        }
    }
    Ok(Value::from(out))
}

/// A maximum count. It is unlimited if `count` is missing or negative.
fn most(name: &str, count: Option<&Value>) -> Result<usize> {
    match count.map(|v| Py::of(v).index()) {
        None => Ok(usize::MAX),
        Some(Some(n)) => Ok(usize::try_from(n).unwrap_or(usize::MAX)),
        Some(None) => refuse(format!("{name} must be an integer")),
    }
}

pub fn string(value: Option<&Value>) -> Result<&str> {
    match value.and_then(Value::as_str) {
        Some(s) => Ok(s),
        None => refuse("must be str"),
    }
}

/// Reads a width, and charges fuel for its bytes before they are allocated.
fn room(state: &State, width: &Option<Value>) -> Result<usize> {
    match width.as_ref().and_then(|v| Py::of(v).index()) {
        Some(n) if n > MAX_TEXT_BYTES as i128 => refuse("a width is too large"),
        Some(n) => {
            let n = n.max(0) as usize;
            pay(state, n)?;
            Ok(n)
        }
        None => refuse("a width must be an integer"),
    }
}

fn strip(s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let [chars] = bind(args, ["/chars"])?;
    let chars = match chars.as_ref().filter(|v| !v.is_none()) {
        Some(v) => Some(string(Some(v))?),
        None => None,
    };
    let drop = |c: char| chars.map_or_else(|| unicode::is_space(c), |set| set.contains(c));
    let s = if name == "rstrip" { s } else { s.trim_start_matches(drop) };
    Ok(Value::from(if name == "lstrip" { s } else { s.trim_end_matches(drop) }))
}

fn justify(state: &State, s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let [width, fill] = bind(args, ["*/width", "/fillchar"])?;
    let width = room(state, &width)?;
    let fill = fill.map_or_else(|| Ok(" ".to_owned()), |v| string(Some(&v)).map(str::to_owned))?;
    if fill.chars().count() != 1 {
        return refuse("The fill character must be exactly one character long");
    }
    let missing = width.saturating_sub(s.chars().count());
    // CPython puts the extra fill character on the left if the width is odd.
    let left = match name {
        "center" => missing / 2 + (missing & width & 1),
        "rjust" => missing,
        _ => 0,
    };
    Ok(Value::from(format!("{}{s}{}", fill.repeat(left), fill.repeat(missing - left))))
}

fn expand_tabs(state: &State, s: &str, size: i128) -> Result<Value> {
    let size = usize::try_from(size).unwrap_or_default();
    pay(state, s.matches('\t').count().saturating_mul(size))?;
    let (mut out, mut column) = (String::new(), 0);
    for c in s.chars() {
        match c {
            '\t' => {
                let n = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(n));
                column += n;
            }
            c => {
                out.push(c);
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            }
        }
    }
    Ok(Value::from(out))
}

/// The characters from `start` to `end`, and how many come before; `None` if `start` is past the end.
fn window<'a>(s: &'a str, start: Option<&Value>, end: Option<&Value>) -> Result<Option<(&'a str, usize)>> {
    let length = s.chars().count() as i128;
    let bound = |v: Option<&Value>, missing: i128| match v.filter(|v| !v.is_none()).map(|v| Py::of(v).index())
    {
        None => Ok(missing),
        Some(Some(n)) => Ok(if n < 0 { (n + length).max(0) } else { n }),
        Some(None) => refuse("slice indices must be integers or None"),
    };
    let (start, end) = (bound(start, 0)?, bound(end, length)?.min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |n: i128| s.char_indices().nth(n as usize).map_or(s.len(), |(i, _)| i);
    Ok(Some((&s[byte(start)..byte(end)], start as usize)))
}

fn search(s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let [what, start, end] = bind(args, ["*/sub", "/start", "/end"])?;
    let what = string(what.as_ref())?;
    let within = window(s, start.as_ref(), end.as_ref())?;
    if name == "count" {
        return Ok(Value::from(within.map_or(0, |(w, _)| w.matches(what).count())));
    }
    let found = within.and_then(|(w, before)| {
        let at = if name.starts_with('r') { w.rfind(what) } else { w.find(what) };
        at.map(|i| before + w[..i].chars().count())
    });
    match found {
        Some(n) => Ok(Value::from(n)),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => refuse("substring not found"),
    }
}

fn affix(state: &State, s: &str, name: &str, args: &[Value]) -> Result<Value> {
    let [what, start, end] = bind(args, ["*/prefix", "/start", "/end"])?;
    let what = what.unwrap_or_default();
    let any = if Py::of(&what) == Py::Tuple { value::items(state, &what)? } else { vec![what] };
    let within = window(s, start.as_ref(), end.as_ref())?;
    let mut holds = false;
    for part in &any {
        let part = string(Some(part))?;
        holds |= within
            .is_some_and(|(w, _)| if name == "startswith" { w.starts_with(part) } else { w.ends_with(part) });
    }
    Ok(Value::from(holds))
}

fn join(state: &State, s: &str, list: &[Value]) -> Result<Value> {
    let mut out = String::new();
    for (i, item) in list.iter().enumerate() {
        let item = string(Some(item))?;
        pay(state, s.len() + item.len())?;
        if i > 0 {
            out.push_str(s);
        }
        out.push_str(item);
        if out.len() > MAX_TEXT_BYTES {
            return refuse("a text is too long");
        }
    }
    Ok(Value::from(out))
}

pub fn replace(state: &State, s: &str, old: &str, new: &str, most: usize) -> Result<String> {
    let matches = s.matches(old).count().min(most);
    pay(state, s.len() + matches.saturating_mul(new.len()))?;
    Ok(s.replacen(old, new, most))
}
