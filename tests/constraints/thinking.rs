//! Reasoning before an answer: marked by tags, begun by the model or by its template, and unconstrained.

use super::*;
use dollop::{Chat, Event, Overflow};
use dollop_tests::talker::{END, Talker};
use std::path::Path;

/// Ids of the tags, after those of a talker.
const OPEN: u32 = 257;
const CLOSE: u32 = 258;

/// A model that reasons "hm" and answers "ok!". The template may open the reasoning.
fn thinker(folder: &Path, opens: bool) -> Engine {
    let template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}A{{ '\n' }}";
    let template = if opens { template.to_owned() + "<think>" } else { template.to_owned() };
    let mut talker = Talker::new(b"", &template);
    let added = talker.tokenizer["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(OPEN, "<think>"), (CLOSE, "</think>")] {
        added.push(
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false}),
        );
    }
    let chain = [
        u32::from(b'\n'),
        OPEN,
        b'h'.into(),
        b'm'.into(),
        CLOSE,
        b' '.into(),
        b'o'.into(),
        b'k'.into(),
        b'!'.into(),
        END,
    ];
    for pair in chain.windows(2) {
        talker.next[pair[0] as usize] = pair[1];
    }
    talker.write(folder);
    Engine::open_reference(folder, &EngineOptions::default().with_threads(1)).unwrap()
}

fn ask(engine: &Engine, constraint: Option<Constraint>, text: &str) -> (Outcome, String, String) {
    let session = engine.session(SessionOptions::default().with_context(256)).unwrap();
    let mut chat = Chat::new(session, None, Overflow::Error).unwrap();
    let mut options = GenerateOptions::default().with_max_tokens(40).with_sampling(Sampling::greedy());
    options.constraint = constraint;
    let (mut said, mut thought) = (String::new(), String::new());
    let outcome = chat
        .send(text, &options, &mut |event| match event {
            Event::Token { text, .. } | Event::Rest { text } => said += &text,
            Event::Reasoning { text, .. } => thought += &text,
            _ => {}
        })
        .unwrap();
    assert_eq!((&outcome.text, &outcome.reasoning), (&said, &thought));
    (outcome, said, thought)
}

#[test]
fn gate_126_reasoning_is_apart_whoever_begins_it() {
    for opens in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let engine = thinker(folder.path(), opens);
        // A tag in the question ends with the question.
        for question in ["2+2?", "what is <think>?"] {
            let (outcome, said, thought) = ask(&engine, None, question);
            assert_eq!(
                (said.as_str(), thought.as_str(), outcome.stop),
                ("ok!", "hm", StopReason::EndOfTurn),
                "{opens}"
            );
        }
    }
}

#[test]
fn a_constraint_waits_for_the_end_of_reasoning() {
    let folder = tempfile::tempdir().unwrap();
    let engine = thinker(folder.path(), true);
    let (outcome, said, thought) = ask(&engine, Some(Constraint::regex("o[a-z]+[?]")), "2+2?");
    assert_eq!(thought, "hm", "{outcome:?}");
    assert!(
        said.starts_with("ok") && (said.ends_with('?') || outcome.stop == StopReason::MaxTokens),
        "{said}"
    );
    // If the template opens no tag, the answer begins at once.
    let folder = tempfile::tempdir().unwrap();
    let engine = thinker(folder.path(), false);
    let (_, said, thought) = ask(&engine, Some(Constraint::regex("ok|no")), "2+2?");
    assert!(["ok", "no"].contains(&said.as_str()) && thought.is_empty(), "{said}, {thought}");
}
