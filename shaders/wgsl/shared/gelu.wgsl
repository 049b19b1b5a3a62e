// The tanh approximation of gelu: (1 + tanh z) / 2 is the sigmoid of 2z. `min` keeps `exp` finite where the cube overflows.

fn gelu(g: f32) -> f32 {
    let z = 1.5957691 * (g + 0.044715 * g * g * g); // 2 √(2/π)
    return g / (1.0 + exp(min(-z, 88.0)));
}
