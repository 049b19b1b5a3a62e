// The inputs of products.

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;

// Four values from `at` on.
fn x_at(at: u32) -> vec4<f32> {
    let i = at / 4u;
    if (at % 4u == 0u) {
        return x[i];
    }
    let a = x[i];
    let b = x[i + 1u];
    if (at % 4u == 1u) {
        return vec4(a.yzw, b.x);
    }
    if (at % 4u == 2u) {
        return vec4(a.zw, b.xy);
    }
    return vec4(a.w, b.xyz);
}

// Four columns of a row from `col` on, which is a multiple of four below `cols`; columns from `cols` on are
// zero. Rows of whole vectors, which nearly all are, begin at whole vectors and take the short path.
fn x_of(row: u32, col: u32, cols: u32) -> vec4<f32> {
    if (cols % 4u == 0u) {
        return x[(row * cols + col) / 4u];
    }
    return before(x_at(row * cols + col), col, cols);
}

// Four columns from `col` on, with zeros from `cols` on.
fn before(v: vec4<f32>, col: u32, cols: u32) -> vec4<f32> {
    return select(vec4<f32>(), v, vec4(col) + vec4(0u, 1u, 2u, 3u) < vec4(cols));
}
