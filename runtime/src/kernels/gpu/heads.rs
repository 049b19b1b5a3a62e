//! Per-head products as dispatches.

use super::device::Device;
use super::kv::GpuBuf;
use super::params::HeadsParams;
use super::weights::{Form, Placed};
use super::{State, row_blocks};
use crate::error::{Error, Result};
use crate::kernels::HeadsCall;
use dollop_shaders::Variant;

/// The most rows per workgroup. A head has a whole number of workgroups.
const ROWS: usize = 8;

impl State {
    /// Per-head products, one token per dispatch row: a head has few rows.
    pub(super) fn heads(&mut self, gpu: &Device, call: HeadsCall<'_, GpuBuf>) -> Result<()> {
        let rows = call.rows();
        let HeadsCall { matrix, heads, x, tokens, kept, out } = call;
        let cols = matrix.cols();
        assert!(rows.is_multiple_of(ROWS) && heads * rows == matrix.rows(), "a head has whole blocks");
        assert!(tokens * heads * (cols + kept) <= x.len && tokens * heads * (kept + rows) <= out.len);
        let placed = self.weights.place(gpu, &[matrix])?.remove(0);
        let [Placed { memory, form, .. }] = &placed[..] else {
            return Err(Error::Device("the matrices of all heads of a layer do not fit one binding".into()));
        };
        let blocks = row_blocks(heads * rows, form.planes, 1);
        if blocks > gpu.max_groups || tokens > gpu.max_groups {
            return Err(Error::Device(format!("{heads} heads of {rows} rows are more than one launch has")));
        }
        let Form { base, planes, group, alpha, centre } = *form;
        let [rows_of_all, cols, heads, kept] = [heads * rows, cols, heads, kept].map(|n| n as u32);
        let params = HeadsParams { base, rows: rows_of_all, cols, group, alpha, centre, heads, kept };
        let variant = Variant { planes, ..Variant::default() };
        let memory = [&**memory, &x.memory, &out.memory];
        self.recorder.run(gpu, variant, &params, &memory, [blocks, tokens]);
        Ok(())
    }
}
