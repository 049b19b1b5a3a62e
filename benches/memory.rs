//! The time to give memory of the expert cache back to the system, and to take it again.
//!
//!     cargo run --release -p dollop-benches --bin memory -- MB
//!
//! A cache of twice as many MB is filled with experts of the Qwen3-30B-A3B shape (48 layers of 128 experts at 4
//! bits), from storage that contains only zeros. Then it shrinks by that many MB, and grows again, five times.

use dollop::internal::experts::{LayerExperts, PlaneSlabs};
use dollop::internal::quant::{Fit, Level, PLANES, Shape};
use dollop::internal::sched::{Precision, StreamOptions, Streamer, Verify};
use dollop::internal::store::{Access, Storage, anonymous_bytes};
use std::io;
use std::sync::Arc;
use std::time::Instant;

type Failure = Box<dyn std::error::Error>;

/// Endless zeros.
struct Zeros;

impl Storage for Zeros {
    fn read_at(&self, _: u64, to: &mut [u8]) -> io::Result<usize> {
        to.fill(0);
        Ok(to.len())
    }

    fn access(&self) -> Access {
        Access::Buffered
    }
}

const LAYERS: usize = 48;
const EXPERTS: usize = 128;
const GRANULE: usize = 16384;

/// A layer's experts: only their offsets.
fn layer() -> Result<LayerExperts, Failure> {
    let shapes = [Shape::new(768, 2048, 64)?, Shape::new(768, 2048, 64)?, Shape::new(2048, 768, 64)?];
    let slab = |p: usize| shapes.iter().map(|s| s.plane(p).len).sum::<usize>().next_multiple_of(GRANULE);
    let plane = |p| PlaneSlabs { offset: 0, stride: slab(p), checksums: vec![0; EXPERTS], slots: Vec::new() };
    Ok(LayerExperts {
        gated: true,
        shapes,
        rotations: [None; 3],
        fits: vec![[[Fit { alpha: 1.0, beta: 0.0 }; PLANES]; 3]; EXPERTS],
        errors: vec![[0.1; PLANES]; EXPERTS],
        planes: (0..Level::B4.planes()).map(plane).collect(),
    })
}

fn main() -> Result<(), Failure> {
    let mb: u64 = std::env::args().nth(1).ok_or("memory MB")?.parse()?;
    let (gone, full) = (mb << 20, mb << 21);
    let tables = (0..LAYERS).map(|_| layer().map(Some)).collect::<Result<Vec<_>, _>>()?;
    let options = StreamOptions {
        precision: Precision::Exact(Level::B4),
        cache_bytes: usize::try_from(full)?,
        verify: Verify::Never,
        ..StreamOptions::default()
    };
    let streamer = Streamer::new("zeros".into(), Arc::new(Zeros), tables, GRANULE, 8, options, None)?;
    let fill = || streamer.read_bandwidth(2 * full).map(drop);
    let held = || anonymous_bytes().unwrap_or(0) >> 20;
    for _ in 0..5 {
        fill()?;
        let (before, moved) = (held(), streamer.stats().bytes_moved);
        let start = Instant::now();
        let given = streamer.resize(full - gone)?;
        let shrunk = start.elapsed().as_secs_f64();
        let after = held();
        let moved = (streamer.stats().bytes_moved - moved) >> 20;
        let start = Instant::now();
        streamer.resize(full)?;
        println!(
            "{} MB given back in {:.1} ms, {moved} MB moved, {before} MB resident before and {after} after; allowed again in {:.1} ms",
            given >> 20,
            1e3 * shrunk,
            1e3 * start.elapsed().as_secs_f64()
        );
    }
    // Beyond its first size: to new memory.
    fill()?;
    let start = Instant::now();
    streamer.resize(full + gone)?;
    println!(
        "from {} to {} MB in {:.1} ms",
        full >> 20,
        (full + gone) >> 20,
        1e3 * start.elapsed().as_secs_f64()
    );
    Ok(())
}
