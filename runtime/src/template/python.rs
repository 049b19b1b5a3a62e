//! Attributes, items and methods of values as in Python, and the classes that Jinja provides to templates.
//!
//! Methods that change a value are refused, as in Jinja's immutable sandbox.

pub mod format;
mod spec;
pub mod strings;

use super::arguments::{bind, split};
use super::depth;
use super::objects::{Callable, Range, View};
use super::value::{self, MAX_RANGE, Py, Result, pay, refuse};
use minijinja::value::{Object, Tuple, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use std::sync::{Arc, Mutex};

const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
const LIST: [&str; 3] = ["copy", "count", "index"];
const TUPLE: [&str; 2] = ["count", "index"];
/// Methods that change a value. The sandbox hides them: the attribute is undefined, and calling it is an
/// error.
const CHANGING: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "add",
];

/// Whether an attribute of this name may be a method. [`get_attr`] looks up only such names.
pub fn may_be_method(name: &str) -> bool {
    strings::METHODS.binary_search(&name).is_ok()
        || DICT.contains(&name)
        || LIST.contains(&name)
        || CHANGING.contains(&name)
        || name.starts_with("__")
}

fn methods(value: &Value) -> &'static [&'static str] {
    match Py::of(value) {
        Py::Str(_) => &strings::METHODS,
        Py::Dict => &DICT,
        Py::List => &LIST,
        Py::Tuple | Py::Range => &TUPLE,
        _ => &[],
    }
}

/// `value.name` without a call: a method, else an item.
pub fn get_attr(state: &State, value: &Value, name: &str) -> Result<Value> {
    if methods(value).contains(&name) {
        depth::keep(state, value, false)?;
        let (this, method) = (value.clone(), name.to_owned());
        return Ok(Value::from_object(Callable {
            name: format!("method {name} of {} object", Py::of(value).name()),
            call: Box::new(move |state, args| call_method(state, &this, &method, args)),
        }));
    }
    if name.starts_with("__") && Py::of(value) != Py::Dict {
        // As in the sandbox: undefined, which prints nothing.
        return Ok(Value::UNDEFINED);
    }
    value.get_attr(name)
}

/// `value[key]`: an item, else an attribute, else undefined.
pub fn get_item(state: &State, value: &Value, key: &Value) -> Result<Value> {
    let python = Py::of(value);
    if let Py::Str(s) = python {
        pay(state, s.len())?;
    }
    let found = match (python, Py::of(key).index()) {
        (Py::Undefined, _) => value.get_item(key)?,
        (Py::Str(_) | Py::List | Py::Tuple | Py::Range, Some(i)) => {
            let list = match python {
                Py::Str(_) | Py::List if value.len().is_none() || value.as_str().is_some() => {
                    Some(value::items(state, value)?)
                }
                _ => None,
            };
            let length = list.as_ref().map_or_else(|| value.len().unwrap_or_default(), Vec::len) as i128;
            match usize::try_from(if i < 0 { i + length } else { i }) {
                Ok(at) => match list {
                    Some(list) => list.get(at).cloned().unwrap_or_default(),
                    None => value.get_item_by_index(at)?,
                },
                Err(_) => Value::UNDEFINED,
            }
        }
        (Py::Dict | Py::Other | Py::Namespace, _) => value.get_item(key)?,
        _ => Value::UNDEFINED,
    };
    match key.as_str() {
        Some(name) if found.is_undefined() && !value.is_undefined() => match methods(value).contains(&name) {
            true => get_attr(state, value, name),
            false => Ok(found),
        },
        _ => Ok(found),
    }
}

