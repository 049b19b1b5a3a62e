//! Gate 100: text that a model generates itself is the same each time, uses every expert, and improves low
//! levels on other text.

use dollop::convert::{Calibration, ConvertOptions, convert};
use dollop::internal::Keep;
use dollop::internal::quant::Level;
use dollop::{CalibrateOptions, CancelToken};
use dollop_tests::set;
use dollop_tests::talker::Talker;
use dollop_tests::uneven::{EXPERTS, at_level, divergence, noise, uneven};
use std::path::Path;
use std::sync::Arc;

fn by_itself(source: &Path, tokens: usize, keep: Option<Keep>) -> Calibration {
    let options = set!(CalibrateOptions { keep, ..CalibrateOptions::default().with_tokens(tokens) });
    dollop::calibrate_by_itself(source, &options.with_threads(2), &CancelToken::new(), &mut |_| ()).unwrap()
}

fn counts(of: &Calibration) -> Vec<Vec<f32>> {
    (0..2).map(|layer| of.get(&format!("blk.{layer}.ffn_gate_exps.weight")).unwrap().counts.clone()).collect()
}

/// The standard deviation of a layer's counts, relative to their mean.
fn unevenness(counts: &[f32]) -> f32 {
    let mean = counts.iter().sum::<f32>() / counts.len() as f32;
    (counts.iter().map(|c| (c - mean).powi(2)).sum::<f32>() / counts.len() as f32).sqrt() / mean
}

#[test]
fn every_expert_has_its_part_and_the_text_is_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    uneven(folder.path(), 3.0);
    let own = by_itself(folder.path(), 3000, None);
    let again = by_itself(folder.path(), 3000, None);
    for name in own.names() {
        assert_eq!(own.get(name), again.get(name), "{name}");
    }
    assert!(own.description().ends_with("tokens of text that the model wrote"), "{}", own.description());
    let options = CalibrateOptions::default();
    let other = dollop::calibrate_tokens(
        folder.path(),
        &noise(3000, 1),
        "noise",
        &options,
        &CancelToken::new(),
        &mut |_| (),
    );
    let other = counts(&other.unwrap());
    for (layer, (own_counts, other)) in counts(&own).iter().zip(&other).enumerate() {
        let least = |of: &[f32]| of.iter().fold(f32::MAX, |a, &b| a.min(b));
        println!(
            "layer {layer}: least {} and {}, unevenness {} and {}",
            least(own_counts),
            least(other),
            unevenness(own_counts),
            unevenness(other)
        );
        assert!(least(own_counts) >= 16.0, "layer {layer}: {own_counts:?}");
        assert!(unevenness(own_counts) < 0.95 * unevenness(other), "layer {layer}");
        // The contribution of each expert to the stream was measured as well.
        let shares = own.shares(layer).unwrap();
        assert!(shares.len() == EXPERTS && shares.iter().all(|&s| s > 0.0), "layer {layer}: {shares:?}");
    }
}

#[test]
fn a_text_of_people_is_a_part_of_it_where_there_is_a_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    Talker::new(b"abc", "{{ messages[0].content }}\n").write(folder.path());
    let own = by_itself(folder.path(), 2000, None);
    let said = "tokens of text that the model wrote and of a text in the public domain";
    assert!(own.description().ends_with(said), "{}", own.description());
    let short = CalibrateOptions::default().with_tokens(10);
    let refused =
        dollop::calibrate_by_itself(folder.path(), &short, &CancelToken::new(), &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("10 tokens are too few"), "{refused}");
}

#[test]
fn low_levels_are_better_for_it_on_text_that_it_did_not_see() {
    let folder = tempfile::tempdir().unwrap();
    uneven(folder.path(), 6.0);
    let at = |name: &str| folder.path().join(name);
    let keep = Keep { path: at("inputs"), dense: false };
    for (name, calibration) in [("plain", None), ("own", Some(by_itself(folder.path(), 4000, Some(keep))))] {
        let options =
            set!(ConvertOptions { calibration: calibration.map(Arc::new), ..ConvertOptions::default() });
        convert(folder.path(), &at(name), &options, &CancelToken::new(), &mut |_| ()).unwrap();
    }
    let ids = noise(400, 77);
    for level in [Level::B2, Level::B3, Level::B4] {
        let [plain, own] =
            ["plain", "own"].map(|name| divergence(folder.path(), &at(name), &at_level(level), &ids));
        println!("level {level}: KL {plain} uncalibrated, {own} calibrated by itself");
        assert!(plain > 0.0 && own < plain, "level {level}: {own}, uncalibrated {plain}");
    }
}
