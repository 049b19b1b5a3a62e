//! Gates 120 to 122, and 125: constrained answers. Random schemas hold at random sampling; forced tokens change no text;
//! a GPU gives the CPU's answer; a constraint waits for the end of reasoning; an impossible constraint is an error.

#[cfg(feature = "gpu")]
#[path = "constraints/backends.rs"]
mod backends;
#[path = "constraints/schemas.rs"]
mod schemas;
#[path = "constraints/suite.rs"]
mod suite;
#[path = "constraints/thinking.rs"]
mod thinking;
#[path = "constraints/vocabularies.rs"]
mod vocabularies;

use dollop::sampler::{Mirostat, Sampling};
use dollop::{
    Constraint, Engine, EngineOptions, Error, GenerateOptions, Outcome, Session, SessionOptions, StopReason,
};
use dollop_tests::chance::Chance;
use dollop_tests::{full, set, short_model};
use schemas::schema;
use serde_json::{Value as Json, json};

fn session() -> Session {
    let engine = Engine::open(short_model(), &EngineOptions::default().with_threads(2)).unwrap();
    engine.session(SessionOptions::default().with_context(1024)).unwrap()
}

fn say(
    session: &mut Session,
    constraint: &Constraint,
    sampling: Sampling,
    most: usize,
) -> dollop::Result<Outcome> {
    let prompt = session.engine().encode_text("An answer: ")?;
    let options = GenerateOptions::default()
        .with_max_tokens(most)
        .with_sampling(sampling)
        .with_constraint(constraint.clone());
    session.generate(&prompt, &options, &mut |_| ())
}

/// Samplers of all kinds.
fn sampling(i: usize) -> Sampling {
    let seed = Sampling::default().with_seed(i as u64);
    match i % 6 {
        0 => Sampling::greedy(),
        1 => seed.with_temperature(1.5),
        2 => seed.with_temperature(0.8).with_top_k(3),
        3 => set!(Sampling { mirostat: Mirostat::V2, ..seed }),
        4 => set!(Sampling { min_p: 0.2, xtc_probability: 0.5, ..seed }),
        _ => set!(Sampling { dry_multiplier: 1.0, top_p: 0.5, repeat_penalty: 1.2, ..seed }),
    }
}

#[test]
fn gate_120_random_schemas_are_obeyed() {
    let (cases, mut session, mut chance) = (if full() { 1000 } else { 80 }, session(), Chance(1));
    let (mut valid, mut tokens, mut forced, mut texts) = (0, 0, 0, std::collections::HashSet::new());
    for case in 0..cases {
        let schema = schema(&mut chance, 2);
        let constraint = Constraint::json_schema(schema.to_string());
        let outcome = say(&mut session, &constraint, sampling(case), 300)
            .unwrap_or_else(|e| panic!("case {case}: {schema}: {e}"));
        (tokens, forced) = (tokens + outcome.tokens.len(), forced + outcome.forced_tokens);
        if outcome.stop == StopReason::MaxTokens {
            continue;
        }
        assert_eq!(outcome.stop, StopReason::EndOfTurn);
        let value: Json = serde_json::from_str(&outcome.text)
            .unwrap_or_else(|e| panic!("case {case}: {schema}: {:?}: {e}", outcome.text));
        let validator = jsonschema::validator_for(&schema).unwrap();
        if let Err(e) = validator.validate(&value) {
            panic!("case {case}: {schema}: {value}: {e}");
        }
        texts.insert(outcome.text);
        valid += 1;
    }
    println!(
        "{valid} of {cases} valid, the rest cut off; {} differ; {tokens} tokens, {forced} forced",
        texts.len()
    );
    assert!(valid * 10 > cases * 9, "{valid} of {cases} were not cut off");
    assert!(texts.len() > cases / 4 && forced > cases, "{} answers, {forced} forced tokens", texts.len());
}

