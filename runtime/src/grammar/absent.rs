//! What `guide.rs` has, for a build without grammars: every constraint is an error.

// Said in `guide.rs`; nothing here can be called.
#![allow(missing_docs)]

use super::Constraint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use std::convert::Infallible;

/// A vocabulary, which is not needed.
pub struct Words;

impl Words {
    /// # Errors
    /// Always.
    pub fn new(_: &Tokenizer, _: usize, _: &[u32]) -> Result<Words> {
        Err(Error::unsupported("this build has no constraints (feature `grammar`)"))
    }

    /// # Errors
    /// None: there are no words.
    pub fn guide(&self, _: &Constraint) -> Result<Guide> {
        Words::new_guide()
    }

    fn new_guide() -> Result<Guide> {
        Err(Error::unsupported("this build has no constraints (feature `grammar`)"))
    }
}

/// There is none.
pub struct Guide(Infallible);

/// There is none.
pub struct Mask(Infallible);

impl Guide {
    pub fn is_over(&self) -> bool {
        match self.0 {}
    }

    pub fn forced(&mut self) -> Vec<u32> {
        match self.0 {}
    }

    pub fn is_hurried(&self) -> bool {
        match self.0 {}
    }

    pub fn mask(&mut self) -> Result<Mask> {
        match self.0 {}
    }

    pub fn take(&mut self, _: u32) -> Result<()> {
        match self.0 {}
    }
}

impl Mask {
    pub fn apply(&self, _: &mut [f32]) {
        match self.0 {}
    }

    pub fn first(&self) -> Option<u32> {
        match self.0 {}
    }

    pub fn allows(&self, _: u32) -> bool {
        match self.0 {}
    }
}
