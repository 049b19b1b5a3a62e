//! Maps names of Hugging Face tensors to canonical (GGUF) names, with the transformation that each tensor
//! needs.

use super::{Delta, Dialect};

/// One destination of a Hugging Face tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// GGUF name.
    pub name: String,
    /// The expert's index, if the tensor holds one expert of a stack.
    pub expert: Option<usize>,
    /// Which rows of the tensor go there.
    pub cut: Cut,
    /// Whether the matrices are stored transposed, as `[in, out]`.
    pub turned: bool,
    /// What the tensor's bytes encode.
    pub form: Form,
    /// How stored numbers map to the real ones.
    pub stored: Stored,
    /// For a part of a matrix that the file stores in several tensors, whose rows follow each other: the part's index,
    /// and the number of parts.
    pub part: Option<(usize, usize)>,
}

/// How the stored numbers of a tensor map to those used in computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stored {
    /// Identical.
    #[default]
    Plain,
    /// Stored minus one.
    LessOne,
    /// Stored negated.
    Negated,
    /// Stored as the logarithm of the negated number.
    LogNegated,
}

impl Stored {
    /// Converts stored numbers to the real ones, in place.
    pub fn turn(self, values: &mut [f32]) {
        match self {
            Stored::Plain => {}
            Stored::LessOne => values.iter_mut().for_each(|value| *value += 1.0),
            Stored::Negated => values.iter_mut().for_each(|value| *value = -*value),
            Stored::LogNegated => values.iter_mut().for_each(|value| *value = -value.exp()),
        }
    }
}

/// A selection of a tensor's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All rows.
    Whole,
    /// The first (0) or second (1) half of each expert's rows.
    Half(usize),
    /// Every other row of each expert, starting with this one.
    Alternate(usize),
    /// The same selection from each head.
    Heads(Heads),
}

/// Which rows of each head are selected, in tensors that interleave several kinds of rows head by head. The
/// variants tell how a head is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heads {
    /// `[queries | keys | values]`, each of all heads: the part with this number.
    Fused(usize),
    /// `[query | gate]`: the query.
    Query,
    /// `[query | gate]`: the gate of the attention output.
    Gate,
    /// A key head's `[query | key | values | z]`: first all queries, then all keys, then all values.
    Mixed,
    /// A key head's `[query | key | values | z]`: `z`.
    Z,
    /// A key head's `[beta | alpha]`, one number per value head: `beta`.
    Beta,
    /// A key head's `[beta | alpha]`: `alpha`.
    Alpha,
    /// Mamba-2's `[z | values | keys | queries | steps]`, or `[values | keys | queries]`, each of all heads: first
    /// all queries, then all keys, then all values.
    Scanned,
    /// Mamba-2's `[z | values | keys | queries | steps]`: `z`.
    ScannedGate,
    /// Mamba-2's `[z | values | keys | queries | steps]`: the steps.
    ScannedSteps,
    /// Queries of latent attention: all rows, the rotated ones reordered for our RoPE.
    Turned,
    /// The latent followed by the rotated part of the key: the rotated part first, reordered for our RoPE,
    /// then the latent.
    Latent,
    /// `[key | value]` of latent attention: the key, each head's matrix transposed.
    Keys,
    /// `[key | value]` of latent attention: the value.
    Values,
}

/// What the bytes of a tensor encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Ordinary numbers.
    Values,
    /// The 4-bit codes of MXFP4 blocks, `[…, blocks, 16]`.
    Codes,
    /// The scales of MXFP4 blocks, `[…, blocks]`.
    Scales,
}

/// The layout of stacked experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stacks {
    /// `[experts, out, in]`, gate rows before up rows.
    Halves,
    /// `[experts, in, out]`, with alternating outputs of gate and up. As MXFP4 blocks, `[experts, out, in]`.
    Alternating,
}

impl Place {
    /// The whole tensor, unchanged.
    pub fn whole(name: String, expert: Option<usize>) -> Place {
        let (cut, form, stored) = (Cut::Whole, Form::Values, Stored::Plain);
        Place { name, expert, cut, turned: false, form, stored, part: None }
    }
}

