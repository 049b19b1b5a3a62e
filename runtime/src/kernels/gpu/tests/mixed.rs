//! Gate 27: some experts of a layer have one more plane, in a separate buffer. Each expert gets the bits it
//! would have in one piece, for any number of buffers of experts and planes.

use super::*;
use crate::experts::Refinement;
use crate::kernels::{Feed, GpuInputs, GpuVariants, History};

pub(super) const EXPERTS: usize = 6;
const TOP_K: usize = 3;

/// Bytes of a buffer that holds all activations, but neither all experts nor, at six bits and more, all refinements.
const BINDING: u64 = 20 << 10;

/// Sizes that are not multiples of a tile, unit or group.
const D: usize = 72;
const FF: usize = 40;

fn nested_of(e: &Expert) -> [&quant::Nested; 3] {
    crate::kernels::gpu::experts::matrices(e).map(|m| match m {
        Matrix::Nested(n) => n,
        Matrix::F32 { .. } => panic!("these are nested"),
    })
}

/// Writes plane `level` of `whole` to a slot.
pub(super) fn refine(b: &GpuBackend, slot: usize, index: u32, whole: &Expert, level: Level) {
    let [gate, up, down] = nested_of(whole);
    let plane = [gate, up, down].map(|n| n.planes()[level.index()].to_vec()).concat();
    // The bytes after the plane are padding in the file.
    let plane = [plane, vec![0xff; 64]].concat();
    let refined = expert_at(whole, level);
    let fits = nested_of(&refined).map(|n| n.fit());
    b.refine(&Refinement { layer: 2, slot, expert: index, fits, plane: &plane }).unwrap();
}

pub(super) struct Inputs {
    pub(super) tokens: usize,
    pub(super) x: Vec<f32>,
    pub(super) logits: Vec<f32>,
}

const ROUTER: Router = Router {
    experts: EXPERTS,
    top_k: TOP_K,
    renormalize: true,
    scale: 1.0,
    score: Score::Softmax,
    groups: None,
};

/// Compares the output of `routed` for all tokens together with each token alone, and the history of the last tokens.
pub(super) fn routed(b: &GpuBackend, inputs: &Inputs, all: &[Expert]) -> (Vec<f32>, Vec<Choice>) {
    const LAST: usize = 4;
    let d = all[0].up.cols();
    let call = |x: &[f32], logits: &[f32], last: usize| {
        let tokens = x.len() / d;
        let (h, logits) = (put(b, x), put(b, logits));
        let (mut slots, mut y) = (b.alloc(tokens * TOP_K * d).unwrap(), b.alloc(tokens * d).unwrap());
        let (mut out, mut noted) = (put(b, &vec![0.0; tokens * d]), b.alloc(2 * LAST * TOP_K + 6).unwrap());
        let history = Some(History { buf: &mut noted, at: 6, tokens: last });
        let bufs =
            RoutedBufs { h: &h, logits: &logits, slots: &mut slots, y: &mut y, x: Some(&mut out), history };
        let before = b.stats();
        assert!(b.routed(bufs, tokens, ROUTER.unbiased(), (2, &Feed::default()), all).unwrap());
        let launches = b.stats().dispatches - before.dispatches;
        if b.gpu.max_binding > BINDING {
            assert_eq!(launches, if tokens == 1 { 2 } else { 7 }, "both levels in one launch");
        } else {
            assert!(launches > if tokens == 1 { 2 } else { 7 }, "experts lie in one buffer");
        }
        let (mut sum, mut choices) = (vec![0.0; tokens * d], vec![0.0; 2 * last * TOP_K]);
        let before = b.stats();
        b.read(&mut [(&out, 0, &mut sum[..]), (&noted, 6, &mut choices[..])]).unwrap();
        let after = b.stats();
        assert_eq!((after.readbacks - before.readbacks, after.submits - before.submits), (1, 1));
        let choice = |c: &[f32]| Choice { expert: c[0].to_bits(), gate: c[1] };
        (sum, choices.chunks_exact(2).map(choice).collect::<Vec<_>>())
    };
    let (sum, choices) = call(&inputs.x, &inputs.logits, LAST);
    for t in 0..inputs.tokens {
        let (alone, chosen) = call(&inputs.x[t * d..][..d], &inputs.logits[t * EXPERTS..][..EXPERTS], 1);
        // With half-precision inputs, a token alone gets other bits than among others.
        if b.gpu.variants.inputs != GpuInputs::Half {
            assert_eq!(alone, sum[t * d..][..d], "token {t} alone and among others");
        }
        if let Some(last) = (t + LAST).checked_sub(inputs.tokens) {
            assert_eq!(chosen, choices[last * TOP_K..][..TOP_K], "token {t}");
        }
    }
    (sum, choices)
}

