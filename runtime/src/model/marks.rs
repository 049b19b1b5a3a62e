//! Manages checkpoints of recurrent states, so that a timeline can rewind. All recurrent layers use the same
//! slots.
//!
//! A recurrent state belongs to exactly one position. A call reads the slot of its start position and writes
//! another slot, which counts only after the whole call succeeded. A failed or cancelled call therefore
//! leaves the timeline unchanged. A slot that is kept is a mark. The number of marks is bounded; older marks
//! are further apart.

/// The most positions between marks, if no call is longer than this.
pub const STEP: usize = 256;

/// Slots that are not marks: the current state, and the one being written.
const MOVING: usize = 2;

/// The most and the fewest slots of a model.
pub const SLOTS: usize = 14 + MOVING;
const FEW_SLOTS: usize = 2 + MOVING;

/// Bytes that the slots of all layers may take, if more than the fewest fit. In a large model, one slot takes
/// tens of MB.
const SLOTS_BYTES: usize = 256 << 20;

/// The number of slots, if one state of all layers together has `values` values.
pub(super) fn slots(values: usize) -> usize {
    (SLOTS_BYTES / values.saturating_mul(4).max(1)).clamp(FEW_SLOTS, SLOTS)
}

/// The content of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    /// The position of the state: this many tokens were processed.
    at: usize,
    /// Whether the slot is a mark, which stays when tokens follow it.
    kept: bool,
}

/// The slots that a call reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    /// Slot of the state before the first token; `None` at position 0.
    pub(super) from: Option<usize>,
    /// Slot of the state after the last token.
    pub(super) to: usize,
}

/// The slots of one timeline. Position 0 needs no slot.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    slots: Vec<Option<Slot>>,
}

impl Marks {
    /// No marks, in `slots` empty slots.
    pub(super) fn new(slots: usize) -> Marks {
        Marks { slots: vec![None; slots] }
    }

    fn find(&self, at: usize) -> Option<usize> {
        self.slots.iter().position(|slot| slot.is_some_and(|slot| slot.at == at))
    }

    /// Starts a call at `pos`: the result of [`Marks::rewind`], or the end of the last call.
    pub(super) fn begin(&mut self, pos: usize) -> Turn {
        for slot in &mut self.slots {
            slot.take_if(|slot| slot.at > pos || slot.at == 0 || !slot.kept && slot.at != pos);
        }
        let from = self.find(pos);
        assert!(from.is_some() || pos == 0, "no state stands for position {pos}");
        if self.slots.iter().flatten().filter(|slot| slot.kept).count() > self.slots.len() - MOVING {
            self.thin(pos);
        }
        let to = self.slots.iter().position(Option::is_none).expect("there is one slot more than marks");
        Turn { from, to }
    }

    /// Completes a call: all layers have processed its tokens, up to `end`.
    pub(super) fn done(&mut self, turn: Turn, end: usize) {
        let last = self.slots.iter().flatten().filter(|slot| slot.kept).map(|slot| slot.at).max();
        let kept = end - last.unwrap_or(0) >= STEP;
        self.slots[turn.to] = Some(Slot { at: end, kept });
    }

    /// Makes the state at `pos` a mark, if there is one.
    pub(super) fn keep(&mut self, pos: usize) {
        if let Some(i) = self.find(pos) {
            self.slots[i] = Some(Slot { at: pos, kept: true });
        }
    }

    /// Drops the least useful mark before `now`: the one with the smallest gap between its neighbours
    /// relative to its age.
    fn thin(&mut self, now: usize) {
        let at = |slot: &Slot| slot.at;
        let all = || self.slots.iter().flatten().map(at);
        let cost = |slot: &Slot| {
            let before = all().filter(|&at| at < slot.at).max().unwrap_or(0);
            let next = all().filter(|&at| at > slot.at).min().unwrap_or(now);
            (next - before) as f64 / (now - slot.at) as f64
        };
        let old = self.slots.iter().flatten().filter(|slot| slot.at < now);
        let least = old.min_by(|a, b| cost(a).total_cmp(&cost(b)).then(a.at.cmp(&b.at))).copied();
        for slot in self.slots.iter_mut().filter(|slot| **slot == least) {
            *slot = None;
        }
    }