#[test]
fn gate_121_forced_tokens_change_no_text() {
    let (mut session, mut chance, mut forced) = (session(), Chance(2), 0);
    let mut constraints: Vec<Constraint> =
        (0..12).map(|_| Constraint::json_schema(schema(&mut chance, 1).to_string())).collect();
    constraints.push(Constraint::regex("The year was (19|20)[0-9]{2}, and it was (good|bad)\\."));
    constraints.push(Constraint::regex(" ?é+ Zürich"));
    constraints.push(Constraint::lark(
        "start: \"[\" item (\", \" item)* \"]\"\nitem: \"one item\" | \"two items\"\n",
    ));
    for (i, constraint) in constraints.iter().enumerate() {
        // XTC draws a random number for every token, forced or not.
        for sampling in [Sampling::greedy(), Sampling::default().with_seed(i as u64)] {
            let quick = say(&mut session, constraint, sampling.clone(), 100).unwrap();
            let slow = say(&mut session, &constraint.clone().one_by_one(), sampling, 100).unwrap();
            assert_eq!(
                (&quick.text, &quick.tokens, quick.stop),
                (&slow.text, &slow.tokens, slow.stop),
                "{constraint:?}"
            );
            assert_eq!(slow.forced_tokens, quick.forced_tokens);
            forced += quick.forced_tokens;
        }
    }
    println!("{forced} forced");
    assert!(forced > 100, "{forced} tokens were forced");
    let year = say(&mut session, &constraints[12], Sampling::greedy(), 100).unwrap();
    assert!(year.forced_tokens >= 5 && year.text.starts_with("The year was "), "{year:?}");
    // Forced tokens count, and stop at the limit.
    let cut = say(&mut session, &constraints[12], Sampling::greedy(), 2).unwrap();
    assert_eq!(
        (cut.tokens.len(), cut.stop, cut.tokens[..] == year.tokens[..2]),
        (2, StopReason::MaxTokens, true)
    );
}

#[test]
fn a_bias_cannot_break_a_constraint_and_the_session_goes_on() {
    let mut session = session();
    let no = |token| dollop::sampler::LogitBias { token, bias: f32::NEG_INFINITY };
    let digits: Vec<_> = (0..10u32)
        .filter_map(|d| session.engine().tokenizer().unwrap().token_id(&d.to_string()))
        .map(no)
        .collect();
    assert_eq!(digits.len(), 10);
    let biased = set!(Sampling { logit_bias: digits, ..Sampling::greedy() });
    let outcome = say(&mut session, &Constraint::regex("[0-9]{3}"), biased, 20).unwrap();
    assert!(outcome.text.len() == 3 && outcome.text.parse::<u32>().is_ok(), "{outcome:?}");
    let free = say(&mut session, &Constraint::regex("(?s:.*)"), Sampling::greedy(), 5).unwrap();
    assert_eq!((free.stop, free.tokens.len()), (StopReason::MaxTokens, 5));
}

/// Gate 125.
#[test]
fn gate_125_what_cannot_be_obeyed_is_an_error_that_says_why() {
    let mut session = session();
    let mut refused = |constraint: Constraint, words: &[&str]| {
        let error = say(&mut session, &constraint, Sampling::greedy(), 4).map(|o| o.text).unwrap_err();
        let Error::Invalid(text) = &error else { panic!("{error:?}") };
        for word in words {
            assert!(text.contains(word), "`{word}` is not in {text}");
        }
        assert!(text.len() < 2000, "{text}");
    };
    refused(Constraint::json_schema("{\"type\": "), &["JSON Schema", "line 1 column"]);
    refused(Constraint::json_schema(r#"{"type": "strin"}"#), &["JSON Schema", "strin"]);
    let deep = json!({"properties": {"a": {"type": "object", "unevaluatedProperties": false}}});
    refused(Constraint::json_schema(deep.to_string()), &["at /properties/a: ", "unevaluatedProperties"]);
    let list = json!({"$defs": {"a b": {"anyOf": [{"type": "null"}, {"type": "strin"}]}}, "items": {"$ref": "#/$defs/a b"}});
    refused(Constraint::json_schema(list.to_string()), &["strin", "/anyOf/1: "]);
    refused(Constraint::json_schema(r#"{"$ref": "http://a.example/b"}"#), &["JSON Schema"]);
    refused(Constraint::json_schema(r#"{"$ref": "file:///etc/passwd"}"#), &["JSON Schema"]);
    refused(Constraint::json_schema(r#"{"type": "string", "pattern": "a(b"}"#), &["JSON Schema"]);
    refused(Constraint::json_schema(r#"{"type": "integer", "minimum": 5, "maximum": 2}"#), &["JSON Schema"]);
    refused(Constraint::json_schema("[".repeat(100) + &"]".repeat(100)), &["64 levels"]);
    refused(Constraint::json_schema("[".repeat(1000) + &"]".repeat(1000)), &["JSON"]);
    refused(Constraint::json_schema(" ".repeat(300 << 10)), &["262144"]);
    refused(Constraint::regex("a(b"), &["regular expression"]);
    refused(Constraint::regex("(?=a)b"), &["regular expression"]);
    refused(Constraint::regex("(((a{1000}){1000}){1000}){1000}"), &["too many", "a simpler one may work"]);
    refused(Constraint::lark("start: nothing"), &["grammar", "nothing"]);
    refused(Constraint::lark("begin: \"a\""), &["grammar", "start"]);
    refused(Constraint::lark("start: start \"a\"\n"), &["grammar"]);
    // The session is still usable.
    let outcome = say(&mut session, &Constraint::regex("yes|no"), Sampling::greedy(), 4).unwrap();
    assert!(["yes", "no"].contains(&outcome.text.as_str()));
}