impl Place {
    /// The selected rows of every head.
    pub fn of_heads(name: String, heads: Heads) -> Place {
        Place { cut: Cut::Heads(heads), ..Place::whole(name, None) }
    }
}

/// The destinations of a stack of experts. `name` is the part after `mlp.experts.`.
fn stack(name: &str, stacks: Stacks, blk: &dyn Fn(&str) -> String) -> Option<Vec<Place>> {
    let both = |leaf: &str, cut: fn(usize) -> Cut| {
        let place =
            |(i, part)| Place { cut: cut(i), ..Place::whole(blk(&format!("ffn_{part}_exps.{leaf}")), None) };
        ["gate", "up"].into_iter().enumerate().map(place).collect::<Vec<_>>()
    };
    let down = |leaf: &str| vec![Place::whole(blk(&format!("ffn_down_exps.{leaf}")), None)];
    let (base, form) = match name.rsplit_once('_') {
        Some((base, "blocks")) => (base, Form::Codes),
        Some((base, "scales")) => (base, Form::Scales),
        _ => (name, Form::Values),
    };
    let mut places = match (base, stacks) {
        ("gate_up_proj", Stacks::Halves) => both("weight", Cut::Half),
        ("gate_up_proj", Stacks::Alternating) => both("weight", Cut::Alternate),
        ("down_proj", _) => down("weight"),
        ("gate_up_proj_bias", Stacks::Alternating) if form == Form::Values => {
            return Some(both("bias", Cut::Alternate));
        }
        ("down_proj_bias", Stacks::Alternating) if form == Form::Values => return Some(down("bias")),
        _ => return None,
    };
    if stacks == Stacks::Halves && form != Form::Values {
        return None;
    }
    for place in &mut places {
        (place.turned, place.form) = (stacks == Stacks::Alternating && form == Form::Values, form);
    }
    Some(places)
}

/// The destinations of tensors that combine several, head by head, and of a delta net's vectors.
fn combined(name: &str, dialect: &Dialect, blk: &dyn Fn(&str) -> String) -> Option<Vec<Place>> {
    let (module, leaf) = name.rsplit_once('.')?;
    let two: [(&str, Heads); 2] = match (module, leaf) {
        ("linear_attn" | "mamba", "A_log") => {
            let place = Place::whole(blk("ssm_a"), None);
            return Some(vec![Place { stored: Stored::LogNegated, ..place }]);
        }
        ("linear_attn" | "mamba", "dt_bias") => return Some(vec![Place::whole(blk("ssm_dt.bias"), None)]),
        ("self_attn.q_proj", _) if dialect.gate_in_q => {
            [("attn_q", Heads::Query), ("attn_gate", Heads::Gate)]
        }
        ("linear_attn.in_proj_qkvz", _) => [("attn_qkv", Heads::Mixed), ("attn_gate", Heads::Z)],
        ("self_attn.query_key_value", _) => {
            let part =
                |(i, part): (usize, &str)| Place::of_heads(blk(&format!("{part}.{leaf}")), Heads::Fused(i));
            return Some(["attn_q", "attn_k", "attn_v"].into_iter().enumerate().map(part).collect());
        }
        ("mamba.in_proj", "weight") => {
            let parts = [
                ("attn_qkv.weight", Heads::Scanned),
                ("attn_gate.weight", Heads::ScannedGate),
                ("ssm_alpha.weight", Heads::ScannedSteps),
            ];
            return Some(parts.map(|(part, heads)| Place::of_heads(blk(part), heads)).into());
        }
        ("mamba.conv1d", _) => {
            return Some(vec![Place::of_heads(blk(&format!("ssm_conv1d.{leaf}")), Heads::Scanned)]);
        }
        ("mamba", "D") => return Some(vec![Place::whole(blk("ssm_d"), None)]),
        ("linear_attn.in_proj_ba", _) => [("ssm_beta", Heads::Beta), ("ssm_alpha", Heads::Alpha)],
        _ => return None,
    };
    Some(two.map(|(part, heads)| Place::of_heads(blk(&format!("{part}.{leaf}")), heads)).into())
}

