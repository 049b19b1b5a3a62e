// One token's inputs, unprepared.
//
// A file that imports this defines `fn source(t: u32) -> u32`, the row of a token.

#import x

fn input(t: u32, col: u32) -> vec4<f32> {
    if (col >= input_cols()) {
        return vec4<f32>();
    }
    return x_of(source(t), col, input_cols());
}