/// The same with experts from the host, each complete at its level.
pub(super) fn whole(b: &GpuBackend, inputs: &Inputs, all: &[Expert]) -> (Vec<f32>, Vec<Choice>) {
    let d = all[0].up.cols();
    let (h, logits) = (put(b, &inputs.x), put(b, &inputs.logits));
    let mut choices = Vec::new();
    b.route(&logits, inputs.tokens, ROUTER.unbiased(), &mut choices).unwrap();
    let slots_of = |e: u32| (0..choices.len() as u32).filter(|&s| choices[s as usize].expert == e).collect();
    let by_expert: Vec<Vec<u32>> = (0..EXPERTS as u32).map(slots_of).collect();
    assert!(by_expert.iter().all(|slots| !slots.is_empty()), "an expert is not tried");
    let job = |e: usize| ExpertJob { index: e as u32, expert: &all[e], slots: &by_expert[e] };
    let jobs: Vec<ExpertJob> = (0..EXPERTS).map(job).collect();
    let of = Routed { layer: 2, experts: EXPERTS, top_k: TOP_K, tokens: inputs.tokens, inputs: 0 };
    let (mut slots, mut sum) =
        (b.alloc(inputs.tokens * TOP_K * d).unwrap(), b.alloc(inputs.tokens * d).unwrap());
    b.experts(&h, of, &Feed::default(), &jobs, &mut slots);
    b.combine(&slots, &choices, TOP_K, d, &mut sum);
    // Rounded inputs are tested in variants.rs.
    if b.gpu.variants.inputs == GpuInputs::Single {
        for (s, got) in get(b, &slots).chunks_exact(d).enumerate() {
            let want = feed_forward(&all[choices[s].expert as usize], &inputs.x[s / TOP_K * d..][..d]);
            close(&format!("slot {s}"), got, &want, 2e-4);
        }
    }
    (get(b, &sum), choices)
}

#[test]
fn gate_27_experts_of_two_levels_in_one_launch_are_what_they_are_alone() {
    two_levels_in_one_launch(GpuInputs::Single, None);
}

#[test]
fn gate_27_holds_for_experts_in_several_buffers() {
    two_levels_in_one_launch(GpuInputs::Single, Some(BINDING));
}

#[test]
fn gate_27_holds_for_other_inputs_of_products() {
    [GpuInputs::Half, GpuInputs::Bytes].into_iter().for_each(|inputs| two_levels_in_one_launch(inputs, None));
}

