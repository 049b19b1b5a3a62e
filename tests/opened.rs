//! Gate 74: a model in a part of an open file, as Android provides them: without a name, with other bytes
//! before and after. It gives the same logits as the file opened by its name.

use dollop::Level;
use dollop::Precision;
use dollop::internal::store::{Access, FileStorage, Place, Reads, Storage};
use dollop::{Engine, EngineOptions, Error, SessionOptions, StreamingOptions};
use dollop_tests::{default_model, set, short_model, with_budget};
use std::fs::File;
use std::io::Write;

fn options() -> EngineOptions {
    set!(EngineOptions {
        threads: 2,
        precision: Some(Precision::Exact(Level::B4)),
        context: Some(64),
        chunk: Some(16),
        ..EngineOptions::default()
    })
}

/// A file without a name that contains a model at an offset, surrounded by other bytes; and the model's length.
fn hidden(offset: u64) -> (File, u64) {
    let model = std::fs::read(short_model()).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0x55; offset as usize]).unwrap();
    file.write_all(&model).unwrap();
    file.write_all(&[0x55; 40_000]).unwrap();
    (file, model.len() as u64)
}

fn logits(engine: &Engine) -> Vec<Vec<f32>> {
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&(0..40u32).map(|i| i * 97 % 4096).collect::<Vec<_>>()).unwrap()
}

#[test]
fn gate_74_a_part_of_an_open_file_is_a_model() {
    let tight = with_budget(&short_model(), options(), 1 << 20);
    let want = logits(&Engine::open(short_model(), &options()).unwrap());
    for offset in [0, 64, 16384, 1 << 20] {
        let (file, len) = hidden(offset);
        let again = || file.try_clone().unwrap();
        let resident = Engine::open_file(again(), offset, len, &options()).unwrap();
        assert!(logits(&resident) == want, "resident, at {offset}");
        assert_eq!(
            Engine::plan_file(again(), offset, len, &tight).unwrap(),
            Engine::plan(short_model(), &tight).unwrap()
        );
        for reads in [Reads::Measured, Reads::Threads] {
            let streaming = set!(StreamingOptions { reads, ..StreamingOptions::default() });
            let streamed =
                Engine::open_file(again(), offset, len, &set!(EngineOptions { streaming, ..tight.clone() }))
                    .unwrap();
            assert!(logits(&streamed) == want, "streamed, at {offset}");
            let stats = streamed.stream_stats().unwrap();
            assert!(stats.bytes_wanted > 0 && stats.evictions > 0);
        }
    }
}

#[test]
fn reads_of_a_part_begin_and_end_with_it() {
    let (file, len) = hidden(16384);
    let place = Place::part(file, 16384, len).unwrap();
    let whole = std::fs::read(short_model()).unwrap();
    for direct in [true, false] {
        let storage = FileStorage::open(&place, direct).unwrap();
        let mut bytes = vec![0; 20_000];
        dollop::internal::store::read_exact(&storage, 4096, &mut bytes).unwrap();
        assert!(bytes == whole[4096..24_096]);
        let end = dollop::internal::store::read_exact(&storage, len - 100, &mut bytes).unwrap_err();
        assert_eq!(end.kind(), std::io::ErrorKind::UnexpectedEof, "what lies behind is not read");
        let direct_here = FileStorage::open(&default_model(), true).unwrap();
        if cfg!(target_os = "linux") && direct {
            assert_eq!(storage.access() == Access::Direct, direct_here.access() == Access::Direct);
        }
    }
}

#[test]
fn what_is_no_part_is_refused() {
    let (file, len) = hidden(128);
    let refused = |offset, len| {
        Engine::open_file(file.try_clone().unwrap(), offset, len, &options()).err().expect("is refused")
    };
    for (offset, len) in [(128, 0), (128, len + 40_001), (u64::MAX, 2), (1 << 40, 10), (64, u64::MAX - 10)] {
        assert!(matches!(refused(offset, len), Error::Invalid(_)), "{len} bytes from {offset} on");
    }
    let unaligned = refused(129, len - 1).to_string();
    assert!(unaligned.contains("multiple of 64"), "{unaligned}");
    let (elsewhere, cut) = (refused(64, len).to_string(), refused(128, len / 2).to_string());
    assert!(elsewhere.contains("open file") && elsewhere.contains("GGUF"), "{elsewhere}");
    assert!(cut.contains("open file"), "{cut}");
    let folder = File::open(std::env::temp_dir()).unwrap();
    assert!(Engine::open_file(folder, 0, 4096, &options()).is_err());
}
