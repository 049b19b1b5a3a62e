//! Gate 152: products with table codes, on every instruction set, against the scalar specification and f64.

use super::*;
use crate::kernels::testing::{TABLES, of_table};
use crate::quant::GroupParams;

/// All levels of a matrix with table codes.
const LEVELS: [Level; 3] = [Level::B2, Level::B3, Level::B4];

fn product(isa: Isa, matrix: &Matrix, x: &[f32], threads: usize) -> Vec<f32> {
    let tokens = x.len() / matrix.cols();
    let mut out = buffer(vec![f32::NAN; tokens * matrix.rows()]);
    backend(isa, threads).linear(&buffer(x), tokens, &mut [Linear { matrix, bias: None, out: &mut out }]);
    out.to_vec()
}

#[test]
fn gate_152_products_are_those_of_the_specification() {
    let mut checked = 0;
    for (params, (rows, cols)) in TABLES
        .into_iter()
        .flat_map(|params| [(1, 256), (33, 512), (70, 96), (40, 1120)].map(|size| (params, size)))
    {
        if params == GroupParams::Iq4Xs && cols % 256 != 0 {
            continue;
        }
        let finest = of_table(params, rows, cols, (rows + cols) as u32);
        let x = values(35 * cols, 7);
        for (isa, level) in Isa::available().into_iter().flat_map(|isa| LEVELS.map(|level| (isa, level))) {
            let nested = finest.at(level).unwrap();
            let matrix = Matrix::Nested(nested.clone());
            let what = format!("{isa}, {params:?}, {rows}x{cols}, level {level}");
            let alone: Vec<f32> = x.chunks_exact(cols).flat_map(|x| product(isa, &matrix, x, 1)).collect();
            for tokens in [1, 2, 5, 9, 35].into_iter().filter(|&n| !isa.halves() || n < MANY) {
                let got = product(isa, &matrix, &x[..tokens * cols], 2);
                assert!(got == alone[..tokens * rows], "{what}: alone and among {tokens}");
            }
            for (x, alone) in x.chunks_exact(cols).zip(alone.chunks_exact(rows)) {
                let x = QuantizedRow::new(x, 32);
                for (row, got) in alone.iter().enumerate() {
                    let want = nested.dot(row, &x);
                    let bound = 2e-5 * (1.0 + want.abs()) * (cols as f32).sqrt();
                    assert!((got - want).abs() <= bound, "{what}, row {row}: {got} {want}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 10_000, "{checked}");
}

/// Like `many_tokens_err_less_than_eight_bits_do`.
#[test]
fn gate_152_many_tokens_in_bfloat16_too() {
    for (isa, params) in Isa::available().into_iter().flat_map(|isa| TABLES.map(|params| (isa, params))) {
        if !isa.halves() {
            continue;
        }
        let (rows, cols) = (50, 1024);
        let finest = of_table(params, rows, cols, 3);
        for level in LEVELS {
            let nested = finest.at(level).unwrap();
            let x = values(33 * cols, 9);
            let out = product(isa, &Matrix::Nested(nested.clone()), &x, 2);
            let mut w = vec![0.0; cols];
            for row in 0..rows {
                nested.dequantize_row(row, &mut w);
                for (t, x) in x.chunks_exact(cols).enumerate() {
                    let parts = || w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    let (want, size): (f64, f64) = (parts().sum(), parts().map(f64::abs).sum());
                    let got = f64::from(out[t * rows + row]);
                    assert!(
                        (got - want).abs() <= size / 127.0 + 1e-6,
                        "{isa} {params:?} {level}: {got} {want}"
                    );
                }
            }
        }
    }
}
