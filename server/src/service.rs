//! The state that all APIs share: the model, its sessions and the queue. [`Service::start`] turns a request
//! into prompts and starts its generation.

use crate::answer::Update;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::options::ServerOptions;
use crate::pool::Pool;
use crate::prefix::Prefixes;
use crate::queue::Queue;
use crate::refusal::Refusal;
use crate::request::{Conversation, Input, MAX_CHOICES, Request, Text};
use crate::scheduler::Scheduler;
use crate::work::Work;
use dollop::sampler::Sampling;
use dollop::template::{ChatTemplate, RenderContext};
use dollop::tools::Format;
use dollop::{CancelToken, Constraint, Engine};
use serde_json::Value as Json;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Maximum number of requests that are rendered and tokenized at a time.
const PREPARING: usize = 2;

/// Maximum number of constraints that are compiled at a time. A large schema takes seconds, so it must not
/// hold up the prompts of other requests.
const COMPILING: usize = 2;

/// The state of a server.
pub struct Service {
    /// The model.
    pub engine: Engine,
    /// The server's options.
    pub options: ServerOptions,
    /// The sessions.
    pub pool: Arc<Pool>,
    /// The prefix cache, if it is enabled.
    pub prefixes: Option<Prefixes>,
    /// The thread that runs the generations.
    pub scheduler: Scheduler,
    /// The queue of requests that wait for a session.
    pub queue: Arc<Queue>,
    /// Counters for `/metrics`.
    pub metrics: Metrics,
    /// State of `/v1/live`.
    pub live: Live,
    template: Result<ChatTemplate, String>,
    context: RenderContext,
    /// Limits concurrent rendering and tokenizing to `PREPARING`.
    pub preparing: Semaphore,
    /// Limits concurrent compiling of constraints to `COMPILING`.
    compiling: Arc<Semaphore>,
    ids: AtomicU64,
}

/// A running generation. Dropping this cancels it.
pub struct Generation {
    /// The generation's updates, in order.
    pub updates: UnboundedReceiver<Update>,
    cancel: CancelToken,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Service {
    /// Opens the sessions and starts the scheduler.
    ///
    /// # Errors
    /// `Invalid` if the budget has no room for the sessions. `Io` for the prefix cache's folder or the
    /// thread.
    pub fn new(engine: Engine, options: ServerOptions) -> Result<Service, dollop::Error> {
        let pool = Arc::new(Pool::new(&engine, options.parallel)?);
        let folder = options.prefix_cache.clone();
        let prefixes =
            folder.map(|folder| Prefixes::new(&engine, folder, options.prefix_cache_bytes)).transpose()?;
        let special = engine.special_tokens();
        let spelling =
            |id: Option<u32>| id.and_then(|id| engine.tokenizer().ok()?.token(id)).unwrap_or_default();
        let context = RenderContext {
            bos_token: spelling(special.bos),
            eos_token: spelling(special.eos),
            add_generation_prompt: true,
            ..RenderContext::default()
        };
        Ok(Service {
            template: engine.chat_template().map_err(|e| e.to_string()),
            queue: Arc::new(Queue::new(pool.sessions, options.queue)),
            metrics: Metrics::default(),
            live: Live::new(&engine, &options),
            prefixes,
            scheduler: Scheduler::new(&engine, options.stall)?,
            preparing: Semaphore::new(PREPARING),
            compiling: Arc::new(Semaphore::new(COMPILING)),
            ids: AtomicU64::new(RandomState::new().build_hasher().finish() >> 1),
            engine,
            options,
            pool,
            context,
        })
    }

    /// The model's own sampling, which is the default for requests.
    pub fn sampling(&self) -> &Sampling {
        self.engine.sampling()
    }

    /// The model's capabilities in Ollama's terms.
    pub fn capabilities(&self) -> Vec<&'static str> {
        let tools = self.engine.tool_format().map(|_| "tools");
        ["completion"].into_iter().chain(tools).collect()
    }

    /// A new id for an answer or a tool call.
    pub fn id(&self, prefix: &str) -> String {
        // Multiplying by an odd number is a bijection: ids stay unique, and consecutive ones look different.
        let n = self.ids.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{prefix}{n:016x}")
    }

    /// Renders a conversation with the model's chat template.
    ///
    /// # Errors
    /// 400 if the model has no template or the template rejects the messages.
    pub fn render(&self, of: &Conversation) -> Result<String, Refusal> {
        let template = self.template.as_ref().map_err(|e| Refusal::invalid(e.clone()))?;
        let mut context = self.context.clone();
        context.variables = of.variables.clone();
        context.tools = of.tools.list.clone();
        context.now = self.options.clock.map(|clock| clock());
        let messages = serde_json::Value::Array(of.messages.clone());
        template.render_json(&messages, &context).map_err(Refusal::from)
    }