/// The destination of a tensor that only delta nets with a decay per channel have. Their other tensors have the
/// names of attention's.
fn channels(name: &str, blk: &dyn Fn(&str) -> String) -> Option<Vec<Place>> {
    let part = match name.strip_prefix("self_attn.")? {
        "A_log" => {
            let place = Place::whole(blk("ssm_a"), None);
            return Some(vec![Place { stored: Stored::LogNegated, ..place }]);
        }
        "dt_bias" => "ssm_dt.bias",
        "q_conv1d.weight" => "ssm_conv1d_q.weight",
        "k_conv1d.weight" => "ssm_conv1d_k.weight",
        "v_conv1d.weight" => "ssm_conv1d_v.weight",
        "f_a_proj.weight" => "ssm_f_a.weight",
        "f_proj.weight" => "ssm_f_a.weight",
        // In delta nets, the output gate; in latent attention, the gate of each head.
        "g_proj.weight" => "attn_gate.weight",
        "f_b_proj.weight" => "ssm_f_b.weight",
        "g_a_proj.weight" => "ssm_g_a.weight",
        "g_b_proj.weight" => "ssm_g_b.weight",
        "b_proj.weight" => "ssm_beta.weight",
        "o_norm.weight" => "ssm_norm.weight",
        _ => return None,
    };
    Some(vec![Place::whole(blk(part), None)])
}

/// The part of the model that a tensor belongs to, if it is left out: an entry of [`Dialect::left_out`], or
/// the draft head after the `layers` layers.
pub fn left_out(name: &str, dialect: &Dialect, layers: u64) -> Option<&'static str> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let layer = || name.strip_prefix("layers.")?.split_once('.')?.0.parse::<u64>().ok();
    if dialect.draft_layers && layer().is_some_and(|layer| layer >= layers) {
        return Some("nextn");
    }
    dialect.left_out.iter().find(|part| name.starts_with(**part)).copied()
}

/// The destinations of a tensor: one, or several for a combined tensor. Empty for buffers without weights;
/// `None` for unknown names.
pub fn places(name: &str, dialect: &Dialect) -> Option<Vec<Place>> {
    // In a multimodal model, the text model's tensors have one of two prefixes. Models of one-block layers may have
    // another.
    let nested = name.strip_prefix("model.language_model.").or(name.strip_prefix("backbone."));
    let moved = nested.map(|rest| format!("model.{rest}"));
    let inner = moved.as_deref().or(name.strip_prefix("language_model."));
    let mut places = of_text(inner.filter(|_| !dialect.left_out.is_empty()).unwrap_or(name), dialect)?;
    for place in &mut places {
        let plain = place.name.ends_with(".ssm_norm.weight");
        if dialect.norms_from_one && place.name.ends_with("norm.weight") && !plain {
            place.stored = Stored::LessOne;
        }
    }
    Some(places)
}

/// The canonical name of a module, by its name in most families.
fn common(module: &str) -> Option<&'static str> {
    match module {
        "input_layernorm" | "operator_norm" => Some("attn_norm"),
        "post_attention_layernorm" | "ffn_norm" => Some("ffn_norm"),
        "conv.conv" => Some("shortconv.conv"),
        "conv.in_proj" => Some("shortconv.in_proj"),
        "conv.out_proj" => Some("shortconv.out_proj"),
        "self_attn.q_proj" => Some("attn_q"),
        "self_attn.k_proj" => Some("attn_k"),
        "self_attn.v_proj" => Some("attn_v"),
        "linear_attn.in_proj_qkv" => Some("attn_qkv"),
        "linear_attn.in_proj_z" => Some("attn_gate"),
        "linear_attn.in_proj_b" => Some("ssm_beta"),
        "linear_attn.in_proj_a" => Some("ssm_alpha"),
        "linear_attn.conv1d" => Some("ssm_conv1d"),
        "linear_attn.norm" | "mamba.norm" => Some("ssm_norm"),
        "linear_attn.out_proj" | "mamba.out_proj" => Some("ssm_out"),
        "self_attn.o_proj" | "self_attn.out_proj" | "self_attn.dense" => Some("attn_output"),
        "self_attn.q_norm" | "self_attn.q_layernorm" | "self_attn.query_layernorm" => Some("attn_q_norm"),
        "self_attn.k_norm" | "self_attn.k_layernorm" | "self_attn.key_layernorm" => Some("attn_k_norm"),
        "mlp.gate_proj" | "block_sparse_moe.gate_proj" | "feed_forward.w1" => Some("ffn_gate"),
        "mlp.up_proj" | "block_sparse_moe.up_proj" | "feed_forward.w3" => Some("ffn_up"),
        "mlp.down_proj" | "block_sparse_moe.down_proj" | "feed_forward.w2" => Some("ffn_down"),
        "mlp.gate"
        | "mlp.gate.wg"
        | "mlp.router"
        | "block_sparse_moe.gate"
        | "block_sparse_moe.router.layer"
        | "feed_forward.gate" => Some("ffn_gate_inp"),
        "shared_mlp.output_linear" => Some("ffn_down_shexp"),
        "mlp.shared_expert_gate" => Some("ffn_gate_inp_shexp"),
        _ => shared(module),
    }
}

