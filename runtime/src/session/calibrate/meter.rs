//! Observes a run of the model: the inputs of every matrix, and the experts that the routers choose.

use crate::convert::Rows;
use crate::error::{Error, Result};
use crate::experts::Expert;
use crate::format::Metadata;
use crate::format::dollop::{PARTS, part_name};
use crate::kernels::{Observer, Summed};
use crate::model::Tensors;
use crate::quant::{Level, Matrix};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Part of every router's name.
pub(super) const ROUTER: &str = ".ffn_gate_inp.";

/// Passes tensors on, and records the address of each matrix.
pub(super) struct Recording<T> {
    pub(super) tensors: T,
    /// Name, expert index and columns of each matrix, by its address.
    pub(super) places: RefCell<BTreeMap<usize, (String, usize, usize)>>,
}

impl<T> Recording<T> {
    fn note(&self, name: &str, expert: usize, matrix: &Matrix) {
        self.places.borrow_mut().insert(matrix.address(), (name.to_owned(), expert, matrix.cols()));
    }
}

impl<T: Tensors> Tensors for Recording<T> {
    fn metadata(&self) -> &Metadata {
        self.tensors.metadata()
    }

    fn rows(&self, name: &str) -> Option<usize> {
        self.tensors.rows(name)
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        self.tensors.vector(name)
    }

    fn matrix(&self, name: &str) -> Result<Option<Matrix>> {
        let matrix = self.tensors.matrix(name)?;
        if let Some(m) = matrix.as_ref().filter(|_| name.starts_with("blk.")) {
            self.note(name, 0, m);
        }
        Ok(matrix)
    }

    fn experts(&self, layer: usize, level: Option<Level>) -> Result<Option<Vec<Expert>>> {
        let experts = self.tensors.experts(layer, level)?;
        let [gate, up, down] = PARTS.map(|part| part_name(layer, part));
        for (i, e) in experts.iter().flatten().enumerate() {
            self.note(if e.gate.is_some() { &gate } else { &up }, i, e.gate());
            self.note(&down, i, &e.down);
        }
        Ok(experts)
    }
}

/// The measurements of one matrix.
#[derive(Clone)]
pub(super) struct Total {
    /// Σ x² of every column.
    pub(super) sums: Vec<f64>,
    pub(super) tokens: u64,
}

/// Whether a matrix's inputs are stored. Gate and up projections of experts use the router's inputs, which
/// contain each token once.
pub(super) fn keeps(name: &str, dense: bool) -> bool {
    let experts = name.contains("_exps.");
    name.contains(ROUTER) || name.contains("ffn_down_exps.") || (dense && !experts)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stores inputs row by row.
pub(super) struct Kept {
    pub(super) rows: Arc<Rows>,
    /// For each slot: whether its inputs are stored, and its name and expert.
    pub(super) which: Vec<bool>,
    pub(super) names: Vec<(String, usize)>,
    /// The first error. The observer cannot return it.
    pub(super) failed: Mutex<Option<Error>>,
}

/// A router's choice of one expert for one row of a call.
#[derive(Clone, Copy)]
pub(super) struct Chosen {
    pub(super) layer: usize,
    pub(super) row: usize,
    pub(super) expert: usize,
}

/// What the routed layers did.
#[derive(Default)]
pub(super) struct Routed {
    /// The layer whose router ran last.
    layer: usize,
    /// While the model generates text: the choices since they were last taken. Nothing is measured then.
    pub(super) writing: Option<Vec<Chosen>>,
    /// By layer, for each expert: the energy (Σ v²) of its gated output relative to that of the residual
    /// stream, summed over tokens.
    pub(super) shares: BTreeMap<usize, Vec<f64>>,
}

/// Sums up energies. Up projections of experts are not recorded: their inputs are those of the gate
/// projections.
pub(super) struct Meter {
    /// Indices into `totals`, by the matrix's address.
    pub(super) slots: HashMap<usize, usize>,
    pub(super) totals: Mutex<Vec<Total>>,
    pub(super) kept: Option<Kept>,
    /// The layers of routers, by slot.
    pub(super) routers: HashMap<usize, usize>,
    pub(super) routed: Mutex<Routed>,
}

impl Observer for Meter {
    fn inputs(&self, matrix: &Matrix, x: &[f32], rows: &mut dyn Iterator<Item = usize>) {
        let Some(&slot) = self.slots.get(&matrix.address()) else { return };
        let mut routed = lock(&self.routed);
        if let Some(&layer) = self.routers.get(&slot) {
            routed.layer = layer;
        }
        if routed.writing.is_some() {
            return;
        }
        let mut totals = lock(&self.totals);
        let Some(Total { sums, tokens }) = totals.get_mut(slot) else { return };
        let cols = sums.len();
        let mut seen = rows.inspect(|row| {
            *tokens += 1;
            let x = &x[row * cols..][..cols];
            sums.iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x) * f64::from(x));
        });
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.which[slot]) {
            let (name, expert) = &kept.names[slot];
            if let Err(e) = kept.rows.add(name, *expert, x, cols, &mut seen) {
                lock(&kept.failed).get_or_insert(e);
            }
        }
        seen.for_each(drop);
    }

    fn summed(&self, sum: &Summed) {
        let &Summed { slots, choices, top_k, x, d } = sum;
        let routed = &mut *lock(&self.routed);
        let layer = routed.layer;
        let shares = routed.shares.entry(layer).or_default();
        for (slot, choice) in choices.iter().enumerate().filter(|(_, c)| c.gate != 0.0) {
            let (row, expert) = (slot / top_k, choice.expert as usize);
            if let Some(writing) = &mut routed.writing {
                writing.push(Chosen { layer, row, expert });
                continue;
            }
            let energy = |v: &[f32]| v.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
            let part = |slot: usize| f64::from(choices[slot].gate).powi(2) * energy(&slots[slot * d..][..d]);
            let whole = match x {
                Some(x) => energy(&x[row * d..][..d]),
                None => (row * top_k..(row + 1) * top_k).map(part).sum(),
            };
            let share = part(slot) / whole;
            if shares.len() <= expert {
                shares.resize(expert + 1, 0.0);
            }
            // If the stream is all zero, the share is undefined and does not count.
            shares[expert] += if share.is_finite() { share } else { 0.0 };
        }
    }
}
