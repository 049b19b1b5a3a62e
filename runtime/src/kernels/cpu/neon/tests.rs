//! Tests which instructions a core runs, and that their products are exact. The results are checked by
//! `cpu::tests`.

use super::*;
use crate::kernels::cpu::{CpuBackend, CpuOptions};
use crate::kernels::testing::{GROUPS, put, values};
use crate::kernels::{Backend, Linear};
use crate::quant::{self, Level, Matrix, Shape, VECTOR, VECTORS};
use std::cell::RefCell;
use std::collections::BTreeMap;

thread_local! {
    static USED: RefCell<BTreeMap<&'static str, usize>> = RefCell::default();
}

/// Counts an instruction. Kernels call it once per product of a token or a block with a group.
pub(super) fn uses(instruction: &'static str) {
    USED.with_borrow_mut(|used| *used.entry(instruction).or_default() += 1);
}

fn product(isa: Isa, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let tokens = x.len() / matrix.cols();
    // One thread: instructions are counted on the thread that runs them.
    let b = CpuBackend::new(CpuOptions { threads: 1, isa: Some(isa), ..CpuOptions::default() }).unwrap();
    let mut out = put(&b, &vec![f32::NAN; tokens * matrix.rows()]);
    b.linear(&put(&b, x), tokens, &mut [Linear { matrix, bias: None, out: &mut out }]);
    out.to_vec()
}

#[test]
fn each_core_uses_its_instructions_and_all_compute_the_same() {
    let (rows, cols) = (50, 160);
    for (group, params) in GROUPS {
        let shape = Shape::new(rows, cols, group).unwrap().with(params);
        let w = values(rows * cols, 1);
        let nested = quant::encode(shape, &w, None, Level::B8).unwrap().into_nested().unwrap();
        for level in Level::ALL {
            let matrix = Matrix::Nested(nested.at(level).unwrap());
            for tokens in [1, 2, 3, 4, 5, 11] {
                let x = values(tokens * cols, 7);
                let mut first: Option<Vec<f32>> = None;
                for isa in Isa::available().into_iter().filter(|isa| isa.kind() != Kind::Scalar) {
                    USED.take();
                    let out = product(isa, &matrix, &x);
                    let instruction = match (isa.kind(), tokens) {
                        (Kind::Dotprod, 1) => "sdot",
                        (Kind::Dotprod, _) => "sdot, tokens",
                        (_, 1) => "usdot",
                        (_, _) => "usmmla",
                    };
                    let times = shape.tiles() * shape.groups() * tokens.div_ceil(4);
                    assert_eq!(USED.take(), BTreeMap::from([(instruction, times)]), "{isa} {tokens} tokens");
                    // Signed 8-bit codes have another centre, so their floats round differently.
                    if let Some(first) = first.as_ref().filter(|_| level != Level::B8) {
                        assert_eq!(*first, out, "{isa} {shape} level {level} {tokens} tokens");
                    }
                    first.get_or_insert(out);
                }
            }
        }
    }
}

/// The largest possible products, of either sign, and some in between.
fn exact<C: Core>() {
    for worst in [-127, 127, 0] {
        let code = |row: usize, col: usize| if worst == 0 { (row * 67 + col * 41) as u8 } else { 255 };
        let token = |n: usize, col: usize| if worst == 0 { (n * 29 + col * 83) as i8 } else { worst };
        let mut q = [0i8; 4 * 2 * UNIT_COLS];
        q.iter_mut().enumerate().for_each(|(i, q)| *q = token(i / (2 * UNIT_COLS), i % (2 * UNIT_COLS)));
        // SAFETY: the caller has detected the core's instructions; `q` has the group's activations of four tokens.
        unsafe {
            let mut group = [[vdupq_n_u8(0); 4 * VECTORS]; 2];
            for (u, unit) in group.iter_mut().enumerate() {
                for r in 0..4 {
                    let vector = |j: usize| {
                        let bytes: [u8; VECTOR / 4] = std::array::from_fn(|i| {
                            code(4 * r + i / 4, u * UNIT_COLS + 4 * j + i % 4)
                                ^ if C::SIGNED { 128 } else { 0 }
                        });
                        vld1q_u8(bytes.as_ptr())
                    };
                    C::put(unit, r, std::array::from_fn(vector));
                }
            }
            for (n, dots) in C::dots::<2, 4>(&group, q.as_ptr()).into_iter().enumerate() {
                for (r, dots) in dots.into_iter().enumerate() {
                    let mut got = [0; 4];
                    vst1q_s32(got.as_mut_ptr(), dots);
                    for (i, got) in got.into_iter().enumerate() {
                        let less = if C::SIGNED { 128 } else { 0 };
                        let product =
                            |col| (i32::from(code(4 * r + i, col)) - less) * i32::from(token(n, col));
                        assert_eq!(
                            got,
                            (0..2 * UNIT_COLS).map(product).sum::<i32>(),
                            "token {n} row {}",
                            4 * r + i
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_bytes_are_exact() {
    for isa in Isa::available() {
        match isa.kind() {
            Kind::Scalar => {}
            Kind::Dotprod => exact::<Dotprod>(),
            Kind::I8mm => exact::<I8mm>(),
        }
    }
}
