//! What several gates share: the tiny models of `goldens/models`, rebuilt from their generator.

use std::path::{Path, PathBuf};

pub mod tiny;

/// The root of the clone.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the clone").to_path_buf()
}

/// A file below `tests/goldens`.
pub fn golden(name: &str) -> PathBuf {
    root().join("tests/goldens").join(name)
}

/// The model that comes with Dollop.
pub fn default_model() -> PathBuf {
    root().join("models/smollm2-moe.gguf")
}

/// Whether there is an adapter to test with. Where `DOLLOP_TEST_GPU` is set, as `./check` does, there must be.
pub fn has_gpu() -> bool {
    let found = dollop::kernels::gpu::adapters().iter().any(|a| a.missing.is_none());
    assert!(
        found || std::env::var_os("DOLLOP_TEST_GPU").is_none(),
        "no adapter: is a Vulkan driver installed?"
    );
    found
}
