//! Reads and checks the dimensions of a gated delta net from a file's keys.

use super::Keys;
use crate::error::{Error, Result};
use crate::kernels::MAX_TAPS;
use crate::model::families::Deltas;

/// Upper limits on a file's numbers, far above any real model.
const MAX_HEADS: u64 = 1024;
const MAX_DIM: u64 = 1024;
const MAX_WIDTH: usize = 1 << 17;

/// Kernels process value heads in groups of this many values.
const LANES: usize = 16;

/// Dimensions of a gated delta net (arXiv 2412.06464).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

impl DeltaSpec {
    /// # Errors
    /// `Malformed`, naming the key, if a number is missing, out of range or contradicts another.
    /// `Unsupported` if the kernels cannot compute it.
    pub(super) fn read(keys: &Keys, of: Deltas) -> Result<DeltaSpec> {
        let (k_heads, v_heads) =
            (keys.required("ssm.group_count", MAX_HEADS)?, keys.required("ssm.time_step_rank", MAX_HEADS)?);
        let k_dim = keys.required("ssm.state_size", MAX_DIM)?;
        let inner = keys.required("ssm.inner_size", MAX_WIDTH as u64)?;
        let taps = keys.required("ssm.conv_kernel", MAX_HEADS)?;
        for (key, whole, part) in
            [("ssm.time_step_rank", v_heads, k_heads), ("ssm.inner_size", inner, v_heads)]
        {
            if !whole.is_multiple_of(part) {
                return Err(Error::malformed(keys.key(key), format!("{part} does not divide {whole}")));
            }
        }
        let v_dim = inner / v_heads;
        if !(2..=MAX_TAPS).contains(&taps) {
            let what = format!("`{}` is {taps}; 2 to {MAX_TAPS} are supported", keys.key("ssm.conv_kernel"));
            return Err(Error::unsupported(what));
        }
        if !v_dim.is_multiple_of(LANES) {
            let what = format!("value heads of {v_dim} are not supported; whole numbers of {LANES} are");
            return Err(Error::unsupported(what));
        }
        let tiled = keys.meta.bool("dollop.delta.tiled")?.unwrap_or(of.tiled);
        let spec = DeltaSpec { k_heads, v_heads, k_dim, v_dim, taps, tiled };
        if spec.channels() > MAX_WIDTH {
            let what = format!("{} queries, keys and values are too wide", spec.channels());
            return Err(Error::malformed(keys.key("ssm.state_size"), what));
        }
        Ok(spec)
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
        let interval = keys.optional("full_attention_interval", MAX_HEADS)?.unwrap_or(of.all_but).max(1);
        Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect())
    }

    /// Values of queries, keys and values together, per token.
    pub fn channels(&self) -> usize {
        2 * self.k_heads * self.k_dim + self.width()
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
