//! Reads importance matrices of llama.cpp, which publishers of GGUF files provide beside them: Σ x² of the
//! inputs of every matrix, in one of two formats.
//!
//! The current format is a GGUF file (`general.type` is `imatrix`). For a matrix `NAME` it has the tensors
//! `NAME.in_sum2` (`[cols, matrices]`, f32) and `NAME.counts` (`[1, matrices]`, tokens). The older format is
//! a list of names with values; a value is a mean times a number of chunks, and there are no token counts.
//! All its numbers are little-endian and 32 bits wide. Both are as in llama.cpp's `tools/imatrix/imatrix.cpp`
//! and `common/imatrix-loader.cpp`.
//!
//! The bytes are untrusted: no allocation is larger than the file.

use super::calibration::{Calibration, Inputs};
use crate::error::{Error, Result};
use crate::format::{GgmlType, Gguf};
use crate::store;
use std::collections::BTreeMap;
use std::path::Path;

/// Tokens of a chunk, which the older format does not store: llama.cpp's default.
const CHUNK_TOKENS: f32 = 512.0;
/// The fewest bytes of an entry in the older format: three numbers, a name of one byte, one value.
const MIN_ENTRY_BYTES: usize = 3 * 4 + 1 + 4;
/// The most characters of the description that come from the file.
const MAX_SAID: usize = 120;

