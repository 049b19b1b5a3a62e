//! The command line, and its `--help`.

use crate::Failure;
use crate::doctor::DoctorArgs;
use crate::form::FormArgs;
use crate::hub::{self, Keep};
use crate::models::{ListArgs, PruneArgs, PullArgs, RmArgs};
use crate::sampling::SamplingArgs;
use crate::streaming::StreamArgs;
use crate::streaming::size;
use crate::values::{Kinds, backend, gpu_kernels, isa, kinds, level, mean_bits, precision_or_bits};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use dollop::Level;
use dollop::Precision;
use dollop::convert::Purpose;
use std::path::PathBuf;

/// Runs Mixture-of-Experts language models, a dollop at a time.
///
/// MODEL is a Dollop file, a GGUF file, a Hugging Face folder, or the name of a remote model:
/// hf:ORG/NAME[:QUANT] on the Hugging Face hub, or the URL of a GGUF file. A model that is not a Dollop file is
/// converted once, into the cache folder ($XDG_CACHE_HOME/dollop or ~/.cache/dollop); a remote one while it is
/// downloaded. Without a MODEL, commands that allow it use the small model that comes with Dollop.
#[derive(Parser)]
#[command(name = "dollop", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Log to stderr: -v shows opened and converted files, and warnings (a lost GPU, retried reads); -vv also
    /// decisions (memory plan, instruction set, how storage is read), prompts and resizes; -vvv also every
    /// plane of an expert that is read or evicted
    #[arg(short = 'v', action = ArgAction::Count, global = true)]
    pub log: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    Chat(ChatArgs),
    Run(RunArgs),
    Convert(ConvertArgs),
    Inspect(InspectArgs),
    Plan(PlanArgs),
    Eval(EvalArgs),
    Bench(BenchArgs),
    Devices(DevicesArgs),
    #[cfg(feature = "serve")]
    Serve(crate::serve::ServeArgs),
    Doctor(DoctorArgs),
    Pull(PullArgs),
    List(ListArgs),
    Rm(RmArgs),
    Prune(PruneArgs),
}

impl Command {
    /// Downloads the models that the arguments name, and replaces the names by paths. Not included are `plan`,
    /// which needs only headers, and `convert`, which converts a model while it is downloaded.
    ///
    /// # Errors
    /// What the user can do about it.
    pub fn fetch_models(&mut self) -> Result<(), Failure> {
        let keep = |engine: &EngineArgs, purpose| match engine.keep_source {
            true => Keep::Source,
            false => Keep::Conversion(purpose),
        };
        let (model, keep) = match self {
            Command::Chat(args) => (args.model.as_mut(), keep(&args.engine, Purpose::Chat)),
            Command::Run(args) => {
                let purpose = if args.raw { Purpose::Weights } else { Purpose::Chat };
                (args.model.as_mut(), keep(&args.engine, purpose))
            }
            Command::Inspect(args) => (args.file.as_mut(), Keep::Conversion(Purpose::Weights)),
            Command::Bench(args) => (args.model.as_mut(), keep(&args.engine, Purpose::Weights)),
            #[cfg(feature = "serve")]
            Command::Serve(args) => (args.model.as_mut(), keep(&args.engine, Purpose::Weights)),
            Command::Eval(args) => {
                // A reference is computed from the unquantized source.
                if let Some(against) = &mut args.against {
                    *against = hub::local(against, Keep::Source)?;
                }
                let keep = if args.reference { Keep::Source } else { keep(&args.engine, Purpose::Weights) };
                (args.model.as_mut(), keep)
            }
            _ => return Ok(()),
        };
        if let Some(model) = model {
            *model = hub::local(model, keep)?;
        }
        Ok(())
    }
}

