//! Splits the inside of a tag into tokens, as Jinja's lexer does.

use crate::error::{Error, Result};

/// Most tokens of one tag. A table of a million numbers is not a template.
const MAX_TOKENS: usize = 100_000;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Name(String),
    Integer(String),
    Float(String),
    Text(String),
    Operator(&'static str),
}

/// The contents of a tag.
#[derive(Debug)]
pub struct Tag {
    pub tokens: Vec<Token>,
    /// `-` or `+` before the closing delimiter.
    pub sign: Option<char>,
    /// The position in the source after the tag.
    pub end: usize,
}

const OPERATORS: [&str; 29] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!", "@", "`",
];

/// Reads the contents of a tag from `start` up to `close` (`}}` or `%}`).
pub fn tag(source: &str, start: usize, close: &str) -> Result<Tag> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    let mut at = start;
    loop {
        let rest = source.get(at..).unwrap_or_default();
        let Some(c) = rest.chars().next() else { return Err(fault("a tag is not closed")) };
        if open.is_empty() {
            let signed = rest.strip_prefix('-').or_else(|| rest.strip_prefix('+').filter(|_| close == "%}"));
            if signed.is_some_and(|r| r.starts_with(close)) {
                return Ok(Tag { tokens, sign: Some(c), end: at + 1 + close.len() });
            }
            if rest.starts_with(close) {
                return Ok(Tag { tokens, sign: None, end: at + close.len() });
            }
        }
        if tokens.len() == MAX_TOKENS {
            return Err(fault("a tag is too long"));
        }
        let behind_dot = tokens.last() == Some(&Token::Operator("."));
        let used = if c.is_whitespace() {
            c.len_utf8()
        } else if c.is_ascii_digit() {
            let (token, used) = number(rest, behind_dot)?;
            tokens.push(token);
            used
        } else if c == '_' || c.is_alphanumeric() {
            let used = rest.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(rest.len());
            tokens.push(Token::Name(rest[..used].to_owned()));
            used
        } else if c == '\'' || c == '"' {
            let (text, used) = string(rest, c)?;
            tokens.push(Token::Text(text));
            used
        } else {
            let found = OPERATORS.iter().find(|o| rest.starts_with(**o) && !"!@`".contains(**o));
            let Some(operator) = found else { return Err(fault(&format!("unexpected character {c:?}"))) };
            match *operator {
                "(" => open.push(")"),
                "[" => open.push("]"),
                "{" => open.push("}"),
                ")" | "]" | "}" if open.pop() != Some(operator) => {
                    return Err(fault(&format!("unexpected '{operator}'")));
                }
                _ => {}
            }
            tokens.push(Token::Operator(operator));
            operator.len()
        };
        at += used;
    }
}

pub fn fault(what: &str) -> Error {
    Error::Template(what.to_owned())
}

/// Reads an integer or a float. After a dot (`a.0.1`) there are only integers.
fn number(rest: &str, behind_dot: bool) -> Result<(Token, usize)> {
    let bytes = rest.as_bytes();
    let radix = match bytes.get(1).filter(|_| bytes[0] == b'0').map(u8::to_ascii_lowercase) {
        Some(b'x') => 16,
        Some(b'o') => 8,
        Some(b'b') => 2,
        _ => 10,
    };
    // The end of a run of digits with single underscores between them.
    let run = |from: usize, radix: u32| {
        let mut end = from;
        while bytes.get(end).is_some_and(|b| char::from(*b).is_digit(radix))
            || (end > from
                && bytes.get(end) == Some(&b'_')
                && bytes.get(end + 1).is_some_and(|b| char::from(*b).is_digit(radix)))
        {
            end += 1;
        }
        end
    };
    if radix != 10 {
        let from = if bytes.get(2) == Some(&b'_') { 3 } else { 2 };
        let end = run(from, radix);
        let value = u128::from_str_radix(&rest[from..end].replace('_', ""), radix);
        return match value {
            Ok(n) => Ok((Token::Integer(n.to_string()), end)),
            Err(_) => Err(fault("a number is malformed or too large")),
        };
    }
    let whole = run(0, 10);
    let mut end = whole;
    if !behind_dot {
        if bytes.get(end) == Some(&b'.') && run(end + 1, 10) > end + 1 {
            end = run(end + 1, 10);
        }
        if bytes.get(end).is_some_and(|b| b.eq_ignore_ascii_case(&b'e')) {
            let from = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            if run(from, 10) > from {
                end = run(from, 10);
            }
        }
    }
    let digits = rest[..end].replace('_', "");
    if end == whole {
        return match digits.parse::<u128>() {
            Ok(n) => Ok((Token::Integer(n.to_string()), end)),
            Err(_) => Err(fault("a number is too large")),
        };
    }
    Ok((Token::Float(digits), end))
}

/// Reads a string literal with Python's escapes.
fn string(rest: &str, quote: char) -> Result<(String, usize)> {
    let mut out = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        if c == quote {
            return Ok((out, at + c.len_utf8()));
        }
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some((at, c)) = chars.next() else { break };
        let code = |n: usize, radix: u32| {
            let digits = rest.get(at + 1..at + 1 + n)?;
            let n = u32::from_str_radix(digits, radix)
                .ok()
                .filter(|_| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
            char::from_u32(n)
        };
        let (hex, length) = match c {
            'x' => (code(2, 16), 2),
            'u' => (code(4, 16), 4),
            'U' => (code(8, 16), 8),
            _ => (None, 0),
        };
        match (c, hex) {
            (_, Some(hex)) => {
                out.push(hex);
                chars.by_ref().take(length).for_each(drop);
            }
            ('x' | 'u' | 'U' | 'N', None) => {
                return Err(fault("a string has a malformed or unsupported escape"));
            }
            ('\n', _) => {}
            ('n', _) => out.push('\n'),
            ('t', _) => out.push('\t'),
            ('r', _) => out.push('\r'),
            ('a', _) => out.push('\x07'),
            ('b', _) => out.push('\x08'),
            ('f', _) => out.push('\x0c'),
            ('v', _) => out.push('\x0b'),
            ('\\' | '\'' | '"', _) => out.push(c),
            ('0'..='7', _) => {
                let digits = rest[at..].bytes().take(3).take_while(|b| (b'0'..=b'7').contains(b)).count();
                let n = u32::from_str_radix(&rest[at..at + digits], 8).ok().and_then(char::from_u32);
                out.extend(n);
                chars.by_ref().take(digits - 1).for_each(drop);
            }
            _ => {
                out.push('\\');
                out.push(c);
            }
        }
    }
    Err(fault("a string is not closed"))
}
