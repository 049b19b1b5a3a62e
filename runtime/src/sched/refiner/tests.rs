//! Gate 26: which expert gets one more plane is a function of the choices. The plane takes effect when it should, and
//! stays until another is clearly worth more. A plane that cannot be read is one error and changes nothing else.

use super::*;
use crate::experts::PlaneSlabs;
use crate::quant::{Fit, PLANES, Shape};
use std::sync::Condvar;
use std::thread;
use std::time::Duration;

const EXPERTS: usize = 6;
const LAYERS: usize = 2;
const STRIDE: usize = 4096;

/// Slabs whose contents name their expert. Every read blocks while `hold` is set, or fails while `fails` is.
#[derive(Default)]
struct Slabs {
    held: Mutex<bool>,
    let_go: Condvar,
    fails: AtomicBool,
}

impl Slabs {
    fn hold(&self, held: bool) {
        *self.held.lock().unwrap() = held;
        self.let_go.notify_all();
    }
}

impl Storage for Slabs {
    fn read_at(&self, offset: u64, to: &mut [u8]) -> io::Result<usize> {
        // The limit turns a hang into a failure.
        let limit = Duration::from_secs(600);
        drop(self.let_go.wait_timeout_while(self.held.lock().unwrap(), limit, |held| *held).unwrap());
        if self.fails.load(Ordering::Relaxed) {
            return Err(io::Error::other("EIO"));
        }
        to.fill((offset / STRIDE as u64) as u8);
        Ok(to.len())
    }

    fn access(&self) -> Access {
        Access::Buffered
    }
}

/// Layer 0 is dense; the experts of the others have equal planes 0 to 2.
fn tables() -> Vec<Option<LayerExperts>> {
    let layer = |layer: usize| LayerExperts {
        gated: true,
        shapes: [Shape::new(16, 32, 32).unwrap(); 3],
        rotations: [None; 3],
        fits: vec![[[Fit { alpha: 1.0, beta: 0.5 }; PLANES]; 3]; EXPERTS],
        errors: vec![[0.1, 0.03, 0.01, 0.0, 0.0]; EXPERTS],
        planes: (0..3)
            .map(|_| PlaneSlabs {
                offset: (layer * EXPERTS * STRIDE) as u64,
                stride: STRIDE,
                checksums: (0..EXPERTS)
                    .map(|e| crc32fast::hash(&[(layer * EXPERTS + e) as u8; STRIDE]))
                    .collect(),
                slots: Vec::new(),
            })
            .collect(),
    };
    [None].into_iter().chain((0..LAYERS).map(|l| Some(layer(l)))).collect()
}

fn refiner(slots: usize, storage: Arc<Slabs>) -> Refiner {
    let how = RefineOptions { level: Level::B2, slots, lanes: 2, verify: Verify::Always, half_life: 4.0 };
    let base = AllResident::new(vec![Vec::new(); LAYERS + 1], Some(Level::B2));
    Refiner::new("file".into(), storage, tables(), base, 512, how, None).unwrap()
}

/// Begins a call: returns the changes that take effect before it, as (slot, expert).
fn begin(r: &Refiner) -> Result<Vec<(usize, u32)>> {
    let mut changes = Vec::new();
    r.begin(&mut |c| {
        assert_eq!(c.layer, 1);
        assert!(c.plane.iter().all(|&b| b == c.expert as u8) && c.plane.len() == STRIDE);
        changes.push((c.slot, c.expert));
        Ok(())
    })?;
    Ok(changes)
}

/// Ends a call of one token that chose these experts of layer 1.
fn end(r: &Refiner, chosen: &[(u32, f32)]) {
    r.end(1, 1, &mut chosen.iter().map(|&(expert, gate)| Chosen { layer: 1, expert, gate }));
}

/// A call of one token with these choices: returns the changes that took effect before it.
fn token(r: &Refiner, chosen: &[(u32, f32)]) -> Result<Vec<(usize, u32)>> {
    let changes = begin(r)?;
    end(r, chosen);
    Ok(changes)
}

/// The same, but every requested read completes before the call begins.
fn prompt_token(r: &Refiner, chosen: &[(u32, f32)]) -> Vec<(usize, u32)> {
    let mut state = r.lock();
    while state.pending > 0 {
        let landed = r.lanes.wait();
        state.land(landed);
    }
    drop(state);
    token(r, chosen).unwrap()
}

