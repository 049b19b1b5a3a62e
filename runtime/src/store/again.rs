//! Reads with retries.

use super::{Storage, read_exact};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// Retries after a failed read, so that a transient device error does not end a generation.
const RETRIES: usize = 2;

/// Fills `to`. If the read fails or the checksum differs, retries and counts each retry in `retries`.
///
/// # Errors
/// The system's last error, or a message of its own if the file is shorter than expected.
pub(crate) fn read_again(
    storage: &dyn Storage,
    offset: u64,
    to: &mut [u8],
    checksum: Option<u32>,
    retries: &AtomicU64,
) -> io::Result<()> {
    let mut tries = 0;
    loop {
        let read = read_exact(storage, offset, to).and_then(|()| match checksum {
            Some(sum) if crc32fast::hash(to) != sum => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the checksum is not that of the bytes written; copy or convert the file again",
            )),
            _ => Ok(()),
        });
        match read {
            // The file is shorter than before: reading again cannot succeed.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(e.kind(), "the file ends here: it was cut while it was in use"));
            }
            Err(e) if tries == RETRIES => return Err(e),
            Err(e) => {
                tries += 1;
                log::warn!("{} bytes at byte {offset} are read again, try {tries}: {e}", to.len());
                retries.fetch_add(1, Ordering::Relaxed);
            }
            Ok(()) => return Ok(()),
        }
    }
}
