//! The kernels between products, at their limits, against f64: `route`, `group`, `combine`, the `down` that
//! sums a token's experts, and norms around the 128 values that a workgroup reads at a time.

use super::*;
use crate::kernels::Feed;

/// The relative error of a gate: `exp` may be off by 3 + 2|x| units in the last place, and each of a sum's 1024 terms
/// adds half a unit.
const GATES: f64 = 1e-4;

/// `route` in f64, for one token.
fn chosen(logits: &[f32], router: &Router) -> Vec<(u32, f64)> {
    let mut order: Vec<u32> = (0..router.experts as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let exp = |e: u32| (f64::from(logits[e as usize]) - f64::from(logits[order[0] as usize])).exp();
    let total: f64 = order.iter().map(|&e| exp(e)).sum();
    let best = &order[..router.top_k];
    let sum = if router.renormalize { best.iter().map(|&e| exp(e)).sum() } else { total };
    best.iter().map(|&e| (e, exp(e) / sum * f64::from(router.scale))).collect()
}

#[test]
fn routing_at_its_limits() {
    let Some(b) = gpu() else { return };
    let limits = [(MAX_EXPERTS, MAX_TOP_K), (MAX_EXPERTS, 1), (MAX_EXPERTS - 1, 63), (MAX_TOP_K, MAX_TOP_K)];
    let strides = [(127, 8), (128, 8), (129, 8), (1, 1)];
    let tokens = 3;
    for (experts, top_k) in limits.into_iter().chain(strides) {
        let smooth = values(tokens * experts, 3);
        // Ties among the chosen experts, and between them and others; only ties; weights that underflow.
        let coarse = smooth.iter().map(|x| (4.0 * x).round() / 4.0).collect();
        let spread = smooth.iter().map(|x| 100.0 * x).collect();
        let equal = vec![0.25; tokens * experts];
        for (what, logits) in [("values", smooth), ("ties", coarse), ("equals", equal), ("spread", spread)] {
            for renormalize in [false, true] {
                let router =
                    Router { experts, top_k, renormalize, scale: 1.5, score: Score::Softmax, groups: None };
                let mut got = Vec::new();
                b.route(&put(&b, &logits), tokens, router.unbiased(), &mut got).unwrap();
                let want = logits.chunks_exact(experts).flat_map(|l| chosen(l, &router));
                let at = format!("{what}, {top_k} of {experts}, renormalized {renormalize}");
                assert_eq!(got.len(), tokens * top_k, "{at}");
                for (i, (got, (expert, gate))) in got.iter().zip(want).enumerate() {
                    assert_eq!(got.expert, expert, "{at}, slot {i}");
                    // A weight below the smallest normal number may be zero.
                    let bound = GATES * gate + f64::from(router.scale * f32::MIN_POSITIVE);
                    let g = f64::from(got.gate);
                    assert!((g - gate).abs() <= bound, "{at}, slot {i}: {g} instead of {gate}");
                }
            }
        }
    }
    // One more expert than the kernels support.
    let logits = b.alloc(MAX_EXPERTS + 1).unwrap();
    for (experts, top_k) in [(MAX_EXPERTS + 1, 1), (MAX_EXPERTS, MAX_TOP_K + 1)] {
        let router =
            Router { experts, top_k, renormalize: true, scale: 1.0, score: Score::Softmax, groups: None };
        assert!(matches!(b.route(&logits, 1, router.unbiased(), &mut Vec::new()), Err(Error::Device(_))));
    }
}

/// Words as the bits of a buffer's values.
fn put_words(b: &GpuBackend, words: &[u32]) -> GpuBuf {
    let mut buf = b.alloc(words.len()).unwrap();
    b.upload(&mut buf, 0, bytemuck::cast_slice(words));
    buf
}

/// Sorts choices on the device, with one job more than needed, which no kernel may write.
fn grouped(b: &GpuBackend, choices: &[u32], experts: usize, jobs: usize) -> Vec<[u32; JOB_WORDS]> {
    // A layer's entries lie after those of other layers, and each contains its expert's index.
    const FIRST: u32 = 3;
    let entry = |e: u32| (0..ENTRY_WORDS as u32).map(move |w| e << 8 | w);
    let table: Vec<u32> = (0..FIRST + experts as u32).flat_map(entry).collect();
    let pairs: Vec<u32> = choices.iter().flat_map(|&e| [e, 1.0f32.to_bits()]).collect();
    let (pairs, table) = (put_words(b, &pairs), put_words(b, &table));
    let out = put_words(b, &vec![u32::MAX - 1; (jobs + 1) * JOB_WORDS]);
    let (experts, slots) = (experts as u32, choices.len() as u32);
    let params = GroupParams { experts, slots, jobs: jobs as u32, table: FIRST };
    let memory = [&pairs.memory, &table.memory, &out.memory];
    b.lock().recorder.run(&b.gpu, Variant::default(), &params, &memory, [1, 1]);
    let words: Vec<u32> = get(b, &out).iter().map(|w| w.to_bits()).collect();
    let (jobs, behind) = words.split_at(jobs * JOB_WORDS);
    assert!(behind.iter().all(|&w| w == u32::MAX - 1), "something behind the last job was written");
    jobs.chunks_exact(JOB_WORDS)
        .map(|job| {
            let mut job: [u32; JOB_WORDS] = job.try_into().unwrap();
            if job[JOB_PLACE] != NOWHERE {
                let whose = (job[0] >> 8) - FIRST;
                assert!(job[..ENTRY_WORDS].iter().copied().eq(entry(whose + FIRST)), "a job of {whose}");
                job[0] = whose;
            }
            job
        })
        .collect()
}

#[test]
fn choices_are_sorted_into_jobs() {
    let Some(b) = gpu() else { return };
    for (experts, tokens, top_k) in
        [(1, 1, 1), (1, 9, 1), (5, 23, 3), (128, 16, 8), (129, 17, 8), (1024, 3, 64), (1024, MAX_TOKENS, 64)]
    {
        let slots = tokens * top_k;
        // Spread over all experts, nearly all to one, and all to the last.
        let spread = |s: usize| (s as u32).wrapping_mul(2_654_435_761) >> 7;
        let crowded = |s: usize| if s.is_multiple_of(8) { spread(s) } else { 0 };
        let last = |_| experts as u32 - 1;
        for (what, of) in
            [("spread", &spread as &dyn Fn(usize) -> u32), ("crowded", &crowded), ("last", &last)]
        {
            let choices: Vec<u32> = (0..slots).map(|s| of(s) % experts as u32).collect();
            let jobs = grouped(
                &b,
                &choices,
                experts,
                crate::kernels::gpu::operations::most_jobs(experts, tokens, top_k),
            );
            let at = format!("{what}, {top_k} of {experts}, {tokens} tokens");
            let mut seen = vec![false; slots];
            let (mut before, mut counts) = (None, vec![0; experts]);
            let used = jobs.iter().position(|job| job[JOB_PLACE] == NOWHERE).unwrap_or(jobs.len());
            assert!(jobs[used..].iter().all(|job| job[JOB_PLACE] == NOWHERE), "{at}: a job behind the last");
            for job in &jobs[..used] {
                let (whose, count) = (job[0] as usize, job[JOB_COUNT] as usize);
                assert!((1..=MANY as usize).contains(&count), "{at}: {count} slots");
                // Jobs come in the order of experts, and only an expert's last job has room.
                assert!(
                    before.is_none_or(|b: (usize, usize)| b.0 < whose || b == (whose, MANY as usize)),
                    "{at}"
                );
                before = Some((whose, count));
                counts[whose] += count;
                for &slot in &job[JOB_SLOTS..JOB_SLOTS + count] {
                    let slot = slot as usize;
                    assert_eq!(choices[slot] as usize, whose, "{at}: slot {slot}");
                    assert!(!std::mem::replace(&mut seen[slot], true), "{at}: slot {slot} comes twice");
                }
            }
            assert_eq!(counts.iter().sum::<usize>(), slots, "{at}: a slot is nobody's");
        }
    }
}

#[test]
fn slots_are_weighted_and_added() {
    let Some(b) = gpu() else { return };
    for d in [1, 127, 128, 129, 255, 256, 257, 2049] {
        for (top_k, tokens) in [(1, 1), (2, 9), (8, 3), (MAX_TOP_K, 2)] {
            let mut slots = values(tokens * top_k * d, 3);
            let mut gates = values(tokens * top_k, 4);
            // The row of an expert that was not computed may contain anything.
            if top_k > 1 {
                gates[1] = 0.0;
                slots[d..2 * d].fill(f32::NAN);
            }
            let choices: Vec<Choice> = gates.iter().map(|&gate| Choice { expert: 0, gate }).collect();
            let mut out = b.alloc(tokens * d).unwrap();
            b.combine(&put(&b, &slots), &choices, top_k, d, &mut out);
            for (t, got) in get(&b, &out).chunks_exact(d).enumerate() {
                let (gates, slots) = (&gates[t * top_k..][..top_k], &slots[t * top_k * d..][..top_k * d]);
                let sum = |col: usize| {
                    let ranks = gates.iter().zip(slots.chunks_exact(d)).filter(|(gate, _)| **gate != 0.0);
                    let terms = ranks.map(|(&gate, y)| f64::from(gate) * f64::from(y[col]));
                    terms.fold((0.0, 0.0), |(sum, all), term| (sum + term, all + term.abs()))
                };
                let want: Vec<_> = (0..d).map(sum).collect();
                near(&format!("{d} columns, token {t} of {tokens}, {top_k} ranks"), got, &want, SUMS);
            }
        }
    }
}

/// A layer with few distinct experts: the test is about finding them.
fn alike(distinct: &[Expert], experts: usize) -> Vec<Expert> {
    distinct.iter().cycle().take(experts).cloned().collect()
}

/// `Σ gate · down · hidden` in f64, with the magnitudes.
fn weighted(choices: &[(u32, f64)], downs: &[Vec<f64>], hidden: &[f32], x: &[f32]) -> Vec<(f64, f64)> {
    let ff = hidden.len() / choices.len();
    let mut sums: Vec<_> = x.iter().map(|&x| (f64::from(x), f64::from(x).abs())).collect();
    for ((expert, gate), hidden) in choices.iter().zip(hidden.chunks_exact(ff)) {
        let products = product(&downs[*expert as usize % downs.len()], ff, hidden);
        sums.iter_mut().zip(products).for_each(|(s, p)| *s = (s.0 + gate * p.0, s.1 + gate * p.1));
    }
    sums
}

#[test]
fn a_tokens_experts_are_added_up_by_down() {
    let few = [(15, 31), (17, 257), (16, 2048), (33, 2049)].map(|(d, ff)| (d, ff, 3, 2));
    let most = [MAX_CHOSEN_AMONG, MAX_EXPERTS].map(|experts| (33, 31, experts, MAX_TOP_K));
    for (d, ff, experts, top_k) in few.into_iter().chain(most) {
        let five = |level| -> Vec<Expert> { (0..5).map(|i| an_expert(d, ff, level, 10 * i + 1)).collect() };
        let (plain, finest) = (five(None), five(Some(Level::B8)));
        for level in [None, Some(Level::B2), Some(Level::B4), Some(Level::B8)] {
            let options = GpuOptions { level: level.unwrap_or(Level::B8), ..GpuOptions::default() };
            let Some(b) = gpu_with(&options) else { return };
            let distinct = match level {
                None => plain.clone(),
                Some(level) => finest.iter().map(|e| expert_at(e, level)).collect(),
            };
            let all = alike(&distinct, experts);
            let downs: Vec<Vec<f64>> = distinct.iter().map(|e| dense(&e.down)).collect();
            let router =
                Router { experts, top_k, renormalize: true, scale: 1.0, score: Score::Softmax, groups: None };
            let tokens = 9;
            let (h, x) = (values(tokens * d, 1), values(tokens * d, 2));
            let logits = values(tokens * experts, 3);
            let run = |h: &[f32], logits: &[f32], x: &[f32]| {
                let tokens = h.len() / d;
                let (h, logits, mut sum) = (put(&b, h), put(&b, logits), put(&b, x));
                let (mut slots, mut y) = (b.alloc(tokens * top_k * d).unwrap(), b.alloc(tokens * d).unwrap());
                let bufs = RoutedBufs {
                    h: &h,
                    logits: &logits,
                    slots: &mut slots,
                    y: &mut y,
                    x: Some(&mut sum),
                    history: None,
                };
                let before = b.stats().dispatches;
                assert!(b.routed(bufs, tokens, router.unbiased(), (0, &Feed::default()), &all).unwrap());
                // Two launches: choice with gate and up, and the down that adds. With several tokens, the choices are
                // grouped and inputs prepared. With too many experts, the choice comes first, and slots are added in
                // two steps.
                let launches = match tokens {
                    1 if experts <= MAX_CHOSEN_AMONG => 2,
                    1 => 5,
                    _ => 7,
                };
                assert_eq!(b.stats().dispatches - before, launches);
                (get(&b, &sum), hidden(&b, ff, tokens))
            };
            let check = |what: &str, got: &[f32], hidden: &[f32], t: usize| {
                let want = chosen(&logits[t * experts..][..experts], &router);
                let want = weighted(&want, &downs, hidden, &x[t * d..][..d]);
                let at = format!("token {t} {what}, {top_k} of {experts}, {d} to {ff}, {level:?}");
                // The error of the gates is added.
                near(&at, got, &want, SUMS + GATES);
            };
            let per = top_k * ff;
            let (together, hidden) = run(&h, &logits, &x);
            for t in 0..tokens {
                check("among others", &together[t * d..][..d], &hidden[t * per..][..per], t);
            }
            for t in [0, tokens - 1] {
                let (h, logits) = (&h[t * d..][..d], &logits[t * experts..][..experts]);
                let (alone, hidden) = run(h, logits, &x[t * d..][..d]);
                check("alone", &alone, &hidden[..per], t);
                assert_eq!(alone, together[t * d..][..d], "token {t} alone and among others");
            }
        }
    }
}

/// The relative error of a norm. Of 4097 squares an invocation adds 33, and seven more sums combine the
/// invocations; the root and the division are accurate to a few units in the last place.
const NORMS: f64 = 5e-6;

/// A norm in f64.
fn normed(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let scale = 1.0 / (squares / x.len() as f64 + EPS).sqrt();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

const EPS: f64 = 1e-5;

fn same_norm(what: &str, got: &[f32], want: &[f64]) {
    let want: Vec<(f64, f64)> = want.iter().map(|&w| (w, w.abs())).collect();
    near(what, got, &want, NORMS);
}

#[test]
fn norms_agree_around_the_stride_of_a_workgroup() {
    let Some(b) = gpu() else { return };
    for cols in [1, 2, 127, 128, 129, 255, 256, 257, 2047, 2048, 2049, 4096, 4097] {
        let weight = values(cols, 2);
        let finest = nested(17, cols, 32, Level::B8, 3);
        for tokens in [1, 9] {
            let x = values(tokens * cols, 1);
            let input = put(&b, &x);
            let want: Vec<Vec<f64>> = x.chunks_exact(cols).map(|x| normed(x, &weight)).collect();
            let compare = |what: &str, got: Vec<f32>| {
                for (t, (got, want)) in got.chunks_exact(cols).zip(&want).enumerate() {
                    same_norm(&format!("{what}, {cols} columns, token {t} of {tokens}"), got, want);
                }
            };
            let mut out = b.alloc(tokens * cols).unwrap();
            b.rms_norm(&input, &weight, EPS as f32, tokens, &mut out);
            compare("alone", get(&b, &out));
            for matrix in [&at_level(&finest, Level::B4), &plain(17, cols, 3)] {
                let (mut h, mut out) = (b.alloc(tokens * cols).unwrap(), b.alloc(tokens * 17).unwrap());
                let linear = Linear { matrix, bias: None, out: &mut out };
                let norm = Norm::rms(&weight, EPS as f32);
                b.norm_linear(&input, norm, tokens, &mut h, &mut [linear]);
                compare("before a product", get(&b, &h));
                let weights = dense(matrix);
                for (t, got) in get(&b, &out).chunks_exact(17).enumerate() {
                    let x: Vec<f32> = want[t].iter().map(|&x| x as f32).collect();
                    near("a product of a norm", got, &product(&weights, cols, &x), SUMS);
                }
            }
        }
    }
}

#[test]
fn norms_of_heads_agree_around_the_stride_of_a_workgroup() {
    let Some(b) = gpu() else { return };
    let (heads, kv_heads, tokens) = (2, 1, 3);
    // A norm is identified by its address: another norm of the same length must not be used instead.
    let mut kept = Vec::new();
    for head_dim in [62, 64, 66, 126, 128, 130, 254, 256, 258, MAX_HEAD] {
        // A rotation by zero, so that queries contain only their norm.
        let rope = RopeTable { name: 0, dims: 2, cos: vec![1.0; tokens], sin: vec![0.0; tokens] };
        for whole in [false, true] {
            let len = |n: usize| if whole { n * head_dim } else { head_dim };
            let (q_norm, k_norm) = (values(len(heads), 5), values(len(kv_heads), 6));
            let how = Placing {
                heads,
                kv_heads,
                head_dim,
                q_norm: Some(&q_norm),
                k_norm: Some(&k_norm),
                v_norm: false,
                late_norms: false,
                latent: false,
                eps: EPS as f32,
                limit: None,
                rope: &rope,
            };
            let (queries, keys) =
                (values(tokens * heads * head_dim, 1), values(tokens * kv_heads * head_dim, 2));
            let (mut q, mut k, mut v) = (put(&b, &queries), put(&b, &keys), put(&b, &keys));
            let mut rotated = b.alloc(queries.len()).unwrap();
            let mut kv = b.alloc_kv(tokens, kv_heads, [head_dim; 2]).unwrap();
            let x = Projected { q: &mut q, k: &mut k, v: &mut v };
            b.place(x, &how, (0, tokens), (&mut kv, false), &mut rotated);
            let check = |what: &str, got: &[f32], x: &[f32], weight: &[f32]| {
                let pairs = got.chunks_exact(weight.len()).zip(x.chunks_exact(weight.len()));
                for (i, (got, x)) in pairs.enumerate() {
                    same_norm(&format!("{what} of {head_dim}, norm {i}"), got, &normed(x, weight));
                }
            };
            check("queries", &get(&b, &rotated), &queries, &q_norm);
            // For a single head, [head_dim / 4, positions, 4], with the last cell padded.
            let mut cells = vec![0.0f32; head_dim.div_ceil(4) * tokens * 4];
            let bytes = bytemuck::cast_slice_mut(&mut cells);
            b.lock().recorder.read(&b.gpu, &mut [(&kv.keys, 0, bytes)]).unwrap();
            let at = |pos: usize, i: usize| cells[(i / 4 * tokens + pos) * 4 + i % 4];
            let cached: Vec<f32> = (0..tokens)
                .flat_map(|pos| (0..head_dim).map(move |i| (pos, i)))
                .map(|(pos, i)| at(pos, i))
                .collect();
            check("keys", &cached, &keys, &k_norm);
            kept.push([q_norm, k_norm]);
        }
    }
}
