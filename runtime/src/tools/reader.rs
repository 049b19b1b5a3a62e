//! The shared state of the call readers: unread text, and what was read of the current call.
//!
//! Readers consume text from the front as soon as it is unambiguous. If the next bytes could still mean
//! several things, they stop with [`Halt::More`] and are called again with more text.

use serde_json::Value as Json;

/// The most bytes of a tool's name, with the text around it.
pub const MAX_HEAD: usize = 512;

/// A part of an answer, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Piece {
    /// Text outside of calls.
    Text(String),
    /// A call begins.
    Call {
        /// Name of the tool.
        name: String,
    },
    /// More of the call's arguments. All pieces together are the text of a JSON object.
    Arguments(String),
    /// The call is complete.
    End,
    /// The current call turned out not to be one: it is incomplete or malformed.
    Abandoned {
        /// Its whole text, as the model wrote it.
        text: String,
    },
}

/// Why a reader stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// More text is needed to decide.
    More,
    /// This is not a call.
    Bad,
}

pub type Flow<T = ()> = Result<T, Halt>;

/// Finds the end of a JSON value, byte by byte.
#[derive(Default)]
struct Scan {
    depth: usize,
    string: bool,
    escaped: bool,
    begun: bool,
}

impl Scan {
    /// `Some(true)` if the value ends with this byte, `Some(false)` if it ended before, `None` if it goes on.
    fn next(&mut self, byte: u8) -> Option<bool> {
        if self.string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => {
                    self.string = false;
                    return (self.depth == 0).then_some(true);
                }
                _ => {}
            }
            return None;
        }
        match byte {
            b'"' if self.depth == 0 && self.begun => return Some(false),
            b'"' => self.string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' | b',' if self.depth == 0 => return Some(false),
            b'}' | b']' => {
                self.depth -= 1;
                return (self.depth == 0).then_some(true);
            }
            b if b.is_ascii_whitespace() && self.depth == 0 && self.begun => return Some(false),
            _ => {}
        }
        self.begun = true;
        None
    }
}

#[derive(Default)]
pub struct Reader {
    /// Unread text.
    pub rest: String,
    /// The text of the current call so far, with the white space before it.
    raw: String,
    /// How far `rest` was searched.
    at: usize,
    scan: Scan,
    /// The arguments of the current call so far.
    arguments: String,
    begun: bool,
    pub out: Vec<Piece>,
}

impl Reader {
    /// Consumes the first `n` bytes as part of the call.
    pub fn take(&mut self, n: usize) -> String {
        self.at = 0;
        let taken: String = self.rest.drain(..n).collect();
        self.raw.push_str(&taken);
        taken
    }

    /// Passes the first `n` bytes on as text.
    pub fn text(&mut self, n: usize) {
        self.at = 0;
        let text: String = self.rest.drain(..n).collect();
        if !text.is_empty() {
            self.out.push(Piece::Text(text));
        }
    }

    /// Discards the first `n` bytes.
    pub fn drop(&mut self, n: usize) {
        self.at = 0;
        self.rest.drain(..n);
    }

    /// Skips white space.
    ///
    /// # Errors
    /// `More` if nothing follows yet.
    pub fn space(&mut self) -> Flow {
        let n = self.rest.len() - self.rest.trim_start().len();
        if n > 0 {
            self.take(n);
        }
        if self.rest.is_empty() { Err(Halt::More) } else { Ok(()) }
    }

    /// Consumes `word` if it comes next; returns whether it did.
    ///
    /// # Errors
    /// `More` if the text so far is a prefix of it.
    pub fn word(&mut self, word: &str) -> Flow<bool> {
        if self.rest.starts_with(word) {
            self.take(word.len());
            return Ok(true);
        }
        if word.starts_with(&*self.rest) { Err(Halt::More) } else { Ok(false) }
    }

    /// Consumes `word`, which must come next.
    ///
    /// # Errors
    /// `More` if the text so far is a prefix of it; `Bad` if something else comes.
    pub fn expect(&mut self, word: &str) -> Flow {
        if self.word(word)? { Ok(()) } else { Err(Halt::Bad) }
    }

