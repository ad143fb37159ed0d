//! Places in the log, and the primary's time.

use std::fmt;

use crate::codec::{Decode, Encode};

/// A place in the replication log. `seq` grows by one with every event and starts at 1;
/// `epoch` grows when the log's history forks (restore from a backup, promotion). Ordered by
/// epoch, then by seq. Text form: `epoch.seq`, as in `Outport-Offset: 1.4711`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    Encode,
    Decode,
)]
pub struct Offset {
    /// Which history.
    pub epoch: u64,
    /// Which event of it; 0 stands before the first.
    pub seq: u64,
}

impl Offset {
    /// The place before the first event of the first epoch.
    pub const ZERO: Self = Self { epoch: 0, seq: 0 };

    /// A place.
    pub const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch, seq }
    }

    /// Whether this is the place one event after `before`, in its epoch or a newer one.
    pub const fn follows(self, before: Self) -> bool {
        self.seq == before.seq + 1 && self.epoch >= before.epoch
    }

    /// The place one event further in the same epoch.
    pub const fn next(self) -> Self {
        Self { epoch: self.epoch, seq: self.seq + 1 }
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

impl std::str::FromStr for Offset {
    type Err = InvalidOffset;

    fn from_str(text: &str) -> Result<Self, InvalidOffset> {
        let (epoch, seq) = text.split_once('.').ok_or(InvalidOffset)?;
        let number = |part: &str| {
            if part.bytes().all(|byte| byte.is_ascii_digit()) { part.parse().ok() } else { None }
        };
        Ok(Self { epoch: number(epoch).ok_or(InvalidOffset)?, seq: number(seq).ok_or(InvalidOffset)? })
    }
}

/// A text that is not `epoch.seq`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an offset has the form epoch.seq, two decimal numbers")]
pub struct InvalidOffset;

/// A reading of a wall clock: microseconds since the Unix epoch. In events and heartbeats it is
/// always the primary's clock; order never depends on it.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    Encode,
    Decode,
)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From microseconds since the Unix epoch.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch, as JSON web tokens carry them.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }

    /// How long ago `earlier` was; zero when it lies ahead (clocks differ between machines).
    pub const fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// This reading moved ahead by `duration`.
    #[must_use]
    pub const fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(duration.as_micros() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_order_by_epoch_first() {
        assert!(Offset::new(2, 1) > Offset::new(1, 900));
        assert_eq!("1.4711".parse(), Ok(Offset::new(1, 4711)));
        assert_eq!(Offset::new(1, 4711).to_string(), "1.4711");
        for bad in ["", "1", "1.", ".1", "1.-2", "1.+2", "a.b", "1.2.3"] {
            assert_eq!(bad.parse::<Offset>(), Err(InvalidOffset), "{bad}");
        }
    }
}
