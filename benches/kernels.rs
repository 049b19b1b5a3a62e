//! Every kind of operation, on every instruction set of the machine, on one thread. Products at every level: bytes of
//! weights per second for one token, products per second for many. The sizes are those of a 7-billion-parameter model.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dollop::internal::experts::Expert;
use dollop::internal::format::GgmlType;
use dollop::internal::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use dollop::internal::kernels::{Attention, Backend, ExpertJob, Feed, Linear, Routed, Router, Score};
use dollop::internal::quant::{self, GroupParams, Level, Matrix, Nested, Shape};
use std::hint::black_box;

fn products(c: &mut Criterion) {
    let (rows, cols) = (2048, 2048);
    let w = dollop_benches::values(rows * cols, 1);
    let nested = |size, params| {
        let shape = Shape::new(rows, cols, size).expect("a sound shape").with(params);
        quant::encode(shape, &w, None, Level::B8)
            .and_then(quant::Encoded::into_nested)
            .expect("finite weights")
    };
    let (by_64, by_32) = (nested(64, GroupParams::Wide), nested(32, GroupParams::Wide));
    let narrow = [64, 32].map(|size| (size, nested(size, GroupParams::Narrow)));
    let tables = [GgmlType::MXFP4, GgmlType::IQ4_NL].map(|ty| (ty, of_table(ty, rows, cols)));
    for tokens in [1, 64] {
        for (isa, backend) in backends() {
            let x = buffer(&backend, tokens * cols, 2);
            let mut out = backend.alloc(tokens * rows).expect("memory");
            let mut group = c.benchmark_group(format!("{isa}, {tokens} tokens"));
            group.sample_size(10).measurement_time(std::time::Duration::from_secs(1));
            let mut run = |name: String, matrix: &Matrix| {
                let work = if tokens == 1 {
                    Throughput::Bytes(matrix.bytes() as u64)
                } else {
                    Throughput::Elements((rows * cols * tokens) as u64)
                };
                group.throughput(work);
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter(|| {
                        backend.linear(
                            black_box(&x),
                            tokens,
                            &mut [Linear { matrix, bias: None, out: &mut out }],
                        )
                    });
                });
            };
            for level in Level::ALL {
                run(
                    format!("level {level}"),
                    &Matrix::Nested(by_64.at(level).expect("all planes are there")),
                );
            }
            run("level 4, groups of 32".into(), &Matrix::Nested(by_32.at(Level::B4).expect("all planes")));
            for (size, narrow) in &narrow {
                for level in Level::ALL {
                    let matrix = narrow.at(level).expect("all planes are there");
                    run(format!("level {level}, narrow groups of {size}"), &Matrix::Nested(matrix));
                }
            }
            for (ty, table) in &tables {
                for level in [Level::B2, Level::B3, Level::B4] {
                    let table = table.at(level).expect("all planes are there");
                    run(format!("level {level}, {ty}"), &Matrix::Nested(table));
                }
            }
            run("f32".into(), &Matrix::F32 { rows, cols, data: w.clone().into() });
            group.finish();
        }
    }
}

/// Table codes of several blocks of a source type.
fn of_table(ty: GgmlType, rows: usize, cols: usize) -> Nested {
    let shape = Shape::new(rows, cols, 32).expect("a sound shape");
    let shape = shape.with(quant::kept(ty).expect("its codes are kept"));
    let mut raw = vec![0; ty.row_bytes(rows * cols).expect("whole blocks")];
    // 60 is a power of two in MXFP4, and the beginning of a normal f16.
    raw.iter_mut().enumerate().for_each(|(i, byte)| {
        *byte = if i % ty.block_bytes() < 2 { 60 } else { (i.wrapping_mul(2_654_435_761) >> 11) as u8 }
    });
    let kept = quant::keep_rows(shape, 0, ty, &raw, None, Level::B4, 1.0).expect("finite weights");
    quant::Encoded::join(shape, &[kept]).into_nested().expect("planes that belong together")
}

/// A backend with one thread, for every instruction set.
fn backends() -> impl Iterator<Item = (Isa, CpuBackend)> {
    Isa::available().into_iter().map(|isa| {
        let options = CpuOptions { threads: 1, isa: Some(isa), ..CpuOptions::default() };
        (isa, CpuBackend::new(options).expect("one thread"))
    })
}

