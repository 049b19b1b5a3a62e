//! OpenAI's `/v1/responses`. The server stores nothing: the client sends the whole conversation each time.

use crate::answer::{Answer, Call, Finish, Piece, Usage};
use crate::feed::{Frames, Translation, respond};
use crate::fields::Fields;
use crate::logprobs::{self, Likely};
use crate::refusal::{Form, Refusal};
use crate::request::{Conversation, Input, Request, check_model, content, plain};
use crate::sampling;
use crate::service::{Service, unix_time};
use crate::tools;
use axum::body::Body;
use axum::http::Response;
use dollop::sampler::Sampling;
use serde_json::{Value as Json, json};
use std::sync::Arc;

/// Known fields that are not supported, with the reason.
const REFUSED: [(&str, &str); 4] = [
    ("previous_response_id", "responses are not stored: send the conversation as input"),
    ("conversation", "conversations are not stored: send the messages as input"),
    ("background", "responses are not stored"),
    ("prompt", "prompts are not stored: send instructions and input"),
];

/// Answers a request.
///
/// # Errors
/// 400 and 404 for an invalid request, and those of `feed::respond`.
pub async fn answer(service: &Arc<Service>, json: &Json) -> Result<Response<Body>, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    let request = read(&f, service.sampling())?;
    let echo = |name: &str, default: Json| f.get(name).cloned().unwrap_or(default);
    let sampling = &request.sampling;
    let head = json!({
        "id": service.id("resp_"), "object": "response", "created_at": unix_time(), "status": "in_progress",
        "error": null, "incomplete_details": null, "instructions": echo("instructions", Json::Null),
        "max_output_tokens": request.max_tokens, "model": service.options.model, "output": [],
        "parallel_tool_calls": echo("parallel_tool_calls", true.into()), "previous_response_id": null,
        "reasoning": echo("reasoning", json!({"effort": null, "summary": null})), "store": false,
        "temperature": shown(sampling.temperature), "text": echo("text", json!({"format": {"type": "text"}})),
        "tool_choice": echo("tool_choice", "auto".into()), "tools": echo("tools", json!([])),
        "top_logprobs": request.logprobs.unwrap_or(0), "top_p": shown(sampling.top_p), "truncation": "disabled", "usage": null,
        "metadata": echo("metadata", json!({})),
    });
    let names = (service.id("msg_"), service.id("rs_"), service.id("fc_"));
    let translation = Responses {
        head,
        names,
        number: 0,
        output: Vec::new(),
        open: None,
        likely: Vec::new(),
        finish: Finish::Turn,
    };
    respond(service, request, translation).await
}

/// The number as the client wrote it: a direct conversion to f64 would show 0.7 as 0.699999988.
fn shown(value: f32) -> Json {
    value.to_string().parse::<f64>().unwrap_or_default().into()
}

/// Reads a request.
///
/// # Errors
/// 400, naming the field.
pub fn read(f: &Fields, base: &Sampling) -> Result<Request, Refusal> {
    for (name, why) in REFUSED {
        f.refuse(name, why)?;
    }
    if f.text("truncation")?.is_some_and(|how| how != "disabled") {
        return Err(Refusal::unsupported(
            "truncation",
            "conversations are never truncated: must be `disabled`",
        ));
    }
    let mut messages = Vec::new();
    if let Some(instructions) = f.text("instructions")? {
        messages.push(plain("system", instructions));
    }
    match f.get("input") {
        Some(Json::String(text)) => messages.push(plain("user", text.as_str())),
        Some(Json::Array(items)) => {
            for (i, json) in items.iter().enumerate() {
                let prefix = format!("input[{i}].");
                item(&Fields::of(json, &prefix)?, &mut messages)?;
            }
        }
        Some(_) => return Err(f.wrong("input", "must be a string or an array of items")),
        None => return Err(f.wrong("input", "is missing")),
    }
    let mut variables = crate::request::variables(f)?;
    if let Some(reasoning) = f.get("reasoning")
        && let Some(effort) = Fields::of(reasoning, "reasoning.")?.text("effort")?
    {
        crate::request::thinking(&mut variables, effort);
    }
    tools::name_results(&mut messages);
    let conversation = Conversation { messages, tools: tools::openai(f, false)?, variables };
    let mut request = Request::new(f, Input::Chat(conversation), sampling::read(f, base)?)?;
    request.max_tokens = f.count("max_output_tokens", 1)?;
    request.logprobs = logprobs::read_included(f)?;
    if let Some(text) = f.get("text") {
        request.read_format(Fields::of(text, "text.")?.get("format"), "text.format")?;
    }
    Ok(request)
}

