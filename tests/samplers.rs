//! Gate 65: every sampler leaves the same tokens as llama.cpp's of the same name, with the same
//! probabilities, alone and in chains (`goldens/samplers/make.py`).

use dollop::sampler::{Breakers, Sampler, Sampling};
use dollop_tests::golden;
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// Probabilities by token.
type Left = BTreeMap<u32, f64>;

fn left(json: &Json) -> Left {
    let token = |(id, p): (&String, &Json)| (id.parse().unwrap(), p.as_f64().unwrap());
    json.as_object().unwrap().iter().map(token).collect()
}

fn weighed(sampler: &mut Sampler, logits: &[f32]) -> Left {
    let candidates = sampler.weigh(&mut logits.to_vec());
    candidates.iter().map(|c| (c.id, f64::from(c.p))).collect()
}

/// If a penalty exceeds f32, llama.cpp's logit is minus infinity, and ours the lowest number: both mean impossible.
fn assert_same(got: &Left, want: &Left, what: &dyn std::fmt::Debug) {
    let possible = |of: &Left| of.iter().filter(|(id, p)| **p > 0.0 || want.contains_key(*id)).count();
    assert_eq!(possible(got), want.len(), "{what:?}: {got:?} for {want:?}");
    for (id, p) in want {
        let got = got.get(id).unwrap_or_else(|| panic!("{what:?}: token {id} is gone"));
        assert!((got - p).abs() < 1e-5, "{what:?}: token {id}: {got} for {p}");
    }
}

/// A text for each token, so that the golden's breakers can be given in tokens.
fn spelled(token: u32) -> String {
    char::from_u32(0x4e00 + token).unwrap().into()
}

fn breakers(json: &Json, vocab: usize) -> Breakers {
    let texts = json.as_array().into_iter().flatten().map(|b| {
        b.as_array().unwrap().iter().map(|t| spelled(t.as_u64().unwrap() as u32)).collect::<String>()
    });
    let ids = |text: &str| text.chars().map(|c| u32::from(c) - 0x4e00).collect();
    Breakers::new(&texts.collect::<Vec<_>>(), (0..vocab as u32).map(|id| (id, spelled(id))), &ids)
}

#[test]
fn samplers_leave_what_llama_cpps_leave() {
    let text = std::fs::read_to_string(golden("samplers/expected.json")).unwrap();
    let json: Json = serde_json::from_str(&text).unwrap();
    let logits: Vec<Vec<f32>> = serde_json::from_value(json["logits"].clone()).unwrap();
    let sampling = |json: &Json| -> Sampling { serde_json::from_value(json["sampling"].clone()).unwrap() };
    let off: Sampling =
        serde_json::from_str(r#"{"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}"#).unwrap();
    let (mut changed, mut through_the_best) = (0, 0);
    for case in json["cases"].as_array().unwrap() {
        let logits = &logits[case["logits"].as_u64().unwrap() as usize];
        let mut sampler = Sampler::new(sampling(case)).unwrap();
        assert_eq!(
            sampler.breakers().is_some(),
            case["sampling"]["dry_multiplier"].as_f64() > Some(0.0) && {
                let chain = &case["sampling"]["chain"];
                chain.is_null() || chain.as_array().unwrap().contains(&"dry".into())
            }
        );
        sampler.set_breakers(breakers(&case["breakers"], logits.len()));
        let history: Vec<u32> = serde_json::from_value(case["history"].clone()).unwrap_or_default();
        history.iter().for_each(|&t| sampler.accept(t));
        let want = left(&case["left"]);
        assert_same(&weighed(&mut sampler, logits), &want, &case["sampling"]);
        let plain = weighed(&mut Sampler::new(off.clone()).unwrap(), logits);
        changed +=
            usize::from(want.len() < plain.len() || want.iter().any(|(id, p)| (plain[id] - p).abs() > 1e-4));
        through_the_best += usize::from(sampler.enough().is_some());
    }
    assert!(
        changed > 200 && through_the_best > 20,
        "{changed}, {through_the_best}: the golden tests nothing"
    );
    let mut sizes = Vec::new();
    for run in json["mirostat"].as_array().unwrap() {
        let mut logits = logits[run["logits"].as_u64().unwrap() as usize].clone();
        let mut sampler = Sampler::new(sampling(run)).unwrap();
        for step in run["steps"].as_array().unwrap() {
            let want = left(&step["left"]);
            assert_same(&weighed(&mut sampler, &logits), &want, &run["sampling"]);
            sizes.push(want.len());
            sampler.accept(step["chosen"].as_u64().unwrap() as u32);
            logits.rotate_left(1);
        }
    }
    sizes.sort_unstable();
    sizes.dedup();
    assert!(sizes.len() > 10, "mirostat learns nothing: {sizes:?}");
}
