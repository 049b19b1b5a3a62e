// The offsets of an expert's matrices, their corrections, and the offsets of their refinements: words of a
// table or of a job.
// A file that imports this defines `fn entry_word(at: u32) -> u32`.

const ENTRY_WORDS = 13u;

// Matrix `m` of the expert whose words begin at `at`: gate, up, down.
fn entry_matrix(at: u32, m: u32, rows: u32, cols: u32, group: u32) -> Matrix {
    let alpha = bitcast<f32>(entry_word(at + 4u + 2u * m));
    let centre = bitcast<f32>(entry_word(at + 5u + 2u * m));
    var found = matrix(entry_word(at + m), rows, cols, group, alpha, centre);
    let top = entry_word(at + 10u + m);
    found.top = select(top / 4u, top, top == 0xffffffffu);
    return found;
}
