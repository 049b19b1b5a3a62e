//! HTTP APIs of Dollop: OpenAI's, Anthropic's and Ollama's, on one model.
//!
//! Each API is a file that reads its requests into one kind of request and writes what comes of it in its own way; there
//! is one path between. Requests are answered on sessions that keep their conversations. The library reads no
//! environment and prints nothing; `docs/server.md` says what is honoured and what is refused.

mod answer;
mod api;
mod app;
mod feed;
mod fields;
mod guard;
mod listen;
mod live;
mod metrics;
mod options;
mod page;
mod pool;
mod prefix;
mod queue;
mod refusal;
mod request;
mod sampling;
mod scheduler;
mod service;
mod tools;
mod work;

pub use listen::Server;
pub use options::ServerOptions;

/// For tests: reads a body as every API does; how many take it.
#[doc(hidden)]
pub fn read_all(body: &[u8]) -> usize {
    let Ok(json) = fields::parse(body) else { return 0 };
    let (Ok(f), base) = (fields::Fields::of(&json, ""), dollop::sampler::Sampling::default()) else {
        return 0;
    };
    let read = [
        api::chat::read(&f, &base).is_ok(),
        api::completions::read(&f, &base).is_ok(),
        api::responses::read(&f, &base).is_ok(),
        api::messages::read(&f, &base).is_ok(),
        api::ollama::read_chat(&f, &base).is_ok(),
        api::ollama::read_generate(&f, &base).is_ok(),
    ];
    read.into_iter().filter(|&ok| ok).count()
}
