//! Passes the events of a generation to the caller's callback.

use super::event::Event;
use crate::error::{Error, Result};
use std::ops::ControlFlow;

/// Wraps a callback, which may end the generation.
pub(super) struct Listener<'a> {
    on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>,
    /// Called between the layers of a prompt.
    between: Option<&'a mut dyn FnMut()>,
    stopped: bool,
}

impl<'a> Listener<'a> {
    pub(super) fn new(on_event: &'a mut dyn FnMut(Event) -> ControlFlow<()>) -> Listener<'a> {
        Listener { on_event, between: None, stopped: false }
    }

    /// Sets work to do between the layers of a prompt.
    pub(super) fn with_between(self, between: &'a mut dyn FnMut()) -> Listener<'a> {
        Listener { between: Some(between), ..self }
    }

    /// Whether the callback ended the generation.
    pub(super) fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// Runs the work set by [`Listener::with_between`].
    pub(super) fn pause(&mut self) {
        if let Some(between) = &mut self.between {
            between();
        }
    }

    /// Passes an event to the callback, unless the callback has ended the generation.
    ///
    /// # Errors
    /// `Cancelled` once the callback has ended the generation.
    pub(super) fn send(&mut self, event: Event) -> Result<()> {
        self.stopped = self.stopped || (self.on_event)(event).is_break();
        if self.stopped { Err(Error::Cancelled) } else { Ok(()) }
    }
}
