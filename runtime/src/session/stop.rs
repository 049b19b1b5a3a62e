//! Finds stop strings in streamed text. Decides which text can be shown, and when to stop.

/// Holds text back as long as it could be the beginning of a stop string.
pub(super) struct StopFilter {
    stops: Vec<String>,
    held: String,
    /// The text that was released, without stop strings.
    pub(super) text: String,
}

impl StopFilter {
    /// Ignores empty stop strings, which would match at once.
    pub(super) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        StopFilter { stops, held: String::new(), text: String::new() }
    }

    /// Adds text. Returns the text that can be shown, and whether a stop string was found. Text after it is
    /// dropped.
    pub(super) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let met = self.stops.iter().filter_map(|s| self.held.find(s.as_str())).min();
        let show = match met {
            Some(at) => at,
            None => self.held.len() - self.undecided(),
        };
        let shown: String = self.held.drain(..show).collect();
        self.text.push_str(&shown);
        if met.is_some() {
            self.held.clear();
        }
        (shown, met.is_some())
    }

    /// Ends the text. Returns what was held back.
    pub(super) fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        self.text.push_str(&rest);
        rest
    }

    /// The length of the longest end of the held text that begins a stop string.
    fn undecided(&self) -> usize {
        let starts = |tail: &str| self.stops.iter().any(|s| s.starts_with(tail));
        self.held
            .char_indices()
            .map(|(i, _)| self.held.len() - i)
            .find(|n| starts(&self.held[self.held.len() - n..]))
            .unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut filter = StopFilter::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, stop) = filter.push(piece);
            shown.push(text);
            if stop {
                return (shown, true, filter.text);
            }
        }
        filter.finish();
        (shown, false, filter.text)
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let (shown, stopped, text) = run(&["END"], &["one E", "N", "D two"]);
        assert_eq!(
            (shown, stopped, text.as_str()),
            (vec!["one ".into(), String::new(), String::new()], true, "one ")
        );
    }

    #[test]
    fn a_false_start_is_shown_late_and_whole() {
        let (shown, stopped, text) = run(&["END"], &["a E", "N", "x"]);
        assert_eq!(shown, ["a ", "", "ENx"]);
        assert!(!stopped);
        assert_eq!(text, "a ENx");
    }

    #[test]
    fn the_earliest_of_several_wins_and_empty_ones_are_ignored() {
        assert_eq!(run(&["", "yy", "x"], &["aaxbyy"]).2, "aa");
        assert_eq!(run(&["é!"], &["caf", "é", "?"]).2, "café?");
    }
}
