// The layout of prepared inputs. Products of many tokens read every input once for 64 rows. `prepare` and
// `gate_up` compute the sums and roundings of inputs once for all rows. Each row has its units' VALUES vectors,
// their STATS words, and a last vector that begins with the factor of the row's products if inputs are normed.

#import form

struct Packed {
    values: array<vec4<u32>, VALUES>,
    stats: array<u32, STATS>,
}

fn units_of(cols: u32) -> u32 {
    return (cols + 31u) / 32u;
}

// Vectors of a row before its last.
fn row_vectors(cols: u32) -> u32 {
    let units = units_of(cols);
    return VALUES * units + (STATS * units + 3u) / 4u;
}