/// Chats with a model.
///
/// Type a message and press Enter; end a line with \ to continue on the next line. ^C stops an answer, ^D or /exit
/// leaves, /help lists the commands. If the input is not a terminal, each line is a turn, commands are not executed
/// (the text may come from elsewhere), and only the answers are printed.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop chat\n  dollop chat OLMoE-1B-7B-Q4_K_M.gguf --system 'You answer in one sentence.'\n  echo 'What is the capital of France?' | dollop chat"
)]
pub struct ChatArgs {
    /// Dollop file, GGUF file, Hugging Face folder, or name (hf:ORG/NAME[:QUANT]) [default: the model that comes with Dollop]
    pub model: Option<PathBuf>,
    /// System prompt [default: the template's own]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Maximum number of tokens of one answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1024)]
    pub max_tokens: usize,
    /// When the context is full: stop with an error, or forget the oldest turns
    #[arg(long, value_enum, default_value = "error")]
    pub overflow: OverflowArg,
    /// Continue a conversation written by /save
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Execute commands such as /save even if the input is not a terminal. Only for input that you wrote yourself:
    /// commands write and read files
    #[arg(long)]
    pub commands: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum OverflowArg {
    Error,
    Slide,
}

/// Answers one prompt, or continues one text, and exits.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop run -p 'What is the capital of France?'\n  dollop run model.gguf -f question.txt --json\n  dollop run --raw -p 'Once upon a time' -n 64 --temp 0\n  dollop run -p 'Name a city and its country.' --json-schema city.json"
)]
pub struct RunArgs {
    /// Dollop file, GGUF file, Hugging Face folder, or name (hf:ORG/NAME[:QUANT]) [default: the model that comes with Dollop]
    pub model: Option<PathBuf>,
    /// The prompt
    #[arg(short, long, value_name = "TEXT", required_unless_present = "file", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file (- for standard input)
    #[arg(short, long, value_name = "FILE", conflicts_with = "prompt")]
    pub file: Option<PathBuf>,
    /// System prompt [default: the template's own]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Maximum number of tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 512)]
    pub max_tokens: usize,
    /// Continue the text verbatim, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Print one JSON object: text, ids, counts, speeds, peak memory, mode
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
    #[command(flatten)]
    pub form: FormArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Converts a model into a Dollop file.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop convert Qwen3-30B-A3B-Q8_0.gguf\n  dollop convert ./OLMoE-1B-7B-0924 olmoe.gguf --max-level 4 --level-dense 6\n  dollop convert Qwen3-30B-A3B-BF16.gguf --imatrix Qwen3-30B-A3B.imatrix.gguf\n  dollop convert ./OLMoE-1B-7B-0924 --calibrate wiki.txt\n  dollop convert ./OLMoE-1B-7B-0924 --bits 3.2 --calibrate"
)]
pub struct ConvertArgs {
    /// GGUF file (any shard of a split one), Hugging Face folder, or name (hf:ORG/NAME[:QUANT])
    pub source: PathBuf,
    /// The file to write [default: NAME.dollop.gguf beside the source, or in the current folder for a remote
    /// model]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub how: ConvertHow,
    /// Largest size of the file, such as 9G. Each expert is stored at as many bits as its errors justify.
    /// Errors are weighted by the expert's effect on the stream (with --calibrate) or by how often it was
    /// chosen (with --imatrix). The full file is written first, beside the output
    #[arg(long, value_name = "SIZE", value_parser = size, conflicts_with = "bits")]
    pub size: Option<u64>,
    /// Like --size, but as average bits of the experts' codes, 2 to 8, such as 3.2. Scales and zero points
    /// are not counted
    #[arg(long, value_name = "B", value_parser = mean_bits)]
    pub bits: Option<f64>,
    /// Keep the download of a remote model in the hub's cache. Without it, the model is converted while it is
    /// downloaded, except with --calibrate
    #[arg(long)]
    pub keep_source: bool,
    /// Print a report as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub calibration: CalibrationArgs,
}

