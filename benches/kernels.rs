//! Products at every level and with every instruction set of the machine: bytes of weights per second on one thread.
#![allow(missing_docs)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dollop::kernels::cpu::{CpuBackend, CpuOptions, Isa};
use dollop::kernels::{Backend, Linear};
use dollop::quant::{self, Level, Matrix, Shape};
use std::hint::black_box;

fn products(c: &mut Criterion) {
    let (rows, cols) = (2048, 2048);
    let w = dollop_benches::values(rows * cols, 1);
    let shape = Shape::new(rows, cols, 64).expect("a sound shape");
    let nested = quant::encode(shape, &w, None, Level::B8)
        .and_then(quant::Encoded::into_nested)
        .expect("finite weights");
    for tokens in [1, 64] {
        let x = dollop_benches::values(tokens * cols, 2);
        let mut out = vec![0.0; tokens * rows];
        for isa in Isa::available() {
            let backend = CpuBackend::new(CpuOptions { threads: 1, isa: Some(isa), ..CpuOptions::default() })
                .expect("one thread");
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
                    &Matrix::Nested(nested.at(level).expect("all planes are there")),
                );
            }
            run("f32".into(), &Matrix::F32 { rows, cols, data: w.clone().into() });
            group.finish();
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
