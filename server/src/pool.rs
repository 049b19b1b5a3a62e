//! The pool of idle sessions, which keep their tokens. A request takes the session that shares the longest
//! prefix with its prompt.

use crate::prefix::{self, Prefixes};
use dollop::{Engine, Error, Session, SessionOptions};
use std::sync::{Arc, Mutex, PoisonError};

/// The smallest prefill chunk. A smaller one makes long prompts slow and saves little memory.
const LEAST_CHUNK: usize = 32;

/// The sessions, of which the idle ones are stored here.
pub struct Pool {
    idle: Mutex<Idle>,
    /// Number of sessions, idle and in use.
    pub sessions: usize,
    /// Token positions of each session.
    pub context: usize,
    engine: Engine,
}

#[derive(Default)]
struct Idle {
    sessions: Vec<Kept>,
    /// Counts returned sessions. It is the clock for finding the least recently used session.
    clock: u64,
}

struct Kept {
    session: Session,
    /// Number of leading tokens whose bits are those of prefill. If the processor computes a token alone in
    /// another way, tokens of answers do not count.
    read: usize,
    used: u64,
}

impl Pool {
    /// Opens `sessions` sessions. They share the context and the memory that the engine's plan has for one
    /// session.
    ///
    /// # Errors
    /// `Invalid` if the budget has no room for them. Those of [`Engine::session`].
    pub fn new(engine: &Engine, sessions: usize) -> Result<Pool, Error> {
        let plan = engine.memory_plan();
        let context = plan.context / sessions.max(1);
        if sessions == 0 || context < 2 {
            let text = format!("{sessions} sessions cannot share a context of {} tokens", plan.context);
            return Err(Error::Invalid(text));
        }
        // The sessions also share the plan's scratch memory. Halve the prefill chunk until all sessions fit.
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
        Ok(Pool { idle, sessions, context, engine: engine.clone() })
    }

    /// Takes the idle session that shares the longest prefix with `prompt`. Among equals, takes the least
    /// recently used one. Returns `None` if no session is idle.
    pub fn take(self: &Arc<Self>, prompt: &[u32]) -> Option<Lease> {
        let mut idle = self.lock();
        let worth = |kept: &Kept| (shared(&kept.session.tokens()[..kept.read], prompt), u64::MAX - kept.used);
        let best = (0..idle.sessions.len()).max_by_key(|&i| worth(&idle.sessions[i]))?;
        let kept = idle.sessions.swap_remove(best);
        Some(Lease { pool: self.clone(), session: Some(kept.session), read: kept.read })
    }

    /// Number of tokens in each idle session.
    pub fn held(&self) -> Vec<usize> {
        self.lock().sessions.iter().map(|kept| kept.session.tokens().len()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Length of the common prefix of `a` and `b`.
pub fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Pool {
    /// Writes the idle sessions to the prefix cache when the server stops.
    pub fn keep(&self, prefixes: &Prefixes) {
        for kept in &mut self.lock().sessions {
            kept.read = keep(&mut kept.session, kept.read, 0, prefixes);
        }
    }
}

/// Writes the reusable part of a session (`read` tokens) to the prefix cache, if it exceeds `known` by at
/// least [`prefix::LEAST`] tokens. Returns how many reusable tokens the session then holds.
fn keep(session: &mut Session, read: usize, known: usize, prefixes: &Prefixes) -> usize {
    if read.saturating_sub(known) < prefix::LEAST {
        return read;
    }
    // Leave out tokens that cannot be reused. Layers with a state can go back only to a mark, which may be
    // before `read`. The second rewind drops the tokens after that mark.
    let read = session.rewind(read);
    session.rewind(read);
    prefixes.save(session);
    read
}

/// Exclusive use of a session. Dropping the lease returns the session to the pool.
pub struct Lease {
    pool: Arc<Pool>,
    /// `None` while a generation uses the session.
    session: Option<Session>,
    read: usize,
}

impl Lease {
    /// Returns the session, rewound to the part of `prompt` that can be reused without changing the answer by
    /// a bit. It leaves at least [`Engine::least_call`] tokens to prefill. `None` if the session is in use.
    pub fn begin(&mut self, prompt: &[u32]) -> Option<Session> {
        let mut session = self.session.take()?;
        let known = shared(&session.tokens()[..self.read.min(session.tokens().len())], prompt);
        session.rewind(known.min(prompt.len().saturating_sub(self.pool.engine.least_call())));
        self.read = session.tokens().len();
        Some(session)
    }

    /// Loads a prefix file into the session if the file shares a longer prefix with `prompt`. First saves the
    /// session's own tokens, if `prompt` would overwrite enough of them.
    pub fn warm(&mut self, prompt: &[u32], prefixes: &Prefixes) {
        let Some(session) = &mut self.session else { return };
        let known = shared(&session.tokens()[..self.read.min(session.tokens().len())], prompt);
        self.read = keep(session, self.read, known, prefixes);
        if let Some(read) = prefixes.load(session, prompt, known.min(self.read)) {
            self.read = read;
        }
    }

    /// Takes the session back after a generation. `prompt` is given if all of it was prefilled.
    pub fn end(&mut self, session: Session, prompt: Option<&[u32]>) {
        let (least, read) = (self.pool.engine.least_call(), prompt.map(<[u32]>::len));
        self.read = match read {
            // Tokens of the answer have the same bits as if they were prefilled.
            _ if least == 1 => session.tokens().len(),
            Some(read) if read < least => 0,
            Some(read) => read,
            None => self.read,
        };
        self.session = Some(session);
    }

    /// Takes the session back after a panic. Its content is unknown, so it is cleared.
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
