//! Tokenizers from a `tokenizer.json` and from the vocabulary of a GGUF file. The first byte says which.
//!
//! The `tokenizers` crate can panic on files that contradict themselves; the import catches that and reports it. So the
//! fuzzer's own hook, which aborts at any panic, goes; one that is not caught still ends the run.
#![no_main]

use dollop::tokenizer::{Tokenizer, Vocab};
use libfuzzer_sys::fuzz_target;

fn try_out(tokenizer: &Tokenizer) {
    if let Ok(ids) = tokenizer.encode("Hello, wörld 123 \u{1f642}", true) {
        tokenizer.decode(&ids, false);
    }
    let mut stream = tokenizer.stream();
    (0..8).for_each(|id| drop(stream.push(id)));
    stream.finish();
}

fuzz_target!(init: drop(std::panic::take_hook()), |bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    if which & 1 == 0 {
        if let Ok(tokenizer) = Tokenizer::from_json(&text) {
            try_out(&tokenizer);
        }
        return;
    }
    // Tokens, a blank line, merges.
    let (tokens, merges) = text.split_once("\n\n").unwrap_or((&text, ""));
    let tokens: Vec<String> = tokens.split('\n').map(str::to_owned).collect();
    let vocab = Vocab {
        model: if which & 2 == 0 { "gpt2" } else { "llama" }.to_owned(),
        pre: (which & 4 == 0).then(|| "gpt-2".to_owned()),
        scores: if which & 8 == 0 { Vec::new() } else { vec![0.0; tokens.len()] },
        types: if which & 16 == 0 { Vec::new() } else { vec![1 + i64::from(which >> 5); tokens.len()] },
        merges: merges.split('\n').map(str::to_owned).collect(),
        bos: Some(0),
        tokens,
        ..Vocab::default()
    };
    if let Ok(tokenizer) = Tokenizer::from_vocab(&vocab) {
        try_out(&tokenizer);
    }
});
