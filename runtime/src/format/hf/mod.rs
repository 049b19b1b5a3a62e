//! Hugging Face models in GGUF's words: `config.json` becomes GGUF keys, tensor names become GGUF names.
//!
//! Both spellings of `config.json` are read: the old one (`rope_theta`, `rope_scaling`) and that of transformers 5
//! (`rope_parameters`). Keys are those that llama.cpp's converter writes; what GGUF has no key for is under `dollop.*`.

mod conv;
mod delta;
mod generation;
mod latent;
mod places;
mod positions;
mod routers;
mod small;

pub use generation::sampling;
pub use places::{Cut, Form, Heads, Place, Stacks, Stored, left_out, places};
pub use routers::Sparse;
pub use small::{SmallFiles, chat_template, special_tokens};

use super::json;
use super::value::Metadata;
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json};

/// How one family's `config.json` is read.
#[derive(Debug)]
pub struct Dialect {
    /// `model_type`.
    pub model_type: &'static str,
    /// The GGUF architecture that it becomes.
    pub architecture: &'static str,
    /// The default of the family's class, for configs that leave `rope_theta` out.
    pub rope_base: f64,
    /// Whether it has routed experts.
    pub routed: bool,
    /// Whether chosen gate weights are divided by their sum, where no `norm_topk_prob` says it.
    pub renormalize: Option<bool>,
    /// How `sliding_window` is read; `None` where it is not used.
    pub sliding: Option<Sliding>,
    /// How stacks of experts lie.
    pub stacks: Stacks,
    /// Whether some layers are short convolutions, in the words of `conv`.
    pub conv: bool,
    /// Whether keys and values of attention are a latent, in the words of `latent`.
    pub latent: bool,
    /// Where experts are spoken of in the words of `routers`.
    pub sparse: Option<Sparse>,
    /// Whether layers behind the last are those of a draft head.
    pub draft_layers: bool,
    /// Whether `swiglu_alpha` and `swiglu_limit` are those of its activation.
    pub clamped: bool,
    /// What `hidden_act` or `hidden_activation` must say, where they say anything.
    pub activation: &'static str,
    /// Whether embeddings are multiplied by the root of their width, rounded as the weights' type (`dtype`) has it.
    pub embed_root: bool,
    /// The default base of the rotary embedding of layers with a window, where it is another one there.
    pub window_rope_base: Option<f64>,
    /// Whether layers may have inputs of their own beside the stream, and the last ones share keys and values.
    pub per_layer: bool,
    /// How keys about heads of layers that see everything begin, where they have heads of their own.
    pub sees_all: Option<&'static str>,
    /// Whether norms are stored as their distance from one.
    pub norms_from_one: bool,
    /// Modules of a layer whose names mean other parts than in most families.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Beginnings of the names of tensors that other models than that of text have.
    pub left_out: &'static [&'static str],
    /// Numbers of the family's class, for configs that leave them out.
    pub numbers: &'static [(&'static str, u64)],
    /// What is so or not, likewise.
    pub flags: &'static [(&'static str, bool)],
    /// The part of a head that turns, by default; `None` where all of it always does.
    pub partial_rotary: Option<f64>,
    /// Whether layers are gated delta nets, but for those that `layer_types` or `full_attention_interval` says.
    pub delta: bool,
    /// Whether the rows of a gate lie among those of queries, head by head.
    pub gate_in_q: bool,
}

/// How a family says which layers have a sliding window.
#[derive(Clone, Copy, Debug)]
pub struct Sliding {
    /// Only where `use_sliding_window` is true.
    pub switched: bool,
    /// `layer_types` says which layers, where it is given.
    pub listed: bool,
    /// Where a number called `sliding_window_pattern` says the rhythm, the one that it has by default.
    pub rhythm: Option<u64>,
    /// Otherwise: whether a layer has one, by its number and that of the rhythm, or else `max_window_layers`.
    pub on: fn(u64, u64) -> bool,
}

impl Dialect {
    /// What most families have.
    pub const USUAL: Dialect = Dialect {
        model_type: "",
        architecture: "",
        rope_base: 1e4,
        routed: false,
        renormalize: None,
        sliding: None,
        stacks: Stacks::Halves,
        conv: false,
        latent: false,
        sparse: None,
        draft_layers: false,
        clamped: false,
        activation: "silu",
        embed_root: false,
        window_rope_base: None,
        per_layer: false,
        sees_all: None,
        norms_from_one: false,
        renamed: &[],
        left_out: &[],
        numbers: &[],
        flags: &[],
        partial_rotary: None,
        delta: false,
        gate_in_q: false,
    };
}

const MAX_LAYERS: u64 = 1024;

