//! Converts Hugging Face models to GGUF conventions: `config.json` to GGUF keys, tensor names to GGUF names.
//!
//! Two spellings of `config.json` are read: the old one (`rope_theta`, `rope_scaling`) and that of
//! transformers 5 (`rope_parameters`). Keys are those of llama.cpp's converter; facts without a GGUF key are
//! stored under `dollop.*`.

mod blocks;
mod conv;
mod delta;
mod generation;
mod latent;
mod places;
mod positions;
mod routers;
mod small;

pub use delta::Delta;
pub use generation::sampling;
pub use places::{Cut, Form, Heads, Place, Stacks, Stored, left_out, places};
pub use routers::Sparse;
pub use small::{SmallFiles, chat_template, special_tokens};

use super::json;
use super::value::Metadata;
use crate::error::{Error, Result};
use serde_json::{Map, Value as Json};

/// How to read the `config.json` of one `model_type`.
#[derive(Debug)]
pub struct Dialect {
    /// `model_type`.
    pub model_type: &'static str,
    /// The classes in `architectures`, if models that are not supported, or that another dialect reads, share the
    /// `model_type`; empty for any.
    pub classes: &'static [&'static str],
    /// The GGUF architecture to convert to.
    pub architecture: &'static str,
    /// The class's default for `rope_theta`.
    pub rope_base: f64,
    /// Whether it has routed experts.
    pub routed: bool,
    /// Whether the chosen gates are divided by their sum, if `norm_topk_prob` is missing.
    pub renormalize: Option<bool>,
    /// How to read `sliding_window`; `None` if the model does not use it.
    pub sliding: Option<Sliding>,
    /// Whether the router is SparseMixer, with the parameter `router_jitter_noise`.
    pub mixer: bool,
    /// The layout of stacked experts.
    pub stacks: Stacks,
    /// Whether some layers are short convolutions (see `conv`).
    pub conv: bool,
    /// Whether each layer is one block (see `blocks`).
    pub one_block: bool,
    /// Whether the model uses latent attention (see `latent`).
    pub latent: bool,
    /// The defaults for DeepSeek's keys about experts (see `routers`), if the model uses those keys.
    pub sparse: Option<Sparse>,
    /// Whether tensors of layers after the last belong to a draft head.
    pub draft_layers: bool,
    /// Whether the activation has the parameters `swiglu_alpha` and `swiglu_limit`.
    pub clamped: bool,
    /// The required value of `hidden_act`, `hidden_activation` and `mlp_hidden_act`, if present.
    pub activation: &'static str,
    /// Whether embeddings are multiplied by √d, rounded to the weights' type (`dtype`). The key `mup_enabled`
    /// switches it, and then nothing is rounded.
    pub embed_root: bool,
    /// The default RoPE base of window layers, if they have their own.
    pub window_rope_base: Option<f64>,
    /// Whether layers may have extra inputs, and the last layers may share KV caches.
    pub per_layer: bool,
    /// Prefix of the keys about heads of full-attention layers, if these differ from window layers.
    pub sees_all: Option<&'static str>,
    /// Whether norm weights are stored minus one.
    pub norms_from_one: bool,
    /// Keys with unusual names, and their usual names.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Modules of a layer with unusual names, and their canonical names.
    pub renamed: &'static [(&'static str, &'static str)],
    /// Tensors of a layer that the model does not use.
    pub unused: &'static [&'static str],
    /// Prefixes of tensors that do not belong to the text model.
    pub left_out: &'static [&'static str],
    /// The class's default numbers, for missing keys.
    pub numbers: &'static [(&'static str, u64)],
    /// The class's default flags, for missing keys.
    pub flags: &'static [(&'static str, bool)],
    /// The default rotated share of a head; `None` if heads always rotate fully.
    pub partial_rotary: Option<f64>,
    /// The kind of gated delta nets, if some layers are such nets (see `delta`).
    pub delta: Option<Delta>,
    /// Whether the query projection contains the gate's rows, head by head.
    pub gate_in_q: bool,
    /// Whether rows of queries and keys that rotate together are neighbours. The family's GGUF files then have
    /// them so, too.
    pub interleaved: bool,
}

