//! The bytes that tokens of real vocabularies spell.

use super::*;
use dollop::internal::grammar::Words;
use dollop::tokenizer::Tokenizer;
use dollop_tests::root;

const VOCABULARIES: [&str; 6] = ["llama2", "llama3_1", "gemma3", "qwen3", "deepseek_v3", "gptoss"];

const TEXTS: [&str; 8] = [
    "Hello, world",
    " two  spaces\n\n\tand a tab",
    "{\"key\": [1, 2.5, true], \"größe\": \"日本 😀 é\"}",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
    "<|im_end|> is no end here",
    "\u{1b}[0m \u{7f} \r\n",
    "12345678901234567890",
    "▁ and Ġ are characters",
];

/// A text that is forced as a whole is spelled with the tokenizer's own tokens, in every kind of vocabulary.
#[test]
fn gate_121_forced_text_is_spelled_by_every_vocabulary() {
    for name in VOCABULARIES {
        let path = root().join("target/goldens").join(name).join("package/models/tokenizer.json");
        let json = std::fs::read_to_string(&path).unwrap_or_else(|_| {
            panic!("{} is missing: run tests/goldens/fetch.sh (./check does)", path.display())
        });
        let tokenizer = Tokenizer::from_json(&json).unwrap();
        let words = Words::new(&tokenizer, tokenizer.vocab_size(), &[]).unwrap();
        let mut forced = 0;
        for text in TEXTS {
            // The quotes protect spaces at the ends, which some decoders remove.
            let said = format!("\"{text}\"");
            let constraint = Constraint::lark(format!(
                "start: {}",
                Json::from(said.as_str()).to_string().replace('\u{7f}', "\\u007f")
            ));
            let mut guide = words.guide(&constraint).unwrap();
            let mut ids = Vec::new();
            while !guide.is_over() {
                let must = guide.forced();
                forced += must.len();
                let next = if must.is_empty() { vec![guide.mask().unwrap().first().unwrap()] } else { must };
                next.iter().for_each(|&id| guide.take(id).unwrap());
                ids.extend(next);
            }
            assert_eq!(tokenizer.decode(&ids, true), said, "{name}: {ids:?}");
        }
        assert!(forced > 60, "{name}: {forced}");
    }
}
