//! Rotated inputs of experts (`quant/rotation.rs`): a dispatch before each of their products.
//!
//! Plain values are rotated. For products of many tokens they are prepared afterwards.

use super::Grown;
use super::State;
use super::device::{Device, Memory};
use super::params::*;
use super::recorder::Recorder;
use super::weights::Weights;
use crate::error::Result;
use crate::quant::{Rotation, hartley_table};
use dollop_shaders::Variant;

/// Rotates rows of `x` into `to`.
fn rotate(
    (gpu, recorder, weights): (&Device, &mut Recorder, &mut Weights),
    rotation: Rotation,
    (x, rows): (&Memory, usize),
    to: &mut Grown,
) -> Result<()> {
    let (factors, table) = hartley_table(rotation.blocks());
    let factors = weights.vector(gpu, factors, || factors.to_vec())?;
    let to = to.at_least(gpu, rows * rotation.cols(), "rotated inputs")?;
    let [rows, block, blocks, table] = [rows, rotation.block(), rotation.blocks(), table].map(|n| n as u32);
    let params = RotateParams { rows, block, blocks, table, norm: rotation.norm() };
    let all = (rows * blocks) as usize;
    let grid = [all.min(gpu.max_groups), all.div_ceil(gpu.max_groups)];
    recorder.run(gpu, Variant::default(), &params, &[x, &factors, to], grid);
    Ok(())
}

/// Rotated inputs.
#[derive(Default)]
pub(super) struct Turned {
    /// Inputs of gate and up, `[tokens, d]`.
    inputs: Grown,
    /// Inputs of down, `[slots, ff]`.
    hidden: Grown,
    /// The same in prepared form, for products of many tokens.
    prepared: Grown,
}

impl Turned {
    /// The inputs of gate and up of one token: unchanged, or the output of [`State::turn`].
    pub(super) fn inputs<'a>(&'a self, rotation: Option<Rotation>, x: &'a Memory) -> &'a Memory {
        if rotation.is_some() { self.inputs.get() } else { x }
    }

    /// The inputs of down: hidden values unchanged, or the output of [`State::turn_hidden`].
    pub(super) fn down_inputs<'a>(
        &'a self,
        rotation: Option<Rotation>,
        hidden: &'a Grown,
        form: Option<u32>,
    ) -> &'a Memory {
        match (rotation, form) {
            (None, _) => hidden.get(),
            (Some(_), None) => self.hidden.get(),
            (Some(_), Some(_)) => self.prepared.get(),
        }
    }
}

impl State {
    /// Rotates rows of the inputs of gate and up.
    pub(super) fn turn(&mut self, gpu: &Device, rotation: Rotation, x: &Memory, rows: usize) -> Result<()> {
        let on = (gpu, &mut self.recorder, &mut self.weights);
        rotate(on, rotation, (x, rows), &mut self.turned.inputs)
    }

    /// Prepares rows of `x`, or of the output of [`State::turn`].
    #[allow(clippy::too_many_arguments)]
    pub(super) fn prepare_turned(
        &mut self,
        gpu: &Device,
        rotation: Option<Rotation>,
        x: &Memory,
        cols: usize,
        rows: usize,
        listed: Option<&[u32]>,
        form: u32,
    ) -> Result<()> {
        if rotation.is_none() {
            return self.prepare(gpu, x, cols, rows, listed, None, form);
        }
        let turned = self.turned.inputs.0.take().expect("rows were turned before");
        let done = self.prepare(gpu, &turned.memory, cols, rows, listed, None, form);
        self.turned.inputs.0 = Some(turned);
        done
    }

    /// Rotates rows of hidden values; with a form, prepares them as well.
    pub(super) fn turn_hidden(
        &mut self,
        gpu: &Device,
        rotation: Rotation,
        rows: usize,
        form: Option<u32>,
    ) -> Result<()> {
        let on = (gpu, &mut self.recorder, &mut self.weights);
        rotate(on, rotation, (self.hidden.get(), rows), &mut self.turned.hidden)?;
        let Some(form) = form else { return Ok(()) };
        // `prepare` would overwrite the inputs of gate and up, which may be needed again.
        let turned = self.turned.hidden.0.take().expect("was just made");
        std::mem::swap(&mut self.prepared, &mut self.turned.prepared);
        let done = self.prepare(gpu, &turned.memory, rotation.cols(), rows, None, None, form);
        std::mem::swap(&mut self.prepared, &mut self.turned.prepared);
        self.turned.hidden.0 = Some(turned);
        done
    }
}
