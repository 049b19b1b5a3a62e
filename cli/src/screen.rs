//! Output to the terminal. Text of model files, answers and file names is untrusted, and a terminal executes escape
//! sequences: they could rewrite the screen or write the clipboard.
//!
//! All output of the program passes here: notes and errors through [`note!`](crate::note), results through [`stdout`],
//! answers through [`answers`], JSON through [`json`].

use std::io::{IsTerminal, Stdout, Write};

/// Prints a line to stderr, with control characters escaped.
#[macro_export]
macro_rules! note {
    ($($arg:tt)*) => { $crate::screen::line(&format!($($arg)*)) };
}

/// [`note!`] writes through this.
pub fn line(text: &str) {
    // A message that cannot be shown is not a failure.
    let _ = writeln!(std::io::stderr(), "{}", visible(text));
}

/// Escapes control characters (`\x1b`) except line feeds and tabs. Characters that change the direction of text are
/// escaped too: they can make one name look like another.
pub fn visible(text: &str) -> String {
    escaped(text, |c| c.is_control() && !matches!(c, '\n' | '\t') || turns(c))
}

/// [`visible`] for a text that must stay on one line.
pub fn one_line(text: &str) -> String {
    escaped(text, |c| c.is_control() || turns(c))
}

/// Bidirectional embeddings, overrides and isolates.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escaped(text: &str, hidden: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' if hidden(c) => out.push_str("\\n"),
            '\t' if hidden(c) => out.push_str("\\t"),
            '\r' if hidden(c) => out.push_str("\\r"),
            c if hidden(c) && u32::from(c) < 0x100 => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if hidden(c) => out.push_str(&format!("\\u{{{:x}}}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Standard output for results, with control characters always escaped.
pub fn stdout() -> Screen<Stdout> {
    Screen { to: std::io::stdout(), show: Some(visible) }
}

/// Standard output for answers: unchanged into a pipe or a file; with control characters escaped on a terminal.
/// Right-to-left marks are part of ordinary text and stay, and so do line ends of either kind.
pub fn answers() -> Screen<Stdout> {
    let to = std::io::stdout();
    let show = to.is_terminal().then_some(answer as fn(&str) -> String);
    Screen { to, show }
}

fn answer(text: &str) -> String {
    escaped(&text.replace('\r', ""), |c| c.is_control() && !matches!(c, '\n' | '\t'))
}

/// A writer of text that arrives in whole characters.
pub struct Screen<W> {
    to: W,
    show: Option<fn(&str) -> String>,
}

impl<W: Write> Write for Screen<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.show {
            Some(show) => self.to.write_all(show(&String::from_utf8_lossy(bytes)).as_bytes())?,
            None => self.to.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

/// A model's reasoning before its answer: dimmed, if answers and notes both go to a terminal. A pipe gets only the
/// answer.
#[derive(Default)]
pub struct Reasoning {
    open: bool,
}

impl Reasoning {
    /// Shows a piece of reasoning.
    pub fn show(&mut self, text: &str) {
        let mut to = std::io::stderr();
        if !text.is_empty() && to.is_terminal() && std::io::stdout().is_terminal() {
            self.open = true;
            // Reasoning that cannot be shown is not a failure.
            let _ = write!(to, "\x1b[2m{}\x1b[0m", visible(text));
        }
    }

    /// Ends the reasoning: the answer follows on a new line.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = write!(std::io::stderr(), "\n\n");
        }
    }
}

/// JSON in one line, or in several. Characters that some terminals execute and JSON leaves alone (DEL, the upper
/// control characters) are written as escapes, which any JSON parser reads as the same text.
pub fn json(value: &impl serde::Serialize, pretty: bool) -> Result<String, crate::Failure> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let text = text.map_err(|e| e.to_string())?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_control() && c != '\n' || turns(c) => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_text() {
        assert_eq!(visible("a\x1b[2J\u{9b}b\tc\nd\r\x07\x7f"), "a\\x1b[2J\\x9bb\tc\nd\\r\\x07\\x7f");
        assert_eq!(visible("x\u{202e}y שלום é"), "x\\u{202e}y שלום é");
        assert_eq!(one_line("a\nb\tc"), "a\\nb\\tc");
        assert_eq!(answer("a\r\n\x1b]52;c;aGk=\x07\u{2067}"), "a\n\\x1b]52;c;aGk=\\x07\u{2067}");
    }

    #[test]
    fn a_screen_shows_whole_lines_and_a_pipe_passes_bytes() {
        let mut shown = Screen { to: Vec::new(), show: Some(visible) };
        shown.write_all("\x1b-é\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(shown.to).unwrap(), "\\x1b-é\n");
        let mut raw = Screen { to: Vec::new(), show: None };
        raw.write_all(b"\x1b\xff").unwrap();
        assert_eq!(raw.to, b"\x1b\xff");
    }

    #[test]
    fn json_means_the_same_and_holds_no_control_characters() {
        let value = serde_json::json!({ "a": "\u{9b}31m\x7f\u{202e}\x1b é" });
        for pretty in [false, true] {
            let text = json(&value, pretty).unwrap();
            assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
        }
    }
}
