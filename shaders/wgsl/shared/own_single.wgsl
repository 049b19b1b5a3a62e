// A unit of one token's inputs in single precision.

#import one

var<private> x_unit: array<vec4<f32>, 8>;
var<private> x_sum: f32;

fn take_unit(x: array<vec4<f32>, 8>) {
    x_unit = x;
    x_sum = sum_of_unit(x);
}

fn vector_of(t: u32, at: u32, j: u32) -> vec4<f32> {
    return x_unit[j];
}

fn sum_of(t: u32, at: u32) -> f32 {
    return x_sum;
}
