//! Measured energies of the inputs of a model's matrices, and the least-squares weights derived from them.
//!
//! A [`Calibration`] holds the measurements of a file or of a run of the model, checked for invalid values.
//! [`Importance`] matches them to one source: shapes agree, and every expert has numbers even if the
//! calibration text never reached it.

use super::journal::Journal;
use super::packing::{Pack, Unpack};
use super::rows::Rows;
use super::source::Source;
use crate::error::{Error, Result};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Weight of the prior: the expected energies count as much as this many measured tokens.
///
/// An energy measured over `n` tokens of Gaussian inputs has a relative error of √(2/n): 25 % at 32 tokens.
/// An expert that 32 tokens reached is therefore half measurement and half prior. One that no token reached
/// has the mean of its layer. With thousands of tokens the prior only keeps every column's weight above zero.
///
/// Neurons of one expert differ by far more than 25 %. Between experts of a layer, a column differs by 5 %
/// (median) in a model with 12 of 16 experts active. A stronger prior would suit that model. With few of many
/// experts active they should differ more, but this is not measured. So the number favours the measurement.
const PRIOR_TOKENS: f64 = 32.0;

/// Measured inputs of one matrix, or of the experts of a layer.
#[derive(Clone, Debug, PartialEq)]
#[doc(hidden)]
pub struct Inputs {
    /// Σ x² of every column: `[cols]` or `[experts, cols]`.
    pub sums: Vec<f32>,
    /// Number of tokens summed: one number, or one per expert. One number for several experts means that
    /// tokens were not counted per expert.
    pub counts: Vec<f32>,
}

/// Energies of matrix inputs, keyed by the matrices' canonical names. A run of the model also keeps the
/// inputs.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    description: String,
    inputs: BTreeMap<String, Inputs>,
    rows: Option<Arc<Rows>>,
    /// By layer: each expert's contribution to the residual stream, as in [`Calibration::insert_shares`].
    shares: BTreeMap<usize, Vec<f32>>,
}

impl Calibration {
    /// Creates an empty calibration. `description` is text for readers, and is stored in the converted file.
    #[doc(hidden)]
    pub fn new(description: impl Into<String>) -> Calibration {
        Calibration { description: description.into(), ..Calibration::default() }
    }

    /// What the calibration was measured on.
    #[doc(hidden)]
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Adds the measurement of one matrix or stack.
    ///
    /// # Errors
    /// `Malformed`, naming the matrix, for values that are not energies, energies that are all zero, or
    /// counts that do not match.
    #[doc(hidden)]
    pub fn insert(&mut self, name: impl Into<String>, inputs: Inputs) -> Result<()> {
        let name = name.into();
        check_values(&inputs).map_err(|reason| Error::malformed(format!("inputs of `{name}`"), reason))?;
        if self.inputs.contains_key(&name) {
            return Err(Error::malformed(format!("inputs of `{name}`"), "appear twice"));
        }
        self.inputs.insert(name, inputs);
        Ok(())
    }

    /// Attaches the inputs themselves, for error feedback.
    pub(crate) fn with_rows(self, rows: Arc<Rows>) -> Calibration {
        Calibration { rows: Some(rows), ..self }
    }

    /// Adds the contribution of each expert of a layer to the residual stream: gate² · |output|² / |stream|²,
    /// summed over tokens.
    ///
    /// # Errors
    /// `Malformed` if a value is negative or not finite.
    #[doc(hidden)]
    pub fn insert_shares(&mut self, layer: usize, shares: Vec<f32>) -> Result<()> {
        match shares.iter().find(|s| !(s.is_finite() && **s >= 0.0)) {
            Some(bad) => Err(Error::malformed(
                format!("shares of layer {layer}"),
                format!("{bad} is not a sum of squares"),
            )),
            None => {
                self.shares.insert(layer, shares);
                Ok(())
            }
        }
    }

    /// The contribution of each expert of a layer to the residual stream, if it was measured.
    #[doc(hidden)]
    pub fn shares(&self, layer: usize) -> Option<&[f32]> {
        self.shares.get(&layer).map(Vec::as_slice)
    }

    /// The inputs themselves, if they were kept.
    #[doc(hidden)]
    pub fn rows(&self) -> Option<&Arc<Rows>> {
        self.rows.as_ref()
    }

