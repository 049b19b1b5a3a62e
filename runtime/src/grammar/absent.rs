//! Replaces `guide.rs` in builds without the feature `grammar`: every constraint is an error.

// Documented in `guide.rs`. No value of these types can exist, so the methods are never called.
#![allow(missing_docs)]

use super::Constraint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use std::convert::Infallible;

/// The vocabulary; not needed here.
pub struct Words;

impl Words {
    /// # Errors
    /// `Unsupported`, always.
    pub fn new(_: &Tokenizer, _: usize, _: &[u32]) -> Result<Words> {
        Err(Error::unsupported("this build cannot constrain answers; build it with the feature `grammar`"))
    }

    /// # Errors
    /// `Unsupported`, always.
    pub fn guide(&self, _: &Constraint) -> Result<Guide> {
        Words::new_guide()
    }

    fn new_guide() -> Result<Guide> {
        Err(Error::unsupported("this build cannot constrain answers; build it with the feature `grammar`"))
    }
}

/// Never exists.
pub struct Guide(Infallible);

/// Never exists.
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
