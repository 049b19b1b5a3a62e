//! Which variants of its kernels a GPU may use: chosen by programs, whether or not they are built with GPU support.

/// Variants of a GPU's kernels. Each is used if the adapter supports it; otherwise the plain one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
pub struct GpuVariants {
    /// Sums over a workgroup use subgroups, bit-identical.
    pub subgroups: bool,
    /// The format of products' inputs.
    pub inputs: GpuInputs,
}

/// The format in which a GPU's products keep their inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(hidden)]
pub enum GpuInputs {
    /// 8 bits on a GPU under Vulkan or DirectX 12, where nearly all multiply four bytes in one instruction. Single
    /// precision under Metal, which has no such instruction, and on software adapters.
    #[default]
    Auto,
    /// Single precision.
    Single,
    /// Half precision if several tokens are computed at once, multiplied four columns at a time. A token's bits then
    /// depend on whether it is computed alone.
    Half,
    /// 8 bits if weights are nested, as on the CPU: integer products.
    Bytes,
}

impl GpuVariants {
    /// The variants that every adapter can run.
    pub const PLAIN: GpuVariants = GpuVariants { subgroups: false, inputs: GpuInputs::Single };
}

impl Default for GpuVariants {
    fn default() -> Self {
        GpuVariants { subgroups: true, inputs: GpuInputs::Auto }
    }
}
