//! Gate 4: foreign encodings decode exactly as in the `gguf` Python package, and imported matrices with
//! uniform blocks keep their codes.

use dollop::internal::format::GgmlType;
use dollop::internal::quant::{self, Encoded, GroupParams, Level, Shape};
use dollop_tests::golden;

struct Golden {
    ty: GgmlType,
    bytes: Vec<u8>,
    values: Vec<f32>,
}

fn goldens() -> Vec<Golden> {
    let raw = std::fs::read(golden("ggml/blocks.bin")).unwrap();
    let number = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
    let mut at = 0;
    let mut all = Vec::new();
    while at < raw.len() {
        let (id, bytes, n) = (number(at), number(at + 4) as usize, number(at + 8) as usize);
        let values = raw[at + 12 + bytes..][..4 * n].chunks_exact(4);
        all.push(Golden {
            ty: GgmlType::from_id(id).unwrap(),
            bytes: raw[at + 12..][..bytes].to_vec(),
            values: values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        });
        at += 12 + bytes + 4 * n;
    }
    assert_eq!(
        all.len(),
        GgmlType::ALL.iter().filter(|t| t.is_float()).count(),
        "a golden for every encoding of weights"
    );
    all
}

#[test]
fn every_encoding_decodes_to_the_same_numbers() {
    for g in goldens() {
        let mut out = vec![f32::NAN; g.values.len()];
        g.ty.dequantize(&g.bytes, &mut out).unwrap();
        for (i, (got, want)) in out.iter().zip(&g.values).enumerate() {
            assert!(got == want, "{} element {i}: {got} instead of {want}", g.ty);
        }
        assert!(g.ty.dequantize(&g.bytes[1..], &mut out).is_err());
    }
}

#[test]
fn uniform_blocks_keep_their_codes() {
    let mut kept = 0;
    let uniform = |g: &Golden| quant::kept(g.ty) == Some(GroupParams::Wide);
    for g in goldens().into_iter().filter(uniform) {
        let (rows, cols) = (2048 / 256, 256);
        let shape = Shape::new(rows, cols, 32).unwrap();
        let encoded = Encoded::join(
            shape,
            &[quant::keep_rows(shape, 0, g.ty, &g.bytes, None, Level::B8, 1.0).unwrap()],
        );
        let nested = encoded.into_nested().unwrap();
        let error = |level: Level| {
            let view = nested.at(level).unwrap();
            let mut out = vec![0.0; cols];
            let (mut error, mut energy, mut worst) = (0.0, 0.0, 0.0f64);
            for (row, want) in g.values.chunks_exact(cols).enumerate() {
                view.dequantize_row(row, &mut out);
                for (want, got) in want.chunks_exact(32).zip(out.chunks_exact(32)) {
                    let spread = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                    for (w, o) in want.iter().zip(got) {
                        let d = f64::from(w - o).abs();
                        error += d * d;
                        energy += f64::from(*w).powi(2);
                        worst = worst.max(d / f64::from(spread).max(1e-9));
                    }
                }
            }
            (error / energy, worst)
        };
        let (at_8, worst_8) = error(Level::B8);
        let (at_4, _) = error(Level::B4);
        println!(
            "{}: relative squared error at 8 bits {at_8:.1e} (largest {worst_8:.1e} of its block), at 4 bits {at_4:.1e}",
            g.ty
        );
        match g.ty {
            // Symmetric: only the scale's last bit and the corrections' rounding differ.
            GgmlType::Q8_0 | GgmlType::Q5_0 | GgmlType::Q4_0 => {
                assert!(worst_8 < 1e-3 && at_8 < 1e-7, "{}: {at_8} {worst_8}", g.ty)
            }
            // A minimum is rounded to half an 8-bit step.
            _ => assert!(at_8 < 1e-4, "{}: {at_8}", g.ty),
        }
        if g.ty == GgmlType::Q4_0 {
            assert!(at_4 < 1e-7, "Q4_0 has four bits, and four bits keep it: {at_4}");
        }
        kept += 1;
    }
    assert_eq!(kept, 7);
}
