//! Bytes on disk: GGUF, safetensors and Hugging Face configurations, and the directory of a Dollop file.
//!
//! Pure parsing and writing. Nothing here opens files, and nothing here trusts what it reads: every count is bounded
//! by the bytes that are really there before memory is taken for it.

pub mod dollop;
pub mod ggml;
pub mod gguf;
pub mod hf;
mod json;
pub mod safetensors;
pub mod value;
pub mod write;

pub use ggml::GgmlType;
pub use gguf::{Gguf, TensorInfo};
pub use value::{Array, Metadata, Value, Width};
pub use write::{GgufWriter, TensorDecl};