/// Keys of `config.json` that are read, here or beside the tokenizer, or whose meaning the tensors show.
const READ: [&str; 54] = [
    "_sliding_window_pattern",
    "attention_bias",
    "attention_k_eq_v",
    "attn_logit_softcapping",
    "bos_token_id",
    "clip_qkv",
    "decoder_sparse_step",
    "enable_moe_block",
    "eos_token_id",
    "final_logit_softcapping",
    "global_head_dim",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "hidden_size_per_layer_input",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "mlp_only_layers",
    "model_type",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_global_key_value_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_shared_layers",
    "num_local_experts",
    "partial_rotary_factor",
    "per_layer_config",
    "qkv_bias",
    "quantization_config",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "shared_expert_intermediate_size",
    "sliding_window",
    "sliding_window_pattern",
    "tie_word_embeddings",
    "top_k_experts",
    "use_bidirectional_attention",
    "use_double_wide_mlp",
    "use_sliding_window",
    "vocab_size",
    "vocab_size_per_layer_input",
    "pad_token_id",
];

/// Keys of `config.json` about training, other programs or the file itself.
const DESCRIBING: [&str; 18] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "dtype",
    // What another key says too.
    "experts_per_token",
    "initial_context_length",
    "initializer_range",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "return_dict",
];

/// Keys of `config.json` that no family here has, unless they say that there is nothing of it.
const UNSUPPORTED: [&str; 4] = [
    "attn_logit_softcapping",
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "use_bidirectional_attention",
];

/// Numbers of inputs of layers, and what they become.
const PER_LAYER: [(&str, &str); 2] = [
    ("hidden_size_per_layer_input", "embedding_length_per_layer_input"),
    ("num_kv_shared_layers", "attention.shared_kv_layers"),
];

/// Keys of `config.json` with the numbers of a clamped SwiGLU, and what they become.
const CLAMP: [&str; 2] = ["swiglu_alpha", "swiglu_limit"];

/// Keys that a model of text, pictures and sound has beside `text_config`.
const BESIDE_TEXT: [&str; 17] = [
    "audio_config",
    "audio_token_id",
    "boa_token_id",
    "eoa_token_id",
    "eoa_token_index",
    "video_token_id",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "image_token_id",
    "mm_tokens_per_image",
    "boi_token_id",
    "eoi_token_id",
    "video_token_id",
    "vision_config",
    "vision_end_token_id",
    "vision_start_token_id",
];

struct Config {
    json: Map<String, Json>,
}

impl Config {
    fn get(&self, key: &str) -> Option<&Json> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    fn wrong(key: &str, want: &str) -> Error {
        Error::malformed(format!("config.json: {key}"), format!("{want} is expected"))
    }

    fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.get(key)
            .map(|v| v.as_u64().ok_or_else(|| Self::wrong(key, "a non-negative integer")))
            .transpose()
    }

    fn require_u64(&self, key: &str) -> Result<u64> {
        self.u64(key)?.ok_or_else(|| Error::malformed(format!("config.json: {key}"), "the key is missing"))
    }

    fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|v| v.as_f64().ok_or_else(|| Self::wrong(key, "a number"))).transpose()
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key).map(|v| v.as_bool().ok_or_else(|| Self::wrong(key, "true or false"))).transpose()
    }

    fn str(&self, key: &str) -> Result<Option<&str>> {
        self.get(key).map(|v| v.as_str().ok_or_else(|| Self::wrong(key, "a string"))).transpose()
    }
}

/// The object of a `config.json`; of a model of text, pictures and sound that of its text, with what stands beside it.
fn of_text(text: &str) -> Result<Map<String, Json>> {
    let mut all = object("config.json", text)?;
    match all.remove("text_config") {
        None | Some(Json::Null) => Ok(all),
        Some(Json::Object(text)) => {
            BESIDE_TEXT.iter().for_each(|key| drop(all.remove(*key)));
            // A class of its own, by the name of the text's.
            let model_type = all.get("model_type").cloned();
            all.extend(text.into_iter().filter(|(_, value)| !value.is_null()));
            all.extend(model_type.map(|name| ("model_type".into(), name)));
            Ok(all)
        }
        Some(_) => Err(Config::wrong("text_config", "an object")),
    }
}

/// The `model_type` of a `config.json`.
///
/// # Errors
/// `Malformed` where the text is no JSON or names none.
pub fn model_type(text: &str) -> Result<String> {
    let c = Config { json: of_text(text)? };
    let name = c.str("model_type")?;
    name.map(str::to_owned).ok_or_else(|| Error::malformed("config.json: model_type", "the key is missing"))
}

