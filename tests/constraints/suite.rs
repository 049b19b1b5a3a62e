//! Gate 192: the official JSON-Schema-Test-Suite. Each schema is supported or refused with an error. Under a
//! supported one, no invalid instance can be written, and every valid instance can, but for those listed here.

use dollop::internal::grammar::{Guide, Words};
use dollop::tokenizer::Tokenizer;
use dollop::{Constraint, Engine, EngineOptions, Error};
use dollop_tests::{root, short_model};
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;

/// Drafts of the suite, with the `$schema` that selects them if a schema has none.
const DRAFTS: [(&str, &str); 2] = [
    ("draft2020-12", "https://json-schema.org/draft/2020-12/schema"),
    ("draft7", "http://json-schema.org/draft-07/schema#"),
];

/// The most spellings of an instance to try.
const MAX_SPELLINGS: usize = 800;

/// Valid instances that are not written, besides strings that break their `format`.
const UNWRITTEN: [&str; 4] = [
    "draft2020-12/const: float and integers are equal up to 64-bit representation limits: float is valid",
    "draft2020-12/vocabulary: schema that uses custom metaschema with with no validation vocabulary: no validation: invalid number, but it still validates",
    "draft7/const: float and integers are equal up to 64-bit representation limits: float is valid",
    "draft7/ref: ref overrides any sibling keywords: ref valid, maxItems ignored",
];

/// Results of the schemas of one file, which is about one keyword.
#[derive(Default)]
struct Counts {
    schemas: usize,
    refused: usize,
    valid: usize,
    written: usize,
    invalid: usize,
}

/// All spellings of an instance that a constraint may ask for: it fixes the order of keys and the white space,
/// and writes integers without a fraction.
fn spellings(of: &Json) -> Vec<String> {
    let join = |all: &[String], item: Vec<String>| -> Vec<String> {
        let next = |before: &String| {
            item.iter()
                .map(move |item| match before.is_empty() {
                    true => item.clone(),
                    false => format!("{before}, {item}"),
                })
                .collect::<Vec<_>>()
        };
        all.iter().flat_map(next).take(MAX_SPELLINGS).collect()
    };
    match of {
        Json::Number(n) => {
            let whole = n.as_f64().filter(|f| f.fract() == 0.0 && f.abs() < 1e15);
            let mut all = vec![n.to_string()];
            all.extend(whole.map(|f| format!("{f:.0}")).filter(|text| *text != n.to_string()));
            all
        }
        Json::Array(list) => {
            let empty = vec![String::new()];
            let inner = list.iter().fold(empty, |all, item| join(&all, spellings(item)));
            inner.into_iter().map(|inner| format!("[{inner}]")).collect()
        }
        Json::Object(map) => {
            let pair = |key: &String| -> Vec<String> {
                let values = spellings(&map[key]);
                values.into_iter().map(|value| format!("{}: {value}", Json::from(key.as_str()))).collect()
            };
            let keys: Vec<&String> = map.keys().collect();
            let mut all = Vec::new();
            for order in orders(keys.len()) {
                let empty = vec![String::new()];
                all.extend(order.iter().fold(empty, |all, &i| join(&all, pair(keys[i]))));
                if all.len() >= MAX_SPELLINGS {
                    break;
                }
            }
            all.into_iter().map(|inner| format!("{{{inner}}}")).collect()
        }
        other => vec![other.to_string()],
    }
}

/// The orders of `n` keys, or some of them.
fn orders(n: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for next in 0..n {
        let insert = |order: &Vec<usize>| {
            let order = order.clone();
            (0..=order.len()).rev().map(move |at| [&order[..at], &[next], &order[at..]].concat())
        };
        all = all.iter().flat_map(insert).take(MAX_SPELLINGS).collect();
    }
    all
}

/// Whether an answer under the constraint can be this text.
fn writes(words: &Words, constraint: &Constraint, tokenizer: &Tokenizer, ends: &[u32], text: &str) -> bool {
    let mut guide: Guide = words.guide(constraint).unwrap();
    for id in tokenizer.encode(text, false).unwrap() {
        if guide.take(id).is_err() {
            return false;
        }
    }
    guide.is_over() || guide.mask().is_ok_and(|mask| ends.iter().any(|&id| mask.allows(id)))
}

