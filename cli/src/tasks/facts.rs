//! Simple questions with one answer: capitals, sums, opposites, colours.

use super::score::Verdict;
use super::words::{self, Word, numbers, positions};

/// The number of words within which an answer must come to the point.
const WINDOW: usize = 20;

/// A question and its accepted answers.
pub struct Fact {
    pub ask: String,
    /// Any of these is right. Numbers may be digits or words.
    pub accept: Vec<String>,
    /// Wrong answers of the same kind.
    pub others: Vec<String>,
    /// Whether naming another answer of the same kind makes a right answer wrong.
    pub closed: bool,
}

/// A range of words, `[from, to)`.
type Span = (usize, usize);

/// Right if an accepted answer is in the first sentence, or in the first 20 words of a longer one, is not denied, and
/// no alternative is offered.
pub fn score(answer: &str, fact: &Fact) -> Verdict {
    let all = words::words(answer);
    let said = &all[..first_sentence(&all)];
    let found = fact.found(said);
    let Some(&span) = found.iter().find(|span| !denied(said, **span)) else {
        let what = if found.is_empty() { "does not say" } else { "denies" };
        return Err(format!("the first sentence {what} {}", fact.accept.join(" or ")));
    };
    if let Some(other) = fact.other(said) {
        return Err(format!("says {other} as well"));
    }
    match found.iter().any(|span| offered(said, *span)) || (!fact.closed && listed(said, span)) {
        true => Err("lists alternatives".to_owned()),
        false => Ok(()),
    }
}

impl Fact {
    fn number(&self) -> Option<f64> {
        self.accept.first().and_then(|answer| answer.parse().ok())
    }

    fn found(&self, said: &[Word]) -> Vec<Span> {
        let Some(want) = self.number() else {
            return self.accept.iter().flat_map(|answer| positions(said, answer)).collect();
        };
        numbers(said).into_iter().filter(|(value, _)| *value == want).map(|(_, span)| span).collect()
    }

    /// Another answer of the same kind. The answer may repeat words of the question, and `1` may be an
    /// article.
    fn other(&self, said: &[Word]) -> Option<String> {
        let asked = words::words(&self.ask);
        let Some(want) = self.number().filter(|_| self.closed) else {
            let said = |other: &&String| !positions(said, other).is_empty();
            return self.others.iter().find(|o| said(o) && positions(&asked, o).is_empty()).cloned();
        };
        let asked: Vec<f64> = numbers(&asked).into_iter().map(|(value, _)| value).collect();
        let other = |value: &f64| *value != want && *value != 1.0 && !asked.contains(value);
        numbers(said).into_iter().map(|(value, _)| value).find(other).map(|value| value.to_string())
    }
}

/// The number of words of the first sentence, at most [`WINDOW`].
fn first_sentence(all: &[Word]) -> usize {
    let ends = |i: usize| {
        let Word { text, gap, .. } = &all[i];
        let mark = gap.contains(['.', '!', '?']);
        // Neither `D.C.` nor `3.5` ends a sentence.
        let initial =
            gap.starts_with('.') && text.chars().count() == 1 && text.chars().all(char::is_alphabetic);
        mark && !initial && (gap.contains(char::is_whitespace) || i + 1 == all.len())
    };
    let end = (0..all.len()).find(|i| ends(*i)).map_or(all.len(), |i| i + 1);
    end.min(WINDOW)
}

fn denied(said: &[Word], (from, _): Span) -> bool {
    // `isn't` is two words.
    let before = |n: usize| from.checked_sub(n).map_or("", |i| said[i].text.as_str());
    matches!(before(1), "not" | "never" | "t")
}

/// `X or ANSWER`, `ANSWER or X`, `X/ANSWER`.
fn offered(said: &[Word], (from, to): Span) -> bool {
    let is_or = |i: Option<usize>| i.and_then(|i| said.get(i)).is_some_and(|word| word.text == "or");
    let slash = |i: Option<usize>| i.and_then(|i| said.get(i)).is_some_and(|word| word.gap.trim() == "/");
    let slashed = slash(from.checked_sub(1)) || (to < said.len() && slash(Some(to - 1)));
    is_or(from.checked_sub(1)) || is_or(Some(to)) || slashed
}

