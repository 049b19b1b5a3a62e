//! Reads from `config.json` which layers have a sliding window, and the parameters of the rotary embeddings.

use super::{Config, Dialect};
use crate::error::{Error, Result};
use crate::format::Metadata;
use serde_json::{Map, Value as Json};

/// Writes which layers have a sliding window. Each family tells it in its own way.
pub(super) fn windows(c: &Config, dialect: &Dialect, layers: u64, m: &mut Metadata) -> Result<()> {
    let (Some(window), Some(sliding)) = (c.u64("sliding_window")?.filter(|&w| w > 0), dialect.sliding) else {
        return rotated(c, &[]);
    };
    if sliding.switched && !c.bool("use_sliding_window")?.unwrap_or(false) {
        return Ok(());
    }
    let listed = match (c.get("layer_types"), layout(c, "sliding_window_layout")?) {
        (Some(Json::Array(all)), _) => {
            Some(all.iter().map(|t| t.as_str() == Some("sliding_attention")).collect::<Vec<_>>())
        }
        (None, layout) => layout,
        (Some(_), _) => return Err(Config::wrong("layer_types", "an array")),
    };
    let edge = match sliding.rhythm {
        Some(usual) => {
            let names = ["sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"];
            names.iter().find_map(|name| c.u64(name).transpose()).transpose()?.unwrap_or(usual)
        }
        None => c.u64("max_window_layers")?.unwrap_or(layers),
    };
    let by_number = || (0..layers).map(|layer| (sliding.on)(layer, edge)).collect();
    let on = listed.filter(|_| sliding.listed).unwrap_or_else(by_number);
    rotated(c, &on)?;
    m.insert(
        format!("{}.attention.sliding_window", dialect.architecture),
        window.min(u32::MAX.into()) as u32,
    );
    m.insert("dollop.attention.window_layers", on);
    Ok(())
}

/// A list of zeros and ones, one for each layer.
fn layout(c: &Config, key: &str) -> Result<Option<Vec<bool>>> {
    let wrong = || Config::wrong(key, "an array of zeros and ones");
    let Some(value) = c.get(key) else { return Ok(None) };
    let one = |v: &Json| v.as_u64().filter(|&n| n <= 1).map(|n| n == 1);
    value.as_array().ok_or_else(wrong)?.iter().map(one).collect::<Option<_>>().ok_or_else(wrong).map(Some)
}

/// Checks the list of layers with RoPE, if there is one: those with a window, or all if there are no windows.
fn rotated(c: &Config, windows: &[bool]) -> Result<()> {
    let Some(listed) = layout(c, "rope_layout")? else { return Ok(()) };
    let any = windows.contains(&true);
    match if any { listed == windows } else { !listed.contains(&false) } {
        true => Ok(()),
        false => Err(Error::unsupported("config.json: rope_layout differs from the layers with a window")),
    }
}

/// Writes the rotary embedding, and that of window layers if they have their own.
pub(super) fn ropes(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    let (full, window) = of_kinds(c)?;
    let arch = dialect.architecture;
    if let Some(base) = dialect.window_rope_base {
        let kind = window.str("rope_type")?.unwrap_or("default");
        if kind != "default" {
            let what = format!("config.json: rope_type `{kind}` of layers with a window is not supported");
            return Err(Error::unsupported(what));
        }
        let base = window.f64("rope_theta")?.or(c.f64("rope_local_base_freq")?).unwrap_or(base);
        m.insert(format!("{arch}.rope.freq_base_swa"), base as f32);
        if window.f64("partial_rotary_factor")?.is_some_and(|p| p != 1.0) {
            let what = "config.json: partial_rotary_factor of layers with a window is not supported";
            return Err(Error::unsupported(what));
        }
    }
    rope(&full, m, dialect)
}

/// Writes the heads of full-attention layers, if these differ from window layers.
pub(super) fn heads(c: &Config, dialect: &Dialect, m: &mut Metadata) -> Result<()> {
    let Some(kind) = dialect.sees_all else { return Ok(()) };
    let key = |name: &str| format!("{}.{name}", dialect.architecture);
    let windows = m.bools("dollop.attention.window_layers")?.map(<[bool]>::to_vec).unwrap_or_default();
    // transformers 5 writes them in the entry of the first such layer.
    let first = windows.iter().position(|window| !window).map(|layer| layer.to_string());
    let listed = match (c.get("per_layer_config"), first) {
        (Some(Json::Object(all)), Some(layer)) => match all.get(&layer) {
            Some(Json::Object(of)) => Some(Config { json: of.clone() }),
            _ => None,
        },
        _ => None,
    };
    let number = |name: &str| -> Result<Option<u64>> {
        let listed = listed.as_ref().map_or(Ok(None), |of| of.u64(name))?;
        Ok(listed.or(c.u64(&format!("{kind}_{name}"))?).filter(|&n| n > 0))
    };
    let large = |name: &str| Config::wrong(name, "a smaller number");
    let own = c.require_u64("head_dim")?;
    let full = number("head_dim")?.unwrap_or(if listed.is_some() { own } else { 512 });
    for (suffix, n) in [("", full), ("_swa", own)] {
        let n = u32::try_from(n).map_err(|_| large("head_dim"))?;
        for name in ["attention.key_length", "attention.value_length", "rope.dimension_count"] {
            m.insert(key(&format!("{name}{suffix}")), n);
        }
    }
    let kv_heads = c.require_u64("num_key_value_heads")?;
    let global = listed.as_ref().map_or(Ok(None), |of| of.u64("num_key_value_heads"))?;
    let global = match c.bool("attention_k_eq_v")? {
        Some(true) => global.or(c.u64("num_global_key_value_heads")?).unwrap_or(kv_heads),
        _ => global.unwrap_or(kv_heads),
    };
    let of = |&window: &bool| if window { kv_heads } else { global };
    m.insert(key("attention.head_count_kv"), windows.iter().map(of).collect::<Vec<u64>>());
    Ok(())
}

