//! The cost of rotated inputs in decoding: a layer's experts of one token, with the same bytes read as rotated matrices
//! and as plain ones, in turn. One thread; attention and the rest of a token would make the relative difference smaller.
//!
//!     cargo run --release -p dollop-benches --bin rotation -- [D FF USED]

use dollop::internal::experts::Expert;
use dollop::internal::kernels::cpu::{CpuBackend, CpuOptions};
use dollop::internal::kernels::{Backend, ExpertJob, Feed, Routed};
use dollop::internal::quant::{self, Level, Matrix, Rotation, Shape};
use std::time::Instant;

/// More than fit any cache, with the default sizes.
const EXPERTS: usize = 64;
const ROUNDS: usize = 400;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).map(|n| n.parse()).collect::<Result<_, _>>()?;
    let &[d, ff, used] = (if numbers.is_empty() { &[2048, 768, 8] } else { &numbers[..] }) else {
        return Err("usage: rotation [D FF USED]".into());
    };
    let backend = CpuBackend::new(CpuOptions { threads: 1, ..CpuOptions::default() })?;
    let matrix = |rows: usize, cols: usize| -> dollop::Result<_> {
        let w = dollop_benches::values(rows * cols, 1);
        quant::encode(Shape::new(rows, cols, 64)?, &w, None, Level::B4)?.into_nested()
    };
    let (up, down) = (matrix(ff, d)?, matrix(d, ff)?);
    // Copies, so that each expert's bytes have another address.
    let copy = |m: &quant::Nested, rotate: bool| -> dollop::Result<Matrix> {
        let own = m.try_map(|bytes| Ok(bytes.to_vec().into()))?;
        Ok(Matrix::Nested(own.rotated(Rotation::of(m.shape().cols).filter(|_| rotate))))
    };
    let experts = |rotate: bool| -> dollop::Result<Vec<Expert>> {
        let expert = |_| -> dollop::Result<Expert> {
            let (gate, up, down) = (copy(&up, rotate)?, copy(&up, rotate)?, copy(&down, rotate)?);
            Ok(Expert { gate: Some(gate), up, down, place: None })
        };
        (0..EXPERTS).map(expert).collect()
    };
    let both = [experts(false)?, experts(true)?];
    let mut x = backend.alloc(d)?;
    backend.upload(&mut x, 0, &dollop_benches::values(d, 3));
    let mut out = backend.alloc(used * d)?;
    let slots: Vec<[u32; 1]> = (0..used as u32).map(|slot| [slot]).collect();
    let of = Routed { layer: 0, experts: EXPERTS, top_k: used, tokens: 1, inputs: 0 };
    let mut seconds: [Vec<f64>; 2] = Default::default();
    for round in 0..ROUNDS {
        for (all, seconds) in both.iter().zip(&mut seconds) {
            let job = |i: usize| {
                let index = (round * used + i) % EXPERTS;
                ExpertJob { index: index as u32, expert: &all[index], slots: &slots[i] }
            };
            let jobs: Vec<ExpertJob> = (0..used).map(job).collect();
            let start = Instant::now();
            backend.experts(&x, of, &Feed::default(), &jobs, &mut out);
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    seconds.iter_mut().for_each(|all| all.sort_by(f64::total_cmp));
    for (name, part) in [("fastest", 0.0), ("fastest tenth", 0.1), ("median", 0.5)] {
        let [plain, rotated] = [0, 1].map(|i: usize| 1e6 * seconds[i][(part * ROUNDS as f64) as usize]);
        println!(
            "{}, {used} experts of {d} x {ff}, {name}: {plain:.1} us, rotated {rotated:.1} us, {:+.1} %",
            backend.name(),
            100.0 * (rotated / plain - 1.0)
        );
    }
    Ok(())
}
