//! Gate 2: ids equal those of the Python `tokenizers` package, from tokenizer.json and from GGUF-style
//! vocabularies; decoding in a stream never splits a character.

use dollop::tokenizer::{Tokenizer, Vocab};
use dollop_tests::{golden, root};
use serde_json::Value as Json;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

fn fetched(path: &str) -> PathBuf {
    let path = root().join("target/goldens").join(path);
    assert!(path.exists(), "{} is missing: run tests/goldens/fetch.sh (./check does)", path.display());
    path
}

fn json(path: PathBuf) -> Json {
    serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap()
}

fn strings() -> Vec<String> {
    serde_json::from_value(json(golden("tokenizers/strings.json"))).unwrap()
}

fn expected(name: &str) -> Vec<Vec<u32>> {
    serde_json::from_value(json(golden("tokenizers/ids.json"))[name].clone()).unwrap()
}

fn tokenizer_json(name: &str) -> String {
    fs::read_to_string(fetched(&format!("{name}/package/models/tokenizer.json"))).unwrap()
}

const NAMES: [&str; 6] = ["qwen3", "gptoss", "llama3_1", "deepseek_v3", "gemma3", "llama2"];

#[test]
fn ids_equal_those_of_the_python_package() {
    let strings = strings();
    assert!(strings.len() >= 200);
    for name in NAMES {
        let tokenizer = Tokenizer::from_json(&tokenizer_json(name)).unwrap();
        for (text, want) in strings.iter().zip(expected(name)) {
            assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{name}: {text:?}");
        }
    }
}

/// The vocabulary of a tokenizer.json as in a GGUF file.
fn vocab(name: &str, model: &str, pre: Option<&str>) -> Vocab {
    let json: Json = serde_json::from_str(&tokenizer_json(name)).unwrap();
    let added = json["added_tokens"].as_array().unwrap();
    let ids = json["model"]["vocab"].as_object().unwrap();
    let id = |t: &Json| t["id"].as_u64().unwrap() as usize;
    let size =
        ids.values().map(|v| v.as_u64().unwrap() as usize).chain(added.iter().map(id)).max().unwrap() + 1;
    let mut v = Vocab { model: model.into(), pre: pre.map(Into::into), ..Vocab::default() };
    v.tokens = (0..size).map(|i| format!("[PAD{i}]")).collect();
    v.types = vec![5; size];
    for (token, id) in ids {
        let i = id.as_u64().unwrap() as usize;
        v.tokens[i] = token.clone();
        v.types[i] = 1;
    }
    for token in added {
        v.tokens[id(token)] = token["content"].as_str().unwrap().into();
        v.types[id(token)] = if token["special"].as_bool().unwrap() { 3 } else { 4 };
    }
    let merge = |m: &Json| {
        m.as_str()
            .map_or_else(|| format!("{} {}", m[0].as_str().unwrap(), m[1].as_str().unwrap()), Into::into)
    };
    v.merges = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    v
}

#[test]
fn a_byte_level_vocabulary_of_a_gguf_gives_the_same_ids() {
    let strings = strings();
    let cases =
        [("qwen3", "qwen2"), ("llama3_1", "llama-bpe"), ("gptoss", "gpt-4o"), ("deepseek_v3", "deepseek-v3")];
    for (name, pre) in cases {
        let tokenizer = Tokenizer::from_vocab(&vocab(name, "gpt2", Some(pre))).unwrap();
        // The JSON's post-processor adds a beginning-of-text token, which is a GGUF key and not tested here.
        let original = Tokenizer::from_json(&tokenizer_json(name)).unwrap();
        for text in &strings {
            let (got, want) = (tokenizer.encode(text, false).unwrap(), original.encode(text, false).unwrap());
            assert_eq!(got, want, "{pre}: {text:?}");
        }
    }
}

/// The bytes of a base64 text.
fn from_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let all = text.trim_end_matches('=').bytes().fold((Vec::new(), 0u32, 0), |(mut out, bits, n), c| {
        let (bits, n) = (bits << 6 | u32::from(digit(c)), n + 6);
        if n < 8 {
            return (out, bits, n);
        }
        out.push((bits >> (n - 8)) as u8);
        (out, bits & ((1 << (n - 8)) - 1), n - 8)
    });
    all.0
}

