//! A Dollop file's weights as a GGUF file of f32: a source to convert and measure again, if its own is not available.
//!
//!     cargo run --release -p dollop-benches --bin unpack -- FILE OUT [--dither]
//!
//! `--dither` moves the weights of routed experts by up to half a step of their codes in either direction, so that no
//! encoding finds the same codes again.

use dollop::internal::Bytes;
use dollop::internal::format::dollop::{PARTS, part_name};
use dollop::internal::format::{GgmlType, GgufWriter, Metadata, TensorDecl};
use dollop::internal::model::Tensors;
use dollop::internal::model::file::NestedFile;
use dollop::internal::quant::{Matrix, Nested};
use std::io::{BufWriter, Write};

type Failure = Box<dyn std::error::Error>;

/// Numbers from −½ to ½, the same each time.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

fn rows(n: &Nested, noise: Option<&mut Noise>) -> Vec<f32> {
    let shape = n.shape();
    let mut w = vec![0.0; shape.rows * shape.cols];
    w.chunks_exact_mut(shape.cols).enumerate().for_each(|(row, out)| n.dequantize_row(row, out));
    if let Some(noise) = noise {
        let step = n.fit().alpha * f32::from(1u16 << n.level().shift());
        for (i, w) in w.iter_mut().enumerate() {
            let group = i % shape.cols / shape.group;
            *w += step * n.group_params(i / shape.cols, group).0 * noise.next();
        }
    }
    w
}

fn values(m: &Matrix, noise: Option<&mut Noise>) -> Vec<f32> {
    match m {
        Matrix::F32 { data, .. } => data.to_vec(),
        Matrix::Nested(n) => rows(n, noise),
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [source, out, ..] = &args[..] else { return Err("usage: unpack FILE OUT [--dither]".into()) };
    let file = NestedFile::new(Bytes::from(std::fs::read(source)?))?;
    let mut metadata = Metadata::new();
    (file.metadata().iter())
        .filter(|(key, _)| !key.starts_with("dollop."))
        .for_each(|(key, v)| metadata.insert(key, v.clone()));
    let directory = file.directory();
    let mut tensors = Vec::new();
    for m in &directory.matrices {
        let mut shape = vec![m.cols as u64, m.rows as u64];
        shape.extend((m.experts > 0).then_some(m.experts as u64));
        tensors.push(TensorDecl { name: m.name.clone(), shape, ty: GgmlType::F32 });
    }
    let plain =
        directory.gguf.tensors.iter().filter(|t| t.ty == GgmlType::F32 && !t.name.starts_with("dollop."));
    for t in plain.clone() {
        let router =
            t.name.contains("_inp.weight").then(|| file.expert_levels().first().map(|(_, l)| l.len() as u64));
        let shape = match router.flatten() {
            Some(experts) => vec![t.shape.iter().product::<u64>() / experts, experts],
            None => t.shape.clone(),
        };
        tensors.push(TensorDecl { name: t.name.clone(), shape, ty: GgmlType::F32 });
    }
    let to = BufWriter::new(std::fs::File::create(out)?);
    let mut writer = GgufWriter::new(to, &metadata, &tensors, 32)?;
    let mut noise = args.iter().any(|a| a == "--dither").then_some(Noise(7));
    let index = |name: &str| tensors.iter().position(|t| t.name == name).ok_or("every matrix has a name");
    let bytes = |w: &[f32]| w.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    for m in directory.matrices.iter().filter(|m| m.experts == 0) {
        let matrix = file.matrix(&m.name)?.ok_or("the directory names what is there")?;
        writer.write(index(&m.name)?, 0, &bytes(&values(&matrix, None)))?;
    }
    for (layer, _) in file.expert_levels() {
        for (e, expert) in file.experts(layer, None)?.unwrap_or_default().iter().enumerate() {
            for (part, matrix) in PARTS[usize::from(expert.gate.is_none())..].iter().zip(expert.matrices()) {
                let w = bytes(&values(matrix, noise.as_mut()));
                writer.write(index(&part_name(layer, part))?, (e * w.len()) as u64, &w)?;
            }
        }
    }
    for t in plain {
        writer.write(index(&t.name)?, 0, &bytes(&file.vector(&t.name)?.unwrap_or_default()))?;
    }
    writer.finish()?.flush()?;
    Ok(())
}
