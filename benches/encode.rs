//! Nanoseconds per weight of encoding: with the search, and when the codes of a uniform source are kept.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dollop::internal::format::GgmlType;
use dollop::internal::quant::{self, Anchor, Level, Shape};
use std::hint::black_box;

fn encode(c: &mut Criterion) {
    let (rows, cols) = (64, 2048);
    let w = dollop_benches::values(rows * cols, 1);
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements((rows * cols) as u64));
    // Rows of a large matrix: one in four enters the least-squares sums.
    let large = |group| Shape::new(2048, cols, group).expect("a sound shape");
    for size in [32, 64] {
        group.bench_function(format!("search, groups of {size}"), |b| {
            b.iter(|| {
                quant::encode_rows(large(size), 0, black_box(&w), None, Level::B8, Anchor::Nested)
                    .expect("finite weights")
            });
        });
    }
    for ty in [GgmlType::Q4_0, GgmlType::Q8_0, GgmlType::Q4_K] {
        let blocks = rows * cols / ty.block_len();
        // Scales of one, codes of all kinds.
        let block = |i: usize| -> Vec<u8> {
            let mut b: Vec<u8> = (0..ty.block_bytes()).map(|j| (i * 31 + j * 7) as u8).collect();
            b[..2].copy_from_slice(&[0x00, 0x2c]);
            if ty == GgmlType::Q4_K {
                b[2..4].copy_from_slice(&[0x00, 0x2c]);
            }
            b
        };
        let raw: Vec<u8> = (0..blocks).flat_map(block).collect();
        group.bench_function(format!("keep {ty}"), |b| {
            b.iter(|| {
                quant::keep_rows(large(32), 0, ty, black_box(&raw), None, Level::B8, 1.0)
                    .expect("sound blocks")
            });
        });
        group.bench_function(format!("dequantize {ty}"), |b| {
            let mut out = vec![0.0; rows * cols];
            b.iter(|| ty.dequantize(black_box(&raw), &mut out).expect("whole blocks"));
        });
    }
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