fn two_levels_in_one_launch(inputs: GpuInputs, binding_bytes: Option<u64>) {
    let variants = GpuVariants { inputs, ..GpuVariants::default() };
    let plain = inputs == GpuInputs::Single && binding_bytes.is_none();
    let options = |level| GpuOptions { level, variants, ..GpuOptions::default() };
    let tokens = 23;
    let inputs = Inputs { tokens, x: values(tokens * D, 99), logits: values(tokens * EXPERTS, 7) };
    let finest: Vec<Expert> =
        (0..EXPERTS).map(|i| an_expert(D, FF, Some(Level::B8), 10 * i as u32 + 1)).collect();
    // Software drivers compile every pair's kernels again, so variants are tested with two pairs only.
    let step = if full() || plain { 1 } else { Level::ALL.len() - 2 };
    for pair in Level::ALL.windows(2).step_by(step) {
        let (low, high) = (pair[0], pair[1]);
        let base: Vec<Expert> = finest.iter().map(|e| expert_at(e, low)).collect();
        let mixed = |slots| GpuOptions { refinements: slots, binding_bytes, ..options(low) };
        let Some(b) = gpu_with(&mixed(EXPERTS)) else { return };
        let unrefined = gpu_with(&mixed(0)).unwrap();
        // No expert is refined: bit-identical to a backend without room for refinements.
        let (none, choices) = routed(&b, &inputs, &base);
        assert_eq!(routed(&unrefined, &inputs, &base), (none.clone(), choices.clone()), "{low}");
        let uploaded = b.stats().uploaded_bytes;

        // Some experts are refined, others not; then a slot is reassigned twice.
        let levels = |refined: &[usize]| -> Vec<Expert> {
            (0..EXPERTS)
                .map(|e| expert_at(&finest[e], if refined.contains(&e) { high } else { low }))
                .collect()
        };
        let mut results = vec![none];
        let steps: [(&[(usize, u32)], &[usize]); 4] = [
            (&[(4, 1), (0, 3)], &[1, 3]),
            (&[(4, 5)], &[3, 5]),
            // A refined expert gets another slot: the old one becomes free and may be reassigned.
            (&[(2, 3)], &[3, 5]),
            (&[(0, 0), (4, 1)], &[0, 1, 3]),
        ];
        for (changes, refined) in steps {
            for &(slot, e) in changes {
                refine(&b, slot, e, &finest[e as usize], high);
            }
            // A new device for each variant, because an expert uploaded at a higher level stays at that level.
            let reference = gpu_with(&options(high)).unwrap();
            let (want, chosen) = whole(&reference, &inputs, &levels(refined));
            let (got, noted) = routed(&b, &inputs, &base);
            assert_eq!(got, want, "{low} and {high}: {refined:?}");
            assert_eq!(noted, chosen[chosen.len() - noted.len()..]);
            results.push(got);
        }
        assert!(b.stats().uploaded_bytes > uploaded);
        results.dedup();
        assert_eq!(results.len(), 4, "a refinement changes nothing");

        // All experts are refined: bit-identical to the next level.
        (0..EXPERTS).for_each(|e| refine(&b, e, e as u32, &finest[e], high));
        let next: Vec<Expert> = finest.iter().map(|e| expert_at(e, high)).collect();
        let exact = gpu_with(&options(high)).unwrap();
        assert_eq!(routed(&b, &inputs, &base), routed(&exact, &inputs, &next), "{high}");
    }
}

#[test]
fn gate_27_a_plane_that_is_none_is_an_error() {
    let Some(b) = gpu_with(&GpuOptions { level: Level::B2, refinements: 2, ..GpuOptions::default() }) else {
        return;
    };
    let finest: Vec<Expert> =
        (0..EXPERTS).map(|i| an_expert(D, FF, Some(Level::B8), 10 * i as u32 + 1)).collect();
    let base: Vec<Expert> = finest.iter().map(|e| expert_at(e, Level::B2)).collect();
    let fits = [quant::Fit { alpha: 1.0, beta: 0.0 }; 3];
    let plane = [0; 10];
    // A layer that has never been computed has no slots.
    b.refine(&Refinement { layer: 2, slot: 0, expert: 0, fits, plane: &plane }).unwrap();
    let inputs = Inputs { tokens: 5, x: values(5 * D, 9), logits: values(5 * EXPERTS, 7) };
    let before = routed(&b, &inputs, &base);
    for (slot, plane) in [(0, &plane[..]), (2, &[0; 1 << 16][..])] {
        let refined = b.refine(&Refinement { layer: 2, slot, expert: 0, fits, plane });
        assert!(matches!(refined, Err(Error::Device(_))));
    }
    assert_eq!(routed(&b, &inputs, &base), before);
}
