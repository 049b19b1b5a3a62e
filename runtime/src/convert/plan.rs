//! Plans the output file: every tensor and its size, before the first byte is written.

use super::ConvertOptions;
use super::encode::is_kept;
use super::feedback::inputs_of;
use super::source::Source;
use crate::error::{Error, Result};
use crate::format::dollop::{self, MatrixEntry, PARTS, part_name, slabs_name};
use crate::format::{GgmlType, Metadata, TensorDecl, Value};
use crate::model::weights::{EMBEDDING, PER_LAYER_EMBEDDING};
use crate::model::{Spec, weights};
use crate::quant::{self, GroupParams, Level, PLANE_BITS, Rotation, Shape};
use std::collections::HashSet;

/// Number of weights that share a scale and a zero point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// 32 if the source has uniform codes in groups of 32, which are then kept unchanged; else 64.
    #[default]
    Auto,
    /// 32: 0.75 bits of metadata per weight.
    G32,
    /// 64: 0.375 bits of metadata per weight.
    G64,
}

/// Slabs of plane 0 of at least this size are aligned to 16 KiB for direct reads. Smaller slabs would
/// waste too much space on padding.
const LARGE_SLAB_BYTES: usize = 256 << 10;
const LARGE_ALIGNMENT: u64 = 16384;
const SMALL_ALIGNMENT: u64 = 512;

/// One unit to write, in file order: a small tensor, a dense matrix, or the experts of a layer.
// There is only one value per tensor, so the size of the largest variant does not matter.
#[allow(clippy::large_enum_variant)]
pub(super) enum Target {
    Plain {
        name: String,
        index: usize,
    },
    Dense {
        name: String,
        shape: Shape,
        level: Level,
        index: usize,
    },
    /// `planes`: tensor index and slab stride in bytes of each plane.
    Experts {
        /// Names, shapes and rotations of an expert's matrices, in slab order.
        names: Vec<String>,
        shapes: Vec<Shape>,
        rotations: Vec<Option<Rotation>>,
        experts: usize,
        level: Level,
        planes: Vec<(usize, usize)>,
    },
}

impl Target {
    /// Indices of the tensors it has in the output file.
    pub(super) fn tensors(&self) -> impl Iterator<Item = usize> {
        let (one, planes) = match self {
            Target::Plain { index, .. } | Target::Dense { index, .. } => (Some(*index), &[][..]),
            Target::Experts { planes, .. } => (None, &planes[..]),
        };
        one.into_iter().chain(planes.iter().map(|(index, _)| *index))
    }

    /// Names of the source tensors it is made from.
    pub(super) fn names(&self) -> &[String] {
        match self {
            Target::Plain { name, .. } | Target::Dense { name, .. } => std::slice::from_ref(name),
            Target::Experts { names, .. } => names,
        }
    }
}

pub(super) struct Plan {
    pub(super) metadata: Metadata,
    pub(super) tensors: Vec<TensorDecl>,
    pub(super) targets: Vec<Target>,
    /// Tensor indices of the tables of fits, errors and checksums.
    pub(super) tables: [usize; 3],
    pub(super) alignment: u64,
    pub(super) weights: u64,
}

fn level_of(options: &ConvertOptions, name: &str) -> Level {
    let other = [EMBEDDING, PER_LAYER_EMBEDDING].contains(&name);
    options.level_embed.filter(|_| other).unwrap_or(options.level_dense)
}

impl Plan {
    pub(super) fn new(source: &Source, options: &ConvertOptions) -> Result<Plan> {
        let spec = Spec::from_metadata(source.metadata())?;
        let alignment = alignment(source, options, &spec);
        let mut plan = Plan {
            metadata: keys(source),
            tensors: Vec::new(),
            targets: Vec::new(),
            tables: [0; 3],
            alignment,
            weights: 0,
        };
        // Small tensors stay f32: norms, biases, routers, rope factors.
        let declared = weights::declared(&spec, &|name| source.rows(name));
        let small: HashSet<&str> = declared.iter().filter(|d| d.stays_f32).map(|d| d.name.as_str()).collect();
        let mut entries = Vec::new();
        let mut checksums = 0;
        let first = first_stack(&spec);
        for name in source.names() {
            let shape = source.shape(name).expect("names have shapes");
            match (name.strip_suffix(first), shape) {
                _ if small.contains(name) => {
                    let index = plan.declare(
                        name.to_owned(),
                        vec![shape.iter().product::<usize>() as u64],
                        GgmlType::F32,
                    );
                    plan.targets.push(Target::Plain { name: name.to_owned(), index });
                }
                (Some(block), &[experts, ..]) => {
                    checksums += plan.experts(source, options, (&spec, block), experts, &mut entries)?;
                }
                (_, &[_, _, _]) => {}
                (_, &[rows, cols]) => {
                    let shape = shape_of(source, options, name, (rows, cols), true)?;
                    let level = stored_level(level_of(options, name), &[shape]);
                    let entry = entry(name, shape, 0, level);
                    let bytes = (0..level.planes()).map(|p| shape.plane(p).len as u64).sum();
                    let index = plan.declare(entry.planes_name(), vec![bytes], GgmlType::I8);
                    plan.weights += (rows * cols) as u64;
                    plan.targets.push(Target::Dense { name: name.to_owned(), shape, level, index });
                    entries.push(entry);
                    checksums += 1;
                }
                _ => {
                    return Err(Error::malformed(
                        format!("tensor `{name}`"),
                        format!("has shape {shape:?}, and must be a matrix"),
                    ));
                }
            }
        }
        let total = entries.iter().map(MatrixEntry::count).sum::<usize>() as u64;
        let levels = PLANE_BITS.len() as u64;
        plan.tables = [
            plan.declare("dollop.fits".into(), vec![2, levels, total], GgmlType::F32),
            plan.declare("dollop.errors".into(), vec![levels, total], GgmlType::F32),
            plan.declare("dollop.checksums".into(), vec![checksums as u64], GgmlType::I32),
        ];
        table(&mut plan.metadata, &entries);
        Ok(plan)
    }

