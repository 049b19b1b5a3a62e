//! Bytes on their way to a saved session and back, with a checksum behind every part.

use crate::error::{Error, Result};
use std::io::{self, Read, Write};
use std::path::Path;

/// Bytes of a checksum.
pub(super) const SUM: usize = 4;

/// Bytes that are not those that were written.
pub(super) fn damaged(field: &str) -> Error {
    Error::malformed(field, "the bytes are not those that were saved: the file is damaged")
}

/// Bytes that are taken at a time where only a file says how many there are: memory follows what has come.
const STEP: usize = 1 << 20;

/// What is written.
pub(super) struct Out<'a> {
    to: &'a mut dyn Write,
    /// For errors.
    name: &'a Path,
    sum: crc32fast::Hasher,
    /// Bytes so far.
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

    /// Bytes that have a checksum of their own.
    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes).map_err(|e| Error::io(self.name, e))
    }

    pub(super) fn finish(self) -> Result<u64> {
        self.to.flush().map_err(|e| Error::io(self.name, e))?;
        Ok(self.bytes)
    }
}

/// What is read.
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
    /// `Malformed` where the file ends before; `Io`.
    pub(super) fn take(&mut self, to: &mut [u8]) -> Result<()> {
        self.raw(to)?;
        self.sum.update(to);
        Ok(())
    }

    /// Takes `len` bytes, where `len` is a claim of the file.
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

    /// Compares the part that was taken with its checksum.
    ///
    /// # Errors
    /// `Malformed`, naming the part.
    pub(super) fn check(&mut self, part: &str) -> Result<()> {
        let mut sum = [0; SUM];
        self.raw(&mut sum)?;
        let read = std::mem::take(&mut self.sum).finalize();
        if read == u32::from_le_bytes(sum) { Ok(()) } else { Err(damaged(part)) }
    }

    /// Bytes that have a checksum of their own.
    pub(super) fn raw(&mut self, to: &mut [u8]) -> Result<()> {
        self.from.read_exact(to).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => Error::malformed("file", "it ends too early: it was cut"),
            _ => Error::io(self.name, e),
        })
    }

    /// # Errors
    /// `Malformed` where something follows.
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
