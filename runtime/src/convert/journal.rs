//! The journal of a calibrated conversion, or of one that runs while the source is downloaded. These take
//! long, so a conversion that was killed resumes from its journal.
//!
//! `OUT.resume` is a list of records, each with its length and checksum. They hold windows of text that the
//! model generated, the measurements of its inputs, and the table parts of what is written. Beside it are the
//! inputs themselves (`OUT.resume-inputs`) and the unfinished output (`OUT.resume-file`). Data is synced to
//! disk before the record that describes it is written.
//!
//! The list ends at the first incomplete record, and the work resumes there. All results depend only on
//! source and options, so the output is byte-identical to that of an uninterrupted run. A journal of other
//! inputs or options is discarded.

use super::cache;
use super::name::absolute;
use super::source::Source;
use crate::error::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const MAGIC: &[u8; 16] = b"DOLLOP JOURNAL 1";
/// Bytes of a record's header: its length and its checksum.
const HEAD: usize = 12;

/// A finished part of the work.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Record {
    /// A window of text, as its writer packed it.
    Window(Vec<u8>),
    /// A packed calibration.
    Measured(Vec<u8>),
    /// A tensor or layer that is in the file: its parts of the tables of fits, errors and checksums.
    Written([Vec<u8>; 3]),
}

/// The journal of a conversion. Clones share it.
#[derive(Clone, Debug)]
pub struct Journal(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stem: PathBuf,
    file: File,
    records: Vec<Record>,
    /// Whether a journal of other inputs or options was found and discarded.
    stale: bool,
}

impl Journal {
    /// Opens or creates the journal of a conversion of `source` into `out`. `options` describes everything
    /// else that the result depends on. The files of the source are identified by name, length and
    /// modification time.
    ///
    /// # Errors
    /// `Invalid` if another process has the journal open; `Io`; errors of opening the source.
    pub fn open(out: &Path, source: &Path, options: &str) -> Result<Journal> {
        let source = absolute(source).map_err(|e| Error::io(source, e))?;
        let mut inputs = cache::state_of(&Source::open(&source)?)?;
        inputs.extend_from_slice(concat!(env!("CARGO_PKG_VERSION"), " ").as_bytes());
        inputs.extend_from_slice(options.as_bytes());
        Journal::of(out, &inputs)
    }

