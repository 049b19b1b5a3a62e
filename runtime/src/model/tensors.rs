//! Declares which tensors a part of a model has. Each is declared once, for loading, checking, converting and
//! walking.
//!
//! The macro [`part!`] defines a struct: each field stands beside the tensor that it holds. From this follow
//! what is loaded, what a converter checks and how it stores it, which tensors are known, and the walks over
//! weights in memory. The trait [`Tensors`] is the interface to a file of weights in any format.

use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::Metadata;
use crate::quant::{Level, Matrix};

/// A source of named tensors, under their canonical (GGUF) names.
pub trait Tensors {
    /// The file's metadata keys.
    fn metadata(&self) -> &Metadata;

    /// Rows of a matrix, or of each matrix in a stack; `None` if the file has no such tensor.
    fn rows(&self, name: &str) -> Option<usize>;

    /// A small tensor (norm, bias, router) as flat f32; `None` if the file has no such tensor.
    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>>;

    /// A matrix `[rows, cols]`; `None` if the file has no such tensor.
    fn matrix(&self, name: &str) -> Result<Option<Matrix>>;

    /// The experts of a layer, at `level` or at the highest stored level; `None` for a dense layer.
    fn experts(&self, layer: usize, level: Option<Level>) -> Result<Option<Vec<Expert>>>;
}

/// Whether a file must, may or must not have a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Always,
    Maybe,
    Never,
}

/// The declaration of one tensor.
#[derive(Clone, Debug)]
pub struct Declared {
    /// Canonical (GGUF) name.
    pub name: String,
    /// Allowed shapes, slowest dimension first. A dimension of 0 matches any number.
    shapes: Vec<Vec<usize>>,
    /// Whether the tensor is kept in f32: small tensors, and routers.
    pub stays_f32: bool,
    presence: Presence,
}

impl Declared {
    /// A vector `[len]` in f32.
    pub fn vector(name: String, len: usize) -> Declared {
        Declared { name, shapes: vec![vec![len]], stays_f32: true, presence: Presence::Always }
    }

    /// A matrix `[rows, cols]`.
    pub fn matrix(name: String, rows: usize, cols: usize) -> Declared {
        Declared { name, shapes: vec![vec![rows, cols]], stays_f32: false, presence: Presence::Always }
    }

    /// A matrix `[rows, cols]` in f32.
    pub fn small(name: String, rows: usize, cols: usize) -> Declared {
        Declared { stays_f32: true, ..Declared::matrix(name, rows, cols) }
    }

    /// A stack `[experts, rows, cols]`; these matrices come through `ExpertSource`.
    pub fn stack(name: String, experts: usize, rows: usize, cols: usize) -> Declared {
        Declared { shapes: vec![vec![experts, rows, cols]], ..Declared::matrix(name, rows, cols) }
    }

    /// Also allows a vector of this length.
    #[must_use]
    pub fn or(mut self, len: usize) -> Declared {
        self.shapes.push(vec![len]);
        self
    }

    /// Also allows a matrix with this many rows.
    #[must_use]
    pub fn or_rows(mut self, rows: usize) -> Declared {
        let cols = self.shapes[0][1];
        self.shapes.push(vec![rows, cols]);
        self
    }

    /// Makes the tensor optional.
    #[must_use]
    pub fn maybe(self) -> Declared {
        Declared { presence: Presence::Maybe, ..self }
    }

    /// Makes the tensor optional if `is`, and forbidden otherwise.
    #[must_use]
    pub fn maybe_if(self, is: bool) -> Declared {
        Declared { presence: if is { Presence::Maybe } else { Presence::Never }, ..self }
    }

    /// Makes the tensor required if `is`, and forbidden otherwise.
    #[must_use]
    pub fn only_if(self, is: bool) -> Declared {
        Declared { presence: if is { Presence::Always } else { Presence::Never }, ..self }
    }

    /// Whether a file may have the tensor.
    pub fn is_known(&self) -> bool {
        self.presence != Presence::Never
    }

    /// Compares the declaration with the shape in a file. `missing` ends the error text for a missing tensor.
    ///
    /// # Errors
    /// `Malformed`, naming the tensor, if it is missing or has another shape.
    pub fn check(&self, found: Option<&[usize]>, missing: &str) -> Result<()> {
        let wrong = |reason: String| Err(Error::malformed(format!("tensor `{}`", self.name), reason));
        match found {
            None if self.presence == Presence::Always => {
                wrong(format!("the file has no such tensor; {missing}"))
            }
            None => Ok(()),
            Some(found) => {
                // Some writers store a matrix of one row as a vector.
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

    /// Like [`Declared::check`] for flat values: compares only their number.
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

/// The likely causes of a missing tensor, for error texts.
const MISSING: &str = "was it cut short or made for another model?";

/// One item of a walk over a part.
pub enum Met<'a> {
    /// A new operation begins: the matrices up to the next such item are multiplied together.
    Operation,
    /// A matrix.
    Matrix(&'a Matrix),
    /// A vector.
    Vector(&'a [f32]),
}

/// A field of a part: a tensor, or another part.
pub trait Held: Sized {
    /// What its declaration depends on.
    type Of<'o>;

    /// Appends the declarations of its tensors.
    fn declare(of: Self::Of<'_>, to: &mut Vec<Declared>);

    /// Reads it, and checks the shapes.
    ///
    /// # Errors
    /// Errors of the file. `Malformed` if a tensor is missing or has another shape.
    fn read(from: &dyn Tensors, of: Self::Of<'_>) -> Result<Self>;

    /// Calls `met` with every operation, matrix and vector, in order.
    fn each<'a>(&'a self, met: &mut dyn FnMut(Met<'a>));

    /// Calls `met` with every matrix, in order.
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

/// Defines a part: its fields, and the tensor or part that each holds. `first` starts a new operation; an
/// `also` matrix is multiplied in the same operation as the one before.
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
