//! Gate 56: optimizations and measurements that change no result.

use super::*;

/// Feeds one token, and returns its logits.
fn feed(session: &mut Session, token: u32) -> Vec<f32> {
    session.logits(&[token]).unwrap().remove(0)
}

/// Calls of two sessions: one alone past the end of a tile of positions, both in turn, one that rewinds.
/// Returns all logits, and for each part the number of tokens whose commands were recorded ahead.
fn a_day(engine: &Engine, vocab: u32) -> (Vec<Vec<f32>>, [u64; 3]) {
    let options = SessionOptions::default().with_context(160);
    let (mut a, mut b) = (engine.session(options).unwrap(), engine.session(options).unwrap());
    let token = |i: u32| (i * 7 + 3) % vocab;
    let mut logits = Vec::new();
    let mut ahead = Vec::new();
    let count = |ahead: &mut Vec<u64>| ahead.push(engine.gpu_stats().unwrap().ahead);
    let prompt: Vec<u32> = (0..120).map(token).collect();
    a.best(&prompt, 1).unwrap();
    count(&mut ahead);
    logits.extend((120..140).map(|i| feed(&mut a, token(i))));
    count(&mut ahead);
    b.best(&prompt[..5], 1).unwrap();
    for i in 0..4 {
        logits.push(feed(&mut a, token(i)));
        logits.push(feed(&mut b, token(i + 1)));
    }
    count(&mut ahead);
    a.rewind(50);
    logits.extend((0..4).map(|i| feed(&mut a, token(i))));
    count(&mut ahead);
    (logits, [1, 2, 3].map(|i| ahead[i] - ahead[i - 1]))
}

#[test]
fn gate_56_commands_made_ahead_and_a_clock_change_nothing() {
    if !has_gpu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = Tiny::load("olmoe");
    tiny.config["max_position_embeddings"] = 160.into();
    tiny.write_folder(folder.path());
    let open = |gpu_clock| {
        Engine::open_reference(folder.path(), &set!(EngineOptions { gpu_clock, ..on_gpu() })).unwrap()
    };
    let (engine, timed) = (open(false), open(true));
    let vocab = engine.info().vocab as u32;
    let (logits, ahead) = a_day(&engine, vocab);
    // All tokens except the first after a prompt, and position 128, which begins a tile and takes one more
    // launch; none while two sessions alternate; all but the first after the rewind.
    assert_eq!(ahead, [18, 0, 3]);
    assert!(engine.gpu_stats().unwrap().kernels.is_empty());

    // With a clock nothing is recorded ahead: every launch is timed.
    let (same, none) = a_day(&timed, vocab);
    assert_eq!(none, [0; 3]);
    assert_eq!(logits, same, "logits are those without");
    let stats = timed.gpu_stats().unwrap();
    assert_eq!(stats.kernels.iter().map(|k| k.launches).sum::<u64>(), stats.dispatches);
    for kernel in ["GateUp", "DownSum", "AttendOne", "AttendMerge", "Route", "Linear"] {
        let times = stats.kernels.iter().filter(|k| k.kernel.split(',').next() == Some(kernel));
        assert!(times.map(|k| k.nanoseconds).sum::<u64>() > 0, "{kernel}: {:?}", stats.kernels);
    }
}
