//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

use crate::answer::{Answer, Finish, Piece, Usage};
use crate::feed::{Frames, Translation, respond};
use crate::fields::Fields;
use crate::refusal::{Form, Refusal};
use crate::request::{Conversation, Input, Request, check_model, content, plain};
use crate::sampling;
use crate::service::Service;
use crate::tools;
use axum::body::Body;
use axum::http::Response;
use dollop::sampler::Sampling;
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;

/// Answers a request.
///
/// # Errors
/// 400 and 404 for an invalid request, and those of `feed::respond`.
pub async fn answer(service: &Arc<Service>, json: &Json) -> Result<Response<Body>, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    let request = read(&f, service.sampling())?;
    let translation = Message {
        id: service.id("msg_"),
        model: service.options.model.clone(),
        open: None,
        blocks: 0,
        finish: Finish::Turn,
    };
    respond(service, request, translation).await
}

/// Counts the tokens of a request's prompt.
///
/// # Errors
/// 400, naming the field.
pub fn count(service: &Service, json: &Json) -> Result<Json, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    let tokens = service.tokenize(&service.render(&conversation(&f)?)?)?;
    Ok(json!({"input_tokens": tokens.len()}))
}

/// Reads a request.
///
/// # Errors
/// 400, naming the field.
pub fn read(f: &Fields, base: &Sampling) -> Result<Request, Refusal> {
    f.refuse("container", "running code is not supported")?;
    f.refuse("mcp_servers", "MCP servers are not supported")?;
    let mut request = Request::new(f, Input::Chat(conversation(f)?), sampling::read(f, base)?)?;
    request.read_stop(f, "stop_sequences")?;
    let max = f.count("max_tokens", 1)?;
    request.max_tokens = Some(max.ok_or_else(|| f.wrong("max_tokens", "is missing"))?);
    Ok(request)
}

fn conversation(f: &Fields) -> Result<Conversation, Refusal> {
    let mut messages = Vec::new();
    if let Some(system) = content(f, "system")? {
        messages.push(plain("system", system));
    }
    let list = f.list("messages")?.ok_or_else(|| f.wrong("messages", "is missing"))?;
    if list.is_empty() {
        return Err(f.wrong("messages", "must have at least one message"));
    }
    for (i, json) in list.iter().enumerate() {
        let prefix = format!("messages[{i}].");
        message(&Fields::of(json, &prefix)?, &mut messages)?;
    }
    let mut variables = crate::request::variables(f)?;
    if let Some(thinking) = f.get("thinking") {
        let on = Fields::of(thinking, "thinking.")?.text("type")? == Some("enabled");
        variables.insert("enable_thinking".into(), on.into());
    }
    tools::name_results(&mut messages);
    Ok(Conversation { messages, tools: tools::anthropic(f)?, variables })
}

/// Reads one message. Each tool result in it becomes a separate message.
fn message(f: &Fields, all: &mut Vec<Json>) -> Result<(), Refusal> {
    let role = match f.need_text("role")? {
        role @ ("user" | "assistant" | "system") => role,
        _ => return Err(f.wrong("role", "must be user or assistant")),
    };
    let blocks = match f.get("content") {
        Some(Json::Array(blocks)) => blocks,
        _ => {
            let text = content(f, "content")?.ok_or_else(|| f.wrong("content", "is missing"))?;
            all.push(plain(role, text));
            return Ok(());
        }
    };
    let (mut text, mut thinking, mut calls) = (String::new(), String::new(), Vec::new());
    let mut results = false;
    for (i, block) in blocks.iter().enumerate() {
        let prefix = format!("{}[{i}].", f.name("content"));
        let b = Fields::of(block, &prefix)?;
        match b.need_text("type")? {
            "text" => text.push_str(b.need_text("text")?),
            "thinking" => thinking.push_str(b.need_text("thinking")?),
            "redacted_thinking" => {}
            "tool_use" => {
                let input = tools::arguments(&b, "input")?;
                calls.push(tools::call(Some(b.need_text("id")?), b.need_text("name")?, input));
            }
            "tool_result" => {
                let result = content(&b, "content")?.unwrap_or_default();
                let id = b.need_text("tool_use_id")?;
                all.push(json!({"role": "tool", "tool_call_id": id, "content": result}));
                results = true;
            }
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(b.wrong("type", format!("`{other}`: this model reads text only")));
            }
        }
    }
    // The message had only tool results, so nothing is left to add.
    if results && text.is_empty() {
        return Ok(());
    }
    let mut message = Map::new();
    message.insert("role".into(), role.into());
    message.insert("content".into(), text.into());
    if !thinking.is_empty() {
        message.insert("reasoning_content".into(), thinking.into());
    }
    if !calls.is_empty() {
        message.insert("tool_calls".into(), calls.into());
    }
    all.push(Json::Object(message));
    Ok(())
}

