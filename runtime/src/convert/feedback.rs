//! Builds the error-feedback data of a matrix when its first block is encoded, and shares it between threads.
//!
//! Gate and up projections of all experts of a layer have the inputs of its router; each down projection has
//! its own. Blocks are taken in order, so few matrices are in use at a time, and a cache of the most recent
//! ones is enough.

use super::rows::Rows;
use super::source::Source;
use super::work::Work;
use crate::error::Result;
use crate::quant::{Feedback, Hessian};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A cache of the most recently used values, by name and number.
struct Recent<V> {
    most: usize,
    entries: Mutex<VecDeque<Entry<V>>>,
}

type Entry<V> = ((String, usize), Arc<Mutex<Option<Arc<V>>>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<V> Recent<V> {
    fn new(most: usize) -> Recent<V> {
        Recent { most, entries: Mutex::default() }
    }

    /// Returns the value for this name and number. If it is not cached, `make` builds it once; other threads
    /// that need the same value wait.
    fn get(&self, name: &str, number: usize, make: impl FnOnce() -> Result<V>) -> Result<Arc<V>> {
        let place = {
            let mut entries = lock(&self.entries);
            let found = entries.iter().position(|(key, _)| key.0 == name && key.1 == number);
            let entry = match found {
                Some(i) => entries.remove(i).expect("it was found"),
                None => ((name.to_owned(), number), Arc::default()),
            };
            let place = entry.1.clone();
            entries.push_front(entry);
            entries.truncate(self.most);
            place
        };
        let mut place = lock(&place);
        match &*place {
            Some(value) => Ok(value.clone()),
            None => Ok(place.insert(Arc::new(make()?)).clone()),
        }
    }
}

/// Error feedback for the matrices of one conversion.
pub(super) struct Feedbacks<'a> {
    source: &'a Source,
    rows: Option<&'a Rows>,
    sweeps: usize,
    hessians: Recent<Hessian>,
    matrices: Recent<Feedback>,
}

impl<'a> Feedbacks<'a> {
    /// `rows`: the recorded inputs; without them there is no feedback. `threads`: how many threads use it at
    /// a time.
    pub(super) fn new(source: &'a Source, rows: Option<&'a Rows>, sweeps: usize, threads: usize) -> Self {
        let most = threads + 2;
        Feedbacks { source, rows, sweeps, hessians: Recent::new(most), matrices: Recent::new(most) }
    }

    /// Feedback for an expert matrix that is encoded multiplied by 2^`lift`; `None` if its inputs were not
    /// recorded. A rotated matrix always gets feedback, because all experts of its layer are rotated. If its
    /// inputs were not recorded, all columns count alike.
    pub(super) fn of(&self, work: &Work, lift: i32) -> Result<Option<Arc<Feedback>>> {
        let Work { name, expert, shape, rotation, .. } = *work;
        let (inputs, number) = (inputs_of(name), if is_down(name) { expert } else { 0 });
        let Some(rows) = self.rows.filter(|rows| rotation.is_some() || rows.has(&inputs, number)) else {
            return Ok(None);
        };
        let key = format!("{name} {lift}");
        let made = self.matrices.get(&key, expert, || {
            let hessian = self.hessians.get(&inputs, number, || {
                Hessian::new(&rows.moments(&inputs, number, shape.cols, rotation)?)
            })?;
            let mut sample = Vec::new();
            for row in Feedback::sample(shape.rows) {
                let from = sample.len();
                sample.resize(from + shape.cols, 0.0);
                self.source.read_rows(name, expert, row..row + 1, &mut sample[from..])?;
            }
            let factor = 2f32.powi(lift);
            sample.iter_mut().for_each(|w| *w *= factor);
            if let Some(rotation) = rotation {
                rotation.apply_rows(&mut sample);
            }
            Feedback::new(hessian, shape, &sample, self.sweeps)
        })?;
        Ok(Some(made))
    }
}

/// Whether each expert's matrix has inputs of its own.
fn is_down(name: &str) -> bool {
    name.contains(".ffn_down_exps.")
}

/// The name under which the inputs of an expert matrix were recorded.
pub(super) fn inputs_of(name: &str) -> String {
    match name.split_once(".ffn_gate_exps.").or_else(|| name.split_once(".ffn_up_exps.")) {
        Some((block, _)) => format!("{block}.ffn_gate_inp.weight"),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ones_used_last_are_kept() {
        let recent = Recent::new(2);
        let get = |name: &str| {
            let mut made = false;
            let value = recent.get(name, 0, || {
                made = true;
                Ok(name.len())
            });
            assert_eq!(*value.unwrap(), name.len());
            made
        };
        assert!(get("a") && get("bb"));
        assert!(!get("a") && get("ccc"));
        assert!(!get("a") && get("bb"));
        let failed = recent.get("d", 0, || Err(crate::error::Error::Cancelled));
        assert!(failed.is_err() && get("d"), "an error is not kept");
    }
}
