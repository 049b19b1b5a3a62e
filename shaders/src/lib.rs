//! The WGSL kernels of Dollop: sources assembled and validated when this crate is built, and their bindings.
//!
//! Each kernel is one file of `wgsl/`. Shared parts are in `wgsl/shared` and included by `#import` lines; the
//! axes along which a kernel varies are data (`variants.rs`). Independent of any GPU library.

include!(concat!(env!("OUT_DIR"), "/shaders.rs"));

/// The values of a kernel's axes; an axis that the kernel does not have keeps its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Planes of nested weights, 0 for unquantized ones.
    pub planes: u32,
    /// Tokens per workgroup, 1 or [`MANY`].
    pub tokens: u32,
    /// Keys and values in half precision.
    pub half: bool,
    /// The last plane is in a separate buffer, and only some experts have it. The others read zeros for its bits.
    pub mixed: bool,
    /// `elementwise`: [`ADD`], [`COPY`], [`SWIGLU`], [`GEGLU`], [`GATE`], [`REGLU`] or [`SOFTPLUS`].
    pub op: u32,
    /// Sums and maxima over a workgroup use subgroup operations, which the adapter must support. Results are bit-identical.
    pub subgroups: bool,
    /// The format of products' inputs in workgroup memory: [`SINGLE`]; [`HALF`] with [`MANY`] tokens on an
    /// adapter with f16; [`BYTES`] with nested weights.
    pub inputs: u32,
}

impl Default for Variant {
    fn default() -> Self {
        Variant { planes: 0, tokens: 1, half: false, mixed: false, op: ADD, subgroups: false, inputs: SINGLE }
    }
}

/// `x += y`.
pub const ADD: u32 = 0;
/// `x = y`.
pub const COPY: u32 = 1;
/// `x = silu(x) · y`.
pub const SWIGLU: u32 = 2;
/// `x = gelu(x) · y`.
pub const GEGLU: u32 = 3;
/// `x = x · sigmoid(y)`.
pub const GATE: u32 = 4;
/// `x = relu(x) · y`.
pub const REGLU: u32 = 5;
/// `x = x · softplus(y)`.
pub const SOFTPLUS: u32 = 6;

/// Inputs in single precision.
pub const SINGLE: u32 = 0;
/// Inputs in half precision, relative to the largest of their unit.
pub const HALF: u32 = 1;
/// Inputs as 8-bit integers, with a scale per unit.
pub const BYTES: u32 = 2;

/// Tokens per workgroup in kernels for many tokens.
pub const MANY: u32 = 8;

/// Invocations per workgroup, in every kernel.
pub const WORKGROUP: u32 = 128;

/// One variant of a kernel.
#[derive(Debug)]
pub struct Shader {
    /// The kernel.
    pub kernel: Kernel,
    /// The values of its axes.
    pub variant: Variant,
    /// WGSL, in parts that variants share.
    pub source: &'static [&'static str],
    /// The entry point.
    pub entry: &'static str,
    /// Invocations per workgroup, in each dimension.
    pub workgroup: [u32; 3],
    /// For each binding of group 0, from 0 on: whether the kernel writes to it. All are storage buffers.
    pub writable: &'static [bool],
    /// Members of the immediates with their offsets in bytes.
    pub params: &'static [(&'static str, u32)],
    /// Bytes of the immediates.
    pub params_size: u32,
}

/// The index in [`SHADERS`] of a kernel's variant.
pub fn find(kernel: Kernel, variant: Variant) -> Option<usize> {
    SHADERS.iter().position(|s| s.kernel == kernel && s.variant == variant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_there_once_and_has_the_common_workgroup() {
        assert!(SHADERS.len() > 40);
        for (i, s) in SHADERS.iter().enumerate() {
            assert_eq!(find(s.kernel, s.variant), Some(i));
            assert_eq!(s.workgroup, [WORKGROUP, 1, 1], "{:?}", s.kernel);
            assert!(s.variant.tokens == 1 || s.variant.tokens == MANY);
            assert!(s.params_size > 0 && s.params_size.is_multiple_of(4));
        }
    }
}
