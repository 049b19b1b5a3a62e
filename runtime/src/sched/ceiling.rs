//! Measures the read throughput without computation: the ceiling of streaming.

use super::Streamer;
use crate::error::Result;
use crate::experts::{ExpertSource, Meanwhile, Wanted};
use std::time::Instant;

impl Streamer {
    /// Bytes per second while the cache is filled with other experts, layer by layer, without computation:
    /// about `bytes` in all. Afterwards the cache holds useless experts, so run any measurement to compare
    /// with before this one. `None` if the cache holds all experts and nothing is read.
    ///
    /// # Errors
    /// Errors of reading.
    pub fn read_bandwidth(&self, bytes: u64) -> Result<Option<f64>> {
        let floor = self.options.precision.floor();
        // As many experts at a time as a layer holds, so that the lanes always have work.
        let layers: Vec<(usize, usize, usize)> = (self.lock().homes.iter().enumerate())
            .filter_map(|(layer, home)| {
                let home = home.as_ref()?;
                Some((layer, home.cache.experts(), home.cache.capacity() / home.bytes(floor).max(1)))
            })
            .collect();
        let read = || self.lock().stats.bytes_wanted;
        let (before, start) = (read(), Instant::now());
        'all: for round in 0..2 * layers.iter().map(|l| l.1).max().unwrap_or(0) {
            for &(layer, experts, fit) in &layers {
                let fit = fit.clamp(1, experts);
                let mut wanted: Vec<Wanted> = (0..fit)
                    .map(|i| Wanted {
                        expert: ((round * fit + i) % experts) as u32,
                        gate: 1.0,
                        energy: 1.0,
                        tokens: 1,
                    })
                    .collect();
                wanted.sort_by_key(|w| w.expert);
                self.serve(layer, &wanted, &mut |_| Ok(()), Meanwhile::default())?;
                if read() - before >= bytes {
                    break 'all;
                }
            }
        }
        let read = read() - before;
        self.forget_unless_on_host();
        Ok((read > 0).then(|| read as f64 / start.elapsed().as_secs_f64()))
    }
}
