// One token's inputs of `linear`, optionally normed.

#import norm
#import x

@group(0) @binding(6) var<storage, read> norm: array<vec4<f32>>; // [cols]
@group(0) @binding(7) var<storage, read_write> h: array<f32>;    // [cols]

// The squares of the inputs that this invocation loaded, and the scale, which is set after all are loaded.
var<private> squares: vec4<f32>;
var<private> scale: f32;

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= p.cols) {
        return vec4<f32>();
    }
    let value = x_of(0u, col, p.cols);
    if ((p.flags & NORM) != 0u) {
        squares = fma(value, value, squares);
        return value * before(norm[col / 4u], col, p.cols);
    }
    return value;
}

// Called after products with inputs: `fresh` ones, or those of the previous call.
fn take_scale(fresh: bool, lane: u32) {
    if ((p.flags & NORM) != 0u && fresh) {
        scale = norm_scale(squares, lane);
    }
}

// The factor of a token's products.
fn scale_of_token(t: u32) -> f32 {
    return scale;
}

fn write_norm(lane: u32) {
    write_normed(0u, scale, lane);
}
