//! GGUF: whatever parses has its tensors within the file, reads as a configuration or an error, and decodes.
#![no_main]

use dollop::internal::format::Gguf;
use dollop::internal::model::Spec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(gguf) = Gguf::parse(bytes) else { return };
    for t in &gguf.tensors {
        let data = &bytes[t.offset as usize..(t.offset + t.n_bytes) as usize];
        assert_eq!(gguf.tensor(&t.name), Some(t));
        if t.ty.is_float() {
            let n = data.len() / t.ty.block_bytes();
            let mut out = vec![0.0; n * t.ty.block_len()];
            t.ty.dequantize(data, &mut out).expect("the directory's lengths belong together");
        }
    }
    let _ = Spec::from_metadata(&gguf.metadata);
});
