//! What is measured, as text for whoever scrapes it.

use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::{metrics::info::Info, registry::Registry};

/// The metrics of one node. Cloning gives another handle. Names get the prefix `outport_`.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("outport");
        registry.register("build", "What runs here", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        Self(Arc::new(Mutex::new(registry)))
    }
}

impl Metrics {
    /// Lets a part register its own metrics.
    pub fn register<T>(&self, part: impl FnOnce(&mut Registry) -> T) -> T {
        part(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything registered.
    pub fn encode(&self, exposition: Exposition) -> String {
        let mut text = String::new();
        {
            let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Writing to a string cannot fail.
            let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        }
        match exposition {
            Exposition::OpenMetrics => text,
            Exposition::Prometheus => prometheus(&text),
        }
    }
}

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus, version 0.0.4: what everything that scrapes understands.
    Prometheus,
    /// OpenMetrics, version 1.0.0.
    OpenMetrics,
}

impl Exposition {
    /// What a scraper gets that sends this `Accept`.
    pub fn accepted(accept: Option<&str>) -> Self {
        let ranges = accept.unwrap_or_default().split(',');
        let mut names = ranges.map(|range| range.split(';').next().unwrap_or_default().trim());
        match names.any(|name| name.eq_ignore_ascii_case("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// OpenMetrics names the family of a counter without `_total`, which Prometheus takes for another metric;
/// it has types and comments that Prometheus has not.
fn prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let mut help = None;
    for line in openmetrics.lines() {
        let Some(comment) = line.strip_prefix("# ") else {
            text.extend([line, "\n"]);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("HELP"), Some(_), what) => help = what,
            (Some("TYPE"), Some(family), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                if let Some(help) = help.take() {
                    text.extend(["# HELP ", family, suffix, " ", help, "\n"]);
                }
                text.extend(["# TYPE ", family, suffix, " ", kind, "\n"]);
            }
            _ => {}
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        metrics::{counter::Counter, gauge::Gauge},
        registry::Unit,
    };

    use super::*;

    #[test]
    fn each_scraper_gets_the_format_that_it_understands() {
        let metrics = Metrics::default();
        metrics.register(|registry| {
            registry.register("pulls", "How many", Counter::<u64>::default());
            let lag = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
            lag.set(f64::NAN);
            registry.register_with_unit("lag", "How late", Unit::Seconds, lag);
        });
        let version = env!("CARGO_PKG_VERSION");
        let build = format!(
            "# HELP outport_build_info What runs here.\n# TYPE outport_build_info gauge\n\
             outport_build_info{{version=\"{version}\"}} 1\n"
        );
        let text = metrics.encode(Exposition::accepted(Some("text/plain;version=0.0.4")));
        assert_eq!(
            text.strip_prefix(&build).unwrap(),
            "# HELP outport_pulls_total How many.\n# TYPE outport_pulls_total counter\noutport_pulls_total 0\n\
             # HELP outport_lag_seconds How late.\n# TYPE outport_lag_seconds gauge\noutport_lag_seconds NaN\n\
             "
        );
        let accept =
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        let text = metrics.encode(Exposition::accepted(Some(accept)));
        assert!(text.contains("# TYPE outport_pulls counter\n") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(Exposition::accepted(None), Exposition::Prometheus);
    }
}
