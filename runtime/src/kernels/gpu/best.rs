//! The most likely tokens as dispatches: reads back a few pairs instead of the logits of the whole vocabulary.

use super::State;
use super::device::{Device, Memory};
use super::params::{ArgmaxParams, Params, TopKParams};
use crate::error::Result;
use dollop_shaders::Variant;

/// Values per workgroup of `argmax.wgsl`.
const ARGMAX_SPAN: usize = 2048;

/// Values per workgroup of `top_k.wgsl`.
const TOP_K_SPAN: usize = 1024;

fn span(k: usize) -> usize {
    if k == 1 { ARGMAX_SPAN } else { TOP_K_SPAN }
}

/// Words of a pass's intermediate results.
fn words(len: usize, k: usize) -> usize {
    2 * k * len.div_ceil(span(k))
}

/// The most words that [`State::best`] allocates for a vocabulary of `len` tokens.
pub(super) fn most_words(len: usize) -> usize {
    let k = crate::kernels::MAX_BEST;
    words(len, k) + words(k * len.div_ceil(span(k)), k)
}

/// Whether `len` values fit one dispatch.
pub(super) fn fits(gpu: &Device, len: usize, k: usize) -> bool {
    len.div_ceil(span(k)) <= gpu.max_groups
}

impl State {
    /// The `k` largest of `len` values, in passes until one workgroup is left.
    pub(super) fn best(
        &mut self,
        gpu: &Device,
        x: &Memory,
        len: usize,
        k: usize,
        out: &Memory,
    ) -> Result<()> {
        self.best[0].at_least(gpu, words(len, k), "the likeliest tokens")?;
        self.best[1].at_least(gpu, words(k * len.div_ceil(span(k)), k), "the likeliest tokens")?;
        let (mut len, mut from) = (len, x);
        for pass in 0.. {
            let groups = len.div_ceil(span(k));
            let to = if groups == 1 { out } else { self.best[pass % 2].get() };
            let (n, pairs) = (len as u32, u32::from(pass > 0));
            if k == 1 {
                let params = ArgmaxParams { len: n, pairs };
                run(&mut self.recorder, gpu, &params, from, to, groups);
            } else {
                let params = TopKParams { len: n, pairs, k: k as u32 };
                run(&mut self.recorder, gpu, &params, from, to, groups);
            }
            if groups == 1 {
                break;
            }
            (len, from) = (groups * k, to);
        }
        Ok(())
    }
}

fn run<P: Params>(
    recorder: &mut super::recorder::Recorder,
    gpu: &Device,
    params: &P,
    from: &Memory,
    to: &Memory,
    groups: usize,
) {
    recorder.run(gpu, Variant::default(), params, &[from, to], [groups, 1]);
}