/// A vocabulary of ranks as in a GGUF file: bytes as characters, and for each token the two that merge to it.
fn of_ranks(text: &str, pre: &str) -> Vocab {
    let tokens: Vec<Vec<u8>> =
        text.lines().map(|line| from_base64(line.split_once(' ').unwrap().0)).collect();
    let ranks: HashMap<&[u8], usize> = tokens.iter().enumerate().map(|(rank, t)| (&t[..], rank)).collect();
    // GPT-2's characters for bytes.
    let mut next = 256;
    let characters: Vec<char> = (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte as char,
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap()
            }
        })
        .collect();
    let spell = |bytes: &[u8]| bytes.iter().map(|&b| characters[b as usize]).collect::<String>();
    // Some tokens are whole words only, and no merge gives them.
    let halves = |token: &Vec<u8>, rank: usize| {
        let mut ends: Vec<usize> = (0..=token.len()).collect();
        while ends.len() > 3 {
            let best = (0..ends.len() - 2)
                .filter_map(|i| Some((*ranks.get(&token[ends[i]..ends[i + 2]])?, i)))
                .filter(|&(other, _)| other < rank)
                .min()?;
            ends.remove(best.1 + 1);
        }
        Some(format!("{} {}", spell(&token[..ends[1]]), spell(&token[ends[1]..])))
    };
    Vocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens: tokens.iter().map(|t| spell(t)).collect(),
        types: vec![1; tokens.len()],
        merges: (tokens.iter().enumerate().filter(|(_, t)| t.len() > 1))
            .filter_map(|(rank, t)| halves(t, rank))
            .collect(),
        ..Vocab::default()
    }
}

/// There, combining marks are parts of words.
#[test]
fn ranks_with_qwen_3_5s_cut_give_the_ids_of_tiktoken() {
    let text = fs::read_to_string(fetched("qwen3_5.tiktoken")).unwrap();
    let tokenizer = Tokenizer::from_vocab(&of_ranks(&text, "qwen35")).unwrap();
    let other = Tokenizer::from_vocab(&of_ranks(&text, "qwen2")).unwrap();
    let mut differ = 0;
    for (text, want) in strings().iter().zip(expected("qwen3_5")) {
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{text:?}");
        differ += usize::from(other.encode(text, false).unwrap() != want);
    }
    assert!(differ > 0, "the strings have no marks that matter");
}

#[test]
fn ranks_with_kimi_k2s_cut_give_the_ids_of_tiktoken() {
    let text = fs::read_to_string(fetched("qwen3_5.tiktoken")).unwrap();
    let tokenizer = Tokenizer::from_vocab(&of_ranks(&text, "kimi-k2")).unwrap();
    let other = Tokenizer::from_vocab(&of_ranks(&text, "qwen2")).unwrap();
    let mut differ = 0;
    for (text, want) in strings().iter().zip(expected("kimi_k2")) {
        assert_eq!(tokenizer.encode(text, false).unwrap(), want, "{text:?}");
        differ += usize::from(other.encode(text, false).unwrap() != want);
    }
    assert!(differ > 0, "the strings have nothing that matters");
}

#[test]
fn a_sentencepiece_vocabulary_of_a_gguf_gives_the_same_ids() {
    let mut v = vocab("llama2", "llama", None);
    // A SentencePiece BPE model's scores are the order of its merges: a token's is the rank of the first that gives it.
    let mut rank = HashMap::new();
    for (i, merge) in v.merges.iter().enumerate() {
        rank.entry(merge.replace(' ', "")).or_insert(-(i as f32));
    }
    v.scores = v.tokens.iter().map(|t| rank.get(t).copied().unwrap_or(-1e9)).collect();
    v.types[0] = 2;
    v.types[3..259].fill(6);
    v.merges.clear();
    v.bos = Some(1);
    let tokenizer = Tokenizer::from_vocab(&v).unwrap();
    for (text, want) in strings().iter().zip(expected("llama2")) {
        assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{text:?}");
    }
}

