//! The tasks: `items.json`, turned into prompts with the checks for their answers.
//!
//! Results of one version are comparable: a change of an item, a prompt or a scoring rule must raise the version.

use super::facts::Fact;
use serde::Deserialize;
use serde_json::Value as Json;

const FILE: &str = include_str!("items.json");

/// What a task tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Json,
    Tools,
    Arithmetic,
    Copy,
    Retrieval,
    Facts,
}

impl Kind {
    pub const ALL: [Kind; 6] =
        [Kind::Json, Kind::Tools, Kind::Arithmetic, Kind::Copy, Kind::Retrieval, Kind::Facts];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Json => "json",
            Kind::Tools => "tools",
            Kind::Arithmetic => "arithmetic",
            Kind::Copy => "copy",
            Kind::Retrieval => "retrieval",
            Kind::Facts => "facts",
        }
    }

    /// Maximum tokens of an answer: several times what a good one needs, so that a loop can show.
    pub fn max_tokens(self) -> usize {
        match self {
            Kind::Json | Kind::Tools | Kind::Arithmetic => 160,
            Kind::Copy => 96,
            Kind::Retrieval | Kind::Facts => 64,
        }
    }
}

/// One question.
pub struct Item {
    pub kind: Kind,
    /// Its number within its kind, from 1.
    pub number: usize,
    /// The question as a report shows it.
    pub ask: String,
    /// The prompt for the model.
    pub prompt: String,
    pub check: Check,
}

/// The check of an answer.
pub enum Check {
    /// A JSON schema.
    Json(Json),
    /// The tools to offer, as chat templates expect them, and the name of the one to call.
    Call {
        tools: Vec<Json>,
        name: String,
    },
    Number(f64),
    Copy(String),
    /// Any of these, as whole words.
    Words(Vec<String>),
    Fact(Fact),
}

#[derive(Deserialize)]
struct File {
    version: u32,
    json: Vec<JsonItem>,
    tools: Tools,
    arithmetic: Vec<Sum>,
    copy: Vec<String>,
    retrieval: Retrieval,
    facts: Vec<Group>,
}

#[derive(Deserialize)]
struct JsonItem {
    ask: String,
    schema: Json,
}

#[derive(Deserialize)]
struct Tools {
    tools: Vec<Json>,
    items: Vec<ToolItem>,
}

#[derive(Deserialize)]
struct ToolItem {
    ask: String,
    tools: Vec<String>,
    call: String,
}

#[derive(Deserialize)]
struct Sum {
    ask: String,
    answer: f64,
}

#[derive(Deserialize)]
struct Retrieval {
    filler: Vec<String>,
    items: Vec<Hidden>,
}

/// A fact hidden after the first `at` of `sentences` filler sentences.
#[derive(Deserialize)]
struct Hidden {
    fact: String,
    ask: String,
    accept: Vec<String>,
    sentences: usize,
    at: usize,
}

/// Questions of one kind, each with its accepted answers.
#[derive(Deserialize)]
struct Group {
    /// Whether the answer of another question of the group makes a right answer wrong.
    closed: bool,
    /// Further wrong answers.
    also: Vec<String>,
    items: Vec<Vec<String>>,
}

fn file() -> File {
    serde_json::from_str(FILE).expect("the file is a constant, and tests read it")
}

/// The version of the list.
pub fn version() -> u32 {
    file().version
}

/// The items of some kinds, kind by kind.
pub fn items(kinds: &[Kind]) -> Vec<Item> {
    let file = file();
    kinds.iter().flat_map(|kind| of_kind(*kind, &file)).collect()
}