/// One of several single words between commas: `cold, cool, chilly`.
fn listed(said: &[Word], (from, to): Span) -> bool {
    let comma = |i: usize| said.get(i).is_some_and(|word| word.gap.starts_with(','));
    let joins = |i: usize| said.get(i).is_some_and(|word| matches!(word.text.as_str(), "and" | "or"));
    let behind = comma(to - 1) && to < said.len() && (comma(to) || joins(to + 1));
    let before = from >= 2 && comma(from - 1) && comma(from - 2);
    behind || before
}

#[cfg(test)]
mod tests {
    use super::super::items::{Check, Kind, items};
    use super::*;

    fn right(ask: &str, answer: &str) -> bool {
        let found = items(&[Kind::Facts]).into_iter().find(|item| item.ask == ask);
        let Some(Check::Fact(fact)) = found.map(|item| item.check) else { panic!("{ask}") };
        score(answer, &fact).is_ok()
    }

    #[test]
    fn the_answer_is_said_at_once_and_alone() {
        let france = "What is the capital of France?";
        for (answer, want) in [
            ("Paris", true),
            ("The capital of France is **Paris**.", true),
            ("PARIS! London is another city.", true),
            ("Paris, France.", true),
            ("The capital of France is Paris, which lies on the Seine.", true),
            ("", false),
            ("The capital of France is London.", false),
            ("France is a country. Its capital is Paris.", false),
            ("The capital of France is not Paris.", false),
            ("The capital isn't Paris.", false),
            ("It is not Lyon, it is Paris.", true),
            ("It is Paris or Lyon.", false),
            ("Lyon or Paris", false),
            ("Paris/Lyon", false),
            ("Paris, London, Rome, Berlin", false),
            ("Either London, I believe, and possibly Paris", false),
            ("Parisian", false),
            ("a b c d e f g h i j k l m n o p q r s Paris", true),
            ("a b c d e f g h i j k l m n o p q r s t Paris", false),
        ] {
            assert_eq!(right(france, answer), want, "{answer}");
        }
        assert!(right("What is the capital of Mexico?", "The capital of Mexico is Mexico City."));
        assert!(!right("What is the capital of Mexico?", "The capital is Mexico."));
        assert!(right("What is the capital of India?", "It is Delhi."));
        assert!(!right("What is the capital of Australia?", "Canberra and Sydney are."));
    }

    #[test]
    fn numbers_may_be_spelled_and_the_question_said_again() {
        for (answer, want) in [
            ("5", true),
            ("2 + 3 = 5.", true),
            ("Two plus three is five.", true),
            ("2 + 3 = 6", false),
            ("The answer is 5 or 6.", false),
            ("The answer is 5, 6 and 7.", false),
            ("5.5", false),
            ("-5", false),
            ("15", false),
            ("2 + 3 = 23", false),
        ] {
            assert_eq!(right("What is 2 + 3?", answer), want, "{answer}");
        }
        assert!(right("How many seconds are in a minute?", "There are sixty seconds in 1 minute."));
        assert!(!right("How many legs does a spider have?", "Spiders have 6 to 8 legs."));
        assert!(right("What is 3 - 1?", "3 - 1 = 2"));
    }

    #[test]
    fn opposites_and_colors() {
        for (answer, want) in [
            ("The opposite of hot is cold.", true),
            ("Cold", true),
            ("Cool, I think.", true),
            ("The opposite of hot is warm.", false),
            ("cold, chilly, freezing", false),
            ("cold, mild and warm", false),
            ("warm or cold", false),
            ("coldness", false),
        ] {
            assert_eq!(right("What is the opposite of hot?", answer), want, "{answer}");
        }
        let banana = "What color is a ripe banana?";
        assert!(right(banana, "A ripe banana is typically yellow."));
        assert!(!right(banana, "A ripe banana is yellow and green."));
        assert!(!right(banana, "A ripe banana is yellow, sometimes with purple spots."));
        assert!(right("What color do you get when you mix red and white?", "Red and white make pink."));
    }

    #[test]
    fn no_question_forbids_its_own_answer() {
        for item in items(&[Kind::Facts]) {
            let Check::Fact(fact) = &item.check else { panic!("{}", item.ask) };
            for answer in &fact.accept {
                assert_eq!(score(&format!("It is {answer}."), fact), Ok(()), "{}", item.ask);
            }
            for wrong in ["", "I do not know.", "It is a thing.", &item.ask] {
                assert!(score(wrong, fact).is_err(), "{}: {wrong}", item.ask);
            }
        }
    }
}
