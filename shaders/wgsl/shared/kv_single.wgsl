// Keys and values in single precision.

alias Cell = vec4<f32>;

fn pack(v: vec4<f32>) -> Cell {
    return v;
}

fn unpack(c: Cell) -> vec4<f32> {
    return c;
}
