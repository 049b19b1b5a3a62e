//! The most likely tokens, against `best_of`.

use super::*;
use crate::kernels::{best_of, from_bits};

fn on_device(b: &GpuBackend, x: &[f32], k: usize) -> Vec<(u32, f32)> {
    // A longer buffer than needed, like the rows of logits, with larger values at the end.
    let longer = [x, &[1e9, f32::INFINITY, f32::NAN]].concat();
    let buf = put(b, &longer);
    let mut out = b.alloc(2 * MAX_BEST).unwrap();
    assert!(b.best(&buf, x.len(), k, &mut out).unwrap());
    let mut bits = vec![0.0; 2 * k];
    b.download(&out, 0, &mut bits).unwrap();
    let mut best = Vec::new();
    from_bits(&bits, &mut best);
    best
}

fn check(b: &GpuBackend, what: &str, x: &[f32], k: usize) {
    let mut want = vec![(0, 0.0); k];
    let n = best_of(x, &mut want);
    let got = on_device(b, x, k);
    assert_eq!(got.len(), n, "{what}, {k} of {}", x.len());
    for (rank, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got, want, "{what}, {k} of {}, rank {rank}", x.len());
    }
}

#[test]
fn the_likeliest_are_those_of_the_host_with_tails_and_ties() {
    let Some(b) = gpu() else { return };
    for len in [1, 2, 127, 129, 1023, 1024, 1025, 2048, 2049, 49_152, 151_937] {
        for k in [1, 2, 40, 64, MAX_BEST] {
            let x = values(len, (len + k) as u32);
            check(&b, "values", &x, k);
            // Few distinct values: nearly all are ties, within a workgroup and across workgroups.
            let coarse: Vec<f32> = x.iter().map(|x| (4.0 * x).round() / 4.0).collect();
            check(&b, "ties", &coarse, k);
        }
    }
}

#[test]
fn the_likeliest_of_values_that_are_no_numbers() {
    let Some(b) = gpu() else { return };
    for len in [5, 1500, 5000] {
        for k in [1, 3, 40] {
            let mut x = values(len, 9);
            x.iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
            x.iter_mut().skip(1).step_by(5).for_each(|x| *x = -f32::NAN);
            check(&b, "NaN among them", &x, k);
            x.iter_mut().skip(2).step_by(7).for_each(|x| *x = f32::INFINITY);
            x.iter_mut().skip(4).step_by(7).for_each(|x| *x = f32::NEG_INFINITY);
            check(&b, "infinities", &x, k);
            check(&b, "nothing but NaN", &vec![f32::NAN; len], k);
            check(&b, "nothing but minus infinity", &vec![f32::NEG_INFINITY; len], k);
            let zeros: Vec<f32> = (0..len).map(|i| if i % 2 == 0 { -0.0 } else { 0.0 }).collect();
            check(&b, "zeros of both signs", &zeros, k);
        }
    }
}

#[test]
fn the_likeliest_token_is_one_read_back_of_eight_bytes() {
    let Some(b) = gpu() else { return };
    let buf = put(&b, &values(49_152, 1));
    let mut out = b.alloc(2 * MAX_BEST).unwrap();
    for (k, dispatches) in [(1, 2), (40, 3)] {
        let before = b.stats();
        assert!(b.best(&buf, 49_152, k, &mut out).unwrap());
        b.download(&out, 0, &mut vec![0.0; 2 * k]).unwrap();
        let after = b.stats();
        assert_eq!(after.dispatches - before.dispatches, dispatches);
        assert_eq!((after.submits - before.submits, after.readbacks - before.readbacks), (1, 1));
        assert_eq!(after.read_bytes - before.read_bytes, 8 * k as u64);
    }
}