#[derive(Args, Clone)]
pub struct ConvertHow {
    /// Bits of dense weights (attention, dense blocks, shared experts, head): 2, 3, 4, 6 or 8
    #[arg(long, value_name = "B", default_value = "8", value_parser = level)]
    pub level_dense: Level,
    /// Bits of the embedding, which is often also the output head [default: same as --level-dense]
    #[arg(long, value_name = "B", value_parser = level)]
    pub level_embed: Option<Level>,
    /// Highest number of bits stored for an expert: 2, 3, 4, 6 or 8
    #[arg(long, value_name = "B", default_value = "8", value_parser = level)]
    pub max_level: Level,
    /// Weights per scale. `auto` keeps the codes of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K and Q5_K unchanged
    #[arg(long, value_enum, default_value = "auto")]
    pub group: GroupArg,
    /// Storage of scales and zero points. `narrow` takes half the bytes, and adds some error at 4 bits and
    /// more
    #[arg(long, value_enum, default_value = "wide")]
    pub params: ParamsArg,
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum GroupArg {
    Auto,
    #[value(name = "32")]
    G32,
    #[value(name = "64")]
    G64,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum ParamsArg {
    Wide,
    Narrow,
}

/// Shows what a model file contains, without loading it.
#[derive(Args)]
pub struct InspectArgs {
    /// Dollop file, GGUF file, Hugging Face folder, or name (hf:ORG/NAME[:QUANT]) [default: the model that comes with Dollop]
    pub file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Verify the checksums of a Dollop file
    #[arg(long)]
    pub verify: bool,
}

/// Shows how a memory budget would be spent, before anything is loaded or converted: what fits, how much a
/// token would read, and how fast tokens would be.
///
/// The forecast of speed needs `dollop plan --calibrate` once. It assumes a short context and a CPU.
///
/// For a model on the hub, only headers are downloaded, a few megabytes. The plan then also shows whether the
/// model is supported, its size on disk as downloaded and converted, and which file of the repository would
/// be used.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  dollop plan model.gguf --memory 4G\n  dollop plan hf:Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M --memory 8G\n  dollop plan model.gguf --memory 2G --ctx 8192 --json\n  dollop plan --calibrate"
)]
pub struct PlanArgs {
    /// Dollop file, GGUF file, Hugging Face folder, or name (hf:ORG/NAME[:QUANT]) [default: the model that comes with Dollop]
    pub model: Option<PathBuf>,
    /// First measure this machine (memory, products of the CPU, random reads in the cache folder), and keep the
    /// rates for forecasts. Takes some seconds, and writes and reads 256 MB. Without MODEL, shows the rates
    #[arg(long)]
    pub calibrate: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Measures a model: logits of given tokens, perplexity of a text, or how many small tasks it gets right
///
/// A text is cut into windows of up to 512 tokens; the first token of each window is not scored. Bits per byte count the
/// bytes of the scored tokens.
///
/// Tasks are a fixed list that comes with Dollop, each a conversation of one question, answered greedily. They show what
/// breaks at few bits; they are too few and too easy to rank models. Scoring is strict:
///
///   json        the answer is JSON and nothing else (a ``` fence may enclose it), with the required keys and types
///   tools       one call, <tool_call>{"name": ..., "arguments": {...}}</tool_call> or the object alone, of the right tool
///               with arguments of the right types; tools are described in the system prompt if the chat template
///               shows none
///   arithmetic  the last number of the answer is the result
///   copy        the text comes back, character for character
///   retrieval   a fact hidden in 400 to 1000 tokens of other text is in the answer
///   facts       200 simple questions: the answer is in the first sentence, and no other one
///
/// An answer loops if it had to be cut off and its last 12 tokens occur three times in it. Thinking is disabled in
/// templates that have enable_thinking: answers have at most 160 tokens.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_help = "Examples:\n  dollop eval ./model-folder --reference --tokens 1,2,3 --logits out.json\n  dollop eval model.gguf --text wiki.txt --level 4\n  dollop eval model.dollop.gguf --text wiki.txt --level 3 --against model.gguf\n  dollop eval changed-weights.gguf --reference --text wiki.txt --against model.gguf\n  dollop eval model.gguf --tasks --levels 2,3,4,8\n  dollop eval model.gguf --tasks json,tools --levels 4,adaptive --memory 2G --verbose"
)]
pub struct EvalArgs {
    /// Dollop file, GGUF file, Hugging Face folder, or name (hf:ORG/NAME[:QUANT]) [default: the model that comes with Dollop]
    pub model: Option<PathBuf>,
    /// Token ids, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',', requires = "logits", conflicts_with = "text")]
    pub tokens: Vec<u32>,
    /// Where to write the logits of every position, as JSON (- for standard output)
    #[arg(long, value_name = "FILE", requires = "tokens")]
    pub logits: Option<PathBuf>,
    /// Text to measure the perplexity of
    #[arg(long, value_name = "FILE", required_unless_present_any = ["tokens", "tasks"])]
    pub text: Option<PathBuf>,
    /// Count right answers to small tasks: all, or some of json,tools,arithmetic,copy,retrieval,facts
    #[arg(long, value_name = "KINDS", num_args = 0..=1, default_missing_value = "all", value_parser = kinds,
        conflicts_with_all = ["tokens", "text"])]
    pub tasks: Option<Kinds>,
    /// One column of --tasks for each of these: stored levels in bits, adaptive or adaptive:Q [default: one
    /// column, as set by --level or --precision]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = precision_or_bits, requires = "tasks",
        conflicts_with_all = ["text", "tokens", "level", "precision", "reference", "trace"])]
    pub levels: Vec<Precision>,
    /// List every wrong answer, and why it is wrong
    #[arg(long, requires = "tasks", conflicts_with_all = ["text", "tokens"])]
    pub verbose: bool,
    /// Compute from the unquantized source weights in f32
    #[arg(long)]
    pub reference: bool,
    /// Compare with this model by KL divergence and agreement. A foreign model is computed unquantized, a
    /// Dollop file at its highest level
    #[arg(long, value_name = "REF", requires = "text")]
    pub against: Option<PathBuf>,
    /// Tokens per forward pass; 1 computes token by token
    #[arg(long, value_name = "N")]
    pub chunk: Option<usize>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Measures speed, as llama-bench does: tokens per second of a prompt and of generation.
