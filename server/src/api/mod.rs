//! The APIs. Each file parses its requests into the common request type and formats its responses.

pub mod about;
pub mod chat;
pub mod completions;
pub mod messages;
pub mod ollama;
pub mod responses;
pub mod text;
