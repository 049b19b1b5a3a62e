//! A date and time, and C's `strftime` of it. The caller supplies the time: the library reads no clock.

use std::fmt::Write;

/// A date and time of the Gregorian calendar, in the caller's local time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DateTime {
    /// Year.
    pub year: i32,
    /// Month, from 1.
    pub month: u8,
    /// Day, from 1.
    pub day: u8,
    /// Hour, from 0.
    pub hour: u8,
    /// Minute.
    pub minute: u8,
    /// Second.
    pub second: u8,
    /// Microsecond.
    pub microsecond: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The largest width that a format may request.
const MAX_WIDTH: usize = 1000;

/// How one field is padded and cased: glibc's flags.
#[derive(Clone, Copy, Default)]
struct Flags {
    /// `-` for no padding, `_` for spaces, `0` for zeros; `None` for the field's default.
    pad: Option<char>,
    upper: bool,
    swap: bool,
    width: usize,
}

impl DateTime {
    /// The UTC date and time of a Unix time (seconds since 1970), by Howard Hinnant's civil-from-days
    /// algorithm.
    pub fn from_unix(seconds: u64) -> DateTime {
        let z = (seconds / 86_400) as i64 + 719_468;
        let (era, doe) = (z / 146_097, z % 146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let time = seconds % 86_400;
        DateTime {
            year: (yoe + era * 400 + i64::from(month <= 2)) as i32,
            month: month as u8,
            day: (doy - (153 * mp + 2) / 5 + 1) as u8,
            hour: (time / 3600) as u8,
            minute: (time / 60 % 60) as u8,
            second: (time % 60) as u8,
            microsecond: 0,
        }
    }

    fn is_leap(year: i64) -> bool {
        (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
    }

    /// Day of the year, from 0.
    fn day_of_year(self) -> i64 {
        const BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
        let before = BEFORE.get(usize::from(self.month).wrapping_sub(1)).copied().unwrap_or_default();
        before + i64::from(self.day) - 1 + i64::from(self.month > 2 && Self::is_leap(self.year.into()))
    }

    /// Day of the week, from 0 (Sunday).
    fn weekday(self) -> i64 {
        let y = i64::from(self.year) - 1;
        (y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + self.day_of_year() + 1)
            .rem_euclid(7)
    }

    /// Year and week of ISO 8601.
    fn iso_week(self) -> (i64, i64) {
        let weeks = |year: i64| {
            let p = |y: i64| (y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400)).rem_euclid(7);
            52 + i64::from(p(year) == 4 || p(year - 1) == 3)
        };
        let (year, monday) = (i64::from(self.year), (self.weekday() + 6) % 7);
        let week = (self.day_of_year() - monday + 10) / 7;
        match week {
            0 => (year - 1, weeks(year - 1)),
            w if w > weeks(year) => (year + 1, 1),
            w => (year, w),
        }
    }

    /// Formats as Python's `datetime.strftime` does on Linux (glibc, locale C) for a time without a time
    /// zone.
    #[doc(hidden)]
    pub fn format(self, format: &str) -> String {
        let mut out = String::new();
        let chars: Vec<char> = format.chars().collect();
        let mut i = 0;
        while let Some(&c) = chars.get(i) {
            i += 1;
            if c != '%' {
                out.push(c);
                continue;
            }
            let start = i - 1;
            let mut flags = Flags::default();
            while let Some(flag @ ('-' | '_' | '0' | '^' | '#' | '+')) = chars.get(i) {
                match flag {
                    '^' => flags.upper = true,
                    '#' => flags.swap = true,
                    flag => flags.pad = Some(*flag),
                }
                i += 1;
            }
            while let Some(digit) = chars.get(i).and_then(|c| c.to_digit(10)) {
                flags.width = (flags.width * 10 + digit as usize).min(MAX_WIDTH);
                i += 1;
            }
            if matches!(chars.get(i), Some('E' | 'O')) {
                i += 1;
            }
            let done = chars.get(i).is_some_and(|&kind| self.field(kind, flags, &mut out));
            if done {
                i += 1;
            } else {
                // As in glibc, a sequence that is not a field is copied.
                i = (i + 1).min(chars.len());
                out.extend(&chars[start..i]);
            }
        }
        out
    }

    fn field(self, kind: char, flags: Flags, out: &mut String) -> bool {
        let (year, hour) = (i64::from(self.year), i64::from(self.hour));
        let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
        let month = MONTHS.get(usize::from(self.month).wrapping_sub(1)).copied().unwrap_or("?");
        let day = DAYS[self.weekday() as usize];
        let half = if hour < 12 { "AM" } else { "PM" };
        let mut number = |n: i64, width: usize, pad: char| {
            let pad = flags.pad.unwrap_or(pad);
            let width = if pad == '-' { flags.width } else { width.max(flags.width) };
            let _ =
                if pad == '_' || pad == '-' { write!(out, "{n:width$}") } else { write!(out, "{n:0width$}") };
            true
        };
        match kind {
            'Y' => return number(year, 0, '0'),
            'C' => return number(year.div_euclid(100), 2, '0'),
            'y' => return number(year.rem_euclid(100), 2, '0'),
            'm' => return number(self.month.into(), 2, '0'),
            'd' => return number(self.day.into(), 2, '0'),
            'e' => return number(self.day.into(), 2, '_'),
            'H' => return number(hour, 2, '0'),
            'k' => return number(hour, 2, '_'),
            'I' => return number(hour_12, 2, '0'),
            'l' => return number(hour_12, 2, '_'),
            'M' => return number(self.minute.into(), 2, '0'),
            'S' => return number(self.second.into(), 2, '0'),
            'j' => return number(self.day_of_year() + 1, 3, '0'),
            'U' => return number((self.day_of_year() + 7 - self.weekday()) / 7, 2, '0'),
            'W' => return number((self.day_of_year() + 7 - (self.weekday() + 6) % 7) / 7, 2, '0'),
            'V' => return number(self.iso_week().1, 2, '0'),
            'G' => return number(self.iso_week().0, 0, '0'),
            'g' => return number(self.iso_week().0.rem_euclid(100), 2, '0'),
            'u' => return number((self.weekday() + 6) % 7 + 1, 1, '0'),
            'w' => return number(self.weekday(), 1, '0'),
            _ => {}
        }
        let text = match kind {
            'a' => day[..3].to_owned(),
            'A' => day.to_owned(),
            'b' | 'h' => month.get(..3).unwrap_or_default().to_owned(),
            'B' => month.to_owned(),
            'p' if flags.swap => half.to_lowercase(),
            'p' => half.to_owned(),
            'P' => half.to_lowercase(),
            'D' | 'x' => self.format("%m/%d/%y"),
            'F' => self.format("%Y-%m-%d"),
            'T' | 'X' => self.format("%H:%M:%S"),
            'R' => self.format("%H:%M"),
            'r' => self.format("%I:%M:%S %p"),
            'c' => self.format("%a %b %e %H:%M:%S %Y"),
            'f' => format!("{:06}", self.microsecond),
            'Z' | 'z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return false,
        };
        let text = if flags.upper || (flags.swap && kind != 'p') { text.to_uppercase() } else { text };
        let fill = if flags.pad == Some('0') { '0' } else { ' ' };
        let missing = flags.width.saturating_sub(text.chars().count());
        out.extend(std::iter::repeat_n(fill, missing));
        out.push_str(&text);
        true
    }
}
