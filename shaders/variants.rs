// The permutation list: every kernel (a file of `wgsl/`) with what it varies in. Read by `build.rs`.

/// What a kernel varies in.
#[derive(Clone, Copy, PartialEq)]
enum Axis {
    /// How many planes of the weights are present: 0 for unquantized ones.
    Planes,
    /// Tokens of a workgroup.
    Tokens,
    /// Keys and values in half precision.
    Half,
    /// `down` adds up a token's experts.
    Sum,
    /// The last plane lies elsewhere, and not every expert has it.
    Mixed,
    /// What `elementwise` does.
    Op,
    /// Sums and maxima over a workgroup by subgroups.
    Subgroups,
}

const KERNELS: &[(&str, &[Axis])] = &[
    ("linear", &[Axis::Planes, Axis::Tokens, Axis::Subgroups]),
    ("gate_up", &[Axis::Planes, Axis::Tokens, Axis::Mixed]),
    ("down", &[Axis::Planes, Axis::Tokens, Axis::Sum, Axis::Mixed]),
    ("embed", &[Axis::Planes]),
    ("rms_norm", &[Axis::Subgroups]),
    ("place", &[Axis::Half, Axis::Subgroups]),
    ("attention", &[Axis::Half, Axis::Subgroups]),
    ("route", &[]),
    ("group", &[]),
    ("combine", &[]),
    ("elementwise", &[Axis::Op]),
    ("gate_rows", &[]),
    ("argmax", &[]),
    ("top_k", &[]),
];

/// Operations of `elementwise`: add, copy, SwiGLU.
const OPS: u32 = 3;

/// The code bits that so many planes make; 0 for unquantized weights.
const BITS: [u32; 6] = [0, 2, 3, 4, 6, 8];

/// Tokens of a workgroup, and the columns of each that it has in workgroup memory (16 KiB at most, with what else is
/// there).
const TOKENS: [(u32, u32); 2] = [(1, 2048), (8, 256)];
