//! Who hears what happens during a generation.

use super::event::Event;
use crate::error::{Error, Result};
use std::ops::ControlFlow;

/// What hears events, and may end them.
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

    /// With work for the time between the layers of a prompt.
    pub(super) fn with_between(self, between: &'a mut dyn FnMut()) -> Listener<'a> {
        Listener { between: Some(between), ..self }
    }

    /// Whether the answer is to stop.
    pub(super) fn has_stopped(&self) -> bool {
        self.stopped
    }

    /// Lets others go on, between two layers of a prompt.
    pub(super) fn pause(&mut self) {
        if let Some(between) = &mut self.between {
            between();
        }
    }

    /// # Errors
    /// `Cancelled` from the first time on that the answer is to stop.
    pub(super) fn tell(&mut self, event: Event) -> Result<()> {
        self.stopped = self.stopped || (self.on_event)(event).is_break();
        if self.stopped { Err(Error::Cancelled) } else { Ok(()) }
    }
}
