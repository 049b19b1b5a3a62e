//!
//! An HTTP server for one model, with the APIs of OpenAI, Anthropic and Ollama.
//!
//! Each API has its own file, which translates requests to a common type and formats the results. Everything
//! between is shared. Requests run on sessions, which keep their tokens for later requests. The library does
//! not read the environment and does not print. `docs/server.md` lists the supported and refused fields.

mod answer;
mod api;
mod app;
mod feed;
mod fields;
mod guard;
mod listen;
mod live;
mod logprobs;
mod metrics;
mod openapi;
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

/// For tests: the paths of the endpoints.
#[doc(hidden)]
pub fn routes() -> &'static [&'static str] {
    &app::ROUTES
}

/// For tests: parses a body as a request of each API, and returns how many APIs accept it.
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
