//! Jinja2's filters for lists and dicts. Those for text are in `text.rs`, those for numbers in `numbers.rs`.

use super::arguments::{self, bind, split};
use super::numbers::{self, number};
use super::objects::{self, Generator, Group};
use super::python::get_item;
use super::value::{self, Number, Py, Result, pay, refuse};
use minijinja::value::{Kwargs, Rest, Tuple, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use std::cmp::Ordering;

/// Most arguments of `map`. Each of them may be another `map`.
const MAX_NESTED: usize = 20;

type Filter = fn(&mut State, &Value, &[Value]) -> Result<Value>;

pub const FILTERS: [(&str, Filter); 32] = [
    ("abs", numbers::abs),
    ("attr", attr),
    ("batch", batch),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("first", first),
    ("float", numbers::float),
    ("groupby", groupby),
    ("int", numbers::int),
    ("items", items),
    ("last", last),
    ("length", length),
    ("list", |state, value, args| {
        let [] = bind(args, [])?;
        Ok(Value::from(value::items(state, value)?))
    }),
    ("map", map),
    ("max", |state, value, args| extreme(state, value, args, Ordering::Greater)),
    ("min", |state, value, args| extreme(state, value, args, Ordering::Less)),
    ("random", |_, _, _| refuse("the filter random is not supported")),
    ("reject", |state, value, args| select(state, value, args, false)),
    ("rejectattr", |state, value, args| select_attr(state, value, args, false)),
    ("reverse", reverse),
    ("round", numbers::round),
    ("select", |state, value, args| select(state, value, args, true)),
    ("selectattr", |state, value, args| select_attr(state, value, args, true)),
    ("slice", slice),
    ("sort", sort),
    ("sum", sum),
    ("unique", unique),
    // Filters that rewritten expressions use (`expression.rs`).
    ("__attr", |state, value, args| {
        super::python::get_attr(state, value, args[0].as_str().unwrap_or_default())
    }),
    ("__item", |state, value, args| get_item(state, value, &args[0])),
    ("__slice", |state, value, args| {
        let [start, stop, step] = bind(args, ["start", "stop", "step"])?;
        super::python::slice(state, value, start, stop, step)
    }),
];

pub fn add_to(environment: &mut Environment) {
    for (name, filter) in FILTERS.into_iter().chain(super::text::FILTERS).chain(super::operators::FILTERS) {
        environment.add_filter(
            name,
            move |state: &mut State, value: Value, args: Rest<Value>, named: Kwargs| {
                filter(state, &value, &arguments::whole(args, named))
            },
        );
    }
    // Remove the filters that minijinja has and Jinja lacks.
    for name in ["bool", "chain", "lines", "split", "zip"] {
        environment.remove_filter(name);
    }
}

fn flag(value: Option<Value>) -> bool {
    value.is_some_and(|v| v.is_true())
}

fn attr(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [name] = bind(args, ["*name"])?;
    let name = name.unwrap_or_default();
    let name = name.as_str().unwrap_or_default();
    match Py::of(value) {
        Py::Other | Py::Namespace | Py::Undefined => value.get_attr(name),
        // Items are not attributes.
        _ if super::python::may_be_method(name) => {
            let found = super::python::get_attr(state, value, name)?;
            Ok(if found.as_object().is_some_and(|o| o.downcast_ref::<objects::Callable>().is_some()) {
                found
            } else {
                Value::UNDEFINED
            })
        }
        _ => Ok(Value::UNDEFINED),
    }
}

/// Pads a part that has fewer than `to` items, if there is a value to pad with.
fn filled(mut part: Vec<Value>, to: usize, with: &Option<Value>) -> Value {
    if let Some(with) = with.as_ref().filter(|v| !v.is_none()) {
        while part.len() < to {
            part.push(with.clone());
        }
    }
    Value::from(part)
}

fn count_of(state: &State, value: Option<Value>) -> Result<usize> {
    match value.and_then(|v| Py::of(&v).index()) {
        Some(n) if (1..=1 << 20).contains(&n) => {
            pay(state, n as usize * 8)?;
            Ok(n as usize)
        }
        _ => refuse("the number of parts must be 1 or more"),
    }
}

fn batch(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [count, with] = bind(args, ["*linecount", "fill_with"])?;
    let count = count_of(state, count)?;
    let items = value::items(state, value)?;
    Ok(Generator::value(items.chunks(count).map(|c| filled(c.to_vec(), count, &with)).collect()))
}

fn slice(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [count, with] = bind(args, ["*slices", "fill_with"])?;
    let count = count_of(state, count)?;
    let items = value::items(state, value)?;
    let (each, longer) = (items.len() / count, items.len() % count);
    let mut rest = &items[..];
    let mut out = Vec::new();
    for i in 0..count {
        let (part, more) = rest.split_at(each + usize::from(i < longer));
        rest = more;
        let to = if i >= longer { each + 1 } else { 0 };
        out.push(filled(part.to_vec(), to, &with));
    }
    Ok(Generator::value(out))
}

fn length(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    match value::length_of(value) {
        Some(n) => Ok(Value::from(n)),
        None => refuse(format!("object of type '{}' has no len()", Py::of(value).name())),
    }
}

fn default(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [other, boolean] = bind(args, ["default_value", "boolean"])?;
    let replace = value.is_undefined() || (flag(boolean) && !value.is_true());
    Ok(if replace { other.unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn lowered(value: Value, case_sensitive: bool) -> Value {
    match value.as_str() {
        Some(s) if !case_sensitive => Value::from(s.to_lowercase()),
        _ => value,
    }
}

fn less(a: &Value, b: &Value) -> Result<bool> {
    Ok(value::order(a, b, 0)? == Some(Ordering::Less))
}

/// Sorts items by their keys, which are computed once.
fn sorted(state: &State, items: Vec<Value>, keys: Vec<Value>, reverse: bool) -> Result<Vec<Value>> {
    let mut pairs: Vec<(Value, Value)> = keys.into_iter().zip(items).collect();
    // Python's reverse sort keeps the order of equal items.
    pairs = value::sort(state, pairs, &|a, b| if reverse { less(&b.0, &a.0) } else { less(&a.0, &b.0) })?;
    Ok(pairs.into_iter().map(|(_, item)| item).collect())
}

fn dictsort(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [case, by, reverse] = bind(args, ["case_sensitive", "by", "reverse"])?;
    let at = match by.as_ref().map_or(Some("key"), Value::as_str) {
        Some("key") => 0,
        Some("value") => 1,
        _ => return refuse("You can only sort by either \"key\" or \"value\""),
    };
    if Py::of(value) != Py::Dict {
        return refuse("dictsort takes a dict");
    }
    let case = flag(case);
    let pairs: Vec<[Value; 2]> = value::pairs(value).into_iter().map(|(k, v)| [k, v]).collect();
    let keys = pairs.iter().map(|p| lowered(p[at].clone(), case)).collect();
    let items = pairs.into_iter().map(|p| Value::from(Tuple::from(p))).collect();
    Ok(Value::from(sorted(state, items, keys, flag(reverse))?))
}

fn first(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    Ok(value::items(state, value)?.into_iter().next().unwrap_or_default())
}

fn last(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    if Py::of(value) == Py::Generator {
        return refuse("'generator' object is not reversible");
    }
    Ok(value::items(state, value)?.pop().unwrap_or_default())
}

/// The item at a path such as `a.b.0`, or `default` if it is undefined.
fn at_path(state: &State, item: &Value, path: &Value, default: Option<&Value>) -> Result<Value> {
    let mut found = item.clone();
    match path.as_str() {
        Some(text) => {
            for part in text.split('.') {
                let key = part.parse::<u32>().map_or_else(|_| Value::from(part), Value::from);
                found = get_item(state, &found, &key)?;
                if let Some(default) = default.filter(|_| found.is_undefined()) {
                    found = default.clone();
                }
            }
        }
        None => found = get_item(state, &found, path)?,
    }
    Ok(found)
}

fn keys_at(
    state: &State,
    items: &[Value],
    path: Option<&Value>,
    case: bool,
    default: Option<&Value>,
) -> Result<Vec<Value>> {
    let path = path.filter(|p| !p.is_none());
    let key = |item: &Value| match path {
        Some(path) => at_path(state, item, path, default).map(|v| lowered(v, case)),
        None => Ok(lowered(item.clone(), case)),
    };
    items.iter().map(key).collect()
}

fn groupby(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [path, default, case] = bind(args, ["*attribute", "default", "case_sensitive"])?;
    let items = value::items(state, value)?;
    let default = default.filter(|d| !d.is_none());
    let case = flag(case);
    let keys = keys_at(state, &items, path.as_ref(), case, default.as_ref())?;
    let items = sorted(state, items, keys, false)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for item in items {
        // A group's key is that of its first item, in its original case.
        let key =
            keys_at(state, std::slice::from_ref(&item), path.as_ref(), true, default.as_ref())?.remove(0);
        let folded = lowered(key.clone(), case);
        match groups.last_mut() {
            Some(group) if group.0 == folded => group.2.push(item),
            _ => groups.push((folded, key, vec![item])),
        }
    }
    let group = |(_, key, list)| Value::from_object(Group { key, list: Value::from(list) });
    Ok(Value::from(groups.into_iter().map(group).collect::<Vec<_>>()))
}

fn items(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    match Py::of(value) {
        Py::Undefined => Ok(Generator::value(Vec::new())),
        Py::Dict => Ok(Generator::value(
            value::pairs(value).into_iter().map(|(k, v)| Value::from(Tuple::from([k, v]))).collect(),
        )),
        _ => refuse("Can only get item pairs from a mapping."),
    }
}

fn map(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    // As in Jinja, `map`, `select` and similar filters treat any false value as an empty list.
    if !value.is_true() {
        return Ok(Generator::value(Vec::new()));
    }
    let items = value::items(state, value)?;
    let (positional, named) = split(args);
    let mut out = Vec::with_capacity(items.len());
    if named.as_ref().is_some_and(|n| n.has("attribute")) && positional.is_empty() {
        let [path, default] = bind(args, ["*attribute", "default"])?;
        let path = path.unwrap_or_default();
        for item in &items {
            out.push(at_path(state, item, &path, default.as_ref())?);
        }
        return Ok(Generator::value(out));
    }
    let [name, ..] = positional else { return refuse("map requires a filter argument") };
    if positional.len() > MAX_NESTED {
        return refuse("map has too many arguments");
    }
    let name = super::python::strings::string(Some(name))?.to_owned();
    for item in items {
        let args: Vec<Value> = std::iter::once(item).chain(args[1..].iter().cloned()).collect();
        out.push(state.apply_filter(&name, &args)?);
    }
    Ok(Generator::value(out))
}

fn holds(state: &mut State, value: Value, test: &[Value]) -> Result<bool> {
    let [name, rest @ ..] = test else { return Ok(value.is_true()) };
    let name = super::python::strings::string(Some(name))?.to_owned();
    let args: Vec<Value> = std::iter::once(value).chain(rest.iter().cloned()).collect();
    state.perform_test(&name, &args)
}

fn select(state: &mut State, value: &Value, args: &[Value], keep: bool) -> Result<Value> {
    let mut out = Vec::new();
    let items = if value.is_true() { value::items(state, value)? } else { Vec::new() };
    for item in items {
        if holds(state, item.clone(), args)? == keep {
            out.push(item);
        }
    }
    Ok(Generator::value(out))
}

fn select_attr(state: &mut State, value: &Value, args: &[Value], keep: bool) -> Result<Value> {
    let [path, test @ ..] = args else { return Err(Error::from(ErrorKind::MissingArgument)) };
    let mut out = Vec::new();
    let items = if value.is_true() { value::items(state, value)? } else { Vec::new() };
    for item in items {
        let at = at_path(state, &item, path, None)?;
        if holds(state, at, test)? == keep {
            out.push(item);
        }
    }
    Ok(Generator::value(out))
}

fn extreme(state: &mut State, value: &Value, args: &[Value], wanted: Ordering) -> Result<Value> {
    let [case, path] = bind(args, ["case_sensitive", "attribute"])?;
    let items = value::items(state, value)?;
    let keys = keys_at(state, &items, path.as_ref(), flag(case), None)?;
    let mut best: Option<usize> = None;
    for i in 0..items.len() {
        best = match best {
            Some(b) if value::order(&keys[i], &keys[b], 0)? != Some(wanted) => Some(b),
            _ => Some(i),
        };
    }
    Ok(best.map_or(Value::UNDEFINED, |i| items[i].clone()))
}

fn reverse(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    if let Some(s) = value.as_str() {
        return Ok(Value::from(s.chars().rev().collect::<String>()));
    }
    let mut items = value::items(state, value)?;
    items.reverse();
    Ok(match Py::of(value) {
        Py::Generator | Py::Undefined => Value::from(items),
        _ => Generator::value(items),
    })
}

fn sort(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [reverse, case, path] = bind(args, ["reverse", "case_sensitive", "attribute"])?;
    let items = value::items(state, value)?;
    let case = flag(case);
    let paths = match path.as_ref().and_then(Value::as_str) {
        Some(paths) => paths.split(',').map(Value::from).collect(),
        None => vec![path.unwrap_or_else(|| Value::from(()))],
    };
    // Keys are lists, as in Jinja: equal parts are skipped, and need no order.
    let mut lists = vec![Vec::new(); items.len()];
    for path in &paths {
        let keys = keys_at(state, &items, Some(path), case, None)?;
        lists.iter_mut().zip(keys).for_each(|(list, key)| list.push(key));
    }
    let keys = lists.into_iter().map(Value::from).collect();
    Ok(Value::from(sorted(state, items, keys, flag(reverse))?))
}

fn sum(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [path, start] = bind(args, ["attribute", "start"])?;
    let items = value::items(state, value)?;
    let items = match path.filter(|p| !p.is_none()) {
        Some(path) => items.iter().map(|i| at_path(state, i, &path, None)).collect::<Result<Vec<_>>>()?,
        None => items,
    };
    let mut total = start.unwrap_or_else(|| Value::from(0));
    for item in items {
        total = match (Py::of(&total).number(), Py::of(&item).number()) {
            (Some(Number::Int(a)), Some(Number::Int(b))) => match a.checked_add(b) {
                Some(n) => number(n),
                None => return refuse("a number is too large"),
            },
            (Some(a), Some(b)) => Value::from(a.float() + b.float()),
            _ if Py::of(&total) == Py::List && Py::of(&item) == Py::List => {
                let mut all = value::items(state, &total)?;
                all.extend(value::items(state, &item)?);
                Value::from(all)
            }
            _ => return refuse("sum adds numbers"),
        };
    }
    Ok(total)
}

fn unique(state: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [case, path] = bind(args, ["case_sensitive", "attribute"])?;
    let items = value::items(state, value)?;
    let keys = keys_at(state, &items, path.as_ref(), flag(case), None)?;
    let mut seen = std::collections::HashSet::new();
    let mut out = Vec::new();
    for (key, item) in keys.into_iter().zip(items) {
        if matches!(Py::of(&key), Py::List | Py::Dict) {
            return refuse("unhashable type");
        }
        if seen.insert(key) {
            out.push(item);
        }
    }
    Ok(Generator::value(out))
}
