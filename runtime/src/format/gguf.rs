//! Parses the GGUF container, versions 2 and 3: header, metadata and tensor directory. It locates tensor data
//! but never reads it. The caller provides the bytes.
//!
//! Every count is checked against the remaining bytes before memory is allocated, so a header cannot claim
//! more memory than the file has bytes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use super::ggml::GgmlType;
use super::value::{Array, Metadata, Value, Width};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 24;
const MAX_TENSORS: u64 = 1 << 20;
const MAX_KEYS: u64 = 1 << 16;
const MAX_KEY_BYTES: u64 = 1 << 16;
const MAX_DIMS: u32 = 4;

/// The smallest possible entries: they bound how many fit the remaining bytes.
const MIN_KEY_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 8 + 4 + 8;

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Unique name.
    pub name: String,
    /// Sizes, fastest-varying first (a matrix is `[cols, rows]`).
    pub shape: Vec<u64>,
    /// Encoding of the elements.
    pub ty: GgmlType,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub n_bytes: u64,
}

/// A parsed header. All tensors were checked to lie within the file, without overlaps.
#[derive(Clone, Debug)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// Keys and values.
    pub metadata: Metadata,
    /// The tensors, in directory order.
    pub tensors: Vec<TensorInfo>,
    /// `general.alignment`.
    pub alignment: u64,
    /// Where tensor data begins.
    pub data_start: u64,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// # Errors
    /// `Malformed` if the bytes are not GGUF or contradict themselves. `Unsupported` for other versions, byte
    /// orders and tensor types.
    pub fn parse(bytes: &[u8]) -> Result<Gguf> {
        Gguf::read(&mut Reader { bytes, at: 0, len: bytes.len() as u64, short: false })
    }

    /// Like [`Gguf::parse`], given only the first bytes of a file of `len` bytes. `None` if the header is
    /// longer than these.
    ///
    /// # Errors
    /// Those of [`Gguf::parse`].
    pub fn parse_prefix(prefix: &[u8], len: u64) -> Result<Option<Gguf>> {
        let mut r = Reader { bytes: prefix, at: 0, len: len.max(prefix.len() as u64), short: false };
        match Gguf::read(&mut r) {
            Err(_) if r.short => Ok(None),
            read => read.map(Some),
        }
    }

    fn read(r: &mut Reader) -> Result<Gguf> {
        if r.take(4).ok() != Some(MAGIC) {
            return Err(Error::malformed(
                "header",
                "this is no GGUF file (it does not begin with `GGUF`); name a GGUF file or a Hugging Face folder",
            ));
        }
        let version = r.u32("version")?;
        match version {
            2 | 3 => {}
            _ if matches!(version.swap_bytes(), 1..=3) => {
                return Err(Error::unsupported(
                    "big-endian GGUF files are not supported; convert it on a little-endian machine",
                ));
            }
            _ => {
                return Err(Error::unsupported(format!(
                    "GGUF version {version} is not supported; 2 and 3 are"
                )));
            }
        }
        let n_tensors = r.count("tensor count", MAX_TENSORS, MIN_TENSOR_BYTES)?;
        let n_keys = r.count("key count", MAX_KEYS, MIN_KEY_BYTES)?;
        let metadata = r.metadata(n_keys)?;
        let alignment = match metadata.u64("general.alignment")? {
            None => DEFAULT_ALIGNMENT,
            Some(a) if a.is_power_of_two() && a <= MAX_ALIGNMENT => a,
            Some(a) => {
                let reason = format!("{a}: it must be a power of two up to {MAX_ALIGNMENT}");
                return Err(Error::malformed("general.alignment", reason));
            }
        };
        // `len` may come from a server: bound the allocation by the bytes that we have.
        let room = n_tensors.min(r.bytes.len() as u64 / MIN_TENSOR_BYTES) as usize;
        let mut tensors = Vec::with_capacity(room);
        let mut index = HashMap::with_capacity(room);
        for i in 0..n_tensors {
            let tensor = r.tensor()?;
            if index.insert(tensor.name.clone(), i as usize).is_some() {
                return Err(Error::malformed(format!("tensor `{}`", tensor.name), "the name appears twice"));
            }
            tensors.push(tensor);
        }
        // A file without tensors (a vocabulary, a first shard) may end with the header.
        let data_start = (r.at as u64).next_multiple_of(alignment);
        place(&mut tensors, data_start, alignment, r.len)?;
        Ok(Gguf { version, metadata, tensors, alignment, data_start, index })
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&i| &self.tensors[i])
    }
}

