// Planes of which the last is a refinement: it lies in a buffer of its own, and only some experts have it. The others
// get zeros for its bits, which is their code one level lower, in the same place among 8-bit codes. Whether a matrix has
// it is the same for the whole workgroup.

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
