//! Appends one token to each of several sessions in one call, so that one read of an expert serves all of
//! them.

use super::processor::{Location, Part};
use super::timeline::{Session, Step, likeliest_are_numbers, numbers};
use crate::error::{Error, Result};
use crate::model::forward::{Passing, Want};
use crate::telemetry::CancelToken;
use std::slice;

/// A session's token in a shared step.
pub(super) struct Turn<'a> {
    pub(super) session: &'a mut Session,
    pub(super) token: u32,
    pub(super) want: Want,
    pub(super) cancel: &'a CancelToken,
}

impl Session {
    /// The most sessions, including this one, that may share the call for its next token. 1 if the session
    /// must compute lost tokens first, or its context is full.
    pub(super) fn most_together(&self) -> usize {
        let processors = self.engine.processors();
        let here = match self.state.location() {
            Location::Cpu => true,
            Location::Gpu => processors.lost().is_none(),
            Location::Lost => false,
        };
        if !here || self.held != self.tokens.len() || self.held >= self.context() {
            return 1;
        }
        processors.of(self.state.is_gpu()).processor.together().min(self.state.chunk())
    }
}

/// Appends each turn's token to its session. All sessions belong to one engine, and there are at most as many
/// as each one's [`Session::most_together`]. Logits are bit-identical to those of separate steps.
///
/// # Errors
/// Those of computing, `NotFinite` without a place, and `Cancelled` if all turns are cancelled. No session
/// has changed then.
pub(super) fn step(turns: &mut [Turn<'_>], keep: &mut dyn FnMut(usize, Step)) -> Result<()> {
    let Some(first) = turns.first() else { return Ok(()) };
    let (engine, gpu) = (first.session.engine.clone(), first.session.state.is_gpu());
    let (on, vocab) = (engine.processors().of(gpu), engine.model().weights.vocab());
    let mut parts = Vec::with_capacity(turns.len());
    let mut cancels = Vec::with_capacity(turns.len());
    for Turn { session, token, want, cancel } in turns.iter_mut() {
        session.check_vocabulary(slice::from_ref(token))?;
        cancels.push(*cancel);
        let (pos, tokens) = (session.held, slice::from_ref(token));
        parts.push(Part { timeline: &mut *session.state, tokens, pos, want: *want });
    }
    let wants: Vec<Want> = parts.iter().map(|part| part.want).collect();
    on.processor.forward(&on.model, &mut parts, &mut |passing| {
        match passing {
            // If only some are cancelled, the call completes for the others.
            Passing::Layers(_) if cancels.iter().all(|cancel| cancel.is_cancelled()) => {
                return Err(Error::Cancelled);
            }
            Passing::Layers(_) => {}
            Passing::Logits(i, logits) => {
                numbers(logits.iter().copied())?;
                keep(i, Step::Logits(0, logits));
            }
            Passing::Best(i, best) => {
                likeliest_are_numbers(best, wants[i], vocab)?;
                keep(i, Step::Best(best));
            }
        }
        Ok(())
    })?;
    for Turn { session, token, .. } in turns {
        session.tokens.push(*token);
        session.held += 1;
        session.processed += 1;
    }
    Ok(())
}
