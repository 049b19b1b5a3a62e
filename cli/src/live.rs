//! A status line at the bottom of the terminal while an answer streams above it.
//!
//! The last row is excluded from the scrolling region, so that text and status do not overlap. Only on terminals;
//! elsewhere nothing is written.

use console::Term;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Time between updates: often enough to look alive.
const EVERY: Duration = Duration::from_millis(250);

/// The status line, while it is shown.
pub struct Live {
    term: Term,
    rows: u16,
    last: Option<Instant>,
}

impl Live {
    /// Reserves the last row; `None` if there is no terminal to draw on.
    pub fn new() -> Option<Live> {
        let term = Term::stderr();
        let (rows, _) = term.size_checked()?;
        if rows < 5 || !std::io::stdout().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        let live = Live { term, rows, last: None };
        // Move up by a line feed, so that the cursor is not in the reserved row. Setting the region moves the
        // cursor home.
        live.write(&format!("\n\x1b[1A\x1b7\x1b[1;{}r\x1b8", rows - 1));
        Some(live)
    }

    /// Shows `line`, unless the last update was too recent.
    pub fn update(&mut self, line: impl FnOnce() -> String) {
        if self.last.is_none_or(|last| last.elapsed() >= EVERY) {
            self.last = Some(Instant::now());
            self.write(&format!("\x1b7\x1b[{};1H\x1b[2K\x1b[2m{}\x1b[0m\x1b8", self.rows, line()));
        }
    }

    fn write(&self, text: &str) {
        // A missing status line is not a failure.
        let _ = self.term.write_str(text);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.write(&format!("\x1b7\x1b[r\x1b[{};1H\x1b[2K\x1b8", self.rows));
    }
}
