//! From updates to a response's body: whole, or piece by piece. Each API says in a [`Translation`] what its pieces look like.

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

/// How an API says what happens to a request.
pub trait Translation: Send + Unpin + 'static {
    /// Whose errors these are.
    const FORM: Form;
    /// Lines of JSON instead of server-sent events.
    const LINES: bool = false;

    /// The beginning of a stream.
    fn begin(&mut self, _out: &mut Frames) {}
    /// A piece of an answer.
    fn piece(&mut self, choice: usize, piece: Piece, out: &mut Frames);
    /// The end of an answer.
    fn done(&mut self, choice: usize, finish: Finish, out: &mut Frames);
    /// The end of a stream.
    fn end(&mut self, usage: &Usage, out: &mut Frames);
    /// The stream breaks off.
    fn failed(&mut self, refusal: &Refusal, out: &mut Frames) {
        out.object(&refusal.json(Self::FORM));
    }
    /// A sign of life.
    fn ping(&mut self, out: &mut Frames) {
        if !Self::LINES {
            out.comment();
        }
    }
    /// The response that is no stream.
    fn whole(&mut self, answer: Answer) -> Json;
}

/// What is to be sent.
#[derive(Default)]
pub struct Frames {
    text: String,
    lines: bool,
}

impl Frames {
    /// An object: an event without a name, or a line.
    pub fn object(&mut self, json: &Json) {
        if self.lines {
            self.text.push_str(&format!("{json}\n"));
        } else {
            self.data(&json.to_string());
        }
    }

    /// An event without a name.
    pub fn data(&mut self, text: &str) {
        self.text.push_str(&format!("data: {text}\n\n"));
    }

    /// An event with a name.
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

/// Answers a request, in the API's own way.
///
/// # Errors
/// As [`Service::start`], and what the generation of a response that is no stream fails with.
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
    // What is wrong with the request shows before its prompt is read: then the status says so.
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

/// A response of JSON.
pub fn json(json: &Json) -> Response<Body> {
    let mut response = Response::new(Body::from(json.to_string()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The body of a stream. Dropping it, as when the client hangs up, ends the generation.
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
