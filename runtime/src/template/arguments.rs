//! Arguments of a Python function, given by position or by name.

use super::value::{Result, refuse};
use minijinja::value::{Kwargs, Rest, Value};
use minijinja::{Error, ErrorKind};

/// Splits the arguments from minijinja into positional and named ones.
pub fn split(args: &[Value]) -> (&[Value], Option<Kwargs>) {
    match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Kwargs::try_from(last.clone()).ok()),
        _ => (args, None),
    }
}

/// Returns the arguments in the order of `names`; `None` for one that was not given. A `/` at the beginning
/// of a name means positional only. A `*` there means required.
pub fn bind<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N]> {
    let (positional, named) = split(args);
    if positional.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut out = [const { None }; N];
    for (slot, value) in out.iter_mut().zip(positional) {
        *slot = Some(value.clone());
    }
    let plain = |name: &str| name.trim_start_matches(['*', '/']).to_owned();
    if let Some(named) = named {
        for key in named.args() {
            let at = names.iter().position(|n| plain(n) == key && !n.contains('/'));
            match at.map(|i| &mut out[i]) {
                Some(slot @ None) => *slot = Some(named.peek::<Value>(key)?),
                Some(Some(_)) => return refuse(format!("argument `{key}` is given twice")),
                None => return refuse(format!("there is no argument `{key}`")),
            }
        }
    }
    for (name, slot) in names.iter().zip(&out) {
        if name.contains('*') && slot.is_none() {
            return Err(Error::from(ErrorKind::MissingArgument));
        }
    }
    Ok(out)
}

/// Arguments in the form that methods receive: all named ones are a single value at the end.
pub fn whole(args: Rest<Value>, named: Kwargs) -> Vec<Value> {
    let mut args = args.0;
    if named.args().next().is_some() {
        args.push(named.into());
    }
    args
}
