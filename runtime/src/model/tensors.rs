//! How a part of a model says which tensors it has: once, for everything that walks over them.
//!
//! [`part!`] makes a struct of a part: a field and, beside it, the tensor that it holds. From that follow what is loaded, what
//! a converter checks and how it stores it, which tensors are known at all, and the walks over what is in memory. [`Tensors`]
//! is what a file of weights can do for the model, whatever its format.

use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::Metadata;
use crate::quant::{Level, Matrix};

/// A source of named tensors, under their canonical (GGUF) names.
pub trait Tensors {
    /// The file's keys.
    fn metadata(&self) -> &Metadata;

    /// Rows of a matrix, or of each of a stack; `None` where the file has none of this name.
    fn rows(&self, name: &str) -> Option<usize>;

    /// A small tensor (norm, bias, router) as flat f32; `None` where the file has none of this name.
    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>>;

    /// A matrix `[rows, cols]`.
    fn matrix(&self, name: &str) -> Result<Option<Matrix>>;

    /// The experts of a layer, read at `level` or else at the highest level stored; `None` where the layer has none.
    fn experts(&self, layer: usize, level: Option<Level>) -> Result<Option<Vec<Expert>>>;
}

/// Whether a file has a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Always,
    Maybe,
    Never,
}

/// One tensor that a part has.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Its canonical name.
    pub name: String,
    /// Its shape, slowest first; one of several. 0 is any number.
    shapes: Vec<Vec<usize>>,
    /// Whether it stays f32: what is small, and what chooses.
    pub stays_f32: bool,
    presence: Presence,
}

impl Declared {
    /// `[len]`, in f32.
    pub fn vector(name: String, len: usize) -> Declared {
        Declared { name, shapes: vec![vec![len]], stays_f32: true, presence: Presence::Always }
    }

    /// `[rows, cols]`.
    pub fn matrix(name: String, rows: usize, cols: usize) -> Declared {
        Declared { name, shapes: vec![vec![rows, cols]], stays_f32: false, presence: Presence::Always }
    }

    /// `[rows, cols]`, in f32.
    pub fn small(name: String, rows: usize, cols: usize) -> Declared {
        Declared { stays_f32: true, ..Declared::matrix(name, rows, cols) }
    }

    /// `[experts, rows, cols]`: matrices that come through `ExpertSource`.
    pub fn stack(name: String, experts: usize, rows: usize, cols: usize) -> Declared {
        Declared { shapes: vec![vec![experts, rows, cols]], ..Declared::matrix(name, rows, cols) }
    }

    /// Or a vector of this length.
    #[must_use]
    pub fn or(mut self, len: usize) -> Declared {
        self.shapes.push(vec![len]);
        self
    }

    /// A file need not have it.
    #[must_use]
    pub fn maybe(self) -> Declared {
        Declared { presence: Presence::Maybe, ..self }
    }

    /// A file may have it where `is`, and never otherwise.
    #[must_use]
    pub fn maybe_if(self, is: bool) -> Declared {
        Declared { presence: if is { Presence::Maybe } else { Presence::Never }, ..self }
    }

    /// A file has it where `is`, and never otherwise.
    #[must_use]
    pub fn only_if(self, is: bool) -> Declared {
        Declared { presence: if is { Presence::Always } else { Presence::Never }, ..self }
    }

    /// Whether a file may have it.
    pub fn is_known(&self) -> bool {
        self.presence != Presence::Never
    }

    /// Compares with what a file has. `missing` says what to do where it has nothing.
    ///
    /// # Errors
    /// `Malformed`, naming the tensor.
    pub fn check(&self, found: Option<&[usize]>, missing: &str) -> Result<()> {
        let wrong = |reason: String| Err(Error::malformed(format!("tensor `{}`", self.name), reason));
        match found {
            None if self.presence == Presence::Always => {
                wrong(format!("the file has no such tensor; {missing}"))
            }
            None => Ok(()),
            Some(found) => {
                // A matrix of one row is stored as a vector by some writers.
                let sides =
                    |shape: &[usize]| shape.iter().copied().skip_while(|&n| n == 1).collect::<Vec<_>>();
                let found = sides(found);
                let is = |want: &Vec<usize>| {
                    let want = sides(want);
                    want.len() == found.len() && want.iter().zip(&found).all(|(w, f)| *w == 0 || w == f)
                };
                if self.shapes.iter().any(is) {
                    return Ok(());
                }
                let text = |shape: &[usize]| shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
                let want = self.shapes.iter().map(|s| text(s)).collect::<Vec<_>>().join(" or ");
                wrong(format!("has shape {}; the config asks for {want}", text(&found)))
            }
        }
    }

    /// [`Declared::check`] of a flat run of values: their number alone is compared.
    fn check_len(&self, len: usize) -> Result<()> {
        match self.shapes.iter().any(|s| s.iter().product::<usize>() == len) {
            true => Ok(()),
            false => self.check(Some(&[len]), MISSING),
        }
    }

    fn missing(&self) -> Error {
        self.check(None, MISSING).err().unwrap_or_else(|| {
            Error::malformed(
                format!("tensor `{}`", self.name),
                format!("the file has no such tensor; {MISSING}"),
            )
        })
    }
}

/// What may have happened to a file that lacks a tensor.
const MISSING: &str = "was it cut short or made for another model?";

