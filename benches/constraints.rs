//! The cost of a constraint per token: the mask of allowed tokens, and the number of forced tokens.
//!
//!     cargo run --release -p dollop-benches --bin constraints -- tokenizer.json
//!
//! Documents are consumed token by token, like a model's answer.

use dollop::Constraint;
use dollop::internal::grammar::Words;
use dollop::tokenizer::Tokenizer;
use serde_json::{Value as Json, json};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error>;

/// A person, an order of several things, and any JSON.
fn cases() -> [(&'static str, Json, Json); 3] {
    let text = |most: u32| json!({"type": "string", "maxLength": most});
    let object = |properties: Json| {
        let all: Vec<String> =
            properties.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
        json!({"type": "object", "properties": properties, "required": all, "additionalProperties": false})
    };
    let person = object(json!({"name": text(40), "born": {"type": "string", "format": "date"},
        "kind": {"enum": ["author", "editor", "reader"]}, "tags": {"type": "array", "items": text(20), "maxItems": 5}}));
    let item = object(
        json!({"name": text(60), "count": {"type": "integer", "minimum": 1, "maximum": 99}, "price": {"type": "number"}}),
    );
    let order = object(
        json!({"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{6}$"}, "items": {"type": "array", "items": item}}),
    );
    let thing = json!({"name": "Rope, 20 m, \"strong\" – für draußen", "count": 12, "price": 19.95});
    let born = json!({"name": "Ada Lovelace, Countess", "born": "1815-12-10", "kind": "author", "tags": ["mathematics", "engines"]});
    let bought = json!({"id": "AB-123456", "items": [thing, thing, thing]});
    [
        ("a person", person, born.clone()),
        ("an order", order, bought.clone()),
        ("any JSON", json!({"type": "object"}), json!([born, bought])[1].clone()),
    ]
}

/// JSON with a space after commas and colons, as constraints write it.
fn spaced(value: &Json) -> String {
    match value {
        Json::Array(all) => format!("[{}]", all.iter().map(spaced).collect::<Vec<_>>().join(", ")),
        Json::Object(all) => {
            let pair =
                |(key, value): (&String, &Json)| format!("{}: {}", Json::from(key.as_str()), spaced(value));
            format!("{{{}}}", all.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn main() -> Result<(), Failure> {
    let path = std::env::args().nth(1).ok_or("constraints tokenizer.json")?;
    let tokenizer = Tokenizer::from_json(&std::fs::read_to_string(path)?)?;
    let vocab = tokenizer.vocab_size();
    let start = Instant::now();
    let words = Words::new(&tokenizer, vocab, &[])?;
    println!("{vocab} tokens: the tree in {:.0} ms", 1e3 * start.elapsed().as_secs_f64());
    for (name, schema, document) in cases() {
        let constraint = Constraint::json_schema(schema.to_string());
        let start = Instant::now();
        words.guide(&constraint)?;
        let compiled = start.elapsed();
        let (mut times, mut forced, mut tokens) = (Vec::<Duration>::new(), 0, 0);
        // The first round fills the caches, as a long answer would have.
        for round in 0..20 {
            let mut guide = words.guide(&constraint)?;
            let ids = tokenizer.encode(&spaced(&document), false)?;
            let mut at = 0;
            while at < ids.len() {
                let must = guide.forced();
                if must.is_empty() {
                    let start = Instant::now();
                    let mask = guide.mask()?;
                    times.push(start.elapsed());
                    assert!(mask.allows(ids[at]), "{name}: token {at} of {:?}", spaced(&document));
                    guide.take(ids[at])?;
                    at += 1;
                } else {
                    assert!(ids[at..].starts_with(&must), "{name}: forced otherwise at {at}");
                    must.iter().try_for_each(|&id| guide.take(id))?;
                    (forced, at) = (forced + must.len(), at + must.len());
                }
            }
            tokens += ids.len();
            if round == 0 {
                times.clear();
            }
        }
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        let (median, most) = (at(0.5), at(0.99));
        let compiled = 1e3 * compiled.as_secs_f64();
        println!(
            "{name}: compiled in {compiled:.1} ms; {} tokens, {:.0} % forced; a mask takes {median:.1} µs (median), {most:.0} µs (99 %)",
            tokens / 20,
            100.0 * forced as f64 / tokens as f64
        );
    }
    Ok(())
}
