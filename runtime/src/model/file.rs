//! A Dollop file as a source of tensors. Matrices are views of the mapping; nothing is copied.

use super::tensors::Tensors;
use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::experts::{Expert, LayerExperts, PlaneSlabs};
use crate::format::dollop::{CHECKSUMS, Directory, MAX_EXPERTS, MatrixEntry, PARTS, part_name, slabs_name};
use crate::format::{GgmlType, Metadata};
use crate::quant::{self, Fit, Fits, GroupParams, Level, Matrix, Nested, PLANES, Rotation, Shape};
use std::collections::HashMap;

/// Part of the names of expert-plane tensors.
const EXPERT_PLANE: &str = ".ffn_exps.plane";

/// A mapped Dollop file. Its tables have been checked against the codec.
#[derive(Debug)]
pub struct NestedFile {
    bytes: Bytes,
    directory: Directory,
    fits: Vec<Fits>,
    errors: Vec<[f32; PLANES]>,
    /// CRC-32 of every dense matrix's planes and of every slab, by tensor name.
    checksums: HashMap<String, Vec<u32>>,
}

/// Weights and bytes of a file, by kind.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Sizes {
    /// Weights in nested matrices.
    pub weights: u64,
    /// Weights of routed experts, also counted in `weights`.
    pub expert_weights: u64,
    /// Bytes of dense matrices, metadata included.
    pub dense_bytes: u64,
    /// Bytes of each expert plane, without padding between slabs.
    pub plane_bytes: [u64; PLANES],
    /// Weights in matrices whose inputs are rotated.
    pub rotated_weights: u64,
    /// Weights whose codes index a lookup table.
    pub table_weights: u64,
}

/// Checks and returns the shape and level of a directory entry.
fn shape(entry: &MatrixEntry) -> Result<(Shape, Level)> {
    let at = |e: Error| match e {
        Error::Malformed { reason, field, .. } => {
            Error::malformed(format!("matrix `{}`: {field}", entry.name), reason)
        }
        other => other,
    };
    let shape = Shape::new(entry.rows, entry.cols, entry.group).map_err(at)?;
    let level = Level::from_bits(entry.level).ok_or_else(|| {
        Error::malformed(
            format!("matrix `{}`: level", entry.name),
            format!("{} bits is not a level; 2, 3, 4, 6 and 8 are", entry.level),
        )
    })?;
    let wrong = entry.levels.iter().find(|&&bits| bits > entry.level || Level::from_bits(bits).is_none());
    if wrong.is_some() || entry.levels.iter().max().is_some_and(|&most| most != entry.level) {
        let reason = format!(
            "levels of experts must be 2, 3, 4, 6 or 8 bits, and the highest must be {}",
            entry.level
        );
        return Err(Error::malformed(format!("matrix `{}`: levels", entry.name), reason));
    }
    let params = GroupParams::numbered(entry.params).ok_or_else(|| {
        Error::malformed(
            format!("matrix `{}`: params", entry.name),
            format!("{} is not a known kind of group parameters", entry.params),
        )
    })?;
    let shape = shape.with(params);
    shape.check(level).map_err(at)?;
    Ok((shape, level))
}

/// How many experts of an entry have plane `p`; `None` if all have the same planes.
fn reaching(entry: &MatrixEntry, p: usize) -> Option<usize> {
    let reach = |bits: &&u8| **bits >= Level::ALL[p].bits();
    (!entry.levels.is_empty()).then(|| entry.levels.iter().filter(reach).count())
}

/// The slab index of each expert in plane `p`, or `None` for experts without that plane. Empty if all experts
/// have the same planes.
fn slots(entry: &MatrixEntry, p: usize) -> Vec<Option<u32>> {
    let mut next = 0..;
    let slot = |bits: &u8| (*bits >= Level::ALL[p].bits()).then(|| next.next()).flatten();
    entry.levels.iter().map(slot).collect()
}

/// Checks and returns the rotation of an entry's inputs.
fn rotation(entry: &MatrixEntry) -> Result<Option<Rotation>> {
    let field = || format!("matrix `{}`: rotation", entry.name);
    match entry.rotation {
        0 => Ok(None),
        Rotation::KIND if entry.experts == 0 => {
            Err(Error::unsupported(format!("{}: only those of experts are supported", field())))
        }
        Rotation::KIND => Rotation::of(entry.cols)
            .map(Some)
            .ok_or_else(|| Error::malformed(field(), format!("{} columns cannot be rotated", entry.cols))),
        kind => {
            Err(Error::unsupported(format!("{} {kind} is not known; a newer version may know it", field())))
        }
    }
}

