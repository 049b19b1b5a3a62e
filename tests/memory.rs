//! The system's figures for a process's memory, which budget tests use. A separate binary, because it
//! measures the whole process: concurrent tests would free memory at the same time.
#![cfg(any(target_os = "linux", target_os = "android"))]

use dollop::internal::store::anonymous_bytes;

#[test]
fn anonymous_memory_is_what_was_written_to() {
    let before = anonymous_bytes().unwrap();
    let block = std::hint::black_box(vec![1u8; 64 << 20]);
    let after = anonymous_bytes().unwrap();
    assert!(after >= before + (60 << 20), "{before} {after} {}", block.len());
}
