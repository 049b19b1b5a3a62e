//! Compares every kernel, level and shape with its twin on the CPU or the scalar specification in `quant`.
//!
//! Skipped on a machine without an adapter, unless `DOLLOP_TEST_GPU` requires one: `./check` sets it.

use super::*;
use crate::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use crate::kernels::testing::{GROUPS, TABLES, of_table, put, values};
use crate::kernels::{
    Activation, Attention, Backend, Choice, ExpertJob, GpuInputs, Linear, MAX_BEST, Norm, Placing, Projected,
    RopeTable, RoutedBufs, Router, Score,
};
use crate::quant::{self, Level, Shape};
use dollop_shaders::{Kernel, SHADERS};

mod best;
mod choices;
mod conv;
mod delta;
mod experts;
mod groups;
mod latent;
mod limits;
mod mixed;
mod mixer;
mod operations;
mod sides;
mod staging;
mod tables;
mod translations;
mod variants;

/// A backend on any GPU, with single-precision inputs unless the options differ.
fn gpu_with(options: &GpuOptions) -> Option<GpuBackend> {
    let mut options = options.clone();
    if options.variants.inputs == GpuInputs::Auto {
        options.variants.inputs = GpuInputs::Single;
    }
    match GpuBackend::new(&options) {
        Ok(b) => Some(b),
        Err(e) => {
            assert!(std::env::var_os("DOLLOP_TEST_GPU").is_none(), "{e}");
            None
        }
    }
}

/// Whether to test all cases, as `./check --full` does, or a sample.
fn full() -> bool {
    std::env::var_os("DOLLOP_TEST_FULL").is_some()
}

fn gpu() -> Option<GpuBackend> {
    gpu_with(&GpuOptions { kv_single: true, ..GpuOptions::default() })
}

fn cpu() -> CpuBackend {
    let isa = Some(Isa::available()[0]);
    CpuBackend::new(CpuOptions { threads: 1, isa, kv_single: true, ..CpuOptions::default() }).unwrap()
}

fn nested(rows: usize, cols: usize, group: usize, level: Level, seed: u32) -> Matrix {
    nested_of(Shape::new(rows, cols, group).unwrap(), level, seed)
}

fn narrow(rows: usize, cols: usize, group: usize, level: Level, seed: u32) -> Matrix {
    nested_of(Shape::new(rows, cols, group).unwrap().with(quant::GroupParams::Narrow), level, seed)
}

fn nested_of(shape: Shape, level: Level, seed: u32) -> Matrix {
    let (rows, cols) = (shape.rows, shape.cols);
    let encoded = quant::encode(shape, &values(rows * cols, seed), None, Level::B8).unwrap();
    Matrix::Nested(encoded.into_nested().unwrap().at(level).unwrap())
}

fn plain(rows: usize, cols: usize, seed: u32) -> Matrix {
    Matrix::F32 { rows, cols, data: values(rows * cols, seed).into() }
}

/// The matrix in f64.
fn dense(m: &Matrix) -> Vec<f64> {
    match m {
        Matrix::F32 { data, .. } => data.iter().map(|&w| w.into()).collect(),
        Matrix::Nested(n) => {
            let mut row = vec![0.0; m.cols()];
            let all = (0..m.rows()).flat_map(|r| {
                n.dequantize_row(r, &mut row);
                row.iter().map(|&w| f64::from(w)).collect::<Vec<_>>()
            });
            all.collect()
        }
    }
}

/// `m · x` in f64, and the sum of the terms' magnitudes, to which the error is relative.
fn product(m: &[f64], cols: usize, x: &[f32]) -> Vec<(f64, f64)> {
    let row = |w: &[f64]| {
        let terms = w.iter().zip(x).map(|(w, x)| w * f64::from(*x));
        terms.fold((0.0, 0.0), |(sum, all), t| (sum + t, all + t.abs()))
    };
    m.chunks_exact(cols).map(row).collect()
}

fn get(b: &GpuBackend, buf: &GpuBuf) -> Vec<f32> {
    let mut out = vec![0.0; buf.len];
    b.download(buf, 0, &mut out).unwrap();
    out
}

/// The hidden values of every slot that feed-forward blocks of `tokens` tokens wrote, converted from prepared
/// form to single precision.
fn hidden(b: &GpuBackend, ff: usize, tokens: usize) -> Vec<f32> {
    let buf = b.lock().hidden.0.take().expect("an operation has used it");
    let values = get(b, &buf);
    b.lock().hidden.0 = Some(buf);
    let row = if tokens == 1 { ff } else { prepare::row_words(ff, dollop_shaders::SINGLE) };
    values.chunks_exact(row).flat_map(|row| &row[..ff]).copied().collect()
}

