//! A conversation: messages through the model's template onto one timeline.
//!
//! The text of the conversation is rendered anew for every turn, but only what the timeline does not hold yet is
//! tokenized and computed: earlier turns are kept as the very ids that were generated, so that reuse does not depend on
//! the tokenizer turning an answer's text back into the same ids.

use super::event::{Event, GenerateOptions, Outcome, Reply, StopReason};
use super::generate::{Events, Steps, to_end};
use super::generation::Generation;
use super::listener::Listener;
use super::timeline::Session;
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::template::{ChatTemplate, DateTime, Message, RenderContext};

/// What happens when the conversation outgrows the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// An error that says so.
    #[default]
    Error,
    /// The oldest turns are forgotten; the system prompt stays.
    Slide,
}

/// A conversation.
pub struct Chat {
    session: Session,
    template: ChatTemplate,
    messages: Vec<Message>,
    pub(super) overflow: Overflow,
    pub(super) context: RenderContext,
    /// The conversation up to the last answer, as text and as the ids that were read and generated.
    pub(super) known: Known,
}

/// A text, and the ids that it was read and generated as.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Known {
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
}

/// An answer on its way, in several parts where the context slides.
struct Answer {
    options: GenerateOptions,
    sampler: Sampler,
    /// What the part in hand continues: the conversation, rendered, and its tokens with those said before.
    text: String,
    prompt: Vec<u32>,
    part: Option<Generation>,
    /// Tokens of the parts before.
    said: usize,
    /// What came of the parts that are done.
    whole: Option<Outcome>,
}

impl Answer {
    /// Adds the part in hand to the whole.
    fn end_part(&mut self) {
        let Some(part) = self.part.take().map(Generation::outcome) else { return };
        match &mut self.whole {
            None => self.whole = Some(part),
            Some(all) => {
                all.text.push_str(&part.text);
                all.reasoning.push_str(&part.reasoning);
                all.tokens.extend(part.tokens);
                all.forced_tokens += part.forced_tokens;
                all.stop = part.stop;
                all.prefill_s += part.prefill_s;
                all.decode_s += part.decode_s;
            }
        }
    }
}

/// A conversation while it answers. However that ends, what was said becomes part of it; after an error it is as it was before.
pub(super) struct Answering<'a> {
    chat: &'a mut Chat,
    before: Vec<Message>,
    answer: Option<Answer>,
}

impl Answering<'_> {
    fn end(&mut self) -> Option<Outcome> {
        let mut answer = self.answer.take()?;
        answer.end_part();
        let whole = answer.whole?;
        let tokens = [&answer.prompt, &whole.tokens[answer.said..]].concat();
        // Templates leave out what was thought: the text has no place for these tokens.
        self.chat.known = match whole.reasoning.is_empty() {
            true => Known { text: answer.text + &whole.text, tokens },
            false => Known::default(),
        };
        self.chat.messages.push(Message::new("assistant", whole.text.clone()));
        Some(whole)
    }
}