/// A buffer of `len` values.
fn buffer(backend: &CpuBackend, len: usize, seed: u32) -> <CpuBackend as Backend>::Buf {
    let mut buffer = backend.alloc(len).expect("memory");
    backend.upload(&mut buffer, 0, &dollop_benches::values(len, seed));
    buffer
}

/// One token at a given depth: bytes of keys and values per second. Four query heads share a key head.
fn attention(c: &mut Criterion) {
    let shape = Attention { heads: 16, kv_heads: 4, head_dim: 128, scale: 0.09, window: None, sinks: None };
    let width = shape.kv_heads * shape.head_dim;
    for (isa, backend) in backends() {
        let q = buffer(&backend, shape.heads * shape.head_dim, 1);
        let mut out = backend.alloc(q.len()).expect("memory");
        let mut group = c.benchmark_group(format!("{isa}, attention of one token"));
        group.sample_size(10).measurement_time(std::time::Duration::from_secs(1));
        for depth in [128, 4096, 16384] {
            let mut kv = backend.alloc_kv(depth, shape.kv_heads, [shape.head_dim; 2]).expect("memory");
            let (k, v) = (dollop_benches::values(depth * width, 2), dollop_benches::values(depth * width, 3));
            backend.write_kv(&mut kv, 0, depth, &k, &v);
            group.throughput(Throughput::Bytes((2 * depth * width * 2) as u64));
            group.bench_function(BenchmarkId::from_parameter(depth), |b| {
                b.iter(|| backend.attention(black_box(&q), &kv, depth - 1, 1, &shape, &mut out));
            });
        }
        group.finish();
    }
}

/// Operations between products: norms, routing, a feed-forward block (two quantizations of activations, SwiGLU).
fn between(c: &mut Criterion) {
    let (d, ff) = (2048, 1024);
    let matrix = |rows: usize, cols: usize, seed| {
        let shape = Shape::new(rows, cols, 64).expect("a sound shape");
        let w = dollop_benches::values(rows * cols, seed);
        let encoded = quant::encode(shape, &w, None, Level::B4).expect("finite weights");
        Matrix::Nested(encoded.into_nested().expect("planes that belong together"))
    };
    let expert =
        Expert { gate: Some(matrix(ff, d, 1)), up: matrix(ff, d, 2), down: matrix(d, ff, 3), place: None };
    // A matrix so small that quantizing its input is most of the work.
    let small = matrix(16, d, 4);
    let weight = dollop_benches::values(d, 5);
    for (isa, backend) in backends() {
        for tokens in [1usize, 64] {
            let x = buffer(&backend, tokens * d, 6);
            let mut out = backend.alloc(tokens * d).expect("memory");
            let mut group = c.benchmark_group(format!("{isa}, {tokens} tokens, beside products"));
            group.sample_size(10).measurement_time(std::time::Duration::from_secs(1));
            group.throughput(Throughput::Elements((tokens * d) as u64));
            group.bench_function("rms_norm", |b| {
                b.iter(|| backend.rms_norm(black_box(&x), &weight, 1e-5, tokens, &mut out));
            });
            group.bench_function("quantize activations", |b| {
                let x = black_box(&x);
                b.iter(|| {
                    backend.linear(x, tokens, &mut [Linear { matrix: &small, bias: None, out: &mut out }])
                });
            });
            let router = Router {
                experts: 64,
                top_k: 8,
                renormalize: false,
                scale: 1.0,
                score: Score::Softmax,
                groups: None,
            };
            let mut choices = Vec::new();
            group.bench_function("route", |b| {
                b.iter(|| {
                    backend
                        .route(black_box(&x), tokens, router.unbiased(), &mut choices)
                        .expect("the same machine")
                });
            });
            let slots: Vec<u32> = (0..tokens as u32).collect();
            group.bench_function("feed-forward", |b| {
                let job = ExpertJob { index: 0, expert: &expert, slots: &slots };
                let of = Routed { layer: 0, experts: 1, top_k: 1, tokens, inputs: 0 };
                b.iter(|| backend.experts(black_box(&x), of, &Feed::default(), &[job], &mut out));
            });
            group.finish();
        }
    }
}

criterion_group!(benches, products, attention, between);
criterion_main!(benches);
