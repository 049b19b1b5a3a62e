//! The largest of some values, for samplers that need only these. This is the specification of
//! [`super::Backend::best`], and of `argmax.wgsl` and `top_k.wgsl`.

/// The largest supported `k`.
pub const MAX_BEST: usize = 256;

/// The index of an empty entry. Entries stay empty if fewer than `k` values are numbers.
const NOWHERE: u32 = u32::MAX;

/// The largest values with their indices, largest first, ties by lowest index: as many as `out` holds, or
/// fewer if there are fewer. NaN is left out. Returns the count.
///
/// # Panics
/// If `out` is empty.
pub fn best_of(values: &[f32], out: &mut [(u32, f32)]) -> usize {
    let mut n = 0;
    for (i, &x) in values.iter().enumerate() {
        if x.is_nan() || n == out.len() && x <= out[n - 1].1 {
            continue;
        }
        n = (n + 1).min(out.len());
        let at = out[..n - 1].partition_point(|b| b.1 >= x);
        out.copy_within(at..n - 1, at + 1);
        out[at] = (i as u32, x);
    }
    n
}

/// Reads the result of [`super::Backend::best`], up to the first empty entry.
pub fn from_bits(bits: &[f32], out: &mut Vec<(u32, f32)>) {
    out.clear();
    let pairs = bits.chunks_exact(2).map(|pair| (pair[0].to_bits(), pair[1]));
    out.extend(pairs.take_while(|pair| pair.0 != NOWHERE));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::values;

    #[test]
    fn the_best_are_those_of_a_sort() {
        let mut out = Vec::new();
        for (len, k) in [(0, 1), (1, 1), (5, 9), (300, 1), (300, 40), (1000, MAX_BEST)] {
            // Coarse values, so that many are equal.
            let mut x: Vec<f32> = values(len, 3).iter().map(|v| (8.0 * v).round() / 8.0).collect();
            x.iter_mut().skip(3).step_by(7).for_each(|x| *x = f32::NAN);
            x.iter_mut().skip(4).step_by(9).for_each(|x| *x = f32::NEG_INFINITY);
            let mut pairs = vec![(0, 0.0); k];
            let n = best_of(&x, &mut pairs);
            let mut want: Vec<(u32, f32)> = (0..).zip(x.iter().copied()).filter(|p| !p.1.is_nan()).collect();
            want.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            want.truncate(k);
            assert_eq!(pairs[..n], want);
            // The format that a device writes, with empty entries at the end.
            let mut bits: Vec<f32> = want.iter().flat_map(|&(i, x)| [f32::from_bits(i), x]).collect();
            bits.resize(2 * k, f32::from_bits(NOWHERE));
            from_bits(&bits, &mut out);
            assert_eq!(out, want);
        }
        let mut pairs = [(9, 0.0); 3];
        assert_eq!(best_of(&[-0.0, f32::NAN, 0.0], &mut pairs), 2);
        assert_eq!([pairs[0].0, pairs[1].0], [0, 2], "zeros are equal");
    }
}
