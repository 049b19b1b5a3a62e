// Keys and values in half precision.

alias Cell = vec2<u32>;

fn pack(v: vec4<f32>) -> Cell {
    return vec2(pack2x16float(v.xy), pack2x16float(v.zw));
}

fn unpack(c: Cell) -> vec4<f32> {
    return vec4(unpack2x16float(c.x), unpack2x16float(c.y));
}
