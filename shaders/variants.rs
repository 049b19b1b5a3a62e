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
    /// No axis: products of one token at a time, with the constants that [`Axis::Tokens`] gives them.
    One,
    /// The last plane lies elsewhere, and not every expert has it.
    Mixed,
    /// What `elementwise` does.
    Op,
    /// Sums and maxima over a workgroup by subgroups.
    Subgroups,
    /// How products keep their inputs in workgroup memory.
    Inputs,
    /// What inputs are prepared as: for each of [`Axis::Inputs`].
    Forms,
}

const KERNELS: &[(&str, &[Axis])] = &[
    ("linear", &[Axis::Planes, Axis::Tokens, Axis::Subgroups, Axis::Inputs]),
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

/// Tokens of a workgroup.
const TOKENS: [u32; 2] = [1, 8];

/// How inputs are kept: f32; f16 in parts of their unit's greatest; 8 bits.
const SINGLE: u32 = 0;
const HALF: u32 = 1;
const BYTES: u32 = 2;

/// The columns of each of many tokens that a workgroup has in its memory (16 KiB at most, with what else is there).
fn columns(inputs: u32) -> u32 {
    match inputs {
        HALF | BYTES => 512,
        _ => 256,
    }
}

/// The rows of a matrix of so many planes that a workgroup multiplies with so many tokens: what `product_one`, `product_row` and
/// `product_many` are written for.
const fn rows(tokens: u32, planes: u32) -> u32 {
    match (tokens, planes) {
        (1, 0) => 2,
        (1, _) => 8,
        _ => 64,
    }
}

/// The rows of a workgroup of `down_sum`: a quad.
const SUM_ROWS: u32 = 4;
