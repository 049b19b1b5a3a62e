//! Uploads arrive complete and in order, with at most a full ring in flight.

use super::*;
use crate::kernels::gpu::device::STAGED_BYTES;

/// Distinct words.
fn words(n: usize, seed: u32) -> Vec<f32> {
    (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32).collect()
}

#[test]
fn more_than_the_ring_arrives_whole_and_in_order() {
    let Some(b) = gpu() else { return };
    let len = STAGED_BYTES / 4 * 5 / 2 + 3;
    let mut buf = b.alloc(len).unwrap();
    let before = b.stats();
    let mut want = words(len, 1);
    b.upload(&mut buf, 0, &want);
    // Odd numbers of words at odd offsets, each overlapping the end of the one before.
    let (mut at, mut seed) = (1, 2);
    while at < len {
        let n = (1 + seed as usize * 77_773 % 300_001).min(len - at);
        let part = words(n, seed);
        b.upload(&mut buf, at, &part);
        want[at..at + n].copy_from_slice(&part);
        at += n.div_ceil(2) | 1;
        seed += 1;
    }
    b.upload(&mut buf, 5, &[]);
    assert!(get(&b, &buf) == want, "bytes were lost or came in another order");
    let after = b.stats();
    assert!(after.upload_waits < after.uploaded_bytes / (STAGED_BYTES as u64 / 8), "{after:?}");
    assert_eq!(after.submits, before.submits + 1, "copies are no commands");
    // The first difference includes the buffer itself, the second the target of its read-back.
    let landing = 4 * len as u64 + 16;
    assert!(after.held_bytes <= before.held_bytes + landing + STAGED_BYTES as u64, "{before:?} {after:?}");
}

#[test]
fn nobody_waits_where_the_ring_suffices() {
    let Some(b) = gpu() else { return };
    let empty = b.stats().held_bytes;
    let x = put(&b, &words(1000, 1));
    let small = b.stats().held_bytes;
    assert!(small <= empty + 4096 + STAGED_BYTES as u64 / 8, "a few bytes take more than a piece");
    get(&b, &x);
    let len = STAGED_BYTES / 4;
    let mut buf = b.alloc(len).unwrap();
    for seed in 0..3 {
        let want = words(len, seed);
        for at in (0..len).step_by(len / 8) {
            b.upload(&mut buf, at, &want[at..at + len / 8]);
        }
        assert!(get(&b, &buf) == want);
    }
    assert_eq!(b.stats().upload_waits, 0);
}

#[test]
fn a_full_ring_waits_for_its_oldest_piece() {
    let Some(b) = gpu() else { return };
    b.gpu.staging().slow = true;
    let len = STAGED_BYTES / 4;
    let want = words(3 * len, 3);
    let mut buf = b.alloc(3 * len).unwrap();
    let held = b.stats().held_bytes;
    b.upload(&mut buf, 0, &want[..len]);
    assert_eq!(b.stats().upload_waits, 0, "the ring takes as much as it has room for");
    b.upload(&mut buf, len, &want[len..]);
    let after = b.stats();
    // At least half of the ring is returned at once.
    assert!((1..=4).contains(&after.upload_waits), "{after:?}");
    assert_eq!((after.submits, after.held_bytes), (0, held + STAGED_BYTES as u64));
    assert!(get(&b, &buf) == want);
}

#[test]
fn an_upload_is_seen_by_the_launches_after_it_only() {
    let Some(b) = gpu() else { return };
    // The second upload exceeds what may wait for a submission.
    for len in [1000, STAGED_BYTES / 4 + 1] {
        let (one, two) = (words(len, 1), words(len, 2));
        let mut x = put(&b, &one);
        let (mut first, mut second) = (b.alloc(len).unwrap(), b.alloc(len).unwrap());
        b.copy(&x, 0, len, &mut first);
        b.upload(&mut x, 0, &two);
        b.copy(&x, 0, len, &mut second);
        assert!(get(&b, &first) == one, "a launch sees what came later");
        assert!(get(&b, &second) == two, "a launch does not see what came before");
    }
}

#[test]
fn what_is_staged_for_a_lost_or_abandoned_device_is_dropped() {
    let Some(b) = gpu() else { return };
    let mut x = put(&b, &words(1 << 20, 1));
    b.gpu.device.destroy();
    for seed in 0..8 {
        b.upload(&mut x, 0, &words(1 << 20, seed));
    }
    assert!(matches!(b.download(&x, 0, &mut [0.0]), Err(Error::Device(_))));
    let b = gpu().unwrap();
    let empty = b.stats().held_bytes;
    let mut x = put(&b, &words(1 << 20, 1));
    get(&b, &x);
    b.upload(&mut x, 0, &words(1 << 20, 2));
    b.abandon();
    b.upload(&mut x, 0, &words(1 << 20, 3));
    drop(x);
    let left = b.stats().held_bytes;
    assert!(left <= empty + (4 << 20) + 16, "{left} bytes are held, {empty} at first");
}
