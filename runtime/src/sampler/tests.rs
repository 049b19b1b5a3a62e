//! Tests of sampling with any logits. `tests/samplers.rs` compares it with llama.cpp.

use super::*;

fn counts(with: Sampling, logits: &[f32], n: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(with).unwrap();
    let mut counts = vec![0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(&mut logits.to_vec()) as usize] += 1;
    }
    counts
}

fn open() -> Sampling {
    Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, ..Sampling::default() }
}

#[test]
fn samples_follow_the_distribution() {
    let p = [0.5f32, 0.3, 0.15, 0.05];
    let logits = p.map(f32::ln);
    let n = 40_000;
    for (count, p) in counts(open(), &logits, n).iter().zip(p) {
        assert!((*count as f32 / n as f32 - p).abs() < 0.01);
    }
    let sharp = counts(Sampling { temperature: 0.5, ..open() }, &logits, n);
    let want = 0.25 / (0.25 + 0.09 + 0.0225 + 0.0025);
    assert!((sharp[0] as f32 / n as f32 - want).abs() < 0.01);
}

#[test]
fn each_cut_keeps_what_it_says() {
    let logits = [0.5f32, 0.3, 0.15, 0.05].map(f32::ln);
    let kept = |with| counts(with, &logits, 2000).iter().filter(|&&c| c > 0).count();
    assert_eq!(kept(Sampling { top_k: 2, ..open() }), 2);
    assert_eq!(kept(Sampling { top_p: 0.75, ..open() }), 2);
    assert_eq!(kept(Sampling { top_p: 0.85, ..open() }), 3);
    assert_eq!(kept(Sampling { min_p: 0.2, ..open() }), 3);
    assert_eq!(kept(Sampling::greedy()), 1);
}

#[test]
fn penalties_turn_away_from_what_was_said() {
    let mut sampler = Sampler::new(Sampling { repeat_penalty: 2.0, ..Sampling::greedy() }).unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 1.5, -1.0]), 1);
    sampler.accept(1);
    assert_eq!(sampler.sample(&mut [1.0, 1.5, -1.0]), 0);
    let mut forgetful =
        Sampler::new(Sampling { repeat_penalty: 2.0, repeat_last_n: 1, ..Sampling::greedy() }).unwrap();
    forgetful.accept(1);
    forgetful.accept(2);
    assert_eq!(forgetful.sample(&mut [1.0, 1.5, -1.0]), 1);
}

/// Logits with many ties, and logits with invalid values.
fn hard_logits() -> Vec<Vec<f32>> {
    let ties = (0..300).map(|i| (4.0 * (i as f32 * 0.7).sin()).round() / 4.0).collect();
    vec![
        ties,
        vec![f32::NAN; 5],
        vec![f32::NAN, f32::NEG_INFINITY, f32::NEG_INFINITY],
        vec![1.0, f32::INFINITY, f32::INFINITY, f32::NAN],
        vec![f32::NAN, -0.0, 0.0],
        vec![f32::MAX, f32::MIN, f32::MAX, 1e38, -1e-38],
        vec![-7.5],
        vec![],
    ]
}

