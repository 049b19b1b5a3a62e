//! A conversation: renders messages with the model's chat template and runs them in one session.
//!
//! Every turn renders the whole conversation again, but tokenizes and computes only the new part. Earlier
//! turns are kept as the token ids that were generated. So the KV cache is reused even if the tokenizer would
//! split an answer's text differently.

use super::event::{Event, GenerateOptions, Outcome, Reply, StopReason};
use super::generate::{Events, Steps, to_end};
use super::generation::Generation;
use super::listener::Listener;
use super::timeline::Session;
use crate::error::{Error, Result};
use crate::sampler::Sampler;
use crate::template::{ChatTemplate, DateTime, Message, RenderContext};

/// What happens if the conversation no longer fits the context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// A prompt that does not fit is an error (`ContextFull`). An answer ends when the context is full.
    #[default]
    Error,
    /// The oldest turns are dropped; the system prompt stays.
    Slide,
}

/// A conversation with a model: messages, their template, and a session.
pub struct Chat {
    session: Session,
    template: ChatTemplate,
    messages: Vec<Message>,
    pub(super) overflow: Overflow,
    pub(super) context: RenderContext,
    /// The conversation up to the last answer, as text and as token ids.
    pub(super) known: Known,
}

/// A text, and the token ids that were read and generated for it.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Known {
    pub(super) text: String,
    pub(super) tokens: Vec<u32>,
}

/// An answer in progress. If the context slides, it has several parts.
struct Answer {
    options: GenerateOptions,
    sampler: Sampler,
    /// What the current part continues: the rendered conversation, and its tokens followed by those that
    /// earlier parts generated.
    text: String,
    prompt: Vec<u32>,
    part: Option<Generation>,
    /// Tokens that earlier parts generated.
    said: usize,
    /// The merged outcome of the finished parts.
    whole: Option<Outcome>,
}

impl Answer {
    /// Merges the current part into the whole outcome.
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

/// A conversation while it generates an answer. What was generated becomes part of the conversation, even if
/// the answer is cancelled or dropped. After an error, the conversation is unchanged.
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
        // Templates omit earlier reasoning, so the next rendering will not match these tokens.
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
    /// Creates a conversation in an empty session. Without a system prompt, the template's default applies.
    ///
    /// # Errors
    /// If the model has no tokenizer or chat template, or its template does not parse.
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

    /// The messages so far, including the system prompt if one was given.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The session that the conversation runs in.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Sets the local date and time for templates that print it. Otherwise they have no clock.
    pub fn set_now(&mut self, now: DateTime) {
        self.context.now = Some(now);
    }

    /// Sets the template's variables, such as `tools` or `enable_thinking` ([`RenderContext::variables`]).
    /// Replaces the previous ones. The conversation stays.
    pub fn set_variables(&mut self, variables: serde_json::Map<String, serde_json::Value>) {
        self.context.variables = variables;
    }

    /// Drops all messages except the system prompt.
    pub fn reset(&mut self) {
        let system = self.messages.first().filter(|m| m.role == "system").cloned();
        self.messages = system.into_iter().collect();
    }

    /// Replaces the system prompt (`None`: the template's default) and drops all messages.
    pub fn set_system(&mut self, system: Option<String>) {
        self.messages = system.into_iter().map(|text| Message::new("system", text)).collect();
    }

    /// Replaces the messages, to continue an earlier conversation.
    pub fn restore(&mut self, messages: Vec<Message>) {
        self.messages = messages;
    }

    /// Discards the last answer and generates another to the same message.
    ///
    /// # Errors
    /// `Invalid` if there is no user message yet; otherwise as [`Chat::send`].
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

    /// Sends a user message and generates the answer. If it is cancelled, the partial answer stays in the
    /// conversation.
    ///
    /// # Errors
    /// `ContextFull` if the conversation does not fit and cannot slide far enough; `Template` if the template
    /// rejects the messages; those of [`Session::generate`]. The conversation is then unchanged.
    pub fn send<R: Reply>(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_event: &mut dyn FnMut(Event) -> R,
    ) -> Result<Outcome> {
        to_end(&mut self.begin(text, options)?, on_event)
    }

    /// [`Chat::send`] as an iterator over the events.
    ///
    /// # Errors
    /// As [`Chat::send`]. Errors of computing come from the iterator.
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

    /// Takes one step of an answer. Returns whether it was the last.
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
        // The tokens generated so far follow the shortened conversation.
        let said = &whole.tokens;
        let mut options = answer.options.clone();
        options.max_tokens = options.max_tokens.saturating_sub(said.len());
        // The new part keeps the constraint's state instead (`follow`).
        options.constraint = None;
        let (text, mut prompt) = self.prompt(said.len())?;
        prompt.extend_from_slice(said);
        let mut part = Generation::new(&mut self.session, &prompt, &options, &mut answer.sampler)?;
        part.follow(guided);
        answer.part = Some(part);
        (answer.said, answer.text, answer.prompt) = (said.len(), text, prompt);
        Ok(false)
    }

    /// Renders and tokenizes the conversation. Drops turns until it fits together with `more` tokens.
    fn prompt(&mut self, more: usize) -> Result<(String, Vec<u32>)> {
        loop {
            let text = self.template.render(&self.messages, &self.context)?;
            let tokens = self.tokenize(&text)?;
            // At least one token of the answer must fit, too.
            let (needed, limit) = (tokens.len() + more + 1, self.session.context());
            if needed <= limit {
                return Ok((text, tokens));
            }
            if self.overflow == Overflow::Error || !self.forget() {
                return Err(Error::ContextFull { needed, limit });
            }
        }
    }

    /// Drops the oldest turn: a user message and all messages up to the next one. The last turn stays.
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

    /// Tokenizes a rendering. If it continues the known text, only the rest is tokenized.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>> {
        let engine = self.session.engine();
        let tokenizer = engine.tokenizer()?;
        if let Some(rest) =
            text.strip_prefix(self.known.text.as_str()).filter(|_| !self.known.text.is_empty())
        {
            let mut tokens = self.known.tokens.clone();
            tokens.extend(tokenizer.encode(rest, false)?);
            // Some tokenizers put a space before every text. Then the concatenated pieces differ from the
            // whole.
            if tokenizer.decode(&tokens, false) == tokenizer.decode(&tokenizer.encode(text, false)?, false) {
                return Ok(tokens);
            }
        }
        // If the model wants a BOS token, the template usually writes it.
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
