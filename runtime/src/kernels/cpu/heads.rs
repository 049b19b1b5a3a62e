//! Per-head products: each head's rows of one matrix times that head's values.

use super::aligned::Aligned;
use super::product::{Out, Product};
use super::scratch::Scratch;
use super::{CpuBackend, MANY};
use crate::kernels::HeadsCall;
use crate::quant::TILE_ROWS;
use std::sync::PoisonError;

impl CpuBackend {
    /// Per-head products.
    pub fn heads(&self, call: HeadsCall<'_, Aligned<f32>>) {
        let (rows, cols) = (call.rows(), call.matrix.cols());
        let HeadsCall { matrix, heads, x, tokens, kept, out } = call;
        assert!(rows.is_multiple_of(TILE_ROWS) && heads * rows == matrix.rows(), "a head has whole tiles");
        self.pool.operation("products of heads");
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let Scratch { inputs, heads: gathered, tokens: all, .. } = &mut *scratch;
        // Kernels take consecutive rows, so a head's rows are gathered one after the other.
        gathered.reserve(heads * tokens * cols);
        all.clear();
        all.reserve_exact(2 * heads * tokens);
        for head in 0..heads {
            for t in 0..tokens {
                let from = &x[(t * heads + head) * (cols + kept)..][..cols + kept];
                gathered[(head * tokens + t) * cols..][..cols].copy_from_slice(&from[..cols]);
                let to = &mut out[(t * heads + head) * (kept + rows)..][..kept];
                to.copy_from_slice(&from[cols..]);
                all.push((head * tokens + t) as u32);
            }
        }
        all.extend((0..heads).flat_map(|head| (0..tokens).map(move |t| (t * heads + head) as u32)));
        let (from, to) = all.split_at(heads * tokens);
        if let Some(observer) = self.observer.get() {
            observer.inputs(matrix, gathered, &mut (0..heads * tokens));
        }
        let out = Out::new(out, kept + rows).behind(kept);
        let tiles = rows / TILE_ROWS;
        let many = tokens >= MANY;
        self.products(inputs, (gathered, heads * tokens, cols), many, None, heads, &|head| Product {
            matrix,
            up: None,
            tokens: &from[head * tokens..][..tokens],
            part: Some(head * tiles..(head + 1) * tiles),
            first: head * tokens,
            bias: None,
            to: Some(&to[head * tokens..][..tokens]),
            out,
        });
    }
}
