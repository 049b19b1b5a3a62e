//! What all APIs work on: the model, its sessions and the queue before them. A request becomes prompts here, and updates.

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
use dollop::{CancelToken, Engine};
use serde_json::Value as Json;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Requests whose prompts are rendered and tokenized at a time.
const PREPARING: usize = 2;

/// The model and what serves it.
pub struct Service {
    /// The model.
    pub engine: Engine,
    /// How the server is run.
    pub options: ServerOptions,
    /// Its conversations.
    pub pool: Arc<Pool>,
    /// Beginnings of prompts on disk, where there is a folder for them.
    pub prefixes: Option<Prefixes>,
    /// What generates.
    pub scheduler: Scheduler,
    /// The queue before them.
    pub queue: Arc<Queue>,
    /// Counters.
    pub metrics: Metrics,
    /// Who watches, and what is counted for them.
    pub live: Live,
    template: Result<ChatTemplate, String>,
    context: RenderContext,
    /// Texts that are rendered and tokenized now.
    pub preparing: Semaphore,
    ids: AtomicU64,
}

/// A generation under way. It is cancelled when this is dropped.
pub struct Generation {
    /// What happens.
    pub updates: UnboundedReceiver<Update>,
    cancel: CancelToken,
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Service {
    /// Opens the sessions.
    ///
    /// # Errors
    /// `Invalid` where the budget has no room for so many.
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
            ids: AtomicU64::new(RandomState::new().build_hasher().finish() >> 1),
            engine,
            options,
            pool,
            context,
        })
    }

    /// How the model wants its tokens chosen: what a request does not say.
    pub fn sampling(&self) -> &Sampling {
        self.engine.sampling()
    }

    /// What the model can do, as Ollama says it.
    pub fn capabilities(&self) -> Vec<&'static str> {
        let tools = self.engine.tool_format().map(|_| "tools");
        ["completion"].into_iter().chain(tools).collect()
    }

    /// A new name for an answer or a call.
    pub fn id(&self, prefix: &str) -> String {
        // An odd factor: consecutive numbers become names that do not look alike, and none twice.
        let n = self.ids.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{prefix}{n:016x}")
    }

    /// The conversation as the model reads it.
    ///
    /// # Errors
    /// 400 where the model has no template, or the template refuses the messages.
    pub fn render(&self, of: &Conversation) -> Result<String, Refusal> {
        let template = self.template.as_ref().map_err(|e| Refusal::invalid(e.clone()))?;
        let mut context = self.context.clone();
        context.variables = of.variables.clone();
        context.tools = of.tools.list.clone();
        context.now = self.options.clock.map(|clock| clock());
        let messages = serde_json::Value::Array(of.messages.clone());
        template.render_json(&messages, &context).map_err(Refusal::from)
    }

    /// The tokens of a rendered conversation. Templates write the beginning-of-text token themselves if the model wants one.
    ///
    /// # Errors
    /// 400 for a text that the tokenizer has no tokens for.
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

    /// The prompts of a request.
    ///
    /// # Errors
    /// 400 for one that is empty or does not fit, and for too many.
    fn prompts(&self, input: &Input) -> Result<Vec<Vec<u32>>, Refusal> {
        let prompts = match input {
            Input::Chat(of) => vec![self.tokenize(&self.render(of)?)?],
            Input::Texts(texts) => texts.iter().map(|t| self.prompt(t)).collect::<Result<_, _>>()?,
        };
        let limit = self.pool.context;
        for prompt in &prompts {
            if prompt.is_empty() {
                return Err(Refusal::invalid("the prompt is empty: there is nothing to continue"));
            }
            // At least one token of an answer must fit behind it.
            if prompt.len() >= limit {
                return Err(dollop::Error::ContextFull { needed: prompt.len() + 1, limit }.into());
            }
        }
        Ok(prompts)
    }

    /// The form of calls, where the request has tools, and what makes the answer one where it has to be.
    fn calls(&self, request: &mut Request) -> Result<Option<(Format, Json)>, Refusal> {
        let Input::Chat(Conversation { tools, .. }) = &request.input else { return Ok(None) };
        let Some(list) = &tools.list else { return Ok(None) };
        let format = self.engine.tool_format();
        let format =
            format.ok_or_else(|| Refusal::unsupported("tools", "this model's template knows no tools"))?;
        if let Some(name) = &tools.require {
            request.constraint = Some(format.require(list, name.as_deref())?);
        }
        Ok(Some((format, list.clone())))
    }

    /// Begins to answer, as soon as a session is free.
    ///
    /// # Errors
    /// 400 for what cannot be answered, 429 where too many wait, 503 where the server stops.
    pub async fn start(self: &Arc<Self>, mut request: Request) -> Result<Generation, Refusal> {
        let vocab = self.engine.info().vocab;
        if let Some(bias) = request.sampling.logit_bias.iter().find(|b| b.token as usize >= vocab) {
            let message = format!("token {}: there are {vocab}", bias.token);
            return Err(Refusal::field("logit_bias", message));
        }
        let calls = self.calls(&mut request)?;
        let (request, prompts) = {
            let _permit = self.preparing.acquire().await.map_err(|_| Refusal::stopping())?;
            let service = self.clone();
            let work = move || service.prompts(&request.input).map(|prompts| (request, prompts));
            tokio::task::spawn_blocking(work).await.map_err(|_| crate::answer::broken())??
        };
        if prompts.len() * request.choices > MAX_CHOICES {
            return Err(Refusal::invalid(format!("at most {MAX_CHOICES} answers for one request")));
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

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
