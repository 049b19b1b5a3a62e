//!
//! Live monitoring. `GET /v1/live` streams an event every quarter of a second. `POST /v1/memory` changes the
//! memory budget while the model runs.
//!
//! Without a watching client, only tokens are counted. An event needs data behind a lock, which the layer
//! being computed holds. So events are built on a blocking thread, not on the thread that serves connections.

use crate::feed::json;
use crate::fields::Fields;
use crate::options::ServerOptions;
use crate::refusal::Refusal;
use crate::service::Service;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use dollop::internal::sched::Held;
use dollop::{Engine, Error, StreamStats};
use http_body::Frame;
use serde_json::{Value as Json, json};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, interval};

/// Interval between events.
const EVERY: Duration = Duration::from_millis(250);
/// Maximum number of clients that watch at a time.
const MAX_WATCHERS: usize = 16;

/// The server's state for live monitoring.
pub struct Live {
    tokens: AtomicU64,
    watchers: Arc<Semaphore>,
    /// Serializes changes of the budget, each of which waits for the layer being computed.
    resizing: Semaphore,
    /// The largest budget that a client may set.
    most: u64,
}

impl Live {
    /// No tokens and no watchers.
    pub fn new(engine: &Engine, options: &ServerOptions) -> Live {
        let opened = || engine.memory_plan().budget;
        Live {
            tokens: AtomicU64::new(0),
            watchers: Arc::new(Semaphore::new(MAX_WATCHERS)),
            resizing: Semaphore::new(1),
            most: options.max_memory.or_else(opened).unwrap_or(u64::MAX),
        }
    }

    /// Counts a generated token.
    pub fn token(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
    }
}

