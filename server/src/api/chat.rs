//! OpenAI's `/v1/chat/completions`.

use crate::answer::{Answer, Call, Choice, Finish, Piece, Usage};
use crate::feed::{Frames, Translation, respond};
use crate::fields::Fields;
use crate::logprobs::{self, Likely};
use crate::refusal::{Form, Refusal};
use crate::request::{Conversation, Input, MAX_CHOICES, Request, check_model, messages, variables};
use crate::sampling;
use crate::service::{Service, unix_time};
use crate::tools;
use axum::body::Body;
use axum::http::Response;
use dollop::sampler::Sampling;
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// Known fields that are not supported, with the reason.
const REFUSED: [(&str, &str); 5] = [
    ("audio", "this model writes text only"),
    ("functions", "is deprecated: use tools"),
    ("function_call", "is deprecated: use tool_choice"),
    ("web_search_options", "web search is not supported"),
    ("prediction", "predicted outputs are not supported"),
];

/// Answers a request.
///
/// # Errors
/// 400 and 404 for an invalid request, and those of `feed::respond`.
pub async fn answer(service: &Arc<Service>, json: &Json) -> Result<Response<Body>, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    let request = read(&f, service.sampling())?;
    let translation = Chat::new(&f, service, &request)?;
    respond(service, request, translation).await
}

/// Reads a request.
///
/// # Errors
/// 400, naming the field.
pub fn read(f: &Fields, base: &Sampling) -> Result<Request, Refusal> {
    for (name, why) in REFUSED {
        f.refuse(name, why)?;
    }
    if f.texts("modalities")?.iter().any(|m| m != "text") {
        return Err(Refusal::unsupported("modalities", "this model writes text only"));
    }
    let conversation = Conversation {
        messages: messages(f, "messages")?,
        tools: tools::openai(f, true)?,
        variables: variables(f)?,
    };
    let mut request = Request::new(f, Input::Chat(conversation), sampling::read(f, base)?)?;
    request.read_stop(f, "stop")?;
    request.read_format(f.get("response_format"), "response_format")?;
    request.max_tokens = f.count("max_completion_tokens", 1)?.or(f.count("max_tokens", 1)?);
    request.choices = choices(f)?;
    request.logprobs = logprobs::read(f)?;
    Ok(request)
}

/// Reads `n`, the number of answers.
///
/// # Errors
/// 400 for more than [`MAX_CHOICES`].
pub fn choices(f: &Fields) -> Result<usize, Refusal> {
    match f.count("n", 1)?.unwrap_or(1) {
        n if n > MAX_CHOICES => Err(f.wrong("n", format!("must be at most {MAX_CHOICES}"))),
        n => Ok(n),
    }
}

/// Whether a stream ends with the token usage.
///
/// # Errors
/// 400 if `stream_options` is not an object.
pub fn include_usage(f: &Fields) -> Result<bool, Refusal> {
    let Some(options) = f.get("stream_options") else { return Ok(false) };
    Ok(Fields::of(options, "stream_options.")?.flag("include_usage")?.unwrap_or(false))
}

/// The token usage of a request, in OpenAI's form.
pub fn usage(u: &Usage) -> Json {
    json!({
        "prompt_tokens": u.prompt, "completion_tokens": u.output, "total_tokens": u.prompt + u.output,
        "prompt_tokens_details": {"cached_tokens": u.cached},
        "completion_tokens_details": {"reasoning_tokens": u.reasoning},
    })
}

/// The `finish_reason` of an answer.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Turn | Finish::Stop(_) => "stop",
        Finish::Calls => "tool_calls",
        Finish::Length => "length",
    }
}

struct Chat {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    /// Whether answers have log probabilities.
    logprobs: bool,
    /// Number of tool calls so far, per answer.
    calls: Vec<usize>,
    /// Tokens whose log probabilities the next chunk has, per answer.
    likely: Vec<Vec<Likely>>,
}

