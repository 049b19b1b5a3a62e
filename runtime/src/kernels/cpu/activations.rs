//! Activations quantized to 8 bits, in the layout that products of nested matrices read.

use super::aligned::Aligned;

/// Kernels that take a block of tokens may read up to this many tokens beyond the last. That memory exists;
/// its contents do not matter.
pub(super) const SPARE_TOKENS: usize = 15;

/// Quantized activations of several tokens, in groups. Group-major: a product reads one group of all its tokens.
#[derive(Default)]
pub(super) struct Activations {
    group: usize,
    groups: usize,
    tokens: usize,
    /// Tokens from one group to the next.
    stride: usize,
    /// `[groups, stride, group]`, a last partial group padded with zeros; then SPARE_TOKENS.
    q: Aligned<i8>,
    /// `[groups, stride]`; then SPARE_TOKENS.
    scale: Aligned<f32>,
    /// Scale times the sum of `q`, as `scale`.
    sum: Aligned<f32>,
}

/// The distance between groups for `tokens` tokens: an odd multiple of 16. With a power of two, the groups of
/// a block of tokens would share few cache sets.
fn stride(tokens: usize) -> usize {
    if tokens < 16 { tokens } else { (tokens.div_ceil(16) | 1) * 16 }
}

impl Activations {
    /// Makes room for `tokens` rows of `cols` values. Memory never shrinks.
    pub(super) fn reserve(&mut self, tokens: usize, cols: usize, group: usize) {
        (self.group, self.groups, self.tokens) = (group, cols.div_ceil(group), tokens);
        self.stride = stride(tokens);
        let params = self.groups * self.stride + SPARE_TOKENS;
        self.q.reserve(params * group);
        self.scale.reserve(params);
        self.sum.reserve(params);
    }

    /// Bytes that [`Activations::reserve`] takes.
    pub(super) fn bytes(tokens: usize, cols: usize, group: usize) -> usize {
        let params = cols.div_ceil(group) * stride(tokens) + SPARE_TOKENS;
        Aligned::<i8>::bytes(params * group) + 2 * Aligned::<f32>::bytes(params)
    }

    /// Whether `tokens` tokens from `first` on exist, with `groups` groups of size `group`.
    pub(super) fn has(&self, group: usize, groups: usize, first: usize, tokens: usize) -> bool {
        self.group == group
            && self.groups == groups
            && first.checked_add(tokens).is_some_and(|end| end <= self.tokens)
    }

    /// Groups of a token.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.q.held() + self.scale.held() + self.sum.held()
    }

    /// The groups, in order, as parts that can be written separately.
    pub(super) fn parts(&mut self) -> impl Iterator<Item = Part<'_>> {
        let (stride, tokens, group) = (self.stride.max(1), self.tokens, self.group);
        let params = self.scale.chunks_exact_mut(stride).zip(self.sum.chunks_exact_mut(stride));
        let q = self.q.chunks_exact_mut(stride * group.max(1)).take(self.groups);
        q.zip(params).map(move |(q, (scale, sum))| Part {
            q: &mut q[..tokens * group],
            scale: &mut scale[..tokens],
            sum: &mut sum[..tokens],
        })
    }

    /// Group `g` of all tokens: codes, scales, sums, each with SPARE_TOKENS more at the end.
    #[inline(always)]
    pub(super) fn group(&self, g: usize) -> (&[i8], &[f32], &[f32]) {
        let (at, n) = (g * self.stride, self.tokens + SPARE_TOKENS);
        (&self.q[at * self.group..][..n * self.group], &self.scale[at..][..n], &self.sum[at..][..n])
    }
}

/// One group of all tokens, for writing.
pub(super) struct Part<'a> {
    q: &'a mut [i8],
    scale: &'a mut [f32],
    sum: &'a mut [f32],
}

impl Part<'_> {
    /// Quantizes `x`, which is group `g` of token `t`. The same rounding as `quant::QuantizedRow`.
    #[inline(always)]
    pub(super) fn quantize(&mut self, t: usize, x: &[f32], g: usize, group: usize) {
        let x = &x[g * group..(g * group + group).min(x.len())];
        let q = &mut self.q[t * group..][..group];
        (self.scale[t], self.sum[t]) = if group == 64 && x.len() == 64 {
            let x: &[f32; 64] = x.try_into().expect("64 values");
            quantize(x, q.try_into().expect("64 codes"))
        } else if group == 32 && x.len() == 32 {
            let x: &[f32; 32] = x.try_into().expect("32 values");
            quantize(x, q.try_into().expect("32 codes"))
        } else {
            let (mut values, mut codes) = ([0.0; 64], [0; 64]);
            values[..x.len()].copy_from_slice(x);
            let params = quantize(&values, &mut codes);
            q.copy_from_slice(&codes[..group]);
            params
        };
    }

    /// Copies group `g` of these tokens of `from`, in their order.
    pub(super) fn gather(&mut self, from: &Activations, g: usize, tokens: &[u32]) {
        let (q, scale, sum) = from.group(g);
        match from.group {
            // With a constant size, a copy is one or two moves instead of a call.
            32 => copy_rows::<32>(self.q, q, tokens),
            _ => copy_rows::<64>(self.q, q, tokens),
        }
        for (i, &t) in tokens.iter().enumerate() {
            (self.scale[i], self.sum[i]) = (scale[t as usize], sum[t as usize]);
        }
    }
}

/// Row `tokens[i]` of `from` as row i of `to`.
fn copy_rows<const N: usize>(to: &mut [i8], from: &[i8], tokens: &[u32]) {
    let (to, from) = (to.as_chunks_mut::<N>().0, from.as_chunks::<N>().0);
    to.iter_mut().zip(tokens).for_each(|(to, &t)| *to = from[t as usize]);
}

#[inline(always)]
fn quantize<const N: usize>(x: &[f32; N], q: &mut [i8; N]) -> (f32, f32) {
    const MAGIC: f32 = 12_582_912.0; // 1.5 · 2²³: adding it rounds to the nearest integer, ties to even
    // Flat loops over integers, which may be summed in any order: compilers turn loops over lanes into
    // gathers. Magnitudes compare like their bits. We fold from 0 instead of using `max`, which would start
    // with the first value and leave a remainder that fills no register.
    let max = f32::from_bits(x.iter().fold(0, |max, x| max.max(x.abs().to_bits())));
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    let rounded = x.map(|x| (x * inverse + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32);
    *q = rounded.map(|r| r as i8);
    let scale = max / 127.0;
    // For inputs that are not finite the codes are meaningless, but the scale is NaN or infinite, so the results are
    // not finite either.
    (scale, scale * rounded.iter().fold(0i32, |sum, r| sum.wrapping_add(*r)) as f32)
}
