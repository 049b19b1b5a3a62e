//! What comes of a request, whatever API it came by: pieces of its answers one after another, or the answers whole.

use crate::refusal::Refusal;
use tokio::sync::mpsc::UnboundedReceiver;

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Of what the model thinks before it answers.
    Reasoning(String),
    /// Of the answer's text.
    Text(String),
    /// A call of a tool begins.
    Call {
        /// What its result will name it by.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of the arguments of the call that began last, as JSON.
    Arguments(String),
    /// The call that began last is none after all: this is the text that it was taken for.
    Abandoned(String),
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Finish {
    /// The model ended its turn.
    Turn,
    /// A stop string was met: this one, if it is known.
    Stop(Option<String>),
    /// The model ended its turn with calls of tools.
    Calls,
    /// `max_tokens` or the context's end.
    Length,
}

/// Tokens and seconds of a request, over all its answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompts, each counted once.
    pub prompt: usize,
    /// Of those, found in a kept conversation.
    pub cached: usize,
    /// Tokens generated.
    pub output: usize,
    /// Of those, reasoning.
    pub reasoning: usize,
    /// Seconds for prompts.
    pub prefill_s: f64,
    /// Seconds for answers.
    pub decode_s: f64,
}

/// What happens to a request, in order: pieces and ends of its answers, then the end or a failure.
#[derive(Clone, Debug)]
pub enum Update {
    /// The request is sound, and its prompt is being read.
    Begun,
    /// A piece of an answer.
    Piece(usize, Piece),
    /// An answer ended.
    Done(usize, Finish),
    /// All answers ended.
    End(Usage),
    /// No more comes.
    Failed(Refusal),
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// What its result will name it by.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON.
    pub arguments: String,
}

/// An answer, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What the model thought.
    pub reasoning: String,
    /// What it says.
    pub text: String,
    /// Tools that it calls.
    pub calls: Vec<Call>,
    /// Why it ended.
    pub finish: Finish,
}

impl Choice {
    fn empty(finish: Finish) -> Choice {
        Choice { reasoning: String::new(), text: String::new(), calls: Vec::new(), finish }
    }

    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Reasoning(text) => self.reasoning.push_str(&text),
            Piece::Text(text) => self.text.push_str(&text),
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
    /// One for each answer that was asked for.
    pub choices: Vec<Choice>,
    /// What they took.
    pub usage: Usage,
}

impl Answer {
    /// Waits for the end.
    ///
    /// # Errors
    /// What the request failed with.
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

    /// The only answer, for APIs that have one.
    pub fn only(self) -> (Choice, Usage) {
        let first = self.choices.into_iter().next();
        (first.unwrap_or_else(|| Choice::empty(Finish::Length)), self.usage)
    }
}

/// A generation that ended without saying so: its thread panicked.
pub fn broken() -> Refusal {
    Refusal::internal("the generation broke off: this is a fault of the server")
}