    /// Consumes the text before the first of `words`, but not the word. Returns the text and the index of the
    /// word.
    ///
    /// # Errors
    /// `More` if no word was found yet; `Bad` if none is within `most` bytes.
    pub fn until(&mut self, words: &[&str], most: usize) -> Flow<(String, usize)> {
        let longest = words.iter().map(|w| w.len()).max().unwrap_or(1);
        let mut from = self.at.saturating_sub(longest);
        while !self.rest.is_char_boundary(from) {
            from -= 1;
        }
        let found =
            words.iter().enumerate().filter_map(|(i, w)| Some((self.rest[from..].find(w)? + from, i)));
        match found.min() {
            // On a tie, the smaller index wins.
            Some((n, i)) => Ok((self.take(n), i)),
            None if self.rest.len() > most => Err(Halt::Bad),
            None => {
                self.at = self.rest.len();
                Err(Halt::More)
            }
        }
    }

    /// Searches for the end of a JSON value. Returns how many bytes belong to it so far, and whether it ends
    /// there.
    fn scan(&mut self) -> (usize, bool) {
        for i in self.at..self.rest.len() {
            if let Some(with) = self.scan.next(self.rest.as_bytes()[i]) {
                self.scan = Scan::default();
                return (i + usize::from(with), true);
            }
        }
        self.at = self.rest.len();
        (self.at, false)
    }

    /// Consumes a JSON value and returns its text, unparsed.
    ///
    /// # Errors
    /// `More` if it has not ended.
    pub fn value(&mut self) -> Flow<String> {
        match self.scan() {
            (n, true) => Ok(self.take(n)),
            _ => Err(Halt::More),
        }
    }

    /// Consumes the JSON arguments, and passes each piece on at once.
    ///
    /// # Errors
    /// `More` if they have not ended.
    pub fn stream(&mut self) -> Flow {
        let (n, ended) = self.scan();
        let text = self.take(n);
        self.argument(&text);
        if ended { Ok(()) } else { Err(Halt::More) }
    }

    /// Consumes a value. `find` searches for its end from a byte offset, and returns how far it searched and
    /// whether the value ends there.
    ///
    /// # Errors
    /// `More` if it has not ended.
    pub fn ended(&mut self, mut find: impl FnMut(&str, usize) -> (usize, bool)) -> Flow<String> {
        let (at, ended) = find(&self.rest, self.at);
        if ended {
            return Ok(self.take(at));
        }
        self.at = at;
        Err(Halt::More)
    }

    /// Whether any arguments were read.
    pub fn has_arguments(&self) -> bool {
        !self.arguments.is_empty()
    }

    /// Begins a call.
    ///
    /// # Errors
    /// `Bad` if the name is not valid.
    pub fn call(&mut self, name: &str) -> Flow {
        if name.is_empty()
            || name.chars().any(|c| c.is_whitespace() || c.is_control() || "<>{}\"".contains(c))
        {
            return Err(Halt::Bad);
        }
        self.begun = true;
        self.out.push(Piece::Call { name: name.to_owned() });
        Ok(())
    }

    /// Passes on more of the arguments.
    pub fn argument(&mut self, text: &str) {
        if !text.is_empty() {
            self.arguments.push_str(text);
            self.out.push(Piece::Arguments(text.to_owned()));
        }
    }

    /// Passes on one argument. The first one also opens the JSON object.
    pub fn pair(&mut self, key: &str, value: &Json) {
        let between = if self.arguments.is_empty() { "{" } else { ", " };
        let text = format!("{between}{}: {value}", Json::from(key));
        self.argument(&text);
    }

    /// Closes the object that [`Reader::pair`] opened.
    pub fn close(&mut self) {
        self.argument(if self.arguments.is_empty() { "{}" } else { "}" });
    }

    /// Completes the call.
    ///
    /// # Errors
    /// `Bad` if its arguments are not a JSON object.
    pub fn end(&mut self) -> Flow {
        let object = serde_json::from_str::<serde_json::Map<String, Json>>(&self.arguments);
        if object.is_err() || !self.begun {
            return Err(Halt::Bad);
        }
        self.out.push(Piece::End);
        self.forget();
        Ok(())
    }

    /// Gives up the current call: all of it is text.
    pub fn abandon(&mut self) {
        let text = std::mem::take(&mut self.raw);
        match self.begun {
            true => self.out.push(Piece::Abandoned { text }),
            false if text.is_empty() => {}
            false => self.out.push(Piece::Text(text)),
        }
        self.forget();
    }

    /// Forgets the current call.
    pub fn forget(&mut self) {
        self.raw.clear();
        self.arguments.clear();
        (self.begun, self.at, self.scan) = (false, 0, Scan::default());
    }
}
