//! The process's log: one line an event, with the trace that it belongs to, and without floods.

use std::{
    cell::Cell,
    collections::HashMap,
    fmt::Write as _,
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde::Deserialize;
use tracing::{Event, Level, Metadata, Subscriber, callsite::Identifier};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::FilterExt as _,
    fmt::{
        self, FmtContext, FormatEvent, FormatFields,
        format::{JsonFields, Writer},
    },
    layer::{Context, Filter, SubscriberExt as _},
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use super::trace;

/// Lines of one place in the program that may come at once.
const BURST: f64 = 100.0;
/// And how many of them a second in the long run.
const PER_SECOND: f64 = 10.0;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Sends the process's log to standard error. `RUST_LOG` wins over `filter`.
///
/// # Errors
/// When the filter does not parse, or a log is already set up.
pub fn init_log(format: LogFormat, filter: &str) -> Result<(), LogError> {
    let (source, filter) = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => ("RUST_LOG", text),
        _ => ("telemetry.log_filter", filter.to_owned()),
    };
    let filter =
        EnvFilter::try_new(&filter).map_err(|error| LogError(format!("{source} = {filter:?}: {error}")))?;
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match format {
        LogFormat::Human => {
            let lines = fmt::format().with_target(false).with_ansi(is_colored(&std::io::stderr()));
            layer.event_format(Lines { inner: lines, format }).boxed()
        }
        LogFormat::Json => {
            let lines = fmt::format().json().flatten_event(true);
            layer.fmt_fields(JsonFields::new()).event_format(Lines { inner: lines, format }).boxed()
        }
    };
    let layer = layer.with_filter(filter.and(Repeats::default()));
    tracing_subscriber::registry().with(layer).try_init().map_err(|error| LogError(error.to_string()))
}

/// Whether text on `stream` may be in colour: on a terminal, unless `NO_COLOR` says otherwise
/// (<https://no-color.org>).
pub fn is_colored(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Why there is no log.
#[derive(Clone, Debug, thiserror::Error)]
#[error("set up the log: {0}")]
pub struct LogError(String);

thread_local! {
    /// Lines that were left out before the one that is being written.
    static LEFT_OUT: Cell<u64> = const { Cell::new(0) };
}

/// Leaves out what one place in the program says too often. Whoever asks for more than `info` gets all
/// of it.
#[derive(Default)]
struct Repeats(Mutex<HashMap<Identifier, Place>>);

/// A bucket of lines.
struct Place {
    left: f64,
    at: Instant,
    left_out: u64,
}

impl Repeats {
    /// Whether a line of `place` is written; then how many were not since the last.
    fn admits(&self, place: Identifier, now: Instant) -> Option<u64> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(place).or_insert(Place { left: BURST, at: now, left_out: 0 });
        let passed = now.saturating_duration_since(place.at).as_secs_f64();
        place.left = (place.left + passed * PER_SECOND).min(BURST);
        place.at = now;
        if place.left < 1.0 {
            place.left_out += 1;
            return None;
        }
        place.left -= 1.0;
        Some(std::mem::take(&mut place.left_out))
    }
}

impl<S> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let admitted = self.admits(metadata.callsite(), Instant::now());
        LEFT_OUT.set(admitted.unwrap_or_default());
        admitted.is_some()
    }
}

/// Lines as `inner` writes them, with what is known beside the event.
struct Lines<F> {
    inner: F,
    format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let (trace, left_out) = (trace::current(), LEFT_OUT.take());
        if trace.is_none() && left_out == 0 {
            return self.inner.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let mut beside = String::new();
        let trace = trace.map(|parent| parent.trace().to_string());
        match self.format {
            LogFormat::Human => {
                if let Some(trace) = trace {
                    write!(beside, " trace_id={trace}")?;
                }
                if left_out > 0 {
                    write!(beside, " left_out={left_out}")?;
                }
                writeln!(writer, "{}{beside}", line.trim_end_matches('\n'))
            }
            LogFormat::Json => {
                if let Some(trace) = trace {
                    write!(beside, "\"trace_id\":\"{trace}\",")?;
                }
                if left_out > 0 {
                    write!(beside, "\"left_out\":{left_out},")?;
                }
                match line.strip_prefix('{') {
                    Some(rest) => write!(writer, "{{{beside}{rest}"),
                    None => writer.write_str(&line),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;
    use crate::telemetry::trace::{Asked, Tracing};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(work: impl FnOnce(), format: LogFormat) -> Vec<String> {
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer().with_writer(move || writer.clone());
        let layer = match format {
            LogFormat::Human => {
                layer.event_format(Lines { inner: fmt::format().with_ansi(false), format }).boxed()
            }
            LogFormat::Json => layer
                .fmt_fields(JsonFields::new())
                .event_format(Lines { inner: fmt::format().json().flatten_event(true), format })
                .boxed(),
        };
        let layer = layer.with_filter(EnvFilter::new("info").and(Repeats::default()));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), work);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn within_a_request(work: impl FnOnce()) -> String {
        let span = Tracing::default().asked("GET", Asked::ByClient, None);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(span.within(async { work() }));
        span.traceparent().unwrap().trace().to_string()
    }

    #[test]
    fn a_line_names_the_trace_that_it_belongs_to() {
        let mut trace = String::new();
        let human = lines(
            || trace = within_a_request(|| tracing::info!(site = "mumbai", "fill finished")),
            LogFormat::Human,
        );
        assert!(human[0].ends_with(&format!("fill finished site=\"mumbai\" trace_id={trace}")), "{human:?}");
        let json =
            lines(|| trace = within_a_request(|| tracing::info!(site = "mumbai", "fill")), LogFormat::Json);
        let line: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        assert_eq!((&line["trace_id"], &line["site"]), (&trace.into(), &"mumbai".into()));
        let outside = lines(|| tracing::info!("started"), LogFormat::Json);
        assert!(!outside[0].contains("trace_id"), "{outside:?}");
    }

    #[test]
    fn what_repeats_is_left_out_and_counted_and_the_rest_is_not() {
        let written = lines(
            || {
                for number in 0..1000 {
                    tracing::warn!(number, "the disk is full");
                    tracing::debug!("never");
                }
                tracing::info!("something else");
            },
            LogFormat::Human,
        );
        let full = written.iter().filter(|line| line.contains("the disk is full")).count();
        assert!((100..200).contains(&full), "{full}");
        assert!(written.last().unwrap().contains("something else"));
    }

    #[test]
    fn the_next_line_says_how_many_were_left_out() {
        let written = lines(|| tracing::info!("here"), LogFormat::Human);
        assert!(!written[0].contains("left_out"));
        let repeats = Repeats::default();
        let place = tracing::callsite!(name: "place", kind: tracing::metadata::Kind::EVENT, fields: x);
        let place = tracing::callsite::Identifier(place);
        let begun = Instant::now();
        let admitted = (0..150).filter(|_| repeats.admits(place.clone(), begun).is_some()).count();
        assert_eq!(admitted, 100);
        let later = begun + std::time::Duration::from_secs(1);
        assert_eq!(repeats.admits(place, later), Some(50));
    }
}
