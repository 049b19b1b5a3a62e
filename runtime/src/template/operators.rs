//! Operators and tests with Python's meaning, where minijinja's differ or are missing.
//!
//! `expression.rs` rewrites expressions to use these as filters. Their names begin with two underscores,
//! which templates may not use in filter names.

use super::arguments::{self, split};
use super::numbers;
use super::objects::Callable;
use super::python::{format, strings};
use super::value::{self, Number, Py, Result, pay, refuse};
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, State};
use std::cmp::Ordering;
use std::collections::BTreeMap;

type Filter = fn(&mut State, &Value, &[Value]) -> Result<Value>;

pub const FILTERS: [(&str, Filter); 10] = [
    ("__mod", |state, left, args| remainder(state, left, &args[0])),
    ("__add", add),
    ("__keep", |state, value, _| super::depth::keep(state, value, false).map(|()| value.clone())),
    ("__keep_part", |state, value, _| super::depth::keep(state, value, true).map(|()| value.clone())),
    ("__mul", |state, left, args| multiply(state, left, &args[0])),
    ("__negative", negative),
    ("__concat", concatenate),
    ("__compare", compare),
    ("__iterate", |state, value, _| Ok(Value::from(value::items(state, value)?))),
    ("__positive", |_, value, _| match Py::of(value).number() {
        Some(Number::Int(i)) => Ok(numbers::number(i)),
        Some(Number::Float(f)) => Ok(Value::from(f)),
        None => refuse("bad operand type for unary +"),
    }),
];

fn remainder(state: &State, left: &Value, right: &Value) -> Result<Value> {
    if let Some(format) = left.as_str().filter(|_| left.is_safe()) {
        // Values formatted into a safe text are escaped.
        let text = match Py::of(right) {
            Py::Tuple => {
                let items = value::items(state, right)?;
                let items: Vec<Value> = items.iter().map(super::text::safe).collect();
                format::percent(state, format, &Value::from(Tuple::from(items)))?
            }
            _ => format::percent(state, format, &super::text::safe(right))?,
        };
        return Ok(Value::from_safe_string(text));
    }
    if let Some(format) = left.as_str() {
        return Ok(Value::from(format::percent(state, format, right)?));
    }
    let zero = || refuse("modulo by zero");
    match (Py::of(left).number(), Py::of(right).number()) {
        (Some(Number::Int(_)), Some(Number::Int(0))) => zero(),
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            let rest = a.checked_rem(b).unwrap_or(0);
            Ok(numbers::number(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }))
        }
        (Some(a), Some(b)) => {
            let (a, b) = (a.float(), b.float());
            if b == 0.0 {
                return zero();
            }
            let rest = a % b;
            Ok(Value::from(match rest {
                0.0 => 0f64.copysign(b),
                rest if (rest < 0.0) != (b < 0.0) => rest + b,
                rest => rest,
            }))
        }
        _ => refuse(format!(
            "unsupported operand types for %: '{}' and '{}'",
            Py::of(left).name(),
            Py::of(right).name()
        )),
    }
}

/// `a ~ b ~ …`: concatenates texts.
fn concatenate(state: &mut State, first: &Value, args: &[Value]) -> Result<Value> {
    let mut out = String::new();
    for value in std::iter::once(first).chain(args) {
        let text = value::text(state, value)?;
        pay(state, out.len() + text.len())?;
        out.push_str(&text);
    }
    Ok(Value::from(out))
}

/// `a + b + …`: joined lists are new lists. If one of two texts is safe, the other is escaped.
fn add(state: &mut State, first: &Value, args: &[Value]) -> Result<Value> {
    let mut left = first.clone();
    for right in args {
        left = sum(state, &left, right)?;
    }
    Ok(left)
}