#[derive(Args)]
pub struct BenchArgs {
    /// Dollop file, GGUF file, Hugging Face folder, or name (hf:ORG/NAME[:QUANT]) [default: the model that comes with Dollop]
    pub model: Option<PathBuf>,
    /// Tokens of the prompt test; 0 for none
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    pub prompt: usize,
    /// Tokens of the generation test; 0 for none
    #[arg(short = 'n', long = "generate", value_name = "N", default_value_t = 128)]
    pub generate: usize,
    /// Tokens in the context before each test
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub depth: usize,
    /// Runs of each test
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    pub repeat: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show how long every kernel of a GPU takes. Every submission waits for the clock, so tokens per second are lower
    #[arg(long)]
    pub gpu_clock: bool,
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Lists the GPUs that --backend gpu:N can name.
#[derive(Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Clone)]
#[command(next_help_heading = "Model")]
pub struct EngineArgs {
    /// Backend: auto (a GPU if there is a hardware one), cpu, gpu, or gpu:N as listed by `dollop devices`.
    /// Compiled GPU kernels are kept in the cache folder
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = backend)]
    pub backend: dollop::BackendChoice,
    /// Threads [default: one per core]
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,
    /// Keep the download of a remote model in the hub's cache, and convert it afterwards
    #[arg(long)]
    pub keep_source: bool,
    /// Context in tokens [default: the model's, at most 4096]
    #[arg(short, long, value_name = "N")]
    pub ctx: Option<usize>,
    /// Read experts at this many bits [default: the highest stored]
    #[arg(long, value_name = "B", value_parser = level)]
    pub level: Option<Level>,
    /// Instruction set [default: the best available]
    #[arg(long, value_name = "NAME", value_parser = isa)]
    pub isa: Option<dollop::internal::kernels::cpu::Isa>,
    /// Optional GPU kernel variants, used if `dollop devices` shows that the GPU supports them: subgroups;
    /// single, half or bytes for the inputs of matrix products (by default the best for the GPU); plain for
    /// none
    #[arg(long, value_name = "LIST", default_value = "subgroups", value_parser = gpu_kernels)]
    pub gpu_kernels: dollop::GpuVariants,
    /// Makes the GPU fail after this many submissions, for tests: a release build has no such option
    #[cfg(debug_assertions)]
    #[arg(long, value_name = "N", hide = true)]
    pub lose_gpu: Option<u64>,
    #[command(flatten)]
    pub stream: StreamArgs,
    /// Cores to use, such as 4,5,6,7 for the big cores of a phone [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub cores: Option<Vec<usize>>,
}