    /// Names of the nested matrices; a stack of experts has one name.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &str> {
        self.targets
            .iter()
            .filter(|target| !matches!(target, Target::Plain { .. }))
            .flat_map(Target::names)
            .map(String::as_str)
    }

    /// The size of the file in bytes, up to padding and without its header.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.n_bytes().next_multiple_of(self.alignment)).sum()
    }

    fn declare(&mut self, name: String, shape: Vec<u64>, ty: GgmlType) -> usize {
        self.tensors.push(TensorDecl { name, shape, ty });
        self.tensors.len() - 1
    }

    /// Plans the experts of a layer. Returns the number of slabs.
    fn experts(
        &mut self,
        source: &Source,
        options: &ConvertOptions,
        (spec, block): (&Spec, &str),
        experts: usize,
        entries: &mut Vec<MatrixEntry>,
    ) -> Result<usize> {
        let layer: usize = block.strip_prefix("blk.").and_then(|n| n.parse().ok()).ok_or_else(|| {
            Error::malformed(
                format!("tensor `{block}{}`", first_stack(spec)),
                "has no layer number in its name",
            )
        })?;
        let mut names = PARTS.map(|part| part_name(layer, part)).to_vec();
        if !spec.family.gated_blocks {
            names.remove(0);
        }
        // A slab holds planes of all matrices, so either all keep table codes or none does.
        let is_table = |name: &String| {
            source.dtype(name).and_then(quant::kept).is_some_and(|params| params.table().is_some())
        };
        let tables = names.iter().all(is_table);
        let mut shapes = Vec::new();
        for name in &names {
            let field = || format!("tensor `{name}`");
            match source.shape(name) {
                Some(&[n, rows, cols]) if n == experts => {
                    shapes.push(shape_of(source, options, name, (rows, cols), tables)?)
                }
                Some(shape) => {
                    return Err(Error::malformed(
                        field(),
                        format!("has shape {shape:?}, but the layer has {experts} experts"),
                    ));
                }
                None => return Err(Error::malformed(field(), "the file has no such tensor")),
            }
        }
        let level = stored_level(options.max_level, &shapes);
        let planes = (0..level.planes()).map(|p| {
            let slab: usize = shapes.iter().map(|s| s.plane(p).len).sum();
            let stride = slab.next_multiple_of(self.alignment as usize);
            (self.declare(slabs_name(layer, p), vec![stride as u64, experts as u64], GgmlType::I8), stride)
        });
        let planes: Vec<_> = planes.collect();
        let rotations = rotations(source, options, &names, &shapes);
        for ((name, shape), rotation) in names.iter().zip(&shapes).zip(&rotations) {
            self.weights += (experts * shape.rows * shape.cols) as u64;
            let rotation = if rotation.is_some() { Rotation::KIND } else { 0 };
            entries.push(MatrixEntry { rotation, ..entry(name, *shape, experts, level) });
        }
        let slabs = planes.len() * experts;
        self.targets.push(Target::Experts { names, shapes, rotations, experts, level, planes });
        Ok(slabs)
    }
}

fn entry(name: &str, shape: Shape, experts: usize, level: Level) -> MatrixEntry {
    MatrixEntry {
        name: name.to_owned(),
        rows: shape.rows,
        cols: shape.cols,
        experts,
        group: shape.group,
        level: level.bits(),
        levels: Vec::new(),
        rotation: 0,
        params: shape.params.number(),
    }
}