/// The canonical name of a matrix of the shared experts.
fn shared(module: &str) -> Option<&'static str> {
    let prefixes =
        ["mlp.shared_expert.", "mlp.shared_experts.", "mlp.shared_mlp.", "block_sparse_moe.shared_experts."];
    match prefixes.iter().find_map(|prefix| module.strip_prefix(prefix))? {
        "gate_proj" => Some("ffn_gate_shexp"),
        "up_proj" => Some("ffn_up_shexp"),
        "down_proj" => Some("ffn_down_shexp"),
        _ => None,
    }
}

/// The destinations of the projections of latent attention.
fn latent(name: &str, blk: &dyn Fn(&str) -> String) -> Option<Vec<Place>> {
    let (module, leaf) = name.strip_prefix("self_attn.")?.rsplit_once('.')?;
    let whole = |part: &str| vec![Place::whole(blk(&format!("{part}.{leaf}")), None)];
    let of_heads = |part: &str, heads| vec![Place::of_heads(blk(&format!("{part}.{leaf}")), heads)];
    Some(match module {
        "q_a_proj" => whole("attn_q_a"),
        "q_a_layernorm" => whole("attn_q_a_norm"),
        "kv_a_layernorm" => whole("attn_kv_a_norm"),
        "q_proj" => of_heads("attn_q", Heads::Turned),
        "q_b_proj" => of_heads("attn_q_b", Heads::Turned),
        "kv_a_proj_with_mqa" => of_heads("attn_kv_a_mqa", Heads::Latent),
        "kv_b_proj" => [of_heads("attn_k_b", Heads::Keys), of_heads("attn_v_b", Heads::Values)].concat(),
        _ => return None,
    })
}

/// The usual name of a layer's tensor, if its module has another one. In a layer of one block the module is called
/// `mixer`, whatever it is.
fn usual(rest: &str) -> Option<String> {
    if let Some(part) = rest.strip_prefix("attention.") {
        return Some(format!("self_attn.{part}"));
    }
    let Some(part) = rest.strip_prefix("mixer.") else {
        return (rest == "norm.weight").then(|| "input_layernorm.weight".into());
    };
    let module = match part.split('.').next()? {
        "A_log" | "D" | "conv1d" | "dt_bias" | "in_proj" | "norm" | "out_proj" => "mamba",
        "q_proj" | "k_proj" | "v_proj" | "o_proj" => "self_attn",
        _ => "mlp",
    };
    Some(format!("{module}.{part}"))
}

