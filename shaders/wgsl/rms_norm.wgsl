// out = x / sqrt(mean(x²) + eps) · weight, or a layer norm: the same of x − mean(x), plus a bias. One workgroup: one
// row.

#import reduce

struct Params {
    cols: u32,
    rows: u32,
    eps: f32,
    centred: u32, // whether it is a layer norm
}

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [rows, cols]
@group(0) @binding(1) var<storage, read> weight: array<f32>;    // [cols], then the bias
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // [rows, cols]
var<immediate> p: Params;

@compute @workgroup_size(128)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, own: Own) {
    let lane = lane_of(own);
    let row = id.y * n.x + id.x;
    if (row >= p.rows) {
        return;
    }
    let at = row * p.cols;
    var mean = 0.0;
    if (p.centred == 1u) {
        var sum = 0.0;
        for (var col = lane; col < p.cols; col += 128u) {
            sum += x[at + col];
        }
        mean = sum_of_all(sum, lane) / f32(p.cols);
    }
    var squares = 0.0;
    for (var col = lane; col < p.cols; col += 128u) {
        let value = x[at + col] - mean;
        squares = fma(value, value, squares);
    }
    let scale = 1.0 / sqrt(fma(sum_of_all(squares, lane), 1.0 / f32(p.cols), p.eps));
    for (var col = lane; col < p.cols; col += 128u) {
        let value = (x[at + col] - mean) * scale * weight[col];
        out[at + col] = value;
        if (p.centred == 1u) {
            out[at + col] = value + weight[p.cols + col];
        }
    }
}
