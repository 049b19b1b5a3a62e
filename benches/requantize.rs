//! What a level does to a model: writes a GGUF file of f32 weights that went through the nested code and back.
//!
//! Every matrix is encoded with all planes and read again at the level asked for; norms and biases stay as they are.
//! `dollop eval OUT --reference --text FILE --against SOURCE` then measures the loss with everything else exact.
//!
//!     cargo run --release -p dollop-benches --bin requantize -- SOURCE OUT [--level B --group 32|64]
//!         [--calibrate TEXT --tokens N --sweeps N --diagonal] [--blocks] [--dither]
//!
//! Without a level the weights are only made f32: the reference itself; `--dither` moves those of Q4_1 by up to half a step, so
//! that no encoding finds the source's lattice again. `--blocks` leaves embedding and head as they are. With a text, codes are
//! found by error feedback (`--diagonal`: by least squares under E(x²)).

use dollop::internal::format::{GgmlType, GgufWriter, TensorDecl};
use dollop::internal::quant::{self, Feedback, Hessian, Level, Moments, Shape};
use dollop::{CalibrateOptions, CancelToken, Keep};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

type Failure = Box<dyn std::error::Error>;

/// Rows and columns of a matrix; `None` for a vector.
fn matrix(shape: &[u64]) -> Option<(usize, usize)> {
    match *shape {
        [cols, rows] if rows > 1 => Some((rows as usize, cols as usize)),
        _ => None,
    }
}

/// What is known of a matrix's inputs.
enum Inputs {
    Nothing,
    Diagonal(Vec<f32>),
    Moments(Moments, usize),
}

/// The weights as `level` shows them.
fn through(level: Level, shape: Shape, inputs: Inputs, w: &mut [f32]) -> Result<(), Failure> {
    let encoded = match inputs {
        Inputs::Nothing => quant::encode(shape, w, None, Level::B8)?,
        Inputs::Diagonal(energies) => quant::encode(shape, w, Some(&energies), Level::B8)?,
        Inputs::Moments(moments, sweeps) => {
            let rows = Feedback::sample(shape.rows).flat_map(|r| w[r * shape.cols..][..shape.cols].to_vec());
            let hessian = Arc::new(Hessian::new(&moments)?);
            let feedback = Feedback::new(hessian, shape, &rows.collect::<Vec<_>>(), sweeps)?;
            let half = (shape.rows / 2).next_multiple_of(quant::TILE_ROWS) * shape.cols;
            let (a, b) = w.split_at(half.min(w.len()));
            let parts = std::thread::scope(|s| {
                let first = s.spawn(|| feedback.encode_rows(shape, 0, a, Level::B8));
                let second = feedback.encode_rows(shape, a.len() / shape.cols, b, Level::B8);
                [first.join().expect("the encoder does not panic"), second]
            });
            let [a, b] = parts;
            quant::Encoded::join(shape, &[a?, b?])
        }
    };
    let nested = encoded.into_nested()?;
    let nested = nested.at(level).ok_or("all planes are there")?;
    w.chunks_exact_mut(shape.cols).enumerate().for_each(|(row, out)| nested.dequantize_row(row, out));
    Ok(())
}

/// Moves the weights of Q4_1 blocks by up to half a step either way.
fn dither(raw: &[u8], w: &mut [f32]) {
    let mut state = 7u64;
    for (block, w) in raw.chunks_exact(20).zip(w.chunks_exact_mut(32)) {
        let mut step = [0.0];
        GgmlType::F16.dequantize(&block[..2], &mut step).expect("two bytes are an f16");
        for w in w {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *w += step[0] * ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5);
        }
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1));
    let has = |name: &str| args.iter().any(|a| a == name);
    let [source, out, ..] = &args[..] else {
        return Err("usage: requantize SOURCE OUT [--level B --group 32|64]".into());
    };
    let level = match flag("--level") {
        Some(b) => Some(Level::from_bits(b.parse()?).ok_or("levels are 2, 3, 4, 6 and 8")?),
        None => None,
    };
    let group: usize = flag("--group").map_or(Ok(64), |g| g.parse())?;
    let sweeps: usize = flag("--sweeps").map_or(Ok(2), |n| n.parse())?;
    let tokens: usize = flag("--tokens").map_or(Ok(16384), |n| n.parse())?;
    let calibration = match flag("--calibrate") {
        Some(text) => {
            let keep = Keep { path: format!("{out}.inputs").into(), dense: true };
            let options = CalibrateOptions::default().with_tokens(tokens).with_keep(keep);
            let (source, text) = (Path::new(source), std::fs::read_to_string(text)?);
            Some(dollop::calibrate(source, &text, "text", &options, &CancelToken::new(), &mut |_| ())?)
        }
        None => None,
    };
    let inputs = |name: &str, cols: usize| -> Result<Inputs, Failure> {
        let Some(all) = &calibration else { return Ok(Inputs::Nothing) };
        let name = name.replace("ffn_up", "ffn_gate");
        Ok(match (all.get(&name), all.rows()) {
            (Some(of), _) if has("--diagonal") => Inputs::Diagonal(of.sums.clone()),
            (Some(_), Some(rows)) => Inputs::Moments(rows.moments(&name, 0, cols)?, sweeps),
            _ => Inputs::Nothing,
        })
    };

    let bytes = std::fs::read(source)?;
    let gguf = dollop::internal::format::Gguf::parse(&bytes).map_err(|e| e.at(Path::new(source)))?;
    let tensors: Vec<TensorDecl> = (gguf.tensors.iter())
        .map(|t| TensorDecl { name: t.name.clone(), shape: t.shape.clone(), ty: GgmlType::F32 })
        .collect();
    let mut metadata = gguf.metadata.clone();
    metadata.insert("general.file_type", 0u32);
    let mut writer = GgufWriter::new(BufWriter::new(std::fs::File::create(out)?), &metadata, &tensors, 32)?;
    let (mut error, mut energy, mut weights, mut size) = (0.0f64, 0.0f64, 0usize, 0usize);
    let mut seconds = 0.0;
    for (i, t) in gguf.tensors.iter().enumerate() {
        let raw = &bytes[t.offset as usize..][..t.n_bytes as usize];
        let mut w = vec![0.0; t.shape.iter().product::<u64>() as usize];
        t.ty.dequantize(raw, &mut w)?;
        if has("--dither") && t.ty == GgmlType::Q4_1 {
            dither(raw, &mut w);
        }
        let whole = has("--blocks") && !t.name.starts_with("blk.");
        if let (Some(level), Some((rows, cols)), false) = (level, matrix(&t.shape), whole) {
            let before = w.clone();
            let shape = Shape::new(rows, cols, group)?;
            let inputs = inputs(&t.name, cols)?;
            let start = std::time::Instant::now();
            through(level, shape, inputs, &mut w)?;
            seconds += start.elapsed().as_secs_f64();
            error += before.iter().zip(&w).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            energy += before.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
            weights += w.len();
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
            "level {level}, groups of {group}: {bits:.3} bits per weight, relative squared error {:.3e}, {:.0} ns a weight",
            error / energy,
            1e9 * seconds / weights as f64
        );
    }
    Ok(())
}
