//! Ollama's `/api/chat` and `/api/generate`, and its endpoints that describe the model.

use crate::answer::{Answer, Finish, Piece, Usage};
use crate::feed::{Frames, Translation, json as respond_json, respond};
use crate::fields::Fields;
use crate::logprobs::{self, Likely};
use crate::refusal::{Form, Refusal};
use crate::request::{Conversation, Input, Request, Text, check_model, messages, plain};
use crate::sampling;
use crate::service::{Service, unix_time};
use crate::tools;
use axum::body::Body;
use axum::http::Response;
use dollop::sampler::Sampling;
use dollop::template::DateTime;
use serde_json::{Map, Value as Json, json};
use std::sync::Arc;
use std::time::Instant;

/// Answers `/api/chat`.
///
/// # Errors
/// 400 and 404 for an invalid request, and those of `feed::respond`.
pub async fn chat(service: &Arc<Service>, json: &Json) -> Result<Response<Body>, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    // Clients send a chat without messages to load a model. The model is already loaded.
    if f.list("messages")?.is_none_or(<[Json]>::is_empty) {
        return Ok(respond_json(&Ollama::new(service, true).loaded()));
    }
    let request = read_chat(&f, service.sampling())?.limited(service)?;
    respond(service, request.request, Ollama::new(service, true)).await
}

/// Answers `/api/generate`.
///
/// # Errors
/// 400 and 404 for an invalid request, and those of `feed::respond`.
pub async fn generate(service: &Arc<Service>, json: &Json) -> Result<Response<Body>, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    if f.text("prompt")?.unwrap_or_default().is_empty() {
        return Ok(respond_json(&Ollama::new(service, false).loaded()));
    }
    let request = read_generate(&f, service.sampling())?.limited(service)?;
    respond(service, request.request, Ollama::new(service, false)).await
}

/// A request, and the context length that it needs (`num_ctx`).
pub struct Asked {
    /// The request.
    pub request: Request,
    context: Option<usize>,
}

impl Asked {
    fn limited(self, service: &Service) -> Result<Asked, Refusal> {
        let limit = service.pool.context;
        if self.context.is_some_and(|context| context > limit) {
            let why = format!("the server's sessions have {limit} tokens (--ctx, --parallel)");
            return Err(Refusal::unsupported("options.num_ctx", why));
        }
        Ok(self)
    }
}

/// Reads a request of `/api/chat`.
///
/// # Errors
/// 400, naming the field.
pub fn read_chat(f: &Fields, base: &Sampling) -> Result<Asked, Refusal> {
    let conversation = Conversation {
        messages: messages(f, "messages")?,
        tools: tools::openai(f, true)?,
        variables: variables(f)?,
    };
    read(f, Input::Chat(conversation), base)
}

/// Reads a request of `/api/generate`.
///
/// # Errors
/// 400, naming the field.
pub fn read_generate(f: &Fields, base: &Sampling) -> Result<Asked, Refusal> {
    f.refuse("suffix", "inserting text is not supported")?;
    f.refuse("images", "this model reads text only")?;
    f.refuse("template", "only the model's own template is supported; `raw` uses none")?;
    f.refuse("context", "tokens of earlier answers are not returned; use /api/chat")?;
    let prompt = f.need_text("prompt")?;
    let input = if f.flag("raw")?.unwrap_or(false) {
        Input::Texts(vec![Text::Plain(prompt.to_owned())])
    } else {
        let system = f.text("system")?.filter(|text| !text.is_empty());
        let messages = system.map(|text| plain("system", text)).into_iter().chain([plain("user", prompt)]);
        Input::Chat(Conversation {
            messages: messages.collect(),
            variables: variables(f)?,
            ..Conversation::default()
        })
    };
    read(f, input, base)
}

fn variables(f: &Fields) -> Result<Map<String, Json>, Refusal> {
    let mut variables = Map::new();
    match f.get("think") {
        None => {}
        Some(Json::Bool(on)) => drop(variables.insert("enable_thinking".into(), (*on).into())),
        Some(Json::String(effort)) => crate::request::thinking(&mut variables, effort),
        Some(_) => return Err(f.wrong("think", "must be true, false or an effort, such as `low`")),
    }
    Ok(variables)
}

fn read(f: &Fields, input: Input, base: &Sampling) -> Result<Asked, Refusal> {
    let none = json!({});
    let options = Fields::of(f.get("options").unwrap_or(&none), "options.")?;
    let mut request = Request::new(f, input, sampling::read(&options, base)?)?;
    request.stream = f.flag("stream")?.unwrap_or(true);
    request.read_stop(&options, "stop")?;
    request.read_format(f.get("format"), "format")?;
    request.logprobs = logprobs::read(f)?;
    // -1 and -2 mean as many tokens as fit the context.
    request.max_tokens = match options.whole("num_predict")? {
        Some(0) => return Err(options.wrong("num_predict", "must not be 0")),
        n => n.and_then(|n| usize::try_from(n).ok()),
    };
    Ok(Asked { request, context: options.count("num_ctx", 1)? })
}

/// A timestamp in Ollama's format.
fn stamp(seconds: u64) -> String {
    let t = DateTime::from_unix(seconds);
    format!("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z", t.year, t.month, t.day, t.hour, t.minute, t.second)
}

/// The list of models, which has one entry.
pub fn tags(service: &Service) -> Json {
    let name = format!("{}:latest", service.options.model);
    json!({"models": [{
        "name": name, "model": name, "modified_at": stamp(0), "size": service.options.model_bytes,
        "digest": format!("{:064x}", service.options.model_bytes), "details": details(service),
    }]})
}