/// The same, but no read completes before the call waits for it.
fn late_token(r: &Refiner, slabs: &Slabs, chosen: &[(u32, f32)]) -> Vec<(usize, u32)> {
    let before = r.waits();
    let changes = thread::scope(|scope| {
        let call = scope.spawn(|| begin(r));
        while !call.is_finished() && r.waits() == before {
            thread::yield_now();
        }
        // Reads without a wait stay in flight.
        if r.waits() > before {
            slabs.hold(false);
        }
        call.join().unwrap().unwrap()
    });
    slabs.hold(true);
    end(r, chosen);
    changes
}

/// A started refiner. No expert is hot, so its slots go to the first experts.
fn started(slots: usize) -> (Refiner, Arc<Slabs>) {
    let storage = Arc::new(Slabs::default());
    let r = refiner(slots, storage.clone());
    assert!(token(&r, &[(5, 1.0)]).unwrap().is_empty());
    let mut filled = Vec::new();
    r.start(&mut |c| {
        filled.push((c.layer, c.slot, c.expert as usize));
        Ok(())
    })
    .unwrap();
    filled.sort_unstable();
    let all: Vec<_> = (1..=LAYERS).flat_map(|l| (0..slots).map(move |e| (l, e, e))).collect();
    assert_eq!(filled, all);
    let stats = r.stats();
    assert_eq!((stats.bytes_ahead, stats.bytes_wanted), ((all.len() * STRIDE) as u64, 0));
    (r, storage)
}

#[test]
fn gate_26_a_plane_takes_effect_two_calls_later_and_no_sooner() {
    let (r, _) = started(2);
    assert!(token(&r, &[(3, 0.7), (1, 0.3)]).unwrap().is_empty());
    assert!(token(&r, &[(3, 0.7), (1, 0.3)]).unwrap().is_empty(), "a call too early");
    let stats = r.stats();
    assert_eq!(stats.upgrades, 0);
    assert!((stats.mean_bits() - 2.3).abs() < 1e-6, "{stats:?}");
    // The colder of the first two is evicted. Experts that were used before the start are not hot.
    assert_eq!(token(&r, &[(3, 0.7), (1, 0.3)]).unwrap(), [(0, 3)]);
    let stats = r.stats().since(&stats);
    assert_eq!((stats.upgrades, stats.downgrades, stats.mean_bits()), (1, 1, 3.0), "{stats:?}");
    assert_eq!((stats.planes_wanted, stats.planes_hit), ([2, 2, 0, 0, 0], [2, 2, 0, 0, 0]));
    assert_eq!(r.stats().bytes_wanted, STRIDE as u64);
    // `held` returns the same.
    let held = &r.held()[1];
    assert_eq!(held[3], Held { bits: 3, reads: 1 });
    let finer: u32 = held.iter().filter(|e| e.bits == 3).map(|e| e.reads).sum();
    assert_eq!((finer, held.iter().map(|e| e.reads).sum::<u32>(), held[5].bits), (2, 3, 2));
}

#[test]
fn gate_26_places_go_to_who_is_clearly_hotter_and_do_not_flap() {
    let (r, _) = started(1);
    let mut changes = Vec::new();
    // Two experts alternate: one of them has the slot, and keeps it.
    for i in 0..24u32 {
        changes.extend(token(&r, &[(i % 2, 0.5), (2, 0.1)]).unwrap());
    }
    assert_eq!(changes, []);
    // Another expert takes the slot.
    for _ in 0..12 {
        changes.extend(token(&r, &[(4, 0.9)]).unwrap());
    }
    assert_eq!(changes, [(0, 4)]);
    assert_eq!(r.stats().downgrades, 1);
    // Calls without choices only decay heat: nothing changes.
    for _ in 0..4 {
        r.begin(&mut |_| panic!("nothing was decided")).unwrap();
        r.end(100, 0, &mut std::iter::empty());
    }
}

#[test]
fn gate_26_decisions_do_not_depend_on_when_reads_land() {
    let run = |late: bool| {
        let (r, storage) = started(3);
        storage.hold(late);
        let (mut changes, mut seed) = (Vec::new(), 1u32);
        for _ in 0..60 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let hot = (seed >> 28) % EXPERTS as u32;
            let chosen = [(hot, 0.6), ((hot + 1) % 6, 0.4)];
            changes.push(if late { late_token(&r, &storage, &chosen) } else { prompt_token(&r, &chosen) });
        }
        storage.hold(false);
        let stats = r.stats();
        assert_eq!(stats.stalls > 0, late, "{stats:?}");
        (changes, stats.decisions, stats.gate_mass_bits.to_bits())
    };
    let (prompt, late) = (run(false), run(true));
    assert_eq!(prompt, late);
    assert!(prompt.0.concat().len() > 6 && prompt.1 != 0);
}