fn stop_reason(finish: &Finish) -> (&'static str, Option<&String>) {
    match finish {
        Finish::Turn => ("end_turn", None),
        Finish::Stop(text) => ("stop_sequence", text.as_ref()),
        Finish::Calls => ("tool_use", None),
        Finish::Length => ("max_tokens", None),
    }
}

fn usage(u: &Usage) -> Json {
    json!({
        "input_tokens": u.prompt - u.cached, "cache_read_input_tokens": u.cached, "cache_creation_input_tokens": 0,
        "output_tokens": u.output,
    })
}

/// The kind of a content block.
#[derive(Clone, Copy, PartialEq)]
enum Block {
    Thinking,
    Text,
    Tool,
}

struct Message {
    id: String,
    model: String,
    /// The content block that is being streamed.
    open: Option<Block>,
    /// Number of finished content blocks, which is the index of the next one.
    blocks: usize,
    finish: Finish,
}

impl Message {
    fn object(&self, content: Json, stop: Json, stop_text: Json, usage: Json) -> Json {
        json!({
            "id": self.id, "type": "message", "role": "assistant", "model": self.model, "content": content,
            "stop_reason": stop, "stop_sequence": stop_text, "usage": usage,
        })
    }

    fn close(&mut self, out: &mut Frames) {
        if self.open.take().is_some() {
            let stop = json!({"type": "content_block_stop", "index": self.blocks});
            out.event("content_block_stop", &stop);
            self.blocks += 1;
        }
    }

    fn open(&mut self, block: Block, content: Json, out: &mut Frames) {
        if self.open == Some(block) && block != Block::Tool {
            return;
        }
        self.close(out);
        self.open = Some(block);
        let start = json!({"type": "content_block_start", "index": self.blocks, "content_block": content});
        out.event("content_block_start", &start);
    }

    fn delta(&self, delta: Json, out: &mut Frames) {
        let json = json!({"type": "content_block_delta", "index": self.blocks, "delta": delta});
        out.event("content_block_delta", &json);
    }
}

impl Translation for Message {
    const FORM: Form = Form::Anthropic;

    fn begin(&mut self, out: &mut Frames) {
        let none = usage(&Usage::default());
        let message = self.object(json!([]), Json::Null, Json::Null, none);
        out.event("message_start", &json!({"type": "message_start", "message": message}));
    }

    fn piece(&mut self, _choice: usize, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Reasoning(text) => {
                self.open(Block::Thinking, json!({"type": "thinking", "thinking": "", "signature": ""}), out);
                self.delta(json!({"type": "thinking_delta", "thinking": text}), out);
            }
            Piece::Text(text) | Piece::Abandoned(text) => {
                self.open(Block::Text, json!({"type": "text", "text": ""}), out);
                self.delta(json!({"type": "text_delta", "text": text}), out);
            }
            Piece::Call { id, name } => {
                self.open(Block::Tool, json!({"type": "tool_use", "id": id, "name": name, "input": {}}), out);
            }
            Piece::Likely(_) => {}
            Piece::Arguments(text) => {
                self.delta(json!({"type": "input_json_delta", "partial_json": text}), out);
            }
        }
    }

    fn done(&mut self, _choice: usize, finish: Finish, out: &mut Frames) {
        self.close(out);
        self.finish = finish;
    }

    fn end(&mut self, took: &Usage, out: &mut Frames) {
        let (reason, text) = stop_reason(&self.finish);
        let delta = json!({"stop_reason": reason, "stop_sequence": text});
        let json = json!({"type": "message_delta", "delta": delta, "usage": usage(took)});
        out.event("message_delta", &json);
        out.event("message_stop", &json!({"type": "message_stop"}));
    }

    fn failed(&mut self, refusal: &Refusal, out: &mut Frames) {
        out.event("error", &refusal.json(Form::Anthropic));
    }

    fn ping(&mut self, out: &mut Frames) {
        out.event("ping", &json!({"type": "ping"}));
    }

    fn whole(&mut self, answer: Answer) -> Json {
        let (choice, took) = answer.only();
        let mut content = Vec::new();
        if !choice.reasoning.is_empty() {
            content.push(json!({"type": "thinking", "thinking": choice.reasoning, "signature": ""}));
        }
        if !choice.text.is_empty() || choice.calls.is_empty() {
            content.push(json!({"type": "text", "text": choice.text}));
        }
        for call in &choice.calls {
            // A call that was cut off has no valid JSON and is dropped.
            let Ok(input) = serde_json::from_str::<Json>(&call.arguments) else { continue };
            content.push(json!({"type": "tool_use", "id": call.id, "name": call.name, "input": input}));
        }
        let (reason, text) = stop_reason(&choice.finish);
        self.object(content.into(), reason.into(), json!(text), usage(&took))
    }
}
