//! Routing and routed experts.

use super::*;
use crate::bytes::Bytes;
use crate::kernels::{Biases, Feed, FeedCall};
use crate::quant::{Nested, Rotation};

#[test]
fn routing_orders_by_weight_and_breaks_ties_by_index() {
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    for (experts, top_k, tokens) in [(4, 2, 2), (8, 8, 1), (64, 8, 5), (200, 6, 3)] {
        let mut logits = values(tokens * experts, 3);
        logits[1] = logits[2];
        for renormalize in [false, true] {
            let router =
                Router { experts, top_k, renormalize, scale: 1.5, score: Score::Softmax, groups: None };
            let (mut got, mut want) = (Vec::new(), Vec::new());
            b.route(&put(&b, &logits), tokens, router.unbiased(), &mut got).unwrap();
            cpu.route(&put(&cpu, &logits), tokens, router.unbiased(), &mut want).unwrap();
            let ids = |c: &[Choice]| c.iter().map(|c| c.expert).collect::<Vec<_>>();
            assert_eq!(ids(&got), ids(&want));
            let gates = |c: &[Choice]| c.iter().map(|c| c.gate).collect::<Vec<_>>();
            close("gates", &gates(&got), &gates(&want), 1e-5);
        }
    }
    let router =
        Router { experts: 4, top_k: 2, renormalize: true, scale: 2.0, score: Score::Softmax, groups: None };
    let mut out = Vec::new();
    b.route(&put(&b, &[0.0, 2.0, 2.0, -1.0, f32::NAN, 0.0, 1.0, 0.5]), 2, router.unbiased(), &mut out)
        .unwrap();
    assert_eq!(out[..2].iter().map(|c| c.expert).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(out.len(), 4, "a NaN must not lose a choice");
}

#[test]
fn experts_are_their_formula_however_they_are_reached() {
    check_experts(72, 40, [false; 2]);
}

/// An odd number of blocks of 32 columns for one input, and a single block for the other.
#[test]
fn experts_with_rotated_inputs_are_their_formula() {
    check_experts(96, 32, [true; 2]);
    check_experts(96, 64, [true, false]);
    check_experts(64, 160, [false, true]);
}

/// Gate 195, and biases and other activations, with jobs from the host and from the device, separately and together.
#[test]
fn experts_with_biases_or_another_activation_are_the_cpus() {
    let (ff, experts, d) = (40, 5, 72);
    let (gate, up, down) = (values(experts * ff, 1), values(experts * ff, 2), values(experts * d, 3));
    let biases = Some(Biases { gate: &gate, up: &up, down: &down });
    check_feed(
        &Feed { activation: Activation::Clamped { alpha: 1.7, limit: 0.4 }, biases, scales: None },
        (d, ff, experts),
        true,
    );
    let scales = values(experts, 4);
    let feed = |activation| Feed { activation, biases: None, scales: Some(&scales) };
    check_feed(&feed(Activation::Geglu), (d, ff, experts), true);
    check_feed(&feed(Activation::Reglu), (d, ff, experts), true);
    check_feed(&feed(Activation::Reglu), (d, ff, experts), false);
}

/// `gated`: whether the experts have a gate.
fn check_feed(feed: &Feed, (d, ff, experts): (usize, usize, usize), gated: bool) {
    let (top_k, tokens) = (3, 11);
    let Some(b) = gpu() else { return };
    let cpu = cpu();
    let an_expert = |i: usize| an_expert(d, ff, None, 10 * i as u32 + 1);
    let all = (0..experts).map(|i| Expert { gate: an_expert(i).gate.filter(|_| gated), ..an_expert(i) });
    let all: Vec<Expert> = all.collect();
    let (x, logits) = (values(tokens * d, 99), values(tokens * experts, 7));
    let router =
        Router { experts, top_k, renormalize: true, scale: 1.0, score: Score::Softmax, groups: None };
    let mut choices = Vec::new();
    b.route(&put(&b, &logits), tokens, router.unbiased(), &mut choices).unwrap();
    let by_expert: Vec<Vec<u32>> = (0..experts as u32)
        .map(|e| (0..choices.len() as u32).filter(|&s| choices[s as usize].expert == e).collect())
        .collect();
    let jobs: Vec<ExpertJob> = (by_expert.iter().enumerate().filter(|(_, slots)| !slots.is_empty()))
        .map(|(e, slots)| ExpertJob { index: e as u32, expert: &all[e], slots })
        .collect();
    let of = Routed { layer: 3, experts, top_k, tokens, inputs: 0 };
    let mut want = cpu.alloc(tokens * top_k * d).unwrap();
    cpu.experts(&put(&cpu, &x), of, feed, &jobs, &mut want);
    let mut slots = b.alloc(tokens * top_k * d).unwrap();
    b.experts(&put(&b, &x), of, feed, &jobs, &mut slots);
    close("slots", &get(&b, &slots), &want, 2e-4);
    if let Some(scales) = feed.scales {
        choices.iter_mut().for_each(|c| c.gate *= scales[c.expert as usize]);
    }
    let mut sum = b.alloc(tokens * d).unwrap();
    b.combine(&slots, &choices, top_k, d, &mut sum);
    let sum = get(&b, &sum);
    let on_device = |tokens: usize, h: &[f32], logits: &[f32]| {
        let (h, logits) = (put(&b, h), put(&b, logits));
        let (mut slots, mut y) = (b.alloc(tokens * top_k * d).unwrap(), b.alloc(tokens * d).unwrap());
        let mut x = put(&b, &vec![0.0; tokens * d]);
        let (h, logits) = (&h, &logits);
        let bufs = RoutedBufs { h, logits, slots: &mut slots, y: &mut y, x: Some(&mut x), history: None };
        assert!(b.routed(bufs, tokens, router.unbiased(), (3, feed), &all).unwrap());
        get(&b, &x)
    };
    assert_eq!(on_device(tokens, &x, &logits), sum);
    for t in 0..tokens {
        let one = on_device(1, &x[t * d..][..d], &logits[t * experts..][..experts]);
        assert_eq!(one, sum[t * d..][..d], "token {t}");
    }
}

/// The other activation of a dense block, with matrices in one buffer or in several, left in `y` or added.
#[test]
fn dense_blocks_with_another_activation_are_the_cpus() {
    let Some(b) = gpu() else { return };
    let (cpu, d, ff) = (cpu(), 72, 40);
    let mut apart = an_expert(d, ff, Some(Level::B4), 5);
    apart.up = plain(ff, d, 6);
    let ungated = Expert { gate: None, ..an_expert(d, ff, Some(Level::B6), 7) };
    let ungated_apart = Expert { gate: None, ..apart.clone() };
    for (block, activation) in [
        (an_expert(d, ff, Some(Level::B6), 1), Activation::Geglu),
        (apart, Activation::Geglu),
        (ungated, Activation::Reglu),
        (ungated_apart, Activation::Reglu),
    ] {
        // The CPU quantizes inputs of nested matrices to 8 bits.
        let [gate, up, down] = [block.gate(), &block.up, &block.down].map(|m| Matrix::F32 {
            rows: m.rows(),
            cols: m.cols(),
            data: dense(m).iter().map(|&w| w as f32).collect(),
        });
        let flat = Expert { gate: block.gate.is_some().then_some(gate), up, down, place: None };
        for tokens in [1, 11] {
            let x: Vec<f32> = values(tokens * d, 9).iter().map(|x| 4.0 * x).collect();
            let mut want = cpu.alloc(tokens * d).unwrap();
            cpu.ffn(&put(&cpu, &x), tokens, (&flat, activation), &mut want);
            let (h, mut y) = (put(&b, &x), b.alloc(tokens * d).unwrap());
            let call = |y: &mut GpuBuf, x: Option<&mut GpuBuf>| {
                let block = &block;
                b.feed(FeedCall { h: &h, tokens, block, activation, gate: None, y, x });
            };
            call(&mut y, None);
            close("a block", &get(&b, &y), &want, 2e-4);
            let left = get(&b, &y);
            let mut sum = put(&b, &vec![0.0; tokens * d]);
            call(&mut y, Some(&mut sum));
            close("added", &get(&b, &sum), &left, 1e-6);
        }
    }
}

/// The same bytes with another meaning: the stored weights are for rotated inputs.
fn rotated(m: &Matrix) -> Matrix {
    match m {
        Matrix::Nested(n) => Matrix::Nested(n.clone().rotated(Rotation::of(m.cols()))),
        other => other.clone(),
    }
}

/// `turns`: whether the inputs of gate and up are rotated, and those of down.
fn check_experts(d: usize, ff: usize, turns: [bool; 2]) {
    let (experts, top_k) = (5, 3);
    let rotates = turns != [false; 2];
    for level in [None, Some(Level::B2), Some(Level::B3), Some(Level::B4), Some(Level::B6), Some(Level::B8)] {
        let level_options = GpuOptions { level: level.unwrap_or(Level::B8), ..GpuOptions::default() };
        let Some(b) = gpu_with(&level_options) else { return };
        let mut all: Vec<Expert> = (0..experts).map(|i| an_expert(d, ff, level, 10 * i as u32 + 1)).collect();
        for e in &mut all {
            if turns[0] {
                (e.gate, e.up) = (e.gate.as_ref().map(rotated), rotated(&e.up));
            }
            if turns[1] {
                e.down = rotated(&e.down);
            }
        }
        let (tokens, score) = (23, Score::Softmax);
        let (x, logits) = (values(tokens * d, 99), values(tokens * experts, 7));
        let router = Router { experts, top_k, renormalize: true, scale: 1.0, score, groups: None };
        let (input, routed) = (put(&b, &x), put(&b, &logits));
        let mut choices = Vec::new();
        b.route(&routed, tokens, router.unbiased(), &mut choices).unwrap();
        let by_expert: Vec<Vec<u32>> = (0..experts as u32)
            .map(|e| (0..choices.len() as u32).filter(|&s| choices[s as usize].expert == e).collect())
            .collect();
        let jobs: Vec<ExpertJob> = (0..experts)
            .filter(|&e| !by_expert[e].is_empty())
            .map(|e| ExpertJob { index: e as u32, expert: &all[e], slots: &by_expert[e] })
            .collect();
        let of = Routed { layer: 3, experts, top_k, tokens, inputs: 0 };
        let mut slots = b.alloc(tokens * top_k * d).unwrap();
        b.experts(&input, of, &Feed::default(), &jobs, &mut slots);
        let mut sum = b.alloc(tokens * d).unwrap();
        b.combine(&slots, &choices, top_k, d, &mut sum);
        let sum = get(&b, &sum);
        for (s, got) in get(&b, &slots).chunks_exact(d).enumerate() {
            let want = feed_forward(&all[choices[s].expert as usize], &x[s / top_k * d..][..d]);
            close(&format!("level {level:?}, slot {s}"), got, &want, 2e-4);
        }
        // Chosen, sorted and summed on the device, one token at a time or all together: bit-identical.
        let on_device = |tokens: usize, h: &GpuBuf, logits: &GpuBuf| {
            let (mut slots, mut y) = (b.alloc(tokens * top_k * d).unwrap(), b.alloc(tokens * d).unwrap());
            let mut x = put(&b, &vec![0.0; tokens * d]);
            let bufs = RoutedBufs { h, logits, slots: &mut slots, y: &mut y, x: Some(&mut x), history: None };
            assert!(b.routed(bufs, tokens, router.unbiased(), (3, &Feed::default()), &all).unwrap());
            get(&b, &x)
        };
        let before = b.stats();
        for t in 0..tokens {
            let (h, l) = (put(&b, &x[t * d..][..d]), put(&b, &logits[t * experts..][..experts]));
            assert_eq!(on_device(1, &h, &l), sum[t * d..][..d], "level {level:?}, token {t}");
        }
        // One more dispatch for each rotated input.
        let each = if level.is_some() { 2 + turns.iter().filter(|&&t| t).count() } else { 2 };
        assert_eq!(b.stats().dispatches - before.dispatches, (each * tokens) as u64);
        assert_eq!(on_device(tokens, &input, &routed), sum, "level {level:?}");
        if rotates {
            continue;
        }
        // As one dense block for every token.
        let mut out = b.alloc(tokens * d).unwrap();
        let block = (&all[1], Activation::Swiglu);
        b.ffn(&input, tokens, block, &mut out);
        for (t, got) in get(&b, &out).chunks_exact(d).enumerate() {
            close("a block", got, &feed_forward(&all[1], &x[t * d..][..d]), 2e-4);
        }
        // The same, gated and added.
        let (gates, mut y, mut sum) = (values(tokens, 8), b.alloc(tokens * d).unwrap(), put(&b, &x));
        b.ffn_add(&input, tokens, block, Some(&put(&b, &gates)), &mut y, &mut sum);
        let (sum, blocks) = (get(&b, &sum), get(&b, &out));
        for t in 0..tokens {
            let x = &x[t * d..][..d];
            let mut one = put(&b, x);
            b.ffn_add(&put(&b, x), 1, block, Some(&put(&b, &gates[t..=t])), &mut y, &mut one);
            assert_eq!(get(&b, &one), sum[t * d..][..d], "level {level:?}, token {t}");
            let gate = 1.0 / (1.0 + (-gates[t]).exp());
            let want: Vec<f32> = x.iter().zip(&blocks[t * d..]).map(|(x, y)| x + gate * y).collect();
            close("a gated block", &get(&b, &one), &want, 1e-5);
        }
    }
}

#[test]
fn experts_that_do_not_all_fit_give_way_and_grow() {
    let (d, ff, experts) = (64, 32, 6);
    let all: Vec<Expert> = (0..experts).map(|i| an_expert(d, ff, Some(Level::B8), 10 * i + 1)).collect();
    let bytes = |m: &Matrix| weights::bytes(m, weights::tiles(m));
    let slot: usize = all[0].matrices().map(bytes).sum();
    let room = Some(2 * slot as u64 + 1);
    let Some(b) = gpu_with(&GpuOptions { expert_bytes: room, ..GpuOptions::default() }) else { return };
    let x = values(d, 5);
    let input = put(&b, &x);
    let of = Routed { layer: 0, experts: experts as usize, top_k: 2, tokens: 1, inputs: 0 };
    let mut slots = b.alloc(2 * d).unwrap();
    for (round, level) in [Level::B2, Level::B3, Level::B8, Level::B4].into_iter().enumerate() {
        // The caller chooses the expert to replace; an expert may return in another slot.
        for (pair, places) in
            [([0, 1], [0, 1]), ([2, 0], [1, 0]), ([5, 3], [0, 1]), ([3, 4], [1, 0]), ([4, 0], [1, 0])]
        {
            let now: [Expert; 2] =
                std::array::from_fn(|i| Expert { place: Some(places[i]), ..expert_at(&all[pair[i]], level) });
            let ranks = [[0u32], [1]];
            let jobs: Vec<ExpertJob> = (0..2)
                .map(|i| ExpertJob { index: pair[i] as u32, expert: &now[i], slots: &ranks[i] })
                .collect();
            b.experts(&input, of, &Feed::default(), &jobs, &mut slots);
            for (i, got) in get(&b, &slots).chunks_exact(d).enumerate() {
                close(&format!("round {round}, {pair:?}"), got, &feed_forward(&now[i], &x), 2e-4);
            }
        }
    }
    let (mut y, mut out) = (b.alloc(d).unwrap(), b.alloc(d).unwrap());
    let router = Router {
        experts: experts as usize,
        top_k: 2,
        renormalize: true,
        scale: 1.0,
        score: Score::Softmax,
        groups: None,
    };
    let logits = put(&b, &values(experts as usize, 1));
    let bufs = RoutedBufs {
        h: &input,
        logits: &logits,
        slots: &mut slots,
        y: &mut y,
        x: Some(&mut out),
        history: None,
    };
    assert!(
        !b.routed(bufs, 1, router.unbiased(), (0, &Feed::default()), &all).unwrap(),
        "not all of them fit"
    );
    // A plane on the device need not be on the host; a plane on neither is an error.
    let before = b.stats().uploaded_bytes;
    let gone = |i: usize, place| {
        let there = |m: &Matrix| match m {
            Matrix::Nested(n) => {
                let fits = [n.fit(); crate::quant::PLANES];
                Matrix::Nested(Nested::partly(n.shape(), vec![Bytes::default(); 5], fits).unwrap())
            }
            other => other.clone(),
        };
        let Expert { gate, up, down, .. } = &all[i];
        Expert { gate: gate.as_ref().map(there), up: there(up), down: there(down), place: Some(place) }
    };
    let mut slots = b.alloc(2 * d).unwrap();
    let run = |b: &GpuBackend, expert: &Expert, index, slots: &mut GpuBuf| {
        b.experts(&input, of, &Feed::default(), &[ExpertJob { index, expert, slots: &[0] }], slots);
    };
    run(&b, &Expert { place: Some(1), ..all[2].clone() }, 2, &mut slots);
    let want = get(&b, &slots)[..d].to_vec();
    let uploaded = b.stats().uploaded_bytes;
    assert!(uploaded > before);
    run(&b, &gone(2, 1), 2, &mut slots);
    assert_eq!((get(&b, &slots)[..d].to_vec(), b.stats().uploaded_bytes), (want, uploaded));
    run(&b, &gone(3, 0), 3, &mut slots);
    let error = b.download(&slots, 0, &mut [0.0]).unwrap_err();
    assert!(error.to_string().contains("neither here nor on the device"), "{error}");
}
