//! Limits how deep values may nest.
//!
//! A template can put a list into a list in a loop. Values are dropped, compared and hashed by recursion, so
//! deep ones would overflow the stack. Only stored values outlive an expression, and expressions are bounded.
//! So a value is measured when a template stores it. It may contain nothing that changes later or cannot be
//! measured.

use super::objects::{Generator, Group, View};
use super::value::{Py, Result, refuse};
use minijinja::State;
use minijinja::value::Value;

/// Deeper than the JSON of any tool: JSON readers stop at 128.
const MAX_DEPTH: usize = 200;

/// Checks that the value may be stored in a variable. `part`: whether it becomes part of another value.
pub fn keep(state: &State, value: &Value, part: bool) -> Result<()> {
    walk(state, value, usize::from(part))
}

fn walk(state: &State, value: &Value, depth: usize) -> Result<()> {
    if depth > MAX_DEPTH {
        return refuse("values are nested too deep");
    }
    let object = match value.as_object() {
        Some(object) => object,
        None => return Ok(()),
    };
    let each = |items: &[Value]| -> Result<()> {
        state.consume_fuel(1 + items.len() as u64 / 8)?;
        items.iter().try_for_each(|item| walk(state, item, depth + 1))
    };
    match Py::of(value) {
        Py::Range => Ok(()),
        Py::View => each(object.downcast_ref::<View>().map_or(&[], |v| &v.items)),
        Py::Generator => object.downcast_ref::<Generator>().map_or(Ok(()), |g| g.peek(|items| each(items))),
        Py::Tuple if object.downcast_ref::<Group>().is_some() => {
            each(&[0, 1].map(|i| object.get_value(&Value::from(i)).unwrap_or_default()))
        }
        Py::List | Py::Tuple => {
            for item in value.try_iter()?.checked() {
                let item = item?;
                if item.as_object().is_some() {
                    state.consume_fuel(1)?;
                    walk(state, &item, depth + 1)?;
                }
            }
            Ok(())
        }
        Py::Dict => {
            for (key, item) in super::value::pairs(value) {
                walk(state, &key, depth + 1)?;
                walk(state, &item, depth + 1)?;
            }
            state.consume_fuel(1)
        }
        _ if depth == 0 => Ok(()),
        other => refuse(format!("a value of type '{}' cannot be part of another", other.name())),
    }
}
