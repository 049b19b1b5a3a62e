//! What a level does to a model: writes a GGUF file of f32 weights that went through the nested code and back.
//!
//! Every matrix is encoded with all planes and read again at the level asked for; norms and biases stay as they are.
//! `dollop eval OUT --reference --text FILE --against SOURCE` then measures the loss with everything else exact.
//!
//!     cargo run --release -p dollop-benches --bin requantize -- SOURCE OUT [--level B --group 32|64]
//!
//! Without a level the weights are only made f32: the reference itself.

use dollop::format::{GgmlType, GgufWriter, TensorDecl};
use dollop::quant::{self, Level, Shape};
use std::io::{BufWriter, Write};
use std::path::Path;

type Failure = Box<dyn std::error::Error>;

/// Rows and columns of a matrix; `None` for a vector.
fn matrix(shape: &[u64]) -> Option<(usize, usize)> {
    match *shape {
        [cols, rows] if rows > 1 => Some((rows as usize, cols as usize)),
        _ => None,
    }
}

/// The weights as `level` shows them.
fn through(level: Level, group: usize, (rows, cols): (usize, usize), w: &mut [f32]) -> Result<(), Failure> {
    let shape = Shape::new(rows, cols, group)?;
    let nested = quant::encode(shape, w, None, Level::B8)?.into_nested()?;
    let nested = nested.at(level).ok_or("all planes are there")?;
    w.chunks_exact_mut(cols).enumerate().for_each(|(row, out)| nested.dequantize_row(row, out));
    Ok(())
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let [source, out, ..] = &args[..] else {
        return Err("usage: requantize SOURCE OUT [--level B --group 32|64]".into());
    };
    let level = match flag("--level") {
        Some(b) => Some(Level::from_bits(b.parse()?).ok_or("levels are 2, 3, 4, 6 and 8")?),
        None => None,
    };
    let group: usize = flag("--group").map_or(Ok(64), |g| g.parse())?;

    let bytes = std::fs::read(source)?;
    let gguf = dollop::format::Gguf::parse(&bytes).map_err(|e| e.at(Path::new(source)))?;
    let tensors: Vec<TensorDecl> = (gguf.tensors.iter())
        .map(|t| TensorDecl { name: t.name.clone(), shape: t.shape.clone(), ty: GgmlType::F32 })
        .collect();
    let mut metadata = gguf.metadata.clone();
    metadata.insert("general.file_type", 0u32);
    let mut writer = GgufWriter::new(BufWriter::new(std::fs::File::create(out)?), &metadata, &tensors, 32)?;
    let (mut error, mut energy, mut weights, mut size) = (0.0f64, 0.0f64, 0usize, 0usize);
    for (i, t) in gguf.tensors.iter().enumerate() {
        let raw = &bytes[t.offset as usize..][..t.n_bytes as usize];
        let mut w = vec![0.0; t.shape.iter().product::<u64>() as usize];
        t.ty.dequantize(raw, &mut w)?;
        if let (Some(level), Some(sides)) = (level, matrix(&t.shape)) {
            let before = w.clone();
            through(level, group, sides, &mut w)?;
            error += before.iter().zip(&w).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            energy += before.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
            weights += w.len();
            let shape = Shape::new(sides.0, sides.1, group)?;
            // The planes, two corrections for each of the levels, and the table of errors.
            size += (0..level.planes()).map(|p| shape.plane(p).len).sum::<usize>() + 5 * (4 + 4 + 4);
        }
        let le: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        writer.write(i, 0, &le)?;
    }
    writer.finish()?.flush()?;
    if let Some(level) = level {
        let bits = 8.0 * size as f64 / weights as f64;
        println!(
            "level {level}, groups of {group}: {bits:.3} bits per weight, relative squared error {:.3e}",
            error / energy
        );
    }
    Ok(())
}
