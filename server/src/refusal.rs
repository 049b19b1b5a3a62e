//! Errors of requests, and their JSON in each API's format.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use serde_json::{Value as Json, json};

/// The JSON format of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `{"error": {"message", "type", "param", "code"}}`.
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`.
    Anthropic,
    /// `{"error": "message"}`.
    Ollama,
}

impl Form {
    /// The format of the API that `path` belongs to.
    pub fn of(path: &str) -> Form {
        if path.starts_with("/v1/messages") {
            Form::Anthropic
        } else if path.starts_with("/api/") {
            Form::Ollama
        } else {
            Form::OpenAi
        }
    }
}

/// A refused or failed request.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status code.
    pub status: StatusCode,
    /// What is wrong, and how to fix it.
    pub message: String,
    /// The field that caused the error.
    pub field: Option<String>,
    /// OpenAI's `code`, if one applies.
    pub code: Option<&'static str>,
    /// Seconds for the `Retry-After` header.
    pub retry_after: Option<u64>,
}

impl Refusal {
    /// A refusal with only a status and a message.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Refusal {
        Refusal { status, message: message.into(), field: None, code: None, retry_after: None }
    }

    /// 400: the request is invalid.
    pub fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: a field is invalid.
    pub fn field(name: &str, message: impl std::fmt::Display) -> Refusal {
        Refusal { field: Some(name.to_owned()), ..Refusal::invalid(format!("{name}: {message}")) }
    }

    /// 400: a field is known but not supported.
    pub fn unsupported(name: &str, why: impl std::fmt::Display) -> Refusal {
        Refusal { code: Some("unsupported_parameter"), ..Refusal::field(name, why) }
    }

    /// 404: the requested model is not the one that is served.
    pub fn unknown_model(asked: &str, served: &str) -> Refusal {
        let shown: String = asked.chars().take(80).collect();
        let message = format!("model '{shown}' not found: this server serves '{served}'");
        let code = Some("model_not_found");
        Refusal { code, field: Some("model".into()), ..Refusal::new(StatusCode::NOT_FOUND, message) }
    }

    /// 429: all sessions are busy and the queue is full.
    pub fn busy(seconds: u64) -> Refusal {
        let message = format!("all sessions are busy and the queue is full; try again in {seconds} s");
        let (code, retry_after) = (Some("rate_limit_exceeded"), Some(seconds));
        Refusal { code, retry_after, ..Refusal::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// 503: the server is stopping.
    pub fn stopping() -> Refusal {
        let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the server is stopping");
        Refusal { retry_after: Some(5), ..refusal }
    }

    /// 500: an error of the server itself.
    pub fn internal(message: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The error as JSON in the format `form`.
    pub fn json(&self, form: Form) -> Json {
        match form {
            Form::OpenAi => {
                let kind = match self.status.as_u16() {
                    401 => "authentication_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    429 => "rate_limit_error",
                    500.. => "server_error",
                    _ => "invalid_request_error",
                };
                json!({"error": {"message": self.message, "type": kind, "param": self.field, "code": self.code}})
            }
            Form::Anthropic => {
                let kind = match self.status.as_u16() {
                    401 => "authentication_error",
                    403 => "permission_error",
                    404 => "not_found_error",
                    413 => "request_too_large",
                    429 => "rate_limit_error",
                    503 => "overloaded_error",
                    500.. => "api_error",
                    _ => "invalid_request_error",
                };
                json!({"type": "error", "error": {"type": kind, "message": self.message}})
            }
            Form::Ollama => json!({"error": self.message}),
        }
    }

    /// The error as an HTTP response.
    pub fn response(&self, form: Form) -> Response<Body> {
        let mut response = Response::new(Body::from(self.json(form).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<dollop::Error> for Refusal {
    fn from(e: dollop::Error) -> Refusal {
        use dollop::Error;
        match &e {
            Error::Invalid(_) | Error::Template(_) | Error::Unsupported { .. } => {
                Refusal::invalid(e.to_string())
            }
            Error::ContextFull { needed, limit } => {
                let message = format!(
                    "the prompt is too long: it needs {needed} tokens, and the context has {limit}; shorten it, or start the server with a larger context (--ctx) or fewer sessions (--parallel)"
                );
                Refusal { code: Some("context_length_exceeded"), ..Refusal::invalid(message) }
            }
            Error::Cancelled => Refusal::stopping(),
            _ => Refusal::internal(e.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_api_has_its_form() {
        let refusal = Refusal::field("temperature", "must be a number");
        assert_eq!(refusal.json(Form::of("/api/chat")), json!({"error": "temperature: must be a number"}));
        let openai = refusal.json(Form::of("/v1/chat/completions"));
        assert_eq!(openai["error"]["param"], "temperature");
        assert_eq!(openai["error"]["type"], "invalid_request_error");
        let anthropic = Refusal::busy(3).json(Form::of("/v1/messages"));
        assert_eq!(
            (&anthropic["type"], &anthropic["error"]["type"]),
            (&json!("error"), &json!("rate_limit_error"))
        );
        assert_eq!(Refusal::busy(3).response(Form::OpenAi).headers()["retry-after"], "3");
    }
}
