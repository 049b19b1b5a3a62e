//! The cost of a GPU's kernels in decoding, one after another as in a token: microseconds per launch, where
//! each waits for the one before. A long chain is recorded first, and timed from its submission to its end.
//!
//!     cargo run --release -p dollop-benches --bin gpu [-- PART-OF-A-NAME]
//!
//! Weights that fit a GPU's cache are read from there: these are times of launches, not of memory.

use dollop::internal::kernels::gpu::{GpuBackend, GpuBuf, GpuOptions};
use dollop::internal::kernels::{
    AttendCall, Attention, Backend, Flow, Linear, Norm, Placing, Projected, RopeTable, Sequence,
};
use dollop::internal::quant::{self, Level, Matrix, Shape};
use dollop_benches::values;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

const D: usize = 2048;
const HEADS: usize = 16;
const HEAD: usize = 128;

fn nested(rows: usize, cols: usize, level: Level) -> Result<Matrix, Failure> {
    let shape = Shape::new(rows, cols, 64)?;
    let encoded = quant::encode(shape, &values(rows * cols, 1), None, level)?;
    Ok(Matrix::Nested(encoded.into_nested()?))
}

/// Prints the time of one of `count` launches that `launch` records: the least of many runs, as the first raise the clock.
fn time(
    b: &GpuBackend,
    name: &str,
    count: usize,
    bytes: usize,
    mut launch: impl FnMut(),
) -> Result<(), Failure> {
    if !std::env::args().skip(1).all(|part| name.contains(&part)) {
        return Ok(());
    }
    let probe = b.alloc(4)?;
    let (mut record, mut best) = (f64::MAX, f64::MAX);
    for _ in 0..30 {
        let start = Instant::now();
        (0..count).for_each(|_| launch());
        b.flow(Flow::Begin)?;
        record = record.min(start.elapsed().as_secs_f64());
        let start = Instant::now();
        b.download(&probe, 0, &mut [0.0; 4])?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let each = best / count as f64;
    let rate = if bytes > 0 { format!("{:.0}", bytes as f64 / each / 1e9) } else { String::new() };
    println!("| {name} | {:.2} | {rate} | {:.2} |", 1e6 * each, 1e6 * record / count as f64);
    Ok(())
}

fn main() -> Result<(), Failure> {
    let b = GpuBackend::new(&GpuOptions::default())?;
    println!("{}\n\n| launch | µs | GB/s | µs to record |\n|---|---:|---:|---:|", b.name());
    let buf = |n: usize| -> Result<GpuBuf, Failure> {
        let mut buf = b.alloc(n)?;
        b.upload(&mut buf, 0, &values(n, 7));
        Ok(buf)
    };
    let (mut x, y) = (buf(D)?, buf(D)?);
    time(&b, "add 128", 1000, 0, || b.add(&mut x, &y, 128))?;
    time(&b, "add 2048", 1000, 0, || b.add(&mut x, &y, D))?;
    let weight = values(D, 3);
    let mut out = buf(D)?;
    time(&b, "rms_norm 2048", 1000, 0, || b.rms_norm(&x, &weight, 1e-5, 1, &mut out))?;
    let router = Matrix::F32 { rows: 64, cols: D, data: values(64 * D, 4).into() };
    let (mut h, mut logits) = (buf(D)?, buf(64)?);
    time(&b, "norm, f32 64x2048", 500, 64 * D * 4, || {
        let outs = &mut [Linear { matrix: &router, bias: None, out: &mut logits }];
        b.norm_linear(&x, Norm::rms(&weight, 1e-5), 1, &mut h, outs);
    })?;
    for (rows, level) in
        [(D, Level::B4), (3 * D, Level::B4), (16384, Level::B4), (16384, Level::B3), (16384, Level::B8)]
    {
        let matrix = nested(rows, D, level)?;
        let mut out = buf(rows)?;
        let bytes = GpuBackend::matrix_bytes(&matrix);
        time(&b, &format!("{rows}x2048 at {level}"), 500, bytes, || {
            b.linear(&x, 1, &mut [Linear { matrix: &matrix, bias: None, out: &mut out }]);
        })?;
    }
    let rope =
        RopeTable { name: 0, dims: HEAD, cos: values(2048 * HEAD / 2, 1), sin: values(2048 * HEAD / 2, 2) };
    let norm = values(HEAD, 5);
    let how = Placing {
        heads: HEADS,
        kv_heads: HEADS,
        head_dim: HEAD,
        q_norm: Some(&norm),
        k_norm: Some(&norm),
        v_norm: false,
        late_norms: false,
        latent: false,
        eps: 1e-5,
        limit: None,
        rope: &rope,
    };
    let shape =
        Attention { heads: HEADS, kv_heads: HEADS, head_dim: HEAD, scale: 0.1, window: None, sinks: None };
    let mut kv = b.alloc_kv(2048, HEADS, [HEAD; 2])?;
    let (mut q, mut k, mut v, mut out) = (buf(D)?, buf(D)?, buf(D)?, buf(D)?);
    for pos in [0, 63, 511, 2047] {
        time(&b, &format!("attend, position {pos}"), 500, 0, || {
            let x = Projected { q: &mut q, k: &mut k, v: &mut v };
            b.attend(AttendCall {
                x,
                how: &how,
                tokens: 1,
                sequences: &mut std::iter::once(Sequence { pos, tokens: 1, kv: &mut kv }),
                shared: false,
                shape: &shape,
                absorbed: None,
                gate: None,
                out: &mut out,
            });
        })?;
    }
    Ok(())
}
