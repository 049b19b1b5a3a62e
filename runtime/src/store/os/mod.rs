//! Calls into the operating system. Contains unsafe code: other processes can change a mapped file.
#![allow(unsafe_code)]

mod arena;
mod give_back;
mod memory;
mod ring;

pub use arena::{Arena, End, Room, Slab};
pub use memory::{anonymous_bytes, available_bytes};
pub use ring::Ring;

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use memmap2::MmapOptions;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Maps a whole file for reading.
///
/// # Errors
/// `Io` if it cannot be opened or mapped, `Malformed` if it is empty.
pub fn map(path: &Path) -> Result<Bytes> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let meta = file.metadata().map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::malformed("file", "this is not a file of weights").at(path));
    }
    if meta.len() == 0 {
        return Err(Error::malformed("file", "is empty; is the download complete?").at(path));
    }
    // SAFETY: the mapping is private and read-only, and `Bytes` lends only shared slices of it. The one remaining
    // hazard is common to all users of mmap: another process may truncate or rewrite the file. Readers stay
    // memory-safe with changed bytes, because all parsing is bounds-checked against the mapped length and weights
    // are plain numbers. A truncation raises SIGBUS, which ends the process instead of corrupting it.
    let map = unsafe { MmapOptions::new().map(&file) }.map_err(|e| Error::io(path, e))?;
    Ok(Bytes::new(Arc::new(map)))
}

/// Maps a part of an open file for reading. The part lies within the file.
pub(super) fn map_part(file: &File, offset: u64, len: u64) -> std::io::Result<Bytes> {
    let len = usize::try_from(len).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
    // SAFETY: as in `map`: private, read-only, lent only as shared slices. Changed bytes are plain numbers,
    // and a truncated file ends the process.
    let map = unsafe { MmapOptions::new().offset(offset).len(len).map(file) }?;
    Ok(Bytes::new(Arc::new(map)))
}

/// Hints that `bytes`, a part of a mapping made by [`map`], will not be needed soon. Without the hint,
/// converting a file larger than memory would evict everything else.
pub fn release(bytes: &[u8]) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Only whole pages can be released; a partial page at either end may still be in use by a neighbour.
        let page = rustix::param::page_size();
        let start = (bytes.as_ptr() as usize).next_multiple_of(page);
        let end = (bytes.as_ptr() as usize + bytes.len()) / page * page;
        if start < end {
            // SAFETY: the pages lie within `bytes`, which is borrowed for the call, and `MADV_PAGEOUT` only
            // moves pages out of memory: later reads see the same bytes, for any kind of memory.
            let _ = unsafe {
                rustix::mm::madvise(start as *mut _, end - start, rustix::mm::Advice::LinuxPageOut)
            };
        }
    }
    // Other systems have no such hint.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = bytes;
}

/// Opens a file for direct reads, which bypass the page cache and must be aligned. `None` if the system or the file
/// system does not support them.
pub(super) fn open_direct(path: &Path) -> Option<File> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        std::fs::OpenOptions::new().read(true).custom_flags(direct).open(path).ok()
    }
    #[cfg(target_vendor = "apple")]
    {
        let file = File::open(path).ok()?;
        rustix::fs::fcntl_nocache(&file, true).ok()?;
        Some(file)
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    {
        let _ = path;
        None
    }
}

/// [`open_direct`] for an open file. Returns a separate handle, so reads through the existing one do not
/// change.
pub(super) fn reopen_direct(file: &File) -> Option<File> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::os::fd::AsRawFd;
        open_direct(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let _ = file;
        None
    }
}

/// Reads at an offset without moving a file position.
pub(super) fn read_at(file: &File, offset: u64, to: &mut [u8]) -> std::io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, to, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, to, offset);
}

/// Hints that a part of a file that was just read will not be read again soon.
pub(super) fn forget(file: &File, offset: u64, len: u64) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // Only a hint: the system may ignore it.
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, offset, len);
}

/// Hints that reads of this file will be scattered, which turns read-ahead off.
pub(super) fn scattered(file: &File) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = file;
}

/// Hints that a part of a file will be read soon. The system starts reading; the call does not wait.
pub(super) fn expect(file: &File, offset: u64, len: u64) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _ = (file, offset, len);
}
