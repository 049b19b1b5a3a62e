//! Gate 52: a device gets the resident experts while the others are read from storage. A streamed token waits
//! for the device once per layer, and once for its logits.

use super::refined::with_faults;
use super::*;

#[test]
fn gate_52_experts_that_are_there_are_computed_while_others_are_read() {
    if !has_gpu() {
        return;
    }
    let (engine, storage) = with_faults(&streaming(Precision::Exact(Level::B3), 0.6));
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&(0..12u32).map(|i| 1000 + 37 * i).collect::<Vec<_>>()).unwrap();
    let waits = || engine.streamer().unwrap().waits();
    let (mut begun, mut waited) = (0, 0);
    for id in (0..8u32).map(|i| 2000 + 37 * i) {
        let before = engine.gpu_stats().unwrap();
        // The first layer without an expert waits until the latch opens. By then every submission belongs to
        // a read-back, except those for resident experts.
        let mut ahead = 0;
        let look = || {
            let [_, submits, readbacks, _] = since(&engine.gpu_stats().unwrap(), &before);
            (ahead, waited) = (submits - readbacks, waited + 1);
        };
        storage.late(&waits, || drop(session.logits(&[id]).unwrap()), look);
        begun += u64::from(ahead > 0);
        let [_, submits, readbacks, _] = since(&engine.gpu_stats().unwrap(), &before);
        assert_eq!(readbacks, engine.info().layers as u64 + 1);
        assert!(submits >= readbacks + ahead, "{submits} submissions");
    }
    storage.hold(false);
    assert!(begun >= 4, "{begun} tokens were begun while reads were held, of {waited} that waited");
}
