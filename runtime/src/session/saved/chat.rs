//! Saves and loads conversations: a session, its messages, and the template's variables.

use super::super::chat::{Chat, Known, Overflow};
use super::super::engine::Engine;
use super::super::timeline::SessionOptions;
use super::UNNAMED;
use crate::error::{Error, Result};
use crate::template::Message;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::path::Path;

/// The part of a conversation that is saved besides its session.
#[derive(Serialize, Deserialize)]
struct Notes {
    messages: Vec<Message>,
    overflow: Overflow,
    variables: serde_json::Map<String, serde_json::Value>,
    known: Known,
}

impl Chat {
    /// Saves the conversation to a file: its session, its messages with the system prompt, and the template's
    /// variables. The clock is not saved. Otherwise like [`Session::save`](super::super::Session::save).
    ///
    /// # Errors
    /// As [`Session::save`](super::super::Session::save).
    pub fn save(&self, path: &Path) -> Result<u64> {
        self.session().save_with(path, &self.notes()?)
    }

    /// [`Chat::save`] to any writer.
    ///
    /// # Errors
    /// As [`Session::write_to`](super::super::Session::write_to).
    pub fn write_to(&self, to: &mut dyn Write) -> Result<u64> {
        self.session().write_with(to, Path::new(UNNAMED), &self.notes()?)
    }

    fn notes(&self) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Borrowed<'a> {
            messages: &'a [Message],
            overflow: Overflow,
            variables: &'a serde_json::Map<String, serde_json::Value>,
            known: &'a Known,
        }
        let notes = Borrowed {
            messages: self.messages(),
            overflow: self.overflow,
            variables: &self.context.variables,
            known: &self.known,
        };
        serde_json::to_vec(&notes).map_err(|e| Error::Invalid(format!("a conversation cannot be saved: {e}")))
    }
}

impl Engine {
    /// Loads a conversation that [`Chat::save`] wrote, to continue it.
    ///
    /// # Errors
    /// As [`Engine::load_session`]; `Malformed` for a session without a conversation; as [`Chat::new`].
    pub fn load_chat(&self, path: &Path, options: SessionOptions) -> Result<Chat> {
        let (session, notes) = self.load_with(path, options)?;
        self.chat(session, &notes).map_err(|e| e.at(path))
    }

    /// [`Engine::load_chat`] from any reader. Reads it to its end.
    ///
    /// # Errors
    /// As [`Engine::load_chat`].
    pub fn read_chat(&self, from: &mut dyn Read, options: SessionOptions) -> Result<Chat> {
        let (session, notes) = self.read_with(from, Path::new(UNNAMED), None, options)?;
        self.chat(session, &notes)
    }

    fn chat(&self, session: super::Session, notes: &[u8]) -> Result<Chat> {
        if notes.is_empty() {
            return Err(Error::malformed("notes", "this is a session without a conversation"));
        }
        let notes: Notes = serde_json::from_slice(notes)
            .map_err(|e| Error::malformed("notes", format!("this is no conversation: {e}")))?;
        let vocab = self.model().weights.vocab();
        if notes.known.tokens.iter().any(|&t| t as usize >= vocab) {
            return Err(Error::malformed("notes", "tokens outside the vocabulary"));
        }
        let mut chat = Chat::new(session, None, notes.overflow)?;
        chat.restore(notes.messages);
        chat.set_variables(notes.variables);
        chat.known = notes.known;
        Ok(chat)
    }
}
