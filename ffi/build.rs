//! Linker arguments for the shared library. On Linux and Android, symbols that other crates export to C (llguidance) stay hidden.
//! On Android also the library's name, which the loader uses, and segments aligned for 16 KiB pages (older NDKs align to 4 KiB).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if os == "android" || os == "linux" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
    if os == "android" {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libdollop.so");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,max-page-size=16384");
    }
}