    /// Tokenizes a rendered conversation. Most templates write the beginning-of-text token themselves. It is
    /// added only if the model wants one and it is missing.
    ///
    /// # Errors
    /// 400 for a text that the tokenizer cannot encode.
    pub fn tokenize(&self, rendered: &str) -> Result<Vec<u32>, Refusal> {
        let mut tokens = self.engine.tokenizer()?.encode(rendered, false)?;
        let special = self.engine.special_tokens();
        if let Some(bos) = special.bos.filter(|&bos| special.add_bos && tokens.first() != Some(&bos)) {
            tokens.insert(0, bos);
        }
        Ok(tokens)
    }

    fn prompt(&self, text: &Text) -> Result<Vec<u32>, Refusal> {
        match text {
            Text::Plain(text) => Ok(self.engine.encode_text(text)?),
            Text::Ids(ids) => {
                let vocab = self.engine.info().vocab;
                match ids.iter().find(|&&id| id as usize >= vocab) {
                    Some(id) => {
                        Err(Refusal::invalid(format!("token {id} is outside the vocabulary of {vocab}")))
                    }
                    None => Ok(ids.clone()),
                }
            }
        }
    }

    /// The prompts of a request, tokenized.
    ///
    /// # Errors
    /// 400 for a prompt that is invalid, empty or too long for the context.
    fn prompts(&self, input: &Input) -> Result<Vec<Vec<u32>>, Refusal> {
        let prompts = match input {
            Input::Chat(of) => vec![self.tokenize(&self.render(of)?)?],
            Input::Texts(texts) => texts.iter().map(|t| self.prompt(t)).collect::<Result<_, _>>()?,
        };
        let limit = self.pool.context;
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(Refusal::invalid("the prompt is empty"));
            }
            // At least one token of an answer must fit after the prompt.
            if prompt.len() >= limit {
                return Err(dollop::Error::ContextFull { needed: prompt.len() + 1, limit }.into());
            }
        }
        Ok(prompts)
    }

    /// The format of tool calls and the tools, if the request has tools. If a call is required, also sets the
    /// constraint that forces one.
    fn calls(&self, request: &mut Request) -> Result<Option<(Format, Json)>, Refusal> {
        let Input::Chat(Conversation { tools, .. }) = &request.input else { return Ok(None) };
        let Some(list) = &tools.list else { return Ok(None) };
        let format = self.engine.tool_format();
        let format = format.ok_or_else(|| {
            Refusal::unsupported("tools", "this model's chat template does not support tools")
        })?;
        if let Some(name) = &tools.require {
            request.constraint = Some(format.require(list, name.as_deref())?);
        }
        Ok(Some((format, list.clone())))
    }

    /// Compiles a constraint on a blocking thread, before the request takes a session. On the scheduler's
    /// thread, all answers would wait for it.
    ///
    /// # Errors
    /// 400 for a constraint that does not compile.
    async fn compiled(self: &Arc<Self>, constraint: Constraint) -> Result<Constraint, Refusal> {
        let permit = self.compiling.clone().acquire_owned().await.map_err(|_| Refusal::stopping())?;
        let service = self.clone();
        let work = move || {
            // Held to the end, also if the client disconnects: the thread cannot be stopped.
            let _permit = permit;
            service.engine.compile(constraint)
        };
        Ok(tokio::task::spawn_blocking(work).await.map_err(|_| crate::answer::broken())??)
    }

    /// Number of constraints that are being compiled.
    pub fn compiling(&self) -> usize {
        COMPILING - self.compiling.available_permits()
    }

    /// Waits for a free session and starts the generation.
    ///
    /// # Errors
    /// 400 for an invalid request, 429 if the queue is full, 503 if the server is stopping.
    pub async fn start(self: &Arc<Self>, mut request: Request) -> Result<Generation, Refusal> {
        let vocab = self.engine.info().vocab;
        if let Some(bias) = request.sampling.logit_bias.iter().find(|b| b.token as usize >= vocab) {
            let message = format!("token {} is outside the vocabulary of {vocab}", bias.token);
            return Err(Refusal::field("logit_bias", message));
        }
        let calls = self.calls(&mut request)?;
        let (mut request, prompts) = {
            let _permit = self.preparing.acquire().await.map_err(|_| Refusal::stopping())?;
            let service = self.clone();
            let work = move || service.prompts(&request.input).map(|prompts| (request, prompts));
            tokio::task::spawn_blocking(work).await.map_err(|_| crate::answer::broken())??
        };
        if prompts.len() * request.choices > MAX_CHOICES {
            return Err(Refusal::invalid(format!(
                "a request can have at most {MAX_CHOICES} answers: prompts times n"
            )));
        }
        if let Some(constraint) = request.constraint.take() {
            request.constraint = Some(self.compiled(constraint).await?);
        }
        let turn = self.queue.enter().await?;
        let cancel = turn.cancel.clone();
        let (sender, updates) = unbounded_channel();
        let service = self.clone();
        let begin = move || Work::new(service, request, prompts, calls, (sender, turn)).map(Work::schedule);
        tokio::task::spawn_blocking(begin).await.map_err(|_| crate::answer::broken())??;
        Ok(Generation { updates, cancel })
    }
}

/// Seconds since the Unix epoch.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
