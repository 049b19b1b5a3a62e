//! Gate 118: gated delta nets and gates of attention on the GPU, with the CPU's.

use super::*;
use crate::kernels::Decay;
use crate::kernels::testing::{Net, in_calls, rows};
use dollop_shaders::{GATE, SOFTPLUS};

#[test]
fn delta_nets_are_the_cpus_however_tokens_come() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    for (heads, dims, taps, tiled, decay, adds) in [
        ((1, 1), (4, 16), 2, false, Decay::Heads, false),
        ((2, 4), (24, 16), 3, false, Decay::Heads, false),
        ((2, 6), (32, 48), 4, true, Decay::Heads, false),
        ((1, 2), (128, 128), 4, false, Decay::Heads, false),
        ((1, 1), (200, 144), 4, true, Decay::Heads, false),
        ((2, 2), (32, 32), 4, false, Decay::Channels, false),
        ((1, 1), (200, 144), 4, false, Decay::Channels, false),
        ((2, 2), (128, 128), 4, false, Decay::Bounded(-5.0), false),
        ((1, 3), (24, 16), 4, false, Decay::Heads, true),
        ((2, 4), (128, 64), 4, false, Decay::Heads, true),
    ] {
        let net = Net::new(heads, dims, taps, tiled, decay);
        // The backend identifies weights by their address, so a net is never freed.
        let net = Box::leak(Box::new(if adds { net.adding() } else { net }));
        let (d, tokens) = (net.shape(), 21);
        let all = rows(&d, tokens);
        let (want, end) = in_calls(&cpu, &d, &all, &[tokens]);
        let (whole, state) = in_calls(&b, &d, &all, &[tokens]);
        close("results", &whole, &want, 1e-3);
        close("the state", &state, &end, 1e-3);
        for calls in [vec![1; tokens], vec![2, 1, 17, 1]] {
            let (cut, last) = in_calls(&b, &d, &all, &calls);
            assert!(cut == whole && last == state, "calls of {calls:?} change bits");
        }
    }
}

#[test]
fn gates_are_functions_of_values_or_of_heads() {
    let Some(b) = gpu() else { return };
    let (x, gate) = (values(1000, 1), values(1000, 2));
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let softplus = |x: f32| x.exp().ln_1p();
    let all: [(u32, &dyn Fn(f32) -> f32); 2] = [(GATE, &sigmoid), (SOFTPLUS, &softplus)];
    for ((op, of), shared) in all.into_iter().flat_map(|of| [(of, 1), (of, 40)]) {
        let (on_gpu, other) = (put(&b, &x), put(&b, &gate));
        b.lock().gate_heads(&b.gpu, (op, &other.memory), shared, 1000, &on_gpu.memory);
        let want: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * of(gate[i / shared])).collect();
        close("gated", &get(&b, &on_gpu), &want, 1e-5);
    }
}
