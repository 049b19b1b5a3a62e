//! The error type of the library. Every module may import it; it imports none.
//!
//! Parsers do not know where their bytes came from: they build errors with [`Error::malformed`], and the edge that
//! opened the file adds its name with [`Error::at`].

use std::path::{Path, PathBuf};

/// What can go wrong. Each variant calls for one kind of remedy. The text names the file, the field and the
/// cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system reported an error: no such file, no permission, no space, a failed read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file's bytes contradict themselves or its format: truncated, corrupted or hostile.
    #[error("{}{field}: {reason}", prefix(path))]
    Malformed {
        /// The file, if it is known.
        path: Option<PathBuf>,
        /// The key, tensor or table.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A well-formed input that this version cannot run (an architecture, a tensor type, a tokenizer).
    #[error("{}{what}", prefix(path))]
    Unsupported {
        /// The file, if it is known.
        path: Option<PathBuf>,
        /// What is not supported, and what is instead.
        what: String,
    },
    /// An option or argument is invalid; the text says what is valid.
    #[error("{0}")]
    Invalid(String),
    /// A chat template failed to parse or to render.
    #[error("chat template: {0}")]
    Template(String),
    /// The prompt or the conversation does not fit the context.
    #[error(
        "the context is full: {needed} tokens are needed and {limit} fit; shorten the prompt, start a new conversation, or open the session with a larger context"
    )]
    ContextFull {
        /// Tokens that the call needs in the KV cache.
        needed: usize,
        /// Tokens that the KV cache holds.
        limit: usize,
    },
    /// The memory budget is too small for this model.
    #[error(
        "a memory budget of {} is too small: {} are needed at least{hint}", mega(*budget), mega(*smallest)
    )]
    Budget {
        /// The given budget in bytes.
        budget: u64,
        /// The smallest budget that works, in bytes.
        smallest: u64,
        /// A way to need less, for people. Begins with punctuation, or is empty.
        hint: String,
    },
    /// The model computes values that are not finite, so there is no next token.
    #[error(
        "the model's values are not finite numbers, first {place}: the file is damaged, or was badly merged or converted (`dollop inspect --verify` compares a Dollop file with its checksums)"
    )]
    NotFinite {
        /// Where they first appear: a layer (counted from 0) and a token's position.
        place: String,
    },
    /// The caller cancelled a long operation. It has no partial result.
    #[error("cancelled")]
    Cancelled,
    /// The GPU is missing, was lost, is out of memory, or refused an operation. Its memory is lost. An open
    /// engine continues on the CPU by itself; a model that failed to open can be opened on the CPU.
    #[error("GPU: {0}")]
    Device(String),
}

/// The result type of the library.
pub type Result<T, E = Error> = std::result::Result<T, E>;

fn mega(bytes: u64) -> String {
    // Rounded up: a budget of this number must be enough.
    format!("{}M", bytes.div_ceil(1 << 20))
}

fn prefix(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |p| format!("{}: ", p.display()))
}

impl Error {
    /// An error about bytes whose file is not known yet; [`Error::at`] adds it.
    #[doc(hidden)]
    pub fn malformed(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Malformed { path: None, field: field.into(), reason: reason.into() }
    }

    /// An error about a valid input that this version cannot run; `what` lists what it can.
    #[doc(hidden)]
    pub fn unsupported(what: impl Into<String>) -> Self {
        Error::Unsupported { path: None, what: what.into() }
    }

    /// A system error about `path`.
    #[doc(hidden)]
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Error::Io { path: path.into(), source }
    }

    /// Adds the file that the bytes came from, unless a deeper call already did.
    #[must_use]
    #[doc(hidden)]
    pub fn at(mut self, file: impl AsRef<Path>) -> Self {
        if let Error::Malformed { path, .. } | Error::Unsupported { path, .. } = &mut self {
            path.get_or_insert_with(|| file.as_ref().to_path_buf());
        }
        self
    }
}
