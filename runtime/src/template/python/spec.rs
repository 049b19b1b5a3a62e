//! Python's format specifications, and the digits of numbers in each style.

use crate::template::value::{Result, refuse};

/// Widths and precisions beyond this are refused. Python would allocate as much as they say.
pub const MAX_WIDTH: usize = 1 << 20;

/// A parsed format specification.
#[derive(Clone, Debug)]
pub struct Spec {
    pub fill: char,
    pub align: Option<char>,
    pub sign: char,
    pub alternate: bool,
    pub width: usize,
    pub grouping: Option<char>,
    pub precision: Option<usize>,
    pub kind: Option<char>,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            fill: ' ',
            align: None,
            sign: '-',
            alternate: false,
            width: 0,
            grouping: None,
            precision: None,
            kind: None,
        }
    }
}

impl Spec {
    /// Parses `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
    pub fn parse(text: &str) -> Result<Spec> {
        let mut spec = Spec::default();
        let chars: Vec<char> = text.chars().collect();
        let is_align = |c: Option<&char>| matches!(c, Some('<' | '>' | '=' | '^'));
        let mut i = 0;
        if is_align(chars.get(1)) {
            (spec.fill, spec.align, i) = (chars[0], Some(chars[1]), 2);
        } else if is_align(chars.first()) {
            (spec.align, i) = (Some(chars[0]), 1);
        }
        if let Some(c @ ('+' | '-' | ' ')) = chars.get(i) {
            (spec.sign, i) = (*c, i + 1);
        }
        if chars.get(i) == Some(&'#') {
            (spec.alternate, i) = (true, i + 1);
        }
        if chars.get(i) == Some(&'0') {
            if spec.align.is_none() {
                (spec.fill, spec.align) = ('0', Some('='));
            }
            i += 1;
        }
        (spec.width, i) = digits(&chars, i)?.map_or((0, i), |(n, i)| (n, i));
        if let Some(c @ (',' | '_')) = chars.get(i) {
            (spec.grouping, i) = (Some(*c), i + 1);
        }
        if chars.get(i) == Some(&'.') {
            match digits(&chars, i + 1)? {
                Some((n, next)) => (spec.precision, i) = (Some(n), next),
                None => return refuse("Format specifier missing precision"),
            }
        }
        match chars.get(i..).unwrap_or_default() {
            [] => {}
            [kind] => spec.kind = Some(*kind),
            _ => return refuse("Invalid format specifier"),
        }
        Ok(spec)
    }

    /// Pads `prefix` (sign and base) and `body` with the fill character up to the width.
    pub fn pad(&self, prefix: &str, body: &str, default: char) -> String {
        let missing = self.width.saturating_sub(prefix.chars().count() + body.chars().count());
        let fill = |n: usize| self.fill.to_string().repeat(n);
        match self.align.unwrap_or(default) {
            '<' => format!("{prefix}{body}{}", fill(missing)),
            '^' => format!("{}{prefix}{body}{}", fill(missing / 2), fill(missing - missing / 2)),
            '=' => format!("{prefix}{}{body}", fill(missing)),
            _ => format!("{}{prefix}{body}", fill(missing)),
        }
    }

    pub fn number(&self, negative: bool, base: &str, digits: &str, every: usize) -> String {
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, '-') => "",
            (false, '+') => "+",
            (false, _) => " ",
        };
        let prefix = format!("{sign}{base}");
        let Some(mark) = self.grouping else { return self.pad(&prefix, digits, '>') };
        let (whole, rest) = digits.split_at(digits.find(['.', 'e', '%']).unwrap_or(digits.len()));
        // Leading zeros are grouped like digits.
        let room = if self.fill == '0' && self.align == Some('=') {
            self.width.saturating_sub(prefix.len() + rest.len())
        } else {
            0
        };
        self.pad(&prefix, &(group(whole, mark, every, room) + rest), '>')
    }
}

pub fn group(digits: &str, mark: char, every: usize, room: usize) -> String {
    let grouped = |n: usize| n + n.saturating_sub(1) / every;
    let mut zeros = 0;
    while grouped(digits.len() + zeros) < room {
        zeros += 1;
    }
    let all: Vec<char> = std::iter::repeat_n('0', zeros).chain(digits.chars()).collect();
    let mut out = String::new();
    for (i, c) in all.iter().enumerate() {
        if i > 0 && (all.len() - i).is_multiple_of(every) {
            out.push(mark);
        }
        out.push(*c);
    }
    out
}

pub fn digits(chars: &[char], from: usize) -> Result<Option<(usize, usize)>> {
    let text: String =
        chars.get(from..).unwrap_or_default().iter().take_while(|c| c.is_ascii_digit()).collect();
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<usize>() {
        Ok(n) if n <= MAX_WIDTH => Ok(Some((n, from + text.len()))),
        _ => refuse("a width or precision is too large"),
    }
}

/// The digits of `f` without its sign, in the style of `e`, `f`, `g` or `%`.
pub fn float_digits(f: f64, kind: char, precision: usize, alternate: bool) -> String {
    let f = f.abs();
    if !f.is_finite() {
        return if f.is_nan() { "nan".into() } else { "inf".into() };
    }
    match kind.to_ascii_lowercase() {
        'e' => {
            let text = format!("{f:.precision$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or_default();
            let dot = if alternate && precision == 0 { "." } else { "" };
            format!("{mantissa}{dot}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        'g' => {
            let precision = precision.max(1);
            let scientific = format!("{f:.*e}", precision - 1);
            let exponent: i32 =
                scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or_default();
            let cut = |text: &str| match (alternate, text.contains('.')) {
                (false, true) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                (true, false) => format!("{text}."),
                _ => text.to_owned(),
            };
            if exponent < -4 || exponent >= precision as i32 {
                let (mantissa, _) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                format!("{}e{}{:02}", cut(mantissa), if exponent < 0 { '-' } else { '+' }, exponent.abs())
            } else {
                cut(&format!("{f:.*}", (precision as i32 - 1 - exponent).max(0) as usize))
            }
        }
        '%' => format!("{:.precision$}%", f * 100.0),
        _ => format!("{f:.precision$}{}", if alternate && precision == 0 { "." } else { "" }),
    }
}

pub fn integer_digits(n: u128, kind: char) -> String {
    match kind {
        'b' => format!("{n:b}"),
        'o' => format!("{n:o}"),
        'x' => format!("{n:x}"),
        'X' => format!("{n:X}"),
        _ => n.to_string(),
    }
}

pub fn base_prefix(kind: char) -> &'static str {
    match kind {
        'b' => "0b",
        'o' => "0o",
        'x' => "0x",
        'X' => "0X",
        _ => "",
    }
}

pub fn cased(text: String, kind: char) -> String {
    if kind.is_ascii_uppercase() { text.to_uppercase() } else { text }
}
