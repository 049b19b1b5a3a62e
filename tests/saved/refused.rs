//! Files that are not sessions of this engine are refused, with a reason.

use super::{PROMPT, exact, file_of, ids};
use dollop::Level;
use dollop::Precision;
use dollop::{Engine, EngineOptions, Error, SessionOptions};
use dollop_tests::tiny::Tiny;

#[test]
fn what_is_damaged_or_anothers_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let model = file_of(&Tiny::load("olmoe"), folder.path());
    let open = |o: &EngineOptions| Engine::open(&model, o).unwrap();
    let engine = open(&exact(Level::B4));
    let ids = ids(engine.info().vocab);
    let mut session = engine.session(SessionOptions::default()).unwrap();
    session.logits(&ids[..PROMPT]).unwrap();
    let path = folder.path().join("session");
    session.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();

    let refused = |engine: &Engine, bytes: &[u8], options: SessionOptions| {
        std::fs::write(&path, bytes).unwrap();
        let by_name = engine.load_session(&path, options).err().expect("is refused");
        let by_bytes = engine.read_session(&mut &bytes[..], options).err().expect("is refused");
        (by_name, by_bytes)
    };
    let words = |(by_name, by_bytes): (Error, Error), words: &str| {
        let (by_name, by_bytes) = (by_name.to_string(), by_bytes.to_string());
        assert!(by_name.contains(words), "{by_name}");
        assert!(by_name.contains("session") && !by_bytes.is_empty(), "the file has a name: {by_name}");
    };
    let of = SessionOptions::default();

    words(refused(&engine, b"", of), "ends too early");
    words(refused(&engine, &[0; 200], of), "no saved session");
    words(refused(&engine, &good[..good.len() - 1], of), "was cut or damaged");
    words(refused(&engine, &[&good[..], b"x"].concat(), of), "was cut or damaged");
    let mut other = good.clone();
    other[8] = 9;
    words(refused(&engine, &other, of), "version 9");
    for (at, part) in [(12, "header"), (90, "tokens"), (good.len() - 9, "memory of layer")] {
        let mut damaged = good.clone();
        damaged[at] ^= 4;
        let (by_name, by_bytes) = refused(&engine, &damaged, of);
        assert!(
            matches!(by_name, Error::Malformed { .. }) && by_bytes.to_string().contains(part),
            "{by_name}"
        );
        words((by_name, by_bytes), part);
    }

    // Intact, but with other contents.
    let (by_name, _) = refused(&engine, &good, SessionOptions::default().with_context(PROMPT - 1));
    assert!(matches!(by_name, Error::ContextFull { needed: PROMPT, .. }), "{by_name}");
    words(refused(&open(&exact(Level::B3)), &good, of), "exact:4, and this engine runs at exact:3");
    let adaptive = Precision::Adaptive { quality: 4.0, floor: Level::B3 };
    let adaptive = super::smallest(&model, exact(Level::B4).with_precision(adaptive));
    words(refused(&open(&adaptive), &good, of), "this engine runs at adaptive");
    let elsewhere = tempfile::tempdir().unwrap();
    let another = file_of(&Tiny::load("qwen3moe"), elsewhere.path());
    let another = Engine::open(&another, &exact(Level::B4)).unwrap();
    words(refused(&another, &good, of), "another model");
    // The same model with other weights, as if it had changed.
    let mut changed = Tiny::load("olmoe");
    changed.tensors.iter_mut().filter(|t| t.0.contains("q_proj")).for_each(|t| t.2[0] += 0.5);
    let changed = Engine::open(file_of(&changed, folder.path()), &exact(Level::B4)).unwrap();
    words(refused(&changed, &good, of), "other weights");

    // A folder, and a missing file.
    let folder_refused = engine.load_session(folder.path(), of).err().unwrap();
    assert!(matches!(folder_refused, Error::Io { .. } | Error::Malformed { .. }), "{folder_refused}");
    let missing = engine.load_session(&folder.path().join("none"), of).err().unwrap();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");

    // A folder that cannot be written to loses nothing.
    std::fs::write(&path, &good).unwrap();
    assert!(session.save(&folder.path().join("none/../session/x")).is_err());
    assert!(engine.load_session(&path, of).is_ok());
    // A reference engine saves nothing.
    let reference = Engine::open_reference(folder.path(), &exact(Level::B4)).unwrap();
    let refused = reference.session(of).unwrap().save(&path).err().unwrap();
    assert!(matches!(refused, Error::Unsupported { .. }), "{refused}");
    assert!(std::fs::read(&path).unwrap() == good, "the older session is untouched");
}
