//! Writes and reads the bytes of a saved session, with a checksum after every part.

use crate::error::{Error, Result};
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes of a checksum.
pub(super) const SUM: usize = 4;

/// The error for bytes that differ from those that were written.
pub(super) fn damaged(field: &str) -> Error {
    Error::malformed(field, "the bytes are not those that were saved: the file is damaged")
}

/// The most bytes read at once if the length comes from the file. So memory grows only as bytes arrive.
const STEP: usize = 1 << 20;

/// Writes a saved session.
pub(super) struct Out<'a> {
    to: &'a mut dyn Write,
    /// The file's name, for errors.
    name: &'a Path,
    sum: crc32fast::Hasher,
    /// Bytes written so far.
    pub(super) bytes: u64,
}

impl<'a> Out<'a> {
    pub(super) fn new(to: &'a mut dyn Write, name: &'a Path) -> Out<'a> {
        Out { to, name, sum: crc32fast::Hasher::new(), bytes: 0 }
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sum.update(bytes);
        self.raw(bytes)
    }

    /// Ends a part with its checksum.
    pub(super) fn seal(&mut self) -> Result<()> {
        let sum = std::mem::take(&mut self.sum).finalize();
        self.raw(&sum.to_le_bytes())
    }

    /// Writes bytes that have their own checksum.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes).map_err(|e| Error::io(self.name, e))
    }

    pub(super) fn finish(self) -> Result<u64> {
        self.to.flush().map_err(|e| Error::io(self.name, e))?;
        Ok(self.bytes)
    }
}

/// Reads a saved session.
pub(super) struct In<'a> {
    from: &'a mut dyn Read,
    name: &'a Path,
    sum: crc32fast::Hasher,
}

impl<'a> In<'a> {
    pub(super) fn new(from: &'a mut dyn Read, name: &'a Path) -> In<'a> {
        In { from, name, sum: crc32fast::Hasher::new() }
    }

    /// Fills `to`.
    ///
    /// # Errors
    /// `Malformed` if the file ends early; `Io`.
    pub(super) fn take(&mut self, to: &mut [u8]) -> Result<()> {
        self.raw(to)?;
        self.sum.update(to);
        Ok(())
    }

    /// Reads `len` bytes. `len` comes from the file and is not trusted.
    pub(super) fn take_long(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while all.len() < len {
            let at = all.len();
            let step = (len - at).min(STEP);
            all.try_reserve_exact(step).map_err(|_| damaged("lengths"))?;
            all.resize(at + step, 0);
            self.take(&mut all[at..])?;
        }
        Ok(all)
    }

    /// Verifies the checksum of the part that was read.
    ///
    /// # Errors
    /// `Malformed`, naming the part.
    pub(super) fn check(&mut self, part: &str) -> Result<()> {
        let mut sum = [0; SUM];
        self.raw(&mut sum)?;
        let read = std::mem::take(&mut self.sum).finalize();
        if read == u32::from_le_bytes(sum) { Ok(()) } else { Err(damaged(part)) }
    }

    /// Reads bytes that have their own checksum.
    pub(super) fn raw(&mut self, to: &mut [u8]) -> Result<()> {
        self.from.read_exact(to).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::malformed("file", "it ends too early: it was cut"),
            _ => Error::io(self.name, e),
        })
    }

    /// # Errors
    /// `Malformed` if more bytes follow.
    pub(super) fn end(&mut self) -> Result<()> {
        let mut one = [0];
        loop {
            match self.from.read(&mut one) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(Error::malformed("file", "more bytes follow than were saved")),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(self.name, e)),
            }
        }
    }
}
