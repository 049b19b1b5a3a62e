// RMS norms of rows of inputs.
//
// A file that imports this has parameters `cols` and `eps`, the norm's weights in `norm` and the normed rows in `h`.

#import one
#import reduce
#import x

// 1 / the root mean square of a token. This invocation has the squares of every 128th vector.
fn norm_scale(squares: vec4<f32>, lane: u32) -> f32 {
    let sum = sum_of_all(sum_of_four(squares), lane);
    return 1.0 / sqrt(fma(sum, 1.0 / f32(p.cols), p.eps));
}

fn write_normed(row: u32, scale: f32, lane: u32) {
    for (var col = 4u * lane; col < p.cols; col += 512u) {
        let at = row * p.cols + col;
        let value = x_at(at) * scale * norm[col / 4u];
        for (var i = 0u; i < min(4u, p.cols - col); i++) {
            h[at + i] = value[i];
        }
    }
}
