//! Turns updates into a response body, either at once or as a stream. Each API implements [`Translation`] to
//! format updates.

use crate::answer::{Answer, Finish, Piece, Update, Usage, broken};
use crate::refusal::{Form, Refusal};
use crate::request::Request;
use crate::service::{Generation, Service};
use axum::body::Body;
use axum::http::{HeaderValue, Response, header};
use bytes::Bytes;
use http_body::Frame;
use serde_json::Value as Json;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

/// How an API formats the updates of a request.
pub trait Translation: Send + Unpin + 'static {
    /// The API's error format.
    const FORM: Form;
    /// Whether the stream is newline-delimited JSON (NDJSON) instead of server-sent events.
    const LINES: bool = false;

    /// Writes the beginning of a stream.
    fn begin(&mut self, _out: &mut Frames) {}
    /// Writes a piece of an answer.
    fn piece(&mut self, choice: usize, piece: Piece, out: &mut Frames);
    /// Writes the end of an answer.
    fn done(&mut self, choice: usize, finish: Finish, out: &mut Frames);
    /// Writes the end of a stream.
    fn end(&mut self, usage: &Usage, out: &mut Frames);
    /// Writes the error that ends a stream early.
    fn failed(&mut self, refusal: &Refusal, out: &mut Frames) {
        out.object(&refusal.json(Self::FORM));
    }
    /// Writes a keep-alive. NDJSON has no comments, so there it writes nothing.
    fn ping(&mut self, out: &mut Frames) {
        if !Self::LINES {
            out.comment();
        }
    }
    /// The body of a response that is not streamed.
    fn whole(&mut self, answer: Answer) -> Json;
}

/// Output that is not yet sent.
#[derive(Default)]
pub struct Frames {
    text: String,
    lines: bool,
}

impl Frames {
    /// Adds a JSON object, as an unnamed SSE event or as an NDJSON line.
    pub fn object(&mut self, json: &Json) {
        if self.lines {
            self.text.push_str(&format!("{json}\n"));
        } else {
            self.data(&json.to_string());
        }
    }

    /// Adds an unnamed SSE event.
    pub fn data(&mut self, text: &str) {
        self.text.push_str(&format!("data: {text}\n\n"));
    }

    /// Adds a named SSE event.
    pub fn event(&mut self, name: &str, json: &Json) {
        self.text.push_str(&format!("event: {name}\ndata: {json}\n\n"));
    }

    fn comment(&mut self) {
        self.text.push_str(": waiting\n\n");
    }

    fn take(&mut self) -> Option<Bytes> {
        (!self.text.is_empty()).then(|| std::mem::take(&mut self.text).into())
    }
}

/// Starts a request and responds in the API's format.
///
/// # Errors
/// Those of [`Service::start`]. Also the failure of the generation, if the response is not streamed or the
/// failure is the first update.
pub async fn respond<T: Translation>(
    service: &Arc<Service>,
    request: Request,
    mut translation: T,
) -> Result<Response<Body>, Refusal> {
    let stream = request.stream;
    let mut generation = service.start(request).await?;
    if !stream {
        let answer = Answer::collect(&mut generation.updates).await?;
        return Ok(json(&translation.whole(answer)));
    }
    // An invalid request fails before prefill, as the first update. The response can then still have an error
    // status.
    let first = match generation.updates.recv().await {
        Some(Update::Failed(refusal)) => return Err(refusal),
        first => first.unwrap_or_else(|| Update::Failed(broken())),
    };
    let mut feed = Feed::new(generation, translation, service.options.ping);
    feed.hear(first);
    let mut response = Response::new(Body::new(feed));
    let kind = if T::LINES { "application/x-ndjson" } else { "text/event-stream" };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// A JSON response.
pub fn json(json: &Json) -> Response<Body> {
    let mut response = Response::new(Body::from(json.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body of a streamed response. Hyper drops it when the client disconnects, which cancels the generation.
struct Feed<T> {
    generation: Option<Generation>,
    translation: T,
    frames: Frames,
    ping: Interval,
}

impl<T: Translation> Feed<T> {
    fn new(generation: Generation, mut translation: T, every: Duration) -> Feed<T> {
        let mut ping = interval_at(tokio::time::Instant::now() + every, every);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut frames = Frames { lines: T::LINES, ..Frames::default() };
        translation.begin(&mut frames);
        Feed { generation: Some(generation), translation, frames, ping }
    }

    fn hear(&mut self, update: Update) {
        let (to, out) = (&mut self.translation, &mut self.frames);
        match update {
            Update::Begun => return,
            Update::Piece(choice, piece) => return to.piece(choice, piece, out),
            Update::Done(choice, finish) => return to.done(choice, finish, out),
            Update::End(usage) => to.end(&usage, out),
            Update::Failed(refusal) => to.failed(&refusal, out),
        }
        self.generation = None;
    }
}

impl<T: Translation> http_body::Body for Feed<T> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        while let Some(generation) = &mut this.generation {
            match generation.updates.poll_recv(cx) {
                Poll::Ready(update) => {
                    this.ping.reset();
                    this.hear(update.unwrap_or_else(|| Update::Failed(broken())));
                }
                Poll::Pending => break,
            }
        }
        if this.generation.is_some() && this.frames.text.is_empty() && this.ping.poll_tick(cx).is_ready() {
            this.translation.ping(&mut this.frames);
        }
        match (this.frames.take(), &this.generation) {
            (Some(bytes), _) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            (None, Some(_)) => Poll::Pending,
            (None, None) => Poll::Ready(None),
        }
    }
}
