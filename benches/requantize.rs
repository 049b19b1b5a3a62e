//! The effect of a level on a model: writes a GGUF file of f32 weights that were encoded and decoded with the nested code.
//!
//! Every matrix is encoded with all planes and decoded at the requested level; norms and biases do not change.
//! `dollop eval OUT --reference --text FILE --against SOURCE` then measures the loss with everything else exact.
//!
//!     cargo run --release -p dollop-benches --bin requantize -- SOURCE OUT [--level B[,B] --group 32|64 --narrow]
//!         [--calibrate TEXT --tokens N --sweeps N --diagonal --rotate --energies FILE] [--blocks [--every N]] [--dither]
//!
//! Without a level the weights are only converted to f32: the reference. `--dither` moves those of Q4_1 by up to half a
//! step, so that no encoding finds the source's lattice again. `--blocks` leaves embedding and head unchanged, `--every N`
//! all blocks but every Nth. With a text, codes are found by error feedback (`--diagonal`: by least squares under E(x²);
//! `--rotate`: for rotated inputs, `--rotate both`: with and without). `--energies` writes E(x²) of each matrix's inputs,
//! for `quantizers.py`. Of several files each has its level appended to the name of OUT, and `r` if inputs are rotated.

use dollop::internal::Keep;
use dollop::internal::format::{GgmlType, GgufWriter, Metadata, TensorDecl};
use dollop::internal::quant::{
    self, Feedback, GroupParams, Hessian, Level, Moments, Nested, PLANES, Rotation, Shape,
};
use dollop::{CalibrateOptions, CancelToken};
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

/// The known properties of a matrix's inputs.
enum Inputs {
    Nothing,
    Diagonal(Vec<f32>),
    Moments(Moments, usize, Option<Rotation>),
}