/// Reads the importance matrix at `path`.
///
/// # Errors
/// `Io`; `Malformed`, naming file and matrix, if it is not an importance matrix.
pub fn read(path: &Path) -> Result<Calibration> {
    let bytes = store::map(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parse(&bytes, &name).map_err(|e| e.at(path))
}

/// Parses the importance matrix in `bytes`. `name` appears in its description.
///
/// # Errors
/// `Malformed`, `Unsupported`.
#[doc(hidden)]
pub fn parse(bytes: &[u8], name: &str) -> Result<Calibration> {
    if bytes.starts_with(b"GGUF") { parse_gguf(bytes, name) } else { parse_dat(bytes, name) }
}

fn parse_gguf(bytes: &[u8], name: &str) -> Result<Calibration> {
    let gguf = Gguf::parse(bytes)?;
    let meta = &gguf.metadata;
    if meta.str("general.type")? != Some("imatrix") {
        let what = "this GGUF file is no importance matrix: that has the value `imatrix` here";
        return Err(Error::malformed("general.type", what));
    }
    let mut parts: BTreeMap<&str, [Option<Vec<f32>>; 2]> = BTreeMap::new();
    for t in &gguf.tensors {
        let (matrix, part) = match (t.name.strip_suffix(".in_sum2"), t.name.strip_suffix(".counts")) {
            (Some(matrix), _) => (matrix, 0),
            (_, Some(matrix)) => (matrix, 1),
            // Ignore other tensors: Σ x, and any that a later version adds.
            _ => continue,
        };
        if t.ty != GgmlType::F32 {
            return Err(Error::malformed(
                format!("tensor `{}`", t.name),
                format!("is {} and must be F32", t.ty),
            ));
        }
        let data = &bytes[t.offset as usize..(t.offset + t.n_bytes) as usize];
        parts.entry(matrix).or_default()[part] = Some(values(data));
    }
    let datasets = meta.strings("imatrix.datasets")?.unwrap_or_default();
    let chunks = meta.u64("imatrix.chunk_count")?.zip(meta.u64("imatrix.chunk_size")?);
    let text = chunks.map(|(n, size)| format!("{n} chunks of {size} tokens"));
    let mut all = Calibration::new(describe(name, text, datasets.iter().map(String::as_str)));
    for (matrix, [sums, counts]) in parts {
        let (Some(sums), Some(counts)) = (sums, counts) else {
            let what = "one of its tensors `in_sum2` and `counts` is missing";
            return Err(Error::malformed(format!("inputs of `{matrix}`"), what));
        };
        // A matrix that no text reached is treated as absent.
        if counts.iter().any(|&c| c != 0.0) {
            insert(&mut all, matrix, Inputs { sums, counts })?;
        }
    }
    refuse_empty(all)
}

/// Parses the older format: the number of entries, then for each a name, a number of calls and its values.
/// The number of chunks and the data set may follow.
fn parse_dat(bytes: &[u8], name: &str) -> Result<Calibration> {
    let mut r = Reader { bytes };
    let entries = r.number("number of entries")?;
    if entries == 0 || entries > r.bytes.len() / MIN_ENTRY_BYTES {
        let what = "this is no importance matrix of llama.cpp, neither in GGUF nor in the older format";
        return Err(Error::malformed("header", what));
    }
    let mut found = Vec::new();
    for i in 0..entries {
        let field = format!("entry {i}");
        let matrix = r.text(&field)?;
        let calls = r.number(&field)?.max(1) as f32;
        let n = r.number(&field)?;
        let data = n.checked_mul(4).and_then(|n| r.take(n)).ok_or_else(|| {
            Error::malformed(
                format!("inputs of `{matrix}`"),
                "end past the end of the file; is the download complete?",
            )
        })?;
        // Values are means times calls. Times the tokens of a call, they are sums over tokens.
        let sums = values(data).into_iter().map(|v| v * CHUNK_TOKENS).collect();
        found.push((matrix, Inputs { sums, counts: vec![calls * CHUNK_TOKENS] }));
    }
    let (mut text, mut dataset) = (None, None);
    if !r.bytes.is_empty() {
        text = Some(format!("{} chunks", r.number("number of chunks")?));
        dataset = if r.bytes.is_empty() { None } else { Some(r.text("data set")?) };
        if !r.bytes.is_empty() {
            return Err(Error::malformed("end", format!("{} unexpected bytes follow", r.bytes.len())));
        }
    }
    let mut all = Calibration::new(describe(name, text, dataset.into_iter()));
    for (matrix, inputs) in found {
        insert(&mut all, matrix, inputs)?;
    }
    refuse_empty(all)
}

/// Adds a matrix under its canonical name, which is llama.cpp's. A fused gate-and-up matrix is added twice,
/// because both halves have the same inputs.
fn insert(all: &mut Calibration, matrix: &str, inputs: Inputs) -> Result<()> {
    match matrix.split_once(".ffn_gate_up_exps.") {
        Some((block, rest)) => {
            all.insert(format!("{block}.ffn_gate_exps.{rest}"), inputs.clone())?;
            all.insert(format!("{block}.ffn_up_exps.{rest}"), inputs)
        }
        None => all.insert(matrix, inputs),
    }
}

fn refuse_empty(all: Calibration) -> Result<Calibration> {
    if all.names().next().is_none() {
        return Err(Error::malformed("tensors", "this importance matrix has no energies"));
    }
    Ok(all)
}

fn describe<'a>(name: &str, text: Option<String>, datasets: impl Iterator<Item = &'a str>) -> String {
    let file = |path: &'a str| path.rsplit(['/', '\\']).next().unwrap_or(path);
    let datasets: Vec<&str> = datasets.map(file).filter(|d| !d.is_empty()).collect();
    let of = if datasets.is_empty() { String::new() } else { format!(" of {}", datasets.join(", ")) };
    let said = format!("{}{of}", text.unwrap_or_default());
    let said: String = said.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect();
    let (open, close) = if said.is_empty() { ("", "") } else { (" (", ")") };
    format!("importance matrix {name}{open}{}{close}", said.trim_start())
}

fn values(data: &[u8]) -> Vec<f32> {
    data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// The unread rest of a file in the older format.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(n)?;
        self.bytes = rest;
        Some(taken)
    }

    /// Reads a number and checks that it is not negative.
    fn number(&mut self, field: &str) -> Result<usize> {
        let four = self.take(4).ok_or_else(|| cut(field))?;
        let n = i32::from_le_bytes(four.try_into().expect("four bytes"));
        usize::try_from(n).map_err(|_| Error::malformed(field, format!("the number {n} is below zero")))
    }

    fn text(&mut self, field: &str) -> Result<&'a str> {
        let n = self.number(field)?;
        let bytes = self.take(n).ok_or_else(|| cut(field))?;
        std::str::from_utf8(bytes).map_err(|_| Error::malformed(field, "the name is not UTF-8"))
    }
}

fn cut(field: &str) -> Error {
    Error::malformed(field, "the file ends here; is the download complete?")
}
