//! Writes GGUF files: header and directory first, then tensor data in any order.
//!
//! All sizes are declared first. So a conversion can stream, and holds only the directory in memory.

use super::ggml::GgmlType;
use super::value::{Array, Metadata, Value, Width};
use std::io::{self, Seek, SeekFrom, Write};

/// The declaration of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorDecl {
    /// Unique name.
    pub name: String,
    /// Sizes, fastest-varying first.
    pub shape: Vec<u64>,
    /// Encoding.
    pub ty: GgmlType,
}

impl TensorDecl {
    /// Length of the tensor's data.
    ///
    /// # Panics
    /// If [`GgufWriter::new`] would refuse the shape.
    pub fn n_bytes(&self) -> u64 {
        self.checked_bytes().expect("the shape is whole blocks and fits a file")
    }

    fn checked_bytes(&self) -> Option<u64> {
        let block = self.ty.block_len() as u64;
        let whole = self.shape.first().copied().unwrap_or(1).is_multiple_of(block);
        let elements = self.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).filter(|_| whole)?;
        (elements / block).checked_mul(self.ty.block_bytes() as u64)
    }
}

/// A GGUF file being written.
pub struct GgufWriter<W> {
    out: W,
    /// Offset, length, and bytes written so far, per tensor.
    places: Vec<(u64, u64, u64)>,
    end: u64,
    /// Current position of `out`. Seeking only when needed keeps a buffered `out` from flushing.
    at: u64,
}

impl<W: Write + Seek> GgufWriter<W> {
    /// Writes the header, the metadata (with `general.alignment`) and the directory.
    ///
    /// # Errors
    /// Those of `out`. `InvalidInput` if the alignment is not a power of two, or sizes are too large for a
    /// file.
    pub fn new(mut out: W, metadata: &Metadata, tensors: &[TensorDecl], alignment: u64) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        if !alignment.is_power_of_two() {
            return Err(invalid(format!("alignment {alignment} is no power of two")));
        }
        let mut metadata = metadata.clone();
        metadata.insert("general.alignment", u32::try_from(alignment).map_err(io::Error::other)?);
        let mut head = Vec::new();
        head.extend_from_slice(b"GGUF");
        head.extend_from_slice(&3u32.to_le_bytes());
        head.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
        head.extend_from_slice(&(metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            text(&mut head, key);
            write_value(&mut head, value);
        }
        let mut places = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for t in tensors {
            text(&mut head, &t.name);
            head.extend_from_slice(&(t.shape.len() as u32).to_le_bytes());
            t.shape.iter().for_each(|d| head.extend_from_slice(&d.to_le_bytes()));
            head.extend_from_slice(&t.ty.id().to_le_bytes());
            head.extend_from_slice(&offset.to_le_bytes());
            let absurd = || {
                invalid(format!(
                    "tensor `{}`: the shape {:?} is not whole blocks of {}, or too large",
                    t.name, t.shape, t.ty
                ))
            };
            let n_bytes = t.checked_bytes().ok_or_else(absurd)?;
            places.push((offset, n_bytes, 0));
            offset = offset
                .checked_add(n_bytes)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .ok_or_else(absurd)?;
        }
        head.resize(head.len().next_multiple_of(alignment as usize), 0);
        let start = head.len() as u64;
        places.iter_mut().for_each(|p| p.0 += start);
        out.write_all(&head)?;
        Ok(GgufWriter { out, places, end: start + offset, at: start })
    }

    /// Writes `bytes` into tensor `index`, from the tensor's byte `at`.
    ///
    /// # Errors
    /// Those of the file.
    ///
    /// # Panics
    /// If the bytes do not fit the tensor.
    pub fn write(&mut self, index: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        let (offset, len, written) = &mut self.places[index];
        assert!(at + bytes.len() as u64 <= *len, "tensor {index}: {} bytes at {at} of {len}", bytes.len());
        *written += bytes.len() as u64;
        let from = *offset + at;
        if self.at != from {
            self.out.seek(SeekFrom::Start(from))?;
        }
        // If the write fails, the position is unknown, so the next write must seek.
        self.at = u64::MAX;
        self.out.write_all(bytes)?;
        self.at = from + bytes.len() as u64;
        Ok(())
    }

