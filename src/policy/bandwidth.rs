//! How fast blobs are copied ahead, by the hour.
//!
//! ```toml
//! [[bandwidth]]            # windows in order; the first that is open holds
//! limit = "20MiB/s"
//! hours = "08:00-18:00"
//! utc_offset = "+05:30"
//!
//! [[bandwidth]]            # at all other hours
//! limit = "200MiB/s"
//! ```
//!
//! Outside of all windows there is no limit. What a client waits for is never held back.

use outport_proto::Timestamp;
use serde::Deserialize;

use super::RuleError;

/// A connection that takes less than this looks dead to the other end.
const LIMIT_MIN: u64 = 64 * 1024;
const MINUTES_A_DAY: i64 = 24 * 60;
/// No place on Earth is further from UTC.
const OFFSET_MINUTES_MAX: i64 = 14 * 60;

/// One `[[bandwidth]]` table of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthWindow {
    /// As in `20MiB/s`, or `unlimited`.
    pub limit: String,
    /// As in `08:00-18:00`, the end not included; over midnight as in `22:00-06:00`. Always, without.
    pub hours: Option<String>,
    /// What the hours are ahead of UTC, as in `+05:30`. Wanted with `hours`.
    pub utc_offset: Option<String>,
}

/// Limits by the hour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    windows: Vec<Window>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Window {
    /// Bytes a second; `None` for no limit.
    limit: Option<u64>,
    /// First minute of the day in UTC, and how many; `None` for always.
    minutes: Option<(i64, i64)>,
}

impl Bandwidth {
    /// Compiles windows.
    ///
    /// # Errors
    /// Names the first window and key that cannot be used.
    pub fn new(windows: &[BandwidthWindow]) -> Result<Self, RuleError> {
        let windows = windows.iter().enumerate().map(|(index, window)| Window::new(index + 1, window));
        Ok(Self { windows: windows.collect::<Result<_, _>>()? })
    }

    /// Bytes a second that may be copied ahead; `None` without a limit.
    pub fn limit_at(&self, now: Timestamp) -> Option<u64> {
        let minute =
            i64::try_from(now.as_micros() / 60_000_000).unwrap_or(i64::MAX).rem_euclid(MINUTES_A_DAY);
        self.windows.iter().find(|window| window.is_open(minute)).and_then(|window| window.limit)
    }

    /// Whether there is ever a limit.
    pub fn is_limited(&self) -> bool {
        self.windows.iter().any(|window| window.limit.is_some())
    }
}

impl Window {
    fn new(number: usize, window: &BandwidthWindow) -> Result<Self, RuleError> {
        let fault = |key, reason: &str| RuleError { number, key, reason: reason.to_owned() };
        let limit = rate(&window.limit).ok_or_else(|| {
            fault("limit", "expected a rate of at least 64KiB/s, as in 20MiB/s, or \"unlimited\"")
        })?;
        let minutes = match (&window.hours, &window.utc_offset) {
            (None, None) => None,
            (None, Some(_)) => return Err(fault("utc_offset", "belongs to hours")),
            (Some(_), None) => return Err(fault("hours", "needs utc_offset, as in \"+00:00\"")),
            (Some(hours), Some(offset)) => {
                let offset = utc_offset(offset)
                    .ok_or_else(|| fault("utc_offset", "expected an offset, as in +05:30 or -08:00"))?;
                let (from, to) =
                    span(hours).ok_or_else(|| fault("hours", "expected two times, as in 08:00-18:00"))?;
                let length = (to - from).rem_euclid(MINUTES_A_DAY);
                let length = if length == 0 { MINUTES_A_DAY } else { length };
                Some(((from - offset).rem_euclid(MINUTES_A_DAY), length))
            }
        };
        Ok(Self { limit, minutes })
    }

    fn is_open(&self, minute: i64) -> bool {
        self.minutes.is_none_or(|(from, length)| (minute - from).rem_euclid(MINUTES_A_DAY) < length)
    }
}