#[test]
fn the_likeliest_are_enough_where_it_says_so() {
    let chain = |text| Link::chain(text).unwrap();
    let penalized = Sampling { repeat_penalty: 1.5, ..Sampling::default() };
    for with in [
        Sampling::greedy(),
        Sampling::default(),
        Sampling { top_k: 1, ..open() },
        Sampling { chain: chain("min_p;top_k;top_p;temperature"), min_p: 0.3, ..Sampling::default() },
        Sampling {
            chain: chain("top_k;penalties;xtc;temperature"),
            xtc_probability: 0.5,
            ..penalized.clone()
        },
        Sampling { typical_p: 0.8, top_n_sigma: 1.0, chain: chain("top_k;typ_p;top_n_sigma"), ..open_k(7) },
    ] {
        let mut whole = Sampler::new(with.clone()).unwrap();
        let mut few = whole.clone();
        let k = few.enough().unwrap();
        let hard = hard_logits();
        for logits in std::iter::repeat_n(&hard[0], 50).chain(&hard) {
            let mut best: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
            best.retain(|b| !b.1.is_nan());
            best.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            best.truncate(k);
            let token = whole.sample(&mut logits.clone());
            assert_eq!(token, few.sample_best(&best), "{with:?}");
            whole.accept(token);
            few.accept(token);
        }
    }
    let enough = |with| Sampler::new(with).unwrap().enough();
    assert_eq!((enough(open()), enough(Sampling::default())), (None, Some(40)));
    assert_eq!(enough(Sampling { repeat_penalty: 1.1, ..Sampling::greedy() }), None);
    assert_eq!(enough(Sampling { presence_penalty: 0.5, ..Sampling::default() }), None);
    assert_eq!(enough(Sampling { frequency_penalty: 0.5, ..Sampling::default() }), None);
    assert_eq!(enough(Sampling { presence_penalty: 0.5, repeat_last_n: 0, ..Sampling::greedy() }), Some(1));
    assert_eq!(enough(Sampling { top_k: 0, ..Sampling::default() }), None);
    assert_eq!(enough(Sampling { top_n_sigma: 1.0, ..Sampling::default() }), None);
    // At temperature 0 cuts are skipped.
    let cut = Sampling { top_n_sigma: 1.0, typical_p: 0.5, xtc_probability: 1.0, ..Sampling::greedy() };
    assert_eq!(enough(cut), Some(1));
    assert_eq!(enough(Sampling { dry_multiplier: 0.8, ..Sampling::greedy() }), None);
    assert_eq!(enough(Sampling { chain: chain("top_p;top_k"), ..Sampling::default() }), None);
    assert_eq!(enough(Sampling { chain: chain("temperature;top_k"), ..Sampling::default() }), None);
    assert_eq!(enough(Sampling { chain: chain("top_k;dry"), dry_multiplier: 1.0, ..open_k(9) }), Some(9));
    assert_eq!(enough(Sampling { mirostat: Mirostat::V1, ..Sampling::default() }), None);
    assert_eq!(enough(Sampling { mirostat: Mirostat::V1, ..Sampling::greedy() }), Some(1));
    let logit_bias = vec![LogitBias { token: 0, bias: 1.0 }];
    assert_eq!(enough(Sampling { logit_bias, ..Sampling::greedy() }), None);
}

fn open_k(top_k: usize) -> Sampling {
    Sampling { top_k, ..open() }
}

#[test]
fn at_temperature_0_no_chance_and_no_cut_changes_what_is_likeliest() {
    let with = Sampling {
        xtc_probability: 1.0,
        typical_p: 0.1,
        mirostat: Mirostat::V2,
        chain: Link::chain("xtc;typ_p;penalties").unwrap(),
        repeat_penalty: 2.0,
        ..Sampling::greedy()
    };
    let mut sampler = Sampler::new(with).unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 1.9, 1.5]), 1);
    sampler.accept(1);
    assert_eq!(sampler.sample(&mut [1.0, 1.9, 1.5]), 2);
    sampler.restart();
    assert_eq!(sampler.sample(&mut [1.0, 1.9, 1.5]), 1, "the text is forgotten");
}

#[test]
fn a_repetition_is_not_continued() {
    let with = Sampling { dry_multiplier: 2.0, ..Sampling::greedy() };
    let mut sampler = Sampler::new(with).unwrap();
    assert_eq!(sampler.breakers().unwrap().len(), 4);
    [5, 6, 7, 1, 5, 6].into_iter().for_each(|t| sampler.accept(t));
    let logits = [0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0, 2.4];
    // Token 7 would continue `5 6`, and loses 2.
    assert_eq!(sampler.sample(&mut logits.clone()), 2);
    let words = (0..8).map(|id| (id, if id == 6 { "\n".into() } else { "x".to_owned() }));
    sampler.set_breakers(Breakers::new(&["\n".into()], words, &|_| Vec::new()));
    assert_eq!(sampler.sample(&mut logits.clone()), 7, "nothing is repeated since the last breaker");
    let never = vec![LogitBias { token: 7, bias: f32::NEG_INFINITY }, LogitBias { token: 99, bias: 9.0 }];
    let mut biased = Sampler::new(Sampling { logit_bias: never, ..open() }).unwrap();
    assert!((0..50).all(|_| biased.sample(&mut logits.clone()) != 7));
}

