//! Long requests are read in parts by several lanes and arrive complete, whatever happens to a part.

use super::*;
use crate::store::{Access, Arena, End, PART_BYTES as PART, Ring};
use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::thread;
use std::time::{Duration, Instant};

/// An in-memory storage that counts its reads and injects faults.
struct Bytes {
    bytes: Vec<u8>,
    reads: AtomicUsize,
    reading: AtomicUsize,
    most: AtomicUsize,
    /// Two reads wait for each other. If lanes read one by one, the time limit makes this a failure instead of a hang.
    meet: AtomicBool,
    places: Mutex<HashSet<u64>>,
    fault: fn(first: bool, to: &mut [u8]) -> io::Result<usize>,
    /// The file that io_uring reads.
    file: Option<File>,
}

impl Storage for Bytes {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let now = self.reading.fetch_add(1, Ordering::AcqRel) + 1;
        self.most.fetch_max(now, Ordering::AcqRel);
        let start = Instant::now();
        while self.meet.load(Ordering::Acquire) && start.elapsed() < Duration::from_secs(600) {
            if self.most.load(Ordering::Acquire) > 1 {
                self.meet.store(false, Ordering::Release);
            }
            thread::yield_now();
        }
        let from = &self.bytes[(offset as usize).min(self.bytes.len())..];
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
        let first = lock(&self.places).insert(offset);
        let result = (self.fault)(first, &mut to[..n]);
        self.reading.fetch_sub(1, Ordering::AcqRel);
        result
    }

    fn access(&self) -> Access {
        Access::Buffered
    }

    fn ring(&self, depth: usize) -> Option<Ring> {
        Ring::new(self.file.as_ref()?, 0, depth).ok()
    }
}

const OFFSET: usize = 4096;
const LEN: usize = 3 * PART + 700;

struct Tried {
    result: io::Result<Vec<u8>>,
    want: Vec<u8>,
    reads: usize,
    most: usize,
    retries: u64,
}

/// Reads `LEN` bytes with their checksum through `count` lanes.
fn read(count: usize, stored: usize, fault: fn(bool, &mut [u8]) -> io::Result<usize>) -> Tried {
    let bytes: Vec<u8> = (0..stored).map(|i| ((i * 31) >> 4) as u8).collect();
    let want = bytes[OFFSET..(OFFSET + LEN).min(stored)].to_vec();
    let storage = Arc::new(Bytes {
        bytes,
        reads: AtomicUsize::new(0),
        reading: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        meet: AtomicBool::new(count > 1),
        places: Mutex::default(),
        fault,
        file: None,
    });
    let arena = Arena::new(2 * LEN, 4096).unwrap();
    let lanes = Lanes::new(count, storage.clone(), None).unwrap();
    let slab = arena.alloc(LEN, End::High).unwrap();
    let checksum = Some(crc32fast::hash(&want));
    lanes.submit([Request { layer: 1, expert: 2, plane: 3, offset: OFFSET as u64, checksum, slab }], false);
    let landed = lanes.wait();
    assert_eq!((landed.layer, landed.expert, landed.plane, landed.offset), (1, 2, 3, OFFSET as u64));
    assert!(lanes.poll().is_none(), "a request lands once");
    let result = landed.result.map(|slab| {
        assert_eq!(slab.len(), LEN);
        slab.to_vec()
    });
    assert_eq!(arena.free_bytes(), (2 * LEN).next_multiple_of(4096), "every part came back");
    Tried {
        result,
        want,
        reads: storage.reads.load(Ordering::Relaxed),
        most: storage.most.load(Ordering::Relaxed),
        retries: lanes.counters().1,
    }
}

#[test]
fn a_long_request_is_read_in_parts_by_several_lanes() {
    for (count, reads) in [(1, 1), (2, 4), (4, 4)] {
        let t = read(count, OFFSET + LEN + 99, |_, to| Ok(to.len()));
        assert!(t.result.unwrap() == t.want, "{count} lanes");
        assert_eq!((t.reads, t.retries), (reads, 0), "{count} lanes");
        assert_eq!(t.most > 1, count > 1, "{count} lanes read {} parts at a time", t.most);
    }
}

#[test]
fn parts_that_fail_once_are_read_again() {
    for count in [1, 3] {
        let failing =
            read(
                count,
                OFFSET + LEN,
                |first, to| {
                    if first { Err(io::Error::other("EIO")) } else { Ok(to.len()) }
                },
            );
        assert!(failing.result.unwrap() == failing.want);
        assert_eq!(failing.retries, if count == 1 { 1 } else { 4 });
        let short = read(count, OFFSET + LEN, |_, to| Ok((to.len() / 2).max(1)));
        assert!(short.result.unwrap() == short.want);
        let damaged = read(count, OFFSET + LEN, |first, to| {
            if first {
                to[0] ^= 1;
            }
            Ok(to.len())
        });
        assert!(damaged.result.unwrap() == damaged.want && damaged.retries > 0);
    }
}