/// Reads one item of the input.
fn item(f: &Fields, all: &mut Vec<Json>) -> Result<(), Refusal> {
    match f.text("type")?.unwrap_or("message") {
        "message" => {
            let role = match f.need_text("role")? {
                "developer" => "system",
                role @ ("system" | "user" | "assistant") => role,
                _ => return Err(f.wrong("role", "must be system, developer, user or assistant")),
            };
            let text = content(f, "content")?.ok_or_else(|| f.wrong("content", "is missing"))?;
            all.push(plain(role, text));
        }
        "function_call" => {
            let call = tools::call(
                Some(f.need_text("call_id")?),
                f.need_text("name")?,
                tools::arguments(f, "arguments")?,
            );
            // Consecutive calls of one answer belong to one message.
            match all.last_mut().and_then(|last| last.get_mut("tool_calls")?.as_array_mut()) {
                Some(calls) => calls.push(call),
                None => all.push(json!({"role": "assistant", "content": "", "tool_calls": [call]})),
            }
        }
        "function_call_output" => {
            let output = content(f, "output")?.unwrap_or_default();
            all.push(json!({"role": "tool", "tool_call_id": f.need_text("call_id")?, "content": output}));
        }
        // Most templates leave the reasoning of earlier answers out of the conversation.
        "reasoning" => {}
        other => {
            let other: String = other.chars().take(40).collect();
            return Err(f.wrong("type", format!("`{other}` is not supported")));
        }
    }
    Ok(())
}

fn usage(u: &Usage) -> Json {
    json!({
        "input_tokens": u.prompt, "input_tokens_details": {"cached_tokens": u.cached}, "output_tokens": u.output,
        "output_tokens_details": {"reasoning_tokens": u.reasoning}, "total_tokens": u.prompt + u.output,
    })
}

/// An output item that is being streamed.
enum Open {
    Reasoning(String),
    /// The text and its tokens with their log probabilities.
    Text(String, Vec<Likely>),
    Call(Call),
}

struct Responses {
    head: Json,
    /// Id prefixes of messages, reasoning items and calls. The item's index is appended.
    names: (String, String, String),
    /// The sequence number of the next event.
    number: u64,
    /// Finished items.
    output: Vec<Json>,
    open: Option<Open>,
    /// Tokens whose log probabilities the next piece has.
    likely: Vec<Likely>,
    finish: Finish,
}

impl Responses {
    fn event(&mut self, name: &str, mut json: Json, out: &mut Frames) {
        (json["type"], json["sequence_number"]) = (name.into(), self.number.into());
        self.number += 1;
        out.event(name, &json);
    }

    /// The JSON of the open item in its current state.
    fn item(&self, open: &Open, status: &str) -> Json {
        let n = self.output.len();
        match open {
            Open::Reasoning(text) => json!({
                "type": "reasoning", "id": format!("{}_{n}", self.names.1), "summary": [], "status": status,
                "content": [{"type": "reasoning_text", "text": text}],
            }),
            Open::Text(text, likely) => json!({
                "type": "message", "id": format!("{}_{n}", self.names.0), "status": status, "role": "assistant",
                "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs::list(likely)}],
            }),
            Open::Call(call) => json!({
                "type": "function_call", "id": format!("{}_{n}", self.names.2), "call_id": call.id, "name": call.name,
                "arguments": call.arguments, "status": status,
            }),
        }
    }

    /// The fields that all events about the open item share.
    fn at(&self, id: &Json) -> Json {
        json!({"item_id": id, "output_index": self.output.len(), "content_index": 0})
    }

    fn start(&mut self, open: Open, out: &mut Frames) {
        self.close("completed", out);
        let mut item = self.item(&open, "in_progress");
        let id = item["id"].clone();
        let part = item["content"][0].clone();
        if !matches!(open, Open::Call(_)) {
            item["content"] = json!([]);
        }
        self.event(
            "response.output_item.added",
            json!({"output_index": self.output.len(), "item": item}),
            out,
        );
        if !matches!(open, Open::Call(_)) {
            let mut at = self.at(&id);
            at["part"] = part;
            self.event("response.content_part.added", at, out);
        }
        self.open = Some(open);
    }

