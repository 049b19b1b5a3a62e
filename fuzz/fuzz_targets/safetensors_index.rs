//! The JSON of a Hugging Face folder and the safetensors header. The first byte says which.
#![no_main]

use dollop::internal::format::{hf, safetensors};
use dollop::internal::model::{Spec, families};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match which % 4 {
        0 => {
            for file in safetensors::shards(&text).unwrap_or_default() {
                assert!(!file.contains(['/', '\\']), "an index cannot point out of its folder");
            }
        }
        1 => {
            for entry in safetensors::parse(bytes).unwrap_or_default() {
                let data = &bytes[entry.offset as usize..(entry.offset + entry.n_bytes) as usize];
                assert_eq!(entry.ty.row_bytes(entry.shape.iter().product()), Some(data.len()));
            }
        }
        2 => {
            let Ok(meta) = families::metadata_from_config(&text) else { return };
            let _ = Spec::from_metadata(&meta);
        }
        _ => {
            for dialect in families::FAMILIES.iter().flat_map(|f| f.dialects) {
                hf::left_out(&text, dialect);
                hf::places(&text, dialect);
            }
            let _ = hf::chat_template("a file", &text);
        }
    }
});