/// `value[start:stop:step]`.
pub fn slice(
    state: &State,
    value: &Value,
    start: Option<Value>,
    stop: Option<Value>,
    step: Option<Value>,
) -> Result<Value> {
    let python = Py::of(value);
    let bound = |v: Option<Value>| match v.filter(|v| !v.is_none()).map(|v| Py::of(&v).index()) {
        None => Ok(None),
        Some(Some(n)) => Ok(Some(n)),
        Some(None) => refuse("slice indices must be integers or None"),
    };
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if python == Py::Undefined {
        return value.get_item(&Value::from(0));
    }
    if !matches!(python, Py::Str(_) | Py::List | Py::Tuple | Py::Range) {
        return refuse(format!("'{}' object cannot be sliced", python.name()));
    }
    if step == 0 {
        return refuse("slice step cannot be zero");
    }
    let items = value::items(state, value)?;
    let n = items.len() as i128;
    let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
    let clamp = |i: i128| (if i < 0 { i + n } else { i }).clamp(low, high);
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    let range = Range { start, stop, step };
    let at = (0..range.len()).map(|i| (start + step * i as i128) as usize);
    let picked = at.filter_map(|i| items.get(i).cloned());
    Ok(match (python, value.downcast_object_ref::<Range>()) {
        (Py::Str(_), _) => {
            Value::from(picked.filter_map(|c| c.as_str().map(str::to_owned)).collect::<String>())
        }
        (Py::Tuple, _) => Value::from(Tuple::from(picked.collect::<Vec<_>>())),
        (_, Some(of)) => Value::from_object(Range {
            start: of.start + of.step * start,
            stop: of.start + of.step * stop,
            step: of.step * step,
        }),
        _ => Value::from(picked.collect::<Vec<_>>()),
    })
}

/// Calls a method of a string, a list or a dict; `UnknownMethod` if Python has no such method.
pub fn call_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let unknown = || Err(Error::from(ErrorKind::UnknownMethod));
    let python = Py::of(value);
    if CHANGING.contains(&name) && matches!(python, Py::List | Py::Dict) {
        return refuse(format!("access to attribute '{name}' of '{}' object is unsafe", python.name()));
    }
    match python {
        Py::Str(s) => match strings::call(state, s, name, args)? {
            Some(result) => Ok(result),
            None => unknown(),
        },
        Py::Dict => dict_method(state, value, name, args),
        Py::List | Py::Tuple | Py::Range => match name {
            "copy" if python == Py::List => {
                let [] = bind(args, [])?;
                Ok(Value::from(value::items(state, value)?))
            }
            "count" | "index" => {
                let [what, start, stop] = bind(args, ["*/value", "/start", "/stop"])?;
                let what = what.unwrap_or_default();
                let items = value::items(state, value)?;
                let same = |i: &usize| items[*i] == what;
                if name == "count" {
                    return Ok(Value::from((0..items.len()).filter(same).count()));
                }
                let n = items.len() as i128;
                let bound = |v: Option<Value>, missing: i128| {
                    let i = v.and_then(|v| Py::of(&v).index()).unwrap_or(missing);
                    (if i < 0 { i + n } else { i }).clamp(0, n) as usize
                };
                match (bound(start, 0)..bound(stop, n)).find(same) {
                    Some(i) => Ok(Value::from(i)),
                    None => refuse("the value is not in the list"),
                }
            }
            _ => unknown(),
        },
        Py::Namespace => refuse(format!("a namespace has no method '{name}'")),
        _ => unknown(),
    }
}