#[test]
fn what_stays_wrong_is_an_error() {
    for count in [1, 3] {
        let kind = |t: Tried| t.result.unwrap_err().kind();
        let gone = read(count, OFFSET + LEN, |_, _| Err(io::Error::other("EIO")));
        assert_eq!(kind(gone), io::ErrorKind::Other);
        let damaged = read(count, OFFSET + LEN, |_, to| {
            to[to.len() / 2] ^= 4;
            Ok(to.len())
        });
        assert_eq!(kind(damaged), io::ErrorKind::InvalidData);
        let cut = read(count, OFFSET + PART + 5, |_, to| Ok(to.len()));
        assert_eq!(kind(cut), io::ErrorKind::UnexpectedEof);
    }
}

/// io_uring reads `filed`; the fallback reads from `stored`. `count` lanes read three requests: the second is
/// short, and the last is a prefetch. If `gone`, the submitting thread ends before the reads are done. `None`
/// without io_uring.
fn flown(
    count: usize,
    (filed, stored): (&[u8], &[u8]),
    sums: bool,
    gone: bool,
) -> Option<(Vec<io::Result<Vec<u8>>>, usize)> {
    let path =
        std::env::temp_dir().join(format!("dollop-flown-{}-{count}-{sums}-{gone}", std::process::id()));
    std::fs::write(&path, filed).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    Ring::new(&file, 0, 1).ok()?;
    let storage = Arc::new(Bytes {
        bytes: stored.to_vec(),
        reads: AtomicUsize::new(0),
        reading: AtomicUsize::new(0),
        most: AtomicUsize::new(0),
        meet: AtomicBool::new(false),
        places: Mutex::default(),
        fault: |_, to| Ok(to.len()),
        file: Some(file),
    });
    let arena = Arena::new(3 * LEN + 3 * 4096, 4096).unwrap();
    let lanes = Lanes::new(count, storage.clone(), None).unwrap();
    assert_eq!(lanes.count(), count);
    let request = |expert: usize, len: usize| {
        let offset = OFFSET + expert * LEN;
        let checksum = sums.then(|| crc32fast::hash(&stored[offset..offset + len]));
        let slab = arena.alloc(len, End::Low).unwrap();
        Request { layer: 0, expert, plane: 0, offset: offset as u64, checksum, slab }
    };
    let submit = || {
        lanes.submit([request(0, LEN), request(1, 5000)], false);
        lanes.submit([request(2, LEN)], true);
    };
    if gone {
        thread::scope(|scope| scope.spawn(submit).join().unwrap())
    } else {
        submit()
    }
    let mut all: Vec<Option<io::Result<Vec<u8>>>> = vec![None, None, None];
    for _ in 0..3 {
        let landed = lanes.wait();
        let before = all[landed.expert].replace(landed.result.map(|slab| slab.to_vec()));
        assert!(before.is_none(), "a request lands once");
    }
    assert!(lanes.poll().is_none() && arena.free_bytes() == arena.bytes(), "every part came back");
    // Lanes that are dropped while reads are in flight free all memory.
    lanes.submit([request(0, LEN), request(2, LEN)], false);
    drop(lanes);
    assert_eq!(arena.free_bytes(), arena.bytes());
    let all = all.into_iter().flatten().collect();
    Some((all, storage.reads.load(Ordering::Relaxed)))
}

#[test]
fn the_system_reads_by_itself_and_what_it_does_not_is_read_again() {
    let bytes: Vec<u8> = (0..OFFSET + 3 * LEN).map(|i| ((i * 31) >> 4) as u8).collect();
    let want = |expert: usize, len: usize| &bytes[OFFSET + expert * LEN..][..len];
    let whole = |all: &[io::Result<Vec<u8>>]| {
        let lens = [LEN, 5000, LEN];
        all.iter().enumerate().all(|(e, read)| read.as_deref().is_ok_and(|read| read == want(e, lens[e])))
    };
    for count in [1, 3, 8] {
        for sums in [true, false] {
            let Some((all, reads)) = flown(count, (&bytes, &bytes), sums, false) else { return };
            assert!(whole(&all), "{count} lanes");
            assert_eq!(reads, 0, "{count} lanes: nobody else has to read");
            // Reads that the kernel cancels are read again.
            assert!(whole(&flown(count, (&bytes, &bytes), sums, true).unwrap().0), "{count} lanes");
        }
        // Only for io_uring the file ends early: the caller reads the rest.
        let cut = &bytes[..OFFSET + LEN / 2];
        let (all, reads) = flown(count, (cut, &bytes), true, false).unwrap();
        assert!(whole(&all) && reads > 0, "{count} lanes");
        // Corrupted in flight: the checksum detects it, and the parts are read again.
        let mut damaged = bytes.clone();
        damaged[OFFSET + PART + 9] ^= 1;
        damaged[OFFSET + LEN + 17] ^= 1;
        let (all, reads) = flown(count, (&damaged, &bytes), true, false).unwrap();
        assert!(whole(&all) && reads == 2, "{count} lanes: {reads} reads");
    }
}
