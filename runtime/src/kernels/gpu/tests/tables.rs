//! Gate 153: experts with table codes, some with their last plane in a separate buffer. Experts without that
//! plane use the table of the level below. Products alone are tested in `operations.rs`.

use super::mixed::{EXPERTS, Inputs, refine, routed, whole};
use super::*;
use crate::kernels::GpuVariants;
use crate::quant::GroupParams;

/// Experts with one kind of table, or with two for different parts.
fn experts(d: usize, ff: usize, [gate, down]: [GroupParams; 2]) -> Vec<Expert> {
    let of = |params, rows, cols, seed| Matrix::Nested(of_table(params, rows, cols, seed));
    let expert = |i: u32| Expert {
        gate: Some(of(gate, ff, d, 10 * i + 1)),
        up: of(gate, ff, d, 10 * i + 2),
        down: of(down, d, ff, 10 * i + 3),
        place: None,
    };
    (0..EXPERTS as u32).map(expert).collect()
}

fn refined_and_not(inputs: GpuInputs, (d, ff): (usize, usize), params: [GroupParams; 2]) {
    let variants = GpuVariants { inputs, ..GpuVariants::default() };
    let tokens = 9;
    let inputs = Inputs { tokens, x: values(tokens * d, 99), logits: values(tokens * EXPERTS, 7) };
    let finest = experts(d, ff, params);
    for (low, high) in [(Level::B2, Level::B3), (Level::B3, Level::B4)] {
        let options =
            |level, refinements| GpuOptions { level, variants, refinements, ..GpuOptions::default() };
        let Some(b) = gpu_with(&options(low, EXPERTS)) else { return };
        let base: Vec<Expert> = finest.iter().map(|e| expert_at(e, low)).collect();
        let mut results = Vec::new();
        for refined in [&[][..], &[1usize, 3], &[1, 3, 5]] {
            for &e in refined {
                refine(&b, e, e as u32, &finest[e], high);
            }
            let levels: Vec<Expert> = (0..EXPERTS)
                .map(|e| expert_at(&finest[e], if refined.contains(&e) { high } else { low }))
                .collect();
            // A new device each time, because an expert that was uploaded at a higher level stays at that level.
            let reference = gpu_with(&options(high, 0)).expect("there is one");
            let (want, _) = whole(&reference, &inputs, &levels);
            let (got, _) = routed(&b, &inputs, &base);
            assert_eq!(got, want, "{params:?}, {low} and {high}: {refined:?}");
            results.push(got);
        }
        results.dedup();
        assert_eq!(results.len(), 3, "a refinement changes nothing");
    }
}

#[test]
fn gate_153_experts_of_tables_are_what_they_are_alone() {
    refined_and_not(GpuInputs::Single, (64, 96), [GroupParams::Mxfp4; 2]);
    refined_and_not(GpuInputs::Single, (256, 32), [GroupParams::Iq4Xs, GroupParams::Iq4Nl]);
}

#[test]
fn gate_153_with_inputs_in_bytes_too() {
    refined_and_not(GpuInputs::Bytes, (64, 32), [GroupParams::Mxfp4, GroupParams::Iq4Nl]);
}
