//! The location of bytes: a named file, or a part of an open one. Systems that sandbox apps provide open
//! files without names.

use super::os;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The minimum alignment of a part in its file: kernels read mapped weights by cache lines.
pub const PART_ALIGNMENT: u64 = 64;

/// The location of bytes. A clone is the same location.
#[derive(Clone, Debug)]
pub enum Place {
    /// A whole file.
    Named(PathBuf),
    /// A part of an open file.
    Part {
        /// The file.
        file: Arc<File>,
        /// The part's offset in the file.
        offset: u64,
        /// The part's length.
        len: u64,
    },
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Place::Named(path.to_path_buf())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Place::Named(path.clone())
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

impl Place {
    /// A part of an open file.
    ///
    /// # Errors
    /// `Invalid` if the file has no such part, or the offset is not aligned for kernels; `Io`.
    pub fn part(file: File, offset: u64, len: u64) -> Result<Place> {
        let place = Place::Part { file: Arc::new(file), offset, len };
        let Place::Part { file, .. } = &place else { return Ok(place) };
        let meta = file.metadata().map_err(|e| Error::io(place.name(), e))?;
        let end = offset.checked_add(len).filter(|&end| meta.is_file() && len > 0 && end <= meta.len());
        if end.is_none() {
            let bytes = meta.len();
            return Err(Error::Invalid(format!(
                "{len} bytes from byte {offset} on: the open file has {bytes}, and a model has some"
            )));
        }
        if !offset.is_multiple_of(PART_ALIGNMENT) {
            return Err(Error::Invalid(format!(
                "a model at byte {offset} of an open file: it must begin at a multiple of {PART_ALIGNMENT} (store it without compression, aligned)"
            )));
        }
        Ok(place)
    }

    /// The name for errors.
    pub fn name(&self) -> &Path {
        match self {
            Place::Named(path) => path,
            Place::Part { .. } => Path::new("open file"),
        }
    }

    /// Maps the bytes for reading.
    ///
    /// # Errors
    /// As [`map`](super::map).
    pub fn map(&self) -> Result<Bytes> {
        match self {
            Place::Named(path) => os::map(path),
            Place::Part { file, offset, len } => {
                os::map_part(file, *offset, *len).map_err(|e| Error::io(self.name(), e))
            }
        }
    }

    /// The part's offset in its file, and its length if it is a part.
    pub(super) fn span(&self) -> (u64, Option<u64>) {
        match self {
            Place::Named(_) => (0, None),
            Place::Part { offset, len, .. } => (*offset, Some(*len)),
        }
    }

    /// A handle for reads through the page cache.
    pub(super) fn open(&self) -> Result<File> {
        let file = match self {
            Place::Named(path) => File::open(path),
            Place::Part { file, .. } => file.try_clone(),
        };
        file.map_err(|e| Error::io(self.name(), e))
    }

    /// A handle for direct reads; `None` if the system does not support them.
    pub(super) fn open_direct(&self) -> Option<File> {
        match self {
            Place::Named(path) => os::open_direct(path),
            Place::Part { file, .. } => os::reopen_direct(file),
        }
    }
}