    /// Opens or creates the journal of a conversion into `out` of a source that `identity` identifies,
    /// wherever its files lie.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub fn named(out: &Path, identity: &str, options: &str) -> Result<Journal> {
        Journal::of(out, format!("{identity} {} {options}", env!("CARGO_PKG_VERSION")).as_bytes())
    }

    fn of(out: &Path, inputs: &[u8]) -> Result<Journal> {
        let stem = with(out, ".resume");
        if let Some(folder) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&stem);
        let mut file = file.map_err(|e| Error::io(&stem, e))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::Invalid(format!(
                "{}: another conversion is writing this file; wait until it ends",
                out.display()
            )));
        }
        let failed = |e| Error::io(&stem, e);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&hash(inputs).to_le_bytes());
        let (mut records, mut end) = (Vec::new(), head.len());
        if let Some(mut rest) = bytes.strip_prefix(&head[..]) {
            while let Some((record, len)) = next(rest) {
                records.push(record);
                (end, rest) = (end + len, &rest[len..]);
            }
        } else {
            file.set_len(0).map_err(failed)?;
            file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&head)).map_err(failed)?;
        }
        // Cut off an incomplete record.
        file.set_len(end as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        let stale = !bytes.is_empty() && !bytes.starts_with(&head);
        if stale {
            log::info!("{}: this journal is of other inputs or options; starting over", stem.display());
        }
        Ok(Journal(Arc::new(Mutex::new(Inner { stem, file, records, stale }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of finished parts of the work.
    pub fn done(&self) -> usize {
        self.lock().records.len()
    }

    /// Whether a journal of other inputs or options was found and discarded.
    pub fn was_stale(&self) -> bool {
        self.lock().stale
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        self.lock().records.clone()
    }

    /// Removes the records from the `n`th on, because the data that they describe is gone.
    pub(crate) fn cut(&self, n: usize) -> Result<()> {
        let kept: Vec<Record> = self.records().into_iter().take(n).collect();
        let inner = &mut *self.lock();
        let failed = |e| Error::io(&inner.stem, e);
        let head = MAGIC.len() + 8;
        inner.file.set_len(head as u64).and_then(|()| inner.file.seek(SeekFrom::End(0))).map_err(failed)?;
        inner.records.clear();
        kept.into_iter().try_for_each(|record| inner.add(record))
    }

    /// Appends a record. The data that it describes must already be on disk.
    pub(crate) fn add(&self, record: Record) -> Result<()> {
        self.lock().add(record)
    }

    /// Opens a file beside the journal, and empties it if `anew` is set.
    pub(crate) fn file(&self, end: &str, anew: bool) -> Result<(File, PathBuf)> {
        let path = with(&self.lock().stem, end);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(anew).open(&path);
        Ok((file.map_err(|e| Error::io(&path, e))?, path))
    }

    /// Removes the journal and its files, once the result is complete or of no use.
    pub fn remove(&self) {
        let inner = self.lock();
        for end in ["-inputs", "-file", ""] {
            let _ = fs::remove_file(with(&inner.stem, end));
        }
    }
}

impl Inner {
    fn add(&mut self, record: Record) -> Result<()> {
        let payload = payload(&record);
        let mut bytes = (payload.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io(&self.stem, e))?;
        self.records.push(record);
        Ok(())
    }
}

/// Identifies the inputs: two checksums (FNV-1a and CRC-32) combined, which collide on different inputs.
fn hash(inputs: &[u8]) -> u64 {
    let fnv = inputs
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    fnv ^ u64::from(crc32fast::hash(inputs)).rotate_left(32)
}

fn with(path: &Path, end: &str) -> PathBuf {
    let mut name = OsString::from(path.as_os_str());
    name.push(end);
    name.into()
}

/// The first record of `bytes` and its length in bytes, if it is complete.
fn next(bytes: &[u8]) -> Option<(Record, usize)> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let (len, crc) = head.split_first_chunk::<8>()?;
    let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
    let payload = rest.get(..len)?;
    if crc != crc32fast::hash(payload).to_le_bytes() {
        return None;
    }
    let (kind, mut rest) = payload.split_first()?;
    let record = match kind {
        b'w' => Record::Window(rest.to_vec()),
        b'm' => Record::Measured(rest.to_vec()),
        b't' => {
            let mut part = || -> Option<Vec<u8>> {
                let (len, after) = rest.split_first_chunk::<8>()?;
                let (part, after) =
                    after.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
                rest = after;
                Some(part.to_vec())
            };
            Record::Written([part()?, part()?, part()?])
        }
        _ => return None,
    };
    Some((record, HEAD + len))
}

fn payload(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    match record {
        Record::Window(packed) => {
            bytes.push(b'w');
            bytes.extend_from_slice(packed);
        }
        Record::Measured(packed) => {
            bytes.push(b'm');
            bytes.extend_from_slice(packed);
        }
        Record::Written(parts) => {
            bytes.push(b't');
            for part in parts {
                bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
                bytes.extend_from_slice(part);
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_as_far_as_they_are_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("m.gguf");
        let all = [
            Record::Window(vec![1, 2, 3]),
            Record::Measured(vec![]),
            Record::Written([vec![4], vec![], vec![5, 6]]),
        ];
        let journal = Journal::of(&out, b"inputs").unwrap();
        all.iter().for_each(|record| journal.add(record.clone()).unwrap());
        assert!(Journal::of(&out, b"inputs").unwrap_err().to_string().contains("another conversion"));
        drop(journal);
        let place = with(&out, ".resume");
        let whole = fs::read(&place).unwrap();
        let mut seen = Vec::new();
        for len in (0..=whole.len()).rev() {
            fs::write(&place, &whole[..len]).unwrap();
            let journal = Journal::of(&out, b"inputs").unwrap();
            assert_eq!(journal.records(), all[..journal.done()]);
            seen.push(journal.done());
            // New records follow the last complete one.
            journal.add(all[1].clone()).unwrap();
            drop(journal);
            assert_eq!(Journal::of(&out, b"inputs").unwrap().done(), seen.last().unwrap() + 1);
        }
        seen.dedup();
        assert_eq!(seen, [3, 2, 1, 0]);
        for at in MAGIC.len() + 8..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&place, damaged).unwrap();
            let journal = Journal::of(&out, b"inputs").unwrap();
            assert!(journal.done() < 3 && journal.records() == all[..journal.done()], "byte {at}");
        }
        fs::write(&place, &whole).unwrap();
        let other = Journal::of(&out, b"other inputs").unwrap();
        assert!(other.was_stale() && other.done() == 0);
        other.add(all[0].clone()).unwrap();
        other.cut(0).unwrap();
        other.add(all[2].clone()).unwrap();
        other.remove();
        drop(other);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