impl NestedFile {
    /// # Errors
    /// `Malformed` or `Unsupported` if this is not a Dollop file, has another version, or contradicts itself.
    pub fn new(bytes: Bytes) -> Result<NestedFile> {
        let directory = Directory::parse(&bytes)?;
        for entry in &directory.matrices {
            shape(entry)?;
            rotation(entry)?;
        }
        let floats = |name: &str, per: usize| -> Result<Vec<f32>> {
            let range = directory.tensor(name, GgmlType::F32, Some(4 * per * directory.total()))?;
            Ok(bytes[range].chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
        };
        let fits = floats("dollop.fits", 2 * PLANES)?;
        let fit = |f: &[f32]| std::array::from_fn(|i| Fit { alpha: f[2 * i], beta: f[2 * i + 1] });
        let fits = fits.chunks_exact(2 * PLANES).map(fit).collect();
        let errors = floats("dollop.errors", PLANES)?;
        let errors = errors.chunks_exact(PLANES).map(|e| std::array::from_fn(|i| e[i])).collect();
        let mut file = NestedFile { bytes, directory, fits, errors, checksums: HashMap::new() };
        file.checksums = file.read_checksums()?;
        Ok(file)
    }

    /// The parsed header and tables.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Squared error at every level, relative to the weights' energy, of a matrix or of one expert in a
    /// stack.
    pub fn errors(&self, name: &str, expert: usize) -> Option<[f32; PLANES]> {
        let (entry, first) = self.directory.matrix(name)?;
        (expert < entry.count()).then(|| self.errors[first + expert])
    }

    /// Identifies the file: a checksum of its header, and one of the table of checksums.
    ///
    /// # Errors
    /// `Malformed` if the table of checksums is missing.
    pub fn identity(&self) -> Result<[u32; 2]> {
        let table = self.directory.tensor(CHECKSUMS, GgmlType::I32, None)?;
        // The directory has checked that both lie within the file.
        let header = self.bytes.get(..self.directory.gguf.data_start as usize).unwrap_or_default();
        Ok([crc32fast::hash(header), crc32fast::hash(&self.bytes[table])])
    }

    fn slice(&self, name: &str, n_bytes: Option<usize>) -> Result<Bytes> {
        let range = self.directory.tensor(name, GgmlType::I8, n_bytes)?;
        Ok(self.bytes.slice(range).expect("the directory is within the file"))
    }

    /// File offset of a dense matrix. Its planes follow one another.
    ///
    /// # Errors
    /// `Malformed` if the file has no dense matrix of this name.
    pub fn matrix_offset(&self, name: &str) -> Result<u64> {
        let entry = self.directory.matrix(name).filter(|(entry, _)| entry.experts == 0);
        let (entry, _) = entry
            .ok_or_else(|| Error::malformed(format!("matrix `{name}`"), "the file has no such matrix"))?;
        Ok(self.directory.tensor(&entry.planes_name(), GgmlType::I8, None)?.start as u64)
    }

    /// Counts weights and bytes by kind.
    pub fn sizes(&self) -> Sizes {
        let mut sizes = Sizes::default();
        for entry in &self.directory.matrices {
            let Ok((shape, level)) = shape(entry) else { continue };
            let weights = (entry.rows * entry.cols * entry.count()) as u64;
            sizes.weights += weights;
            for p in 0..level.planes() {
                let count = reaching(entry, p).unwrap_or(entry.count());
                let bytes = (shape.plane(p).len * count) as u64;
                if entry.experts == 0 {
                    sizes.dense_bytes += bytes;
                } else {
                    sizes.plane_bytes[p] += bytes;
                }
            }
            if entry.experts > 0 {
                sizes.expert_weights += weights;
            }
            if entry.rotation != 0 {
                sizes.rotated_weights += weights;
            }
            if shape.params.table().is_some() {
                sizes.table_weights += weights;
            }
        }
        sizes
    }

    /// The highest stored level of each expert, by layer.
    pub fn expert_levels(&self) -> Vec<(usize, Vec<u8>)> {
        let ups = self.directory.matrices.iter().filter_map(|m| {
            let layer = m.name.strip_prefix("blk.")?.strip_suffix(".ffn_up_exps.weight")?;
            let even = || vec![m.level; m.experts];
            Some((layer.parse().ok()?, if m.levels.is_empty() { even() } else { m.levels.clone() }))
        });
        ups.collect()
    }

    /// Where the experts of a layer lie in the file; `None` for a dense layer.
    ///
    /// # Errors
    /// `Malformed` if the tables contradict each other.
    pub fn layer_experts(&self, layer: usize) -> Result<Option<LayerExperts>> {
        let parts = PARTS.map(|part| self.directory.matrix(&part_name(layer, part)));
        let [gate, Some(up), Some(down)] = parts else { return Ok(None) };
        let gated = gate.is_some();
        let gate = gate.unwrap_or(up);
        let parts = [gate, up, down];
        let shapes = [shape(gate.0)?, shape(up.0)?, shape(down.0)?];
        let (count, stored) = (gate.0.experts, shapes[0].1);
        if count == 0 || parts.iter().any(|p| p.0.experts != count) || shapes.iter().any(|s| s.1 != stored) {
            return Err(Error::malformed(
                part_name(layer, "gate"),
                "gate, up and down differ in experts or level",
            ));
        }
        if parts.iter().any(|p| p.0.levels != gate.0.levels) {
            return Err(Error::malformed(
                part_name(layer, "gate"),
                "gate, up and down differ in experts' levels",
            ));
        }
        let rotations = [rotation(gate.0)?, rotation(up.0)?, rotation(down.0)?];
        if rotations[0] != rotations[1] {
            return Err(Error::malformed(
                part_name(layer, "gate"),
                "gate and up have the same inputs, and differ in their rotation",
            ));
        }
        let unstored = usize::from(!gated);
        let mut planes = Vec::new();
        for p in 0..stored.planes() {
            let name = slabs_name(layer, p);
            let range = self.directory.tensor(&name, GgmlType::I8, None)?;
            let slots = slots(gate.0, p);
            let there = slots.iter().flatten().count().max(if slots.is_empty() { count } else { 1 });
            let stride = range.len() / there;
            let least: usize = shapes[unstored..].iter().map(|(shape, _)| shape.plane(p).len).sum();
            let sums = self.checksums.get(&name).filter(|sums| sums.len() == there);
            let (Some(sums), true) = (sums, stride * there == range.len() && stride >= least) else {
                return Err(Error::malformed(name, format!("{} bytes for {there} experts", range.len())));
            };
            planes.push(PlaneSlabs { offset: range.start as u64, stride, checksums: sums.clone(), slots });
        }
        let per_expert = |e: usize| parts.map(|(_, first)| first + e);
        Ok(Some(LayerExperts {
            gated,
            shapes: shapes.map(|(shape, _)| shape),
            rotations,
            fits: (0..count).map(|e| per_expert(e).map(|i| self.fits[i])).collect(),
            errors: (0..count)
                .map(|e| {
                    let of = per_expert(e).map(|i| self.errors[i]);
                    let of = &of[unstored..];
                    std::array::from_fn(|level| of.iter().map(|e| e[level]).sum::<f32>() / of.len() as f32)
                })
                .collect(),
            planes,
        }))
    }

    /// Checksums by tensor name: one for a dense matrix, one per slab for an expert plane.
    fn read_checksums(&self) -> Result<HashMap<String, Vec<u32>>> {
        let parts = self.checked_parts()?;
        let table = self.directory.tensor(CHECKSUMS, GgmlType::I32, Some(4 * parts.len()))?;
        let mut sums: HashMap<String, Vec<u32>> = HashMap::new();
        for ((name, _), sum) in parts.into_iter().zip(self.bytes[table].chunks_exact(4)) {
            sums.entry(name).or_default().push(u32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]));
        }
        Ok(sums)
    }

    /// Computes every checksum and compares it with the stored one.
    ///
    /// # Errors
    /// `Malformed`, naming the first tensor that differs.
    pub fn verify(&self) -> Result<()> {
        let mut nth: HashMap<&str, usize> = HashMap::new();
        for (name, bytes) in &self.checked_parts()? {
            let n = nth.entry(name).or_default();
            compare(name, self.checksums[name][*n], crc32fast::hash(bytes))?;
            *n += 1;
        }
        Ok(())
    }

    /// The checksums of dense matrices.
    ///
    /// # Errors
    /// `Malformed` if the tables contradict the file.
    pub fn dense_sums(&self) -> Result<DenseSums> {
        let dense = (self.checked_parts()?.into_iter()).filter(|(name, _)| !name.contains(EXPERT_PLANE)).map(
            |(name, bytes)| {
                let sum = self.checksums[&name][0];
                (bytes.as_ptr().addr(), (bytes.len(), sum, name))
            },
        );
        Ok(DenseSums(dense.collect()))
    }

    /// The parts that have checksums, in the order of the table: dense planes and slabs.
    fn checked_parts(&self) -> Result<Vec<(String, Bytes)>> {
        let mut parts = Vec::new();
        for t in self.directory.gguf.tensors.iter().filter(|t| t.ty == GgmlType::I8) {
            let bytes = self.slice(&t.name, None)?;
            let slabs = if t.name.contains(EXPERT_PLANE) {
                t.shape.get(1).copied().unwrap_or(1).max(1) as usize
            } else {
                1
            };
            if slabs > MAX_EXPERTS as usize {
                return Err(Error::malformed(format!("tensor `{}`", t.name), format!("{slabs} experts")));
            }
            let len = bytes.len() / slabs;
            parts.extend(
                (0..slabs).filter_map(|e| Some((t.name.clone(), bytes.slice(e * len..(e + 1) * len)?))),
            );
        }
        Ok(parts)
    }
}

