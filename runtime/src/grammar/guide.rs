//! Applies a constraint to one answer, with the crate `llguidance`.

use super::words::Env;
use super::{Constraint, Kind, on_one_line, schema};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{Matcher, ParserFactory};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Arc, PoisonError};

/// The vocabulary as `llguidance` needs it. It is built once per engine.
pub struct Words(ParserFactory);

impl Words {
    /// `ends` are the tokens that end an answer. `vocab` is the number of ids in the model.
    ///
    /// # Errors
    /// `Unsupported` if the tokenizer's tokens are not byte strings.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<Words> {
        let env = Arc::new(Env::new(tokenizer, vocab, ends)?);
        let caps = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let make = || {
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            ParserFactory::new(&(env as _), caps, &slices)
        };
        let mut factory = catch_unwind(AssertUnwindSafe(make))
            .map_err(|_| {
                Error::unsupported("this vocabulary cannot be used for constraints: it contradicts itself")
            })?
            .map_err(|e| {
                Error::unsupported(format!("this vocabulary cannot be used for constraints: {e:#}"))
            })?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Words(factory))
    }

    /// Replaces markers in the grammar's text by special tokens, or by string literals if the vocabulary has
    /// no such token.
    fn marked(&self, text: &str, markers: &[&str]) -> String {
        let trie = self.0.tok_env().tok_trie();
        markers.iter().fold(text.to_owned(), |text, marker| {
            let spelled = match trie.get_special_token(marker) {
                Some(id) => format!("<[{id}]>"),
                None => serde_json::Value::from(*marker).to_string(),
            };
            text.replace(&format!("{{{{{marker}}}}}"), &spelled)
        })
    }

    /// # Errors
    /// `Invalid`, with the place, if the constraint does not compile.
    pub fn guide(&self, constraint: &Constraint) -> Result<Guide> {
        if let Some(of) = constraint.compiled.as_ref().filter(|of| ptr::eq(&*of.words, self)) {
            let guide = of.guide.lock().unwrap_or_else(PoisonError::into_inner);
            return Ok(guide.again(constraint.hurried));
        }
        constraint.check()?;
        let (kind, text) = (constraint.kind, &*constraint.text);
        let grammar = match kind {
            Kind::Schema => {
                let value = schema::parse(text).map_err(|why| refused(kind, &why))?;
                let grammar = |value| TopLevelGrammar::from_json_schema(on_one_line(value));
                return self.compiled(grammar(value.clone()), constraint).map_err(|why| {
                    let fails = |part| self.compiled(grammar(part), constraint).err();
                    let place = schema::place(&value, &fails);
                    refused(kind, &place.map_or(why, |(place, why)| format!("at {place}: {why}")))
                });
            }
            Kind::Regex => TopLevelGrammar::from_regex(text),
            Kind::Lark => TopLevelGrammar::from_lark(self.marked(text, constraint.markers)),
        };
        self.compiled(grammar, constraint).map_err(|why| refused(kind, &why))
    }

    /// Compiles a grammar. The error text says why it fails.
    fn compiled(&self, grammar: TopLevelGrammar, constraint: &Constraint) -> Result<Guide, String> {
        let made = catch_unwind(AssertUnwindSafe(|| Matcher::new(self.0.create_parser(grammar))));
        let matcher = made.map_err(|_| "it cannot be compiled")?;
        if let Some(why) = matcher.get_error() {
            return Err(why);
        }
        let mut guide = Guide { matcher, hurried: constraint.hurried, queue: VecDeque::new() };
        // Find an unsatisfiable grammar now, not in the middle of an answer.
        guide.mask().map_err(|e| format!("no answer can satisfy it: {e}"))?;
        Ok(guide)
    }
}

fn refused(kind: Kind, why: &str) -> Error {
    let why = why.split("\n<").next().unwrap_or_default().trim();
    let where_to_look = match kind {
        Kind::Schema => "llguidance's json_schema.md lists the keywords",
        Kind::Regex => "write it as for the crate regex, without look-around and back-references",
        Kind::Lark => "llguidance's syntax.md has the form, which begins at `start:`",
    };
    Error::Invalid(format!("the {} is refused: {why} ({where_to_look})", kind.name()))
}

/// The state of a constraint within one answer.
pub struct Guide {
    matcher: Matcher,
    /// Whether [`Guide::forced`] returns all forced tokens at once.
    hurried: bool,
    /// Forced tokens still to be returned, if they are returned one by one.
    queue: VecDeque<u32>,
}

impl Guide {
    /// A copy that shares nothing with this one.
    fn again(&self, hurried: bool) -> Guide {
        Guide { matcher: self.matcher.deep_clone(), hurried, queue: self.queue.clone() }
    }

    /// Whether the answer is complete, and only an end token may follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// The tokens that the grammar forces next; empty if the model has a choice. This does not advance: call
    /// [`Guide::take`] for each.
    pub fn forced(&mut self) -> Vec<u32> {
        if self.hurried {
            return if self.is_over() { Vec::new() } else { self.matcher.compute_ff_tokens() };
        }
        if self.queue.is_empty() && !self.is_over() {
            self.queue = self.matcher.compute_ff_tokens().into();
        }
        self.queue.front().copied().into_iter().collect()
    }

    /// Whether forced tokens are computed in one call with the token before them.
    pub fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// The mask of tokens that may come next. It includes end tokens if the answer may be complete.
    ///
    /// # Errors
    /// `Invalid` if the grammar is too complex at this point.
    pub fn mask(&mut self) -> Result<Mask> {
        self.matcher.compute_mask_or_eos().map(Mask).map_err(|e| broken(&e.to_string()))
    }

    /// Advances by one token.
    ///
    /// # Errors
    /// `Invalid` if the token may not come here.
    pub fn take(&mut self, id: u32) -> Result<()> {
        if self.queue.front() == Some(&id) {
            self.queue.pop_front();
        }
        self.matcher.consume_token(id).map_err(|e| broken(&e.to_string()))
    }
}

fn broken(why: &str) -> Error {
    let why = why.split("\n<").next().unwrap_or_default().trim();
    Error::Invalid(format!("the constraint cannot be followed here: {why}; a simpler one may work"))
}

/// The set of tokens that may come next.
pub struct Mask(SimpleVob);

impl Mask {
    /// Sets the logits of all other tokens to −∞.
    pub fn apply(&self, logits: &mut [f32]) {
        for (words, logits) in self.0.as_slice().iter().zip(logits.chunks_mut(32)) {
            match *words {
                u32::MAX => {}
                0 => logits.fill(f32::NEG_INFINITY),
                bits => {
                    let barred = logits.iter_mut().enumerate().filter(|(i, _)| bits >> i & 1 == 0);
                    barred.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
    }

    /// The first token of the set.
    pub fn first(&self) -> Option<u32> {
        self.0.iter().next()
    }

    /// Whether the set has this token.
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }
}
