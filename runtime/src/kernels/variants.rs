//! Which variants of its kernels a GPU may use: what programs choose, whether or not they are built with a GPU's kernels.

/// Variants of a GPU's kernels that are used where the adapter has what they need. Where it has not, the plain ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuVariants {
    /// Sums over a workgroup by subgroups, to the same bits.
    pub subgroups: bool,
}

impl GpuVariants {
    /// What every adapter can run.
    pub const PLAIN: GpuVariants = GpuVariants { subgroups: false };
}

impl Default for GpuVariants {
    fn default() -> Self {
        GpuVariants { subgroups: true }
    }
}
