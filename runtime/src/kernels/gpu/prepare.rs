//! Prepares the inputs of products of many tokens once for all rows of their matrices (`shared/layout.wgsl`).

use super::State;
use super::device::{Device, Memory};
use super::params::*;
use super::recorder::PUT_WORDS;
use crate::error::Result;
use crate::kernels::Norm;
use dollop_shaders::{BYTES, HALF, Variant};
use std::sync::Arc;

/// Words of a prepared row of `cols` columns, in a format of inputs (`dollop_shaders::SINGLE` and others).
pub(super) fn row_words(cols: usize, form: u32) -> usize {
    let (values, stats) = match form {
        HALF => (16, 2),
        BYTES => (8, 2),
        _ => (32, 1),
    };
    let units = cols.div_ceil(32);
    values * units + (stats * units).next_multiple_of(4) + 4
}

impl State {
    /// Prepares rows of inputs; with `norm`, their normed rows, which are also written to the norm's memory.
    /// Prepares the first `rows` rows, or the `listed` ones.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn prepare(
        &mut self,
        gpu: &Device,
        x: &Memory,
        cols: usize,
        rows: usize,
        listed: Option<&[u32]>,
        norm: Option<(Norm<'_>, &Memory)>,
        form: u32,
    ) -> Result<()> {
        self.prepared.at_least(gpu, rows * row_words(cols, form), "prepared inputs")?;
        let mut params = PrepareParams { cols: cols as u32, rows: rows as u32, flags: 0, eps: 0.0, first: 0 };
        if let Some((norm, _)) = norm {
            params.flags |= NORM;
            params.eps = norm.eps;
        }
        let weight = self.norm_weight(gpu, norm)?;
        let weight = weight.as_deref().unwrap_or(&self.spare[0]);
        let h = norm.map_or(&self.spare[1], |(_, h)| h);
        let memory = [weight, x, self.prepared.get(), h];
        let variant = Variant { inputs: form, ..Variant::default() };
        let grid = |rows: usize| [rows.min(gpu.max_groups), rows.div_ceil(gpu.max_groups)];
        let Some(listed) = listed else {
            self.recorder.run(gpu, variant, &params, &[weight, x, memory[2], h, &self.spare[0]], grid(rows));
            return Ok(());
        };
        params.flags |= LISTED;
        for rows in listed.chunks(PUT_WORDS) {
            params.first = self.recorder.put(gpu, rows, 1);
            params.rows = rows.len() as u32;
            self.recorder.run_with_ring(gpu, variant, &params, &memory, 4, grid(rows.len()));
        }
        Ok(())
    }

    /// A norm's weights on the device.
    pub(super) fn norm_weight(
        &mut self,
        gpu: &Device,
        norm: Option<(Norm<'_>, &Memory)>,
    ) -> Result<Option<Arc<Memory>>> {
        norm.map(|(norm, _)| self.weights.vector(gpu, norm.weight, || norm.weight.to_vec())).transpose()
    }

    /// Memory for the hidden values of `rows` slots: plain, or in the format that `down` reads for many tokens.
    pub(super) fn hidden_rows(
        &mut self,
        gpu: &Device,
        ff: usize,
        rows: usize,
        form: Option<u32>,
    ) -> Result<()> {
        let words = form.map_or(ff, |form| row_words(ff, form));
        self.hidden.at_least(gpu, rows * words, "hidden values").map(|_| ())
    }
}
