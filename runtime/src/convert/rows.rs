//! Stores the inputs of matrices that a run of the model recorded. Second moments are computed from them when
//! a matrix is encoded. The inputs lie in a file beside the output, which is deleted with its last user.
//!
//! The second moments of all experts of a large model would not fit in memory: 14 GB for 128 experts in 48
//! layers with 768 neurons. So we keep the inputs, and read those of an expert when it is encoded.

use super::journal::Journal;
use super::packing::{Pack, Unpack};
use super::partial::Partial;
use crate::error::{Error, Result};
use crate::quant::{Moments, Rotation};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most inputs kept per matrix. Beyond this, more of the same text changes codes only by noise.
const MAX_ROWS: usize = 16384;

/// Suffix of the journal's file of inputs.
const INPUTS: &str = "-inputs";

/// Number of values converted at a time.
const CHUNK: usize = 1 << 14;

/// Recorded inputs of matrices, by name and expert.
pub struct Rows {
    file: Mutex<Open>,
    path: PathBuf,
    /// Deletes the file on drop; `None` if a journal keeps the file.
    _partial: Option<Partial>,
}

struct Open {
    file: File,
    end: u64,
    kept: BTreeMap<(String, usize), Kept>,
}

#[derive(Default)]
struct Kept {
    cols: usize,
    rows: usize,
    /// Offset in bytes and number of rows of every run.
    runs: Vec<(u64, usize)>,
}

impl std::fmt::Debug for Rows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = self.open();
        write!(f, "inputs of {} matrices, {} bytes", open.kept.len(), open.end)
    }
}

impl Rows {
    /// Creates an empty store, with its file beside `path`.
    ///
    /// # Errors
    /// `Io` if the file cannot be created.
    pub(crate) fn new(path: &Path) -> Result<Rows> {
        let partial = Partial::new(path)?;
        let open = Open { file: partial.file()?, end: 0, kept: BTreeMap::new() };
        Ok(Rows { file: Mutex::new(open), path: path.to_path_buf(), _partial: Some(partial) })
    }

