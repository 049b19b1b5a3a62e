// A unit of one token's inputs as 8-bit integers: every invocation rounds the units that it needs.

#import inputs_unit

var<private> x_bytes: Bytes;

fn take_unit(x: array<vec4<f32>, 8>) {
    x_bytes = bytes_of(unit_of(x));
}

fn words_of(t: u32, at: u32, half: u32) -> vec4<u32> {
    let j = 4u * half;
    return vec4(x_bytes.words[j], x_bytes.words[j + 1u], x_bytes.words[j + 2u], x_bytes.words[j + 3u]);
}

fn scale_of(t: u32, at: u32) -> f32 {
    return x_bytes.scale;
}

fn sum_of(t: u32, at: u32) -> i32 {
    return x_bytes.sum;
}
