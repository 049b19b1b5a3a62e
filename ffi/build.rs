//! Linker arguments for the shared library. On Linux and Android what other crates export to C (llguidance) stays inside. On Android
//! also its name, which the system's loader uses, and segments that systems with 16 KiB pages can map (older NDKs align to 4 KiB).

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