/// The suite's schema, with the draft that it belongs to.
fn schema(of: &Json, draft: &str) -> String {
    let mut of = of.clone();
    if let Json::Object(map) = &mut of {
        map.entry("$schema").or_insert(draft.into());
    }
    of.to_string()
}

#[test]
fn gate_192_the_official_suite_is_obeyed_or_refused() {
    let engine = Engine::open(short_model(), &EngineOptions::default().with_threads(2)).unwrap();
    let (words, tokenizer) = (engine.words().unwrap(), engine.tokenizer().unwrap());
    let ends = &engine.special_tokens().ends;
    let folder = root().join("target/goldens/json-schema-suite");
    assert!(folder.exists(), "{} is missing: run tests/goldens/fetch.sh (./check does)", folder.display());
    let (mut unwritten, mut broken, mut table) = (BTreeSet::new(), BTreeSet::new(), String::new());
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut whole = Counts::default();
    for (draft, name) in DRAFTS {
        let mut files: Vec<_> =
            fs::read_dir(folder.join(draft)).unwrap().flatten().map(|e| e.path()).collect();
        files.retain(|path| path.is_file());
        files.sort();
        for path in files {
            let keyword = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let groups: Vec<Map<String, Json>> =
                serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
            let mut n = Counts::default();
            for group in groups {
                n.schemas += 1;
                let constraint = match engine.compile(Constraint::json_schema(schema(&group["schema"], name)))
                {
                    Ok(constraint) => constraint,
                    Err(Error::Invalid(why)) => {
                        assert!(why.contains("JSON Schema"), "{why}");
                        *reasons.entry(why).or_default() += 1;
                        n.refused += 1;
                        continue;
                    }
                    Err(e) => panic!("{e}"),
                };
                for test in group["tests"].as_array().unwrap() {
                    let can = |text: &String| writes(&words, &constraint, tokenizer, ends, text);
                    let (can, valid) = (spellings(&test["data"]).iter().any(can), test["valid"] == true);
                    let place = || {
                        let text = |json: &Json| json.as_str().unwrap().to_owned();
                        format!(
                            "{draft}/{keyword}: {}: {}",
                            text(&group["description"]),
                            text(&test["description"])
                        )
                    };
                    match (valid, can) {
                        (true, _) => {
                            n.valid += 1;
                            n.written += usize::from(can);
                            if !can {
                                unwritten.insert(place());
                            }
                        }
                        (false, true) => drop(broken.insert(place())),
                        (false, false) => n.invalid += 1,
                    }
                }
            }
            let Counts { schemas, refused, valid, written, invalid } = n;
            writeln!(
                table,
                "| {draft} | {keyword} | {schemas} | {refused} | {written} of {valid} | {invalid} |"
            )
            .unwrap();
            whole = Counts {
                schemas: whole.schemas + schemas,
                refused: whole.refused + refused,
                valid: whole.valid + valid,
                written: whole.written + written,
                invalid: whole.invalid + invalid,
            };
        }
    }
    println!("{table}");
    reasons.iter().for_each(|(why, n)| println!("{n} schemas: {why}"));
    unwritten.iter().for_each(|place| println!("valid, but not written: {place}"));
    broken.iter().for_each(|place| println!("INVALID, BUT WRITTEN: {place}"));
    let Counts { schemas, refused, valid, written, invalid } = whole;
    println!(
        "{schemas} schemas, {refused} refused; {written} of {valid} valid written; {invalid} invalid refused"
    );
    assert!(broken.is_empty(), "{broken:#?}");
    unwritten.retain(|place| !place.ends_with("is only an annotation by default"));
    assert_eq!(unwritten.iter().map(String::as_str).collect::<Vec<_>>(), UNWRITTEN);
    // As in benches/records/schemas.md.
    assert_eq!([schemas, refused, written, valid, invalid], [622, 326, 622, 636, 435]);
}
