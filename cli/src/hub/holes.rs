//! Files with holes: frees the blocks of a part of a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

/// Holes begin and end at multiples of this, which is a multiple of the block size of common file systems.
const BLOCK: u64 = 4096;

/// Frees the blocks that lie whole in `bytes`. They read as zeros afterwards.
///
/// # Errors
/// Those of the system; `Unsupported` where the system or the file system has no such call.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn punch(file: &File, bytes: Range<u64>) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let (start, end) = (bytes.start.next_multiple_of(BLOCK), bytes.end / BLOCK * BLOCK);
    if start >= end {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, start, end - start)?)
}

/// See above.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn punch(_: &File, _: Range<u64>) -> io::Result<()> {
    let _ = BLOCK;
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether blocks of files in this folder can be freed.
pub fn supported(folder: &Path) -> bool {
    let path = folder.join(format!(".dollop-hole-{}", std::process::id()));
    let tried = || {
        fs::create_dir_all(folder)?;
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        file.write_all(&[1; 2 * BLOCK as usize])?;
        punch(&file, 0..BLOCK)
    };
    let outcome = tried();
    let _ = fs::remove_file(&path);
    // Other errors, such as a full disk, are reported by the conversion itself.
    outcome.err().is_none_or(|e| e.kind() != io::ErrorKind::Unsupported)
}
