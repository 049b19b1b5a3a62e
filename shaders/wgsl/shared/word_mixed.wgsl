// Planes whose last one is a refinement: it is in a separate buffer, and only some experts have it. The
// others read zeros for its bits, which gives their code one level lower, in the same position of an 8-bit
// code. Whether a matrix has the refinement is uniform in a workgroup.

const NOWHERE = 0xffffffffu;

@group(0) @binding(REFINEMENTS) var<storage, read> refinements: array<vec4<u32>>; // [slots]: gate, up, down

fn word(m: Matrix, plane: u32, first: u32, at: u32) -> vec4<u32> {
    if (plane + 1u < PLANES) {
        return weights[first + at];
    }
    if (m.top == NOWHERE) {
        return vec4<u32>();
    }
    return refinements[m.top + at];
}

// The number of planes of a matrix.
fn present(m: Matrix) -> u32 {
    return select(PLANES, PLANES - 1u, m.top == NOWHERE);
}
