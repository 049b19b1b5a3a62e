//! What a reader of calls has in hand: text that is not read yet, and what was read of the call so far.
//!
//! Readers take from the front what they are sure of. Where the text in hand may go on in several ways they halt, and are asked again
//! when there is more.

use serde_json::Value as Json;

/// Longest name of a tool, with what stands around it.
pub const MAX_HEAD: usize = 512;

/// What was read of an answer, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Piece {
    /// Text that is no call.
    Text(String),
    /// A call has begun.
    Call {
        /// Of the tool.
        name: String,
    },
    /// The next piece of the arguments of the call: together they are the text of a JSON object.
    Arguments(String),
    /// The call is complete.
    End,
    /// The call that began last is none: it broke off, or its form is wrong.
    Abandoned {
        /// All of it, as the model wrote it.
        text: String,
    },
}

/// Why reading does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// What follows decides.
    More,
    /// This is no call.
    Bad,
}

pub type Flow<T = ()> = Result<T, Halt>;

/// Where a JSON value ends.
#[derive(Default)]
struct Scan {
    depth: usize,
    string: bool,
    escaped: bool,
    begun: bool,
}

impl Scan {
    /// Whether the value ends with this byte, or before it.
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
    /// Not read yet.
    pub rest: String,
    /// What the call in hand was read from, with white space before it.
    raw: String,
    /// How much of `rest` was looked at.
    at: usize,
    scan: Scan,
    /// The arguments so far.
    arguments: String,
    begun: bool,
    pub out: Vec<Piece>,
}

impl Reader {
    /// Takes the first bytes as a part of the call.
    pub fn take(&mut self, n: usize) -> String {
        self.at = 0;
        let taken: String = self.rest.drain(..n).collect();
        self.raw.push_str(&taken);
        taken
    }

    /// Text that is no call.
    pub fn text(&mut self, n: usize) {
        self.at = 0;
        let text: String = self.rest.drain(..n).collect();
        if !text.is_empty() {
            self.out.push(Piece::Text(text));
        }
    }

    /// Leaves the first bytes out.
    pub fn drop(&mut self, n: usize) {
        self.at = 0;
        self.rest.drain(..n);
    }

    /// Skips white space.
    ///
    /// # Errors
    /// `More` where nothing follows yet.
    pub fn space(&mut self) -> Flow {
        let n = self.rest.len() - self.rest.trim_start().len();
        if n > 0 {
            self.take(n);
        }
        if self.rest.is_empty() { Err(Halt::More) } else { Ok(()) }
    }

    /// Takes a word, if it comes next.
    ///
    /// # Errors
    /// `More` where it may come.
    pub fn word(&mut self, word: &str) -> Flow<bool> {
        if self.rest.starts_with(word) {
            self.take(word.len());
            return Ok(true);
        }
        if word.starts_with(&*self.rest) { Err(Halt::More) } else { Ok(false) }
    }

    /// Takes a word.
    ///
    /// # Errors
    /// `More` where it may come, `Bad` where another comes.
    pub fn expect(&mut self, word: &str) -> Flow {
        if self.word(word)? { Ok(()) } else { Err(Halt::Bad) }
    }

    /// Takes what stands before the first of some words, and none of them; which it is.
    ///
    /// # Errors
    /// `More` where none has come, `Bad` where none comes within `most` bytes.
    pub fn until(&mut self, words: &[&str], most: usize) -> Flow<(String, usize)> {
        let longest = words.iter().map(|w| w.len()).max().unwrap_or(1);
        let mut from = self.at.saturating_sub(longest);
        while !self.rest.is_char_boundary(from) {
            from -= 1;
        }
        let found =
            words.iter().enumerate().filter_map(|(i, w)| Some((self.rest[from..].find(w)? + from, i)));
        match found.min() {
            // A longer word may begin where a shorter one was found.
            Some((n, i)) => Ok((self.take(n), i)),
            None if self.rest.len() > most => Err(Halt::Bad),
            None => {
                self.at = self.rest.len();
                Err(Halt::More)
            }
        }
    }

    /// Looks for the end of a value; how far the text belongs to it, and whether it ends there.
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

    /// Takes a JSON value, as a text that is not looked at closer.
    ///
    /// # Errors
    /// `More` where it has not ended.
    pub fn value(&mut self) -> Flow<String> {
        match self.scan() {
            (n, true) => Ok(self.take(n)),
            _ => Err(Halt::More),
        }
    }

    /// Takes the arguments, which are JSON, as they come.
    ///
    /// # Errors
    /// `More` where they have not ended.
    pub fn stream(&mut self) -> Flow {
        let (n, ended) = self.scan();
        let text = self.take(n);
        self.argument(&text);
        if ended { Ok(()) } else { Err(Halt::More) }
    }

    /// Takes a value whose end `find` looks for: how far it came, and whether the value ends there.
    ///
    /// # Errors
    /// `More` where it has not ended.
    pub fn ended(&mut self, mut find: impl FnMut(&str, usize) -> (usize, bool)) -> Flow<String> {
        let (at, ended) = find(&self.rest, self.at);
        if ended {
            return Ok(self.take(at));
        }
        self.at = at;
        Err(Halt::More)
    }

    /// Whether arguments have begun.
    pub fn has_arguments(&self) -> bool {
        !self.arguments.is_empty()
    }

    /// A call begins.
    ///
    /// # Errors
    /// `Bad` for a name that is none.
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

    /// The next piece of its arguments.
    pub fn argument(&mut self, text: &str) {
        if !text.is_empty() {
            self.arguments.push_str(text);
            self.out.push(Piece::Arguments(text.to_owned()));
        }
    }

    /// One argument of several that are written one after another; the first opens the object.
    pub fn pair(&mut self, key: &str, value: &Json) {
        let between = if self.arguments.is_empty() { "{" } else { ", " };
        let text = format!("{between}{}: {value}", Json::from(key));
        self.argument(&text);
    }

    /// Closes what [`Reader::pair`] opened.
    pub fn close(&mut self) {
        self.argument(if self.arguments.is_empty() { "{}" } else { "}" });
    }

    /// The call is complete.
    ///
    /// # Errors
    /// `Bad` where its arguments are no JSON object.
    pub fn end(&mut self) -> Flow {
        let object = serde_json::from_str::<serde_json::Map<String, Json>>(&self.arguments);
        if object.is_err() || !self.begun {
            return Err(Halt::Bad);
        }
        self.out.push(Piece::End);
        self.forget();
        Ok(())
    }

    /// It was no call after all: all of it is text.
    pub fn abandon(&mut self) {
        let text = std::mem::take(&mut self.raw);
        match self.begun {
            true => self.out.push(Piece::Abandoned { text }),
            false if text.is_empty() => {}
            false => self.out.push(Piece::Text(text)),
        }
        self.forget();
    }

    /// Begins anew.
    pub fn forget(&mut self) {
        self.raw.clear();
        self.arguments.clear();
        (self.begun, self.at, self.scan) = (false, 0, Scan::default());
    }
}