#[test]
fn whatever_the_numbers_a_token_comes_out() {
    let mut state = 3u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    let mut tried = 0;
    for _ in 0..3000 {
        let mut pick = |of: &[f32]| of[next(of.len())];
        let (temperature, top_p, typical_p) =
            (pick(&[0.0, 1e-6, 0.7, 100.0]), pick(&[1.0, 1e-9, 0.9]), pick(&[1.0, 1e-9, 0.9]));
        let (min_p, top_n_sigma) = (pick(&[0.0, 1e-30, 1.0]), pick(&[0.0, 1e-9, 1.0, 1000.0]));
        let (xtc_probability, xtc_threshold) = (pick(&[0.0, 0.5, 1.0]), pick(&[0.0, 0.1, 0.5]));
        let (repeat_penalty, penalty) = (pick(&[1.0, 0.01, 100.0]), pick(&[0.0, -100.0, 100.0]));
        let (dry_multiplier, dry_base) = (pick(&[0.0, 1e-9, 100.0]), pick(&[1.0, 1.75, 100.0]));
        let (mirostat_tau, mirostat_eta) = (pick(&[0.0, 5.0, 100.0]), pick(&[0.0, 1.0]));
        let mirostat = [Mirostat::Off, Mirostat::Off, Mirostat::V1, Mirostat::V2][next(4)];
        let mut chain = Link::ALL.to_vec();
        (0..9).for_each(|i| chain.swap(i, next(9)));
        chain.truncate(next(10));
        let with = Sampling {
            temperature,
            top_k: [0, 1, 3, usize::MAX][next(4)],
            top_p,
            min_p,
            typical_p,
            top_n_sigma,
            xtc_probability,
            xtc_threshold,
            repeat_penalty,
            repeat_last_n: next(5),
            presence_penalty: penalty,
            frequency_penalty: penalty,
            dry_multiplier,
            dry_base,
            dry_allowed_length: next(3),
            dry_last_n: next(9),
            mirostat,
            mirostat_tau,
            mirostat_eta,
            chain,
            seed: next(100) as u64,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(with.clone()).unwrap();
        assert!(!with.to_string().is_empty());
        for logits in hard_logits() {
            let finite = logits.iter().any(|x| *x > f32::NEG_INFINITY);
            for _ in 0..4 {
                let token = sampler.sample(&mut logits.clone());
                let possible = logits.get(token as usize).is_some_and(|x| *x > f32::NEG_INFINITY);
                assert!(possible || !finite && token == 0, "{token} of {logits:?} with {with:?}");
                let p: f64 = sampler.candidates.list.iter().map(|c| f64::from(c.p)).sum();
                assert!(!finite || (p - 1.0).abs() < 1e-4, "{p} of {logits:?} with {with:?}");
                sampler.accept(token);
                tried += 1;
            }
        }
    }
    assert!(tried > 50_000);
}

#[test]
fn numbers_out_of_range_are_named() {
    let d = Sampling::default;
    let long = vec!["x".repeat(41)];
    for (with, word) in [
        (Sampling { temperature: -1.0, ..d() }, "temperature"),
        (Sampling { temperature: 1e-9, ..d() }, "temperature"),
        (Sampling { top_p: 0.0, ..d() }, "top-p"),
        (Sampling { typical_p: f32::NAN, ..d() }, "typical-p"),
        (Sampling { min_p: 1.1, ..d() }, "min-p"),
        (Sampling { top_n_sigma: -1.0, ..d() }, "top-n-sigma"),
        (Sampling { xtc_probability: 2.0, ..d() }, "xtc-probability"),
        (Sampling { xtc_threshold: -0.1, ..d() }, "xtc-threshold"),
        (Sampling { repeat_penalty: 0.0, ..d() }, "repeat-penalty"),
        (Sampling { repeat_last_n: usize::MAX, ..d() }, "repeat-last-n"),
        (Sampling { frequency_penalty: f32::INFINITY, ..d() }, "frequency-penalty"),
        (Sampling { dry_base: 0.5, ..d() }, "dry-base"),
        (Sampling { dry_multiplier: -1.0, ..d() }, "dry-multiplier"),
        (Sampling { dry_last_n: usize::MAX, ..d() }, "dry-last-n"),
        (Sampling { dry_allowed_length: usize::MAX, ..d() }, "dry-allowed-length"),
        (Sampling { dry_breakers: vec![String::new()], ..d() }, "dry-breaker"),
        (Sampling { dry_breakers: long, ..d() }, "dry-breaker"),
        (Sampling { mirostat_tau: f32::NAN, ..d() }, "mirostat-tau"),
        (Sampling { mirostat_eta: 7.0, ..d() }, "mirostat-eta"),
        (Sampling { logit_bias: vec![LogitBias { token: 1, bias: f32::INFINITY }], ..d() }, "logit-bias"),
        (Sampling { chain: vec![Link::TopK, Link::TopK], ..d() }, "top_k"),
    ] {
        let error = Sampler::new(with).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn numbers_from_before_are_read() {
    // What older versions with fewer options wrote.
    let old = r#"{"temperature": 0.5, "top_k": 3, "top_p": 0.9, "min_p": 0.1, "repeat_penalty": 1.1,
        "repeat_last_n": 8, "presence_penalty": 0.2, "seed": 7}"#;
    let want = Sampling {
        temperature: 0.5,
        top_k: 3,
        top_p: 0.9,
        min_p: 0.1,
        repeat_penalty: 1.1,
        repeat_last_n: 8,
        presence_penalty: 0.2,
        seed: 7,
        ..Sampling::default()
    };
    assert_eq!(serde_json::from_str::<Sampling>(old).unwrap(), want);
    let logit_bias = vec![LogitBias { token: 3, bias: f32::NEG_INFINITY }, LogitBias { token: 4, bias: 0.5 }];
    let all = Sampling { mirostat: Mirostat::V2, chain: vec![Link::Typical], logit_bias, ..want };
    let text = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<Sampling>(&text).unwrap(), all);
}

#[test]
fn what_is_applied_is_told() {
    assert_eq!(Sampling::default().to_string(), "top-k 40, top-p 0.95, min-p 0.05, temperature 0.7");
    assert_eq!(Sampling::greedy().to_string(), "temperature 0");
    assert_eq!(open().to_string(), "temperature 1");
    let with = Sampling { mirostat: Mirostat::V2, repeat_penalty: 1.1, ..Sampling::default() };
    assert_eq!(with.to_string(), "temperature 0.7, mirostat 2 (tau 5, eta 0.1)");
}

#[test]
fn of_equal_logits_none_is_drawn_by_chance() {
    let drawn = |scale: f32, n: usize, with: Sampling| -> Vec<u32> {
        let logits: Vec<f32> = (0..n).map(|i| scale * (i as f32 * 0.7).sin()).collect();
        let mut s = Sampler::new(with).unwrap();
        (0..50).map(|_| s.sample(&mut logits.clone())).collect()
    };
    let best = drawn(1.0, 100, Sampling { temperature: 0.0, ..open() })[0];
    for with in [open(), Sampling { top_k: 40, ..open() }, Sampling { mirostat: Mirostat::V2, ..open() }] {
        assert_eq!(drawn(1e-6, 100, with.clone()), [best; 50], "{with:?}");
        // Larger differences are a preference, and few tokens may well be equal.
        let differ = |tokens: Vec<u32>| tokens.iter().any(|&t| t != tokens[0]);
        assert!(differ(drawn(1e-2, 100, with.clone())) && differ(drawn(1e-6, 8, with)));
    }
    // The caller's preference counts.
    let biased = Sampling { logit_bias: vec![LogitBias { token: 7, bias: 5e-4 }], ..open() };
    assert_eq!(drawn(1e-6, 100, biased), [7; 50]);
}

#[test]
fn a_seed_repeats_and_broken_logits_do_no_harm() {
    let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
    let run = |seed| {
        let mut s = Sampler::new(Sampling { seed, ..open() }).unwrap();
        (0..20).map(|_| s.sample(&mut logits.clone())).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
    let mut s = Sampler::new(open()).unwrap();
    assert_eq!(s.sample(&mut [f32::NAN, 0.0, f32::NEG_INFINITY]), 1);
    assert_eq!(s.sample(&mut [f32::NAN, f32::NAN]), 0);
    assert!(Sampling { top_p: f32::NAN, ..open() }.validate().unwrap_err().to_string().contains("top-p"));
}
