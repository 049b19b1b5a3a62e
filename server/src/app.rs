//! The HTTP routes: which path belongs to which API.

use crate::api::{about, chat, completions, messages, ollama, responses, text};
use crate::feed::json;
use crate::fields;
use crate::guard;
use crate::live;
use crate::openapi;
use crate::page;
use crate::refusal::{Form, Refusal};
use crate::service::Service;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request as HttpRequest, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::middleware::{self, Next};
use axum::routing::{get, post};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value as Json, json};
use std::sync::Arc;
use std::time::Instant;

type App = State<Arc<Service>>;
type Reply = Result<Response<Body>, Refusal>;

/// The router with all routes.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Chat).await))
        .route("/v1/completions", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Completions).await))
        .route("/v1/responses", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Responses).await))
        .route("/v1/messages", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Messages).await))
        .route(
            "/v1/messages/count_tokens",
            post(async |s: App, r: HttpRequest| post_to(s, r, Api::Count).await),
        )
        .route("/api/chat", post(async |s: App, r: HttpRequest| post_to(s, r, Api::OllamaChat).await))
        .route("/api/generate", post(async |s: App, r: HttpRequest| post_to(s, r, Api::OllamaGenerate).await))
        .route("/api/show", post(async |s: App, r: HttpRequest| post_to(s, r, Api::OllamaShow).await))
        .route("/tokenize", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Tokenize).await))
        .route("/detokenize", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Detokenize).await))
        .route("/apply-template", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Template).await))
        .route("/api/tags", get(async |State(s): App| json(&ollama::tags(&s))))
        .route("/api/version", get(async || json(&json!({"version": env!("CARGO_PKG_VERSION")}))))
        .route("/v1/models", get(async |State(s): App| json(&about::models(&s))))
        .route("/v1/models/{*name}", get(one_model))
        .route("/v1/plan", get(async |State(s): App| json(&about::plan(&s))))
        .route("/v1/live", get(async |State(s): App| watched(&s)))
        .route("/v1/memory", post(async |s: App, r: HttpRequest| post_to(s, r, Api::Memory).await))
        .route("/health", get(async |State(s): App| shown(about::health(&s), Form::OpenAi)))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(async || json(&openapi::description())))
        .merge(page::router())
        .fallback(async |r: HttpRequest| unknown(&r, StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(async |r: HttpRequest| unknown(&r, StatusCode::METHOD_NOT_ALLOWED))
        .layer(middleware::from_fn_with_state(service.clone(), guarded))
        .with_state(service)
}

/// The handler that receives a POST body.
#[derive(Clone, Copy)]
enum Api {
    Chat,
    Completions,
    Responses,
    Messages,
    Count,
    OllamaChat,
    OllamaGenerate,
    OllamaShow,
    Tokenize,
    Detokenize,
    Template,
    Memory,
}

async fn post_to(State(service): App, request: HttpRequest, api: Api) -> Response<Body> {
    let form = Form::of(request.uri().path());
    answer(&service, request, api).await.unwrap_or_else(|refusal| {
        log::debug!("refused: {}", refusal.message);
        refusal.response(form)
    })
}

async fn answer(service: &Arc<Service>, request: HttpRequest, api: Api) -> Reply {
    let body = fields::parse(&read(service, request).await?)?;
    match api {
        Api::Chat => chat::answer(service, &body).await,
        Api::Completions => completions::answer(service, &body).await,
        Api::Responses => responses::answer(service, &body).await,
        Api::Messages => messages::answer(service, &body).await,
        Api::OllamaChat => ollama::chat(service, &body).await,
        Api::OllamaGenerate => ollama::generate(service, &body).await,
        Api::Memory => live::set_memory(service, &body).await,
        Api::OllamaShow => ollama::show(service, &body).map(|j| json(&j)),
        Api::Count => apart(service, body, messages::count).await,
        Api::Tokenize => apart(service, body, text::tokenize).await,
        Api::Detokenize => apart(service, body, text::detokenize).await,
        Api::Template => apart(service, body, text::apply_template).await,
    }
}

/// Runs `work` on a blocking thread. Its input text may be long, and the async thread must keep serving
/// connections.
async fn apart(
    service: &Arc<Service>,
    body: Json,
    work: fn(&Service, &Json) -> Result<Json, Refusal>,
) -> Reply {
    let service = service.clone();
    let _permit = service.preparing.acquire().await.map_err(|_| Refusal::stopping())?;
    let work = {
        let service = service.clone();
        move || work(&service, &body)
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| crate::answer::broken())?.map(|j| json(&j))
}

/// Reads the body, limited by `max_body_bytes` and `read_timeout`.
async fn read(service: &Service, request: HttpRequest) -> Result<Bytes, Refusal> {
    let limit = service.options.max_body_bytes;
    let body = Limited::new(request.into_body(), limit).collect();
    match tokio::time::timeout(service.options.read_timeout, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.downcast_ref::<LengthLimitError>().is_some() => {
            let message = format!("the body is larger than the limit of {limit} bytes");
            Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message))
        }
        Ok(Err(e)) => Err(Refusal::invalid(format!("the body ended early: {e}"))),
        Err(_) => Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body was not received in time")),
    }
}

fn shown(of: Result<Json, Refusal>, form: Form) -> Response<Body> {
    of.map_or_else(|refusal| refusal.response(form), |value| json(&value))
}

async fn one_model(State(service): App, Path(name): Path<String>) -> Response<Body> {
    shown(about::one_model(&service, &name), Form::OpenAi)
}

fn watched(service: &Arc<Service>) -> Response<Body> {
    live::watch(service).unwrap_or_else(|refusal| refusal.response(Form::OpenAi))
}

async fn metrics(State(service): App) -> Response<Body> {
    let mut response = Response::new(Body::from(about::metrics(&service)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn unknown(request: &HttpRequest, status: StatusCode) -> Response<Body> {
    let (method, path) = (request.method(), request.uri().path());
    let shown: String = path.chars().take(80).collect();
    Refusal::new(status, format!("there is no endpoint {method} {shown}; docs/server.md lists the endpoints"))
        .response(Form::of(path))
}

/// Route labels of the metrics. The list is fixed, so a client cannot create new labels with unknown paths.
pub const ROUTES: [&str; 21] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/models",
    "/v1/plan",
    "/v1/live",
    "/v1/memory",
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/api/show",
    "/api/version",
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/health",
    "/metrics",
    "/openapi.json",
    "/",
];

/// Middleware for every request: checks host, origin and key, adds CORS headers, counts and logs.
async fn guarded(State(service): App, request: HttpRequest, next: Next) -> Response<Body> {
    let start = Instant::now();
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let options = &service.options;
    let preflight = guard::is_preflight(&method, &headers);
    let checked = match preflight {
        true => guard::check_preflight(options, &uri, &headers),
        false => guard::check(options, &uri, &headers),
    };
    let mut response = match checked {
        Err(refusal) => refusal.response(Form::of(uri.path())),
        Ok(()) if preflight => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Ok(()) => next.run(request).await,
    };
    guard::cors(options, &headers, response.headers_mut());
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    let route = ROUTES.iter().find(|&&route| route == uri.path()).copied().unwrap_or("other");
    let status = response.status().as_u16();
    service.metrics.request(route, status);
    log::info!("{method} {route} {status} after {} ms", start.elapsed().as_millis());
    response
}
