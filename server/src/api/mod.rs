//! The APIs: each file reads its own requests into the one kind that there is, and says its own answers.

pub mod about;
pub mod chat;
pub mod completions;
pub mod messages;
pub mod ollama;
pub mod responses;
pub mod text;
