//! Gate 80: `include/dollop.h` equals cbindgen's output for the sources.
//!
//! To write it again: `DOLLOP_WRITE_HEADER=1 cargo test -p dollop-ffi --test header`.

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_that_of_the_sources() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let made = cbindgen::Builder::new().with_crate(here).with_config(config).generate().unwrap();
    let mut text = Vec::new();
    made.write(&mut text);
    let text = String::from_utf8(text).unwrap();
    assert!(text.matches("dollop_status dollop_").count() > 40, "cbindgen found no functions");
    let path = here.join("include/dollop.h");
    if std::env::var_os("DOLLOP_WRITE_HEADER").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == committed,
        "include/dollop.h differs from cbindgen's output: DOLLOP_WRITE_HEADER=1 cargo test -p dollop-ffi --test header"
    );
}
