//! What a journal tells whoever scrapes it.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::Journal;

/// `outport_log_retained_bytes` and its cap, `outport_index_tombstones`, `outport_log_set_aside_total`, `outport_journal_failed` and
/// `outport_verify_index_*_total`, read when they are asked for.
#[derive(Debug)]
pub struct JournalCollector(pub Journal);

impl Collector for JournalCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let retained = i64::try_from(self.0.log().retained_bytes()).unwrap_or(i64::MAX);
        let help = "Log kept on disk";
        let family =
            encoder.encode_descriptor("log_retained", help, Some(&Unit::Bytes), MetricType::Gauge)?;
        ConstGauge::new(retained).encode(family)?;
        let help = "Most log that is kept; older segments go as soon as a snapshot file leads past them";
        let family =
            encoder.encode_descriptor("log_retain_limit", help, Some(&Unit::Bytes), MetricType::Gauge)?;
        ConstGauge::new(self.0.retention().bytes as f64).encode(family)?;
        let tombstones = i64::try_from(self.0.index().tombstones()).unwrap_or(i64::MAX);
        let help = "Deletions that are remembered, so that nothing older brings back what they deleted";
        let family = encoder.encode_descriptor("index_tombstones", help, None, MetricType::Gauge)?;
        ConstGauge::new(tombstones).encode(family)?;
        let help = "Damaged logs that were set aside and are fetched again, since the start";
        let family = encoder.encode_descriptor("log_set_aside", help, None, MetricType::Counter)?;
        ConstCounter::new(u64::from(self.0.alarm().is_some())).encode(family)?;
        let help = "1 once nothing more is taken in, because log or index failed: a new start helps";
        let family = encoder.encode_descriptor("journal_failed", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::from(self.0.failed().is_some())).encode(family)?;
        let verified = self.0.verified();
        for (name, help, count) in [
            ("verify_index_walks", "Walks over all rows of the index that came to their end", verified.walks),
            ("verify_index_rows", "Rows met by walks over the index", verified.rows),
            (
                "verify_index_mismatches",
                "Walks whose rows were not those that events led to",
                verified.mismatches,
            ),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(count).encode(family)?;
        }
        Ok(())
    }
}
