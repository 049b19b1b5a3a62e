//! Linker arguments for the shared library on Android: its name, which the system's loader uses, and segments that
//! systems with 16 KiB pages can map (older NDKs align to 4 KiB).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "android") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libdollop.so");
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,max-page-size=16384");
    }
}
