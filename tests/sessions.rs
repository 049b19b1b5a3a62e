//! Gate 5: sessions and conversations: reuse of the cache, cancelling, stop strings, sliding, full contexts;
//! and nested weights stay close to the model from which they were made.

use dollop::internal::kernels::cpu::Isa;
use dollop::sampler::{LogitBias, Sampling};
use dollop::{
    CancelToken, Chat, Engine, EngineOptions, Error, Event, GenerateOptions, Overflow, SessionOptions,
    StopReason,
};
use dollop_tests::{
    chosen_among_all, default_model, set, short_model, talker::Talker, test_model, tiny::Tiny,
};
use std::ops::ControlFlow;
use std::path::PathBuf;

fn open(model: PathBuf) -> Engine {
    Engine::open(model, &EngineOptions::default().with_threads(2)).unwrap()
}

fn engine() -> Engine {
    open(test_model())
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions::default().with_max_tokens(max_tokens).with_sampling(Sampling::greedy())
}

fn chat_with(engine: &Engine, context: usize, overflow: Overflow) -> Chat {
    let session = engine.session(SessionOptions::default().with_context(context).with_chunk(64)).unwrap();
    Chat::new(session, Some("You are brief.".into()), overflow).unwrap()
}

fn chat(context: usize, overflow: Overflow) -> Chat {
    chat_with(&engine(), context, overflow)
}

#[test]
fn the_default_model_knows_the_capital_of_france() {
    let mut chat = chat_with(&open(default_model()), 512, Overflow::Error);
    let outcome = chat.send("What is the capital of France?", &greedy(64), &mut |_| ()).unwrap();
    assert!(outcome.text.contains("Paris"), "{}", outcome.text);
    assert!(!outcome.tokens.is_empty() && outcome.prompt_tokens > 20);
}

#[test]
fn a_second_turn_computes_only_what_is_new_and_changes_nothing() {
    // Its answers have the tokens that their text has.
    let engine = open(default_model());
    let mut chat = chat_with(&engine, 512, Overflow::Error);
    let first = chat.send("Name a color.", &greedy(16), &mut |_| ()).unwrap();
    let before = chat.session().processed_tokens();
    let second = chat.send("And another?", &greedy(16), &mut |_| ()).unwrap();
    let computed = chat.session().processed_tokens() - before;
    assert!(
        second.reused_tokens >= first.prompt_tokens,
        "{} of {}",
        second.reused_tokens,
        second.prompt_tokens
    );
    let fresh = (second.prompt_tokens - second.reused_tokens + second.tokens.len().saturating_sub(1)) as u64;
    assert!(computed <= fresh + 1 && fresh < 60, "{computed} tokens were computed, {fresh} are new");

    // The same conversation on an empty cache gives the same answer.
    let text = chat.messages().to_vec();
    let session = engine.session(SessionOptions::default().with_context(512).with_chunk(64)).unwrap();
    let mut again = Chat::new(session, None, Overflow::Error).unwrap();
    again.restore(text[..3].to_vec());
    let repeated = again.send("And another?", &greedy(16), &mut |_| ()).unwrap();
    assert_eq!((repeated.reused_tokens, &repeated.text), (0, &second.text));
}

#[test]
fn chunks_and_threads_change_no_bit() {
    let ids: Vec<u32> = (0..40).map(|i| 1000 + 37 * i).collect();
    let on = |isa, threads, chunk| {
        let options = set!(EngineOptions { threads, isa, ..EngineOptions::default() });
        let engine = Engine::open(short_model(), &options).unwrap();
        let mut session =
            engine.session(SessionOptions::default().with_context(64).with_chunk(chunk)).unwrap();
        let mut all = session.logits(&ids).unwrap();
        all.extend(session.logits(&[7]).unwrap());
        // With only the last position requested, the last layer's feed-forward is skipped for the others, and
        // the result is the same.
        session.rewind(0);
        let best = session.best(&ids, 8).unwrap();
        assert!(best.iter().all(|&(id, logit)| all[ids.len() - 1][id as usize] == logit));
        assert!(session.logits(&[7]).unwrap()[0] == all[ids.len()]);
        all
    };
    // Without AMX, for any chunk.
    for isa in Isa::available().into_iter().filter(|isa| isa.to_string() != "amx") {
        let whole = on(Some(isa), 1, 64);
        for (threads, chunk) in [(1, 1), (2, 7), (3, 40)] {
            assert!(whole == on(Some(isa), threads, chunk), "{isa}, {threads} threads, chunks of {chunk}");
        }
    }
    // With AMX, a prompt of many tokens uses other products than one in short chunks.
    let run = |threads, chunk| on(None, threads, chunk);
    let whole = run(1, 64);
    for (threads, chunk) in [(2, 32), (3, 40)] {
        assert!(whole == run(threads, chunk), "{threads} threads, chunks of {chunk}");
    }
    let few = run(1, 1);
    assert!(few == run(2, 7), "chunks of 7 and 1");
}