#[test]
fn listed_merges_of_a_spaced_vocabulary_give_the_same_ids() {
    let v = Vocab { bos: Some(2), ..vocab("gemma3", "gemma4", Some("gemma4")) };
    let tokenizer = Tokenizer::from_vocab(&v).unwrap();
    let original = Tokenizer::from_json(&tokenizer_json("gemma3")).unwrap();
    for (text, want) in strings().iter().zip(expected("gemma3")) {
        assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{text:?}");
        assert_eq!(tokenizer.decode(&want, true), original.decode(&want, true), "{text:?}");
    }
}

#[test]
fn the_vocabulary_of_a_real_gguf() {
    let source = dollop::convert::source::Source::open(&fetched("SmolLM2-135M-Instruct.Q4_1.gguf")).unwrap();
    let m = source.metadata();
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let v = Vocab {
        model: m.require_str(&key("model")).unwrap().into(),
        pre: m.str(&key("pre")).unwrap().map(Into::into),
        tokens: m.strings(&key("tokens")).unwrap().unwrap().to_vec(),
        types: m.i64s(&key("token_type")).unwrap().unwrap(),
        merges: m.strings(&key("merges")).unwrap().unwrap().to_vec(),
        ..Vocab::default()
    };
    let tokenizer = Tokenizer::from_vocab(&v).unwrap();
    for (text, want) in strings().iter().zip(expected("smollm2")) {
        assert_eq!(tokenizer.encode(text, true).unwrap(), want, "{text:?}");
    }
}

#[test]
fn a_stream_shows_whole_characters_and_all_of_them() {
    let mut split = 0;
    for name in ["qwen3", "llama2", "gemma3"] {
        let tokenizer = Tokenizer::from_json(&tokenizer_json(name)).unwrap();
        for text in strings() {
            let ids = tokenizer.encode(&text, false).unwrap();
            let mut stream = tokenizer.stream();
            let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
            split += pieces.iter().filter(|p| p.is_empty()).count();
            if !text.contains('\u{fffd}') {
                assert!(pieces.iter().all(|p| !p.contains('\u{fffd}')), "{name}: {text:?}: {pieces:?}");
            }
            pieces.push(stream.finish());
            assert_eq!(pieces.concat(), tokenizer.decode(&ids, true), "{name}: {text:?}");
        }
        let mut stream = tokenizer.stream();
        (0..5000u32).chain([u32::MAX]).for_each(|id| drop(stream.push(id.wrapping_mul(7919) % 300_000)));
    }
    assert!(split > 50, "no character was ever split: the test shows nothing");
}

#[test]
fn hostile_tokenizers_are_refused() {
    let small = |change: &dyn Fn(&mut Vocab)| {
        let mut v = Vocab {
            model: "gpt2".into(),
            tokens: vec!["a".into(), "b".into(), "ab".into()],
            merges: vec!["a b".into()],
            ..Vocab::default()
        };
        Tokenizer::from_vocab(&v).expect("sound before the change");
        change(&mut v);
        Tokenizer::from_vocab(&v).map(|_| ()).unwrap_err().to_string()
    };
    assert!(small(&|v| v.merges.push("a z".into())).contains("merges"));
    assert!(small(&|v| v.merges.push("ab".into())).contains("not two tokens"));
    assert!(small(&|v| v.types = vec![1]).contains("token_type"));
    assert!(small(&|v| v.tokens.clear()).contains("0 tokens"));
    assert!(small(&|v| v.model = "bert".into()).contains("supported are gpt2"));
    assert!(small(&|v| v.pre = Some("nobody".into())).contains("qwen2"));
    assert!(small(&|v| v.model = "llama".into()).contains("scores"));
    for text in [
        "",
        "{}",
        "[]",
        "{\"model\":null}",
        "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":4294967295},\"merges\":[[\"x\",\"y\"]]}}",
    ] {
        assert!(Tokenizer::from_json(text).is_err(), "{text}");
    }
    let deep = "[".repeat(100_000);
    assert!(Tokenizer::from_json(&deep).is_err());
}