fn sum(state: &mut State, left: &Value, right: &Value) -> Result<Value> {
    match (Py::of(left), Py::of(right)) {
        (Py::Str(a), Py::Str(b)) => {
            pay(state, a.len() + b.len())?;
            if !left.is_safe() && !right.is_safe() {
                return Ok(Value::from([a, b].concat()));
            }
            let (a, b) = (
                state.apply_filter("e", std::slice::from_ref(left))?,
                state.apply_filter("e", std::slice::from_ref(right))?,
            );
            Ok(Value::from_safe_string(format!("{a}{b}")))
        }
        (a @ (Py::List | Py::Tuple), b) if a == b => {
            let mut items = value::items(state, left)?;
            items.extend(value::items(state, right)?);
            Ok(if a == Py::Tuple { Value::from(Tuple::from(items)) } else { Value::from(items) })
        }
        (a, b) => match (a.number(), b.number()) {
            (Some(Number::Int(a)), Some(Number::Int(b))) => match a.checked_add(b) {
                Some(n) => Ok(numbers::number(n)),
                None => refuse("a number is too large"),
            },
            (Some(a), Some(b)) => Ok(Value::from(a.float() + b.float())),
            _ => refuse(format!("unsupported operand types for +: '{}' and '{}'", a.name(), b.name())),
        },
    }
}

fn multiply(state: &State, left: &Value, right: &Value) -> Result<Value> {
    let (a, b) = (Py::of(left), Py::of(right));
    let repeated = |value: &Value, times: i128| {
        let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
        let length = value.as_str().map_or_else(|| value.len().unwrap_or(0) * 8, str::len);
        pay(state, length.saturating_mul(times))?;
        if let Some(text) = value.as_str() {
            return Ok(Value::from(text.repeat(times)));
        }
        let items = value::items(state, value)?;
        let items: Vec<Value> = items.iter().cycle().take(items.len() * times).cloned().collect();
        Ok(if Py::of(value) == Py::Tuple { Value::from(Tuple::from(items)) } else { Value::from(items) })
    };
    match (a, b, a.number(), b.number()) {
        (_, _, Some(Number::Int(a)), Some(Number::Int(b))) => match a.checked_mul(b) {
            Some(n) => Ok(numbers::number(n)),
            None => refuse("a number is too large"),
        },
        (_, _, Some(a), Some(b)) => Ok(Value::from(a.float() * b.float())),
        (Py::Str(_) | Py::List | Py::Tuple, _, _, Some(Number::Int(n))) => repeated(left, n),
        (_, Py::Str(_) | Py::List | Py::Tuple, Some(Number::Int(n)), _) => repeated(right, n),
        _ => refuse(format!("unsupported operand types for *: '{}' and '{}'", a.name(), b.name())),
    }
}

fn negative(_: &mut State, value: &Value, _: &[Value]) -> Result<Value> {
    match Py::of(value).number() {
        Some(Number::Int(i)) => Ok(numbers::number(i.saturating_neg())),
        Some(Number::Float(f)) => Ok(Value::from(-f)),
        None => refuse("bad operand type for unary -"),
    }
}

/// A chain of comparisons, `a < b <= c`. `args` has the name of each operator, followed by its right-hand
/// value.
fn compare(state: &mut State, first: &Value, args: &[Value]) -> Result<Value> {
    let mut left = first;
    for pair in args.chunks_exact(2) {
        let right = &pair[1];
        let order = |wanted: &[Ordering]| -> Result<bool> {
            state.consume_fuel(left.len().unwrap_or(0).min(right.len().unwrap_or(0)) as u64 / 8)?;
            Ok(value::order(left, right, 0)?.is_some_and(|o| wanted.contains(&o)))
        };
        let holds = match pair[0].as_str().unwrap_or_default() {
            "<" => order(&[Ordering::Less])?,
            "<=" => order(&[Ordering::Less, Ordering::Equal])?,
            ">" => order(&[Ordering::Greater])?,
            ">=" => order(&[Ordering::Greater, Ordering::Equal])?,
            "==" => left == right,
            "!=" => left != right,
            "in" => contains(state, right, left)?,
            _ => !contains(state, right, left)?,
        };
        if !holds {
            return Ok(Value::from(false));
        }
        left = right;
    }
    Ok(Value::from(true))
}

fn contains(state: &State, list: &Value, item: &Value) -> Result<bool> {
    match Py::of(list) {
        Py::Str(s) => match item.as_str() {
            Some(part) => {
                pay(state, s.len())?;
                Ok(s.contains(part))
            }
            None => {
                refuse(format!("'in <string>' requires string as left operand, not {}", Py::of(item).name()))
            }
        },
        Py::Dict => match Py::of(item) {
            Py::List | Py::Dict => refuse("unhashable type"),
            _ => Ok(list.as_object().is_some_and(|o| o.get_value(item).is_some())),
        },
        _ => Ok(value::items(state, list)?.contains(item)),
    }
}

