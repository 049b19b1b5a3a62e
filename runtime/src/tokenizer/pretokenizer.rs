//! How text is split before byte-level BPE, by the name in GGUF files (`tokenizer.ggml.pre`).
//!
//! The expressions are those of the models' own `tokenizer.json` files.

use crate::error::{Error, Result};
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence, split::Split};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// One way of splitting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    names: &'static [&'static str],
    cut: Cut,
    /// Whole words that are tokens are not split, even if merges would give other tokens.
    pub(super) ignore_merges: bool,
    /// Texts are normalized to composed form (Unicode NFC) first.
    pub(super) nfc: bool,
}

#[derive(Clone, Copy, Debug)]
enum Cut {
    /// GPT-2's expression, built into the byte-level step.
    Gpt2,
    /// Every digit is a piece; then GPT-2's expression.
    DigitsThenGpt2,
    /// These expressions one after another; each match is a piece.
    Expressions(&'static [&'static str]),
}

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's, except that combining marks are parts of words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str =
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
/// From `tokenization_kimi.py`: like GPT-4o's, but Chinese characters are separate.
const KIMI_K2: &str = r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_V3: &[&str] = &[
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];
const DEEPSEEK_LLM: &[&str] = &[
    r"[\r\n]",
    // The original lists cased letters, without these blocks.
    concat!(
        r"\s?[\p{Lu}\p{Lt}\p{Ll}&&[^\x{560}-\x{588}\x{10C6}-\x{10FF}\x{1C80}-\x{1C8F}\x{2D00}-\x{2D2F}\x{A790}-\x{A7FF}",
        r"\x{AB30}-\x{AB6F}\x{10570}-\x{105BF}\x{10D50}-\x{10D8F}\x{16E40}-\x{16E7F}\x{16EA0}-\x{16EFF}",
        r"\x{1D400}-\x{1D7FF}\x{1DF00}-\x{1DFFF}]]+",
    ),
    r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    r"\s+$",
    "[一-龥ࠀ-一가-퟿]+",
    r"\p{N}+",
];

const STYLES: &[Style] = &[
    Style { names: &["default", "gpt-2"], cut: Cut::Gpt2, ignore_merges: false, nfc: false },
    Style { names: &["olmo", "olmoe", "dolma"], cut: Cut::Gpt2, ignore_merges: false, nfc: true },
    Style {
        names: &["smollm", "refact", "mellum2"],
        cut: Cut::DigitsThenGpt2,
        ignore_merges: false,
        nfc: false,
    },
    Style {
        names: &["llama-bpe", "llama3", "llama-v3", "lfm2", "glm4", "glm5"],
        cut: Cut::Expressions(&[LLAMA3]),
        ignore_merges: true,
        nfc: false,
    },
    Style { names: &["dbrx"], cut: Cut::Expressions(&[LLAMA3]), ignore_merges: false, nfc: false },
    Style {
        names: &["qwen2", "deepseek-r1-qwen", "hunyuan"],
        cut: Cut::Expressions(&[QWEN2]),
        ignore_merges: false,
        nfc: true,
    },
    Style { names: &["qwen35"], cut: Cut::Expressions(&[QWEN35]), ignore_merges: false, nfc: true },
    Style {
        names: &["bailingmoe", "bailingmoe2"],
        cut: Cut::Expressions(&[BAILING]),
        ignore_merges: false,
        nfc: false,
    },
    Style {
        names: &["gpt-4o", "minimax-m2"],
        cut: Cut::Expressions(&[GPT4O]),
        ignore_merges: true,
        nfc: false,
    },
    Style { names: &["kimi-k2"], cut: Cut::Expressions(&[KIMI_K2]), ignore_merges: true, nfc: false },
    Style { names: &["deepseek-llm"], cut: Cut::Expressions(DEEPSEEK_LLM), ignore_merges: false, nfc: false },
    Style { names: &["deepseek-v3"], cut: Cut::Expressions(DEEPSEEK_V3), ignore_merges: false, nfc: false },
];

/// The style with this name.
///
/// # Errors
/// `Unsupported`, with a list of the supported names.
pub(super) fn find(name: &str) -> Result<Style> {
    STYLES.iter().copied().find(|s| s.names.contains(&name)).ok_or_else(|| {
        let known: Vec<_> = STYLES.iter().flat_map(|s| s.names).copied().collect();
        Error::unsupported(format!(
            "tokenizer.ggml.pre: pre-tokenizer `{name}` is not supported; supported are {}",
            known.join(", ")
        ))
    })
}

impl Style {
    pub(super) fn pre_tokenizer(self) -> PreTokenizerWrapper {
        let bytes = |regex: bool| PreTokenizerWrapper::from(ByteLevel::new(false, true, regex));
        match self.cut {
            Cut::Gpt2 => bytes(true),
            Cut::DigitsThenGpt2 => Sequence::new(vec![Digits::new(true).into(), bytes(true)]).into(),
            Cut::Expressions(all) => {
                let split = |e: &&str| {
                    let pattern = tokenizers::pre_tokenizers::split::SplitPattern::Regex((*e).to_owned());
                    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
                    PreTokenizerWrapper::from(split.expect("the expressions of this table are tested"))
                };
                Sequence::new(all.iter().map(split).chain([bytes(false)]).collect()).into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The letters of `deepseek-llm`. llama.cpp's expression lists 2,729; its other expressions leave 1,607
    /// of them whole. Such a letter is one piece with the letter after it.
    #[test]
    fn letters_are_those_of_the_original() {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let cut = find("deepseek-llm").unwrap().pre_tokenizer();
        let is_letter = |c: char| {
            let mut text = PreTokenizedString::from(format!("0{c}α"));
            cut.pre_tokenize(&mut text).unwrap();
            text.get_splits(OffsetReferential::Original, OffsetType::Byte).len() == 2
        };
        let cased = ('\0'..=char::MAX).filter(|c| c.is_alphabetic());
        let cased = cased.filter(|c| {
            *c == '\u{295}' || c.is_lowercase() || c.is_uppercase() || c.to_lowercase().next() != Some(*c)
        });
        assert_eq!(cased.filter(|c| is_letter(*c)).count(), 1607);
        for (c, is) in [('\u{561}', false), ('\u{531}', true), ('\u{a790}', false), ('\u{a78b}', true)] {
            assert_eq!(is_letter(c), is, "{c:?}");
        }
    }

    /// Chinese characters are apart from other letters, and an ending stays with its word.
    #[test]
    fn scripts_are_apart_for_kimi_k2() {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let text = "它's abc中文def I'll 1234";
        let pieces = |name: &str| {
            let mut cut = PreTokenizedString::from(text);
            find(name).unwrap().pre_tokenizer().pre_tokenize(&mut cut).unwrap();
            let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
            splits.iter().map(|(_, (from, to), _)| text[*from..*to].to_owned()).collect::<Vec<_>>()
        };
        let want = ["它", "'s", " abc", "中文", "def", " I'll", " ", "123", "4"];
        assert_eq!(pieces("kimi-k2"), want);
        assert_ne!(pieces("gpt-4o"), want);
    }

    #[test]
    fn every_style_builds_and_an_unknown_one_is_told_what_there_is() {
        for style in STYLES {
            style.pre_tokenizer();
        }
        assert!(find("tekken").unwrap_err().to_string().contains("llama-bpe"));
    }
}
