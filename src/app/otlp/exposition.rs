//! What is measured, from OpenMetrics' text to OTLP's messages: there is one list of metrics, whoever reads it.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum, metric,
        number_data_point,
    },
};

/// The metrics of an exposition that was made at `now` by a process that began at `started`, in nanoseconds since
/// the Unix epoch.
pub(super) fn metrics(text: &str, started: u64, now: u64) -> Vec<Metric> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => {
                let mut words = comment.splitn(3, ' ');
                let (Some(about), Some(name), Some(what)) = (words.next(), words.next(), words.next()) else {
                    continue;
                };
                if families.last().is_none_or(|family| family.name != name) {
                    families.push(Family { name, ..Family::default() });
                }
                let Some(family) = families.last_mut() else { continue };
                match about {
                    "HELP" => family.help = what,
                    "TYPE" => family.kind = what,
                    "UNIT" => family.unit = what,
                    _ => {}
                }
            }
            None => {
                if let (Some(family), Some(sample)) = (families.last_mut(), Sample::parse(line)) {
                    family.samples.push(sample);
                }
            }
        }
    }
    families.into_iter().filter_map(|family| family.metric(started, now)).collect()
}

#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    unit: &'a str,
    samples: Vec<Sample<'a>>,
}

struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, String)>,
    value: f64,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, mut rest) = line.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (key, after) = rest.split_once("=\"")?;
                let (value, after) = unquoted(after)?;
                labels.push((key, value));
                rest = after.strip_prefix(',').unwrap_or(after);
            }
            rest = &rest[1..];
        }
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    fn attributes(&self) -> Vec<KeyValue> {
        let labels = self.labels.iter().filter(|(key, _)| *key != "le");
        labels.map(|(key, value)| attribute(key, value.clone())).collect()
    }
}

/// What stands before the closing quote, and what behind it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

impl Family<'_> {
    fn metric(&self, started: u64, now: u64) -> Option<Metric> {
        let point = |sample: &Sample<'_>| NumberDataPoint {
            attributes: sample.attributes(),
            start_time_unix_nano: started,
            time_unix_nano: now,
            value: Some(number_data_point::Value::AsDouble(sample.value)),
            ..NumberDataPoint::default()
        };
        let cumulative = i32::from(AggregationTemporality::Cumulative);
        let data = match self.kind {
            "counter" => {
                let data_points = self.samples.iter().map(point).collect();
                metric::Data::Sum(Sum {
                    data_points,
                    aggregation_temporality: cumulative,
                    is_monotonic: true,
                })
            }
            "histogram" => metric::Data::Histogram(Histogram {
                data_points: self.histograms(started, now),
                aggregation_temporality: cumulative,
            }),
            "gauge" | "info" | "unknown" => {
                metric::Data::Gauge(Gauge { data_points: self.samples.iter().map(point).collect() })
            }
            _ => return None,
        };
        let unit = match self.unit {
            "seconds" => "s",
            "bytes" => "By",
            other => other,
        };
        Some(Metric {
            name: self.name.to_owned(),
            description: self.help.to_owned(),
            unit: unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        })
    }

    fn histograms(&self, started: u64, now: u64) -> Vec<HistogramDataPoint> {
        // By their labels but `le`, which makes one of several samples.
        let mut points = BTreeMap::<Vec<(&str, &str)>, HistogramDataPoint>::new();
        for sample in &self.samples {
            let labels = sample.labels.iter().filter(|(key, _)| *key != "le");
            let labels = labels.map(|(key, value)| (*key, value.as_str())).collect();
            let point = points.entry(labels).or_insert_with(|| HistogramDataPoint {
                attributes: sample.attributes(),
                start_time_unix_nano: started,
                time_unix_nano: now,
                ..HistogramDataPoint::default()
            });
            // Counts are whole numbers and fit.
            let count = sample.value as u64;
            match sample.name.strip_prefix(self.name) {
                Some("_sum") => point.sum = Some(sample.value),
                Some("_count") => point.count = count,
                Some("_bucket") => {
                    let bound = sample.labels.iter().find(|(key, _)| *key == "le");
                    let bound = bound.and_then(|(_, bound)| bound.parse::<f64>().ok());
                    point.explicit_bounds.extend(bound.filter(|bound| bound.is_finite()));
                    // Those before it are in it, here and not there.
                    let before: u64 = point.bucket_counts.iter().sum();
                    point.bucket_counts.push(count.saturating_sub(before));
                }
                _ => {}
            }
        }
        points.into_values().collect()
    }
}

/// An attribute with a text for its value.
pub(super) fn attribute(key: &str, value: String) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value)) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
        registry::Unit,
    };

    use super::*;
    use crate::telemetry::{Exposition, Metrics};

    #[test]
    fn what_scrapers_see_is_what_collectors_get() {
        let registry = Metrics::default();
        registry.register(|registry| {
            let pulls = Family::<[(&str, &str); 1], Counter>::default();
            pulls.get_or_create(&[("result", "a \"b\"\\\n{},=")]).inc_by(3);
            registry.register("pulls", "How many", pulls);
            let lag = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
            lag.set(f64::NAN);
            registry.register_with_unit("lag", "How late", Unit::Seconds, lag);
            let took = Histogram::new([0.1, 1.0]);
            [0.05, 0.5, 0.6, 7.0].into_iter().for_each(|seconds| took.observe(seconds));
            registry.register_with_unit("took", "How long", Unit::Seconds, took);
        });
        let metrics = metrics(&registry.encode(Exposition::OpenMetrics), 1, 2);
        let find = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();

        let pulls = find("outport_pulls");
        let Some(metric::Data::Sum(sum)) = &pulls.data else { panic!("{pulls:?}") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == AggregationTemporality::Cumulative as i32);
        let point = &sum.data_points[0];
        assert_eq!(point.value, Some(number_data_point::Value::AsDouble(3.0)));
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (1, 2));
        assert_eq!(point.attributes, [attribute("result", "a \"b\"\\\n{},=".to_owned())]);

        let lag = find("outport_lag_seconds");
        assert_eq!((lag.unit.as_str(), lag.description.as_str()), ("s", "How late."));
        let Some(metric::Data::Gauge(gauge)) = &lag.data else { panic!("{lag:?}") };
        let Some(number_data_point::Value::AsDouble(value)) = gauge.data_points[0].value else { panic!() };
        assert!(value.is_nan(), "unknown there as well");

        let took = find("outport_took_seconds");
        let Some(metric::Data::Histogram(histogram)) = &took.data else { panic!("{took:?}") };
        let point = &histogram.data_points[0];
        assert_eq!(point.explicit_bounds, [0.1, 1.0]);
        assert_eq!(point.bucket_counts, [1, 2, 1]);
        assert_eq!((point.count, point.sum), (4, Some(8.15)));

        let build = find("outport_build");
        let Some(metric::Data::Gauge(gauge)) = &build.data else { panic!("{build:?}") };
        assert_eq!(gauge.data_points[0].attributes[0].key, "version");
        assert_eq!(metrics.len(), 4);
    }
}
