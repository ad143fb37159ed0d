//! The audit log: a line for every pull, push, deletion, redirect, denial and act of an administrator.
//!
//! Whoever answers a request makes a [`Record`] and hands it in ([`Audit::begin`], or [`Audit::tell`] when all is known),
//! which writes its line; [`Telling::end`] puts that where a thread of its own takes it. Nothing waits for that: when it does not keep up, records are dropped and counted. What is found out
//! deep below about the request under way is noted there ([`note`]) and read at the top ([`Audit::noting`]).
//!
//! The shape of a line is documented in `deploy/audit.schema.json`.

mod file;
mod record;
mod writer;

use std::{
    cell::RefCell,
    future::Future,
    pin::Pin,
    sync::{Arc, mpsc::sync_channel},
    time::{Duration, SystemTime},
};

use outport_proto::Digest;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

pub use file::{FileOptions, RotatingFile, Stdout};
pub use record::{Ended, Ending, Kind, Named, Record};
use tokio::task::futures::TaskLocalFuture;
pub use writer::{Line, Sink};
use writer::{Queue, Writer};

/// The audit log of one node. Cloning gives another handle. By default nothing is kept.
#[derive(Clone, Debug, Default)]
pub struct Audit(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    site: Arc<str>,
    queue: Arc<Queue>,
    metrics: AuditMetrics,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.end();
    }
}

/// What becomes of records.
#[derive(Clone, Debug)]
pub struct AuditMetrics {
    told: [Counter; Kind::ALL.len()],
    dropped: Counter,
}

impl AuditMetrics {
    /// Registers `audit_records_total{kind}` and `audit_dropped_total`; `registry` puts its prefix before that.
    pub fn new(registry: &mut Registry) -> Self {
        let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register("audit_records", "Records of the audit log, by kind", family.clone());
        let dropped = Counter::default();
        let help =
            "Records of the audit log that were not written, as it did not keep up or could not be written";
        registry.register("audit_dropped", help, dropped.clone());
        let told = Kind::ALL.map(|kind| family.get_or_create_owned(&[("kind", kind.as_str())]));
        Self { told, dropped }
    }
}

/// What is found out about a request while it is answered.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Who asks; empty for nobody in particular.
    pub subject: Option<Arc<str>>,
    /// How a pull was answered.
    pub result: Option<&'static str>,
    /// By which rule.
    pub rule: Option<&'static str>,
    /// What was pulled.
    pub digest: Option<Digest>,
}

tokio::task_local! {
    /// `None` while nobody reads them.
    static NOTES: RefCell<Option<Notes>>;
}

/// What was noted meanwhile, once.
pub fn noted<F: Future>(noting: Pin<&mut Noting<F>>) -> Notes {
    noting.take_value().and_then(RefCell::into_inner).unwrap_or_default()
}

/// A future whose notes are kept.
pub type Noting<F> = TaskLocalFuture<RefCell<Option<Notes>>, F>;

/// Notes something about the request that is under way, if anybody reads that.
pub fn note(what: impl FnOnce(&mut Notes)) {
    // Nobody notes anything while something is noted.
    let _ = NOTES.try_with(|notes| notes.try_borrow_mut().map(|mut notes| notes.as_mut().map(what)));
}

impl Audit {
    /// Writes to `sinks` what happens at `site`.
    ///
    /// # Errors
    /// When there can be no thread for it.
    pub fn start(site: &str, sinks: Vec<Box<dyn Sink>>, metrics: AuditMetrics) -> std::io::Result<Self> {
        if sinks.is_empty() {
            return Ok(Self(None));
        }
        let queue = Arc::<Queue>::default();
        let (writer, waiting) = (Writer::new(sinks, metrics.dropped.clone()), Arc::clone(&queue));
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&waiting))?;
        Ok(Self(Some(Arc::new(Inner { site: site.into(), queue, metrics }))))
    }

    /// Whether anything is kept: what is costly to find out is found out only then.
    pub const fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// Does `work`; [`noted`] tells what it noted, if that is kept.
    pub fn noting<F: Future>(&self, work: F) -> Noting<F> {
        NOTES.scope(RefCell::new(self.is_kept().then(Notes::default)), work)
    }

    /// Begins the line of something that is still under way; `None` when nothing is kept.
    pub fn begin(&self, record: &Record<'_>) -> Option<Telling> {
        let inner = self.0.as_ref()?;
        let mut line = LINES.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(LINE_BYTES));
        record.begin(&inner.site, &mut line);
        Some(Telling { inner: Arc::clone(inner), line, time: record.time, kind: record.kind })
    }

    /// Has something written of which all is known.
    pub fn tell(&self, record: &Record<'_>) {
        if let Some(telling) = self.begin(record) {
            telling.end(None);
        }
    }

    /// Waits until all that was told is written, but no longer than `patience`. It blocks.
    pub fn flush(&self, patience: Duration) {
        let Some(inner) = self.0.as_deref() else { return };
        let (done, flushed) = sync_channel(1);
        inner.queue.flush(done);
        if flushed.recv_timeout(patience).is_err() {
            tracing::warn!("the last records of the audit log are not written");
        }
    }
}

/// Room for most lines.
const LINE_BYTES: usize = 512;
/// Lines whose room is kept for others, a thread.
const LINES_MAX: usize = 64;

thread_local! {
    /// Room for lines, empty.
    static LINES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// The line of something that is still under way.
#[derive(Debug)]
pub struct Telling {
    inner: Arc<Inner>,
    line: Vec<u8>,
    time: SystemTime,
    kind: Kind,
}

impl Telling {
    /// Has it written, unless too much waits already.
    pub fn end(mut self, ended: Option<Ended>) {
        record::end(&mut self.line, ended);
        let is_taken = self.inner.queue.push(&self.line, self.time, self.kind);
        let metrics = &self.inner.metrics;
        let count = if is_taken { &metrics.told[self.kind as usize] } else { &metrics.dropped };
        count.inc();
        self.line.clear();
        LINES.with_borrow_mut(|lines| {
            if lines.len() < LINES_MAX && self.line.capacity() <= 4 * LINE_BYTES {
                lines.push(self.line);
            }
        });
    }
}

#[cfg(test)]
mod tests;
