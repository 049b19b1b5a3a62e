//! OpenAI's `/v1/completions`: continues a text without a chat template.

use super::chat::{choices, finish_reason, include_usage, usage};
use crate::answer::{Answer, Finish, Piece, Usage};
use crate::feed::{Frames, Translation, respond};
use crate::fields::Fields;
use crate::logprobs::{self, Likely};
use crate::refusal::{Form, Refusal};
use crate::request::{Input, MAX_CHOICES, Request, Text, check_model};
use crate::sampling;
use crate::service::{Service, unix_time};
use axum::body::Body;
use axum::http::Response;
use dollop::sampler::Sampling;
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// The default of `max_tokens`, as in OpenAI's API.
const DEFAULT_TOKENS: usize = 16;

/// Answers a request.
///
/// # Errors
/// 400 and 404 for an invalid request, and those of `feed::respond`.
pub async fn answer(service: &Arc<Service>, json: &Json) -> Result<Response<Body>, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    let request = read(&f, service.sampling())?;
    let texts = match &request.input {
        Input::Texts(texts) if f.flag("echo")?.unwrap_or(false) => texts.as_slice(),
        _ => &[],
    };
    let tokenizer = service.engine.tokenizer()?;
    let spell = |text: &Text| match text {
        Text::Plain(text) => text.clone(),
        Text::Ids(ids) => tokenizer.decode(ids, false),
    };
    let translation = Completions {
        id: service.id("cmpl-"),
        created: unix_time(),
        model: service.options.model.clone(),
        include_usage: include_usage(&f)?,
        echo: texts.iter().flat_map(|t| vec![spell(t); request.choices]).collect(),
        logprobs: request.logprobs.is_some(),
        likely: Vec::new(),
    };
    respond(service, request, translation).await
}

/// Reads a request.
///
/// # Errors
/// 400, naming the field.
pub fn read(f: &Fields, base: &Sampling) -> Result<Request, Refusal> {
    f.refuse("suffix", "inserting text is not supported")?;
    let texts = prompts(f)?;
    if texts.is_empty() || texts.len() > MAX_CHOICES {
        return Err(f.wrong("prompt", format!("must have 1 to {MAX_CHOICES} prompts")));
    }
    let mut request = Request::new(f, Input::Texts(texts), sampling::read(f, base)?)?;
    request.read_stop(f, "stop")?;
    request.read_format(f.get("response_format"), "response_format")?;
    request.max_tokens = Some(f.count("max_tokens", 1)?.unwrap_or(DEFAULT_TOKENS));
    request.choices = choices(f)?;
    if f.count("best_of", 1)?.is_some_and(|of| of != request.choices) {
        return Err(Refusal::unsupported("best_of", "must equal n: answers are not ranked"));
    }
    request.logprobs = logprobs::read_number(f)?;
    if request.logprobs.is_some() && f.flag("echo")?.unwrap_or(false) {
        return Err(Refusal::unsupported("logprobs", "are not available for the prompt (echo)"));
    }
    Ok(request)
}

/// Reads `prompt`: a string, an array of token ids, or an array of these.
fn prompts(f: &Fields) -> Result<Vec<Text>, Refusal> {
    let id = |v: &Json| v.as_u64().and_then(|id| u32::try_from(id).ok());
    let one = |v: &Json| match v {
        Json::String(text) => Some(Text::Plain(text.clone())),
        Json::Array(ids) => ids.iter().map(id).collect::<Option<_>>().map(Text::Ids),
        _ => None,
    };
    let value = f.get("prompt").ok_or_else(|| f.wrong("prompt", "is missing"))?;
    let texts = match value {
        Json::Array(list) if !list.iter().all(Json::is_number) => list.iter().map(one).collect(),
        other => one(other).map(|text| vec![text]),
    };
    texts.ok_or_else(|| f.wrong("prompt", "must be a string, an array of token ids, or an array of these"))
}

struct Completions {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    /// With `echo`, the prompt of each answer. Otherwise empty.
    echo: Vec<String>,
    /// Whether answers have log probabilities.
    logprobs: bool,
    /// Of each answer, the tokens whose log probabilities the next chunk has, and the characters before them.
    likely: Vec<(Vec<Likely>, usize)>,
}

impl Completions {
    fn object(&self, choices: Json) -> Json {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "choices": choices,
        })
    }

    fn chunk(&mut self, choice: usize, text: &str, finish: Option<&'static str>) -> Json {
        let logprobs = match self.likely.get_mut(choice) {
            Some((tokens, offset)) if !tokens.is_empty() => logprobs::text(&std::mem::take(tokens), offset),
            _ => Json::Null,
        };
        let choice = json!({"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish});
        let mut chunk = self.object(json!([choice]));
        if self.include_usage {
            chunk["usage"] = Json::Null;
        }
        chunk
    }
}

impl Translation for Completions {
    const FORM: Form = Form::OpenAi;

    fn begin(&mut self, out: &mut Frames) {
        for (choice, text) in self.echo.clone().iter().enumerate() {
            out.object(&self.chunk(choice, text, None));
        }
    }

    fn piece(&mut self, choice: usize, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Text(text) | Piece::Reasoning(text) | Piece::Abandoned(text) => {
                out.object(&self.chunk(choice, &text, None));
            }
            Piece::Likely(tokens) => {
                if self.likely.len() <= choice {
                    self.likely.resize(choice + 1, (Vec::new(), 0));
                }
                self.likely[choice].0.extend(tokens);
            }
            Piece::Call { .. } | Piece::Arguments(_) => {}
        }
    }

    fn done(&mut self, choice: usize, finish: Finish, out: &mut Frames) {
        out.object(&self.chunk(choice, "", Some(finish_reason(&finish))));
    }

    fn end(&mut self, took: &Usage, out: &mut Frames) {
        if self.include_usage {
            let mut last = self.object(json!([]));
            last["usage"] = usage(took);
            out.object(&last);
        }
        out.data("[DONE]");
    }

    fn whole(&mut self, answer: Answer) -> Json {
        let one = |(i, choice): (usize, crate::answer::Choice)| {
            let echo = self.echo.get(i).map_or("", String::as_str);
            let text = format!("{echo}{}{}", choice.reasoning, choice.text);
            let logprobs = self.logprobs.then(|| logprobs::text(&choice.likely, &mut 0));
            json!({"index": i, "text": text, "logprobs": logprobs, "finish_reason": finish_reason(&choice.finish)})
        };
        let choices: Vec<Json> = answer.choices.into_iter().enumerate().map(one).collect();
        let mut whole = self.object(choices.into());
        whole["usage"] = usage(&answer.usage);
        whole
    }
}
