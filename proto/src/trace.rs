//! Which trace something belongs to, as W3C Trace Context writes it.

use std::{fmt, str::FromStr};

use crate::codec::{Decode, Encode};

/// A span that others may be children of, or linked to: the `traceparent` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Traceparent {
    /// The trace; never all zero once parsed.
    pub trace_id: [u8; 16],
    /// The span; never all zero once parsed.
    pub span_id: [u8; 8],
    /// Whether whoever began it records it.
    pub sampled: bool,
}

/// The text is no `traceparent` that this build understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent")]
pub struct NotATraceparent;

impl Traceparent {
    /// The trace's name as people and backends know it, 32 lower-case hexadecimal digits.
    pub fn trace(&self) -> impl fmt::Display {
        Hex(self.trace_id)
    }
}

/// Version 00: `00-<32 hex>-<16 hex>-<2 hex>`. Later versions may go on after that, and are read as
/// far as this one goes.
impl FromStr for Traceparent {
    type Err = NotATraceparent;

    fn from_str(text: &str) -> Result<Self, NotATraceparent> {
        let mut parts = text.split('-');
        let mut part = || parts.next().ok_or(NotATraceparent);
        let (version, trace_id, span_id, flags) = (part()?, part()?, part()?, part()?);
        let [version] = digits(version)?;
        let [flags] = digits(flags)?;
        let parsed = Self { trace_id: digits(trace_id)?, span_id: digits(span_id)?, sampled: flags & 1 == 1 };
        let is_whole = if version == 0 { parts.next().is_none() } else { version != 0xff };
        let names_something = parsed.trace_id != [0; 16] && parsed.span_id != [0; 8];
        if is_whole && names_something { Ok(parsed) } else { Err(NotATraceparent) }
    }
}

impl fmt::Display for Traceparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", Hex(self.trace_id), Hex(self.span_id), u8::from(self.sampled))
    }
}

struct Hex<const BYTES: usize>([u8; BYTES]);

impl<const BYTES: usize> fmt::Display for Hex<BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Lower-case only, as the specification has it.
fn digits<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], NotATraceparent> {
    if text.len() != 2 * BYTES {
        return Err(NotATraceparent);
    }
    let mut bytes = [0; BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        for digit in pair {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(NotATraceparent),
            };
            *byte = *byte << 4 | value;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_written_is_read() {
        let parsed: Traceparent = EXAMPLE.parse().unwrap();
        assert!(parsed.sampled);
        assert_eq!(parsed.to_string(), EXAMPLE);
        assert_eq!(parsed.trace().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let later = EXAMPLE.replacen("00", "cc", 1) + "-what-will-be";
        assert_eq!(later.parse(), Ok(parsed));
        let unsampled: Traceparent = EXAMPLE.replace("-01", "-02").parse().unwrap();
        assert!(!unsampled.sampled);
    }

    #[test]
    fn what_is_none_is_not() {
        for text in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g",
            "00-\u{e9}bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        ] {
            assert_eq!(text.parse::<Traceparent>(), Err(NotATraceparent), "{text}");
        }
    }
}
