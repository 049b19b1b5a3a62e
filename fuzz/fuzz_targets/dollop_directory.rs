//! A Dollop file: the directory, its tables, and the weights as views of the bytes.
#![no_main]

use dollop::internal::Bytes;
use dollop::internal::model::file::NestedFile;
use dollop::internal::model::{Spec, Weights};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = NestedFile::new(Bytes::from(bytes.to_vec())) else { return };
    file.sizes();
    let _ = file.verify();
    let Ok(spec) = Spec::from_metadata(&file.directory().gguf.metadata) else { return };
    let _ = Weights::load(&spec, &file, None);
});
