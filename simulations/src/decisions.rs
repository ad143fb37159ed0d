//! Listens to what the real code tells its log: which read rule led to which decision, and, when
//! a world is looked at closely, everything.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::time::Instant;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// How often each rule led to each decision.
pub(crate) type Decisions = Arc<Mutex<BTreeMap<(String, String), u64>>>;

/// Counts decisions; prints the rest if told to.
pub(crate) struct Listener {
    decisions: Decisions,
    begun: Instant,
    prints: bool,
}

impl Listener {
    pub(crate) fn new(decisions: Decisions, begun: Instant, prints: bool) -> Self {
        Self { decisions, begun, prints }
    }
}

fn is_decision(metadata: &Metadata<'_>) -> bool {
    *metadata.level() == Level::TRACE && metadata.target() == "outport::registry::pull::rules"
}

fn is_ours(target: &str) -> bool {
    target.starts_with("outport") || target.starts_with("simulations")
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        is_decision(metadata)
            || self.prints && is_ours(metadata.target()) && *metadata.level() <= Level::TRACE
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if is_decision(event.metadata()) {
            let decision = fields.decision.split([' ', '{']).next().unwrap_or_default().to_owned();
            let mut decisions = self.decisions.lock().unwrap_or_else(PoisonError::into_inner);
            *decisions.entry((fields.rule.clone(), decision)).or_default() += 1;
        }
        if self.prints {
            let line = format!(
                "{:12.6} {} {}{}\n",
                self.begun.elapsed().as_secs_f64(),
                event.metadata().target(),
                fields.message,
                fields.rest
            );
            // Nothing of the world depends on whether it can be read.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    rule: String,
    decision: String,
    rest: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "rule" {
            value.clone_into(&mut self.rule);
        }
        let _ = write!(self.rest, " {}={value}", field.name());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            "decision" => {
                let _ = write!(self.rest, " decision={text}");
                self.decision = text;
            }
            name => _ = write!(self.rest, " {name}={text}"),
        }
    }
}