    /// The measurement of a matrix or stack.
    #[doc(hidden)]
    pub fn get(&self, name: &str) -> Option<&Inputs> {
        self.inputs.get(name)
    }

    /// Names of the measured matrices, sorted.
    #[doc(hidden)]
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// Serializes the calibration for a journal. The inputs themselves are in the journal's own file.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn pack(&self) -> Result<Vec<u8>> {
        let mut to = Pack::default();
        to.bytes(self.description.as_bytes());
        to.number(self.inputs.len() as u64);
        for (name, inputs) in &self.inputs {
            to.bytes(name.as_bytes());
            to.floats(&inputs.sums);
            to.floats(&inputs.counts);
        }
        to.number(self.shares.len() as u64);
        for (layer, shares) in &self.shares {
            to.number(*layer as u64);
            to.floats(shares);
        }
        if let Some(rows) = &self.rows {
            rows.pack(&mut to)?;
        }
        Ok(to.0)
    }

    /// Reads what [`Calibration::pack`] wrote; `None` if it is incomplete.
    pub(crate) fn unpack(journal: &Journal, packed: &[u8]) -> Option<Calibration> {
        let mut from = Unpack(packed);
        let mut all = Calibration::new(from.text()?);
        for _ in 0..from.number()? {
            let name = from.text()?;
            all.insert(name, Inputs { sums: from.floats()?, counts: from.floats()? }).ok()?;
        }
        for _ in 0..from.number()? {
            let layer = usize::try_from(from.number()?).ok()?;
            all.insert_shares(layer, from.floats()?).ok()?;
        }
        let rows = Rows::unpack(journal, &mut from)?;
        Some(all.with_rows(Arc::new(rows)))
    }

    /// A checksum of the measurements, for the key of a cached conversion.
    pub(super) fn fingerprint(&self) -> u32 {
        let mut state = crc32fast::Hasher::new();
        state.update(self.description.as_bytes());
        for (name, inputs) in &self.inputs {
            state.update(name.as_bytes());
            state.update(bytemuck::cast_slice(&inputs.sums));
            state.update(bytemuck::cast_slice(&inputs.counts));
        }
        for (layer, shares) in &self.shares {
            state.update(&(*layer as u64).to_le_bytes());
            state.update(bytemuck::cast_slice(shares));
        }
        state.finalize()
    }
}

fn check_values(inputs: &Inputs) -> Result<(), String> {
    let (sums, counts) = (&inputs.sums, &inputs.counts);
    if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
        return Err(format!("{} values for {} counts", sums.len(), counts.len()));
    }
    for (what, values) in [("energy", sums), ("count", counts)] {
        if let Some(i) = values.iter().position(|v| !(v.is_finite() && *v >= 0.0)) {
            return Err(format!("{what} {i} is {}, and must be zero or a positive number", values[i]));
        }
    }
    if let Some(i) = counts.iter().position(|c| c.fract() != 0.0) {
        return Err(format!("count {i} is {}, and must be whole", counts[i]));
    }
    let cols = sums.len() / counts.len();
    for (i, (sums, &count)) in sums.chunks_exact(cols).zip(counts).enumerate() {
        if count == 0.0 && sums.iter().any(|&s| s > 0.0) {
            return Err(format!("matrix {i} has energies but no tokens"));
        }
    }
    if sums.iter().all(|&s| s == 0.0) {
        return Err("all energies are zero: nothing was measured".into());
    }
    Ok(())
}

/// One matrix of the source, or one stack of experts.
struct Stack<'a> {
    cols: usize,
    inputs: &'a Inputs,
    /// The prior E(x²) of every column. `None` where experts cannot share one: in a dense matrix, and where
    /// the columns of one expert are not those of another.
    expected: Option<Vec<f64>>,
}

/// Least-squares weights for every matrix that a calibration measured.
#[derive(Default)]
pub(super) struct Importance<'a>(HashMap<&'a str, Stack<'a>>);

