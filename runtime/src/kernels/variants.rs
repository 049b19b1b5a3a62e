//! Which variants of its kernels a GPU may use: what programs choose, whether or not they are built with a GPU's kernels.

/// Variants of a GPU's kernels that are used where the adapter has what they need. Where it has not, the plain ones are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct GpuVariants {
    /// Sums over a workgroup by subgroups, to the same bits.
    pub subgroups: bool,
    /// What products keep their inputs in.
    pub inputs: GpuInputs,
}

/// How a GPU's products keep their inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(hidden)]
pub enum GpuInputs {
    /// In 8 bits on a GPU under Vulkan or DirectX 12, where nearly all multiply four bytes in one instruction; in single
    /// precision under Metal, which has none, and where the processor does the work.
    #[default]
    Auto,
    /// In single precision.
    Single,
    /// In half precision where several tokens are computed at once, and four columns at a time are multiplied in it. A
    /// token's bits then depend on whether it is alone.
    Half,
    /// In 8 bits where weights are nested, as the CPU does: integer products.
    Bytes,
}

impl GpuVariants {
    /// What every adapter can run.
    pub const PLAIN: GpuVariants = GpuVariants { subgroups: false, inputs: GpuInputs::Single };
}

impl Default for GpuVariants {
    fn default() -> Self {
        GpuVariants { subgroups: true, inputs: GpuInputs::Auto }
    }
}
