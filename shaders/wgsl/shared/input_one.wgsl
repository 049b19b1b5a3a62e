// One token's inputs, from where they are.
//
// Whoever imports this defines `fn source(t: u32) -> u32`, which row it is.

#import x

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= input_cols()) {
        return vec4<f32>();
    }
    return x_of(source(t), col, input_cols());
}