/// The model's details.
///
/// # Errors
/// 404 for another model.
pub fn show(service: &Service, json: &Json) -> Result<Json, Refusal> {
    let f = Fields::of(json, "")?;
    check_model(&f, &service.options.model)?;
    if let Some(name) =
        f.text("name")?.filter(|name| name.strip_suffix(":latest").unwrap_or(name) != service.options.model)
    {
        return Err(Refusal::unknown_model(name, &service.options.model));
    }
    let info = service.engine.info();
    let architecture = &info.architecture;
    let mut numbers = json!({
        "general.architecture": architecture, "general.name": info.name, "general.parameter_count": info.parameters,
    });
    for (key, value) in [
        ("context_length", info.context),
        ("block_count", info.layers),
        ("expert_count", info.experts),
        ("expert_used_count", info.experts_used),
    ] {
        numbers[format!("{architecture}.{key}")] = value.into();
    }
    Ok(json!({
        "modelfile": "", "template": "", "license": "", "parameters": service.sampling().to_string(),
        "modified_at": stamp(0), "details": details(service), "model_info": numbers,
        "capabilities": service.capabilities(),
    }))
}

fn details(service: &Service) -> Json {
    let info = service.engine.info();
    json!({
        "parent_model": "", "format": "gguf", "family": info.architecture, "families": [info.architecture],
        "parameter_size": format!("{:.1}M", info.parameters as f64 / 1e6), "quantization_level": info.mode,
    })
}

struct Ollama {
    model: String,
    chat: bool,
    start: Instant,
    finish: Finish,
    /// Name and arguments of the call that is being received. Ollama's API sends a call only when it is
    /// complete.
    call: Option<(String, String)>,
    /// Tokens whose log probabilities the next object has.
    likely: Vec<Likely>,
}

impl Ollama {
    fn new(service: &Service, chat: bool) -> Ollama {
        let model = service.options.model.clone();
        Ollama { model, chat, start: Instant::now(), finish: Finish::Turn, call: None, likely: Vec::new() }
    }

    fn object(&mut self, text: &str, thinking: &str, calls: Vec<Json>) -> Json {
        let mut out = json!({"model": self.model, "created_at": stamp(unix_time())});
        let to = if self.chat {
            out["message"] = json!({"role": "assistant", "content": text});
            &mut out["message"]
        } else {
            out["response"] = text.into();
            &mut out
        };
        if !thinking.is_empty() {
            to["thinking"] = thinking.into();
        }
        if !calls.is_empty() {
            to["tool_calls"] = calls.into();
        }
        out["done"] = false.into();
        if !self.likely.is_empty() {
            out["logprobs"] = logprobs::list(&std::mem::take(&mut self.likely));
        }
        out
    }

    fn loaded(&mut self) -> Json {
        let mut out = self.object("", "", Vec::new());
        (out["done"], out["done_reason"]) = (true.into(), "load".into());
        out
    }

    fn over(&self, mut out: Json, finish: &Finish, u: &Usage) -> Json {
        let ns = |seconds: f64| (seconds * 1e9) as u64;
        let reason = if *finish == Finish::Length { "length" } else { "stop" };
        let fields = json!({
            "done": true, "done_reason": reason, "total_duration": self.start.elapsed().as_nanos() as u64,
            "load_duration": 0, "prompt_eval_count": u.prompt, "prompt_eval_duration": ns(u.prefill_s),
            "eval_count": u.output, "eval_duration": ns(u.decode_s),
        });
        if let (Json::Object(out), Json::Object(fields)) = (&mut out, fields) {
            out.extend(fields);
        }
        out
    }

    /// Sends the pending call, which is now complete.
    fn end_call(&mut self, out: &mut Frames) {
        if let Some((name, arguments)) = self.call.take() {
            out.object(&self.object("", "", call(&name, &arguments).into_iter().collect()));
        }
    }
}

/// A call in Ollama's form, or `None` if it was cut off and its arguments are not valid JSON.
fn call(name: &str, arguments: &str) -> Option<Json> {
    let arguments: Json = serde_json::from_str(arguments).ok()?;
    Some(json!({"function": {"name": name, "arguments": arguments}}))
}

impl Translation for Ollama {
    const FORM: Form = Form::Ollama;
    const LINES: bool = true;

    fn piece(&mut self, _choice: usize, piece: Piece, out: &mut Frames) {
        match piece {
            Piece::Likely(tokens) => self.likely.extend(tokens),
            Piece::Arguments(text) => {
                if let Some((_, arguments)) = &mut self.call {
                    arguments.push_str(&text);
                }
            }
            Piece::Call { name, .. } => {
                self.end_call(out);
                self.call = Some((name, String::new()));
            }
            Piece::Abandoned(text) => {
                self.call = None;
                out.object(&self.object(&text, "", Vec::new()));
            }
            Piece::Text(text) => {
                self.end_call(out);
                out.object(&self.object(&text, "", Vec::new()));
            }
            Piece::Reasoning(text) => {
                self.end_call(out);
                out.object(&self.object("", &text, Vec::new()));
            }
        }
    }

    fn done(&mut self, _choice: usize, finish: Finish, out: &mut Frames) {
        self.end_call(out);
        self.finish = finish;
    }

    fn end(&mut self, took: &Usage, out: &mut Frames) {
        let last = self.object("", "", Vec::new());
        out.object(&self.over(last, &self.finish, took));
    }

    fn whole(&mut self, answer: Answer) -> Json {
        let (choice, took) = answer.only();
        let calls = choice.calls.iter().filter_map(|c| call(&c.name, &c.arguments)).collect();
        self.likely = choice.likely;
        let whole = self.object(&choice.text, &choice.reasoning, calls);
        self.over(whole, &choice.finish, &took)
    }
}