/// The weights in the nested code, and the error of every level: of products, if their inputs are known.
fn encoded(shape: Shape, inputs: Inputs, w: &mut [f32]) -> Result<(Nested, [f32; PLANES]), Failure> {
    let mut rotated = None;
    let encoded = match inputs {
        Inputs::Nothing => quant::encode(shape, w, None, Level::B8)?,
        Inputs::Diagonal(energies) => quant::encode(shape, w, Some(&energies), Level::B8)?,
        Inputs::Moments(moments, sweeps, rotation) => {
            if let Some(rotation) = rotation {
                rotation.apply_rows(w);
            }
            rotated = rotation;
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
    let errors = encoded.errors;
    Ok((encoded.into_nested()?.rotated(rotated), errors))
}

/// Moves the weights of Q4_1 blocks by up to half a step in either direction.
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
    let mut levels = Vec::new();
    for bits in flag("--level").iter().flat_map(|list| list.split(',')) {
        levels.push(Level::from_bits(bits.parse()?).ok_or("levels are 2, 3, 4, 6 and 8")?);
    }
    let group: usize = flag("--group").map_or(Ok(64), |g| g.parse())?;
    let params = if has("--narrow") { GroupParams::Narrow } else { GroupParams::Wide };
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
    let inputs = |name: &str, cols: usize, rotate: bool| -> Result<Inputs, Failure> {
        let Some(all) = &calibration else { return Ok(Inputs::Nothing) };
        let name = name.replace("ffn_up", "ffn_gate");
        Ok(match (all.get(&name), all.rows()) {
            (Some(of), _) if has("--diagonal") => Inputs::Diagonal(of.sums.clone()),
            (Some(_), Some(rows)) => {
                let rotation = Rotation::of(cols).filter(|_| rotate);
                Inputs::Moments(rows.moments(&name, 0, cols, rotation)?, sweeps, rotation)
            }
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
    let rotations = match flag("--rotate").map(String::as_str) {
        Some("both") => &[false, true][..],
        _ if has("--rotate") => &[true],
        _ => &[false],
    };
    if let (Some(path), Some(all)) = (flag("--energies"), &calibration) {
        let mut lines = String::new();
        for t in &gguf.tensors {
            if let Some(of) = all.get(&t.name.replace("ffn_up", "ffn_gate")) {
                let values: Vec<String> = of.sums.iter().map(|v| v.to_string()).collect();
                lines += &format!("{} {}\n", t.name, values.join(" "));
            }
        }
        std::fs::write(path, lines)?;
    }
    let mut outs = Vec::new();
    for (&level, &rotate) in levels.iter().flat_map(|level| rotations.iter().map(move |r| (level, r))) {
        let several = levels.len() * rotations.len() > 1;
        let end = if several { format!(".{level}{}", if rotate { "r" } else { "" }) } else { String::new() };
        outs.push(Out::new(Some(level), rotate, format!("{out}{end}"), &metadata, &tensors)?);
    }
    if outs.is_empty() {
        outs.push(Out::new(None, false, out.clone(), &metadata, &tensors)?);
    }
    let every: usize = flag("--every").map_or(Ok(1), |n| n.parse())?;
    let number = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
    let (mut weights, mut seconds) = (0, 0.0);
    for (i, t) in gguf.tensors.iter().enumerate() {
        let raw = &bytes[t.offset as usize..][..t.n_bytes as usize];
        let mut w = vec![0.0; t.shape.iter().product::<u64>() as usize];
        t.ty.dequantize(raw, &mut w)?;
        if has("--dither") && t.ty == GgmlType::Q4_1 {
            dither(raw, &mut w);
        }
        let whole = has("--blocks") && number(&t.name).is_none_or(|n| !n.is_multiple_of(every));
        let Some((rows, cols)) = matrix(&t.shape).filter(|_| !levels.is_empty() && !whole) else {
            outs.iter_mut().try_for_each(|out| out.write(i, &w))?;
            continue;
        };
        let shape = Shape::new(rows, cols, group)?.with(params);
        for &rotate in rotations {
            let inputs = inputs(&t.name, cols, rotate)?;
            let start = std::time::Instant::now();
            let (nested, errors) = encoded(shape, inputs, &mut w.clone())?;
            seconds += start.elapsed().as_secs_f64() / rotations.len() as f64;
            let mut outs = outs.iter_mut().filter(|out| out.rotate == rotate);
            outs.try_for_each(|out| out.write_nested(i, &w, &nested, &errors))?;
        }
        weights += w.len();
    }
    for out in outs {
        out.finish(group, weights, seconds)?;
    }
    Ok(())
}

/// An output file, and the loss of its level.
struct Out {
    level: Option<Level>,
    rotate: bool,
    writer: GgufWriter<BufWriter<std::fs::File>>,
    error: f64,
    energy: f64,
    /// The sum of the encoder's errors for all matrices.
    fitted: f64,
    matrices: usize,
    bytes: usize,
}

impl Out {
    fn new(
        level: Option<Level>,
        rotate: bool,
        path: String,
        metadata: &Metadata,
        tensors: &[TensorDecl],
    ) -> Result<Out, Failure> {
        let writer = GgufWriter::new(BufWriter::new(std::fs::File::create(path)?), metadata, tensors, 32)?;
        Ok(Out { level, rotate, writer, error: 0.0, energy: 0.0, fitted: 0.0, matrices: 0, bytes: 0 })
    }

    fn write(&mut self, tensor: usize, w: &[f32]) -> Result<(), Failure> {
        let le: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
        Ok(self.writer.write(tensor, 0, &le)?)
    }

    /// The weights `before`, decoded at this level.
    fn write_nested(
        &mut self,
        tensor: usize,
        before: &[f32],
        nested: &Nested,
        errors: &[f32; PLANES],
    ) -> Result<(), Failure> {
        let (level, shape) = (self.level.ok_or("a level")?, nested.shape());
        let at = nested.at(level).ok_or("all planes are there")?;
        let mut w = vec![0.0; before.len()];
        w.chunks_exact_mut(shape.cols).enumerate().for_each(|(row, out)| at.dequantize_row(row, out));
        self.error += before.iter().zip(&w).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        self.energy += before.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
        self.fitted += f64::from(errors[level.index()]);
        self.matrices += 1;
        // The planes, two corrections per level, and the table of errors.
        self.bytes += (0..level.planes()).map(|p| shape.plane(p).len).sum::<usize>() + 5 * (4 + 4 + 4);
        self.write(tensor, &w)
    }

    fn finish(self, group: usize, weights: usize, seconds: f64) -> Result<(), Failure> {
        self.writer.finish()?.flush()?;
        let Some(level) = self.level else { return Ok(()) };
        println!(
            "level {level}{}, groups of {group}: {:.3} bits per weight, relative squared error {:.3e}, by the encoder {:.3e}, {:.0} ns a weight",
            if self.rotate { ", rotated" } else { "" },
            8.0 * self.bytes as f64 / weights as f64,
            self.error / self.energy,
            self.fitted / self.matrices as f64,
            1e9 * seconds / weights as f64
        );
        Ok(())
    }
}