/// What a walk meets.
pub enum Met<'a> {
    /// The matrices up to the next of these are multiplied by one operation.
    Operation,
    /// A matrix.
    Matrix(&'a Matrix),
    /// A vector.
    Vector(&'a [f32]),
}

/// What a part holds: a tensor, or another part.
pub trait Held: Sized {
    /// What it is read by.
    type Of<'o>;

    /// Appends its tensors.
    fn declare(of: Self::Of<'_>, to: &mut Vec<Declared>);

    /// Reads it, its shape checked.
    ///
    /// # Errors
    /// Those of the file; `Malformed` where a tensor is missing or of another shape.
    fn read(from: &dyn Tensors, of: Self::Of<'_>) -> Result<Self>;

    /// Everything that is held.
    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>));

    /// Every matrix.
    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix));
}

impl Held for Option<Vec<f32>> {
    type Of<'o> = Declared;

    fn declare(of: Declared, to: &mut Vec<Declared>) {
        to.push(of);
    }

    fn read(from: &dyn Tensors, of: Declared) -> Result<Self> {
        if of.presence == Presence::Never {
            return Ok(None);
        }
        let vector = from.vector(&of.name)?;
        match &vector {
            Some(vector) => of.check_len(vector.len())?,
            None => of.check(None, MISSING)?,
        }
        Ok(vector)
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.iter().for_each(|v| met(Met::Vector(v)));
    }

    fn each_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Matrix)) {}
}

impl Held for Option<Matrix> {
    type Of<'o> = Declared;

    fn declare(of: Declared, to: &mut Vec<Declared>) {
        to.push(of);
    }

    fn read(from: &dyn Tensors, of: Declared) -> Result<Self> {
        if of.stays_f32 {
            let [rows, cols] = of.shapes[0][..] else { unreachable!("a matrix has two sides") };
            let data = Option::<Vec<f32>>::read(from, of)?;
            return Ok(data.map(|data| Matrix::F32 { rows, cols, data: data.into() }));
        }
        if of.presence == Presence::Never {
            return Ok(None);
        }
        let matrix = from.matrix(&of.name)?;
        of.check(
            matrix.as_ref().map(|m| [m.rows(), m.cols()]).as_ref().map(<[usize; 2]>::as_slice),
            MISSING,
        )?;
        Ok(matrix)
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        self.iter().for_each(|m| met(Met::Matrix(m)));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        self.iter_mut().for_each(met);
    }
}

impl Held for Vec<f32> {
    type Of<'o> = Declared;

    fn declare(of: Declared, to: &mut Vec<Declared>) {
        to.push(of);
    }

    fn read(from: &dyn Tensors, of: Declared) -> Result<Self> {
        Option::read(from, of.clone())?.ok_or_else(|| of.missing())
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        met(Met::Vector(self));
    }

    fn each_mut<'a>(&'a mut self, _: &mut dyn FnMut(&'a mut Matrix)) {}
}

impl Held for Matrix {
    type Of<'o> = Declared;

    fn declare(of: Declared, to: &mut Vec<Declared>) {
        to.push(of);
    }

    fn read(from: &dyn Tensors, of: Declared) -> Result<Self> {
        Option::read(from, of.clone())?.ok_or_else(|| of.missing())
    }

    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>)) {
        met(Met::Matrix(self));
    }

    fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
        met(self);
    }
}

/// A part: its fields, and the tensor or part of each. `first` begins an operation; `also` is multiplied by the same.
macro_rules! part {
    ($(#[$doc:meta])* $part:ident($arg:ident: $of:ident) {
        $( $(#[$field_doc:meta])* $order:ident $field:ident: $held:ty = $declared:expr; )*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $part {
            $( $(#[$field_doc])* pub $field: $held, )*
        }

        impl $crate::model::tensors::Held for $part {
            type Of<'o> = $of<'o>;

            fn declare($arg: $of<'_>, to: &mut Vec<$crate::model::tensors::Declared>) {
                $( <$held as $crate::model::tensors::Held>::declare($declared, to); )*
            }

            fn read(from: &dyn $crate::model::tensors::Tensors, $arg: $of<'_>) -> $crate::error::Result<Self> {
                Ok($part { $( $field: <$held as $crate::model::tensors::Held>::read(from, $declared)?, )* })
            }

            fn each<'a>(&'a self, met: &mut dyn FnMut($crate::model::tensors::Met<'a>)) {
                $(
                    if stringify!($order) == "first" {
                        met($crate::model::tensors::Met::Operation);
                    }
                    self.$field.each(met);
                )*
            }

            fn each_mut<'a>(&'a mut self, met: &mut dyn FnMut(&'a mut Matrix)) {
                $( self.$field.each_mut(met); )*
            }
        }
    };
}
pub(super) use part;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_compared_side_by_side() {
        let m = Declared::matrix("m".into(), 3, 4);
        assert!(m.check(Some(&[3, 4]), "").is_ok() && m.check(Some(&[1, 3, 4]), "").is_ok());
        for wrong in [&[4, 3][..], &[12], &[2, 3, 4], &[]] {
            assert!(m.check(Some(wrong), "").is_err(), "{wrong:?}");
        }
        assert!(m.check(None, "").is_err() && m.clone().maybe().check(None, "").is_ok());
        let gate = Declared::small("g".into(), 1, 4);
        assert!(gate.check(Some(&[4]), "").is_ok());
        let text = Declared::vector("v".into(), 2).or(8).check(Some(&[5]), "").unwrap_err().to_string();
        assert!(text.contains("has shape 5; the config asks for 2 or 8"), "{text}");
        assert!(!m.only_if(false).is_known());
    }
}
