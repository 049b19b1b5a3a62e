//! Gate 30: experts streamed to a GPU exist once, there. The host has only the planned staging memory; failed
//! reads leave nothing behind; and when the GPU is lost, its experts are read again. Gate 54: the same for
//! the weights beside them, and weights on both count for both.

use super::refined::with_faults;
use super::*;
use dollop::internal::GpuFault;

/// Bytes of experts on the host, bytes of everything on the device, and the limit of both.
fn held(engine: &Engine) -> [u64; 3] {
    let host = engine.streamer().unwrap().host_bytes() as u64;
    let plan = engine.memory_plan();
    let rest = plan.dense_bytes + plan.kv_bytes + plan.scratch_bytes;
    [host, engine.gpu_stats().map_or(0, |s| s.held_bytes), plan.budget.unwrap() - plan.overhead_bytes - rest]
}

#[test]
fn gate_30_streamed_experts_are_held_once() {
    if !has_gpu() {
        return;
    }
    let exact = Precision::Exact(Level::B3);
    let adaptive = Precision::Adaptive { quality: 4.0, floor: Level::B2 };
    let whole =
        set!(EngineOptions { precision: Some(exact), context: Some(64), chunk: Some(32), ..on_gpu() });
    let want = outcomes(&Engine::open(short_model(), &whole).unwrap());
    let mut last = None;
    for (precision, share) in [(exact, 0.0), (exact, 0.8), (adaptive, 0.5), (exact, 0.5)] {
        let o = streaming(precision, share);
        let engine = Engine::open(short_model(), &o).unwrap();
        let plan = engine.memory_plan().clone();
        assert!(plan.total_bytes() <= plan.budget.unwrap());
        let at = format!("{precision}, {share}: {plan:?}");
        // Not a second cache: a few experts of all layers together, and much less than the device has.
        let one = plan.levels.last().unwrap();
        let one = one.touched_bytes / (engine.info().experts_used * engine.info().layers) as u64;
        let [host, _, experts] = held(&engine);
        assert!(plan.staging_bytes <= (experts / 8).max(2 * one), "{at}");
        assert!(plan.expert_bytes + plan.staging_bytes <= experts, "{at}");
        assert!(host > 0 && host <= plan.staging_bytes, "{host} bytes, {at}");
        let got = outcomes(&engine);
        let [after, device, experts] = held(&engine);
        let others = plan.dense_bytes + plan.kv_bytes + plan.scratch_bytes;
        assert!(after == host && host + device <= experts + others, "{host} and {device} bytes, {at}");
        let stats = engine.stream_stats().unwrap();
        assert!(stats.evictions > 0 && stats.bytes_wanted > host, "{stats:?}");
        // All hits were on the device: the host no longer has the planes.
        assert!(stats.planes_hit[0] > 0 || share == 0.0, "{stats:?}");
        match precision {
            Precision::Exact(_) => assert!(got == want, "{at}: another result than the resident model's"),
            Precision::Adaptive { .. } => {
                assert!(stats.mean_bits() > 2.05 && stats.mean_bits() < 6.0, "{stats:?}")
            }
        }
        last = Some((o, engine));
    }

    // A warm start uploads the hottest, and also leaves nothing on the host.
    let (o, cold) = last.unwrap();
    let warm = Engine::open(short_model(), &o).unwrap();
    warm.warm_start(&cold.streamer().unwrap().heat()).unwrap();
    let (start, host) = (warm.stream_stats().unwrap(), held(&warm)[0]);
    assert!(
        start.bytes_ahead > host && start.bytes_wanted == 0 && start.planes_wanted == [0; 5],
        "{start:?}"
    );
    assert!(outcomes(&warm) == want);
    let (cold, warm) = (cold.stream_stats().unwrap(), warm.stream_stats().unwrap());
    assert!(warm.bytes_wanted < cold.bytes_wanted, "{warm:?} {cold:?}");

    // A read that fails is an error, and leaves neither a part of an expert on the device nor anything on the host.
    let o = streaming(exact, 0.3);
    let (engine, storage) = with_faults(&o);
    let (mut session, mut failures) = (engine.session(SessionOptions::default()).unwrap(), 0);
    let (ids, mut at, mut got) = (noise(TOKENS as u32), 0, Vec::new());
    while at < TOKENS {
        let next = if at == 0 { 0..PROMPT } else { at..at + 1 };
        storage.fail(true);
        let result = outcome(&mut session, &ids[next.clone()]).or_else(|e| {
            assert!(matches!(e, Error::Io { .. }), "{e}");
            failures += 1;
            storage.fail(false);
            outcome(&mut session, &ids[next.clone()])
        });
        // Possibly everything was resident already.
        got.push(result.unwrap());
        at = next.end;
    }
    assert!(failures > 0, "nothing was read");
    assert!(got == want, "a failed read shows in a result");

    // The device is lost: an empty cache on the host, with all the memory that is left, and reads from the file.
    drop(session);
    let engine = Engine::open(short_model(), &o).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.best(&ids[..PROMPT], 1).unwrap();
    let (before, planned) = (engine.stream_stats().unwrap(), engine.memory_plan().clone());
    engine.lose_gpu(1, GpuFault::Lost);
    session.best(&ids[PROMPT..], 1).unwrap();
    let (plan, after) = (engine.memory_plan(), engine.stream_stats().unwrap());
    assert!(engine.lost().is_some() && !plan.gpu && plan.staging_bytes == 0, "{plan:?}");
    assert!(plan.total_bytes() <= plan.budget.unwrap() && planned.staging_bytes > 0);
    let [host, device, experts] = held(&engine);
    assert!(device == 0 && host > planned.staging_bytes && host <= experts, "{host} bytes, {plan:?}");
    // The earlier tokens were computed again, with experts that were all read again.
    assert!(after.bytes_wanted > before.bytes_wanted + planned.staging_bytes, "{before:?} {after:?}");
    assert!(!engine.info().mode.contains("on the device"), "{}", engine.info().mode);
}

