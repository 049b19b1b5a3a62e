//! Operators and tests as Python has them, where minijinja's own give another answer or none.
//!
//! `expression.rs` writes an expression with these as filters, whose names begin with two underscores: no template can
//! name such a filter itself.

use super::arguments::split;
use super::value::{self, Callable, Number, Py, Result, pay, refuse};
use super::{filters, format};
use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, State};
use std::cmp::Ordering;
use std::collections::BTreeMap;

type Filter = fn(&mut State, &Value, &[Value]) -> Result<Value>;

pub const FILTERS: [(&str, Filter); 5] = [
    ("__mod", |state, left, args| remainder(state, left, &args[0])),
    ("__concat", concatenate),
    ("__compare", compare),
    ("__iterate", |state, value, _| Ok(Value::from(value::items(state, value)?))),
    ("__positive", |_, value, _| match Py::of(value).number() {
        Some(Number::Int(i)) => Ok(filters::number(i)),
        Some(Number::Float(f)) => Ok(Value::from(f)),
        None => refuse("bad operand type for unary +"),
    }),
];

fn remainder(state: &State, left: &Value, right: &Value) -> Result<Value> {
    if let Some(format) = left.as_str() {
        return Ok(Value::from(format::percent(state, format, right)?));
    }
    let zero = || refuse("modulo by zero");
    match (Py::of(left).number(), Py::of(right).number()) {
        (Some(Number::Int(_)), Some(Number::Int(0))) => zero(),
        (Some(Number::Int(a)), Some(Number::Int(b))) => {
            let rest = a.checked_rem(b).unwrap_or(0);
            Ok(filters::number(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }))
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
        _ => refuse(format!("unsupported operand types for %: '{}' and '{}'", Py::of(left).name(), Py::of(right).name())),
    }
}

/// `a ~ b ~ …`: texts one behind another; with a safe one among them, the others are escaped.
fn concatenate(state: &mut State, first: &Value, args: &[Value]) -> Result<Value> {
    let safe = first.is_safe() || args.iter().any(Value::is_safe);
    let mut out = String::new();
    for value in std::iter::once(first).chain(args) {
        let value = if safe { state.apply_filter("e", std::slice::from_ref(value))? } else { value.clone() };
        let text = value::text(state, &value)?;
        pay(state, out.len() + text.len())?;
        out.push_str(&text);
    }
    Ok(if safe { Value::from_safe_string(out) } else { Value::from(out) })
}

/// A chain of comparisons, `a < b <= c`: each with its operator's name.
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
            None => refuse(format!("'in <string>' requires string as left operand, not {}", Py::of(item).name())),
        },
        Py::Dict => match Py::of(item) {
            Py::List | Py::Dict => refuse("unhashable type"),
            _ => Ok(list.as_object().is_some_and(|o| o.get_value(item).is_some())),
        },
        _ => Ok(value::items(state, list)?.contains(item)),
    }
}

/// A call of a macro that takes any arguments: those without a parameter go into `varargs` and `kwargs`.
pub fn call_macro(state: &mut State, called: &Value, args: &[Value]) -> Result<Value> {
    let names = called.get_attr("arguments").ok().filter(|n| !n.is_undefined());
    let Some(names) = names else { return called.call(state, args) };
    let names: Vec<String> = names.try_iter()?.map(|n| n.to_string()).collect();
    let (catches_more, catches_named) = (names.iter().any(|n| n == "varargs"), names.iter().any(|n| n == "kwargs"));
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
        if known || !catches_named { passed.push((key.to_owned(), value)) } else { others.push((key.to_owned(), value)) }
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

const TESTS: [(&str, Test); 34] = [
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
            Py::Undefined | Py::Str(_) | Py::List | Py::Tuple | Py::Dict | Py::Range | Py::View | Py::Generator
        ))
    }),
    ("lower", |state, v, _| Ok(super::strings::call(state, &value::text(state, v)?, "islower", &[])?.is_some_and(|v| v.is_true()))),
    ("upper", |state, v, _| Ok(super::strings::call(state, &value::text(state, v)?, "isupper", &[])?.is_some_and(|v| v.is_true()))),
    ("mapping", |_, v, _| Ok(Py::of(v) == Py::Dict)),
    ("none", |_, v, _| Ok(v.is_none())),
    ("number", |_, v, _| Ok(matches!(Py::of(v), Py::Bool(_) | Py::Int(_) | Py::Huge | Py::Float(_)))),
    ("sequence", |_, v, _| Ok(matches!(Py::of(v), Py::Undefined | Py::Str(_) | Py::List | Py::Tuple | Py::Dict | Py::Range))),
    ("string", |_, v, _| Ok(v.as_str().is_some())),
    ("escaped", |_, v, _| Ok(v.is_safe())),
];

fn one(args: &[Value]) -> Result<&Value> {
    match args {
        [one] => Ok(one),
        _ => refuse("a test takes one argument"),
    }
}

fn ordered(value: &Value, args: &[Value], wanted: &[Ordering]) -> Result<bool> {
    Ok(value::order(value, one(args)?, 0)?.is_some_and(|o| wanted.contains(&o)))
}

fn parity(state: &State, value: &Value, rest: f64) -> Result<bool> {
    let found = remainder(state, value, &Value::from(2))?;
    Ok(Py::of(&found).number().is_some_and(|n| n.float() == rest))
}

/// Undefined, too: its call is an error of its own.
fn is_callable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Undefined => true,
        ValueKind::Plain => value.as_object().is_some_and(|o| {
            o.downcast_ref::<Callable>().is_some() || !o.type_name().ends_with("::Cycler")
        }),
        ValueKind::Map => value.as_object().is_some_and(|o| o.type_name().contains("macro") || o.type_name().contains("loop")),
        _ => false,
    }
}

pub fn add_to(environment: &mut Environment) {
    for (name, test) in TESTS {
        environment.add_test(name, move |state: &State, value: Value, args: Rest<Value>, named: Kwargs| {
            test(state, &value, &filters::whole(args, named))
        });
    }
    for name in ["int", "safe", "startingwith", "endingwith"] {
        environment.remove_test(name);
    }
    let call = |state: &mut State, args: &[Value]| match args.split_first() {
        Some((called, args)) => call_macro(state, called, args),
        None => refuse("nothing is called"),
    };
    environment.add_global("__call", Value::from_object(Callable { name: "call".into(), call: Box::new(call) }));
    let builtin: BTreeMap<String, Value> =
        environment.globals().filter(|(n, _)| *n == "namespace").map(|(n, v)| (n.to_owned(), v.clone())).collect();
    if let Some(namespace) = builtin.get("namespace").cloned() {
        let call = move |state: &mut State, args: &[Value]| {
            let pairs = super::python::dict_pairs(state, args)?;
            if pairs.iter().any(|(k, _)| k.as_str().is_some_and(|k| k.starts_with('_'))) {
                return refuse("a namespace cannot have a name that begins with an underscore");
            }
            namespace.call(state, &[Value::from_pairs(pairs)])
        };
        environment.add_global("namespace", Value::from_object(Callable { name: "namespace".into(), call: Box::new(call) }));
    }
}