impl Steps for Answering<'_> {
    fn step(&mut self, listener: &mut Listener) -> Result<Option<Outcome>> {
        let Some(answer) = &mut self.answer else { return Err(Error::Cancelled) };
        match self.chat.step(answer, listener) {
            Ok(false) => Ok(None),
            Ok(true) => Ok(self.end()),
            Err(e) => {
                self.answer = None;
                self.chat.messages = std::mem::take(&mut self.before);
                Err(e)
            }
        }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Chat {
    /// A conversation on an empty timeline, with a system prompt or the template's default one.
    ///
    /// # Errors
    /// For a model without tokenizer or chat template, or whose template does not parse.
    pub fn new(session: Session, system: Option<String>, overflow: Overflow) -> Result<Chat> {
        let engine = session.engine().clone();
        let tokenizer = engine.tokenizer()?;
        let special = engine.special_tokens();
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let context = RenderContext {
            bos_token: spelling(special.bos),
            eos_token: spelling(special.eos),
            add_generation_prompt: true,
            ..RenderContext::default()
        };
        let template = engine.chat_template()?;
        let mut chat =
            Chat { session, template, messages: Vec::new(), overflow, context, known: Known::default() };
        chat.set_system(system);
        Ok(chat)
    }

    /// What was said so far, the system prompt included if one was given.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The timeline.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The local date and time, for templates that say so: without it they find no clock.
    pub fn set_now(&mut self, now: DateTime) {
        self.context.now = Some(now);
    }

    /// What the template sees beside the messages, such as `tools` or `enable_thinking`
    /// ([`RenderContext::variables`]), in place of what was set before. The conversation stays.
    pub fn set_variables(&mut self, variables: serde_json::Map<String, serde_json::Value>) {
        self.context.variables = variables;
    }

    /// Forgets the conversation but not the system prompt.
    pub fn reset(&mut self) {
        let system = self.messages.first().filter(|m| m.role == "system").cloned();
        self.messages = system.into_iter().collect();
    }

    /// Replaces the system prompt (`None`: the template's default) and forgets the conversation.
    pub fn set_system(&mut self, system: Option<String>) {
        self.messages = system.into_iter().map(|text| Message::new("system", text)).collect();
    }

    /// Continues a conversation that was held before.
    pub fn restore(&mut self, messages: Vec<Message>) {
        self.messages = messages;
    }

    /// Takes the last answer back and answers the same message again.
    ///
    /// # Errors
    /// `Invalid` where nothing was asked yet; otherwise as [`Chat::send`].
    pub fn regenerate<R: Reply>(
        &mut self,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> R,
    ) -> Result<Outcome> {
        let at = self.messages.iter().rposition(|m| m.role == "user");
        let at = at.ok_or_else(|| Error::Invalid("there is no message to answer again".into()))?;
        let asked = self.messages[at].content.clone();
        let kept = self.messages.split_off(at);
        let outcome = self.send(&asked, options, on_event);
        if outcome.is_err() {
            self.messages.truncate(at);
            self.messages.extend(kept);
        }
        outcome
    }

    /// Says something and generates the answer. A cancelled answer stays in the conversation as far as it came.
    ///
    /// # Errors
    /// `ContextFull` where the conversation does not fit (and may not slide, or cannot enough); the template's refusal
    /// of the messages; those of [`Session::generate`]. The conversation is then as it was before.
    pub fn send<R: Reply>(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> R,
    ) -> Result<Outcome> {
        to_end(&mut self.begin(text, options)?, on_event)
    }

    /// [`Chat::send`] as an iterator over its events.
    ///
    /// # Errors
    /// As [`Chat::send`]; those of computing come from the iterator.
    pub fn stream(&mut self, text: &str, options: &GenerateOptions) -> Result<Events<'_>> {
        Ok(Events::new(Box::new(self.begin(text, options)?)))
    }

    fn begin(&mut self, text: &str, options: &GenerateOptions) -> Result<Answering<'_>> {
        let before = self.messages.clone();
        self.messages.push(Message::new("user", text));
        match self.answer(options) {
            Ok(answer) => Ok(Answering { chat: self, before, answer: Some(answer) }),
            Err(e) => {
                self.messages = before;
                Err(e)
            }
        }
    }

    fn answer(&mut self, options: &GenerateOptions) -> Result<Answer> {
        let mut sampler = self.session.engine().sampler(options.sampling.clone())?;
        let (text, prompt) = self.prompt(0)?;
        let part = Generation::new(&mut self.session, &prompt, options, &mut sampler)?;
        let (options, part) = (options.clone(), Some(part));
        Ok(Answer { options, sampler, text, prompt, part, said: 0, whole: None })
    }

    /// One step of an answer; whether it was the last.
    fn step(&mut self, answer: &mut Answer, listener: &mut Listener) -> Result<bool> {
        let Some(part) = &mut answer.part else { return Ok(true) };
        if !part.step(&mut self.session, &mut answer.sampler, listener)? {
            return Ok(false);
        }
        let guided = part.guided();
        answer.end_part();
        let full = |whole: &Outcome| whole.stop == StopReason::ContextFull;
        let Some(whole) = answer.whole.as_ref().filter(|whole| full(whole)) else { return Ok(true) };
        if self.overflow != Overflow::Slide || !self.forget() {
            return Ok(true);
        }
        // What was generated before the context slid stands behind the shortened conversation.
        let said = &whole.tokens;
        let mut options = answer.options.clone();
        options.max_tokens = options.max_tokens.saturating_sub(said.len());
        // The constraint goes on where it is.
        options.constraint = None;
        let (text, mut prompt) = self.prompt(said.len())?;
        prompt.extend_from_slice(said);
        let mut part = Generation::new(&mut self.session, &prompt, &options, &mut answer.sampler)?;
        part.follow(guided);
        answer.part = Some(part);
        (answer.said, answer.text, answer.prompt) = (said.len(), text, prompt);
        Ok(false)
    }

    /// The rendered conversation and its tokens, shortened until it and `more` tokens fit.
    fn prompt(&mut self, more: usize) -> Result<(String, Vec<u32>)> {
        loop {
            let text = self.template.render(&self.messages, &self.context)?;
            let tokens = self.tokenize(&text)?;
            // At least one token of an answer must fit behind it.
            let (needed, limit) = (tokens.len() + more + 1, self.session.context());
            if needed <= limit {
                return Ok((text, tokens));
            }
            if self.overflow == Overflow::Error || !self.forget() {
                return Err(Error::ContextFull { needed, limit });
            }
        }
    }

    /// Drops the oldest turn: a user's message and what follows it up to the next. The last one stays.
    fn forget(&mut self) -> bool {
        let mut asked = (0..self.messages.len()).filter(|&i| self.messages[i].role == "user");
        match (asked.next(), asked.next()) {
            (Some(first), Some(second)) => {
                log::debug!(
                    "the context is full: the oldest of {} messages are forgotten",
                    self.messages.len()
                );
                self.messages.drain(first..second);
                true
            }
            _ => false,
        }
    }

    /// The ids of a rendering. Where it continues what the timeline says, only the rest is tokenized.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let engine = self.session.engine();
        let tokenizer = engine.tokenizer()?;
        if let Some(rest) =
            text.strip_prefix(self.known.text.as_str()).filter(|_| !self.known.text.is_empty())
        {
            let mut tokens = self.known.tokens.clone();
            tokens.extend(tokenizer.encode(rest, false)?);
            // Some tokenizers put a space before every piece of text: then the pieces are not the whole.
            if tokenizer.decode(&tokens, false) == tokenizer.decode(&tokenizer.encode(text, false)?, false) {
                return Ok(tokens);
            }
        }
        // Templates write the beginning-of-text token themselves if the model wants one.
        let tokens = tokenizer.encode(text, false)?;
        let special = engine.special_tokens();
        match special.bos {
            Some(bos) if special.add_bos && tokens.first() != Some(&bos) => {
                Ok([&[bos][..], &tokens].concat())
            }
            _ => Ok(tokens),
        }
    }
}