impl Chat {
    fn new(f: &Fields, service: &Service, request: &Request) -> Result<Chat, Refusal> {
        Ok(Chat {
            id: service.id("chatcmpl-"),
            created: unix_time(),
            model: service.options.model.clone(),
            include_usage: include_usage(f)?,
            logprobs: request.logprobs.is_some(),
            calls: vec![0; request.choices],
            likely: vec![Vec::new(); request.choices],
        })
    }

    fn chunk(&self, choices: Json, usage: Json) -> Json {
        let mut chunk = json!({
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn delta(&mut self, choice: usize, delta: Json, finish: Option<&'static str>) -> Json {
        let mut json = json!({"index": choice, "delta": delta, "finish_reason": finish});
        if let Some(likely) = self.likely.get_mut(choice).filter(|likely| !likely.is_empty()) {
            json["logprobs"] = logprobs::chat(&std::mem::take(likely));
        } else if self.logprobs {
            json["logprobs"] = Json::Null;
        }
        self.chunk(json!([json]), Json::Null)
    }
}

impl Translation for Chat {
    const FORM: Form = Form::OpenAi;

    fn begin(&mut self, out: &mut Frames) {
        for choice in 0..self.calls.len() {
            out.object(&self.delta(choice, json!({"role": "assistant", "content": ""}), None));
        }
    }

    fn piece(&mut self, choice: usize, piece: Piece, out: &mut Frames) {
        let calls = self.calls.get_mut(choice);
        let delta = match piece {
            Piece::Reasoning(text) => json!({"reasoning_content": text}),
            Piece::Text(text) | Piece::Abandoned(text) => json!({"content": text}),
            Piece::Likely(tokens) => {
                self.likely.get_mut(choice).into_iter().for_each(|all| all.extend(tokens.iter().cloned()));
                return;
            }
            Piece::Call { id, name } => {
                let index = calls.map_or(0, |calls| std::mem::replace(calls, *calls + 1));
                json!({"tool_calls": [{"index": index, "id": id, "type": "function",
                    "function": {"name": name, "arguments": ""}}]})
            }
            Piece::Arguments(text) => {
                let index = calls.map_or(0, |calls| calls.saturating_sub(1));
                json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
            }
        };
        out.object(&self.delta(choice, delta, None));
    }

    fn done(&mut self, choice: usize, finish: Finish, out: &mut Frames) {
        out.object(&self.delta(choice, json!({}), Some(finish_reason(&finish))));
    }

    fn end(&mut self, took: &Usage, out: &mut Frames) {
        if self.include_usage {
            out.object(&self.chunk(json!([]), usage(took)));
        }
        out.data("[DONE]");
    }

    fn whole(&mut self, answer: Answer) -> Json {
        let choices = answer.choices.into_iter().enumerate();
        let choices: Vec<Json> = choices.map(|(i, c)| whole(i, c, self.logprobs)).collect();
        json!({
            "id": self.id, "object": "chat.completion", "created": self.created, "model": self.model,
            "choices": choices, "usage": usage(&answer.usage),
        })
    }
}

fn whole(index: usize, choice: Choice, logprobs: bool) -> Json {
    let finish = finish_reason(&choice.finish);
    let content =
        if choice.text.is_empty() && !choice.calls.is_empty() { Json::Null } else { choice.text.into() };
    let mut message = json!({"role": "assistant", "content": content, "refusal": null});
    if !choice.reasoning.is_empty() {
        message["reasoning_content"] = choice.reasoning.into();
    }
    if !choice.calls.is_empty() {
        message["tool_calls"] = choice.calls.into_iter().map(call).collect();
    }
    let logprobs = logprobs.then(|| logprobs::chat(&choice.likely));
    json!({"index": index, "message": message, "finish_reason": finish, "logprobs": logprobs})
}

fn call(call: Call) -> Json {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}