fn of_kind(kind: Kind, file: &File) -> Vec<Item> {
    let item = |i: usize, ask: &str, prompt: String, check: Check| {
        let (number, ask) = (i + 1, ask.to_owned());
        Item { kind, number, ask, prompt, check }
    };
    match kind {
        Kind::Json => each(&file.json, |i, j: &JsonItem| {
            item(i, &j.ask, format!("{} Answer with JSON only.", j.ask), Check::Json(j.schema.clone()))
        }),
        Kind::Tools => each(&file.tools.items, |i, t: &ToolItem| {
            let tools = t.tools.iter().map(|name| file.tools.named(name)).collect();
            item(i, &t.ask, t.ask.clone(), Check::Call { tools, name: t.call.clone() })
        }),
        Kind::Arithmetic => each(&file.arithmetic, |i, s: &Sum| {
            item(i, &s.ask, format!("{} Answer in digits.", s.ask), Check::Number(s.answer))
        }),
        Kind::Copy => each(&file.copy, |i, text: &String| {
            let prompt = format!("Repeat this text exactly, and write nothing else:\n{text}");
            item(i, text, prompt, Check::Copy(text.clone()))
        }),
        Kind::Retrieval => each(&file.retrieval.items, |i, hidden: &Hidden| {
            let prompt = hidden.prompt(&file.retrieval.filler, i);
            item(i, &hidden.ask, prompt, Check::Words(hidden.accept.clone()))
        }),
        Kind::Facts => {
            let facts = file.facts.iter().flat_map(Group::facts);
            facts
                .enumerate()
                .map(|(i, fact)| item(i, &fact.ask.clone(), fact.ask.clone(), Check::Fact(fact)))
                .collect()
        }
    }
}

fn each<T>(list: &[T], item: impl Fn(usize, &T) -> Item) -> Vec<Item> {
    list.iter().enumerate().map(|(i, t)| item(i, t)).collect()
}

impl Tools {
    fn named(&self, name: &str) -> Json {
        let found = self.tools.iter().find(|tool| tool["function"]["name"] == name);
        found.expect("items name tools of the list").clone()
    }
}

impl Hidden {
    /// Each item starts at another place in the filler, so that no two items share their text.
    fn prompt(&self, filler: &[String], number: usize) -> String {
        let from = filler.iter().cycle().skip(7 * number);
        let mut text: Vec<&str> = from.take(self.sentences).map(String::as_str).collect();
        text.insert(self.at, &self.fact);
        format!("Read this text.\n\n{}\n\n{} Answer in a few words.", text.join(" "), self.ask)
    }
}

impl Group {
    fn facts(&self) -> Vec<Fact> {
        let answers = || self.items.iter().flat_map(|item| &item[1..]).chain(&self.also);
        let fact = |item: &Vec<String>| {
            let (ask, accept) = item.split_first().expect("a question");
            let others = answers().filter(|other| self.closed && !accept.contains(other));
            Fact {
                ask: ask.clone(),
                accept: accept.to_vec(),
                others: others.cloned().collect(),
                closed: self.closed,
            }
        };
        self.items.iter().map(fact).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{schema, words};
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kind_has_its_items_and_no_prompt_comes_twice() {
        let count = |kind| items(&[kind]).len();
        assert_eq!(count(Kind::Facts), 200);
        for kind in Kind::ALL {
            assert!(count(kind) >= 15, "{}", kind.name());
        }
        let all = items(&Kind::ALL);
        let prompts: BTreeSet<&str> = all.iter().map(|item| item.prompt.as_str()).collect();
        assert_eq!(prompts.len(), all.len());
        let numbers: Vec<usize> = all.iter().take(3).map(|item| item.number).collect();
        assert_eq!((numbers, version()), (vec![1, 2, 3], 1));
    }

    #[test]
    fn schemas_say_nothing_that_is_not_checked() {
        let file = file();
        let parameters = file.tools.tools.iter().map(|tool| &tool["function"]["parameters"]);
        for schema in file.json.iter().map(|item| &item.schema).chain(parameters) {
            assert_eq!(schema::unknown(schema), None, "{schema}");
        }
    }

    #[test]
    fn what_is_hidden_is_said_once_and_far_from_short() {
        let filler = file().retrieval.filler;
        for (i, hidden) in file().retrieval.items.iter().enumerate() {
            assert!(hidden.sentences <= filler.len() && hidden.at <= hidden.sentences);
            let prompt = hidden.prompt(&filler, i);
            let words = prompt.split_whitespace().count();
            assert!((270..=900).contains(&words), "{}: {words} words", hidden.fact);
            for answer in &hidden.accept {
                assert!(!words::contains(&hidden.ask, answer), "{}", hidden.ask);
                assert!(filler.iter().all(|sentence| !words::contains(sentence, answer)), "{answer}");
            }
            assert!(hidden.accept.iter().any(|answer| words::contains(&hidden.fact, answer)));
        }
    }

    #[test]
    fn no_question_gives_its_answer_away() {
        for item in items(&[Kind::Facts]) {
            let Check::Fact(fact) = &item.check else { panic!("{}", item.ask) };
            for answer in &fact.accept {
                assert!(!words::contains(&item.ask, answer), "{}: {answer}", item.ask);
            }
        }
    }
}
