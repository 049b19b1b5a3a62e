//! Kept conversations: sessions with the tokens that they hold. A request takes the one that knows most of its prompt.

use crate::prefix::{self, Prefixes};
use dollop::internal::kernels::MANY;
use dollop::{Engine, Error, Session, SessionOptions};
use std::sync::{Arc, Mutex, PoisonError};

/// A prefill chunk below this makes long prompts slow, and saves little memory.
const LEAST_CHUNK: usize = 32;

/// Sessions that no request uses.
pub struct Pool {
    idle: Mutex<Idle>,
    /// Sessions in all.
    pub sessions: usize,
    /// Positions of each.
    pub context: usize,
}

#[derive(Default)]
struct Idle {
    sessions: Vec<Kept>,
    /// Requests so far: the clock by which sessions are least recently used.
    clock: u64,
}

struct Kept {
    session: Session,
    /// Tokens at its beginning that were read as a prompt: those of an answer were computed one by one.
    read: usize,
    used: u64,
}

impl Pool {
    /// So many sessions, which share the context and the memory that the engine's plan has for one.
    ///
    /// # Errors
    /// `Invalid` where the budget has no room for them; those of [`Engine::session`].
    pub fn new(engine: &Engine, sessions: usize) -> Result<Pool, Error> {
        let plan = engine.memory_plan();
        let context = plan.context / sessions.max(1);
        if sessions == 0 || context < 2 {
            let text = format!("{sessions} sessions cannot share a context of {} tokens", plan.context);
            return Err(Error::Invalid(text));
        }
        // Their scratch shares the plan's as well: chunks are shorter, until all fit.
        let mut chunk = (plan.chunk / sessions).max(LEAST_CHUNK);
        let kept = loop {
            let options = SessionOptions::default().with_context(context).with_chunk(chunk);
            let open = || Ok(Kept { session: engine.session(options)?, read: 0, used: 0 });
            match (0..sessions).map(|_| open()).collect::<Result<Vec<_>, Error>>() {
                Ok(all) => break all,
                Err(_) if chunk > LEAST_CHUNK => chunk = (chunk / 2).max(LEAST_CHUNK),
                Err(e) if sessions > 1 => {
                    return Err(Error::Invalid(format!("{sessions} sessions (--parallel): {e}")));
                }
                Err(e) => return Err(e),
            }
        };
        log::debug!("{sessions} sessions of {context} tokens, chunks of {chunk}");
        let idle = Mutex::new(Idle { sessions: kept, clock: 0 });
        Ok(Pool { idle, sessions, context })
    }

    /// The idle session that shares the longest beginning with `prompt`; of several, the least recently used. `None` where all
    /// are taken.
    pub fn take(self: &Arc<Self>, prompt: &[u32]) -> Option<Lease> {
        let mut idle = self.lock();
        let worth = |kept: &Kept| (shared(&kept.session.tokens()[..kept.read], prompt), u64::MAX - kept.used);
        let best = (0..idle.sessions.len()).max_by_key(|&i| worth(&idle.sessions[i]))?;
        let kept = idle.sessions.swap_remove(best);
        Some(Lease { pool: self.clone(), session: Some(kept.session), read: kept.read })
    }

    /// Tokens that idle sessions hold, by session.
    pub fn held(&self) -> Vec<usize> {
        self.lock().sessions.iter().map(|kept| kept.session.tokens().len()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many tokens two texts have in common at their beginning.
pub fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Pool {
    /// Writes what idle sessions hold to the folder of prefixes: the server stops.
    pub fn keep(&self, prefixes: &Prefixes) {
        for kept in &mut self.lock().sessions {
            kept.read = keep(&mut kept.session, kept.read, 0, prefixes);
        }
    }
}

/// Writes what of a session was read as a prompt and is more than `known`, if that is worth a file; how much is still held.
fn keep(session: &mut Session, read: usize, known: usize, prefixes: &Prefixes) -> usize {
    if read.saturating_sub(known) < prefix::LEAST {
        return read;
    }
    // Answers are not kept: their tokens were computed one by one.
    let read = session.rewind(read);
    session.rewind(read);
    prefixes.save(session);
    read
}

/// The right to use a session, which the pool has again when this is dropped.
pub struct Lease {
    pool: Arc<Pool>,
    /// While it is not used.
    session: Option<Session>,
    read: usize,
}

impl Lease {
    /// The session, ready to read `prompt`. It knows as much of it as changes no bit of what follows: no token that was
    /// computed one by one, and at least [`MANY`] are left to read. `None` where it is in use.
    pub fn begin(&mut self, prompt: &[u32]) -> Option<Session> {
        let mut session = self.session.take()?;
        let known = shared(&session.tokens()[..self.read.min(session.tokens().len())], prompt);
        session.rewind(known.min(prompt.len().saturating_sub(MANY)));
        self.read = session.tokens().len();
        Some(session)
    }

    /// Gives the session what files know of `prompt`, where that is more; what is lost by it, or will be by the prompt, becomes a file.
    pub fn warm(&mut self, prompt: &[u32], prefixes: &Prefixes) {
        let Some(session) = &mut self.session else { return };
        let known = shared(&session.tokens()[..self.read.min(session.tokens().len())], prompt);
        self.read = keep(session, self.read, known, prefixes);
        if let Some(read) = prefixes.load(session, prompt, known.min(self.read)) {
            self.read = read;
        }
    }

    /// The session is used no more, and `prompt` was read whole, if it is given.
    pub fn end(&mut self, session: Session, prompt: Option<&[u32]>) {
        if let Some(prompt) = prompt {
            self.read = if prompt.len() < MANY { 0 } else { prompt.len() };
        }
        self.session = Some(session);
    }

    /// The session is used no more, and what it holds is unknown.
    pub fn broken(&mut self, mut session: Session) {
        session.rewind(0);
        (self.session, self.read) = (Some(session), 0);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        let mut idle = self.pool.lock();
        idle.clock += 1;
        let used = idle.clock;
        let read = self.read.min(session.tokens().len());
        idle.sessions.push(Kept { session, read, used });
    }
}