#[test]
fn a_cancelled_answer_stays_and_the_session_goes_on() {
    let mut chat = chat(512, Overflow::Error);
    let cancel = CancelToken::new();
    let options = greedy(100).with_cancel(cancel.clone());
    let mut seen = 0;
    let other = std::thread::spawn({
        let cancel = cancel.clone();
        move || {
            while !cancel.is_cancelled() {
                std::thread::yield_now();
            }
        }
    });
    let outcome = chat
        .send("Tell me a story.", &options, &mut |event| {
            seen += usize::from(matches!(event, Event::Token { .. }));
            if seen == 3 {
                cancel.cancel();
            }
        })
        .unwrap();
    other.join().unwrap();
    assert_eq!((outcome.stop, outcome.tokens.len()), (StopReason::Cancelled, 3));
    assert_eq!(chat.messages().last().unwrap().content, outcome.text);
    assert_ne!(chat.send("Hello", &greedy(4), &mut |_| ()).unwrap().stop, StopReason::Cancelled);

    // Cancelled before the start: the prompt is not computed at all.
    let cancel = CancelToken::new();
    cancel.cancel();
    let outcome = chat.send("And?", &greedy(4).with_cancel(cancel), &mut |_| ()).unwrap();
    assert_eq!((outcome.stop, outcome.tokens.len()), (StopReason::Cancelled, 0));
}

