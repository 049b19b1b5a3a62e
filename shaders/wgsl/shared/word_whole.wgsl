// Planes of an expert that has all of them, one after another.

const NOWHERE = 0xffffffffu;

fn word(m: Matrix, plane: u32, first: u32, at: u32) -> vec4<u32> {
    return weights[first + at];
}