impl<'a> Importance<'a> {
    /// Matches `calibration` to the matrices of `source`. Either may have matrices that the other lacks.
    ///
    /// # Errors
    /// `Malformed` if shapes differ, `Invalid` if the two have no matrix in common.
    pub(super) fn new(calibration: Option<&'a Calibration>, source: &Source) -> Result<Self> {
        let Some(calibration) = calibration else { return Ok(Importance::default()) };
        let mut stacks = HashMap::new();
        for (name, inputs) in &calibration.inputs {
            let (experts, cols) = match source.shape(name) {
                Some(&[experts, _, cols]) => (experts, cols),
                Some(&[_, cols]) => (1, cols),
                // Vectors have no inputs. A matrix that the source lacks may belong to a part that we do not
                // compute.
                _ => continue,
            };
            if inputs.sums.len() != experts * cols || ![1, experts].contains(&inputs.counts.len()) {
                let reason = format!(
                    "{} energies with {} counts, where the model has {experts} matri{} of {cols} columns; were they measured on another model?",
                    inputs.sums.len(),
                    inputs.counts.len(),
                    if experts == 1 { "x" } else { "ces" },
                );
                return Err(
                    Error::malformed(format!("inputs of `{name}`"), reason).at(&calibration.description)
                );
            }
            // The columns of a down projection are the expert's own neurons.
            let shared = experts > 1 && !name.contains("ffn_down_exps");
            let expected = shared.then(|| expected(inputs, cols));
            stacks.insert(name.as_str(), Stack { cols, inputs, expected });
        }
        if stacks.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: none of its {} matrices is in this model; was it made for another model?",
                calibration.description,
                calibration.inputs.len()
            )));
        }
        Ok(Importance(stacks))
    }

    /// Whether a matrix or stack was measured.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Column weights (`[cols]`, mean 1) of a matrix, or of one expert of a stack.
    pub(super) fn of(&self, name: &str, expert: usize) -> Option<Vec<f32>> {
        let Stack { cols, inputs, expected } = self.0.get(name)?;
        let (sums, tokens) = of_expert(inputs, expert, *cols);
        let own = |c: usize| if tokens > 0.0 { f64::from(sums[c]) } else { 0.0 };
        let energy: f64 = (0..*cols).map(own).sum();
        let flat = if energy > 0.0 { energy / (tokens * *cols as f64) } else { 1.0 };
        let weight = |c: usize| {
            let prior = expected.as_ref().map_or(flat, |all| all[c]);
            (own(c) + PRIOR_TOKENS * prior) / (tokens + PRIOR_TOKENS)
        };
        // Only ratios matter. With a mean of 1, sums in f32 cannot overflow.
        let mean = (0..*cols).map(weight).sum::<f64>() / *cols as f64;
        Some((0..*cols).map(|c| (weight(c) / mean) as f32).collect())
    }
}

/// Energies of one expert, and its token count: 0 if no text reached it, whatever the energies say.
fn of_expert(inputs: &Inputs, expert: usize, cols: usize) -> (&[f32], f64) {
    let sums = &inputs.sums[expert * cols..][..cols];
    let experts = inputs.sums.len() / cols;
    match inputs.counts.get(expert) {
        Some(&count) if inputs.counts.len() == experts => (sums, count.into()),
        _ => {
            // Tokens were not counted per expert; each token reaches at least one expert. For an expert that
            // no token reached, llama.cpp's older files hold the same number in every column.
            let tokens = f64::from(inputs.counts[0]) / experts as f64;
            let reached = experts == 1 || sums.iter().any(|s| *s != sums[0]);
            (sums, if reached { tokens } else { 0.0 })
        }
    }
}

/// E(x²) of every column over all experts together. The fewer tokens were measured, the closer it is to the
/// mean of all columns.
fn expected(inputs: &Inputs, cols: usize) -> Vec<f64> {
    let (mut sums, mut tokens) = (vec![0.0f64; cols], 0.0);
    for expert in 0..inputs.sums.len() / cols {
        let (own, n) = of_expert(inputs, expert, cols);
        if n > 0.0 {
            tokens += n;
            sums.iter_mut().zip(own).for_each(|(sum, &s)| *sum += f64::from(s));
        }
    }
    let flat = if tokens > 0.0 { sums.iter().sum::<f64>() / (tokens * cols as f64) } else { 1.0 };
    sums.iter().map(|s| (s + PRIOR_TOKENS * flat) / (tokens + PRIOR_TOKENS)).collect()
}

#[cfg(test)]
mod tests;
