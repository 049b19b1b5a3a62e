//! The unquantized reference: serves the tensors of a foreign model in f32.

use crate::convert::source::Source;
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::Metadata;
use crate::format::dollop::{PARTS, part_name};
use crate::model::Tensors;
use crate::quant::{Level, Matrix};

/// Reads a whole [`Source`] as f32. It takes four bytes per weight, so it is only for measurements.
pub(super) struct Reference(pub(super) Source);

impl Reference {
    fn read(&self, name: &str, expert: usize, rows: usize, cols: usize) -> Result<Matrix> {
        let mut data = vec![0.0; rows * cols];
        self.0.read_rows(name, expert, 0..rows, &mut data)?;
        Ok(Matrix::F32 { rows, cols, data: data.into() })
    }
}

impl Tensors for Reference {
    fn metadata(&self) -> &Metadata {
        self.0.metadata()
    }

    fn rows(&self, name: &str) -> Option<usize> {
        self.0.rows(name)
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(shape) = self.0.shape(name) else { return Ok(None) };
        let rows = if shape.len() == 1 { 1 } else { shape[0] };
        let mut out = vec![0.0; shape.iter().product()];
        self.0.read_rows(name, 0, 0..rows, &mut out)?;
        Ok(Some(out))
    }

    fn matrix(&self, name: &str) -> Result<Option<Matrix>> {
        match self.0.shape(name) {
            None => Ok(None),
            Some(&[rows, cols]) => self.read(name, 0, rows, cols).map(Some),
            Some(shape) => Err(Error::malformed(
                format!("tensor `{name}`"),
                format!("shape {shape:?} is not that of a matrix"),
            )),
        }
    }

    fn experts(&self, layer: usize, _level: Option<Level>) -> Result<Option<Vec<Expert>>> {
        let names = PARTS.map(|part| part_name(layer, part));
        let shapes = names.each_ref().map(|n| self.0.shape(n));
        if shapes.iter().all(Option::is_none) {
            return Ok(None);
        }
        let gated = shapes[0].is_some();
        let part = |m: usize, e: usize| match shapes[m] {
            Some(&[n, rows, cols]) if e < n => self.read(&names[m], e, rows, cols),
            _ => Err(Error::malformed(format!("tensor `{}`", names[m]), "is missing or no stack of experts")),
        };
        let count = shapes[1].map_or(0, |s| s[0]);
        (0..count)
            .map(|e| {
                let gate = gated.then(|| part(0, e)).transpose()?;
                Ok(Expert { gate, up: part(1, e)?, down: part(2, e)?, place: None })
            })
            .collect::<Result<_>>()
            .map(Some)
    }
}
