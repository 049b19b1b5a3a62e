//! A constraint over one answer, by `llguidance`.

use super::words::Env;
use super::{Constraint, Kind, on_one_line, schema};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{Matcher, ParserFactory};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The vocabulary as grammars see it: made once per engine.
pub struct Words(ParserFactory);

impl Words {
    /// `ends` are the tokens that end an answer; the model knows `vocab` ids.
    ///
    /// # Errors
    /// `Unsupported` for a tokenizer whose tokens are no bytes.
    pub fn new(tokenizer: &Tokenizer, vocab: usize, ends: &[u32]) -> Result<Words> {
        let env = Arc::new(Env::new(tokenizer, vocab, ends)?);
        let caps = InferenceCapabilities { ff_tokens: true, ..InferenceCapabilities::default() };
        let make = || {
            let slices = llguidance::earley::SlicedBiasComputer::general_slices();
            ParserFactory::new(&(env as _), caps, &slices)
        };
        let mut factory = catch_unwind(AssertUnwindSafe(make))
            .map_err(|_| Error::unsupported("constraints over this vocabulary: it contradicts itself"))?
            .map_err(|e| Error::unsupported(format!("constraints over this vocabulary: {e:#}")))?;
        factory.quiet().limits_mut().verbose_errors = false;
        Ok(Words(factory))
    }

    /// The text with its markers as tokens, or as texts where they are none.
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
    /// `Invalid`, with the place, where the constraint does not compile.
    pub fn guide(&self, constraint: &Constraint) -> Result<Guide> {
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

    /// What follows a grammar, or why there is none.
    fn compiled(&self, grammar: TopLevelGrammar, constraint: &Constraint) -> Result<Guide, String> {
        let made = catch_unwind(AssertUnwindSafe(|| Matcher::new(self.0.create_parser(grammar))));
        let matcher = made.map_err(|_| "it cannot be compiled")?;
        if let Some(why) = matcher.get_error() {
            return Err(why);
        }
        let mut guide = Guide { matcher, hurried: constraint.hurried, queue: VecDeque::new() };
        // What nothing satisfies is found here, and not in the middle of an answer.
        guide.mask().map_err(|e| format!("no answer obeys it: {e}"))?;
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

/// Follows one answer.
pub struct Guide {
    matcher: Matcher,
    /// Whether several forced tokens are told at once.
    hurried: bool,
    /// Forced tokens that are not taken yet, where they are told one by one.
    queue: VecDeque<u32>,
}

impl Guide {
    /// Whether nothing may follow but an end.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }

    /// Tokens that must come next, whatever the model would say; none where it has a choice. They are not taken yet.
    pub fn forced(&mut self) -> Vec<u32> {
        if self.hurried {
            return if self.is_over() { Vec::new() } else { self.matcher.compute_ff_tokens() };
        }
        if self.queue.is_empty() && !self.is_over() {
            self.queue = self.matcher.compute_ff_tokens().into();
        }
        self.queue.front().copied().into_iter().collect()
    }

    /// Whether forced tokens are computed together with the token before.
    pub fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// Tokens that may come next. Ends are among them where the answer may be over.
    ///
    /// # Errors
    /// `Invalid` where the grammar is too complex here.
    pub fn mask(&mut self) -> Result<Mask> {
        self.matcher.compute_mask_or_eos().map(Mask).map_err(|e| broken(&e.to_string()))
    }

    /// Goes on behind a token.
    ///
    /// # Errors
    /// `Invalid` for a token that may not come here.
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

/// Tokens that may come next.
pub struct Mask(SimpleVob);

impl Mask {
    /// Makes all others impossible.
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

    /// The first of them.
    pub fn first(&self) -> Option<u32> {
        self.0.iter().next()
    }

    /// Whether this one may.
    pub fn allows(&self, id: u32) -> bool {
        (id as usize) < self.0.len() && self.0.is_allowed(id)
    }
}
