//! The embedding: a matrix like others, or rows that come when tokens ask for them.
//!
//! A token needs one row of it. Where the output head is another matrix, the rest serves nobody, and where experts are streamed
//! memory is worth more as their cache (`benches/records/streaming.md`). Who reads is behind the port [`Rows`], for this room
//! knows no storage. Rows are the same numbers either way.

use crate::experts::Rows;
use crate::quant::Matrix;
use std::fmt;
use std::sync::Arc;

/// `[vocab, d]`.
#[derive(Clone)]
pub enum Embedding {
    /// All of it, in memory or mapped.
    Held(Matrix),
    /// Nowhere in memory.
    Read(Arc<dyn Rows>),
}

impl Embedding {
    /// The matrix, where there is one.
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
