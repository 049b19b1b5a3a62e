//! Gate 71: a saved session is untrusted. Each mutant of a session, and of one with a conversation, is an
//! error or gives the saved session. Mutants with corrected checksums are an error or a usable session. None
//! panics, and none makes the reader allocate more than the file or the requested session needs. A separate
//! binary, because it measures the allocations of the whole process.

use dollop::Level;
use dollop::Precision;
use dollop::sampler::Sampling;
use dollop::{Chat, Engine, EngineOptions, Error, GenerateOptions, Overflow, SessionOptions};
use dollop_tests::mutants::{Counting, Rng, most_allocated};
use dollop_tests::set;
use dollop_tests::talker::Talker;
use dollop_tests::tiny::Tiny;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a reader may allocate beyond the original's reading: a copy of a part, and the parsed JSON of a
/// conversation.
const MORE: usize = 1 << 20;

const ABSURD: [u64; 8] = [0, 1, 255, 1 << 31, u32::MAX as u64, 1 << 33, 1 << 62, u64::MAX];

/// Changes the bytes once to three times; half of the changes are within the first `head` bytes.
fn mutate(bytes: &mut Vec<u8>, head: usize, rng: &mut Rng) {
    for _ in 0..1 + rng.below(3) {
        let within = if rng.below(2) == 0 { head.min(bytes.len()) } else { bytes.len() };
        if within == 0 {
            return;
        }
        let at = rng.below(within);
        match rng.below(7) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.number() as u8,
            2 => {
                let value = ABSURD[rng.below(ABSURD.len())].to_le_bytes();
                let n = [4, 8][rng.below(2)].min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&value[..n]);
            }
            3 => {
                let (from, n) = (rng.below(bytes.len()), 1 + rng.below(64));
                let n = n.min(bytes.len() - at).min(bytes.len() - from);
                bytes.copy_within(from..from + n, at);
            }
            4 => {
                let n = (1 + rng.below(32)).min(bytes.len() - at);
                bytes.drain(at..at + n);
            }
            5 => {
                let copy = bytes[at..(at + 1 + rng.below(32)).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at),
        }
    }
}

/// The ends of a valid file's parts, checksums included, according to its header. All layers have the same
/// size, except those with a state of `values` values.
fn parts(bytes: &[u8], states: &[usize], values: usize) -> Vec<usize> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let header = 72 + word(20) + 4;
    let tokens = header + 4 * word(40) + 4;
    let notes = tokens + word(56) + 4;
    let marks = notes + 8 * word(32) + 4;
    let layers = word(24);
    let state = 4 * word(32) * values + 4;
    let layer = (bytes.len() - marks - states.len() * state) / (layers - states.len());
    let mut ends = vec![header, tokens, notes, marks];
    for l in 0..layers {
        ends.push(ends[ends.len() - 1] + if states.contains(&l) { state } else { layer });
    }
    ends
}

/// Corrects every checksum.
fn seal(bytes: &mut [u8], ends: &[usize]) {
    let mut from = 0;
    for &end in ends {
        let sum = crc32fast::hash(&bytes[from..end - 4]).to_le_bytes();
        bytes[end - 4..end].copy_from_slice(&sum);
        from = end;
    }
}

struct Kind<'a> {
    name: &'a str,
    good: Vec<u8>,
    engine: &'a Engine,
    chat: bool,
    /// Layers with a state.
    states: &'static [usize],
}

/// Reads a session, and returns it in its saved form.
fn read(kind: &Kind, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let (mut again, options) = (Vec::with_capacity(2 * kind.good.len()), SessionOptions::default());
    if kind.chat {
        let mut chat = kind.engine.read_chat(&mut &bytes[..], options)?;
        chat.write_to(&mut again)?;
        // The session is usable.
        let greedy = GenerateOptions::default().with_max_tokens(1).with_sampling(Sampling::greedy());
        let _ = chat.send("x\n", &greedy, &mut |_| ());
    } else {
        let mut session = kind.engine.read_session(&mut &bytes[..], options)?;
        session.write_to(&mut again)?;
        let _ = session.logits(&[1]);
    }
    Ok(again)
}