/// How a family selects the layers with a sliding window.
#[derive(Clone, Copy, Debug)]
pub struct Sliding {
    /// Whether the window also needs `use_sliding_window` to be true.
    pub switched: bool,
    /// Whether `layer_types`, if present, lists the layers.
    pub listed: bool,
    /// The default of `sliding_window_pattern`, for families that have this key.
    pub rhythm: Option<u64>,
    /// Otherwise decides by the layer's number, and by `sliding_window_pattern` or else `max_window_layers`.
    pub on: fn(u64, u64) -> bool,
}

impl Dialect {
    /// Defaults, shared by most families.
    pub const USUAL: Dialect = Dialect {
        model_type: "",
        classes: &[],
        architecture: "",
        rope_base: 1e4,
        routed: false,
        renormalize: None,
        sliding: None,
        mixer: false,
        stacks: Stacks::Halves,
        conv: false,
        one_block: false,
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
        aliases: &[],
        renamed: &[],
        unused: &[],
        left_out: &[],
        numbers: &[],
        flags: &[],
        partial_rotary: None,
        delta: None,
        gate_in_q: false,
        interleaved: false,
    };
}

const MAX_LAYERS: u64 = 1024;

/// Keys of `config.json` that we read (here or for the tokenizer), or whose meaning the tensors show.
const READ: [&str; 68] = [
    "_sliding_window_pattern",
    "attention_bias",
    "attention_k_eq_v",
    "attention_multiplier",
    "attn_logit_softcapping",
    "bos_token_id",
    "clip_qkv",
    "decoder_sparse_step",
    "embedding_multiplier",
    "enable_moe_block",
    "eos_token_id",
    "final_logit_softcapping",
    // Not needed: the tensors show it.
    "gating",
    "gating_types",
    "global_attn_every_n_layers",
    "global_head_dim",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "hidden_size_per_layer_input",
    "intermediate_size",
    "layer_types",
    "logits_scaling",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "mlp_only_layers",
    "model_max_length",
    "model_type",
    "moe_intermediate_size",
    "mup_enabled",
    "norm_topk_prob",
    "num_attention_heads",
    "num_attention_heads_per_layer",
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
    "residual_multiplier",
    "rms_norm_eps",
    "rope_layout",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rotary_dim",
    "shared_expert_intermediate_size",
    // Not needed: the tensors show it.
    "shared_intermediate_size",
    "sliding_window",
    "sliding_window_layout",
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
const DESCRIBING: [&str; 21] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "dtype",
    // Repeats another key.
    "experts_per_token",
    "initial_context_length",
    "initializer_range",
    "input_jitter_noise",
    "lm_head_bias",
    "original_max_position_embeddings",
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

/// Keys of `config.json` that we support only if they are off.
const UNSUPPORTED: [&str; 4] = [
    "attn_logit_softcapping",
    "hidden_size_per_layer_input",
    "num_kv_shared_layers",
    "use_bidirectional_attention",
];

/// Names of the epsilon of norms.
const EPSILONS: [&str; 3] = ["rms_norm_eps", "norm_eps", "layer_norm_epsilon"];

/// Factors on embeddings, scores, residuals and logits, and their GGUF keys.
const MULTIPLIERS: [(&str, &str); 4] = [
    ("attention_multiplier", "attention.scale"),
    ("embedding_multiplier", "embedding_scale"),
    ("logits_scaling", "logit_scale"),
    ("residual_multiplier", "residual_scale"),
];

/// Keys about extra layer inputs, and their GGUF keys.
const PER_LAYER: [(&str, &str); 2] = [
    ("hidden_size_per_layer_input", "embedding_length_per_layer_input"),
    ("num_kv_shared_layers", "attention.shared_kv_layers"),
];

/// Keys with the parameters of the clamped SwiGLU.
const CLAMP: [&str; 2] = ["swiglu_alpha", "swiglu_limit"];

/// Keys that a multimodal model has beside `text_config`.
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

/// The object in a `config.json`. For a multimodal model, this is its `text_config` merged with the outer
/// keys.
fn of_text(text: &str) -> Result<Map<String, Json>> {
    let mut all = object("config.json", text)?;
    match all.remove("text_config") {
        None | Some(Json::Null) => Ok(all),
        Some(Json::Object(text)) => {
            BESIDE_TEXT.iter().for_each(|key| drop(all.remove(*key)));
            // The multimodal model's own `model_type` wins over that of `text_config`.
            let model_type = all.get("model_type").cloned();
            all.extend(text.into_iter().filter(|(_, value)| !value.is_null()));
            all.extend(model_type.map(|name| ("model_type".into(), name)));
            Ok(all)
        }
        Some(_) => Err(Config::wrong("text_config", "an object")),
    }
}

/// The `model_type` in a `config.json`, and its `architectures`.
///
/// # Errors
/// `Malformed` if the text is not JSON or has no `model_type`.
pub fn model_type(text: &str) -> Result<(String, Vec<String>)> {
    let c = Config { json: of_text(text)? };
    let name = c.str("model_type")?;
    let name = name.ok_or_else(|| Error::malformed("config.json: model_type", "the key is missing"))?;
    let classes = c.get("architectures").and_then(Json::as_array).into_iter().flatten();
    Ok((name.to_owned(), classes.filter_map(|class| class.as_str().map(str::to_owned)).collect()))
}

/// The GGUF keys for a `config.json` of this dialect.
///
/// # Errors
/// `Malformed` if the text is not JSON or a key has the wrong type. `Unsupported` for features that we do not
/// support.
pub fn metadata_from_config(text: &str, dialect: &Dialect) -> Result<Metadata> {
    let mut c = Config { json: of_text(text)? };
    let arch = dialect.architecture;
    for (theirs, usual) in dialect.aliases {
        if let Some(value) = c.json.remove(*theirs) {
            c.json.insert((*usual).into(), value);
        }
    }
    for (key, number) in dialect.numbers {
        c.json.entry(*key).or_insert_with(|| (*number).into());
    }
    for (key, flag) in dialect.flags {
        c.json.entry(*key).or_insert_with(|| (*flag).into());
    }
    supported(&c, dialect)?;
    if dialect.one_block {
        blocks::count(&mut c)?;
    }

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
    if dialect.one_block {
        blocks::keys(&c, &mut m, arch)?;
    }
    scales(&c, dialect, &mut m)?;
    let unused: Vec<String> = c
        .json
        .keys()
        .filter(|k| !READ.contains(&k.as_str()) && !DESCRIBING.contains(&k.as_str()))
        .filter(|k| !(dialect.clamped && CLAMP.contains(&k.as_str())))
        .filter(|k| !(dialect.conv && conv::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.sparse.is_some() && routers::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.one_block && blocks::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.latent && latent::READ.contains(&k.as_str())))
        .filter(|k| !(dialect.delta.is_some() && delta::READ.contains(&k.as_str())))
        .cloned()
        .collect();
    if !unused.is_empty() {
        m.insert("dollop.source.unused", unused);
    }
    Ok(m)
}

/// Refuses features that no supported family has.
fn supported(c: &Config, dialect: &Dialect) -> Result<()> {
    let method = c.get("quantization_config").map(|how| how["quant_method"].as_str());
    // MXFP4 blocks are read, but only in stacks of the alternating layout.
    if let Some(method) = method.filter(|m| *m != Some("mxfp4") || dialect.stacks != Stacks::Alternating) {
        let method = method.unwrap_or("a method without a name");
        let what = format!(
            "config.json: weights quantized by {method} are not supported; take the unquantized model or a GGUF file of it"
        );
        return Err(Error::unsupported(what));
    }
    for key in ["hidden_act", "hidden_activation", "mlp_hidden_act"] {
        let want = dialect.activation;
        if let Some(act) = c.str(key)?.filter(|a| *a != want) {
            let what = format!("config.json: {key} `{act}` is not supported; `{want}` is");
            return Err(Error::unsupported(what));
        }
    }
    // `vision` means bidirectional attention only among image tokens, and we have none.
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

/// Writes a number under an architecture key, if there is one.
fn number(m: &mut Metadata, arch: &str, name: &str, value: Option<u64>) -> Result<()> {
    if let Some(v) = value {
        let large = |_| Error::malformed(format!("config.json: {name}"), "the number is too large");
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
    let context = match c.u64("model_max_length")?.filter(|_| c.get("max_position_embeddings").is_none()) {
        Some(context) => context,
        None => c.require_u64("max_position_embeddings")?,
    };
    number("context_length", Some(context))?;
    number("embedding_length", Some(d))?;
    number("feed_forward_length", c.u64("intermediate_size")?)?;
    number("attention.head_count", Some(heads))?;
    let listed = c.get("num_attention_heads_per_layer").map(|all| {
        let all = all.as_array().into_iter().flatten().map(Json::as_u64).collect::<Option<Vec<u64>>>();
        let all = all.filter(|all| all.len() as u64 == layers);
        all.ok_or_else(|| Config::wrong("num_attention_heads_per_layer", "a number for each layer"))
    });
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
        EPSILONS.iter().find_map(|key| c.f64(key).transpose()).transpose()?.unwrap_or(1e-6) as f32,
    );
    if let Some(listed) = listed.transpose()? {
        m.insert(format!("{arch}.attention.head_count"), listed);
    }
    if let Some(clip) = c.f64("clip_qkv")? {
        m.insert(format!("{arch}.attention.clamp_kqv"), clip as f32);
    }
    Ok(())
}

/// Writes a width per layer, if layers without their own KV cache have feed-forward blocks twice as wide.
fn wide_layers(c: &Config, arch: &str, m: &mut Metadata) -> Result<()> {
    let (layers, shared) = (c.require_u64("num_hidden_layers")?, c.u64("num_kv_shared_layers")?.unwrap_or(0));
    if c.bool("use_double_wide_mlp")? == Some(true) && shared > 0 {
        let width = c.require_u64("intermediate_size")?;
        let of = |layer| if layer < layers.saturating_sub(shared) { width } else { width.saturating_mul(2) };
        m.insert(format!("{arch}.feed_forward_length"), (0..layers).map(of).collect::<Vec<u64>>());
    }
    Ok(())
}

/// Writes the factors on embeddings and scores, and the limit on logits.
fn scales(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    let key = |name: &str| format!("{}.{name}", dialect.architecture);
    if dialect.embed_root {
        let root = (c.require_u64("hidden_size")? as f32).sqrt();
        let rounded = match (c.bool("mup_enabled")?, c.str("dtype")?.or(c.str("torch_dtype")?)) {
            (Some(true), _) => root,
            (Some(false), _) => 1.0,
            (None, Some("bfloat16")) => half::bf16::from_f32(root).to_f32(),
            (None, Some("float16")) => half::f16::from_f32(root).to_f32(),
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
    for (theirs, ours) in MULTIPLIERS {
        if let Some(factor) = c.f64(theirs)? {
            m.insert(key(ours), factor as f32);
        }
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
        if let Some(jitter) = c.f64("router_jitter_noise")?.filter(|_| dialect.mixer) {
            m.insert("dollop.router.tolerance", (2.0 * jitter) as f32);
        }
        for key in CLAMP.iter().filter(|_| dialect.clamped) {
            if let Some(value) = c.f64(key)? {
                m.insert(key.replace("swiglu_", "dollop.swiglu."), value as f32);
            }
        }
    }
    Ok(())
}

/// Whether a `config.json` says that embedding and output head are the same matrix; `None` if it does not
/// say.
///
/// # Errors
/// Those of [`metadata_from_config`].
pub fn is_tied(config: &str) -> Result<Option<bool>> {
    let c = Config { json: of_text(config)? };
    Ok(c.bool("tie_word_embeddings")?.or(c.bool("tie_embedding")?))
}

/// Parses a JSON file, which must be an object. `name` is the file's name.
fn object(name: &str, text: &str) -> Result<Map<String, Json>> {
    match json::parse(text).map_err(|e| Error::malformed(name, e.to_string()))? {
        Json::Object(object) => Ok(object),
        _ => Err(Error::malformed(name, "an object is expected")),
    }
}
