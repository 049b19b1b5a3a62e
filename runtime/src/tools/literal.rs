//! Parses argument values: JSON literals, Python literals, and strings in special quotes without escapes.

use serde_json::{Map, Number, Value as Json};

/// Deepest nesting allowed.
const MAX_DEPTH: usize = 64;

/// Finds the end of a value in a list of values: the first comma or closing bracket that is not inside it.
pub struct Ends {
    quote: Option<&'static str>,
    depth: usize,
    /// The quote that ends the current string, if inside one.
    text: Option<&'static str>,
}

impl Ends {
    /// `quote` is the special quote around strings without escapes, if the form has one.
    pub fn new(quote: Option<&'static str>) -> Ends {
        Ends { quote, depth: 0, text: None }
    }

    /// Continues the search at byte `at`. Returns how far it searched, and whether the value ends there.
    pub fn find(&mut self, rest: &str, mut at: usize) -> (usize, bool) {
        while at < rest.len() {
            let here = &rest[at..];
            let Some(c) = here.chars().next() else { break };
            if let Some(end) = self.text {
                if here.starts_with(end) {
                    self.text = None;
                    at += end.len();
                } else if end.starts_with(here) {
                    // Possibly the closing quote: more text decides.
                    return (at, false);
                } else if c == '\\' && self.quote.is_none() {
                    let Some(escaped) = here.chars().nth(1) else { return (at, false) };
                    at += 1 + escaped.len_utf8();
                } else {
                    at += c.len_utf8();
                }
                continue;
            }
            match (self.quote, c) {
                (Some(quote), _) if here.starts_with(quote) => {
                    self.text = Some(quote);
                    at += quote.len();
                    continue;
                }
                (Some(quote), _) if quote.starts_with(here) => return (at, false),
                (None, '"') => self.text = Some("\""),
                (None, '\'') => self.text = Some("'"),
                (_, '[' | '{' | '(') => self.depth += 1,
                (_, ']' | '}' | ')' | ',') if self.depth == 0 => return (at, true),
                (_, ']' | '}' | ')') => self.depth -= 1,
                _ => {}
            }
            at += c.len_utf8();
        }
        (at, false)
    }
}

/// Parses a whole text as one value; `None` if it is not one.
pub fn parse(text: &str, quote: Option<&'static str>) -> Option<Json> {
    if quote.is_none()
        && let Ok(value) = serde_json::from_str(text)
    {
        return Some(value);
    }
    let mut of = Literal { rest: text, quote };
    let value = of.value(0)?;
    of.space();
    of.rest.is_empty().then_some(value)
}

struct Literal<'a> {
    rest: &'a str,
    quote: Option<&'static str>,
}

impl Literal<'_> {
    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn word(&mut self, word: &str) -> bool {
        self.space();
        let rest = self.rest.strip_prefix(word);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.space();
        if let Some(text) = self.text() {
            return Some(text.into());
        }
        if self.word("[") {
            return self.list("]", depth);
        }
        if self.quote.is_none() && self.word("(") {
            return self.list(")", depth);
        }
        if self.word("{") {
            return self.map(depth);
        }
        self.bare()
    }

    fn list(&mut self, end: &str, depth: usize) -> Option<Json> {
        let mut list = Vec::new();
        loop {
            if self.word(end) {
                return Some(list.into());
            }
            list.push(self.value(depth + 1)?);
            if !self.word(",") {
                return self.word(end).then_some(list.into());
            }
        }
    }

    fn map(&mut self, depth: usize) -> Option<Json> {
        let mut map = Map::new();
        loop {
            if self.word("}") {
                return Some(map.into());
            }
            let key = self.key()?;
            if !self.word(":") {
                return None;
            }
            map.insert(key, self.value(depth + 1)?);
            if !self.word(",") {
                return self.word("}").then_some(map.into());
            }
        }
    }

    /// A map key: a string, or an unquoted word if the form has special quotes.
    fn key(&mut self) -> Option<String> {
        self.space();
        if let Some(text) = self.text() {
            return Some(text);
        }
        let n = self.quote.and_then(|_| self.rest.find(':'))?;
        let (key, rest) = self.rest.split_at(n);
        self.rest = rest;
        Some(key.trim().to_owned())
    }

    fn text(&mut self) -> Option<String> {
        if let Some(quote) = self.quote {
            let (text, rest) = self.rest.strip_prefix(quote)?.split_once(quote)?;
            self.rest = rest;
            return Some(text.to_owned());
        }
        let quote = self.rest.chars().next().filter(|c| ['"', '\''].contains(c))?;
        let mut out = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((i, c)) = chars.next() {
            if c == quote {
                self.rest = &self.rest[1 + i + 1..];
                return Some(out);
            }
            match c {
                '\\' => escape(&mut chars, &mut out)?,
                c => out.push(c),
            }
        }
        None
    }

    /// A number, or a word like `true` or `None`.
    fn bare(&mut self) -> Option<Json> {
        let n = self.rest.find([',', ']', '}', ')']).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(n);
        let value = match word.trim() {
            "true" | "True" => true.into(),
            "false" | "False" => false.into(),
            "null" | "None" => Json::Null,
            number => Json::Number(number.parse::<Number>().ok()?),
        };
        self.rest = rest;
        Some(value)
    }
}

/// Decodes the rest of a JSON or Python escape after the backslash.
fn escape(chars: &mut std::str::CharIndices, out: &mut String) -> Option<()> {
    let (_, c) = chars.next()?;
    let plain = match c {
        'n' => '\n',
        't' => '\t',
        'r' => '\r',
        'b' => '\u{8}',
        'f' => '\u{c}',
        'a' => '\u{7}',
        'v' => '\u{b}',
        '0' => '\0',
        'x' => char::from_u32(hex(chars, 2)?)?,
        'U' => char::from_u32(hex(chars, 8)?)?,
        'u' => {
            let unit = hex(chars, 4)?;
            if !(0xd800..0xdc00).contains(&unit) {
                char::from_u32(unit)?
            } else {
                let follows = chars.as_str().starts_with("\\u");
                chars.nth(1).filter(|_| follows)?;
                let low = hex(chars, 4)?.checked_sub(0xdc00).filter(|low| *low < 0x400)?;
                char::from_u32(0x10000 + ((unit - 0xd800) << 10) + low)?
            }
        }
        '\\' | '"' | '\'' | '/' => c,
        // Like Python, keep the backslash of an unknown escape.
        other => {
            out.push('\\');
            other
        }
    };
    out.push(plain);
    Some(())
}

fn hex(chars: &mut std::str::CharIndices, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0u32, |n, _| Some(n << 4 | chars.next()?.1.to_digit(16)?))
}