/// Streams events until the client disconnects or the server stops.
///
/// # Errors
/// 429 if `MAX_WATCHERS` clients watch already.
pub fn watch(service: &Arc<Service>) -> Result<Response<Body>, Refusal> {
    let permit = service.live.watchers.clone().try_acquire_owned();
    let permit = permit.map_err(|_| {
        let message = format!("at most {MAX_WATCHERS} clients can watch at a time");
        Refusal { retry_after: Some(5), ..Refusal::new(StatusCode::TOO_MANY_REQUESTS, message) }
    })?;
    // With room for one event, a client that reads slowly gets fewer events, not outdated ones.
    let (sender, events) = channel(1);
    let service = service.clone();
    tokio::spawn(async move {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Seen::default();
        loop {
            ticks.tick().await;
            let Ok(place) = sender.reserve().await else { return };
            if service.queue.is_stopping() {
                return;
            }
            let service = service.clone();
            let Ok((text, now)) = tokio::task::spawn_blocking(move || last.next(&service)).await else {
                return;
            };
            last = now;
            place.send(Bytes::from(format!("data: {text}\n\n")));
        }
    });
    let mut response = Response::new(Body::new(Events { events, _permit: permit }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// The response body of an event stream.
struct Events {
    events: Receiver<Bytes>,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.get_mut().events.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The counters at a client's last event.
#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    tokens: u64,
    stream: Option<StreamStats>,
    reads: Vec<u32>,
}

impl Seen {
    /// The next event, with differences to `self`, and the counters for the one after it.
    fn next(self, service: &Service) -> (Json, Seen) {
        let (engine, at) = (&service.engine, Instant::now());
        let tokens = service.live.tokens.load(Ordering::Relaxed);
        let (stream, held) = (engine.stream_stats(), engine.held_experts());
        let since = stream
            .as_ref()
            .map(|now| self.stream.as_ref().map_or_else(StreamStats::default, |then| now.since(then)));
        let (running, waiting) = service.queue.load();
        let event = json!({
            "seconds": self.at.map_or(0.0, |then| (at - then).as_secs_f64()),
            "tokens": if self.at.is_some() { tokens - self.tokens } else { 0 },
            "running": running, "waiting": waiting,
            "memory": memory(service),
            "stream": since.as_ref().map(streamed),
            "experts": held.as_deref().map(|held| picture(held, &self.reads)),
        });
        let reads = held.iter().flatten().flatten().map(|e| e.reads).collect();
        (event, Seen { at: Some(at), tokens, stream, reads })
    }
}

fn streamed(s: &StreamStats) -> Json {
    // Means and rates are undefined while no expert has been used.
    let used = s.gate_mass > 0.0;
    json!({
        "mean_bits": used.then(|| s.mean_bits()), "hit_rate": used.then(|| s.hit_rate()),
        "bytes_read": s.bytes_wanted + s.bytes_ahead + s.bytes_embedding,
        "evictions": s.evictions, "downgrades": s.downgrades, "upgrades": s.upgrades,
    })
}

/// Two strings per layer with a digit per expert: its bits in memory, and its planes read since the last
/// event (9: nine or more). A large model has 20,000 experts, and JSON numbers would be several times as
/// long.
fn picture(held: &[Vec<Held>], before: &[u32]) -> Json {
    let digit = |n: u32| char::from_digit(n.min(9), 10).unwrap_or('9');
    let mut before = before.iter();
    let mut read = |e: &Held| digit(before.next().map_or(0, |&then| e.reads.wrapping_sub(then)));
    let reads: Vec<String> = held.iter().map(|layer| layer.iter().map(&mut read).collect()).collect();
    let bits = |layer: &Vec<Held>| layer.iter().map(|e| digit(e.bits.into())).collect::<String>();
    json!({"bits": held.iter().map(bits).collect::<Vec<_>>(), "reads": reads})
}

/// The current memory plan, and the range of budgets that a client may set.
fn memory(service: &Service) -> Json {
    let plan = service.engine.memory_plan();
    let total = plan.total_bytes();
    let mut json = json!({
        "budget": plan.budget, "total_bytes": total, "streaming": plan.streaming, "gpu": plan.gpu,
        "overhead_bytes": plan.overhead_bytes, "dense_bytes": plan.dense_bytes, "kv_bytes": plan.kv_bytes,
        "scratch_bytes": plan.scratch_bytes,
        "expert_bytes": plan.expert_bytes + plan.refinements.map_or(0, |r| r.bytes),
        "staging_bytes": plan.staging_bytes + plan.refinements.map_or(0, |r| r.staging_bytes),
    });
    if plan.streaming
        && let Some(least) = least(&service.engine)
    {
        // A budget beyond all experts at their highest level has no effect.
        let all = plan.levels.iter().map(|level| level.expert_bytes).max().unwrap_or(0);
        let most = (total - plan.expert_bytes + all).min(service.live.most);
        json["least_bytes"] = least.into();
        json["most_bytes"] = most.max(least).into();
    }
    json
}

/// The smallest budget that the engine accepts, or `None` if its budget cannot change. A budget of 0 always
/// fails, and the error contains the smallest one.
fn least(engine: &Engine) -> Option<u64> {
    match engine.set_memory(0) {
        Err(Error::Budget { smallest, .. }) => Some(smallest),
        _ => None,
    }
}

/// Sets the memory budget from a body `{"bytes": N}`.
///
/// # Errors
/// 400 for a budget that is too small or above the server's limit, and if no experts are streamed on the CPU.
pub async fn set_memory(service: &Arc<Service>, body: &Json) -> Result<Response<Body>, Refusal> {
    let bytes = Fields::of(body, "")?.count("bytes", 1)?;
    let bytes = bytes.ok_or_else(|| Refusal::field("bytes", "is missing"))? as u64;
    let most = service.live.most;
    if bytes > most {
        let mb = |bytes: u64| bytes >> 20;
        let message =
            format!("{} MB exceed the server's limit of {} MB, which --max-memory sets", mb(bytes), mb(most));
        return Err(Refusal::field("bytes", message));
    }
    let _permit = service.live.resizing.acquire().await.map_err(|_| Refusal::stopping())?;
    let service = service.clone();
    let work = move || match service.engine.set_memory(bytes) {
        Ok(given) => Ok(json(&json!({"given_back_bytes": given, "memory": memory(&service)}))),
        Err(e @ Error::Budget { .. }) => Err(Refusal::field("bytes", e)),
        Err(e) => Err(e.into()),
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| crate::answer::broken())?
}
