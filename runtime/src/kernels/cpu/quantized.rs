//! Activations quantized for products: on all threads, in the order in which products read them.

use super::activations::{Activations, Part};
use super::isa::Isa;
use super::lines::ask;
use super::pool::Pool;
use std::sync::{Mutex, PoisonError};

/// Fewer values than this are quantized on the calling thread.
const SERIAL_VALUES: usize = 16 << 10;

/// Quantizes `tokens` rows of `cols` values.
pub(super) fn quantize(
    pool: &Pool,
    isa: Isa,
    (x, tokens, cols): (&[f32], usize, usize),
    group: usize,
    to: &mut Activations,
) {
    let row = |t: usize| &x[t * cols..][..cols];
    to.reserve(tokens, cols, group);
    each_part(pool, to, tokens * cols, &|parts| {
        isa.run(
            #[inline(always)]
            || {
                for t in 0..tokens {
                    // A token's row is far from the previous one, so the hardware prefetcher cannot predict its
                    // address.
                    if let (Some((g, _)), true) = (&parts[0], t + AHEAD < tokens) {
                        let row = &row(t + AHEAD)[g * group..];
                        ask(&row[..row.len().min(GROUPS_AT_ONCE * group)]);
                    }
                    let row = row(t);
                    for (g, part) in parts.iter_mut().flatten() {
                        part.quantize(t, row, *g, group);
                    }
                }
            },
        )
    });
}

/// The inputs of a layer's routed experts. All tokens are quantized once; then the tokens of each call are
/// gathered in the order in which its experts read them.
#[derive(Default)]
pub(super) struct Ordered {
    tokens: Activations,
    ordered: Activations,
    /// The number of the inputs in `tokens` (see [`crate::kernels::Routed::inputs`]).
    made: u64,
}

impl Ordered {
    /// Gathers rows of the inputs in order. First quantizes the inputs, unless the number is the last one.
    pub(super) fn put(
        &mut self,
        pool: &Pool,
        isa: Isa,
        (x, tokens, cols): (&[f32], usize, usize),
        group: usize,
        (order, name): (&[u32], u64),
    ) {
        if name == 0 || self.made != name {
            quantize(pool, isa, (x, tokens, cols), group, &mut self.tokens);
            self.made = name;
        }
        self.ordered.reserve(order.len(), cols, group);
        let from = &self.tokens;
        each_part(pool, &mut self.ordered, order.len() * cols, &|parts| {
            for (g, part) in parts.iter_mut().flatten() {
                part.gather(from, *g, order);
            }
        });
    }

    /// The gathered inputs.
    pub(super) fn read(&self) -> &Activations {
        &self.ordered
    }

    /// An upper bound for the bytes with `tokens` tokens of `cols` values, `ordered` of them gathered.
    pub(super) fn bytes(tokens: usize, ordered: usize, cols: usize, group: usize) -> usize {
        Activations::bytes(tokens, cols, group) + Activations::bytes(ordered, cols, group)
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.tokens.held() + self.ordered.held()
    }
}

/// Neighbouring groups of a task: a kilobyte of a token, which is long enough for the hardware prefetcher.
const GROUPS_AT_ONCE: usize = 4;

/// How many tokens ahead a task prefetches.
const AHEAD: usize = 2;

/// Calls `f` for some groups at a time, on all threads if there is enough work.
fn each_part(
    pool: &Pool,
    to: &mut Activations,
    values: usize,
    f: &(dyn Fn(&mut [Option<(usize, Part)>; GROUPS_AT_ONCE]) + Sync),
) {
    let tasks = to.groups().div_ceil(GROUPS_AT_ONCE);
    let all = Mutex::new(to.parts().enumerate());
    let some = |_| {
        let mut parts = {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            std::array::from_fn(|_| all.next())
        };
        f(&mut parts);
    };
    if values < SERIAL_VALUES { (0..tasks).for_each(some) } else { pool.run(tasks, &some) }
}
