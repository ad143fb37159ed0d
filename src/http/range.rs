//! `Range`, `If-Range` and `Content-Range`: which bytes of a blob a client wants or sends.
//!
//! Source: RFC 9110 section 14; OCI distribution specification, "Pushing a blob in chunks".

use std::ops::Range;

use crate::registry::ContentRange;

/// Ranges of one request: partial pulls ask for many small ones at once.
const RANGES_MAX: usize = 1024;

/// What part of a blob to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// All of it: no range was asked for, or one that may be ignored.
    Whole,
    /// One range.
    One(Range<u64>),
    /// Several, in the order asked for.
    Several(Vec<Range<u64>>),
    /// Nothing asked for lies within the blob: 416.
    Unsatisfiable,
}

/// Reads a `Range` header for a blob of `size` bytes. What is not a byte range is ignored, as RFC
/// 9110 asks; a range that ends before it begins is answered like one behind the end. A last byte
/// behind the end is taken for the end. So many ranges that together they would be more than the
/// blob are answered with the blob.
pub(super) fn select(header: &str, size: u64) -> Selection {
    let Some(set) = header.trim().strip_prefix("bytes=") else {
        return Selection::Whole;
    };
    let mut ranges = Vec::new();
    let mut bytes = 0_u64;
    for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        match parse_spec(spec, size) {
            Spec::Satisfiable(range) => {
                bytes = bytes.saturating_add(range.end - range.start);
                ranges.push(range);
            }
            Spec::Outside => {}
            Spec::Backward => return Selection::Unsatisfiable,
            Spec::NotOne => return Selection::Whole,
        }
        if ranges.len() > RANGES_MAX {
            return Selection::Whole;
        }
    }
    match ranges.len() {
        0 => Selection::Unsatisfiable,
        1 => Selection::One(ranges.swap_remove(0)),
        _ if bytes > size => Selection::Whole,
        _ => Selection::Several(ranges),
    }
}

enum Spec {
    Satisfiable(Range<u64>),
    Outside,
    Backward,
    NotOne,
}

fn parse_spec(spec: &str, size: u64) -> Spec {
    let Some((first, last)) = spec.split_once('-') else {
        return Spec::NotOne;
    };
    match (decimal(first), decimal(last), first.is_empty(), last.is_empty()) {
        (Some(first), Some(last), ..) if first > last => Spec::Backward,
        (Some(first), Some(_), ..) | (Some(first), None, _, true) if first >= size => Spec::Outside,
        (Some(first), Some(last), ..) => Spec::Satisfiable(first..last.saturating_add(1).min(size)),
        (Some(first), None, _, true) => Spec::Satisfiable(first..size),
        (None, Some(0), true, _) => Spec::Outside,
        (None, Some(_), true, _) if size == 0 => Spec::Outside,
        (None, Some(suffix), true, _) => Spec::Satisfiable(size.saturating_sub(suffix)..size),
        _ => Spec::NotOne,
    }
}

/// Digits alone; numbers too large for any blob count as the largest.
fn decimal(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// Reads the `Content-Range` of a chunk: `first-last`, or the same as RFC 9110 spells it,
/// `bytes first-last/size`. `None` when it is neither.
pub(super) fn parse_content_range(header: &str) -> Option<ContentRange> {
    let header = header.trim();
    let range = header.strip_prefix("bytes ").unwrap_or(header);
    let range = range.split_once('/').map_or(range, |(range, _)| range);
    let (first, last) = range.split_once('-')?;
    let (first, last) = (decimal(first)?, decimal(last)?);
    (first <= last && last < u64::MAX).then_some(ContentRange { first, last })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_clients_ask_for() {
        for (header, selection) in [
            ("bytes=500-1499", Selection::One(500..1500)),
            ("bytes=500-", Selection::One(500..2048)),
            ("bytes=-500", Selection::One(1548..2048)),
            ("bytes=2000-5000", Selection::One(2000..2048)),
            ("bytes=0-2048", Selection::One(0..2048)),
            ("bytes=-5000", Selection::One(0..2048)),
            ("bytes=0-0", Selection::One(0..1)),
            ("bytes=0-99999999999999999999999", Selection::One(0..2048)),
            ("bytes=0-9, 20-29", Selection::Several(vec![0..10, 20..30])),
            ("bytes=0-9,,5000-", Selection::One(0..10)),
            ("bytes=-1,0-0", Selection::Several(vec![2047..2048, 0..1])),
            ("bytes=500-0", Selection::Unsatisfiable),
            ("bytes=5000-10000", Selection::Unsatisfiable),
            ("bytes=2048-", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=", Selection::Unsatisfiable),
            ("bytes=0-,0-", Selection::Whole),
            ("bytes=a-b", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("bytes=1", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("items=0-1", Selection::Whole),
        ] {
            assert_eq!(select(header, 2048), selection, "{header}");
        }
        assert_eq!(select("bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(select("bytes=-1", 0), Selection::Unsatisfiable);
        let many = format!("bytes={}", "0-0,".repeat(RANGES_MAX + 1));
        assert_eq!(select(&many, u64::MAX), Selection::Whole);
    }

    #[test]
    fn chunks() {
        let range = Some(ContentRange { first: 0, last: 1023 });
        for header in ["0-1023", "bytes 0-1023/*", "bytes 0-1023/5000", " 0-1023 "] {
            assert_eq!(parse_content_range(header), range, "{header}");
        }
        for bad in ["", "0", "-1", "0-", "9-1", "a-b", "bytes=0-1", "0x1-2", "0-18446744073709551615"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_selection_lies_within_the_blob(header in "bytes=[0-9,\\- ]{0,40}", size in 0_u64..100) {
            let ranges = match select(&header, size) {
                Selection::Whole | Selection::Unsatisfiable => Vec::new(),
                Selection::One(range) => vec![range],
                Selection::Several(ranges) => ranges,
            };
            for range in ranges {
                prop_assert!(range.start < range.end && range.end <= size, "{range:?}");
            }
        }
    }
}