/// Rotations of the inputs of a layer's gate (if there is one), up and down. Only matrices encoded with error feedback are
/// rotated: without it, rotation loses more than it gains (`benches/records/nested-codec.md`). Gate and up
/// have the same inputs.
fn rotations(
    source: &Source,
    options: &ConvertOptions,
    names: &[String],
    shapes: &[Shape],
) -> Vec<Option<Rotation>> {
    let rows = options.calibration.as_ref().and_then(|c| c.rows()).filter(|_| options.rotate);
    let fed_back = |part: usize| {
        let ty = source.dtype(&names[part]);
        let kept = ty.is_some_and(|ty| is_kept(shapes[part], ty));
        !kept && rows.is_some_and(|rows| rows.has_any(&inputs_of(&names[part])))
    };
    let of = |part: usize, is: bool| Rotation::of(shapes[part].cols).filter(|_| is);
    let down = names.len() - 1;
    let first = (0..down).all(fed_back);
    (0..names.len()).map(|part| of(part, if part < down { first } else { fed_back(part) })).collect()
}

/// The level to store matrices at if `level` is requested. Table codes have 4 bits and lose nothing, so they
/// need no higher level.
fn stored_level(level: Level, shapes: &[Shape]) -> Level {
    let table = shapes.iter().any(|shape| shape.params.table().is_some());
    if table { level.min(Level::B4) } else { level }
}

/// The shape of a matrix in the file. `tables`: whether table codes may be kept.
fn shape_of(
    source: &Source,
    options: &ConvertOptions,
    name: &str,
    (rows, cols): (usize, usize),
    tables: bool,
) -> Result<Shape> {
    if options.params.table().is_some() {
        return Err(Error::Invalid(
            "codes of tables can be kept from a source, but not made; choose another format of scales".into(),
        ));
    }
    let kept = source.dtype(name).and_then(quant::kept).filter(|params| tables || params.table().is_none());
    let group = match options.group {
        Group::Auto if kept.is_some() => 32,
        Group::Auto | Group::G64 => 64,
        Group::G32 => 32,
    };
    // Codes kept from the source have scales that the narrow format has too few bits for.
    let params = kept.filter(|_| group == 32).unwrap_or(options.params);
    Ok(Shape::new(rows, cols, group)?.with(params))
}

/// The end of the names of the first stack of a layer's experts.
fn first_stack(spec: &Spec) -> &'static str {
    if spec.family.gated_blocks { ".ffn_gate_exps.weight" } else { ".ffn_up_exps.weight" }
}

fn alignment(source: &Source, options: &ConvertOptions, spec: &Spec) -> u64 {
    let parts = PARTS.len() - usize::from(!spec.family.gated_blocks);
    let slab = source.names().filter(|n| n.ends_with(first_stack(spec))).find_map(|name| {
        let &[_, rows, cols] = source.shape(name)? else { return None };
        Some(parts * shape_of(source, options, name, (rows, cols), true).ok()?.plane(0).len)
    });
    if slab.is_some_and(|bytes| bytes >= LARGE_SLAB_BYTES) { LARGE_ALIGNMENT } else { SMALL_ALIGNMENT }
}

/// The source's metadata without the keys that describe its own encoding, with ours added.
fn keys(source: &Source) -> Metadata {
    let mut m = source.metadata().clone();
    for key in ["general.file_type", "general.quantization_version", "general.alignment"] {
        m.remove(key);
    }
    m.insert("dollop.plane_bits", PLANE_BITS.map(u64::from).to_vec());
    let name = source.files().next().and_then(|f| f.file_name()).map(|n| n.to_string_lossy().into_owned());
    m.insert("dollop.source", name.unwrap_or_default());
    m.insert("dollop.converted_by", concat!("dollop ", env!("CARGO_PKG_VERSION")));
    m
}

fn table(m: &mut Metadata, entries: &[MatrixEntry]) {
    let column = |get: &dyn Fn(&MatrixEntry) -> usize| -> Value {
        entries.iter().map(|e| get(e) as u64).collect::<Vec<_>>().into()
    };
    m.insert("dollop.matrix.names", entries.iter().map(|e| e.name.clone()).collect::<Vec<_>>());
    m.insert("dollop.matrix.rows", column(&|e| e.rows));
    m.insert("dollop.matrix.cols", column(&|e| e.cols));
    m.insert("dollop.matrix.experts", column(&|e| e.experts));
    m.insert("dollop.matrix.group", column(&|e| e.group));
    m.insert("dollop.matrix.level", column(&|e| e.level.into()));
    let mut version = dollop::VERSION_PLAIN;
    // Columns that version 2 lacks are written only if a matrix needs them.
    let mut added = |key: &str, of: fn(&MatrixEntry) -> u8| {
        if entries.iter().any(|e| of(e) != 0) {
            version = dollop::VERSION_ROTATED;
            m.insert(format!("dollop.matrix.{key}"), column(&|e| of(e).into()));
        }
    };
    added("params", |e| e.params);
    added("rotation", |e| e.rotation);
    if entries.iter().any(|e| GroupParams::numbered(e.params).is_some_and(|p| p.table().is_some())) {
        version = dollop::VERSION;
    }
    m.insert("dollop.version", version);
}
