// Planes of an expert that has all of them, one after another.

fn word(m: Matrix, plane: u32, first: u32, at: u32) -> u32 {
    return weights[first + at];
}