fn of_text(name: &str, dialect: &Dialect) -> Option<Vec<Place>> {
    let one = |name: String, expert| Some(vec![Place::whole(name, expert)]);
    match name {
        "model.embed_tokens.weight" | "model.word_embeddings.weight" | "model.embeddings.weight" => {
            return one("token_embd.weight".into(), None);
        }
        "model.norm.weight" | "model.norm_f.weight" | "model.embedding_norm.weight" => {
            return one("output_norm.weight".into(), None);
        }
        "model.embed_tokens_per_layer.weight" => return one("per_layer_token_embd.weight".into(), None),
        "model.per_layer_model_projection.weight" => return one("per_layer_model_proj.weight".into(), None),
        "model.per_layer_projection_norm.weight" => return one("per_layer_proj_norm.weight".into(), None),
        "model.norm.bias" => return one("output_norm.bias".into(), None),
        "lm_head.weight" | "lm_head.bias" => return one(name.replace("lm_head", "output"), None),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let moved = usual(rest);
    let rest = moved.as_deref().unwrap_or(rest);
    let layer: usize = layer.parse().ok()?;
    let blk = |part: &str| format!("blk.{layer}.{part}");
    let unused = dialect.unused.contains(&rest);
    if unused || rest.starts_with("self_attn.rotary_emb") {
        return Some(Vec::new());
    }
    // Names without a `.weight` or `.bias`.
    let own = match rest {
        "self_attn.sinks" => Some("attn_sinks.weight"),
        "layer_scalar" => Some("layer_output_scale.weight"),
        "router.scale" => Some("ffn_gate_inp.scale"),
        "router.per_expert_scale" => Some("ffn_down_exps.scale"),
        _ => None,
    };
    if let Some(own) = own {
        return one(blk(own), None);
    }
    if matches!(
        rest,
        "feed_forward.expert_bias"
            | "mlp.expert_bias"
            | "mlp.gate.expert_bias"
            | "mlp.gate.e_score_correction_bias"
            | "mlp.experts.e_score_correction_bias"
            | "mlp.moe_statics.e_score_correction_bias"
            | "block_sparse_moe.e_score_correction_bias"
            | "block_sparse_moe.gate.e_score_correction_bias"
    ) {
        return one(blk("exp_probs_b.bias"), None);
    }
    // Stacks of experts, and a shared expert's gate and up rows in one matrix.
    match rest {
        "block_sparse_moe.input_linear.weight" => return stack("gate_up_proj", dialect.stacks, &blk),
        "block_sparse_moe.output_linear.weight" => return stack("down_proj", dialect.stacks, &blk),
        "shared_mlp.input_linear.weight" => {
            let half = |(i, part)| Place { cut: Cut::Half(i), ..Place::whole(blk(part), None) };
            let parts = ["ffn_gate_shexp.weight", "ffn_up_shexp.weight"];
            return Some(parts.into_iter().enumerate().map(half).collect());
        }
        _ => {}
    }
    let several = || if dialect.latent { latent(rest, &blk) } else { None };
    let of_channels = || if dialect.delta == Some(Delta::Channels) { channels(rest, &blk) } else { None };
    if let Some(places) = combined(rest, dialect, &blk).or_else(of_channels).or_else(several) {
        return Some(places);
    }
    let (module, leaf) = rest.rsplit_once('.')?;
    let renamed = dialect.renamed.iter().find(|(theirs, _)| *theirs == module).map(|(_, ours)| *ours);
    let plain = renamed.or_else(|| common(module));
    if let Some(part) = plain {
        return one(blk(&format!("{part}.{leaf}")), None);
    }
    expert(rest, dialect, &blk)
}

/// The destinations of experts, one or a stack of them.
fn expert(rest: &str, dialect: &Dialect, blk: &dyn Fn(&str) -> String) -> Option<Vec<Place>> {
    let narrow = rest.strip_prefix("mlp.chunk_experts.");
    let stacked = if narrow.is_some() { "chexps" } else { "exps" };
    let experts = ["mlp.experts.", "block_sparse_moe.experts.", "feed_forward.experts.", "experts."]
        .iter()
        .find_map(|prefix| rest.strip_prefix(prefix))
        .or(narrow)?;
    let Some((expert, part)) = experts.split_once('.') else { return stack(experts, dialect.stacks, blk) };
    let part = match part {
        "gate_proj.weight" | "gate.weight" | "w1.weight" => "gate",
        "up_proj.weight" | "up.weight" | "w3.weight" => "up",
        "down_proj.weight" | "down.weight" | "w2.weight" => "down",
        _ => return None,
    };
    let name = blk(&format!("ffn_{part}_{stacked}.weight"));
    Some(vec![Place::whole(name, Some(expert.parse().ok()?))])
}
