//! Missing resources: memory, the requested adapter, the device itself, bindings as large as a matrix.

use super::*;
use crate::kernels::Feed;

#[test]
fn what_does_not_fit_is_an_error_and_not_a_crash() {
    let Some(b) = gpu() else { return };
    assert!(matches!(b.alloc(usize::MAX / 8), Err(Error::Device(_))));
    let huge = GpuBackend::new(&GpuOptions { adapter: Some(1000), ..GpuOptions::default() });
    assert!(matches!(huge, Err(Error::Device(_))));
    let wide = Router {
        experts: 5000,
        top_k: 1,
        renormalize: false,
        scale: 1.0,
        score: Score::Softmax,
        groups: None,
    };
    let logits = b.alloc(5000).unwrap();
    assert!(b.route(&logits, 1, wide.unbiased(), &mut Vec::new()).is_err());
}

#[test]
fn a_lost_device_is_an_error_from_then_on() {
    let Some(b) = gpu() else { return };
    let x = put(&b, &values(64, 1));
    assert_eq!(get(&b, &x), values(64, 1));
    let mut out = b.alloc(64).unwrap();
    b.gpu.device.destroy();
    b.copy(&x, 0, 64, &mut out);
    let mut back = vec![0.0; 64];
    assert!(matches!(b.download(&x, 0, &mut back), Err(Error::Device(_))));
    assert!(matches!(b.download(&x, 0, &mut back), Err(Error::Device(_))));
    assert!(b.alloc(16).is_err());
}

/// Products and rows of matrices that exceed what `b` can process at once.
fn cut_matrices_give_the_same_bits(b: &GpuBackend, whole: &GpuBackend) {
    for matrix in [nested(700, 576, 64, Level::B8, 1), plain(100, 576, 2)] {
        for tokens in [1, 9] {
            let x = values(tokens * 576, 3);
            let bias = values(matrix.rows(), 4);
            let weight = values(576, 5);
            let on = |b: &GpuBackend| {
                let input = put(b, &x);
                let (mut h, mut out) =
                    (b.alloc(tokens * 576).unwrap(), b.alloc(tokens * matrix.rows()).unwrap());
                let linear = Linear { matrix: &matrix, bias: Some(&bias), out: &mut out };
                let norm = Norm::rms(&weight, 1e-5);
                b.norm_linear(&input, norm, tokens, &mut h, &mut [linear]);
                let ids: Vec<u32> = (0..tokens as u32).map(|i| i * 97 % matrix.rows() as u32).collect();
                let mut rows = b.alloc(tokens * 576).unwrap();
                b.embed(&matrix, &ids, 1.0, &mut rows);
                [get(b, &out), get(b, &h), get(b, &rows)]
            };
            assert_eq!(on(b), on(whole), "a cut matrix gives other bits");
        }
    }
}

#[test]
fn what_no_kernel_can_read_at_once_is_cut() {
    // Less than the table, a layer's experts or the larger matrices take.
    let binding_bytes = Some(56 << 10);
    let Some(whole) = gpu() else { return };
    let small = GpuOptions { kv_single: true, binding_bytes, ..GpuOptions::default() };
    let Some(b) = gpu_with(&small) else { return };
    cut_matrices_give_the_same_bits(&b, &whole);
    let expert = an_expert(288, 200, Some(Level::B8), 7);
    let x = values(3 * 288, 9);
    let mut outs = Vec::new();
    for b in [&b, &whole] {
        let mut out = b.alloc(3 * 288).unwrap();
        b.ffn(&put(b, &x), 3, (&expert, Activation::Swiglu), &mut out);
        outs.push(get(b, &out));
    }
    assert_eq!(outs[0], outs[1], "a block by matrix gives other bits");

    let experts: Vec<Expert> = (0..5).map(|i| an_expert(96, 64, Some(Level::B8), 20 * i + 1)).collect();
    let router =
        Router { experts: 5, top_k: 2, renormalize: true, scale: 1.0, score: Score::Softmax, groups: None };
    let input = put(&b, &x[..96]);
    // If a token's experts lie in several buffers, they take two launches per buffer, and a sum.
    for tokens in [1, 9] {
        let on = |b: &GpuBackend| {
            let (h, logits) = (put(b, &values(tokens * 96, 8)), put(b, &values(tokens * 5, 2)));
            let (mut two, mut y) = (b.alloc(tokens * 2 * 96).unwrap(), b.alloc(tokens * 96).unwrap());
            let mut out = put(b, &values(tokens * 96, 3));
            let bufs = RoutedBufs {
                h: &h,
                logits: &logits,
                slots: &mut two,
                y: &mut y,
                x: Some(&mut out),
                history: None,
            };
            let before = b.stats().dispatches;
            assert!(b.routed(bufs, tokens, router.unbiased(), (0, &Feed::default()), &experts).unwrap());
            (get(b, &out), b.stats().dispatches - before)
        };
        let ((cut, launches), (want, one)) = (on(&b), on(&whole));
        assert_eq!((launches, one), if tokens == 1 { (9, 2) } else { (11, 7) });
        assert_eq!(cut, want, "experts in several buffers give other bits");
    }
    let slots: Vec<u32> = (0..5).collect();
    let jobs: Vec<ExpertJob> =
        (0..5).map(|i| ExpertJob { index: i as u32, expert: &experts[i], slots: &slots[i..=i] }).collect();
    let mut rows = b.alloc(5 * 96).unwrap();
    b.experts(
        &input,
        Routed { layer: 0, experts: 5, top_k: 5, tokens: 1, inputs: 0 },
        &Feed::default(),
        &jobs,
        &mut rows,
    );
    for (i, got) in get(&b, &rows).chunks_exact(96).enumerate() {
        close(&format!("expert {i}"), got, &feed_forward(&experts[i], &x[..96]), 2e-4);
    }
}

