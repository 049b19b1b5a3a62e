//! Reads that are tried again.

use super::{Storage, read_exact};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A failed read is tried again this often: a device that hiccups is not a device that is gone.
const RETRIES: usize = 2;

/// Fills `to`, and tries that again a few times, counted in `retries`, where it goes wrong or the bytes have another checksum.
///
/// # Errors
/// What the system said the last time; of a file that has become shorter, that it has.
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
            // The file has become shorter: reading again will not bring it back.
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
