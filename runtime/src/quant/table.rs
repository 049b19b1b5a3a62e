//! Codes that index a table, for sources with such 4-bit codes (MXFP4, IQ4_NL).
//!
//! A code is the rank of its value among the table's sixteen. So codes that share their upper bits have
//! neighbouring values, and levels of 3 and 2 bits have their own tables: for each cell, one value between
//! those it merges. A table's entries are unsigned integers of at most 8 bits around a zero point. So a
//! kernel looks a code up in a register, and then multiplies integers as usual.

use super::Level;

/// The tables of one kind of codes.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// The ranks of the source's codes: its code `i` is our code `ranks[i]`.
    ranks: [u8; 16],
    /// The zero point, which is subtracted from every entry.
    pub zero: u8,
    /// The entries at 2, 3 and 4 bits. The first 4, 8 or 16 are repeated, so that kernels need not mask a code.
    entries: [[u8; 16]; 3],
    /// The weight of a step of entries with a scale of one is 2 to the minus `shift`.
    shift: i32,
}

/// E2M1: 0, ½, 1, 1½, 2, 3, 4 and 6 with either sign, in quarters. Its entries fit 6 bits.
///
/// Zero has two codes in the source and one here. So the largest positive value, which would have the largest
/// error in a shared cell, has a 3-bit cell of its own. Cells' values are the means of the codes of normally
/// distributed weights, with the scale that MXFP4 prescribes (`benches/records/table-codes.md`).
pub static E2M1: Table = Table {
    ranks: [7, 8, 9, 10, 11, 12, 13, 14, 7, 6, 5, 4, 3, 2, 1, 0],
    zero: 32,
    entries: [
        [20, 29, 37, 47, 20, 29, 37, 47, 20, 29, 37, 47, 20, 29, 37, 47],
        [14, 22, 27, 31, 35, 39, 46, 56, 14, 22, 27, 31, 35, 39, 46, 56],
        [8, 16, 20, 24, 26, 28, 30, 32, 34, 36, 38, 40, 44, 48, 56, 56],
    ],
    shift: 2,
};

/// ggml's `kvalues_iq4nl`, which are already sorted, and cells as above.
pub static IQ4_NL: Table = Table {
    ranks: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    zero: 128,
    entries: [
        [38, 100, 147, 200, 38, 100, 147, 200, 38, 100, 147, 200, 38, 100, 147, 200],
        [10, 56, 87, 112, 135, 159, 188, 225, 10, 56, 87, 112, 135, 159, 188, 225],
        [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241],
    ],
    shift: 0,
};

impl Table {
    /// The entries of a level. From 4 bits on they are the same.
    pub fn entries(&self, level: Level) -> &[u8; 16] {
        &self.entries[level.index().min(Level::B4.index())]
    }

    /// Our code for the source's code `i`.
    pub fn rank(&self, i: u8) -> u8 {
        self.ranks[usize::from(i & 15)]
    }

    /// Whether the entries have at most 6 bits.
    pub fn is_short(&self) -> bool {
        self.zero < 64
    }

    /// A level's entry for the code whose four bits are `code`, minus the zero point.
    pub(super) fn value(&self, level: Level, code: u8) -> f32 {
        let level = level.min(Level::B4);
        f32::from(self.entries(level)[usize::from(code >> (4 - level.bits()))]) - f32::from(self.zero)
    }

    /// The weight of a step of entries with a scale of one.
    pub(super) fn unit(&self) -> f32 {
        0.5f32.powi(self.shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_ascend_and_cells_lie_between_the_values_that_they_join() {
        for (table, codes) in [(&E2M1, 15), (&IQ4_NL, 16)] {
            let mut ranks = table.ranks.to_vec();
            ranks.sort_unstable();
            ranks.dedup();
            assert!(ranks.into_iter().eq(0..codes));
            for level in [Level::B2, Level::B3, Level::B4] {
                let (all, n) = (table.entries(level), 1 << level.bits());
                let entries = &all[..n];
                assert!(all.chunks(n).all(|again| again == entries));
                assert!(entries.is_sorted() && entries.iter().all(|&e| !table.is_short() || e < 64));
                for code in 0..16u8 {
                    let first = code >> (4 - level.bits()) << (4 - level.bits());
                    let last = first + (1 << (4 - level.bits())) - 1;
                    let (low, high) = (table.value(Level::B4, first), table.value(Level::B4, last));
                    let value = table.value(level, code);
                    assert!((low..=high).contains(&value), "{level}: {value} from {low} to {high}");
                }
            }
        }
    }
}
