//! Gate 1: logits agree with `transformers`, in f32, at every position: from the safetensors folder and from
//! a GGUF; as one prefill, in chunks, and token by token; and on every instruction set.

use dollop::internal::kernels::cpu::Isa;
use dollop::internal::model::families::{self, FAMILIES};
use dollop::{Engine, EngineOptions, SessionOptions};
use dollop_tests::set;
use dollop_tests::tiny::{self, Tiny};
use std::collections::BTreeSet;
use std::path::Path;

const BOUND: f32 = 1e-4;

fn logits(path: &Path, tiny: &Tiny, chunk: usize, isa: Option<Isa>) -> Vec<Vec<f32>> {
    let engine =
        Engine::open_reference(path, &set!(EngineOptions { threads: 2, isa, ..EngineOptions::default() }))
            .unwrap();
    let mut session = engine.session(SessionOptions::default().with_chunk(chunk)).unwrap();
    session.logits(&tiny.tokens).unwrap()
}

fn compare(what: &str, got: &[Vec<f32>], want: &[Vec<f32>]) -> f32 {
    assert_eq!(got.len(), want.len(), "{what}: positions");
    let mut worst = 0.0f32;
    for (position, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.len(), want.len(), "{what}: vocabulary");
        for (token, (g, w)) in got.iter().zip(want).enumerate() {
            let difference = (g - w).abs();
            assert!(difference <= BOUND, "{what}: position {position}, token {token}: {g} instead of {w}");
            worst = worst.max(difference);
        }
    }
    worst
}

#[test]
fn every_family_and_variant_agrees_with_transformers() {
    let names = tiny::names();
    assert!(names.len() >= 80, "only {} goldens were found", names.len());
    // Every family of folders has a golden, and Mixtral, whose family is another's.
    let architecture = |name: &String| {
        let config = Tiny::load(name).config.to_string();
        families::dialect(&config).expect("the family is supported").architecture
    };
    let golden: BTreeSet<_> = names.iter().map(architecture).collect();
    assert_eq!(golden, FAMILIES.iter().filter(|f| !f.dialects.is_empty()).map(|f| f.name).collect());
    assert!(names.iter().any(|name| name.starts_with("mixtral")));
    let mut worst = 0.0f32;
    for name in &names {
        let tiny = Tiny::load(name);
        let spread = tiny.logits.iter().flatten().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(spread > 3.0, "{name}: logits this flat would agree with anything");
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let gguf = folder.path().join("model.gguf");
        // llama.cpp has no keys for these families' windowed layers, activation limits, or scales of scores and routers.
        let unsaid = ["gptoss-listed", "gemma3", "gemma3-sight", "qwen3next-mlp-only", "deepseek2-halves"];
        // llama.cpp's converter refuses these, or writes another model.
        let unmade = [
            "bailingmoe2-sarvam",
            "mellum-dense",
            "dots1-window",
            "hunyuanmoe-alpha",
            "afmoe-plain",
            "flexolmo",
            "flexolmo-norm",
            "phimoe-plain",
        ];
        let unsaid = unsaid.iter().chain(&unmade).any(|other| other == name);
        if !unsaid {
            tiny.write_gguf(&gguf);
        }
        let paths = if unsaid { &[folder.path()][..] } else { &[folder.path(), &gguf] };
        for path in paths {
            for chunk in [1, 7, 128] {
                let got = logits(path, &tiny, chunk, None);
                worst = worst.max(compare(
                    &format!("{name}, {}, chunk {chunk}", path.display()),
                    &got,
                    &tiny.logits,
                ));
            }
        }
        for isa in Isa::available() {
            let got = logits(folder.path(), &tiny, 16, Some(isa));
            compare(&format!("{name}, {isa}"), &got, &tiny.logits);
        }
    }
    println!("{} goldens, largest difference {worst:e}", names.len());
}
