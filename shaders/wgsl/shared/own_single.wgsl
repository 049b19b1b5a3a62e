// Inputs of one token's products as they are: every invocation reads the units that it needs, straight from memory.

var<private> x_unit: array<vec4<f32>, 8>;
var<private> x_sum: f32;

fn take_unit(unit: u32) {
    var sum = vec4<f32>();
    for (var j = 0u; j < 8u; j++) {
        let x = input(0u, 32u * unit + 4u * j);
        x_unit[j] = x;
        sum += x;
    }
    x_sum = (sum.x + sum.y) + (sum.z + sum.w);
}

fn vector_of(t: u32, at: u32, j: u32) -> vec4<f32> {
    return x_unit[j];
}

fn sum_of(t: u32, at: u32) -> f32 {
    return x_sum;
}
