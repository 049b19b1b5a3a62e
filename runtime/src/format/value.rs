//! GGUF metadata: typed values under dotted keys, in file order.
//!
//! Getters convert between integer widths, because writers disagree on them. If a value has the wrong type,
//! the error names the key.

use crate::error::{Error, Result};

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer, and the width in which it is written.
    Unsigned(u64, Width),
    /// A signed integer, and the width in which it is written.
    Signed(i64, Width),
    /// 32-bit float.
    F32(f32),
    /// 64-bit float.
    F64(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 string.
    String(String),
    /// Values of one type.
    Array(Array),
}

/// Width of an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    W8,
    /// 16 bits.
    W16,
    /// 32 bits.
    W32,
    /// 64 bits.
    W64,
}

/// An array. Integers are widened to 64 bits when read.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// From any unsigned type. Written as u32 if all values fit, else as u64.
    Unsigned(Vec<u64>),
    /// From any signed type. Written as i32 if all values fit, else as i64.
    Signed(Vec<i64>),
    /// From f32 or f64; written as f32.
    F32(Vec<f32>),
    /// Booleans.
    Bool(Vec<bool>),
    /// Strings.
    String(Vec<String>),
}

impl From<&str> for Value {
    fn from(v: &str) -> Self {
        Value::String(v.to_owned())
    }
}

impl From<String> for Value {
    fn from(v: String) -> Self {
        Value::String(v)
    }
}

impl From<u32> for Value {
    fn from(v: u32) -> Self {
        Value::Unsigned(v.into(), Width::W32)
    }
}

impl From<f32> for Value {
    fn from(v: f32) -> Self {
        Value::F32(v)
    }
}

impl From<bool> for Value {
    fn from(v: bool) -> Self {
        Value::Bool(v)
    }
}

impl From<Vec<String>> for Value {
    fn from(v: Vec<String>) -> Self {
        Value::Array(Array::String(v))
    }
}

impl From<Vec<u64>> for Value {
    fn from(v: Vec<u64>) -> Self {
        Value::Array(Array::Unsigned(v))
    }
}

impl From<Vec<f32>> for Value {
    fn from(v: Vec<f32>) -> Self {
        Value::Array(Array::F32(v))
    }
}

impl From<Vec<bool>> for Value {
    fn from(v: Vec<bool>) -> Self {
        Value::Array(Array::Bool(v))
    }
}

impl Value {
    /// The value's type, for error messages.
    fn kind(&self) -> &'static str {
        match self {
            Value::Unsigned(..) | Value::Signed(..) => "an integer",
            Value::F32(_) | Value::F64(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
        }
    }
}

/// Metadata in file order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
}

impl Metadata {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// Sets a key. An existing key keeps its position.
    pub fn insert(&mut self, key: impl Into<String>, value: impl Into<Value>) {
        let (key, value) = (key.into(), value.into());
        match self.entries.iter_mut().find(|(k, _)| *k == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
    }

    /// Appends without checking for duplicates: the reader has checked.
    pub(super) fn push(&mut self, key: String, value: Value) {
        self.entries.push((key, value));
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let at = self.entries.iter().position(|(k, _)| k == key)?;
        Some(self.entries.remove(at).1)
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn typed<T>(
        &self,
        key: &str,
        want: &str,
        convert: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::malformed(key, format!("is {}; {want} is expected", value.kind()))),
        }
    }

    /// A string; `None` if the key is missing.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(Error::malformed(key, format!("is {}; a string is expected", other.kind()))),
        }
    }

    /// A string; an error if the key is missing.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.str(key)?.ok_or_else(|| Error::malformed(key, "the key is missing"))
    }

    /// A non-negative integer of any type. An array (one value per layer) is accepted if all its values are
    /// equal.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |v| match v {
            Value::Unsigned(n, _) => Some(*n),
            Value::Signed(n, _) => u64::try_from(*n).ok(),
            Value::Array(Array::Unsigned(all)) => all.first().copied().filter(|f| all.iter().all(|v| v == f)),
            Value::Array(Array::Signed(all)) => all
                .first()
                .copied()
                .filter(|f| all.iter().all(|v| v == f))
                .and_then(|f| u64::try_from(f).ok()),
            _ => None,
        })
    }

    /// A float. Integers are accepted, because some writers use them.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |v| match v {
            Value::F32(x) => Some(*x),
            Value::F64(x) => Some(*x as f32),
            Value::Unsigned(n, _) => Some(*n as f32),
            Value::Signed(n, _) => Some(*n as f32),
            _ => None,
        })
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |v| match v {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::String(v))) => Ok(Some(v)),
            Some(other) => {
                Err(Error::malformed(key, format!("is {}; an array of strings is expected", other.kind())))
            }
        }
    }

    /// An array of floats.
    pub fn f32s(&self, key: &str) -> Result<Option<&[f32]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::F32(v))) => Ok(Some(v)),
            Some(other) => {
                Err(Error::malformed(key, format!("is {}; an array of floats is expected", other.kind())))
            }
        }
    }

    /// An array of booleans.
    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(Array::Bool(v))) => Ok(Some(v)),
            Some(other) => {
                Err(Error::malformed(key, format!("is {}; an array of booleans is expected", other.kind())))
            }
        }
    }

    /// An array of non-negative integers of any type.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.typed(key, "an array of non-negative integers", |v| match v {
            Value::Array(Array::Unsigned(v)) => Some(v.clone()),
            Value::Array(Array::Signed(v)) => v.iter().map(|&n| u64::try_from(n).ok()).collect(),
            _ => None,
        })
    }

    /// An array of integers of any type.
    pub fn i64s(&self, key: &str) -> Result<Option<Vec<i64>>> {
        self.typed(key, "an array of integers", |v| match v {
            Value::Array(Array::Unsigned(v)) => v.iter().map(|&n| i64::try_from(n).ok()).collect(),
            Value::Array(Array::Signed(v)) => Some(v.clone()),
            _ => None,
        })
    }
}