/// Checksums of dense matrices, by the address of their planes in memory: length in bytes, checksum, name.
#[derive(Default)]
pub struct DenseSums(HashMap<usize, (usize, u32, String)>);

impl DenseSums {
    /// Whether there is nothing to compare.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Computes the checksum of a matrix whose planes are read one after another.
#[derive(Default)]
pub struct DenseCheck {
    start: Option<usize>,
    len: usize,
    hasher: crc32fast::Hasher,
}

impl DenseCheck {
    /// Adds the next bytes, a plane or part of one, which were read at `address`.
    pub fn add(&mut self, address: usize, bytes: &[u8]) {
        self.start.get_or_insert(address);
        self.len += bytes.len();
        self.hasher.update(bytes);
    }

    /// Compares the checksum if `sums` has the matrix. A matrix loaded with fewer planes than the file has
    /// cannot be compared, so it passes.
    ///
    /// # Errors
    /// `Malformed`, naming the tensor, if they differ.
    pub fn finish(self, sums: &DenseSums) -> Result<()> {
        match self.start.and_then(|start| sums.0.get(&start)) {
            Some((len, sum, name)) if *len == self.len => compare(name, *sum, self.hasher.finalize()),
            _ => Ok(()),
        }
    }
}

fn compare(name: &str, written: u32, read: u32) -> Result<()> {
    if written == read {
        return Ok(());
    }
    let reason = "the bytes are not those that were written; copy or convert the file again";
    Err(Error::malformed(format!("tensor `{name}`"), reason))
}

impl Tensors for NestedFile {
    fn metadata(&self) -> &Metadata {
        &self.directory.gguf.metadata
    }

