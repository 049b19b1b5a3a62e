//! Memory kept between operations: the inputs it belongs to, and its size.

use super::*;
use crate::kernels::{Activation, Feed};

/// Calls for one layer's experts may have another session's calls between them. Prepared inputs are found by
/// their number, and used only with the same number.
#[test]
fn inputs_are_told_apart_by_their_names() {
    let (d, ff, tokens) = (64, 32, 24);
    let nested = |rows, cols, seed| {
        let shape = Shape::new(rows, cols, 32).unwrap();
        let w = values(rows * cols, seed);
        Matrix::Nested(quant::encode(shape, &w, None, Level::B4).unwrap().into_nested().unwrap())
    };
    let expert =
        Expert { gate: Some(nested(ff, d, 1)), up: nested(ff, d, 2), down: nested(d, ff, 3), place: None };
    // Every other token, in two calls of one layer.
    let slots: Vec<Vec<u32>> = (0..2).map(|odd| (odd..tokens as u32).step_by(2).collect()).collect();
    let call = |b: &CpuBackend, x: &Aligned<f32>, half: usize, inputs: u64| {
        let mut out = buffer(vec![0.0; tokens * d]);
        let of = Routed { layer: 0, experts: 2, top_k: 1, tokens, inputs };
        b.experts(
            x,
            of,
            &Feed::default(),
            &[ExpertJob { index: 0, expert: &expert, slots: &slots[half] }],
            &mut out,
        );
        out.to_vec()
    };
    for isa in Isa::available() {
        let (b, x, other) = (backend(isa, 2), buffer(values(tokens * d, 4)), buffer(values(tokens * d, 5)));
        let want: Vec<_> = (0..2).map(|half| call(&b, &x, half, 0)).collect();
        assert_ne!(want[0], call(&b, &other, 0, 0));
        assert_eq!(call(&b, &x, 0, 7), want[0], "{isa}");
        call(&b, &other, 0, 8);
        assert_eq!(call(&b, &x, 1, 7), want[1], "{isa}: after another session's call");
        call(&b, &other, 0, 0);
        assert_eq!(call(&b, &x, 1, 7), want[1], "{isa}: after a call without a name");
        // Other inputs with the same number give the old result: only the number is compared.
        if !isa.halves() {
            assert_eq!(call(&b, &other, 0, 7), want[0], "{isa}: made again");
        }
    }
}

#[test]
fn scratch_stays_within_its_bound() {
    let shape = ScratchShape {
        chunk: 300,
        d: 96,
        widest: 128,
        of_heads: 8 * 48,
        ff_routed: 64,
        rotated: [true, true],
        ff_dense: 160,
        top_k: 4,
        experts: 8,
        heads: 8,
        head_dim: 16,
        context: 3000,
        threads: 2,
    };
    let (chunk, d) = (shape.chunk, shape.d);
    let nested = move |rows: usize, cols: usize, group| {
        let shape = Shape::new(rows, cols, group).unwrap();
        let encoded = quant::encode(shape, &values(rows * cols, 1), None, Level::B4).unwrap();
        Matrix::Nested(encoded.into_nested().unwrap())
    };
    let expert = move |ff: usize, group| Expert {
        gate: Some(nested(ff, d, group)),
        up: nested(ff, d, group),
        down: nested(d, ff, group),
        place: None,
    };
    // On a separate thread, because a part of attention's scratch belongs to the thread.
    std::thread::spawn(move || {
        let b = backend(Isa::best(), shape.threads);
        let x = buffer(values(chunk * shape.of_heads, 2));
        let mut out = buffer(vec![0.0; chunk * shape.top_k * shape.widest]);
        let mut kv = b.alloc_kv(shape.context, 4, [shape.head_dim; 2]).unwrap();
        let mut held = 0;
        // Increasing sizes, so that a buffer that doubled its capacity would be noticed.
        for tokens in [1, 150, 160, 200, chunk] {
            for group in [32, 64] {
                let matrix = nested(32, shape.widest, group);
                b.linear(&x, tokens, &mut [Linear { matrix: &matrix, bias: None, out: &mut out }]);
                let heads = shape.heads;
                let of_heads = nested(heads * 16, 48, group);
                let call = HeadsCall { matrix: &of_heads, heads, x: &x, tokens, kept: 0, out: &mut out };
                b.heads(call);
                b.ffn(&x, tokens, (&expert(shape.ff_dense, group), Activation::Geglu), &mut out);
                let mut expert = expert(shape.ff_routed, group);
                for m in expert.matrices_mut() {
                    let Matrix::Nested(n) = &*m else { unreachable!("all are nested") };
                    *m = Matrix::Nested(n.clone().rotated(Rotation::of(n.shape().cols)));
                }
                // Every other token, so that the experts' inputs have to be gathered.
                let ranks: Vec<Vec<u32>> = (0..2 * shape.top_k)
                    .map(|i| (i % 2, i / 2))
                    .map(|(odd, r)| (odd..tokens).step_by(2).map(|t| (t * shape.top_k + r) as u32).collect())
                    .collect();
                let jobs: Vec<_> =
                    ranks.iter().map(|slots| ExpertJob { index: 0, expert: &expert, slots }).collect();
                let of = Routed { layer: 0, experts: shape.experts, top_k: shape.top_k, tokens, inputs: 0 };
                b.experts(&x, of, &Feed::default(), &jobs, &mut out);
            }
            let ScratchShape { experts, top_k, .. } = shape;
            let router =
                Router { experts, top_k, renormalize: true, scale: 1.0, score: Score::Softmax, groups: None };
            b.route(&x, tokens, router.unbiased(), &mut Vec::new()).unwrap();
            let (heads, head_dim) = (shape.heads, shape.head_dim);
            let a = Attention { heads, kv_heads: 4, head_dim, scale: 1.0, window: None, sinks: None };
            b.write_kv(&mut kv, shape.context - tokens, tokens, &x, &x);
            b.attention(&x, &kv, shape.context - tokens, tokens, &a, &mut out);
            b.write_kv(&mut kv, shape.context - 1, 1, &x, &x);
            b.attention(&x, &kv, shape.context - 1, 1, &a, &mut out);
            held = b.scratch_held();
            assert!(held <= CpuBackend::scratch_bytes(&shape), "{tokens} tokens: {held} bytes");
        }
        assert!(2 * held > CpuBackend::scratch_bytes(&shape), "a bound of twice what is held bounds little");
    })
    .join()
    .unwrap();
}