    fn delta(&mut self, text: String, out: &mut Frames) {
        let Some(mut open) = self.open.take() else { return };
        let likely = std::mem::take(&mut self.likely);
        let name = match &mut open {
            Open::Reasoning(all) => {
                all.push_str(&text);
                "response.reasoning_text.delta"
            }
            Open::Text(all, tokens) => {
                all.push_str(&text);
                tokens.extend(likely.iter().cloned());
                "response.output_text.delta"
            }
            Open::Call(call) => {
                call.arguments.push_str(&text);
                "response.function_call_arguments.delta"
            }
        };
        let mut at = self.at(&self.item(&open, "in_progress")["id"]);
        at["delta"] = text.into();
        if let Open::Text(..) = open {
            at["logprobs"] = logprobs::list(&likely);
        }
        self.open = Some(open);
        self.event(name, at, out);
    }

    fn close(&mut self, status: &str, out: &mut Frames) {
        let Some(open) = self.open.take() else { return };
        let item = self.item(&open, status);
        let mut at = self.at(&item["id"]);
        let name = match &open {
            Open::Reasoning(text) => {
                at["text"] = text.as_str().into();
                "response.reasoning_text.done"
            }
            Open::Text(text, likely) => {
                (at["text"], at["logprobs"]) = (text.as_str().into(), logprobs::list(likely));
                "response.output_text.done"
            }
            Open::Call(call) => {
                (at["name"], at["arguments"]) = (call.name.as_str().into(), call.arguments.as_str().into());
                "response.function_call_arguments.done"
            }
        };
        self.event(name, at, out);
        if !matches!(open, Open::Call(_)) {
            let mut at = self.at(&item["id"]);
            at["part"] = item["content"][0].clone();
            self.event("response.content_part.done", at, out);
        }
        let done = json!({"output_index": self.output.len(), "item": item});
        self.event("response.output_item.done", done, out);
        self.output.push(item);
    }

    /// The final response object.
    fn response(&mut self, took: &Usage) -> Json {
        let mut response = self.head.clone();
        response["status"] = "completed".into();
        if self.finish == Finish::Length {
            response["status"] = "incomplete".into();
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["output"] = std::mem::take(&mut self.output).into();
        response["usage"] = usage(took);
        response
    }
}

impl Translation for Responses {
    const FORM: Form = Form::OpenAi;

    fn begin(&mut self, out: &mut Frames) {
        let head = self.head.clone();
        self.event("response.created", json!({"response": head}), out);
        let head = self.head.clone();
        self.event("response.in_progress", json!({"response": head}), out);
    }

    fn piece(&mut self, _choice: usize, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Reasoning(text) => {
                if !matches!(self.open, Some(Open::Reasoning(_))) {
                    self.start(Open::Reasoning(String::new()), out);
                }
                self.delta(text, out);
            }
            Piece::Text(text) | Piece::Abandoned(text) => {
                if !matches!(self.open, Some(Open::Text(..))) {
                    self.start(Open::Text(String::new(), Vec::new()), out);
                }
                self.delta(text, out);
            }
            Piece::Call { id, name } => {
                self.start(Open::Call(Call { id, name, arguments: String::new() }), out);
            }
            Piece::Arguments(text) => self.delta(text, out),
            Piece::Likely(tokens) => self.likely.extend(tokens),
        }
    }

    fn done(&mut self, _choice: usize, finish: Finish, out: &mut Frames) {
        // The last tokens may have no text.
        if let (Some(Open::Text(_, tokens)), more) = (&mut self.open, std::mem::take(&mut self.likely)) {
            tokens.extend(more);
        }
        let status = if finish == Finish::Length { "incomplete" } else { "completed" };
        self.close(status, out);
        self.finish = finish;
    }

    fn end(&mut self, took: &Usage, out: &mut Frames) {
        let response = self.response(took);
        let name = if self.finish == Finish::Length { "response.incomplete" } else { "response.completed" };
        self.event(name, json!({"response": response}), out);
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Frames) {
        let mut response = self.head.clone();
        response["status"] = "failed".into();
        response["error"] = json!({"code": "server_error", "message": refusal.message});
        self.event("response.failed", json!({"response": response}), out);
    }

    fn whole(&mut self, answer: Answer) -> Json {
        let (choice, took) = answer.only();
        let mut items = Vec::new();
        if !choice.reasoning.is_empty() {
            items.push(Open::Reasoning(choice.reasoning));
        }
        if !choice.text.is_empty() || choice.calls.is_empty() {
            items.push(Open::Text(choice.text, choice.likely));
        }
        items.extend(choice.calls.into_iter().map(Open::Call));
        let status = if choice.finish == Finish::Length { "incomplete" } else { "completed" };
        for item in items {
            self.output.push(self.item(&item, status));
        }
        self.finish = choice.finish;
        self.response(&took)
    }
}
