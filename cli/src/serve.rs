//! `dollop serve`.

use crate::args::EngineArgs;
use crate::streaming::size;
use crate::{Failure, clock, interrupt, locate, note};
use clap::Args;
use dollop::convert::Purpose;
use dollop_server::{Server, ServerOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// Serves a model over HTTP: a chat page, and the APIs of OpenAI, Anthropic and Ollama.
///
/// By default, only this machine can connect. If --listen allows other machines, an API key is required.
/// Requests set their own sampling; the model file has the defaults. A request reuses the session that has the
/// longest prefix of its prompt, so a continued conversation prefills only what is new. ^C or SIGTERM stops
/// the server; running answers have --grace seconds to finish. -v logs each request. docs/server.md lists the
/// supported fields.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop serve\n  dollop serve Qwen3-30B-A3B-Q4_K_M.gguf --memory 8G --ctx 8192 --parallel 2\n  dollop serve --listen 0.0.0.0:8080 --host box.example --api-key-file key.txt\n  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'"
)]
pub struct ServeArgs {
    /// Dollop file, GGUF file or Hugging Face folder [default: the model that comes with Dollop]
    pub model: Option<PathBuf>,
    /// Address and port to listen on; port 0 picks a free port
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// A host name that clients may send, besides localhost and IP addresses. May be given several times
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// A web origin whose pages may use this server, such as https://app.example; * allows all. May be given
    /// several times
    #[arg(long, value_name = "ORIGIN")]
    pub cors: Vec<String>,
    /// File with the API key that clients must send [default: the environment variable DOLLOP_API_KEY, else none]
    #[arg(long, value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Serve other machines without an API key
    #[arg(long, conflicts_with = "api_key_file")]
    pub no_api_key: bool,
    /// Name of the model in the APIs [default: the file's name]
    #[arg(long, value_name = "NAME")]
    pub alias: Option<String>,
    /// Largest memory budget that clients such as the page may set [default: --memory]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub max_memory: Option<u64>,
    /// Number of requests that run at a time. They share each decode step, the context (--ctx) and its memory
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub parallel: usize,
    /// Longest time that decoding waits for another request's prefill, in milliseconds, plus one layer
    #[arg(long, value_name = "MS", default_value_t = 200)]
    pub stall: u64,
    /// Folder that keeps prompt prefixes across restarts, so that they are not prefilled again
    #[arg(long, value_name = "DIR")]
    pub prefix_cache: Option<PathBuf>,
    /// Limit on the size of that folder. The least recently used prefixes are deleted first
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = size, requires = "prefix_cache")]
    pub prefix_cache_size: u64,
    /// Number of requests that may wait for a session; further requests get status 429
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub queue: usize,
    /// Seconds that running answers have to finish when the server stops
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub grace: u64,
    /// Limit on the size of a request's body
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = size)]
    pub max_body: u64,
    /// Number of connections at a time; further connections wait
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub max_connections: usize,
    #[command(flatten)]
    pub engine: EngineArgs,
}

pub fn serve(args: &ServeArgs) -> Result<(), Failure> {
    let key = key(args)?;
    // Check this before converting a model, which can take an hour.
    if key.is_none() && !args.no_api_key && !args.listen.ip().is_loopback() {
        return Err(format!(
            "{}: other machines can connect to this address: set an API key with --api-key-file or DOLLOP_API_KEY, or give --no-api-key",
            args.listen
        )
        .into());
    }
    let (engine, watch) = locate::open(args.model.as_deref(), &args.engine, Purpose::Weights)?;
    let mut options = ServerOptions::default();
    options.listen = args.listen;
    options.hosts.clone_from(&args.host);
    options.cors.clone_from(&args.cors);
    options.key = key;
    options.model = name(args, &engine);
    options.model_bytes = engine.info().bytes;
    options.max_memory = args.max_memory;
    (options.parallel, options.queue) = (args.parallel, args.queue);
    options.prefix_cache.clone_from(&args.prefix_cache);
    options.prefix_cache_bytes = args.prefix_cache_size;
    options.stall = Duration::from_millis(args.stall);
    options.grace = Duration::from_secs(args.grace);
    options.max_body_bytes = usize::try_from(args.max_body).unwrap_or(usize::MAX);
    options.max_connections = args.max_connections.max(1);
    options.clock = Some(clock::now);
    let model = options.model.clone();
    if let Err(e) = engine.chat_template() {
        note!("{e}; only endpoints without a chat template work, such as /v1/completions");
    }
    let needs_key = options.key.is_some();
    let server = Server::bind(engine.clone(), options)?;
    let address = server.address()?;
    let (stop, _guard) = interrupt::cancellable();
    note!("{model} ({}), {} session(s) of {} tokens", engine.info().mode, args.parallel, server.context());
    note!("serving at http://{address}, ^C stops; open it in a browser, or try:");
    note!("  {}", example(address, needs_key));
    server.run(&stop)?;
    note!("stopped");
    watch.finish()
}

/// An example request for this server, as a command line.
fn example(address: SocketAddr, needs_key: bool) -> String {
    let port = address.port();
    let host = match address.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let key = if needs_key { " -H \"Authorization: Bearer $DOLLOP_API_KEY\"" } else { "" };
    format!(
        "curl http://{host}:{port}/v1/chat/completions{key} -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}'"
    )
}

fn key(args: &ServeArgs) -> Result<Option<String>, Failure> {
    let (text, place) = match &args.api_key_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
            (text, path.display().to_string())
        }
        None => match std::env::var("DOLLOP_API_KEY") {
            Ok(text) if !args.no_api_key => (text, "DOLLOP_API_KEY".to_owned()),
            _ => return Ok(None),
        },
    };
    let key = text.trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(format!("{place}: the API key must not be empty or contain white space").into());
    }
    Ok(Some(key.to_owned()))
}

/// The model's name in the APIs.
fn name(args: &ServeArgs, engine: &dollop::Engine) -> String {
    let file = || Some(args.model.as_ref()?.file_stem()?.to_str()?.to_owned());
    let name = args.alias.clone().or_else(file).unwrap_or_else(|| engine.info().name.clone());
    name.trim_end_matches(".dollop").to_owned()
}
