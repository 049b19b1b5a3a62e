//! Endpoints that describe the server: its model, health, metrics and memory plan.

use crate::metrics::Now;
use crate::prefix::Prefixes;
use crate::refusal::Refusal;
use crate::service::Service;
use serde_json::{Value as Json, json};

fn model(service: &Service) -> Json {
    json!({
        "id": service.options.model, "object": "model", "created": 0, "owned_by": "dollop",
        // Anthropic's clients read these fields.
        "type": "model", "display_name": service.engine.info().name, "created_at": "1970-01-01T00:00:00Z",
        "context_length": service.pool.context,
    })
}

/// The list of models, which has one entry.
pub fn models(service: &Service) -> Json {
    let id = &service.options.model;
    json!({"object": "list", "data": [model(service)], "has_more": false, "first_id": id, "last_id": id})
}

/// The model with this name.
///
/// # Errors
/// 404 for another name.
pub fn one_model(service: &Service, name: &str) -> Result<Json, Refusal> {
    if name == service.options.model {
        Ok(model(service))
    } else {
        Err(Refusal::unknown_model(name, &service.options.model))
    }
}

/// Reports whether the server accepts requests.
///
/// # Errors
/// 503 while the server is stopping.
pub fn health(service: &Service) -> Result<Json, Refusal> {
    if service.queue.is_stopping() { Err(Refusal::stopping()) } else { Ok(json!({"status": "ok"})) }
}

/// The memory plan, the model's sizes, and the state of the sessions.
pub fn plan(service: &Service) -> Json {
    let plan = service.engine.memory_plan();
    let (running, waiting) = service.queue.load();
    json!({
        "model": service.engine.info(), "total_bytes": plan.total_bytes(), "memory": plan,
        "sessions": {
            "count": service.pool.sessions, "context": service.pool.context, "idle_tokens": service.pool.held(),
            "running": running, "waiting": waiting,
        },
        "sampling": service.sampling(), "stream": service.engine.stream_stats(), "note": service.engine.note(),
    })
}

/// All metrics in Prometheus' text format.
pub fn metrics(service: &Service) -> String {
    service.metrics.text(&Now {
        load: service.queue.load(),
        compiling: service.compiling(),
        sessions: service.pool.sessions,
        planned_bytes: service.engine.memory_plan().total_bytes(),
        batch: service.scheduler.stats(),
        prefixes: service.prefixes.as_ref().map(Prefixes::counts),
        stream: service.engine.stream_stats(),
    })
}