/// The relative error of f32 sums, as a fraction of the magnitudes: codes reach 255 where weights are
/// centred, which costs a few bits.
const SUMS: f64 = 3e-5;

fn near(what: &str, got: &[f32], want: &[(f64, f64)], part: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, (w, all))) in got.iter().zip(want).enumerate() {
        let bound = part * (all + 1e-3);
        assert!((f64::from(*g) - w).abs() <= bound, "{what}, value {i}: {g} instead of {w} ± {bound}");
    }
}

fn close(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= bound * (1.0 + w.abs()), "{what}, value {i}: {g} instead of {w}");
    }
}

#[test]
fn parameters_are_what_the_kernels_read() {
    fn check<P: Params>() -> Kernel {
        for s in SHADERS.iter().filter(|s| s.kernel == P::KERNEL) {
            assert_eq!(s.params_size as usize, size_of::<P>(), "{:?}", P::KERNEL);
            let fields: Vec<(&str, u32)> = P::FIELDS.iter().map(|&(n, at)| (n, at as u32)).collect();
            assert_eq!(s.params, fields, "{:?}", P::KERNEL);
        }
        P::KERNEL
    }
    let checked = [
        check::<LinearParams>(),
        check::<HeadsParams>(),
        check::<PrepareParams>(),
        check::<RotateParams>(),
        check::<GateUpParams>(),
        check::<RouteGateUpParams>(),
        check::<DownParams>(),
        check::<DownSumParams>(),
        check::<EmbedParams>(),
        check::<RmsNormParams>(),
        check::<PlaceParams>(),
        check::<AttentionParams>(),
        check::<AttentionManyParams>(),
        check::<AttendOneParams>(),
        check::<AttendMergeParams>(),
        check::<RouteParams>(),
        check::<GroupParams>(),
        check::<ConvParams>(),
        check::<DeltaMixParams>(),
        check::<DeltaParams>(),
        check::<GatedNormParams>(),
        check::<CombineParams>(),
        check::<ElementwiseParams>(),
        check::<GateRowsParams>(),
        check::<ArgmaxParams>(),
        check::<TopKParams>(),
    ];
    assert!(SHADERS.iter().all(|s| checked.contains(&s.kernel)), "a kernel's parameters are not compared");
}

/// `silu(gate · x) ⊙ up · x` of both products, with the magnitudes to which the error is relative: each product's
/// magnitude is multiplied by the other factor.
fn gated(gate: Vec<(f64, f64)>, up: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let both = gate.into_iter().zip(up);
    both.map(|((g, all_g), (u, all_u))| {
        let silu = g / (1.0 + (-g).exp());
        // The slope of silu is 1.1 at most.
        (silu * u, 1.1 * all_g * u.abs() + silu.abs() * all_u)
    })
    .collect()
}

/// `down · (silu(gate · x) ⊙ up · x)` in f64.
fn feed_forward(e: &Expert, x: &[f32]) -> Vec<f32> {
    let [gate, up] = [e.gate(), &e.up].map(|m| product(&dense(m), x.len(), x));
    let hidden = gated(gate, up);
    let hidden: Vec<f32> = hidden.iter().map(|h| h.0 as f32).collect();
    product(&dense(&e.down), hidden.len(), &hidden).iter().map(|d| d.0 as f32).collect()
}

/// A matrix read at a lower level.
fn at_level(m: &Matrix, level: Level) -> Matrix {
    match m {
        Matrix::Nested(n) => Matrix::Nested(n.at(level).unwrap()),
        other => other.clone(),
    }
}

/// An expert read at a lower level.
fn expert_at(e: &Expert, level: Level) -> Expert {
    let gate = e.gate.as_ref().map(|m| at_level(m, level));
    Expert { gate, up: at_level(&e.up, level), down: at_level(&e.down, level), place: None }
}

fn an_expert(d: usize, ff: usize, level: Option<Level>, seed: u32) -> Expert {
    match level {
        None => Expert {
            gate: Some(plain(ff, d, seed)),
            up: plain(ff, d, seed + 1),
            down: plain(d, ff, seed + 2),
            place: None,
        },
        Some(level) => Expert {
            gate: Some(narrow(ff, d, 64, level, seed)),
            up: nested(ff, d, 32, level, seed + 1),
            down: narrow(d, ff, 32, level, seed + 2),
            place: None,
        },
    }
}