/// Calls a macro that takes any arguments. Those without a parameter go into `varargs` and `kwargs`.
pub fn call_macro(state: &mut State, called: &Value, args: &[Value]) -> Result<Value> {
    let names = called.get_attr("arguments").ok().filter(|n| !n.is_undefined());
    let Some(names) = names else { return called.call(state, args) };
    let names: Vec<String> = names.try_iter()?.map(|n| n.to_string()).collect();
    let (catches_more, catches_named) =
        (names.iter().any(|n| n == "varargs"), names.iter().any(|n| n == "kwargs"));
    let declared: Vec<&String> = names.iter().filter(|n| *n != "varargs" && *n != "kwargs").collect();
    let (positional, named) = split(args);
    let mut given: Vec<Value> = positional.to_vec();
    let mut passed: Vec<(String, Value)> = Vec::new();
    if catches_more && given.len() > declared.len() {
        let rest = given.split_off(declared.len());
        passed.push(("varargs".to_owned(), Value::from(Tuple::from(rest))));
    }
    let mut others: Vec<(String, Value)> = Vec::new();
    for key in named.iter().flat_map(Kwargs::args) {
        let value: Value = named.as_ref().map_or(Ok(Value::UNDEFINED), |n| n.peek(key))?;
        let known = key == "caller" || declared.iter().any(|d| *d == key);
        if known || !catches_named {
            passed.push((key.to_owned(), value))
        } else {
            others.push((key.to_owned(), value))
        }
    }
    if catches_named {
        passed.push(("kwargs".to_owned(), Value::from_pairs(others)));
    }
    if !passed.is_empty() {
        given.push(passed.into_iter().collect::<Kwargs>().into());
    }
    called.call(state, &given)
}

type Test = fn(&State, &Value, &[Value]) -> Result<bool>;

const TESTS: [(&str, Test); 36] = [
    ("boolean", |_, v, _| Ok(matches!(Py::of(v), Py::Bool(_)))),
    ("callable", |_, v, _| Ok(is_callable(v))),
    ("divisibleby", |state, v, args| {
        let rest = remainder(state, v, one(args)?)?;
        Ok(rest == Value::from(0))
    }),
    ("eq", |_, v, args| Ok(v == one(args)?)),
    ("equalto", |_, v, args| Ok(v == one(args)?)),
    ("==", |_, v, args| Ok(v == one(args)?)),
    ("ne", |_, v, args| Ok(v != one(args)?)),
    ("!=", |_, v, args| Ok(v != one(args)?)),
    ("lt", |_, v, args| ordered(v, args, &[Ordering::Less])),
    ("<", |_, v, args| ordered(v, args, &[Ordering::Less])),
    ("lessthan", |_, v, args| ordered(v, args, &[Ordering::Less])),
    ("le", |_, v, args| ordered(v, args, &[Ordering::Less, Ordering::Equal])),
    ("<=", |_, v, args| ordered(v, args, &[Ordering::Less, Ordering::Equal])),
    ("gt", |_, v, args| ordered(v, args, &[Ordering::Greater])),
    (">", |_, v, args| ordered(v, args, &[Ordering::Greater])),
    ("greaterthan", |_, v, args| ordered(v, args, &[Ordering::Greater])),
    ("ge", |_, v, args| ordered(v, args, &[Ordering::Greater, Ordering::Equal])),
    (">=", |_, v, args| ordered(v, args, &[Ordering::Greater, Ordering::Equal])),
    ("even", |state, v, _| parity(state, v, 0.0)),
    ("odd", |state, v, _| parity(state, v, 1.0)),
    ("false", |_, v, _| Ok(Py::of(v) == Py::Bool(false))),
    ("true", |_, v, _| Ok(Py::of(v) == Py::Bool(true))),
    ("float", |_, v, _| Ok(matches!(Py::of(v), Py::Float(_)))),
    ("in", |state, v, args| contains(state, one(args)?, v)),
    ("integer", |_, v, _| Ok(matches!(Py::of(v), Py::Int(_) | Py::Huge))),
    ("iterable", |_, v, _| {
        Ok(matches!(
            Py::of(v),
            Py::Undefined
                | Py::Str(_)
                | Py::List
                | Py::Tuple
                | Py::Dict
                | Py::Range
                | Py::View
                | Py::Generator
        ))
    }),
    ("lower", |state, v, _| {
        Ok(strings::call(state, &value::text(state, v)?, "islower", &[])?.is_some_and(|v| v.is_true()))
    }),
    ("upper", |state, v, _| {
        Ok(strings::call(state, &value::text(state, v)?, "isupper", &[])?.is_some_and(|v| v.is_true()))
    }),
    ("mapping", |_, v, _| Ok(Py::of(v) == Py::Dict)),
    ("none", |_, v, _| Ok(v.is_none())),
    ("number", |_, v, _| Ok(matches!(Py::of(v), Py::Bool(_) | Py::Int(_) | Py::Huge | Py::Float(_)))),
    ("sequence", |_, v, _| {
        Ok(matches!(Py::of(v), Py::Undefined | Py::Str(_) | Py::List | Py::Tuple | Py::Dict | Py::Range))
    }),
    ("filter", |state, v, _| {
        Ok(hashable(v)?
            && v.as_str().is_some_and(|n| !n.starts_with("__") && minijinja::tests::is_filter(state, n)))
    }),
    ("test", |state, v, _| {
        Ok(hashable(v)? && v.as_str().is_some_and(|n| minijinja::tests::is_test(state, n)))
    }),
    ("string", |_, v, _| Ok(v.as_str().is_some())),
    ("escaped", |_, v, _| Ok(v.is_safe())),
];

