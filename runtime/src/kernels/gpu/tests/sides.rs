//! Products with sizes around the bounds of the kernels' loops: a unit of 32 columns, 256 columns per token that
//! a workgroup stages for several tokens, 2048 columns (64 units) of one token in flight, and tiles of 16 rows.
//! Each kernel is compared with f64 by itself: `down` with products of the values that `gate_up` left.

use super::*;

/// One less than a bound, the bound, and one more; and twice the bound.
const COLS: [usize; 12] = [31, 32, 33, 255, 256, 257, 2047, 2048, 2049, 4095, 4096, 4097];

/// Rows that make many tiles, with the last tile one row short, full, and new.
const ROWS: [usize; 9] = [31, 32, 33, 255, 256, 257, 2047, 2048, 2049];

/// The kernels for one token, and those for eight: partly full, full, and two full blocks.
const TOKENS: [usize; 4] = [1, 3, 8, 9];

/// The relative error of a product, as a fraction of its terms' magnitudes. A column's term is rounded in the
/// sum of its unit (12 times), of its slice (twice for each of 17 units) and of 8 slices, by up to 2⁻²⁴; silu
/// and hidden values add some more.
const TERMS: f64 = 5e-6;

/// A matrix in f64, and for each weight the magnitudes of its two components: code times scale, and the group's
/// offset. A weight near zero is a small difference of both, so its own magnitude would not bound the error.
struct Terms {
    cols: usize,
    weights: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Terms {
    fn of(m: &Matrix) -> Terms {
        let (cols, weights) = (m.cols(), dense(m));
        let offset = |i: usize| match m {
            Matrix::F32 { .. } => 0.0,
            Matrix::Nested(n) => {
                let (row, col) = (i / cols, i % cols);
                let (scale, zero) = n.group_params(row, col / n.shape().group);
                let quant::Fit { alpha, beta } = n.fit();
                f64::from(scale) * (f64::from(beta) - f64::from(alpha) * f64::from(zero))
            }
        };
        let all = |(i, w): (usize, &f64)| (w - offset(i)).abs() + offset(i).abs();
        let magnitudes = weights.iter().enumerate().map(all).collect();
        Terms { cols, weights, magnitudes }
    }

    /// The product, and the magnitudes to which its error is relative.
    fn times(&self, x: &[f32]) -> Vec<(f64, f64)> {
        let sums = |of: &[f64], f: fn(f64) -> f64| -> Vec<f64> {
            let row = |w: &[f64]| w.iter().zip(x).map(|(w, &x)| w * f(f64::from(x))).sum();
            of.chunks_exact(self.cols).map(row).collect()
        };
        let products = sums(&self.weights, |x| x).into_iter();
        products.zip(sums(&self.magnitudes, f64::abs)).collect()
    }
}

/// In turn one row less than a tile, a tile, and one row more.
fn few(i: usize) -> usize {
    15 + i % 3
}

#[test]
fn products_agree_where_their_loops_turn() {
    let Some(b) = gpu() else { return };
    let wide = COLS.iter().enumerate().map(|(i, &cols)| (few(i), cols));
    let tall = ROWS.iter().enumerate().map(|(i, &rows)| (rows, COLS[i % 3]));
    let mut ran = 0;
    for (rows, cols) in wide.chain(tall) {
        let mut kinds = vec![("f32".to_owned(), plain(rows, cols, 5))];
        for (i, (group, params)) in GROUPS.into_iter().enumerate() {
            // One parameter format in turn, unless all cases are tested.
            if !full() && (i < 2) != (rows + cols).is_multiple_of(2) {
                continue;
            }
            let shape = Shape::new(rows, cols, group).unwrap().with(params);
            let finest = nested_of(shape, Level::B8, (rows + cols) as u32);
            let at =
                |level| (format!("groups of {group}, {params:?}, level {level}"), at_level(&finest, level));
            kinds.extend(Level::ALL.map(at));
        }
        let x = values(9 * cols, 7);
        for (name, matrix) in &kinds {
            let terms = Terms::of(matrix);
            let want: Vec<_> = x.chunks_exact(cols).map(|x| terms.times(x)).collect();
            let mut alone = Vec::new();
            for tokens in TOKENS {
                let mut out = b.alloc(tokens * rows).unwrap();
                let linear = Linear { matrix, bias: None, out: &mut out };
                b.linear(&put(&b, &x[..tokens * cols]), tokens, &mut [linear]);
                let got = get(&b, &out);
                for (t, got) in got.chunks_exact(rows).enumerate() {
                    near(&format!("{rows}x{cols}, {name}, token {t} of {tokens}"), got, &want[t], TERMS);
                }
                if tokens == 1 {
                    alone = got;
                } else {
                    assert_eq!(alone, got[..rows], "{rows}x{cols}, {name}: alone and among {tokens}");
                }
                ran += if tokens == 1 { 1 } else { 2 };
            }
        }
    }
    assert_eq!(
        b.stats().dispatches,
        ran,
        "a product is one launch, of many tokens with what prepares their inputs"
    );
}

#[test]
fn gate_up_and_down_agree_where_their_loops_turn() {
    let Some(b) = gpu() else { return };
    // The columns of gate and up are the rows of down, and vice versa.
    let wide = COLS.iter().enumerate().map(|(i, &d)| (d, few(i)));
    let deep = COLS.iter().enumerate().map(|(i, &ff)| (few(i), ff));
    let mut ran = 0;
    for (d, ff) in wide.chain(deep) {
        let finest = an_expert(d, ff, Some(Level::B8), (d + ff) as u32);
        let nested = Level::ALL.map(|level| (format!("level {level}"), expert_at(&finest, level)));
        let plain = ("f32".to_owned(), an_expert(d, ff, None, (d + ff) as u32));
        let x = values(9 * d, 7);
        for (name, expert) in nested.iter().chain([&plain]) {
            let [gate, up, down] = [expert.gate(), &expert.up, &expert.down].map(Terms::of);
            let want: Vec<_> = x.chunks_exact(d).map(|x| gated(gate.times(x), up.times(x))).collect();
            let mut alone = Vec::new();
            for tokens in TOKENS {
                let mut out = b.alloc(tokens * d).unwrap();
                b.ffn(&put(&b, &x[..tokens * d]), tokens, (expert, Activation::Swiglu), &mut out);
                let (got, hidden) = (get(&b, &out), hidden(&b, ff, tokens));
                for (t, (got, hidden)) in got.chunks_exact(d).zip(hidden.chunks_exact(ff)).enumerate() {
                    let at = format!("{d} to {ff}, {name}, token {t} of {tokens}");
                    near(&format!("gate and up, {at}"), hidden, &want[t], TERMS);
                    near(&format!("down, {at}"), got, &down.times(hidden), TERMS);
                }
                if tokens == 1 {
                    alone = got;
                } else {
                    assert_eq!(alone, got[..d], "{d} to {ff}, {name}: alone and among {tokens}");
                }
                ran += if tokens == 1 { 2 } else { 3 };
            }
        }
    }
    assert_eq!(
        b.stats().dispatches,
        ran,
        "a block is two launches, of many tokens with what prepares their inputs"
    );
}