#[test]
fn compiled_kernels_are_kept_and_damaged_ones_ignored() {
    let folder = std::env::temp_dir().join(format!("dollop-pipelines-{}", std::process::id()));
    let options = GpuOptions {
        kv_single: true,
        pipelines: Some(folder.clone()),
        binding_bytes: None,
        ..GpuOptions::default()
    };
    let Some(first) = gpu_with(&options) else { return };
    let x = values(200, 1);
    let doubled = |b: &GpuBackend| {
        let (mut to, from) = (put(b, &x), put(b, &x));
        b.add(&mut to, &from, x.len());
        get(b, &to)
    };
    let want = doubled(&first);
    assert_eq!(first.stats().pipelines_read_bytes, 0);
    assert!(!folder.exists(), "written without being asked to");
    if !first.gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
        assert!(!first.save_pipelines().unwrap());
        return;
    }
    assert!(first.save_pipelines().unwrap());
    assert!(!first.save_pipelines().unwrap(), "nothing is new");
    let files: Vec<_> = std::fs::read_dir(&folder).unwrap().flatten().map(|f| f.path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    let second = gpu_with(&options).unwrap();
    assert!(second.stats().pipelines_read_bytes > 0);
    assert_eq!(doubled(&second), want);
    // Damaged, truncated, empty, and unrelated files.
    let whole = std::fs::read(file).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    for bytes in [&damaged[..], &whole[..whole.len() / 2], b"", &[0xff; 5000]] {
        std::fs::write(file, bytes).unwrap();
        let b = gpu_with(&options).unwrap();
        assert_eq!(b.stats().pipelines_read_bytes, 0);
        assert_eq!(doubled(&b), want);
        assert!(!b.failed());
        assert!(b.save_pipelines().unwrap(), "what is no use is replaced");
    }
    std::fs::remove_file(file).unwrap();
    std::fs::create_dir(file).unwrap();
    let b = gpu_with(&options).unwrap();
    assert_eq!(doubled(&b), want);
    assert!(matches!(b.save_pipelines(), Err(Error::Io { .. })));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "half a file is left");
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_is_more_than_a_dispatch_has_workgroups_is_cut_or_folded() {
    let Some(whole) = gpu() else { return };
    // 700 rows are 44 tiles.
    let few = GpuOptions { kv_single: true, max_groups: Some(20), ..GpuOptions::default() };
    let Some(b) = gpu_with(&few) else { return };
    cut_matrices_give_the_same_bits(&b, &whole);
    // Two matrices that would share a dispatch if the tiles of both fitted.
    let matrices = [nested(200, 64, 64, Level::B4, 1), nested(201, 64, 64, Level::B4, 2)];
    let x = values(64, 3);
    let both = |b: &GpuBackend| {
        let mut outs: Vec<GpuBuf> = matrices.iter().map(|m| b.alloc(m.rows()).unwrap()).collect();
        let mut linears: Vec<Linear<GpuBuf>> =
            matrices.iter().zip(&mut outs).map(|(matrix, out)| Linear { matrix, bias: None, out }).collect();
        let before = b.stats().dispatches;
        b.linear(&put(b, &x), 1, &mut linears);
        let results = outs.iter().map(|out| get(b, out)).collect::<Vec<_>>();
        (results, b.stats().dispatches - before)
    };
    let (cut, together) = (both(&b), both(&whole));
    assert_eq!((cut.1, together.1), (2, 1));
    assert_eq!(cut.0, together.0);
    // 5000 values are 40 workgroups: two rows of them.
    let x = values(5000, 4);
    let (mut sum, copy) = (put(&b, &x), put(&b, &x));
    b.add(&mut sum, &copy, x.len());
    assert_eq!(get(&b, &sum), x.iter().map(|x| x + x).collect::<Vec<_>>());
    // If there are more candidates than a dispatch takes, the host selects.
    let x = values(30_000, 5);
    let best = |b: &GpuBackend| {
        let mut out = b.alloc(80).unwrap();
        let before = b.stats().dispatches;
        let chosen = b.best(&put(b, &x), x.len(), 40, &mut out).unwrap();
        (chosen, b.stats().dispatches - before)
    };
    assert_eq!((best(&b), best(&whole)), ((false, 0), (true, 3)));
    // Rows of a norm are two rows of workgroups.
    let (x, weight) = (values(21 * 8, 6), values(8, 7));
    let normed = |b: &GpuBackend| {
        let mut out = b.alloc(21 * 8).unwrap();
        b.rms_norm(&put(b, &x), &weight, 1e-5, 21, &mut out);
        get(b, &out)
    };
    assert_eq!(normed(&b), normed(&whole));
    assert!(!b.failed());
    // A size that cannot be split is an error at the next read, not a panic.
    let mut out = put(&b, &x);
    b.gate_rows(&mut out, &put(&b, &values(21, 7)), 21, 8);
    assert!(
        matches!(b.download(&out, 0, &mut [0.0; 8]), Err(Error::Device(what)) if what.contains("workgroups"))
    );
}

