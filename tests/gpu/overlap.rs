//! Gate 52: a device is given the experts that it has while the others are read from storage; a streamed token waits for it
//! once a layer, and once for its logits.

use super::refined::with_faults;
use super::*;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

#[test]
fn gate_52_experts_that_are_there_are_computed_while_others_are_read() {
    if !has_gpu() {
        return;
    }
    let (engine, storage) = with_faults(&streaming(Precision::Exact(Level::B3), 0.6));
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&(0..12u32).map(|i| 1000 + 37 * i).collect::<Vec<_>>()).unwrap();
    let mut begun = 0;
    for id in (0..8u32).map(|i| 2000 + 37 * i) {
        let before = engine.gpu_stats().unwrap();
        // The first layer that lacks something waits until it is let go.
        storage.holds.store(true, Ordering::Relaxed);
        let mut ahead = 0;
        std::thread::scope(|scope| {
            let token = scope.spawn(|| session.logits(&[id]).unwrap());
            // While nothing comes from storage, every submission is a read-back's but those for experts that are there.
            let patience = Instant::now() + Duration::from_secs(2);
            while !token.is_finished() && Instant::now() < patience {
                let [_, submits, readbacks, _] = since(&engine.gpu_stats().unwrap(), &before);
                ahead = submits - readbacks;
                if ahead > 0 {
                    break;
                }
                sleep(Duration::from_millis(1));
            }
            storage.holds.store(false, Ordering::Relaxed);
        });
        begun += u64::from(ahead > 0);
        let [_, submits, readbacks, _] = since(&engine.gpu_stats().unwrap(), &before);
        assert_eq!(readbacks, engine.info().layers as u64 + 1);
        assert!(submits >= readbacks + ahead, "{submits} submissions");
    }
    assert!(begun >= 4, "{begun} tokens were begun while reads were held");
}
