//! Activations quantized for products: on all threads, in the order in which products take them.

use super::activations::{Activations, Part};
use super::isa::Isa;
use super::lines::ask;
use super::pool::Pool;
use std::sync::{Mutex, PoisonError};

/// Values below this are quantized without waking anybody.
const SERIAL_VALUES: usize = 16 << 10;

/// Activations in groups of one size: of the tokens as they came, and in the order in which experts take them.
#[derive(Default)]
pub(super) struct Quantized {
    tokens: Activations,
    ordered: Activations,
}

impl Quantized {
    /// Quantizes `tokens` rows of `cols` values and puts them in order, if there is one: a token of several experts is
    /// quantized once and copied, unless so few are named that quantizing just these is less.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn fill(
        &mut self,
        pool: &Pool,
        isa: Isa,
        x: &[f32],
        tokens: usize,
        cols: usize,
        group: usize,
        order: Option<&[u32]>,
    ) {
        let few = order.filter(|order| order.len() < tokens);
        let row = |t: usize| &x[few.map_or(t, |order| order[t] as usize) * cols..][..cols];
        let (to, tokens) = match few {
            Some(order) => (&mut self.ordered, order.len()),
            None => (&mut self.tokens, tokens),
        };
        to.reserve(tokens, cols, group);
        each_part(pool, to, tokens * cols, &|parts| {
            isa.run(
                #[inline(always)]
                || {
                    for t in 0..tokens {
                        // A row is far from the one before: no prefetcher knows where it will be.
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
        if let Some(order) = order.filter(|_| few.is_none()) {
            self.ordered.reserve(order.len(), cols, group);
            let from = &self.tokens;
            each_part(pool, &mut self.ordered, order.len() * cols, &|parts| {
                for (g, part) in parts.iter_mut().flatten() {
                    part.gather(from, *g, order);
                }
            });
        }
    }

    /// What products read: in order, or as the tokens came.
    pub(super) fn read(&self, in_order: bool) -> &Activations {
        if in_order { &self.ordered } else { &self.tokens }
    }

    /// Most bytes that it takes for tokens of `cols` values, and for `ordered` of them.
    pub(super) fn bytes(tokens: usize, ordered: usize, cols: usize, group: usize) -> usize {
        let ordered = if ordered == 0 { 0 } else { Activations::bytes(ordered, cols, group) };
        Activations::bytes(tokens, cols, group) + ordered
    }

    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.tokens.held() + self.ordered.held()
    }
}

/// Neighbouring groups of a task: a kilobyte of a token is a run that memory reads ahead.
const GROUPS_AT_ONCE: usize = 4;

/// Tokens that a task asks for values ahead.
const AHEAD: usize = 2;

/// Calls `f` for some groups at a time, on all threads where there is enough to do.
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