#[test]
fn what_cannot_be_cut_is_an_error_and_no_panic() {
    let small = GpuOptions { kv_single: true, binding_bytes: Some(32 << 10), ..GpuOptions::default() };
    let failed = |b: &GpuBackend| {
        assert!(b.failed());
        let mut out = [0.0; 4];
        matches!(b.alloc(4).and_then(|buf| b.download(&buf, 0, &mut out)), Err(Error::Device(_)))
    };
    let Some(b) = gpu_with(&small) else { return };
    assert!(matches!(b.alloc(10_000), Err(Error::Device(_))), "activations");
    assert!(matches!(b.alloc_kv(1000, 4, [64; 2]), Err(Error::Device(_))), "a cache");
    assert!(!b.failed(), "nothing is wrong with the device");
    let expert = an_expert(288, 200, Some(Level::B8), 7);
    let job = [ExpertJob { index: 0, expert: &expert, slots: &[0] }];
    let mut slots = b.alloc(288).unwrap();
    let of = Routed { layer: 0, experts: 1, top_k: 1, tokens: 1, inputs: 0 };
    b.experts(&put(&b, &values(288, 1)), of, &Feed::default(), &job, &mut slots);
    assert!(failed(&b), "an expert");
    // Heads longer than the kernels support.
    let b = gpu().unwrap();
    let wide = MAX_HEAD + 2;
    let rope = RopeTable { name: 0, dims: 2, cos: vec![1.0; 4], sin: vec![0.0; 4] };
    let how = Placing {
        heads: 1,
        kv_heads: 1,
        head_dim: wide,
        q_norm: None,
        k_norm: None,
        v_norm: false,
        late_norms: false,
        latent: false,
        eps: 1e-5,
        limit: None,
        rope: &rope,
    };
    let buf = || put(&b, &vec![0.5; wide]);
    let (mut q, mut k, mut v, mut rotated) = (buf(), buf(), buf(), buf());
    let mut kv = b.alloc_kv(4, 1, [wide; 2]).unwrap();
    b.place(Projected { q: &mut q, k: &mut k, v: &mut v }, &how, (0, 1), (&mut kv, false), &mut rotated);
    assert!(failed(&b), "a head");
}