    fn rows(&self, name: &str) -> Option<usize> {
        self.directory.matrix(name).map(|(entry, _)| entry.rows)
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>> {
        if self.directory.gguf.tensor(name).is_none() {
            return Ok(None);
        }
        let range = self.directory.tensor(name, GgmlType::F32, None)?;
        let mut out = vec![0.0; range.len() / 4];
        GgmlType::F32.dequantize(&self.bytes[range], &mut out)?;
        Ok(Some(out))
    }

    fn matrix(&self, name: &str) -> Result<Option<Matrix>> {
        let Some((entry, first)) = self.directory.matrix(name).filter(|(e, _)| e.experts == 0) else {
            return Ok(None);
        };
        let (shape, level) = shape(entry)?;
        let lens: Vec<usize> = (0..level.planes()).map(|p| shape.plane(p).len).collect();
        let all = self.slice(&entry.planes_name(), Some(lens.iter().sum()))?;
        let mut at = 0;
        let planes = lens.iter().map(|len| {
            at += len;
            all.slice(at - len..at).expect("the sum was checked")
        });
        Ok(Some(Matrix::Nested(Nested::new(shape, planes.collect(), self.fits[first])?)))
    }

    fn experts(&self, layer: usize, level: Option<Level>) -> Result<Option<Vec<Expert>>> {
        let Some(table) = self.layer_experts(layer)? else { return Ok(None) };
        let most = self.directory.matrices.iter().filter(|m| m.experts > 0).map(|m| m.level).max();
        let most = most.and_then(Level::from_bits).unwrap_or(Level::B8);
        quant::check_level(level.unwrap_or(most), most)?;
        let level = level.unwrap_or(most).min(table.level());
        let expert = |e: usize| {
            let slab = |plane: &PlaneSlabs| {
                let from = plane.slab(e)?.0 as usize;
                Some(self.bytes.slice(from..from + plane.stride).expect("the directory is within the file"))
            };
            // Experts that are stored with fewer planes get those they have.
            let slabs: Vec<Bytes> = table.planes[..level.planes()].iter().map_while(slab).collect();
            table.view(e, &slabs)
        };
        (0..table.count()).map(expert).collect::<Result<_>>().map(Some)
    }
}
