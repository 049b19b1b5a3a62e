//! Prefetches the next weights to the last-level cache while the model waits for a disk. The disk idles during a
//! token's products of the next layer, which then take three quarters of the time (`benches/records/streaming.md`).

use super::pool::Pool;
use crate::quant::Matrix;

/// Bytes of a cache line.
const LINE: usize = 64;

/// The most parts of matrices, so that the list fits the stack.
const PARTS: usize = 64;

/// Bytes of the largest cache that the system reports; 0 if it reports none.
pub(super) fn last_cache_bytes() -> usize {
    let size = |i: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{i}/size");
        std::fs::read_to_string(path).ok().and_then(|text| parse(&text))
    };
    (0..5).filter_map(size).max().unwrap_or(0)
}

fn parse(size: &str) -> Option<usize> {
    let size = size.trim();
    let (digits, unit) = match size.as_bytes().last()? {
        b'K' => (&size[..size.len() - 1], 1 << 10),
        b'M' => (&size[..size.len() - 1], 1 << 20),
        _ => (size, 1),
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}

/// Reads the first `limit` bytes of the matrices, on all threads, and returns the bytes read.
pub(super) fn read<'a>(pool: &Pool, matrices: &mut dyn Iterator<Item = &'a Matrix>, limit: usize) -> usize {
    let (mut parts, mut count, mut total) = ([&[] as &[u8]; PARTS], 0, 0);
    let mut add = |part: &'a [u8]| {
        if count < PARTS && total < limit {
            parts[count] = &part[..part.len().min(limit - total)];
            total += parts[count].len();
            count += 1;
        }
    };
    for matrix in matrices {
        match matrix {
            Matrix::Nested(m) => m.planes().iter().for_each(|plane| add(plane)),
            Matrix::F32 { data, .. } => add(bytemuck::cast_slice(data)),
        }
    }
    let threads = pool.threads();
    pool.run(if total > 0 { threads } else { 0 }, &|thread| {
        // Each thread reads one contiguous run of the bytes, as in products.
        let (mut from, mut to) = (total * thread / threads, total * (thread + 1) / threads);
        for part in &parts[..count] {
            let lines = part[from.min(part.len())..to.min(part.len())].iter().step_by(LINE);
            std::hint::black_box(lines.fold(0, |mix, byte| mix ^ byte));
            (from, to) = (from.saturating_sub(part.len()), to.saturating_sub(part.len()));
        }
    });
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_bytes_are_read_and_no_more() {
        let matrix = |rows: usize| Matrix::F32 { rows, cols: 8, data: vec![1.0; rows * 8].into() };
        let (a, b) = (matrix(100), matrix(3));
        let pool = Pool::new(3, None, None);
        for (limit, want) in [(0, 0), (50, 50), (3200, 3200), (3250, 3250), (1 << 20, 3200 + 96)] {
            assert_eq!(read(&pool, &mut [&a, &b].into_iter(), limit), want);
        }
        assert_eq!(read(&pool, &mut std::iter::empty(), 99), 0);
    }

    #[test]
    fn sizes_are_read_as_the_system_writes_them() {
        let sizes = ["32768K\n", "1M", "512", "", "K", "x"].map(parse);
        assert_eq!(sizes, [Some(32 << 20), Some(1 << 20), Some(512), None, None, None]);
    }
}
