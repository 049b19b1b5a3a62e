//! Jinja's filters for numbers.

use super::arguments::bind;
use super::value::{Number, Py, Result, refuse};
use minijinja::State;
use minijinja::value::Value;

pub fn abs(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [] = bind(args, [])?;
    match Py::of(value).number() {
        Some(Number::Int(i)) => Ok(Value::from(i.saturating_abs())),
        Some(Number::Float(f)) => Ok(Value::from(f.abs())),
        None => refuse("bad operand type for abs()"),
    }
}

/// Parses like Python's `float(text)`: with underscores between digits, surrounding white space, infinities
/// and nan.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(super::unicode::is_space);
    let between = |i: usize| {
        i > 0
            && text.as_bytes()[i - 1].is_ascii_digit()
            && text.as_bytes().get(i + 1).is_some_and(u8::is_ascii_digit)
    };
    if text.bytes().enumerate().any(|(i, b)| b == b'_' && !between(i)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

pub fn float(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [default] = bind(args, ["default"])?;
    let parsed = match Py::of(value) {
        Py::Undefined => return refuse("cannot convert an undefined value to a number"),
        Py::Str(s) => parse_float(s),
        Py::Huge => f64::try_from(value.clone()).ok(),
        other => other.number().map(Number::float),
    };
    Ok(parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

pub fn parse_int(text: &str, base: i128) -> Option<i128> {
    let text = text.trim_matches(super::unicode::is_space);
    let (sign, digits) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (if text.starts_with('-') { -1 } else { 1 }, rest),
        None => (1, text),
    };
    let lower = digits.to_ascii_lowercase();
    let prefixes = [("0x", 16), ("0o", 8), ("0b", 2)];
    let prefix = prefixes.iter().find(|(p, b)| lower.starts_with(p) && (base == 0 || base == *b));
    let (radix, digits) = match prefix {
        Some((p, b)) => (*b, lower[p.len()..].trim_start_matches('_')),
        None if base == 0 => (10, &lower[..]),
        None => (base, &lower[..]),
    };
    let bad = digits.is_empty()
        || digits.starts_with(['+', '-', '_'])
        || digits.ends_with('_')
        || digits.contains("__");
    // In base 0, a number without a prefix may not have leading zeros.
    let zeros = base == 0
        && prefix.is_none()
        && digits.starts_with('0')
        && !digits.trim_matches(['0', '_']).is_empty();
    if bad || zeros || !(2..=36).contains(&radix) {
        return None;
    }
    i128::from_str_radix(&digits.replace('_', ""), radix as u32).ok().map(|n| sign * n)
}

pub fn int(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [default, base] = bind(args, ["default", "base"])?;
    let base = base.map_or(Some(10), |v| Py::of(&v).index()).unwrap_or(10);
    let whole = |f: f64| if f.is_finite() && f.abs() < 1e38 { Some(f.trunc() as i128) } else { None };
    let parsed = match Py::of(value) {
        Py::Undefined => return refuse("cannot convert an undefined value to a number"),
        Py::Huge => return Ok(value.clone()),
        Py::Str(s) => parse_int(s, base).or_else(|| parse_float(s).and_then(whole)),
        other => match other.number() {
            Some(Number::Int(i)) => Some(i),
            Some(Number::Float(f)) if f.is_infinite() => None,
            Some(Number::Float(f)) => whole(f),
            None => None,
        },
    };
    Ok(parsed.map_or_else(|| default.unwrap_or_else(|| Value::from(0)), number))
}

/// An integer in minijinja's smallest type.
pub fn number(n: i128) -> Value {
    i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)
}

pub fn round(_: &mut State, value: &Value, args: &[Value]) -> Result<Value> {
    let [precision, method] = bind(args, ["precision", "method"])?;
    let precision = precision.map_or(Some(0), |v| Py::of(&v).index());
    let Some(precision) = precision.filter(|p| p.abs() < 300) else {
        return refuse("round: the precision must be an integer");
    };
    let Some(n) = Py::of(value).number() else { return refuse("round takes a number") };
    let method = method.as_ref().map_or(Some("common"), Value::as_str);
    let scaled = |whole: fn(f64) -> f64| {
        let power = 10f64.powi(precision as i32);
        Ok(Value::from(whole(n.float() * power) / power))
    };
    match (method, n) {
        (Some("common"), Number::Int(i)) if precision >= 0 => Ok(number(i)),
        (Some("common"), Number::Int(i)) => {
            let Some(unit) = 10i128.checked_pow(-precision as u32) else { return Ok(Value::from(0)) };
            let (low, rest) = (i.div_euclid(unit), i.rem_euclid(unit));
            let up = rest * 2 > unit || (rest * 2 == unit && low % 2 != 0);
            Ok(number((low + i128::from(up)) * unit))
        }
        (Some("common"), Number::Float(f)) if precision >= 0 => {
            Ok(Value::from(format!("{f:.*}", precision as usize).parse().unwrap_or(f)))
        }
        (Some("common"), Number::Float(f)) => {
            let power = 10f64.powi(-precision as i32);
            Ok(Value::from((f / power).round_ties_even() * power))
        }
        (Some("ceil"), _) => scaled(f64::ceil),
        (Some("floor"), _) => scaled(f64::floor),
        _ => refuse("method must be common, ceil or floor"),
    }
}
