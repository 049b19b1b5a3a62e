// The permutation list: every kernel (a file of `wgsl/`) with its axes. Read by `build.rs`.

/// An axis along which a kernel varies.
#[derive(Clone, Copy, PartialEq)]
enum Axis {
    /// Planes of the weights: 0 for unquantized ones.
    Planes,
    /// Tokens per workgroup.
    Tokens,
    /// Keys and values in half precision.
    Half,
    /// Not an axis: products of one token at a time, with the constants of [`Axis::Tokens`].
    One,
    /// The last plane is in a separate buffer, and only some experts have it.
    Mixed,
    /// The operation of `elementwise`.
    Op,
    /// Sums and maxima over a workgroup use subgroups.
    Subgroups,
    /// The format of products' inputs in workgroup memory.
    Inputs,
    /// The format of prepared inputs, one for each of [`Axis::Inputs`].
    Forms,
}

const KERNELS: &[(&str, &[Axis])] = &[
    ("linear", &[Axis::Planes, Axis::Tokens, Axis::Subgroups, Axis::Inputs]),
    ("heads", &[Axis::Planes, Axis::One, Axis::Inputs]),
    ("gate_up", &[Axis::Planes, Axis::Tokens, Axis::Mixed, Axis::Inputs]),
    ("route_gate_up", &[Axis::Planes, Axis::One, Axis::Mixed, Axis::Subgroups, Axis::Inputs]),
    ("down", &[Axis::Planes, Axis::Tokens, Axis::Mixed, Axis::Inputs]),
    ("down_sum", &[Axis::Planes, Axis::One, Axis::Mixed, Axis::Inputs]),
    ("prepare", &[Axis::Forms, Axis::Subgroups]),
    ("rotate", &[]),
    ("embed", &[Axis::Planes]),
    ("rms_norm", &[Axis::Subgroups]),
    ("place", &[Axis::Half, Axis::Subgroups]),
    ("attention", &[Axis::Half, Axis::Subgroups]),
    ("attention_many", &[Axis::Half]),
    ("attend_one", &[Axis::Half, Axis::Subgroups]),
    ("attend_merge", &[]),
    ("route", &[Axis::Subgroups]),
    ("group", &[]),
    ("conv", &[]),
    ("delta_mix", &[Axis::Subgroups]),
    ("delta", &[]),
    ("gated_norm", &[Axis::Subgroups]),
    ("combine", &[]),
    ("elementwise", &[Axis::Op]),
    ("gate_rows", &[]),
    ("argmax", &[]),
    ("top_k", &[]),
];

/// Operations of `elementwise`: add, copy, SwiGLU, GeGLU, sigmoid gate, ReGLU, softplus gate.
const OPS: u32 = 7;

/// Code bits by number of planes; 0 for unquantized weights.
const BITS: [u32; 6] = [0, 2, 3, 4, 6, 8];

/// Tokens per workgroup.
const TOKENS: [u32; 2] = [1, 8];

/// The format of inputs: f32; f16 relative to the unit's largest; 8 bits.
const SINGLE: u32 = 0;
const HALF: u32 = 1;
const BYTES: u32 = 2;

/// Columns of each of many tokens that a workgroup holds in its memory (at most 16 KiB in all).
fn columns(inputs: u32) -> u32 {
    match inputs {
        HALF | BYTES => 512,
        _ => 256,
    }
}

/// Rows of a matrix of `planes` planes that a workgroup multiplies with `tokens` tokens. `product_one`,
/// `product_row` and `product_many` rely on these numbers.
const fn rows(tokens: u32, planes: u32) -> u32 {
    match (tokens, planes) {
        (1, 0) => 2,
        (1, _) => 8,
        _ => 64,
    }
}

/// Rows per workgroup of `down_sum`: a quad.
const SUM_ROWS: u32 = 4;
