//! Gate 148: a session that loads a saved one in place equals that one, and can be rewound as far.

use super::{PROMPT, exact, file_of, go_on, ids};
use dollop::{Engine, Level, SessionOptions};
use dollop_tests::tiny::{self, Tiny};

#[test]
fn a_used_session_takes_another_in_its_place() {
    let mut all = 0;
    for name in tiny::names() {
        let folder = tempfile::tempdir().unwrap();
        let model = file_of(&Tiny::load(&name), folder.path());
        let engine = Engine::open(&model, &exact(Level::B4)).unwrap();
        let ids = ids(engine.info().vocab);
        let path = folder.path().join("prefix");
        let mut first = engine.session(SessionOptions::default()).unwrap();
        first.last_logits(&ids[..PROMPT]).unwrap();
        assert_eq!(first.save(&path).unwrap(), first.saved_bytes().unwrap(), "{name}");
        assert_eq!(engine.saved_tokens(&path).unwrap(), &ids[..PROMPT], "{name}");
        let mut used = engine.session(SessionOptions::default()).unwrap();
        let other: Vec<u32> = ids.iter().rev().copied().collect();
        used.last_logits(&other[..9]).unwrap();
        used.last_logits(&other[9..]).unwrap();
        used.restore(&path).unwrap();
        let before = used.processed_tokens();
        let want = go_on(&mut first, &ids[PROMPT..]);
        assert!(go_on(&mut used, &ids[PROMPT..]) == want, "{name}: other logits");
        assert_eq!(used.processed_tokens() - before, 6, "{name}: the prompt was computed again");
        // No position is rewound to the earlier contents.
        for session in [&mut first, &mut used] {
            let at = session.rewind(12);
            assert!(at <= 12);
            session.rewind(at);
        }
        used.rewind(first.tokens().len());
        first.rewind(used.tokens().len());
        let from = used.tokens().len();
        let (a, b) = (first.logits(&ids[from..PROMPT]).unwrap(), used.logits(&ids[from..PROMPT]).unwrap());
        assert!(a == b, "{name}: other logits after going back to {from}");
        // A damaged file leaves an empty session, which can be used.
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 9;
        bytes[last] ^= 4;
        std::fs::write(&path, bytes).unwrap();
        assert!(used.restore(&path).is_err() && used.tokens().is_empty(), "{name}");
        used.last_logits(&ids[..PROMPT]).unwrap();
        assert!(go_on(&mut used, &ids[PROMPT..]) == want, "{name}: after a damaged file");
        all += 1;
    }
    assert!(all >= 24, "{all} goldens");
}
