//! File formats: GGUF, safetensors, Hugging Face configurations, and the directory of a Dollop file.
//!
//! Pure parsing and writing; nothing here opens files. Input is untrusted: every count is checked against the
//! available bytes before memory is allocated.

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