#[test]
fn a_callback_ends_an_answer_without_a_token() {
    let mut chat = chat(512, Overflow::Error);
    let (mut tokens, mut later) = (0, 0);
    let outcome = chat.send("Tell me a story.", &greedy(100), &mut |event| {
        later += usize::from(tokens == 3);
        tokens += usize::from(matches!(event, Event::Token { .. }));
        if tokens == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.stop, outcome.tokens.len(), later), (StopReason::Cancelled, 3, 0));
    assert_eq!(chat.messages().last().unwrap().content, outcome.text);
    // In the middle of a prompt: the computed part stays.
    let long = "word ".repeat(200);
    let before = chat.session().processed_tokens();
    let outcome = chat.send(&long, &greedy(4), &mut |event| match event {
        Event::Prefill { done, .. } if done >= 64 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    let outcome = outcome.unwrap();
    assert_eq!((outcome.stop, outcome.tokens.len()), (StopReason::Cancelled, 0));
    let computed = chat.session().processed_tokens() - before;
    assert!((1..200).contains(&computed), "{computed} tokens were computed");
    assert_ne!(chat.send("Hello", &greedy(4), &mut |_| ()).unwrap().stop, StopReason::Cancelled);
}

/// Gate 92.
#[test]
fn an_iterator_over_events_is_the_callback_turned_around() {
    let options = greedy(12).with_stop(["xyzzy"]);
    let (mut told, mut asked) = (chat(512, Overflow::Error), chat(512, Overflow::Error));
    for question in ["Name a color.", "And another?"] {
        let mut want = Vec::new();
        let outcome = told.send(question, &options, &mut |event| want.push(event)).unwrap();
        let mut events = asked.stream(question, &options).unwrap();
        assert!(events.outcome().is_none());
        let got: Vec<Event> = events.by_ref().map(Result::unwrap).collect();
        assert_eq!(got, want);
        assert!(events.next().is_none() && events.next().is_none());
        let last = events.outcome().unwrap();
        assert_eq!((&last.text, &last.tokens, last.stop), (&outcome.text, &outcome.tokens, outcome.stop));
        assert_eq!(events.finish().unwrap().tokens, outcome.tokens);
        assert!(!outcome.tokens.is_empty() && asked.messages() == told.messages());
    }

    // Dropped early: the answer so far stays, nothing more is computed, and the conversation continues.
    let before = asked.session().processed_tokens();
    let mut events = asked.stream("Tell me a story.", &greedy(100)).unwrap();
    let said: Vec<u32> = events
        .by_ref()
        .filter_map(|event| match event.unwrap() {
            Event::Token { id, .. } => Some(id),
            _ => None,
        })
        .take(3)
        .collect();
    drop(events);
    let prompt = asked.session().processed_tokens() - before;
    assert!((2..60).contains(&prompt), "{prompt} tokens were computed");
    assert_eq!(&asked.session().tokens()[asked.session().tokens().len() - 2..], &said[..2]);
    let story = asked.messages().last().unwrap().clone();
    assert_eq!(story.role, "assistant");
    let mut heard = 0;
    let outcome = told.send("Tell me a story.", &greedy(100), &mut |event| {
        heard += usize::from(matches!(event, Event::Token { .. }));
        if heard == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(outcome.unwrap().text, story.content);
    let (got, want) = (
        asked.stream("Why?", &greedy(8)).unwrap().finish().unwrap(),
        told.send("Why?", &greedy(8), &mut |_| ()).unwrap(),
    );
    assert_eq!((got.tokens, got.stop), (want.tokens, want.stop));
    assert_eq!(asked.messages(), told.messages());

    // Never started: the conversation contains the question, and an empty answer.
    drop(asked.stream("Are you there?", &greedy(8)).unwrap());
    assert_eq!(asked.messages().last().unwrap().content, "");
    assert!(matches!(asked.stream(&"word ".repeat(600), &greedy(8)), Err(Error::ContextFull { .. })));
    assert_eq!(asked.messages().last().unwrap().content, "", "a refused question leaves nothing behind");

    // A context that slides in the middle of an answer; another thread may read the iterator.
    let (mut told, mut asked) = (chat(96, Overflow::Slide), chat(96, Overflow::Slide));
    let mut slid = false;
    for turn in 0..4 {
        let (question, options) = (format!("Tell me about the number {turn}."), greedy(40));
        let want = told.send(&question, &options, &mut |_| ()).unwrap();
        let got = std::thread::scope(|scope| {
            scope.spawn(|| asked.stream(&question, &options).unwrap().finish().unwrap()).join().unwrap()
        });
        assert_eq!((&got.text, got.stop), (&want.text, want.stop));
        assert!(got.tokens.len() <= 40, "{} tokens of 40", got.tokens.len());
        slid |= asked.messages().len() < 1 + 2 * (turn + 1);
    }
    assert!(slid && told.messages() == asked.messages());

    // For a session without a chat, byte for byte; a failure in the middle is the last item.
    let (mut told, mut asked) = (
        engine().session(SessionOptions::default()).unwrap(),
        engine().session(SessionOptions::default()).unwrap(),
    );
    let want = told.generate(&[1, 97, 194], &greedy(6), &mut |_| ()).unwrap();
    assert_eq!(asked.stream(&[1, 97, 194], &greedy(6)).unwrap().finish().unwrap().tokens, want.tokens);
    assert_eq!(asked.tokens(), told.tokens());
    assert!(matches!(asked.stream(&[], &greedy(6)), Err(Error::Invalid(_))));
}

#[test]
fn the_cpu_is_a_device() {
    let devices = dollop::devices();
    assert!(devices[0].backend == dollop::BackendChoice::Cpu && !devices[0].name.is_empty());
    #[cfg(feature = "gpu")]
    let adapters = dollop::internal::kernels::gpu::adapters().len();
    #[cfg(not(feature = "gpu"))]
    let adapters = 0;
    assert_eq!(devices.len() - 1, adapters);
}

#[test]
fn stop_strings_end_an_answer_and_are_not_shown() {
    let mut shown = String::new();
    let options = greedy(64).with_stop(["Paris"]);
    let mut chat = chat_with(&open(default_model()), 512, Overflow::Error);
    let outcome = chat
        .send("What is the capital of France?", &options, &mut |event| {
            if let Event::Token { text, .. } | Event::Rest { text } = event {
                shown += &text;
            }
        })
        .unwrap();
    assert_eq!(outcome.stop, StopReason::StopString);
    assert!(!outcome.text.contains("Paris") && shown == outcome.text, "{shown:?} {:?}", outcome.text);
}

#[test]
fn a_full_context_is_an_error_or_slides_and_keeps_the_system_prompt() {
    let mut strict = chat(96, Overflow::Error);
    let mut full = None;
    for turn in 0..20 {
        match strict.send(&format!("Tell me about the number {turn}."), &greedy(24), &mut |_| ()) {
            Ok(_) => {}
            Err(e) => {
                full = Some((turn, e));
                break;
            }
        }
    }
    let (turn, error) = full.expect("96 tokens hold no twenty turns");
    assert!(turn > 0 && matches!(error, Error::ContextFull { limit: 96, .. }), "{error}");
    assert_eq!(strict.messages().len(), 1 + 2 * turn, "a failed turn leaves nothing behind");
    assert!(error.to_string().contains("96"));

    let mut sliding = chat(96, Overflow::Slide);
    for turn in 0..8 {
        let outcome =
            sliding.send(&format!("Tell me about the number {turn}."), &greedy(24), &mut |_| ()).unwrap();
        assert!(!outcome.tokens.is_empty());
    }
    assert_eq!(sliding.messages()[0].content, "You are brief.");
    assert!(sliding.messages().len() < 1 + 2 * 8, "nothing was forgotten");
    let long = "word ".repeat(300);
    assert!(matches!(sliding.send(&long, &greedy(4), &mut |_| ()), Err(Error::ContextFull { .. })));
}

#[test]
fn the_likeliest_tokens_are_enough_to_choose_among() {
    let engine = engine();
    let options = SessionOptions::default().with_context(64);
    let prompt = engine.encode_text("Once upon a time there was").unwrap();
    let seeded = |with: Sampling| with.with_temperature(1.5).with_seed(7);
    let few = seeded(Sampling::default().with_top_k(30));
    let penalized = seeded(set!(Sampling { repeat_penalty: 1.3, ..Sampling::default() }));
    for sampling in [Sampling::greedy(), few, penalized, seeded(Sampling::default().with_top_k(0))] {
        let generate = set!(GenerateOptions { sampling: sampling.clone(), ignore_eos: true, ..greedy(20) });
        let mut session = engine.session(options).unwrap();
        let tokens = session.generate(&prompt, &generate, &mut |_| ()).unwrap().tokens;
        let mut session = engine.session(options).unwrap();
        assert_eq!(tokens, chosen_among_all(&mut session, &prompt, &sampling, 20), "{sampling:?}");
    }
    let mut session = engine.session(options).unwrap();
    let best = session.best(&prompt, 5).unwrap();
    session.rewind(0);
    let logits = session.logits(&prompt).unwrap().pop().unwrap();
    assert!(best.len() == 5 && best.iter().all(|&(id, logit)| logits[id as usize] == logit));
    assert_eq!(best[0].0, dollop::sampler::argmax(&logits));
    for k in [0, dollop::internal::kernels::MAX_BEST + 1] {
        assert!(matches!(session.best(&[1], k), Err(Error::Invalid(_))));
    }
    assert!(matches!(session.best(&[], 1), Err(Error::Invalid(_))));
}

#[test]
fn bad_requests_are_errors_and_harmless() {
    let engine = engine();
    let mut session = engine.session(SessionOptions::default().with_context(16)).unwrap();
    assert!(matches!(session.generate(&[], &greedy(1), &mut |_| ()), Err(Error::Invalid(_))));
    assert!(matches!(session.generate(&[u32::MAX], &greedy(1), &mut |_| ()), Err(Error::Invalid(_))));
    assert!(matches!(
        session.generate(&[5; 17], &greedy(1), &mut |_| ()),
        Err(Error::ContextFull { needed: 17, limit: 16 })
    ));
    let bad = greedy(1).with_sampling(Sampling::default().with_top_p(0.0));
    assert!(session.generate(&[5], &bad, &mut |_| ()).unwrap_err().to_string().contains("top-p"));
    let nothing = session.generate(&[5, 6], &greedy(0), &mut |_| ()).unwrap();
    assert_eq!((nothing.tokens.len(), nothing.stop), (0, StopReason::MaxTokens));
    let full = session
        .generate(&[5; 10], &set!(GenerateOptions { ignore_eos: true, ..greedy(100) }), &mut |_| ())
        .unwrap();
    assert_eq!((full.stop, full.tokens.len()), (StopReason::ContextFull, 7));
    assert!(engine.session(SessionOptions::default().with_context(0)).is_err());
    assert!(engine.session(SessionOptions::default().with_context(1 << 30)).is_err());
    assert!(engine.session(SessionOptions::default().with_chunk(0)).is_err());
}

#[test]
fn dry_ends_a_loop_and_follows_none_over_a_breaker() {
    let folder = tempfile::tempdir().unwrap();
    let mut talker = Talker::new(b"abc", "{{ messages[-1].content }}");
    talker.next[usize::from(b'c')] = b'a'.into();
    talker.write(folder.path());
    let engine = Engine::open_reference(folder.path(), &EngineOptions::default()).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut say = |sampling: Sampling| {
        let generate = greedy(12).with_sampling(sampling);
        session.generate(&[10, b'a'.into()], &generate, &mut |_| ()).unwrap().text
    };
    assert_eq!(say(Sampling::greedy()), "bcabcabcabca");
    let dry = |breaker: &str| {
        set!(Sampling {
            dry_multiplier: 100.0,
            dry_allowed_length: 3,
            dry_breakers: vec![breaker.to_owned()],
            ..Sampling::greedy()
        })
    };
    // All three may repeat once, but then not the first.
    assert!(say(dry("x")).starts_with("bcabc") && !say(dry("x")).starts_with("bcabca"), "{}", say(dry("x")));
    // Within a breaker, and across two tokens.
    assert_eq!((say(dry("c")), say(dry("ca"))), (say(Sampling::greedy()), say(Sampling::greedy())));
    let bias =
        |token| set!(Sampling { logit_bias: vec![LogitBias { token, bias: 1e3 }], ..Sampling::greedy() });
    assert_eq!(say(bias(b'z'.into())), "z".repeat(12));
    let generate = greedy(1).with_sampling(bias(9999));
    assert!(session.generate(&[5], &generate, &mut |_| ()).unwrap_err().to_string().contains("9999"));
}

#[test]
fn values_that_are_not_finite_are_an_error_and_harmless_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let mut talker = Talker::new(b"ok", "{{ messages[-1].content }}");
    // A third layer: later tokens attend to the second layer's result.
    (talker.overflow, talker.layers) = (Some((1, b'h')), 3);
    talker.write(folder.path());
    let engine = Engine::open_reference(folder.path(), &EngineOptions::default()).unwrap();
    let mut session = engine.session(SessionOptions::default()).unwrap();
    let mut ask = |prompt: &[u8]| {
        let prompt: Vec<u32> = prompt.iter().map(|&b| b.into()).collect();
        session.generate(&prompt, &greedy(4), &mut |_| ()).map(|outcome| outcome.reused_tokens)
    };
    assert_eq!(ask(b"abc").unwrap(), 0);
    let error = ask(b"abchd").unwrap_err();
    let Error::NotFinite { place } = &error else { panic!("{error}") };
    assert_eq!(place, "in layer 1 at token 3");
    assert_eq!(ask(b"abcd").unwrap(), 0, "keys and values that are no numbers are not kept");
    assert_eq!(ask(b"abcde").unwrap(), 4);
    let logits = session.logits(&[u32::from(b'h')]).unwrap_err();
    assert!(matches!(logits, Error::NotFinite { .. }) && session.tokens().is_empty(), "{logits}");
}

#[test]
fn higher_levels_are_closer_to_the_reference() {
    for name in ["olmoe", "qwen2moe", "mixtral", "qwen3"] {
        let tiny = Tiny::load(name);
        let folder = tempfile::tempdir().unwrap();
        tiny.write_folder(folder.path());
        let mut errors = Vec::new();
        for level in dollop::Level::ALL {
            let out = folder.path().join("out.gguf");
            let options =
                dollop::convert::ConvertOptions::default().with_level_dense(level).with_max_level(level);
            dollop::convert::convert(folder.path(), &out, &options, &CancelToken::new(), &mut |_| ())
                .unwrap();
            let engine = Engine::open(&out, &EngineOptions::default()).unwrap();
            let got = engine.session(SessionOptions::default()).unwrap().logits(&tiny.tokens).unwrap();
            // The median over positions: if a router's two best experts are close, another expert may be chosen.
            let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let mut relative: Vec<f64> = (got.iter().zip(&tiny.logits))
                .map(|(g, w)| norm(&mut g.iter().zip(w).map(|(g, w)| g - w)) / norm(&mut w.iter().copied()))
                .collect();
            relative.sort_by(f64::total_cmp);
            errors.push(relative[relative.len() / 2]);
        }
        let relative = errors;
        println!("{name}: relative error of logits at 2, 3, 4, 6, 8 bits: {relative:.4?}");
        assert!(relative.windows(2).all(|w| w[1] < w[0]), "{name}: {relative:?}");
        // The remaining error at 8 bits is mostly the rounding of activations, and differs a little between processors.
        assert!(relative[4] < 0.04, "{name}: {relative:?}");
    }
}