/// GGUF keys for a `config.json` of this dialect.
///
/// # Errors
/// `Malformed` where the text is no JSON or a key has the wrong kind, `Unsupported` for features that are not supported.
pub fn metadata_from_config(text: &str, dialect: &Dialect) -> Result<Metadata> {
    let mut c = Config { json: of_text(text)? };
    let arch = dialect.architecture;
    for (key, number) in dialect.numbers {
        c.json.entry(*key).or_insert_with(|| (*number).into());
    }
    for (key, flag) in dialect.flags {
        c.json.entry(*key).or_insert_with(|| (*flag).into());
    }
    supported(&c, dialect)?;

    let mut m = Metadata::new();
    m.insert("general.architecture", arch);
    sizes(&c, &mut m, arch)?;
    if dialect.conv {
        conv::keys(&c, &mut m, arch)?;
    }
    experts(&c, dialect, &mut m)?;
    if let Some(sparse) = &dialect.sparse {
        routers::keys(&c, sparse, &mut m, arch)?;
    }
    positions::windows(&c, dialect, c.require_u64("num_hidden_layers")?, &mut m)?;
    positions::heads(&c, dialect, &mut m)?;
    wide_layers(&c, arch, &mut m)?;
    if dialect.latent {
        latent::keys(&c, &mut m, arch)?;
    }
    positions::ropes(&c, dialect, &mut m)?;
    delta::layers(&c, dialect, &mut m)?;
    scales(&c, dialect, &mut m)?;
    let unused: Vec<String> = c
        .json
        .keys()
        .filter(|k| !READ.contains(&k.as_str()) && !DESCRIBING.contains(&k.as_str()))
        .filter(|k| !(dialect.clamped && CLAMP.contains(&k.as_str())))
        .filter(|k| !(dialect.conv && conv::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.sparse.is_some() && routers::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.latent && latent::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.delta && delta::READ.contains(&k.as_str())))
        .cloned()
        .collect();
    if !unused.is_empty() {
        m.insert("dollop.source.unused", unused);
    }
    Ok(m)
}

/// Refuses what no family here has.
fn supported(c: &Config, dialect: &Dialect) -> Result<()> {
    let method = c.get("quantization_config").map(|how| how["quant_method"].as_str());
    // The blocks of stacks that alternate are read.
    if let Some(method) = method.filter(|m| *m != Some("mxfp4") || dialect.stacks != Stacks::Alternating) {
        let method = method.unwrap_or("a method without a name");
        let what = format!(
            "config.json: weights quantized by {method} are not supported; take the unquantized model or a GGUF file of it"
        );
        return Err(Error::unsupported(what));
    }
    for key in ["hidden_act", "hidden_activation"] {
        let want = dialect.activation;
        if let Some(act) = c.str(key)?.filter(|a| *a != want) {
            let what = format!("config.json: {key} `{act}` is not supported; `{want}` is");
            return Err(Error::unsupported(what));
        }
    }
    // Between pictures, of which there are none.
    let harmless =
        |v: &Json| *v == Json::Bool(false) || v.as_str() == Some("vision") || v.as_u64() == Some(0);
    let own = |key: &&str| dialect.per_layer && PER_LAYER.iter().any(|(own, _)| own == key);
    for key in UNSUPPORTED.into_iter().filter(|key| !own(key)) {
        if c.get(key).is_some_and(|v| !harmless(v)) {
            return Err(Error::unsupported(format!("config.json: {key} is not supported")));
        }
    }
    Ok(())
}

/// Writes a number under the family's key, if there is one.
fn number(m: &mut Metadata, arch: &str, name: &str, value: Option<u64>) -> Result<()> {
    if let Some(v) = value {
        let large = |_| Error::malformed(format!("config.json: {name}"), "is absurdly large");
        m.insert(format!("{arch}.{name}"), u32::try_from(v).map_err(large)?);
    }
    Ok(())
}