/// Reads a mutant. Returns the result, and the peak of allocations.
fn torment(kind: &Kind, bytes: &[u8], seed: u64) -> (Result<Vec<u8>, Error>, usize) {
    let (result, used) = most_allocated(|| catch_unwind(AssertUnwindSafe(|| read(kind, bytes))));
    (result.unwrap_or_else(|_| panic!("{}: mutant {seed:#x} panicked", kind.name)), used)
}

#[test]
fn gate_71_mutants_of_a_session_are_errors_or_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    Talker::new(b"abc", template).write(folder.path());
    let path = folder.path().join("talker.gguf");
    let convert = dollop::convert::convert;
    convert(folder.path(), &path, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    let options = set!(EngineOptions {
        threads: 1,
        precision: Some(Precision::Exact(Level::B4)),
        context: Some(48),
        chunk: Some(8),
        ..EngineOptions::default()
    });
    let engine = Engine::open(&path, &options).unwrap();
    let mixed = tempfile::tempdir().unwrap();
    Tiny::load("lfm2").write_folder(mixed.path());
    let path = mixed.path().join("mixed.gguf");
    convert(mixed.path(), &path, &Default::default(), &Default::default(), &mut |_| ()).unwrap();
    let other = Engine::open(&path, &options).unwrap();
    let session = || engine.session(SessionOptions::default()).unwrap();
    let mut plain = session();
    plain.logits(&[65, 66, 67, 68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 10]).unwrap();
    let mut chat = Chat::new(session(), Some("Hi.".into()), Overflow::Slide).unwrap();
    let greedy = GenerateOptions::default().with_max_tokens(8).with_sampling(Sampling::greedy());
    assert_eq!(chat.send("What?", &greedy, &mut |_| ()).unwrap().text, "abc");
    let mut kinds = [
        Kind { name: "session", good: Vec::new(), engine: &engine, chat: false, states: &[] },
        Kind { name: "conversation", good: Vec::new(), engine: &engine, chat: true, states: &[] },
        Kind { name: "states", good: Vec::new(), engine: &other, chat: false, states: &[0, 2, 3] },
    ];
    let mut held = other.session(SessionOptions::default()).unwrap();
    held.logits(&[65, 66, 67, 68, 69, 70, 71, 72, 73]).unwrap();
    held.logits(&[65, 66, 67, 68, 69, 70, 71, 72, 73]).unwrap();
    held.write_to(&mut kinds[2].good).unwrap();
    plain.write_to(&mut kinds[0].good).unwrap();
    chat.write_to(&mut kinds[1].good).unwrap();
    for kind in &kinds {
        // Once before measuring, because threads create their buffers.
        let (original, _) = torment(kind, &kind.good, 0);
        assert!(original.unwrap() == kind.good);
        let (_, usual) = torment(kind, &kind.good, 0);
        assert!(usual > 0, "the allocator does not count");
        let ends = parts(&kind.good, kind.states, 2 * 64);
        assert_eq!(ends.last(), Some(&kind.good.len()));
        let (mut refused, mut same, mut other, mut most) = (0, 0, 0, 0);
        for i in 0..8000u64 {
            let sealed = i >= 5000;
            let seed = i << 8 | kind.name.len() as u64;
            let mut bytes = kind.good.clone();
            mutate(&mut bytes, ends[3], &mut Rng(seed));
            if sealed {
                // The original's length; otherwise the parts would move.
                bytes.resize(kind.good.len(), 0);
                seal(&mut bytes, &ends);
            }
            let (result, used) = torment(kind, &bytes, seed);
            most = most.max(used);
            assert!(used <= usual + 4 * bytes.len() + MORE, "{}: mutant {seed:#x}: {used} bytes", kind.name);
            match result {
                Err(e) => {
                    let text = e.to_string();
                    assert!(!text.is_empty() && text.len() < 4096, "{}: mutant {seed:#x}: {text}", kind.name);
                    refused += 1;
                }
                Ok(again) if again == kind.good => same += 1,
                Ok(_) => {
                    assert!(sealed, "{}: mutant {seed:#x} is another session", kind.name);
                    other += 1;
                }
            }
        }
        println!(
            "{}: {refused} refused, {same} the same, {other} sealed ones another; {most} bytes allocated at most, {usual} for the original",
            kind.name
        );
        assert!(refused > 5000 && other > 100, "{}: {refused} refused, {other} read", kind.name);
    }
}