/// The RoPE parameters of full-attention layers, and those of window layers if separate. Reads both
/// spellings.
fn of_kinds(c: &Config) -> Result<(Config, Config)> {
    let (mut full, mut window) = (Map::new(), Map::new());
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(value) = c.get(key) else { continue };
        let Json::Object(all) = value else { return Err(Config::wrong(key, "an object")) };
        let mut kinds = false;
        for (kind, to) in [("full_attention", &mut full), ("sliding_attention", &mut window)] {
            match all.get(kind) {
                None | Some(Json::Null) => {}
                Some(Json::Object(of)) => {
                    to.extend(of.iter().map(|(k, v)| (k.clone(), v.clone())));
                    kinds = true;
                }
                Some(_) => return Err(Config::wrong(key, "an object of objects")),
            }
        }
        if !kinds {
            full.extend(all.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    if let (Some(dims), Some(of)) = (c.u64("rotary_dim")?, c.u64("head_dim")?.filter(|&of| of > 0)) {
        full.entry("partial_rotary_factor").or_insert_with(|| (dims as f64 / of as f64).into());
    }
    for key in ["rope_theta", "partial_rotary_factor"] {
        if let (None, Some(value)) = (full.get(key), c.get(key)) {
            full.insert(key.into(), value.clone());
        }
    }
    Ok((Config { json: full }, Config { json: window }))
}

/// LongRoPE's divisors of frequencies within the trained context.
fn factors(c: &Config) -> Result<Vec<f32>> {
    let all = c.get("short_factor").and_then(Json::as_array).into_iter().flatten();
    let all: Option<Vec<f32>> = all.map(|f| f.as_f64().map(|f| f as f32)).collect();
    all.filter(|all| !all.is_empty()).ok_or_else(|| Config::wrong("short_factor", "a list of numbers"))
}

fn rope(c: &Config, m: &mut Metadata, dialect: &Dialect) -> Result<()> {
    let key = |name: &str| format!("{}.rope.{name}", dialect.architecture);
    let base = c.f64("rope_theta")?.unwrap_or(dialect.rope_base);
    m.insert(key("freq_base"), base as f32);
    let kind = c.str("rope_type")?.or(c.str("type")?).unwrap_or("default");
    let part = c.f64("partial_rotary_factor")?;
    match dialect.partial_rotary {
        Some(usual) => {
            let of = m.u64(&key("dimension_count"))?.unwrap_or(0);
            let part = part.unwrap_or(usual);
            if !(part > 0.0 && part <= 1.0) {
                return Err(Config::wrong("partial_rotary_factor", "a number above 0 and at most 1"));
            }
            m.insert(key("dimension_count"), (of as f64 * part) as u32);
        }
        // Latent attention rotates a part of its own, whatever this number says.
        None if dialect.latent => {}
        None if part.is_some_and(|part| part != 1.0) && kind != "proportional" => {
            let part = part.unwrap_or_default();
            let what = format!("config.json: partial_rotary_factor {part} is not supported; 1 is");
            return Err(Error::unsupported(what));
        }
        None => {}
    }
    let copy = |m: &mut Metadata, from: &str, to: String| -> Result<()> {
        if let Some(v) = c.f64(from)? {
            m.insert(to, v as f32);
        }
        Ok(())
    };
    match kind {
        "default" => {}
        // With `alpha` the scaling does not depend on the context: it is another base.
        "dynamic" if let Some(alpha) = c.f64("alpha")? => {
            let dims = m.u64(&key("dimension_count"))?.unwrap_or(0) as f64;
            if !(alpha > 0.0 && dims > 2.0) {
                return Err(Config::wrong("alpha", "a number above zero"));
            }
            m.insert(key("freq_base"), (base * alpha.powf(dims / (dims - 2.0))) as f32);
        }
        "proportional" if c.f64("factor")?.is_none_or(|f| f == 1.0) => {
            m.insert("dollop.rope.proportional", part.unwrap_or(1.0) as f32);
        }
        "longrope" if let Some(gain) = c.f64("short_mscale")? => {
            m.insert(key("scaling.type"), kind);
            m.insert(key("scaling.attn_factor"), gain as f32);
            m.insert("dollop.rope.factors", factors(c)?);
            copy(m, "original_max_position_embeddings", key("scaling.original_context_length"))?;
        }
        "linear" | "yarn" => {
            m.insert(key("scaling.type"), kind);
            copy(m, "factor", key("scaling.factor"))?;
            if kind == "yarn" {
                copy(m, "original_max_position_embeddings", key("scaling.original_context_length"))?;
                copy(m, "beta_fast", key("scaling.yarn_beta_fast"))?;
                copy(m, "beta_slow", key("scaling.yarn_beta_slow"))?;
                for name in ["attention_factor", "mscale", "mscale_all_dim"] {
                    copy(m, name, format!("dollop.rope.yarn.{name}"))?;
                }
                if let Some(truncate) = c.bool("truncate")? {
                    m.insert("dollop.rope.yarn.truncate", truncate);
                }
            }
        }
        "llama3" => {
            for name in ["factor", "low_freq_factor", "high_freq_factor"] {
                copy(m, name, format!("dollop.rope.llama3.{name}"))?;
            }
            copy(m, "original_max_position_embeddings", "dollop.rope.llama3.original_context_length".into())?;
        }
        other => {
            let what = format!(
                "config.json: rope_type `{other}` is not supported; default, linear, llama3 and yarn are"
            );
            return Err(Error::unsupported(what));
        }
    }
    Ok(())
}