fn dict_method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value> {
    let view = |name, items: Vec<Value>| -> Result<Value> {
        let [] = bind(args, [])?;
        state.consume_fuel(items.len() as u64)?;
        Ok(Value::from_object(View { name, items }))
    };
    match name {
        "keys" => view("dict_keys", value::pairs(value).into_iter().map(|(k, _)| k).collect()),
        "values" => view("dict_values", value::pairs(value).into_iter().map(|(_, v)| v).collect()),
        "items" => {
            let pair = |(k, v)| Value::from(Tuple::from([k, v]));
            view("dict_items", value::pairs(value).into_iter().map(pair).collect())
        }
        "copy" => {
            let [] = bind(args, [])?;
            Ok(Value::from_pairs(value::pairs(value)))
        }
        "get" => {
            let [key, missing] = bind(args, ["*/key", "/default"])?;
            let found = value.as_object().and_then(|o| o.get_value(&key.unwrap_or_default()));
            Ok(found.unwrap_or_else(|| missing.unwrap_or_else(|| Value::from(()))))
        }
        "fromkeys" => from_keys(state, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn from_keys(state: &State, args: &[Value]) -> Result<Value> {
    let [keys, item] = bind(args, ["*/iterable", "/value"])?;
    let item = item.unwrap_or_else(|| Value::from(()));
    Ok(Value::from_pairs(
        value::items(state, &keys.unwrap_or_default())?.into_iter().map(|k| (k, item.clone())),
    ))
}

/// The pairs of `dict(…)`: from a dict or a list of pairs, and from named arguments.
pub fn dict_pairs(state: &State, args: &[Value]) -> Result<Vec<(Value, Value)>> {
    let (positional, named) = split(args);
    let mut pairs = match positional {
        [] => Vec::new(),
        [one] if matches!(Py::of(one), Py::Dict) => value::pairs(one),
        [one] if one.is_undefined() => return refuse("cannot make a dict of an undefined value"),
        [one] => {
            let mut pairs = Vec::new();
            for item in value::items(state, one)? {
                match <[Value; 2]>::try_from(value::items(state, &item)?) {
                    Ok([key, value]) => pairs.push((key, value)),
                    Err(_) => return refuse("dict takes pairs"),
                }
            }
            pairs
        }
        _ => return Err(Error::from(ErrorKind::TooManyArguments)),
    };
    state.consume_fuel(pairs.len() as u64)?;
    if let Some(named) = named {
        for key in named.args() {
            pairs.push((Value::from(key), named.peek(key)?));
        }
    }
    Ok(pairs)
}

fn range(_: &State, args: &[Value]) -> Result<Value> {
    let [first, second, step] = bind(args, ["*/start", "/stop", "/step"])?;
    let number = |v: &Option<Value>, missing: i128| match v.as_ref().map(|v| Py::of(v).index()) {
        None => Ok(missing),
        Some(Some(n)) if n.unsigned_abs() < 1 << 62 => Ok(n),
        Some(_) => refuse("range takes integers"),
    };
    let (start, stop) =
        if second.is_some() { (number(&first, 0)?, number(&second, 0)?) } else { (0, number(&first, 0)?) };
    let range = Range { start, stop, step: number(&step, 1)? };
    if range.step == 0 {
        return refuse("range() arg 3 must not be zero");
    }
    if range.len() as i128 > MAX_RANGE {
        return refuse(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE={MAX_RANGE}."
        ));
    }
    Ok(Value::from_object(range))
}

/// The class `dict`, which can be called and has `fromkeys`.
#[derive(Debug)]
struct DictClass;

impl Object for DictClass {
    fn repr(self: &Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value> {
        Ok(Value::from_pairs(dict_pairs(state, args)?))
    }

    fn call_method(
        self: &Arc<Self>,
        state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value> {
        if method == "fromkeys" { from_keys(state, args) } else { Err(Error::from(ErrorKind::UnknownMethod)) }
    }
}

/// `cycler(…)`: returns one item after another, and starts again after the last.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: Mutex<usize>,
}

impl Object for Cycler {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = *self.at.lock().expect("no panic holds it");
        (key.as_str() == Some("current")).then(|| self.items[at].clone())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value> {
        let [] = bind(args, [])?;
        let mut at = self.at.lock().expect("no panic holds it");
        match method {
            "next" => {
                let item = self.items[*at].clone();
                *at = (*at + 1) % self.items.len();
                Ok(item)
            }
            "reset" => {
                *at = 0;
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

/// Adds the functions and classes that transformers provides to templates.
pub fn add_to(environment: &mut Environment) {
    let function = |name: &str, call: fn(&mut State, &[Value]) -> Result<Value>| {
        Value::from_object(Callable { name: format!("function {name}"), call: Box::new(call) })
    };
    environment.remove_global("debug");
    environment.add_global("range", function("range", |state, args| range(state, args)));
    environment.add_global("dict", Value::from_object(DictClass));
    environment.add_global(
        "raise_exception",
        function("raise_exception", |state, args| {
            let [message] = bind(args, ["*message"])?;
            refuse(value::text(state, &message.unwrap_or_default())?)
        }),
    );
    environment.add_global(
        "cycler",
        function("cycler", |state, args| match split(args).0 {
            [] => refuse("at least one item has to be provided"),
            items => {
                items.iter().try_for_each(|item| depth::keep(state, item, true))?;
                Ok(Value::from_object(Cycler { items: items.to_vec(), at: Mutex::new(0) }))
            }
        }),
    );
    environment.add_global(
        "joiner",
        function("joiner", |state, args| {
            let [mark] = bind(args, ["sep"])?;
            depth::keep(state, mark.as_ref().unwrap_or(&Value::UNDEFINED), true)?;
            let (mark, used) = (mark.unwrap_or_else(|| Value::from(", ")), Mutex::new(false));
            Ok(Value::from_object(Callable {
                name: "joiner".into(),
                call: Box::new(move |_, _| {
                    let before = std::mem::replace(&mut *used.lock().expect("no panic holds it"), true);
                    Ok(if before { mark.clone() } else { Value::from("") })
                }),
            }))
        }),
    );
    environment.add_global("lipsum", function("lipsum", |_, _| refuse("lipsum is not supported")));
}