    /// The last position, at most `to`, that has a state; 0 if none.
    pub(super) fn rewind(&self, to: usize) -> usize {
        self.slots.iter().flatten().map(|slot| slot.at).filter(|&at| at <= to).max().unwrap_or(0)
    }

    /// The marks up to `pos` and the state at `pos`, sorted: pairs of position and slot.
    pub(super) fn list(&self, pos: usize) -> Vec<(usize, usize)> {
        let is = |slot: &Slot| slot.at == pos || slot.kept && slot.at < pos;
        let slots = self.slots.iter().enumerate();
        let mut list: Vec<_> =
            slots.filter_map(|(i, slot)| slot.filter(is).map(|slot| (slot.at, i))).collect();
        list.sort_unstable();
        list
    }

    /// Sets marks at these positions, in slots 0 and up.
    ///
    /// # Panics
    /// If there are more positions than slots.
    pub(super) fn restore(&mut self, positions: &[usize]) {
        self.slots.fill(None);
        for (slot, &at) in self.slots[..positions.len()].iter_mut().zip(positions) {
            *slot = Some(Slot { at, kept: true });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes `n` tokens from `pos`.
    fn pass(marks: &mut Marks, pos: usize, n: usize) -> usize {
        let turn = marks.begin(pos);
        assert_ne!(turn.from, Some(turn.to));
        marks.done(turn, pos + n);
        pos + n
    }

    #[test]
    fn a_call_that_fails_leaves_everything_as_it_was() {
        let mut marks = Marks::new(SLOTS);
        assert_eq!(marks.begin(0).from, None);
        let pos = pass(&mut marks, 0, 5);
        // A call that begins but never completes, and one whose result the caller discards.
        marks.begin(pos);
        assert_eq!(marks.rewind(pos), 5);
        pass(&mut marks, pos, 3);
        assert_eq!(marks.rewind(5), 5);
        let turn = marks.begin(5);
        assert!(turn.from.is_some() && marks.rewind(8) == 5);
        // Without a mark, only the beginning remains.
        let pos = pass(&mut marks, 5, 10);
        pass(&mut marks, pos, 10);
        assert_eq!((marks.rewind(15), marks.rewind(14)), (15, 0));
    }

    #[test]
    fn a_large_state_has_few_marks() {
        assert_eq!((slots(0), slots(1 << 10), slots(usize::MAX)), (SLOTS, SLOTS, FEW_SLOTS));
        let of_35b = 30 * (3 * 8192 + 32 * 128 * 128);
        assert!(4 * of_35b * slots(of_35b) < 300 << 20);
        let mut marks = Marks::new(FEW_SLOTS);
        let mut pos = 0;
        while pos < 10_000 {
            pos = pass(&mut marks, pos, 64);
        }
        assert!(marks.slots.iter().flatten().count() <= FEW_SLOTS);
        assert!(pos - marks.rewind(pos - 1) <= 2 * STEP);
    }

    #[test]
    fn marks_are_dense_where_it_is_recent_and_never_too_many() {
        let mut marks = Marks::new(SLOTS);
        let mut pos = 0;
        while pos < 100_000 {
            pos = pass(&mut marks, pos, 1);
            if pos % 1000 == 10 {
                marks.keep(pos);
            }
        }
        assert!(marks.slots.iter().flatten().count() <= SLOTS);
        // A small rewind recomputes little. A large one recomputes at most twice its own length.
        for back in [1, 10, 100, 300, 1000, 3000, 10_000, 30_000, 70_000] {
            let again = (pos - back) - marks.rewind(pos - back);
            assert!(again <= (2 * back).max(2 * STEP), "{again} tokens again after going back by {back}");
        }
        // A mark survives rewinding to it.
        let to = marks.rewind(pos - 5000);
        pass(&mut marks, to, 7);
        assert_eq!((marks.rewind(to + 3), marks.rewind(to + 7)), (to, to + 7));
        let list: Vec<usize> = marks.list(to).into_iter().map(|(at, _)| at).collect();
        assert!(list.last() == Some(&to) && list.is_sorted());
        let mut other = Marks::new(SLOTS);
        other.restore(&list);
        assert_eq!(other.list(to).into_iter().map(|(at, _)| at).collect::<Vec<_>>(), list);
    }
}