fn sizes(c: &Config, m: &mut Metadata, arch: &str) -> Result<()> {
    let mut number = |name: &str, value| number(m, arch, name, value);
    let layers = c.require_u64("num_hidden_layers")?;
    if layers > MAX_LAYERS {
        return Err(Error::malformed(
            "config.json: num_hidden_layers",
            format!("{layers} is more than {MAX_LAYERS}"),
        ));
    }
    let (d, heads) = (c.require_u64("hidden_size")?, c.require_u64("num_attention_heads")?);
    number("block_count", Some(layers))?;
    number("context_length", Some(c.require_u64("max_position_embeddings")?))?;
    number("embedding_length", Some(d))?;
    number("feed_forward_length", c.u64("intermediate_size")?)?;
    number("attention.head_count", Some(heads))?;
    number("attention.head_count_kv", Some(c.u64("num_key_value_heads")?.unwrap_or(heads)))?;
    let head_dim = match c.u64("head_dim")? {
        Some(n) => n,
        None => {
            d.checked_div(heads).ok_or_else(|| Config::wrong("num_attention_heads", "a number above zero"))?
        }
    };
    number("attention.key_length", Some(head_dim))?;
    number("attention.value_length", Some(head_dim))?;
    number("rope.dimension_count", Some(head_dim))?;
    for (theirs, ours) in PER_LAYER {
        number(ours, c.u64(theirs)?.filter(|&n| n > 0))?;
    }
    m.insert(
        format!("{arch}.attention.layer_norm_rms_epsilon"),
        c.f64("rms_norm_eps")?.or(c.f64("norm_eps")?).unwrap_or(1e-6) as f32,
    );
    if let Some(clip) = c.f64("clip_qkv")? {
        m.insert(format!("{arch}.attention.clamp_kqv"), clip as f32);
    }
    Ok(())
}

/// Widths by layer, where those without keys and values of their own have blocks twice as wide.
fn wide_layers(c: &Config, arch: &str, m: &mut Metadata) -> Result<()> {
    let (layers, shared) = (c.require_u64("num_hidden_layers")?, c.u64("num_kv_shared_layers")?.unwrap_or(0));
    if c.bool("use_double_wide_mlp")? == Some(true) && shared > 0 {
        let width = c.require_u64("intermediate_size")?;
        let of = |layer| if layer < layers.saturating_sub(shared) { width } else { width.saturating_mul(2) };
        m.insert(format!("{arch}.feed_forward_length"), (0..layers).map(of).collect::<Vec<u64>>());
    }
    Ok(())
}

/// What multiplies embeddings and scores, and what limits logits.
fn scales(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    let key = |name: &str| format!("{}.{name}", dialect.architecture);
    if dialect.embed_root {
        let root = (c.require_u64("hidden_size")? as f32).sqrt();
        let rounded = match c.str("dtype")?.or(c.str("torch_dtype")?) {
            Some("bfloat16") => half::bf16::from_f32(root).to_f32(),
            Some("float16") => half::f16::from_f32(root).to_f32(),
            _ => root,
        };
        m.insert(key("embedding_scale"), rounded);
    }
    if let Some(scalar) = c.f64("query_pre_attn_scalar")? {
        if scalar.is_nan() || scalar <= 0.0 {
            return Err(Config::wrong("query_pre_attn_scalar", "a number above zero"));
        }
        m.insert(key("attention.scale"), (1.0 / scalar.sqrt()) as f32);
    }
    if let Some(cap) = c.f64("final_logit_softcapping")? {
        m.insert(key("final_logit_softcapping"), cap as f32);
    }
    Ok(())
}

fn experts(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    let mut number = |name: &str, value| number(m, dialect.architecture, name, value);
    let off = c.bool("enable_moe_block")? == Some(false);
    let experts = c.u64("num_experts")?.or(c.u64("num_local_experts")?).filter(|&n| n > 0 && !off);
    if let Some(experts) = experts.filter(|_| dialect.routed) {
        number("expert_count", Some(experts))?;
        let top_k = c.u64("top_k_experts")?.map_or_else(|| c.require_u64("num_experts_per_tok"), Ok)?;
        number("expert_used_count", Some(top_k))?;
        number("expert_feed_forward_length", c.u64("moe_intermediate_size")?)?;
        number("expert_shared_feed_forward_length", c.u64("shared_expert_intermediate_size")?)?;
        let renormalize = c.bool("norm_topk_prob")?.or(dialect.renormalize).unwrap_or(false);
        m.insert("dollop.router.renormalize", renormalize);
        for key in CLAMP.iter().filter(|_| dialect.clamped) {
            if let Some(value) = c.f64(key)? {
                m.insert(key.replace("swiglu_", "dollop.swiglu."), value as f32);
            }
        }
    }
    Ok(())
}

/// Whether a `config.json` says that embedding and output head are one matrix; `None` where it leaves that to the family.
///
/// # Errors
/// As [`metadata_from_config`].
pub fn is_tied(config: &str) -> Result<Option<bool>> {
    let c = Config { json: of_text(config)? };
    Ok(c.bool("tie_word_embeddings")?.or(c.bool("tie_embedding")?))
}

/// A JSON file whose whole is an object. `name` is the file's.
fn object(name: &str, text: &str) -> Result<Map<String, Json>> {
    match json::parse(text).map_err(|e| Error::malformed(name, e.to_string()))? {
        Json::Object(object) => Ok(object),
        _ => Err(Error::malformed(name, "an object is expected")),
    }
}