#[test]
fn gate_26_a_late_plane_is_waited_for_and_counted() {
    let (r, storage) = started(2);
    storage.hold(true);
    token(&r, &[(5, 1.0)]).unwrap();
    token(&r, &[(5, 1.0)]).unwrap();
    assert_eq!(r.stats().stalls, 0);
    assert_eq!(late_token(&r, &storage, &[(5, 1.0)]), [(1, 5)]);
    storage.hold(false);
    let stats = r.stats();
    assert!(stats.stalls == 1 && stats.wait_ns > 0, "{stats:?}");
}

#[test]
fn gate_26_what_cannot_be_read_is_an_error_once_and_the_place_stays_whose_it_was() {
    let (r, storage) = started(1);
    for _ in 0..3 {
        token(&r, &[(0, 1.0)]).unwrap();
    }
    storage.fails.store(true, Ordering::Relaxed);
    let mut errors = Vec::new();
    for _ in 0..10 {
        match token(&r, &[(1, 1.0)]) {
            Ok(changes) => assert!(changes.is_empty()),
            Err(e) => errors.push(e.to_string()),
        }
    }
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("file") && errors[0].contains("EIO"), "{errors:?}");
    let before = r.stats();
    // The disk works again: other experts are refined in the same slot, which its expert kept until then.
    storage.fails.store(false, Ordering::Relaxed);
    token(&r, &[(0, 1.0)]).unwrap();
    assert!(r.stats().since(&before).mean_bits() > 2.9, "{:?}", r.stats());
    let mut changes = Vec::new();
    for _ in 0..12 {
        changes.extend(token(&r, &[(2, 1.0)]).unwrap());
    }
    assert_eq!(changes, [(0, 2)]);
    // A failure of the device has the same effect.
    let mut tries = 0;
    for _ in 0..12 {
        let failed = r.begin(&mut |_| {
            tries += 1;
            Err(Error::Device("gone".into()))
        });
        assert_eq!(failed.is_err(), tries == 1);
        if tries == 1 {
            break;
        }
        r.end(1, 1, &mut [Chosen { layer: 1, expert: 3, gate: 1.0 }].into_iter());
    }
    assert_eq!((tries, r.stats().upgrades), (1, 1));
}

#[test]
fn gate_26_numbers_that_are_none_change_nothing() {
    let (r, _) = started(2);
    for _ in 0..4 {
        let nan = [(4, f32::NAN), (5, f32::INFINITY), (3, 0.5)];
        let changes = token(&r, &nan).unwrap();
        assert!(changes.iter().all(|c| c.1 == 3));
    }
    assert!(r.stats().gate_mass.is_finite() && r.stats().upgrades == 1);
}

#[test]
fn gate_26_whoever_stops_waits_for_its_reads_and_asks_for_no_more() {
    let (r, slabs) = started(1);
    for _ in 0..4 {
        token(&r, &[(3, 1.0)]).unwrap();
    }
    // One read is in flight.
    slabs.hold(true);
    let mut tokens = 0;
    while r.lock().pending == 0 {
        token(&r, &[(5, 1.0)]).unwrap();
        tokens += 1;
        assert!(tokens < 12, "nothing is read");
    }
    let (stats, before) = (r.stats(), r.waits());
    thread::scope(|scope| {
        let stop = scope.spawn(|| r.stop());
        while r.waits() == before {
            assert!(!stop.is_finished(), "it did not wait");
            thread::yield_now();
        }
        slabs.hold(false);
    });
    assert!(r.refine().is_none() && r.lock().pending == 0 && r.lock().arena.is_none());
    // A token that another session was computing changes nothing.
    slabs.fails.store(true, Ordering::Relaxed);
    for _ in 0..4 {
        assert_eq!(token(&r, &[(0, 1.0)]).unwrap(), []);
    }
    let StreamStats { upgrades, bytes_wanted, decisions, .. } = r.stats();
    assert_eq!((upgrades, bytes_wanted, decisions), (stats.upgrades, stats.bytes_wanted, stats.decisions));
    r.stop();
}
