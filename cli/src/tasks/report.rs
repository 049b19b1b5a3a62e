//! The report of `dollop eval --tasks`.

use super::items::{Item, Kind};
use super::score;
use super::tools::Shown;
use crate::screen::one_line;
use dollop::{Outcome, StopReason};
use serde::Serialize;

/// The most characters of an answer in a line.
const SHOWN: usize = 160;

/// The answers at one precision.
#[derive(Serialize)]
pub struct Column {
    pub column: String,
    pub model: String,
    pub mode: String,
    pub backend: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_lost: Option<String>,
    /// Where the prompt described tools, if any item needed them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tools: Option<Shown>,
    pub kinds: Vec<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<serde_json::Value>,
    #[serde(skip)]
    pub stream_report: Option<String>,
    pub answers: Vec<Answer>,
}

/// The answers of one kind.
#[derive(Debug, PartialEq, Serialize)]
pub struct Count {
    pub kind: Kind,
    pub right: usize,
    pub total: usize,
    /// Answers that repeat themselves without end, right or wrong.
    pub loops: usize,
}

/// The result of one item.
#[derive(Serialize)]
pub struct Answer {
    pub kind: Kind,
    pub number: usize,
    pub ask: String,
    pub answer: String,
    pub right: bool,
    /// What is wrong with the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    pub loops: bool,
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub tokens: usize,
    pub stop: StopReason,
}

impl Answer {
    pub fn new(item: &Item, outcome: Outcome) -> Answer {
        let why = score::score(item, &outcome.text).err();
        Answer {
            kind: item.kind,
            number: item.number,
            ask: item.ask.clone(),
            right: why.is_none(),
            why,
            loops: score::loops(&outcome.tokens, outcome.stop),
            prompt_tokens: outcome.prompt_tokens,
            tokens: outcome.tokens.len(),
            stop: outcome.stop,
            answer: outcome.text,
        }
    }
}

pub fn count(kind: Kind, answers: &[Answer]) -> Count {
    let of = |which: fn(&Answer) -> bool| answers.iter().filter(|a| a.kind == kind && which(a)).count();
    Count { kind, right: of(|a| a.right), total: of(|_| true), loops: of(|a| a.loops) }
}

/// A table of kinds by columns, followed by a description of the columns.
pub fn table(columns: &[Column], kinds: &[Kind]) -> String {
    let mut text = format!("| tasks, version {} |", super::items::version());
    for column in columns {
        text += &format!(" {} | loops |", column.column);
    }
    text += &format!("\n|---|{}\n", "---:|---:|".repeat(columns.len()));
    for (i, kind) in kinds.iter().enumerate() {
        text += &format!("| {} |", kind.name());
        for Count { right, total, loops, .. } in columns.iter().map(|column| &column.kinds[i]) {
            text += &format!(" {right}/{total} | {loops} |");
        }
        text.push('\n');
    }
    for Column { column, model, mode, backend, tools, gpu_lost, stream_report, .. } in columns {
        let notes = [tools.and_then(Shown::note), gpu_lost.as_deref()].into_iter().flatten();
        let notes: String = notes.map(|note| format!("; {note}")).collect();
        text += &format!("\n{column}: {}; {mode}; {backend}{notes}", one_line(model));
        if let Some(report) = stream_report {
            text += &format!("\n{report}");
        }
    }
    text
}

/// A line for every wrong item: which it is, the question and the answer, and why it is wrong.
pub fn failures(columns: &[Column]) -> Vec<String> {
    let of = |column: &Column| -> Vec<String> {
        let wrong = column.answers.iter().filter(|answer| !answer.right);
        wrong.map(|answer| answer.line(&column.column)).collect()
    };
    columns.iter().flat_map(of).collect()
}

impl Answer {
    fn line(&self, column: &str) -> String {
        let cut = |text: &str| {
            let shown: String = text.trim().chars().take(SHOWN).collect();
            one_line(&shown) + if text.trim().chars().count() > SHOWN { "…" } else { "" }
        };
        let (kind, why) = (self.kind.name(), self.why.as_deref().unwrap_or_default());
        let loops = if self.loops { " (loops)" } else { "" };
        format!(
            "{column} {kind} {}: {}{loops}: {} -> {}",
            self.number,
            one_line(why),
            cut(&self.ask),
            cut(&self.answer)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::items::{Check, items};
    use super::*;

    fn answered(text: &str, tokens: Vec<u32>, stop: StopReason) -> Answer {
        let item = items(&[Kind::Arithmetic]).swap_remove(0);
        assert!(matches!(item.check, Check::Number(43.0)));
        let mut outcome = Outcome::default();
        (outcome.text, outcome.tokens, outcome.stop) = (text.to_owned(), tokens, stop);
        Answer::new(&item, outcome)
    }

    #[test]
    fn right_wrong_and_endless_answers_are_counted_and_shown() {
        let answers = vec![
            answered("43", vec![1], StopReason::EndOfTurn),
            answered("44\n\x1b[2J", vec![2, 3], StopReason::EndOfTurn),
            answered(&"x".repeat(500), vec![7; 160], StopReason::MaxTokens),
        ];
        let kinds = [Kind::Arithmetic, Kind::Copy];
        let counts: Vec<Count> = kinds.iter().map(|kind| count(*kind, &answers)).collect();
        assert_eq!(counts[0], Count { kind: Kind::Arithmetic, right: 1, total: 3, loops: 1 });
        assert_eq!(counts[1], Count { kind: Kind::Copy, right: 0, total: 0, loops: 0 });
        let column = Column {
            column: "exact:2".into(),
            model: "m\ne".into(),
            mode: "resident".into(),
            backend: "CPU".into(),
            gpu_lost: None,
            tools: Some(Shown::System),
            kinds: counts,
            stream: None,
            stream_report: None,
            answers,
        };
        let columns = [column];
        let table = table(&columns, &kinds);
        assert!(table.starts_with("| tasks, version 1 | exact:2 | loops |\n|---|---:|---:|\n"), "{table}");
        assert!(table.contains("\n| arithmetic | 1/3 | 1 |\n| copy | 0/0 | 0 |\n"), "{table}");
        assert!(
            table.contains("\nexact:2: m\\ne; resident; CPU; the chat template shows no tools"),
            "{table}"
        );
        let lines = failures(&columns);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "exact:2 arithmetic 1: ends with 2, not 43: What is 17 + 26? -> 44\\n\\x1b[2J");
        assert!(lines[1].contains("has no number") && lines[1].contains("(loops)"), "{}", lines[1]);
        assert!(lines[1].ends_with("x…") && lines[1].len() < 300);
    }
}
