//! What a journal tells whoever scrapes it.

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::Journal;

/// `outport_index_tombstones` and `outport_log_set_aside_total`, read when they are asked for.
#[derive(Debug)]
pub struct JournalCollector(pub Journal);

impl Collector for JournalCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let tombstones = i64::try_from(self.0.index().tombstones()).unwrap_or(i64::MAX);
        let help = "Deletions that are remembered, so that nothing older brings back what they deleted";
        let family = encoder.encode_descriptor("index_tombstones", help, None, MetricType::Gauge)?;
        ConstGauge::new(tombstones).encode(family)?;
        let help = "Damaged logs that were set aside and are fetched again, since the start";
        let family = encoder.encode_descriptor("log_set_aside", help, None, MetricType::Counter)?;
        ConstCounter::new(u64::from(self.0.alarm().is_some())).encode(family)
    }
}
