//! The local date and time, which the library does not read itself.

use chrono::{Datelike, Timelike};
use dollop::template::DateTime;

/// The current time, in the local time zone.
pub fn now() -> DateTime {
    let now = chrono::Local::now();
    DateTime {
        year: now.year(),
        month: now.month() as u8,
        day: now.day() as u8,
        hour: now.hour() as u8,
        minute: now.minute() as u8,
        second: now.second() as u8,
        microsecond: now.nanosecond() / 1000 % 1_000_000,
    }
}

/// Formats seconds since 1970 as a date in the local time zone.
pub fn date(seconds: u64) -> String {
    let time = chrono::DateTime::from_timestamp(i64::try_from(seconds).unwrap_or(0), 0).unwrap_or_default();
    let time = time.with_timezone(&chrono::Local);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}",
        time.year(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute()
    )
}
