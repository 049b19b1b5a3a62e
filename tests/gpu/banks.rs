//! Gate 53: a layer with more experts than a kernel can bind at once. They lie in several buffers, and so do
//! their refinements. A token has the same logits as with one buffer, with one submission and one read-back.

use super::*;
use dollop_tests::with_refinements;

#[test]
fn gate_53_experts_in_several_buffers_are_those_in_one_and_stop_for_nobody() {
    if !has_gpu() {
        return;
    }
    let (_folder, path) = file_of(&Tiny::load("olmoe").with_experts(64));
    // Small chunks, so that experts need the largest buffers.
    let o = set!(EngineOptions { context: Some(32), chunk: Some(4), ..on_gpu() });
    let adaptive = Precision::Adaptive { quality: 4.0, floor: Level::B2 };
    let refined = o.clone().with_precision(adaptive);
    let refined = with_refinements(&path, refined, 0.6);
    for (o, bytes) in [(o, 256 << 10), (refined, 64 << 10)] {
        let run = |gpu_binding_bytes| {
            let engine =
                Engine::open(&path, &set!(EngineOptions { gpu_binding_bytes, ..o.clone() })).unwrap();
            let mut session = engine.session(SessionOptions::default()).unwrap();
            let mut all = session.logits(&[1, 2, 3, 4, 5, 6]).unwrap();
            let before = engine.gpu_stats().unwrap();
            (7..15).for_each(|id| all.extend(session.logits(&[id]).unwrap()));
            let [launches, submits, readbacks, _] = since(&engine.gpu_stats().unwrap(), &before);
            assert_eq!((submits, readbacks), (8, 8), "one of each a token");
            (
                all,
                launches,
                engine.stream_stats().map(|s| (s.upgrades, s.decisions)),
                engine.info().mode.clone(),
            )
        };
        let ((want, few, upgrades, mode), (got, many, again, same)) = (run(None), run(Some(bytes)));
        println!("{mode}: {few} and {many} launches, {upgrades:?}");
        assert!(got == want, "experts in several buffers give other logits");
        assert!(many > few, "they lie in one buffer: {few} and {many} launches");
        assert_eq!((upgrades, mode), (again, same));
        assert!(upgrades.is_none_or(|(n, _)| n > 0), "nobody has a plane more");
    }
}