/// Resident bytes of a file's mapping.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn mapped(path: &Path) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut bytes, mut inside, mut seen) = (0, false, 0);
    for line in maps.lines() {
        // The first line of a mapping begins with its addresses.
        if line.split_once('-').is_some_and(|(start, _)| u64::from_str_radix(start, 16).is_ok()) {
            inside = line.ends_with(path.to_str().unwrap());
            seen += usize::from(inside);
        } else if let Some(kb) = line.strip_prefix("Rss:").filter(|_| inside) {
            bytes += kb.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10;
        }
    }
    assert!(seen > 0, "{} is not mapped", path.display());
    bytes
}

#[test]
#[cfg(any(target_os = "linux", target_os = "android"))]
fn gate_54_weights_beside_streamed_experts_are_held_once() {
    if !has_gpu() {
        return;
    }
    // A file that no other test maps: pages of several mappings would stay resident.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::copy(short_model(), &path).unwrap();
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    let engine = Engine::open(&path, &streaming(Precision::Exact(Level::B3), 0.3)).unwrap();
    let (dense, device) = (engine.memory_plan().dense_bytes, engine.gpu_stats().unwrap().held_bytes);
    let opened = mapped(&path);
    outcomes(&engine);
    let after = mapped(&path);
    println!("of {dense} bytes {opened} are mapped when the model is open, {after} after some tokens");
    assert!(device > dense / 2, "{device} bytes on the device");
    assert!(opened < dense / 4 && after < dense / 4, "{opened} and {after} bytes of {dense} are mapped");
}

#[test]
fn gate_54_weights_that_host_and_device_have_are_counted_twice() {
    let tiny = Tiny::load("olmoe").with_experts(64);
    let (_folder, path) = file_of(&tiny);
    let dense = |backend| {
        let o = EngineOptions::default().with_backend(backend);
        Engine::plan(&path, &o).unwrap().dense_bytes
    };
    // Routers and norms stay f32.
    let small = |name: &str| name.ends_with("mlp.gate.weight") || name.ends_with("norm.weight");
    let values: usize = tiny.tensors.iter().filter(|t| small(&t.0)).map(|t| t.2.len()).sum();
    assert!(values > 2 * 64 * 64, "{values} values");
    let (device, host) = (dense(BackendChoice::Gpu(None)), dense(BackendChoice::Cpu));
    assert!(device >= host + 4 * values as u64, "{device} bytes with a device, {host} without");
}