    /// Length of the complete file.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The underlying writer.
    pub fn out(&self) -> &W {
        &self.out
    }

    /// Counts tensor `index` as written, because an earlier writer with the same header wrote it to this
    /// file.
    pub fn resume(&mut self, index: usize) {
        let (_, len, written) = &mut self.places[index];
        *written = *len;
    }

    /// Like [`GgufWriter::write`], over bytes that were already written.
    ///
    /// # Errors
    /// Those of the file.
    ///
    /// # Panics
    /// Those of [`GgufWriter::write`], and if fewer bytes were written before.
    pub fn rewrite(&mut self, index: usize, at: u64, bytes: &[u8]) -> io::Result<()> {
        let written = &mut self.places[index].2;
        *written = written.checked_sub(bytes.len() as u64).expect("these bytes were written before");
        self.write(index, at, bytes)
    }

    /// Pads the file to its full length and returns the writer.
    ///
    /// # Errors
    /// Those of the file.
    ///
    /// # Panics
    /// If a declared tensor is incomplete.
    pub fn finish(mut self) -> io::Result<W> {
        for (i, (_, len, written)) in self.places.iter().enumerate() {
            assert_eq!(len, written, "tensor {i} was not written whole");
        }
        let here = self.out.seek(SeekFrom::End(0))?;
        self.out.write_all(&vec![0; self.end.saturating_sub(here) as usize])?;
        self.out.flush()?;
        Ok(self.out)
    }
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u64).to_le_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn write_value(out: &mut Vec<u8>, value: &Value) {
    let type_id: u32 = match value {
        Value::Unsigned(_, Width::W8) => 0,
        Value::Signed(_, Width::W8) => 1,
        Value::Unsigned(_, Width::W16) => 2,
        Value::Signed(_, Width::W16) => 3,
        Value::Unsigned(_, Width::W32) => 4,
        Value::Signed(_, Width::W32) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::Unsigned(_, Width::W64) => 10,
        Value::Signed(_, Width::W64) => 11,
        Value::F64(_) => 12,
    };
    out.extend_from_slice(&type_id.to_le_bytes());
    match value {
        Value::Unsigned(n, w) => out.extend_from_slice(&n.to_le_bytes()[..w.bytes()]),
        Value::Signed(n, w) => out.extend_from_slice(&n.to_le_bytes()[..w.bytes()]),
        Value::F32(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::F64(x) => out.extend_from_slice(&x.to_le_bytes()),
        Value::Bool(b) => out.push(u8::from(*b)),
        Value::String(s) => text(out, s),
        Value::Array(array) => write_array(out, array),
    }
}

fn write_array(out: &mut Vec<u8>, array: &Array) {
    let mut head = |ty: u32, n: usize| {
        out.extend_from_slice(&ty.to_le_bytes());
        out.extend_from_slice(&(n as u64).to_le_bytes());
    };
    match array {
        Array::Unsigned(v) if v.iter().all(|&n| n <= u32::MAX.into()) => {
            head(4, v.len());
            v.iter().for_each(|&n| out.extend_from_slice(&(n as u32).to_le_bytes()));
        }
        Array::Unsigned(v) => {
            head(10, v.len());
            v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        }
        Array::Signed(v) if v.iter().all(|&n| i32::try_from(n).is_ok()) => {
            head(5, v.len());
            v.iter().for_each(|&n| out.extend_from_slice(&(n as i32).to_le_bytes()));
        }
        Array::Signed(v) => {
            head(11, v.len());
            v.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
        }
        Array::F32(v) => {
            head(6, v.len());
            v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
        }
        Array::Bool(v) => {
            head(7, v.len());
            out.extend(v.iter().map(|&b| u8::from(b)));
        }
        Array::String(v) => {
            head(8, v.len());
            v.iter().for_each(|s| text(out, s));
        }
    }
}

impl Width {
    fn bytes(self) -> usize {
        match self {
            Width::W8 => 1,
            Width::W16 => 2,
            Width::W32 => 4,
            Width::W64 => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Gguf;

    fn sample(alignment: u64) -> Vec<u8> {
        let mut meta = Metadata::new();
        meta.insert("general.architecture", "llama");
        meta.insert("a.u8", Value::Unsigned(200, Width::W8));
        meta.insert("a.i16", Value::Signed(-3, Width::W16));
        meta.insert("a.f64", Value::F64(0.5));
        meta.insert("a.bools", vec![true, false]);
        meta.insert("a.big", vec![1u64 << 40]);
        meta.insert("a.neg", Value::Array(Array::Signed(vec![-1, 5])));
        meta.insert("a.f32s", Value::Array(Array::F32(vec![1.5, -2.0])));
        meta.insert("a.texts", vec!["é".to_string(), String::new()]);
        let tensors = [
            TensorDecl { name: "x".into(), shape: vec![3], ty: GgmlType::F32 },
            TensorDecl { name: "y".into(), shape: vec![32, 2], ty: GgmlType::Q8_0 },
        ];
        let mut w = GgufWriter::new(io::Cursor::new(Vec::new()), &meta, &tensors, alignment).unwrap();
        w.write(1, 34, &[7; 34]).unwrap();
        w.write(0, 0, &[1; 12]).unwrap();
        w.write(1, 0, &[9; 34]).unwrap();
        w.finish().unwrap().into_inner()
    }

    #[test]
    fn what_is_written_is_read_back() {
        for alignment in [8, 32, 16384] {
            let bytes = sample(alignment);
            let g = Gguf::parse(&bytes).unwrap();
            assert_eq!((g.version, g.alignment, g.data_start % alignment), (3, alignment, 0));
            assert_eq!(g.metadata.u64("a.u8").unwrap(), Some(200));
            assert_eq!(g.metadata.get("a.i16"), Some(&Value::Signed(-3, Width::W16)));
            assert_eq!(g.metadata.f32("a.f64").unwrap(), Some(0.5));
            assert_eq!(g.metadata.bools("a.bools").unwrap(), Some(&[true, false][..]));
            assert_eq!(g.metadata.u64s("a.big").unwrap(), Some(vec![1 << 40]));
            assert_eq!(g.metadata.i64s("a.neg").unwrap(), Some(vec![-1, 5]));
            assert_eq!(g.metadata.f32s("a.f32s").unwrap(), Some(&[1.5, -2.0][..]));
            assert_eq!(g.metadata.strings("a.texts").unwrap().unwrap(), ["é", ""]);
            let y = g.tensor("y").unwrap();
            let data = &bytes[y.offset as usize..][..y.n_bytes as usize];
            assert_eq!((data[0], data[34], y.shape.as_slice()), (9, 7, &[32, 2][..]));
        }
    }

    #[test]
    fn declarations_that_no_reader_takes_are_refused() {
        let decl =
            |shape: &[u64]| [TensorDecl { name: "x".into(), shape: shape.to_vec(), ty: GgmlType::Q8_0 }];
        let new = |tensors: &[TensorDecl], alignment| {
            GgufWriter::new(io::Cursor::new(Vec::new()), &Metadata::new(), tensors, alignment).err()
        };
        for shape in [&[33][..], &[16, 2], &[32, u64::MAX], &[1 << 62, 8]] {
            assert!(new(&decl(shape), 32).is_some_and(|e| e.to_string().contains("`x`")), "{shape:?}");
        }
        assert!(new(&decl(&[32]), 0).is_some() && new(&decl(&[32]), 24).is_some());
        assert!(new(&decl(&[32]), 32).is_none());
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = sample(32);
        let g = Gguf::parse(&bytes).unwrap();
        let end = g.tensors.iter().map(|t| t.offset + t.n_bytes).max().unwrap() as usize;
        for n in 0..end {
            assert!(Gguf::parse(&bytes[..n]).is_err(), "{n} bytes of {end}");
        }
    }
}
