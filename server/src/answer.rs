//! The result of a request in a form that does not depend on the API. It is either a stream of updates or the
//! collected answers.

use crate::logprobs::Likely;
use crate::refusal::Refusal;
use tokio::sync::mpsc::UnboundedReceiver;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Text of the model's reasoning, before the answer.
    Reasoning(String),
    /// Text of the answer.
    Text(String),
    /// Log probabilities of the tokens of the next piece, or of the answer's last tokens. Only if the request
    /// asks for them.
    Likely(Vec<Likely>),
    /// A tool call begins.
    Call {
        /// The call's id. The tool's result refers to it.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// The next part of the latest call's arguments. All parts together are JSON.
    Arguments(String),
    /// The latest call turned out to be plain text, which is given here.
    Abandoned(String),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// The model generated an end-of-turn token.
    Turn,
    /// The answer reached a stop string. The string is `None` if it could not be determined.
    Stop(Option<String>),
    /// The model ended its turn with tool calls.
    Calls,
    /// The answer reached `max_tokens` or the end of the context.
    Length,
}

/// Token counts and times of a request, summed over its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompts. A prompt with several answers counts once.
    pub prompt: usize,
    /// Prompt tokens that were reused from a session or a prefix file.
    pub cached: usize,
    /// Generated tokens.
    pub output: usize,
    /// Generated tokens that are reasoning.
    pub reasoning: usize,
    /// Seconds of prefill.
    pub prefill_s: f64,
    /// Seconds of decoding.
    pub decode_s: f64,
}

/// An event of a request. Pieces and ends of answers come first, then `End` or `Failed`.
#[derive(Clone, Debug)]
pub enum Update {
    /// The request is valid, and prefill of its prompt has begun.
    Begun,
    /// A piece of the answer with this index.
    Piece(usize, Piece),
    /// The answer with this index ended.
    Done(usize, Finish),
    /// All answers ended.
    End(Usage),
    /// The request failed. No further update follows.
    Failed(Refusal),
}

/// A complete tool call.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The call's id. The tool's result refers to it.
    pub id: String,
    /// The tool's name.
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

/// A complete answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The model's reasoning.
    pub reasoning: String,
    /// The answer's text.
    pub text: String,
    /// The tokens of the text and the calls, with their log probabilities. Empty unless the request asks for
    /// them.
    pub likely: Vec<Likely>,
    /// The answer's tool calls.
    pub calls: Vec<Call>,
    /// Why the answer ended.
    pub finish: Finish,
}

impl Choice {
    fn empty(finish: Finish) -> Choice {
        let (reasoning, text) = (String::new(), String::new());
        Choice { reasoning, text, likely: Vec::new(), calls: Vec::new(), finish }
    }

    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Reasoning(text) => self.reasoning.push_str(&text),
            Piece::Text(text) => self.text.push_str(&text),
            Piece::Likely(tokens) => self.likely.extend(tokens),
            Piece::Call { id, name } => self.calls.push(Call { id, name, arguments: String::new() }),
            Piece::Arguments(text) => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
            Piece::Abandoned(text) => {
                self.calls.pop();
                self.text.push_str(&text);
            }
        }
    }
}

/// All answers of a request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// One entry per requested answer.
    pub choices: Vec<Choice>,
    /// Token counts and times of all answers.
    pub usage: Usage,
}

impl Answer {
    /// Collects updates until the request ends.
    ///
    /// # Errors
    /// The refusal of [`Update::Failed`], or 500 if the channel closed early.
    pub async fn collect(updates: &mut UnboundedReceiver<Update>) -> Result<Answer, Refusal> {
        let mut choices: Vec<Choice> = Vec::new();
        loop {
            let update = updates.recv().await.ok_or_else(broken)?;
            if let Update::Piece(i, _) | Update::Done(i, _) = &update
                && choices.len() <= *i
            {
                choices.resize_with(i + 1, || Choice::empty(Finish::Length));
            }
            match update {
                Update::Piece(i, piece) => choices[i].add(piece),
                Update::Done(i, finish) => choices[i].finish = finish,
                Update::Begun => {}
                Update::End(usage) => return Ok(Answer { choices, usage }),
                Update::Failed(refusal) => return Err(refusal),
            }
        }
    }

    /// The first answer, for APIs that return exactly one.
    pub fn only(self) -> (Choice, Usage) {
        let first = self.choices.into_iter().next();
        (first.unwrap_or_else(|| Choice::empty(Finish::Length)), self.usage)
    }
}

/// The error for a channel that closed without `End` or `Failed`, because the sending thread panicked.
pub fn broken() -> Refusal {
    Refusal::internal("the generation failed: this is a bug in the server")
}