/// Bytes a second; `Some(None)` for no limit.
fn rate(text: &str) -> Option<Option<u64>> {
    if text == "unlimited" {
        return Some(None);
    }
    let text = text.strip_suffix("/s")?;
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
    let scale: u64 = match unit {
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "KB" | "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    let number: u32 = number.trim_end().parse().ok()?;
    Some(Some(u64::from(number) * scale)).filter(|limit| limit.is_some_and(|limit| limit >= LIMIT_MIN))
}

fn span(text: &str) -> Option<(i64, i64)> {
    let (from, to) = text.split_once('-')?;
    let (from, to) = (minutes(from.trim())?, minutes(to.trim())?);
    (from < MINUTES_A_DAY).then_some((from, to))
}

fn utc_offset(text: &str) -> Option<i64> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    minutes(rest).filter(|minutes| *minutes <= OFFSET_MINUTES_MAX).map(|minutes| sign * minutes)
}

/// Minutes since midnight of `HH:MM`, up to `24:00`.
fn minutes(text: &str) -> Option<i64> {
    let (hours, minutes) = text.split_once(':')?;
    let two_digits = |text: &str| {
        let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<i64>().ok()).flatten()
    };
    let (hours, minutes) = (two_digits(hours)?, two_digits(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= MINUTES_A_DAY).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(limit: &str, hours: &str, offset: &str) -> BandwidthWindow {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        BandwidthWindow { limit: limit.to_owned(), hours: some(hours), utc_offset: some(offset) }
    }

    fn at(hours: u64, minutes: u64) -> Timestamp {
        Timestamp::from_secs(20_000 * 86_400 + hours * 3600 + minutes * 60 + 59)
    }

    #[test]
    fn the_first_open_window_holds() {
        let bandwidth = Bandwidth::new(&[
            window("1MiB/s", "12:00-13:00", "+00:00"),
            window("20MiB/s", "08:00-18:00", "+05:30"),
            window("unlimited", "23:00-05:00", "+00:00"),
            window("100MB/s", "", ""),
        ])
        .unwrap();
        for (hours, minutes, limit) in [
            (2, 29, None),
            (2, 30, Some(20 << 20)),
            (11, 59, Some(20 << 20)),
            (12, 0, Some(1 << 20)),
            (12, 29, Some(1 << 20)),
            (13, 0, Some(100_000_000)),
            (22, 59, Some(100_000_000)),
            (23, 0, None),
            (0, 0, None),
        ] {
            assert_eq!(bandwidth.limit_at(at(hours, minutes)), limit, "{hours}:{minutes}");
        }
        let day = Bandwidth::new(&[window("1MiB/s", "00:00-24:00", "-03:00")]).unwrap();
        assert_eq!((day.limit_at(at(0, 0)), day.limit_at(at(23, 59))), (Some(1 << 20), Some(1 << 20)));
        assert_eq!(Bandwidth::default().limit_at(at(0, 0)), None);
        assert!(day.is_limited() && !Bandwidth::default().is_limited());
    }

    #[test]
    fn what_is_wrong_with_a_window_is_named() {
        for (limit, hours, offset, key) in [
            ("20", "", "", "limit"),
            ("20MiB", "", "", "limit"),
            ("20 parsecs/s", "", "", "limit"),
            ("-1MiB/s", "", "", "limit"),
            ("1KiB/s", "", "", "limit"),
            ("1MiB/s", "08:00-18:00", "", "hours"),
            ("1MiB/s", "8-18", "+00:00", "hours"),
            ("1MiB/s", "08:00-25:00", "+00:00", "hours"),
            ("1MiB/s", "24:00-08:00", "+00:00", "hours"),
            ("1MiB/s", "08:00-18:00", "UTC", "utc_offset"),
            ("1MiB/s", "08:00-18:00", "+15:00", "utc_offset"),
            ("1MiB/s", "", "+01:00", "utc_offset"),
        ] {
            let error = Bandwidth::new(&[window(limit, hours, offset)]).unwrap_err();
            assert_eq!((error.number, error.key), (1, key), "{limit} {hours} {offset}");
        }
    }
}
