//! The embedding: either a matrix in memory, or rows that are read from storage when a token needs them.
//!
//! A token needs one row. If the output head is a separate matrix, the rest of the embedding is never used,
//! and streamed models use that memory better as expert cache (`benches/records/streaming.md`). The trait
//! [`Rows`] does the reading, because this module may not know storage. Both variants give the same numbers.

use crate::experts::Rows;
use crate::quant::Matrix;
use std::fmt;
use std::sync::Arc;

/// The embedding, `[vocab, d]`.
#[derive(Clone)]
pub enum Embedding {
    /// The whole matrix, in memory or mapped.
    Held(Matrix),
    /// Rows are read from storage one by one.
    Read(Arc<dyn Rows>),
}

impl Embedding {
    /// The matrix, if it is in memory.
    pub fn held(&self) -> Option<&Matrix> {
        match self {
            Embedding::Held(matrix) => Some(matrix),
            Embedding::Read(_) => None,
        }
    }

    /// Vocabulary size.
    pub fn rows(&self) -> usize {
        match self {
            Embedding::Held(matrix) => matrix.rows(),
            Embedding::Read(rows) => rows.count(),
        }
    }
}

impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Embedding::Held(matrix) => f.debug_tuple("Held").field(matrix).finish(),
            Embedding::Read(rows) => write!(f, "Read({} rows)", rows.count()),
        }
    }
}
