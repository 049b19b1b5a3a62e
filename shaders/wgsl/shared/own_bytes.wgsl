// Inputs of one token's products as whole numbers of 8 bits: every invocation rounds the units that it needs.

#import inputs_unit

var<private> x_bytes: Bytes;

fn take_unit(unit: u32) {
    x_bytes = bytes_of(read_unit(0u, 32u * unit));
}

fn word_of(t: u32, at: u32, j: u32) -> u32 {
    return x_bytes.words[j];
}

fn scale_of(t: u32, at: u32) -> f32 {
    return x_bytes.scale;
}

fn sum_of(t: u32, at: u32) -> i32 {
    return x_bytes.sum;
}
