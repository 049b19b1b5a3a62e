//! Python's character classes and case mappings, where Rust's standard library differs.

/// The digit zero of each script whose ten digits are consecutive (category Nd of Unicode 14).
#[rustfmt::skip]
const ZEROS: [u32; 66] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50,
    0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40,
    0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066,
    0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0, 0x11730, 0x118e0, 0x11950,
    0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0, 0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6,
    0x1e140, 0x1e2f0, 0x1e950, 0x1fbf0,
];

/// Ranges of characters besides decimal digits that `isdigit` accepts.
#[rustfmt::skip]
const DIGITS: [(u32, u32); 20] = [
    (0xb2, 0xb3), (0xb9, 0xb9), (0x1369, 0x1371), (0x19da, 0x19da), (0x2070, 0x2070), (0x2074, 0x2079),
    (0x2080, 0x2089), (0x2460, 0x2468), (0x2474, 0x247c), (0x2488, 0x2490), (0x24ea, 0x24ea), (0x24f5,
    0x24fd), (0x24ff, 0x24ff), (0x2776, 0x277e), (0x2780, 0x2788), (0x278a, 0x2792), (0x10a40, 0x10a43),
    (0x10e60, 0x10e68), (0x11052, 0x1105a), (0x1f100, 0x1f10a),
];

/// Ideographs that `isnumeric` accepts.
#[rustfmt::skip]
const NUMBERS: [u32; 81] = [
    0x3405, 0x3483, 0x382a, 0x3b4d, 0x4e00, 0x4e03, 0x4e07, 0x4e09, 0x4e5d, 0x4e8c, 0x4e94, 0x4e96, 0x4ebf,
    0x4ec0, 0x4edf, 0x4ee8, 0x4f0d, 0x4f70, 0x5104, 0x5146, 0x5169, 0x516b, 0x516d, 0x5341, 0x5343, 0x5344,
    0x5345, 0x534c, 0x53c1, 0x53c2, 0x53c3, 0x53c4, 0x56db, 0x58f1, 0x58f9, 0x5e7a, 0x5efe, 0x5eff, 0x5f0c,
    0x5f0d, 0x5f0e, 0x5f10, 0x62fe, 0x634c, 0x67d2, 0x6f06, 0x7396, 0x767e, 0x8086, 0x842c, 0x8cae, 0x8cb3,
    0x8d30, 0x9621, 0x9646, 0x964c, 0x9678, 0x96f6, 0xf96b, 0xf973, 0xf978, 0xf9b2, 0xf9d1, 0xf9d3, 0xf9fd,
    0x20001, 0x20064, 0x200e2, 0x20121, 0x2092a, 0x20983, 0x2098c, 0x2099c, 0x20aea, 0x20afd, 0x20b19,
    0x22390, 0x22998, 0x23b1b, 0x2626d, 0x2f890,
];

pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

pub fn is_decimal(c: char) -> bool {
    let at = ZEROS.partition_point(|&zero| zero <= u32::from(c));
    at > 0 && u32::from(c) - ZEROS[at - 1] < 10
}

pub fn is_digit(c: char) -> bool {
    is_decimal(c) || DIGITS.iter().any(|&(a, b)| (a..=b).contains(&u32::from(c)))
}

pub fn is_numeric(c: char) -> bool {
    c.is_numeric() || NUMBERS.binary_search(&u32::from(c)).is_ok()
}

/// Combining marks that Rust counts as alphabetic and Python does not.
pub fn is_mark(c: char) -> bool {
    matches!(u32::from(c), 0x300..=0x36f | 0x900..=0x903 | 0x93a..=0x93c | 0x93e..=0x94f | 0x5b0..=0x5c7 | 0x610..=0x61a | 0x64b..=0x65f)
}

/// Characters in title case, a third case besides upper and lower.
pub fn is_title(c: char) -> bool {
    matches!(u32::from(c), 0x1c5 | 0x1c8 | 0x1cb | 0x1f2 | 0x1f88..=0x1f8f | 0x1f98..=0x1f9f | 0x1fa8..=0x1faf | 0x1fbc | 0x1fcc | 0x1ffc)
}

pub fn is_upper_or_title(c: char) -> bool {
    c.is_uppercase() || is_title(c)
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || is_upper_or_title(c)
}

/// Appends `c` as the first letter of a word in title case.
fn title_start(c: char, out: &mut String) {
    match u32::from(c) {
        n @ 0x1c4..=0x1cc => out.extend(char::from_u32(0x1c5 + (n - 0x1c4) / 3 * 3)),
        0x1f1..=0x1f3 => out.push('\u{1f2}'),
        _ => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            upper.for_each(|c| out.extend(c.to_lowercase()));
        }
    }
}

pub fn capitalize(s: &str) -> String {
    let mut out = String::new();
    let mut chars = s.chars();
    if let Some(c) = chars.next() {
        title_start(c, &mut out);
    }
    // Convert the whole text: the lower case of a sigma depends on the characters before it.
    let rest = s.to_lowercase();
    let first = s.chars().next().map_or(0, |c| c.to_lowercase().map(char::len_utf8).sum());
    out + rest.get(first..).unwrap_or_default()
}

pub fn title(s: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            title_start(c, &mut out)
        }
        inside = is_cased(c);
    }
    out
}

pub fn is_titled(s: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in s.chars() {
        if is_upper_or_title(c) {
            if inside {
                return false;
            }
            (inside, any) = (true, true);
        } else if c.is_lowercase() {
            if !inside {
                return false;
            }
        } else {
            inside = false;
        }
    }
    any
}

pub fn swapcase(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars() {
        if c.is_uppercase() { out.extend(c.to_lowercase()) } else { out.extend(c.to_uppercase()) }
    }
    out
}

/// Folds case by converting to upper case and back, which merges what Python's folding merges. The dotless i
/// stays.
pub fn casefold(s: &str) -> String {
    let fold = |c: char| -> String {
        match c {
            '\u{131}' => c.into(),
            '\u{130}' => c.to_lowercase().collect(),
            _ => c.to_uppercase().flat_map(char::to_lowercase).collect(),
        }
    };
    s.chars().map(fold).collect()
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `splitlines`: Python knows more line ends than Rust.
pub fn lines(s: &str, keep: bool) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let end = rest.find(is_line_end).unwrap_or(rest.len());
        let mark = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        out.push(&rest[..if keep { end + mark } else { end }]);
        rest = &rest[end + mark..];
    }
    out
}

/// `split()` at runs of white space, at most `most` times, from the left or from the right.
pub fn split_space(s: &str, most: usize, from_right: bool) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = s.trim_matches(is_space);
    if from_right {
        while !rest.is_empty() {
            let cut = if out.len() < most { rest.rfind(is_space) } else { None };
            let Some(at) = cut else {
                // The unsplit rest keeps its leading white space.
                let end = rest.as_ptr() as usize - s.as_ptr() as usize + rest.len();
                out.push(if out.len() < most { rest } else { &s[..end] });
                break;
            };
            let after = at + rest[at..].chars().next().map_or(1, char::len_utf8);
            out.push(&rest[after..]);
            rest = rest[..at].trim_end_matches(is_space);
        }
        out.reverse();
        return out;
    }
    while !rest.is_empty() {
        let cut = if out.len() < most { rest.find(is_space) } else { None };
        let Some(at) = cut else {
            // The unsplit rest keeps its trailing white space.
            let start = rest.as_ptr() as usize - s.as_ptr() as usize;
            out.push(if out.len() < most { rest } else { &s[start..] });
            break;
        };
        out.push(&rest[..at]);
        rest = rest[at..].trim_start_matches(is_space);
    }
    out
}
