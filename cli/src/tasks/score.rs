//! Decides whether an answer is right, and whether it loops.

use super::items::{Check, Item};
use super::{facts, json, tools, words};
use dollop::StopReason;

/// Why an answer is wrong, in a few words.
pub type Verdict = Result<(), String>;

/// An answer loops if its last `LOOP_TOKENS` tokens occur `LOOP_TIMES` times.
const LOOP_TOKENS: usize = 12;
const LOOP_TIMES: usize = 3;

/// Checks an answer against its item.
pub fn score(item: &Item, answer: &str) -> Verdict {
    let answer = said(answer)?;
    match &item.check {
        Check::Json(schema) => json::score(answer, schema),
        Check::Call { tools, name } => tools::score(answer, tools, name),
        Check::Number(want) => arithmetic(answer, *want),
        Check::Copy(text) => copy(answer, text),
        Check::Words(accept) => retrieval(answer, accept),
        Check::Fact(fact) => facts::score(answer, fact),
    }
}

/// The answer after a model's reasoning.
fn said(answer: &str) -> Result<&str, String> {
    match answer.rsplit_once("</think>") {
        Some((_, said)) => Ok(said),
        None if answer.trim_start().starts_with("<think>") => Err("does not stop thinking".to_owned()),
        None => Ok(answer),
    }
}

/// The last number of the answer, in digits, is the result.
fn arithmetic(answer: &str, want: f64) -> Verdict {
    match words::words(answer).iter().rev().find_map(|word| word.value) {
        Some(last) if last == want => Ok(()),
        Some(last) => Err(format!("ends with {last}, not {want}")),
        None => Err(format!("has no number; it is {want}")),
    }
}

/// The text is in the answer unchanged, with no letter or digit joined to it: only marks such as quotes may be.
fn copy(answer: &str, text: &str) -> Verdict {
    let joined = |mut beside: std::str::Chars, forward: bool| {
        let next = || if forward { beside.next() } else { beside.next_back() };
        std::iter::from_fn(next).take_while(|c| !c.is_whitespace()).any(char::is_alphanumeric)
    };
    let whole = |(at, _): (usize, &str)| {
        !joined(answer[..at].chars(), false) && !joined(answer[at + text.len()..].chars(), true)
    };
    if answer.match_indices(text).any(whole) { Ok(()) } else { Err(format!("does not contain `{text}`")) }
}

fn retrieval(answer: &str, accept: &[String]) -> Verdict {
    if accept.iter().any(|phrase| words::contains(answer, phrase)) {
        return Ok(());
    }
    Err(format!("does not say {}", accept.join(" or ")))
}

/// Whether an answer that had to be cut off repeats itself at its end: its last 12 tokens occur three times or more, at
/// any distance.
pub fn loops(tokens: &[u32], stop: StopReason) -> bool {
    if !matches!(stop, StopReason::MaxTokens | StopReason::ContextFull) || tokens.len() < LOOP_TOKENS {
        return false;
    }
    let end = &tokens[tokens.len() - LOOP_TOKENS..];
    tokens.windows(LOOP_TOKENS).filter(|window| *window == end).count() >= LOOP_TIMES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_counts() {
        for (answer, want) in [
            ("43", true),
            ("17 + 26 = 43.", true),
            ("**43**", true),
            ("43.0", true),
            ("It is $43, I think!", true),
            ("forty-three", false),
            ("", false),
            ("43 + 1", false),
            ("43, or 44", false),
            ("143", false),
            ("43.5", false),
            ("-43", false),
            ("4 3", false),
            ("x43", false),
        ] {
            assert_eq!(arithmetic(answer, 43.0).is_ok(), want, "{answer}");
        }
        assert!(arithmetic("1,000", 1000.0).is_ok() && arithmetic("7 - 12 = -5", -5.0).is_ok());
        assert!(arithmetic("7 - 12 = 5", -5.0).is_err());
    }

    #[test]
    fn a_copy_is_exact_and_whole() {
        for (answer, text, want) in [
            ("A7-K93-QX2", "A7-K93-QX2", true),
            ("Here it is: \"A7-K93-QX2\".", "A7-K93-QX2", true),
            ("a7-k93-qx2", "A7-K93-QX2", false),
            ("A7-K93-QX21", "A7-K93-QX2", false),
            ("AA7-K93-QX2", "A7-K93-QX2", false),
            ("A7-K93-QX2-2-2-2", "A7-K93-QX2", false),
            ("1-A7-K93-QX2", "A7-K93-QX2", false),
            ("**A7-K93-QX2**, A7-K93-QX2-2", "A7-K93-QX2", true),
            ("AA7 A7-K93-QX21, that is A7-K93-QX2", "A7-K93-QX2", true),
            ("A7 - K93 - QX2", "A7-K93-QX2", false),
            ("", "A7-K93-QX2", false),
            ("hello  world", "hello world", false),
            ("Grüße aus Köln!", "Grüße aus Köln", true),
            ("Grusse aus Koln", "Grüße aus Köln", false),
            ("éhello", "hello", false),
        ] {
            assert_eq!(copy(answer, text).is_ok(), want, "{answer}");
        }
    }

    #[test]
    fn what_was_hidden_is_named() {
        let accept = ["9".to_owned(), "nine".to_owned()];
        for (answer, want) in [
            ("Platform 9.", true),
            ("Nine", true),
            ("Platform 19", false),
            ("ninety", false),
            ("I do not know.", false),
            ("", false),
        ] {
            assert_eq!(retrieval(answer, &accept).is_ok(), want, "{answer}");
        }
    }

    #[test]
    fn thoughts_are_no_answer() {
        assert_eq!(said("<think>4?</think>\n\n5"), Ok("\n\n5"));
        assert_eq!(said("4?</think>5"), Ok("5"));
        assert_eq!(said("5"), Ok("5"));
        assert!(said("\n<think>5").is_err());
    }

    #[test]
    fn a_loop_comes_three_times_and_is_cut_off() {
        let of = |period: u32, n: u32| -> Vec<u32> { (0..n).map(|i| i % period).collect() };
        let cut = StopReason::MaxTokens;
        for (tokens, want) in [
            (of(1, 14), true),
            (of(1, 13), false),
            (of(5, 22), true),
            (of(5, 21), false),
            (of(12, 36), true),
            (of(12, 35), false),
            (of(20, 52), true),
            (of(1000, 160), false),
            ([of(1, 40), of(1000, 12)].concat(), false),
            ([of(1000, 30), of(3, 30)].concat(), true),
            (vec![], false),
        ] {
            assert_eq!(loops(&tokens, cut), want, "{tokens:?}");
            assert!(!loops(&tokens, StopReason::EndOfTurn));
        }
    }
}