/// Makes offsets relative to the file instead of the data; checks bounds and overlaps.
fn place(tensors: &mut [TensorInfo], data_start: u64, alignment: u64, file_len: u64) -> Result<()> {
    let field = |t: &TensorInfo| format!("tensor `{}`", t.name);
    for t in tensors.iter_mut() {
        if t.offset % alignment != 0 {
            return Err(Error::malformed(
                field(t),
                format!("offset {} is not a multiple of {alignment}", t.offset),
            ));
        }
        let end = data_start.checked_add(t.offset).and_then(|o| o.checked_add(t.n_bytes));
        match end {
            Some(end) if end <= file_len => t.offset += data_start,
            Some(end) => {
                let reason =
                    format!("{} bytes past the end of the file; is the download complete?", end - file_len);
                return Err(Error::malformed(field(t), reason));
            }
            None => return Err(Error::malformed(field(t), "the offset is too large for any file")),
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().filter(|t| t.n_bytes > 0).collect();
    order.sort_by_key(|t| t.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].n_bytes > pair[1].offset {
            return Err(Error::malformed(field(pair[1]), format!("overlaps tensor `{}`", pair[0].name)));
        }
    }
    Ok(())
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Length of the whole file; `bytes` may be only its beginning.
    len: u64,
    /// Whether the header continues past the end of `bytes`, but not of the file.
    short: bool,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        self.len - self.at as u64
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        if n > self.left() {
            let reason = format!("the file ends {} bytes early, at byte {}", n - self.left(), self.len);
            return Err(Error::malformed("header", reason));
        }
        if n > (self.bytes.len() - self.at) as u64 {
            self.short = true;
            return Err(Error::malformed("header", "continues past the bytes read so far"));
        }
        let from = self.at;
        self.at += n as usize;
        Ok(&self.bytes[from..self.at])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let taken = self
            .take(N as u64)
            .map_err(|_| Error::malformed(what, "the file ends here; is the download complete?"))?;
        Ok(taken.try_into().expect("N bytes were taken"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads a count of entries that take at least `each` bytes.
    fn count(&mut self, what: &str, max: u64, each: u64) -> Result<u64> {
        let n = self.u64(what)?;
        if n > max {
            return Err(Error::malformed(what, format!("{n} is more than the {max} that are supported")));
        }
        if n.saturating_mul(each) > self.left() {
            return Err(Error::malformed(
                what,
                format!(
                    "{n} entries do not fit the {} bytes left; the file is cut short or damaged",
                    self.left()
                ),
            ));
        }
        Ok(n)
    }

    fn text(&mut self, what: &str, max: u64) -> Result<&'a str> {
        let n = self.count(what, max, 1)?;
        std::str::from_utf8(self.take(n)?).map_err(|_| Error::malformed(what, "the text is not UTF-8"))
    }

    fn metadata(&mut self, n: u64) -> Result<Metadata> {
        let mut metadata = Metadata::new();
        let mut seen = HashSet::new();
        for i in 0..n {
            let key = self.text(&format!("key {i}"), MAX_KEY_BYTES)?;
            if !seen.insert(key) {
                return Err(Error::malformed(key, "the key appears twice"));
            }
            let ty = self.u32(key)?;
            let value = self.value(key, ty)?;
            metadata.push(key.to_owned(), value);
        }
        Ok(metadata)
    }

    fn value(&mut self, key: &str, ty: u32) -> Result<Value> {
        Ok(match ty {
            0 => Value::Unsigned(self.array::<1>(key)?[0].into(), Width::W8),
            1 => Value::Signed((self.array::<1>(key)?[0] as i8).into(), Width::W8),
            2 => Value::Unsigned(u16::from_le_bytes(self.array(key)?).into(), Width::W16),
            3 => Value::Signed(i16::from_le_bytes(self.array(key)?).into(), Width::W16),
            4 => Value::Unsigned(self.u32(key)?.into(), Width::W32),
            5 => Value::Signed((self.u32(key)? as i32).into(), Width::W32),
            6 => Value::F32(f32::from_le_bytes(self.array(key)?)),
            7 => Value::Bool(self.bool(key)?),
            8 => Value::String(self.text(key, u64::MAX)?.to_owned()),
            9 => Value::Array(self.values(key)?),
            10 => Value::Unsigned(self.u64(key)?, Width::W64),
            11 => Value::Signed(self.u64(key)? as i64, Width::W64),
            12 => Value::F64(f64::from_le_bytes(self.array(key)?)),
            _ => return Err(Error::malformed(key, format!("value type {ty} does not exist"))),
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        match self.array::<1>(key)?[0] {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Error::malformed(key, format!("{other} is not a boolean (0 or 1)"))),
        }
    }

    fn values(&mut self, key: &str) -> Result<Array> {
        let ty = self.u32(key)?;
        let (size, ints) = match ty {
            0 | 1 | 7 => (1, true),
            2 | 3 => (2, true),
            4 | 5 => (4, true),
            6 => (4, false),
            8 => (8, false),
            10 | 11 => (8, true),
            12 => (8, false),
            9 => return Err(Error::unsupported(format!("{key}: arrays of arrays are not supported"))),
            _ => return Err(Error::malformed(key, format!("value type {ty} does not exist"))),
        };
        let n = self.count(key, u64::MAX, size)?;
        if ty == 8 {
            let texts = (0..n).map(|_| self.text(key, u64::MAX).map(str::to_owned));
            return Ok(Array::String(texts.collect::<Result<_>>()?));
        }
        let raw = self.take(n * size)?.chunks_exact(size as usize);
        let unsigned = |c: &[u8]| c.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        let signed = |c: &[u8]| {
            let shift = 64 - 8 * c.len() as u32;
            (unsigned(c) << shift) as i64 >> shift
        };
        Ok(match (ty, ints) {
            (7, _) => {
                let bools = raw.map(|c| match c[0] {
                    0 => Ok(false),
                    1 => Ok(true),
                    other => Err(Error::malformed(key, format!("{other} is not a boolean (0 or 1)"))),
                });
                Array::Bool(bools.collect::<Result<_>>()?)
            }
            (6, _) => Array::F32(raw.map(|c| f32::from_bits(unsigned(c) as u32)).collect()),
            (12, _) => Array::F32(raw.map(|c| f64::from_bits(unsigned(c)) as f32).collect()),
            (1 | 3 | 5 | 11, true) => Array::Signed(raw.map(signed).collect()),
            _ => Array::Unsigned(raw.map(unsigned).collect()),
        })
    }

    /// Reads a directory entry. Its offset is still relative to the tensor data.
    fn tensor(&mut self) -> Result<TensorInfo> {
        let name = self.text("tensor name", MAX_KEY_BYTES)?.to_owned();
        let field = format!("tensor `{name}`");
        let n_dims = self.u32(&field)?;
        if n_dims > MAX_DIMS {
            return Err(Error::malformed(
                field,
                format!("{n_dims} dimensions; up to {MAX_DIMS} are supported"),
            ));
        }
        let shape = (0..n_dims).map(|_| self.u64(&field)).collect::<Result<Vec<_>>>()?;
        let ty = self.u32(&field)?;
        let ty = GgmlType::from_id(ty).map_err(|what| Error::unsupported(format!("{field}: {what}")))?;
        let offset = self.u64(&field)?;
        let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
        let n_bytes = elements
            .filter(|&n| n > 0)
            .ok_or_else(|| Error::malformed(&field, format!("the shape {shape:?} is empty or too large")))
            .and_then(|n| {
                let row = shape.first().copied().unwrap_or(1);
                let reason = || {
                    format!(
                        "rows of {row} elements are not a multiple of the {ty} block of {}",
                        ty.block_len()
                    )
                };
                if row % ty.block_len() as u64 != 0 {
                    return Err(Error::malformed(&field, reason()));
                }
                (n / ty.block_len() as u64).checked_mul(ty.block_bytes() as u64).ok_or_else(|| {
                    Error::malformed(&field, format!("the shape {shape:?} is empty or too large"))
                })
            })?;
        Ok(TensorInfo { name, shape, ty, offset, n_bytes })
    }
}
