// Rotates rows of inputs (`quant/rotation.rs`): signs, a mix across blocks, and the Walsh–Hadamard transform
// of each block. One workgroup: one block of one row.

const MAX_BLOCK = 2048u;

struct Params {
    rows: u32,
    block: u32,  // columns per block, a power of two
    blocks: u32, // blocks per row
    table: u32,  // index of the factors for this number of blocks
    norm: f32,
}

@group(0) @binding(0) var<storage, read> x: array<f32>;         // [rows, blocks, block]
@group(0) @binding(1) var<storage, read> factors: array<f32>;   // [blocks], after those of fewer blocks
@group(0) @binding(2) var<storage, read_write> out: array<f32>; // as x
var<immediate> p: Params;

var<workgroup> values: array<f32, MAX_BLOCK>;

// The sign of a column, in the sign bit of a float.
fn sign_of(col: u32) -> u32 {
    var hash = (col + 1u) * 0x9E3779B1u;
    hash = (hash ^ (hash >> 15u)) * 0x85EBCA77u;
    return (hash ^ (hash >> 13u)) & 0x80000000u;
}

fn signed(row: u32, col: u32) -> f32 {
    return bitcast<f32>(bitcast<u32>(x[row * p.blocks * p.block + col] * p.norm) ^ sign_of(col));
}

@compute @workgroup_size(128)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(num_workgroups) all: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = id.y * all.x + id.x;
    let row = i / p.blocks;
    let own = i % p.blocks;
    if (row >= p.rows) {
        return;
    }
    for (var col = lane; col < p.block; col += 128u) {
        var sum = 0.0;
        var k = 0u;
        for (var b = 0u; b < p.blocks; b++) {
            sum = fma(factors[p.table + k], signed(row, b * p.block + col), sum);
            k = (k + own) % p.blocks;
        }
        values[col] = sum;
    }
    for (var half = 1u; half < p.block; half *= 2u) {
        workgroupBarrier();
        for (var pair = lane; pair < p.block / 2u; pair += 128u) {
            let at = 2u * pair - pair % half;
            let a = values[at];
            let b = values[at + half];
            values[at] = a + b;
            values[at + half] = a - b;
        }
    }
    workgroupBarrier();
    for (var col = lane; col < p.block; col += 128u) {
        out[i * p.block + col] = values[col];
    }
}