fn one(args: &[Value]) -> Result<&Value> {
    match args {
        [one] => Ok(one),
        _ => refuse("a test takes one argument"),
    }
}

fn hashable(value: &Value) -> Result<bool> {
    if matches!(Py::of(value), Py::List | Py::Dict) { refuse("unhashable type") } else { Ok(true) }
}

fn ordered(value: &Value, args: &[Value], wanted: &[Ordering]) -> Result<bool> {
    Ok(value::order(value, one(args)?, 0)?.is_some_and(|o| wanted.contains(&o)))
}

fn parity(state: &State, value: &Value, rest: f64) -> Result<bool> {
    let found = remainder(state, value, &Value::from(2))?;
    Ok(Py::of(&found).number().is_some_and(|n| n.float() == rest))
}

/// Undefined counts as callable, as in Jinja: calling it has an error of its own.
fn is_callable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined => true,
        ValueKind::Plain => value
            .as_object()
            .is_some_and(|o| o.downcast_ref::<Callable>().is_some() || !o.type_name().ends_with("::Cycler")),
        ValueKind::Map => value
            .as_object()
            .is_some_and(|o| o.type_name().contains("macro") || o.type_name().contains("loop")),
        _ => false,
    }
}

pub fn add_to(environment: &mut Environment) {
    for (name, test) in TESTS {
        environment.add_test(name, move |state: &State, value: Value, args: Rest<Value>, named: Kwargs| {
            test(state, &value, &arguments::whole(args, named))
        });
    }
    for name in ["int", "safe", "startingwith", "endingwith"] {
        environment.remove_test(name);
    }
    let call = |state: &mut State, args: &[Value]| match args.split_first() {
        Some((called, args)) => call_macro(state, called, args),
        None => refuse("nothing is called"),
    };
    environment
        .add_global("__call", Value::from_object(Callable { name: "call".into(), call: Box::new(call) }));
    let builtin: BTreeMap<String, Value> = environment
        .globals()
        .filter(|(n, _)| *n == "namespace")
        .map(|(n, v)| (n.to_owned(), v.clone()))
        .collect();
    if let Some(namespace) = builtin.get("namespace").cloned() {
        let call = move |state: &mut State, args: &[Value]| {
            let pairs = super::python::dict_pairs(state, args)?;
            pairs.iter().try_for_each(|(_, item)| super::depth::keep(state, item, true))?;
            if pairs.iter().any(|(k, _)| k.as_str().is_some_and(|k| k.starts_with('_'))) {
                return refuse("a namespace cannot have a name that begins with an underscore");
            }
            namespace.call(state, &[Value::from_pairs(pairs)])
        };
        environment.add_global(
            "namespace",
            Value::from_object(Callable { name: "namespace".into(), call: Box::new(call) }),
        );
    }
}
