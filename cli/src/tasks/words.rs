//! Splits an answer into words and numbers, for scoring.

/// A word, in lower case, or a number.
#[derive(Debug)]
pub struct Word {
    pub text: String,
    /// The value of its digits: thousands may have commas, and a minus may precede.
    pub value: Option<f64>,
    /// The text between it and the next word.
    pub gap: String,
}

/// The words of a text: runs of letters and digits. A number includes its sign, its point and its commas.
pub fn words(text: &str) -> Vec<Word> {
    let chars: Vec<char> = text.chars().collect();
    let mut all: Vec<Word> = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        let (value, end) = number(&chars, i).map_or((None, i), |(value, end)| (Some(value), end));
        let end = end + chars[end..].iter().take_while(|c| c.is_alphanumeric()).count();
        if end == i {
            if let Some(word) = all.last_mut() {
                word.gap.push(chars[i]);
            }
            i += 1;
            continue;
        }
        let text = chars[i..end].iter().filter(|c| **c != ',').flat_map(|c| c.to_lowercase()).collect();
        all.push(Word { text, value, gap: String::new() });
        i = end;
    }
    all
}

/// The number that begins at `i`, and where it ends.
fn number(chars: &[char], i: usize) -> Option<(f64, usize)> {
    let digit = |i: usize| chars.get(i).is_some_and(char::is_ascii_digit);
    let minus = matches!(chars[i], '-' | '−');
    // Between two words or numbers, it is a dash.
    if minus && i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == ')') {
        return None;
    }
    let start = i + usize::from(minus);
    if !digit(start) {
        return None;
    }
    let mut digits = String::from(if minus { "-" } else { "" });
    let (mut end, mut point) = (start, false);
    while let Some(&c) = chars.get(end) {
        let group = || (1..=3).all(|n| digit(end + n)) && !digit(end + 4);
        match c {
            '0'..='9' => digits.push(c),
            ',' if !point && end - start <= 3 + 4 * commas(&chars[start..end]) && group() => {}
            '.' if !point && digit(end + 1) => {
                point = true;
                digits.push(c);
            }
            _ => break,
        }
        end += 1;
    }
    Some((digits.parse().ok()?, end))
}

fn commas(chars: &[char]) -> usize {
    chars.iter().filter(|c| **c == ',').count()
}

/// The positions of `phrase` among words, as whole words: the index of its first word and the one after its last.
pub fn positions(words: &[Word], phrase: &str) -> Vec<(usize, usize)> {
    let phrase = self::words(phrase);
    let here = |i: &usize| words[*i..].iter().zip(&phrase).filter(|(a, b)| a.text == b.text).count();
    let found = (0..words.len()).filter(|i| !phrase.is_empty() && here(i) == phrase.len());
    found.map(|i| (i, i + phrase.len())).collect()
}

/// Whether `text` contains `phrase`, as whole words in any case.
pub fn contains(text: &str, phrase: &str) -> bool {
    !positions(&words(text), phrase).is_empty()
}

/// Every number among words, in digits or spelled out up to thousands, with the index of its first word and the one
/// after its last.
pub fn numbers(words: &[Word]) -> Vec<(f64, (usize, usize))> {
    let mut all = Vec::new();
    let mut i = 0;
    while i < words.len() {
        let digits = words[i].value.map(|value| (value, i + 1));
        let Some((value, end)) = digits.or_else(|| spelled(words, i)) else {
            i += 1;
            continue;
        };
        all.push((value, (i, end)));
        i = end;
    }
    all
}

const SMALL: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// A number in words that begins at `i`, such as `three hundred and sixty-five`, and where it ends.
fn spelled(words: &[Word], i: usize) -> Option<(f64, usize)> {
    let place = |list: &[&str], word: &Word| list.iter().position(|w| *w == word.text);
    let (mut thousands, mut below) = (0, 0);
    let mut end = i;
    while let Some(word) = words.get(end) {
        // A comma or a full stop ends a number.
        if end > i && !matches!(words[end - 1].gap.trim(), "" | "-") {
            break;
        }
        let small = place(&SMALL, word).filter(|n| below % 100 == 0 || fits(below, *n));
        let tens = place(&TENS, word).filter(|_| below % 100 == 0);
        match (small, tens, word.text.as_str()) {
            (Some(n), ..) => below += n,
            (_, Some(n), _) => below += 10 * (n + 2),
            (.., "hundred") if end > i && (1..10).contains(&below) => below *= 100,
            (.., "thousand") if end > i && below > 0 && thousands == 0 => {
                thousands = std::mem::take(&mut below);
            }
            (.., "hundred") if end == i => below = 100,
            (.., "thousand") if end == i => thousands = 1,
            (.., "and") if end > i && (below % 100 == 0) && joins(words, end) => {}
            _ => break,
        }
        end += 1;
    }
    (end > i).then_some(((1000 * thousands + below) as f64, end))
}

/// Whether units may follow these tens: `twenty five`.
fn fits(below: usize, n: usize) -> bool {
    (20..100).contains(&(below % 100)) && below.is_multiple_of(10) && (1..10).contains(&n)
}

/// Whether an `and` is inside a number: `a hundred and five`.
fn joins(words: &[Word], and: usize) -> bool {
    let behind = |word: &Word| SMALL[1..].iter().chain(&TENS).any(|w| *w == word.text);
    let before = &words[and - 1].text;
    matches!(before.as_str(), "hundred" | "thousand") && words.get(and + 1).is_some_and(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (text, want) in [
            ("17 + 26 = 43.", vec![17.0, 26.0, 43.0]),
            ("1,234,567 and 1,234", vec![1_234_567.0, 1234.0]),
            ("3, 4,5 and 12,3456", vec![3.0, 4.0, 5.0, 12.0, 3456.0]),
            ("7 - 12 = -5 or −5", vec![7.0, 12.0, -5.0, -5.0]),
            ("10-3 (2)-1", vec![10.0, 3.0, 2.0, 1.0]),
            ("$19.99, **43**, 5km, \\boxed{8}", vec![19.99, 43.0, 5.0, 8.0]),
            ("H2O x7", vec![]),
            ("1.2.3", vec![1.2, 3.0]),
            ("twenty-five, three hundred and sixty five", vec![25.0, 365.0]),
            ("one, two three twenty", vec![1.0, 2.0, 3.0, 20.0]),
            ("a hundred and a thousand", vec![100.0, 1000.0]),
            ("two thousand and twelve", vec![2012.0]),
            ("ten and five", vec![10.0, 5.0]),
            ("fifty fifty", vec![50.0, 50.0]),
            ("", vec![]),
        ] {
            let found: Vec<f64> = numbers(&words(text)).into_iter().map(|(value, _)| value).collect();
            assert_eq!(found, want, "{text}");
        }
    }

    #[test]
    fn phrases_are_found_as_whole_words() {
        for (text, phrase, want) in [
            ("It is New  Delhi.", "new delhi", true),
            ("**Paris**", "Paris", true),
            ("Parisian", "Paris", false),
            ("comparis", "paris", false),
            ("New York, Delhi", "New Delhi", false),
            ("the Silver-Heron", "Silver Heron", true),
            ("14172", "4172", false),
            ("4172.5", "4172", false),
            ("code: 4172.", "4172", true),
            ("GRÜN", "grün", true),
            ("new", "new delhi", false),
            ("anything", "", false),
        ] {
            assert_eq!(contains(text, phrase), want, "{text}: {phrase}");
        }
    }
}
