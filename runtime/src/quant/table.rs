//! Codes that index a table: those of sources whose own four bits do (MXFP4, IQ4_NL).
//!
//! A code is the rank of its value among the table's sixteen. So codes that share their upper bits stand for neighbouring values,
//! and a level of 3 or 2 bits has a table of its own: for each cell a value between those that it joins. A table's entries are
//! whole numbers of at most 8 bits, unsigned and around a zero point, so that a kernel looks a code up in a register and then
//! multiplies integers as it does anyway.

use super::Level;

/// The tables of one kind of code.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    /// What the source's codes are among the sorted: its number `i` is code `ranks[i]`.
    ranks: [u8; 16],
    /// What is subtracted from every entry.
    pub zero: u8,
    /// The entries at 2, 3 and 4 bits. A level has the first 4, 8 or 16, and again: so kernels need not mask what they look up.
    entries: [[u8; 16]; 3],
    /// The weight of a step of entries, where the scale is one: 2 to the minus `shift`.
    shift: i32,
}

/// E2M1: 0, ½, 1, 1½, 2, 3, 4 and 6 with either sign, in quarters. Its entries fit 6 bits.
///
/// Zero has two codes in the source and one here, so that of the positive values the largest, which errs most among others, has a
/// cell of 3 bits alone. The values of cells are the means of the codes that normally distributed weights have, with the scale that
/// MXFP4 prescribes (`benches/records/table-codes.md`).
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

/// ggml's `kvalues_iq4nl`, which ascend already, and cells as above.
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
    /// The entries of a level; those from 4 bits on are the same.
    pub fn entries(&self, level: Level) -> &[u8; 16] {
        &self.entries[level.index().min(Level::B4.index())]
    }

    /// The code of the source's code `i`.
    pub fn rank(&self, i: u8) -> u8 {
        self.ranks[usize::from(i & 15)]
    }

    /// Whether the entries have 6 bits at most.
    pub fn is_short(&self) -> bool {
        self.zero < 64
    }

    /// A level's entry, less the zero point, for the code whose four bits are `code`.
    pub(super) fn value(&self, level: Level, code: u8) -> f32 {
        let level = level.min(Level::B4);
        f32::from(self.entries(level)[usize::from(code >> (4 - level.bits()))]) - f32::from(self.zero)
    }

    /// The weight of a step of entries, where the scale is one.
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