/// Options that reduce the conversion error. They help most at 2 and 3 bits, in models with large inputs.
#[derive(Args, Clone)]
#[command(next_help_heading = "Calibration")]
pub struct CalibrationArgs {
    /// Importance matrix from llama.cpp for this model (GGUF or .dat), as published with many GGUF files
    #[arg(long, value_name = "FILE", conflicts_with = "calibrate")]
    pub imatrix: Option<PathBuf>,
    /// Run the source in f32 first, to measure the inputs of its matrices, on this text (- for standard
    /// input). Without TEXT, on text that the model writes itself, in which every expert takes part, plus a
    /// short text that comes with Dollop. Without TEXT, write this option last or before another option, as
    /// in `--calibrate --json`
    #[arg(long, value_name = "TEXT", num_args = 0..=1)]
    pub calibrate: Option<Option<PathBuf>>,
    /// Calibration tokens: from the text, in windows spread evenly over it, or written by the model
    #[arg(long, value_name = "N", default_value_t = dollop::CalibrateOptions::default().tokens, requires = "calibrate")]
    pub calibrate_tokens: usize,
    /// Effort in choosing the experts' codes, with --calibrate. `low` weights each error by the inputs of its
    /// column. `normal` and `high` also let later weights compensate earlier errors, which takes many times
    /// as long; they refine all codes twice or four times. They keep the inputs in a file beside the output
    /// (3 GB for OLMoE-1B-7B and 8192 tokens), and their progress: if interrupted, the same command continues
    #[arg(long, value_enum, default_value = "normal", requires = "calibrate")]
    pub effort: Effort,
    /// Store experts for unrotated inputs, even if error feedback works better with rotated ones
    #[arg(long, requires = "calibrate")]
    pub no_rotation: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    Low,
    Normal,
    High,
}

impl EngineArgs {
    pub fn options(&self) -> dollop::EngineOptions {
        let mut options =
            dollop::EngineOptions::default().with_backend(self.backend).with_threads(self.threads);
        options.level = self.level;
        options.isa = self.isa;
        options.gpu_variants = self.gpu_kernels;
        options.cores = self.cores.clone();
        options.context = self.ctx;
        self.stream.apply(&mut options);
        options
    }

    /// The session options of these arguments.
    pub fn session(&self, chunk: Option<usize>) -> dollop::SessionOptions {
        let mut options = dollop::SessionOptions::default();
        (options.context, options.chunk) = (self.ctx, chunk);
        options
    }
}

impl ConvertHow {
    pub fn options(&self) -> dollop::convert::ConvertOptions {
        use dollop::convert::{Group, GroupParams};
        let mut options = dollop::convert::ConvertOptions::default()
            .with_level_dense(self.level_dense)
            .with_max_level(self.max_level)
            .with_threads(self.threads);
        options.level_embed = self.level_embed;
        options.group = match self.group {
            GroupArg::Auto => Group::Auto,
            GroupArg::G32 => Group::G32,
            GroupArg::G64 => Group::G64,
        };
        options.params = match self.params {
            ParamsArg::Wide => GroupParams::Wide,
            ParamsArg::Narrow => GroupParams::Narrow,
        };
        options
    }
}
