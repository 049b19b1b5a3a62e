//! Reads and checks the dimensions of a gated delta net from a file's keys.

use super::Keys;
use crate::error::{Error, Result};
use crate::kernels::{Decay, Gate, MAX_TAPS};
use crate::model::families::Deltas;

/// Upper limits on a file's numbers, far above any real model.
const MAX_HEADS: u64 = 1024;
const MAX_DIM: u64 = 1024;
const MAX_WIDTH: usize = 1 << 17;

/// Kernels process value heads in groups of this many values.
const LANES: usize = 16;

/// Dimensions of a gated delta net (arXiv 2412.06464, 2510.26692).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaSpec {
    /// Query and key heads; divides `v_heads`.
    pub k_heads: usize,
    /// Value heads.
    pub v_heads: usize,
    /// Dimension of a query or key head.
    pub k_dim: usize,
    /// Dimension of a value head.
    pub v_dim: usize,
    /// Width of the convolution: inputs per output.
    pub taps: usize,
    /// How value heads map to key heads: value head `j` uses key head `j mod k_heads` if true, and
    /// neighbouring value heads share one if false.
    pub tiled: bool,
    /// Which values of the memory have a common decay, and its formula.
    pub decay: Decay,
    /// The function of the output gate.
    pub gate: Gate,
    /// Whether steps and gate are projected in two steps, through as many values as a key has.
    pub low_rank: bool,
    /// Whether a token adds its value to the memory (Mamba-2), instead of a correction.
    pub adds: bool,
}

impl DeltaSpec {
    /// # Errors
    /// `Malformed`, naming the key, if a number is missing, out of range or contradicts another.
    /// `Unsupported` if the kernels cannot compute it.
    pub(super) fn read(keys: &Keys, of: Deltas) -> Result<DeltaSpec> {
        let spec = match of {
            Deltas::Heads { tiled, .. } => DeltaSpec::of_heads(keys, tiled)?,
            Deltas::Channels { low_rank, .. } => DeltaSpec::of_channels(keys, low_rank)?,
            Deltas::Adding => DeltaSpec { adds: true, tiled: false, ..DeltaSpec::of_heads(keys, false)? },
        };
        let DeltaSpec { taps, v_dim, .. } = spec;
        if !(2..=MAX_TAPS).contains(&taps) {
            let what = format!("`{}` is {taps}; 2 to {MAX_TAPS} are supported", keys.key("ssm.conv_kernel"));
            return Err(Error::unsupported(what));
        }
        if !v_dim.is_multiple_of(LANES) {
            let what = format!("value heads of {v_dim} are not supported; whole numbers of {LANES} are");
            return Err(Error::unsupported(what));
        }
        if spec.channels() > MAX_WIDTH || spec.decays() > MAX_WIDTH {
            let what = format!("{} queries, keys and values are too wide", spec.channels());
            return Err(Error::malformed(keys.key("ssm.state_size"), what));
        }
        Ok(spec)
    }

    /// Nets with a decay per channel: as many heads as attention has, and queries, keys and values of one dimension.
    fn of_channels(keys: &Keys, low_rank: bool) -> Result<DeltaSpec> {
        let heads = keys.required("attention.head_count", MAX_HEADS)?;
        let dim = keys.required("kda.head_dim", MAX_DIM)?;
        let lower = keys.f32("kda.gate_lower_bound")?;
        let bounded = keys.meta.bool(&keys.key("kda.safe_gate"))?.unwrap_or(lower.is_some());
        let decay = match lower.filter(|_| bounded) {
            None if !bounded => Decay::Channels,
            Some(lower) if lower < 0.0 => Decay::Bounded(lower),
            _ => return Err(Error::malformed(keys.key("kda.gate_lower_bound"), "must be below zero")),
        };
        Ok(DeltaSpec {
            k_heads: heads,
            v_heads: heads,
            k_dim: dim,
            v_dim: dim,
            taps: keys.required("ssm.conv_kernel", MAX_HEADS)?,
            tiled: false,
            decay,
            gate: Gate::Sigmoid,
            low_rank,
            adds: false,
        })
    }

    fn of_heads(keys: &Keys, tiled: bool) -> Result<DeltaSpec> {
        let (k_heads, v_heads) =
            (keys.required("ssm.group_count", MAX_HEADS)?, keys.required("ssm.time_step_rank", MAX_HEADS)?);
        let k_dim = keys.required("ssm.state_size", MAX_DIM)?;
        let inner = keys.required("ssm.inner_size", MAX_WIDTH as u64)?;
        for (key, whole, part) in
            [("ssm.time_step_rank", v_heads, k_heads), ("ssm.inner_size", inner, v_heads)]
        {
            if !whole.is_multiple_of(part) {
                return Err(Error::malformed(keys.key(key), format!("{part} does not divide {whole}")));
            }
        }
        Ok(DeltaSpec {
            k_heads,
            v_heads,
            k_dim,
            v_dim: inner / v_heads,
            taps: keys.required("ssm.conv_kernel", MAX_HEADS)?,
            tiled: keys.meta.bool("dollop.delta.tiled")?.unwrap_or(tiled),
            decay: Decay::Heads,
            gate: Gate::Silu,
            low_rank: false,
            adds: false,
        })
    }

    /// Marks, for each of `layers` layers, whether it is a delta net.
    ///
    /// # Errors
    /// `Malformed` if the file's list is too short.
    pub(super) fn layers(keys: &Keys, of: Deltas, layers: usize) -> Result<Vec<bool>> {
        let key = keys.key("attention.recurrent_layers");
        if let Some(listed) = keys.meta.bools(&key)? {
            // The list may continue with the layers of a draft head, which are not run.
            return listed.get(..layers).map(<[bool]>::to_vec).ok_or_else(|| {
                Error::malformed(&*key, format!("{} entries for {layers} layers", listed.len()))
            });
        }
        match of {
            Deltas::Heads { all_but, .. } => {
                let interval = keys.optional("full_attention_interval", MAX_HEADS)?.unwrap_or(all_but).max(1);
                Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect())
            }
            Deltas::Channels { .. } | Deltas::Adding => {
                let heads = super::kv_heads(keys, layers)?;
                Ok(heads.into_iter().map(|heads| heads == Some(0)).collect())
            }
        }
    }

    /// Values of queries, keys and values together, per token.
    pub fn channels(&self) -> usize {
        2 * self.k_heads * self.k_dim + self.width()
    }

    /// Decays of a token: one per head, or one per value of its key.
    pub fn decays(&self) -> usize {
        match self.decay {
            Decay::Heads => self.v_heads,
            Decay::Channels | Decay::Bounded(_) => self.v_heads * self.k_dim,
        }
    }

    /// Whether each value of a key has its own decay.
    pub fn decays_per_value(&self) -> bool {
        self.decay != Decay::Heads
    }

    /// Values between the two steps of a low-rank projection; 0 if there are none.
    pub fn rank(&self) -> usize {
        if self.low_rank { self.k_dim } else { 0 }
    }

    /// Values of one state ([`crate::kernels::Delta::state_values`]).
    pub fn state_values(&self) -> usize {
        (self.taps - 1) * self.channels() + self.k_dim * self.width()
    }

    /// Values of all value heads, per token.
    pub fn width(&self) -> usize {
        self.v_heads * self.v_dim
    }
}