    /// Creates an empty store in a file of the journal, which outlives this process.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn of_journal(journal: &Journal) -> Result<Rows> {
        let (file, path) = journal.file(INPUTS, true)?;
        Ok(Rows { file: Mutex::new(Open { file, end: 0, kept: BTreeMap::new() }), path, _partial: None })
    }

    /// Restores a store from what [`Rows::pack`] wrote and the journal's file; `None` if either is
    /// incomplete.
    pub(super) fn unpack(journal: &Journal, from: &mut Unpack) -> Option<Rows> {
        let (file, path) = journal.file(INPUTS, false).ok()?;
        let end = from.number()?;
        let mut kept = BTreeMap::new();
        for _ in 0..from.number()? {
            let (name, expert) = (from.text()?, usize::try_from(from.number()?).ok()?);
            let mut size = || usize::try_from(from.number()?).ok();
            let (cols, rows, count) = (size()?, size()?, size()?);
            let mut runs = Vec::new();
            for _ in 0..count {
                let (at, n) = (from.number()?, usize::try_from(from.number()?).ok()?);
                let len = (n as u64).checked_mul(cols as u64)?.checked_mul(2)?;
                at.checked_add(len).filter(|&run_end| run_end <= end)?;
                runs.push((at, n));
            }
            kept.insert((name, expert), Kept { cols, rows, runs });
        }
        (file.metadata().ok()?.len() >= end).then_some(())?;
        Some(Rows { file: Mutex::new(Open { file, end, kept }), path, _partial: None })
    }

    /// Serializes the index: where in the file the inputs of each matrix lie. Syncs the file to disk first.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn pack(&self, to: &mut Pack) -> Result<()> {
        let open = self.open();
        open.file.sync_data().map_err(|e| Error::io(&self.path, e))?;
        to.number(open.end);
        to.number(open.kept.len() as u64);
        for ((name, expert), kept) in &open.kept {
            to.bytes(name.as_bytes());
            for n in [*expert, kept.cols, kept.rows, kept.runs.len()] {
                to.number(n as u64);
            }
            for &(at, n) in &kept.runs {
                to.number(at);
                to.number(n as u64);
            }
        }
        Ok(())
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the given `rows` of `x` (`[_, cols]`). Rows beyond the limit per matrix are dropped.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn add(
        &self,
        name: &str,
        expert: usize,
        x: &[f32],
        cols: usize,
        rows: &mut dyn Iterator<Item = usize>,
    ) -> Result<()> {
        let mut open = self.open();
        let open = &mut *open;
        let kept =
            open.kept.entry((name.to_owned(), expert)).or_insert_with(|| Kept { cols, ..Kept::default() });
        let room = MAX_ROWS - kept.rows;
        let mut values: Vec<bf16> = Vec::new();
        for row in rows.take(room) {
            values.extend(x[row * cols..][..cols].iter().map(|&x| bf16::from_f32(x)));
        }
        let n = values.len() / cols.max(1);
        if n > 0 {
            let written = (open.file.seek(SeekFrom::Start(open.end)))
                .and_then(|_| open.file.write_all(bytemuck::cast_slice(&values)));
            written.map_err(|e| Error::io(&self.path, e))?;
            kept.runs.push((open.end, n));
            kept.rows += n;
            open.end += 2 * values.len() as u64;
        }
        Ok(())
    }

    /// Whether inputs of this matrix were recorded.
    pub(super) fn has(&self, name: &str, expert: usize) -> bool {
        self.open().kept.contains_key(&(name.to_owned(), expert))
    }

    /// Whether inputs of any expert of this matrix were recorded.
    pub(super) fn has_any(&self, name: &str) -> bool {
        let from = (name.to_owned(), 0);
        self.open().kept.range(from..).next().is_some_and(|((kept, _), _)| kept == name)
    }

    /// The second moments of a matrix's inputs, rotated if `rotation` is given. If none were recorded, the
    /// moments are over 0 tokens.
    ///
    /// # Errors
    /// `Io`; `Malformed` if inputs are not finite, or have another number of columns.
    pub fn moments(
        &self,
        name: &str,
        expert: usize,
        cols: usize,
        rotation: Option<Rotation>,
    ) -> Result<Moments> {
        let mut moments = Moments::new(cols);
        let runs = match self.open().kept.get(&(name.to_owned(), expert)) {
            Some(kept) if kept.cols != cols => {
                let reason = format!("have {} columns, but the matrix has {cols}", kept.cols);
                return Err(Error::malformed(format!("inputs of `{name}`"), reason));
            }
            Some(kept) => kept.runs.clone(),
            None => Vec::new(),
        };
        let most = (CHUNK / cols).max(64);
        let (mut halves, mut values) = (Vec::new(), Vec::new());
        let mut waiting = 0;
        for (mut at, mut rows) in runs {
            while rows > 0 {
                let n = rows.min(most - waiting);
                halves.resize(n * cols, bf16::ZERO);
                {
                    let mut open = self.open();
                    let read = open
                        .file
                        .seek(SeekFrom::Start(at))
                        .and_then(|_| open.file.read_exact(bytemuck::cast_slice_mut(&mut halves)));
                    read.map_err(|e| Error::io(&self.path, e))?;
                }
                values.resize((waiting + n) * cols, 0.0);
                halves.convert_to_f32_slice(&mut values[waiting * cols..]);
                if let Some(rotation) = rotation {
                    rotation.apply_rows(&mut values[waiting * cols..]);
                }
                (at, rows, waiting) = (at + 2 * (n * cols) as u64, rows - n, waiting + n);
                if waiting == most {
                    moments.add(&values)?;
                    values.clear();
                    waiting = 0;
                }
            }
        }
        moments.add(&values)?;
        Ok(moments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_back_as_moments_and_the_file_goes() {
        let folder = tempfile::tempdir().unwrap();
        let rows = Rows::new(&folder.path().join("inputs")).unwrap();
        let cols = 8;
        let x: Vec<f32> = (0..200 * cols).map(|i| ((i * 37) % 64) as f32 / 8.0 - 4.0).collect();
        rows.add("a", 1, &x, cols, &mut (0..150)).unwrap();
        // Reading does not move the offset of the next write.
        assert_eq!(rows.moments("a", 1, cols, None).unwrap().tokens(), 150.0);
        rows.add("b", 0, &x, cols, &mut [3usize, 3].into_iter()).unwrap();
        rows.add("a", 1, &x, cols, &mut (150..200)).unwrap();
        let mut want = Moments::new(cols);
        want.add(&x).unwrap();
        let got = rows.moments("a", 1, cols, None).unwrap();
        assert_eq!(got.tokens(), 200.0);
        // Small sums of eighths are exact in any order.
        assert_eq!(format!("{got:?}"), format!("{want:?}"));
        assert_eq!(rows.moments("b", 0, cols, None).unwrap().tokens(), 2.0);
        assert!(rows.moments("b", 0, 4, None).is_err());
        assert_eq!(rows.moments("c", 0, 4, None).unwrap().tokens(), 0.0);
        assert!(rows.has("a", 1) && !rows.has("a", 0));
        assert!(rows.has_any("a") && !rows.has_any("aa") && !rows.has_any("c"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(rows);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
