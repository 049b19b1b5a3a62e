//! A conversation: messages through the model's template onto one timeline.
//!
//! The text of the conversation is rendered anew for every turn, but only what the timeline does not hold yet is
//! tokenized and computed: earlier turns are kept as the very ids that were generated, so that reuse does not depend on
//! the tokenizer turning an answer's text back into the same ids.

use super::generate::{Event, GenerateOptions, Listener, Outcome, Reply, StopReason};
use super::timeline::Session;
use crate::error::{Error, Result};
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
        let before = self.messages.clone();
        self.messages.push(Message::new("user", text));
        let mut on_event = |event| on_event(event).flow();
        let outcome = self.answer(options, &mut Listener::new(&mut on_event));
        match &outcome {
            Ok(outcome) => self.messages.push(Message::new("assistant", outcome.text.clone())),
            Err(_) => self.messages = before,
        }
        outcome
    }

    fn answer(&mut self, options: &GenerateOptions, listener: &mut Listener) -> Result<Outcome> {
        let mut sampler = self.session.engine().sampler(options.sampling.clone())?;
        let mut options = options.clone();
        let mut whole: Option<Outcome> = None;
        loop {
            // What was generated before the context slid stands behind the shortened conversation.
            let said = whole.as_ref().map_or(&[][..], |o| &o.tokens);
            let (text, mut prompt) = self.prompt(said.len())?;
            prompt.extend_from_slice(said);
            let part = self.session.generate_with(&prompt, &options, &mut sampler, listener)?;
            let generated = part.tokens.clone();
            let total = match whole.take() {
                None => part,
                Some(mut all) => {
                    all.text.push_str(&part.text);
                    all.tokens.extend(part.tokens);
                    all.stop = part.stop;
                    all.prefill_s += part.prefill_s;
                    all.decode_s += part.decode_s;
                    all
                }
            };
            let full = total.stop == StopReason::ContextFull;
            if full && self.overflow == Overflow::Slide && self.forget() {
                options.max_tokens = options.max_tokens.saturating_sub(total.tokens.len());
                whole = Some(total);
                continue;
            }
            self.known = Known { text: text + &total.text, tokens: [prompt, generated].concat() };
            return Ok(total);
        }
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
