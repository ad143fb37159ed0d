//! A secondary's end of its log stream.

mod notice;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;

pub use self::notice::{Ended, Received, SubscriberNotice};
use super::{
    ACK_DELAY, ACK_INTERVAL_MAX, IDLE_MAX, Lag, PROBE_INTERVAL, WINDOW_BYTES, Word,
    ahead::{Ahead, signed_micros},
    freshness::Freshness,
};
use crate::{
    Digest, Offset, SiteName, Timestamp, Traceparent,
    codec::decode_event,
    frame::{
        Ack, BEHIND_MAX, Behind, DETAILS_MAX, FromPrimary, FromSecondary, HOPS_MAX, Heartbeat, Hello,
        LAG_UNKNOWN_MICROS, READINGS_SINCE, Reading, Resume, SiteDetail, SiteReport, TRACES_MAX, VERSIONS,
        Welcome,
    },
};

/// Who a subscriber is.
#[derive(Clone, Debug)]
pub struct SubscriberConfig {
    /// Its site, as its certificate names it.
    pub site: SiteName,
    /// Which node of the site.
    pub node: String,
    /// Its program version.
    pub program: String,
    /// The cluster it belongs to; `None` before its first session.
    pub cluster: Option<String>,
    /// The newest epoch it has heard of; 0 before its first session.
    pub epoch: u64,
}

/// How far a secondary is. An offset with `seq` 0 stands before the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Got it.
    pub received: Offset,
    /// Has it on disk.
    pub durable: Offset,
    /// The index shows it.
    pub applied: Offset,
    /// Every blob it needs is local.
    pub complete: Offset,
    /// Bytes of log up to `received`.
    pub log_bytes: u64,
}

/// Says `Hello`, takes in events in order and exactly once, acknowledges, and knows how fresh the
/// site is. It outlives its streams: after a cut it goes on where it was on the next one.
///
/// A driver, whenever anything happened: `handle_*`; then sends all that
/// [`Subscriber::poll_transmit`] gives; then acts on [`Subscriber::poll_notice`].
#[derive(Debug)]
pub struct Subscriber {
    config: SubscriberConfig,
    state: SubscriberState,
    /// `Welcome` came on this stream.
    welcomed: bool,
    /// The version it named.
    version: u16,
    progress: Progress,
    /// SHA-256 of the newest durable event, while that is known.
    have_digest: Option<Digest>,
    report: SiteReport,
    /// What is to be said of the sites behind this one.
    behind: BTreeMap<SiteName, Behind>,
    /// What people are to be told of this site and those behind it.
    details: BTreeMap<SiteName, SiteDetail>,
    fresh: Freshness,
    /// Against the upstream's time on this stream.
    ahead: Ahead,
    /// Of the heartbeat that comes next.
    reading: Option<Reading>,
    last_probe: Option<Duration>,
    last_heard: Duration,
    last_ack: Duration,
    ack_due: bool,
    /// When it is sent, once that was decided.
    ack_at: Option<Duration>,
    /// Bytes of events received since the last one.
    unacknowledged_bytes: usize,
    /// Of events that are yet to come.
    traces: BTreeMap<Offset, Traceparent>,
    hello_due: bool,
    notices: VecDeque<SubscriberNotice>,
}

/// Where a subscriber stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubscriberState {
    /// There is no stream.
    Disconnected,
    /// `Hello` awaits its answer.
    Greeting,
    /// Events follow.
    Streaming,
    /// A snapshot must be taken: see [`Subscriber::handle_snapshot_loaded`].
    Snapshot,
}

impl Subscriber {
    /// A subscriber that has no stream yet. `progress` is what the log and the index on disk say;
    /// `received` is ignored: it is what is durable.
    pub fn new(config: SubscriberConfig, progress: Progress) -> Self {
        Self {
            config,
            state: SubscriberState::Disconnected,
            welcomed: false,
            version: 0,
            progress: Progress { received: progress.durable, ..progress },
            have_digest: None,
            report: SiteReport::default(),
            behind: BTreeMap::new(),
            details: BTreeMap::new(),
            fresh: Freshness::new(progress.durable),
            ahead: Ahead::default(),
            reading: None,
            last_probe: None,
            last_heard: Duration::ZERO,
            last_ack: Duration::ZERO,
            ack_due: false,
            ack_at: None,
            unacknowledged_bytes: 0,
            traces: BTreeMap::new(),
            hello_due: false,
            notices: VecDeque::new(),
        }
    }

    /// Where it stands.
    pub const fn state(&self) -> SubscriberState {
        self.state
    }

    /// How far it is.
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// The cluster it belongs to, once known.
    pub fn cluster(&self) -> Option<&str> {
        self.config.cluster.as_deref()
    }

    /// The newest epoch it has heard of.
    pub fn epoch(&self) -> u64 {
        self.config.epoch.max(self.progress.durable.epoch)
    }

    /// Whether the primary's word is recent: connected, and a heartbeat younger than [`super::LIVE_MAX`].
    pub fn live(&self, now: Duration) -> bool {
        self.welcomed && self.fresh.live_until().is_some_and(|until| now < until)
    }

    /// The newest heartbeat, whatever its age.
    pub fn heartbeat(&self) -> Option<&Heartbeat> {
        self.fresh.heartbeat()
    }

    /// Age of the newest heartbeat.
    pub fn heartbeat_age(&self, now: Duration) -> Option<Duration> {
        self.fresh.heartbeat_age(now)
    }

    /// Newest event known to be durable at the primary.
    pub fn head(&self) -> Option<Offset> {
        self.fresh.heartbeat().map(|heartbeat| heartbeat.head)
    }

    /// Every change the primary acknowledged before this time is applied here.
    pub fn closed_time(&self) -> Option<Timestamp> {
        self.fresh.closed_time()
    }

    /// Every change the primary acknowledged before this time here is applied here, however long the word of it
    /// travelled and whoever sets a clock, as long as the driver's time is the real one. Microseconds of the driver's
    /// time, below zero for times before its beginning; `None` before the first heartbeat, and when an upstream
    /// that speaks a version before 3 sent the last one.
    pub fn as_of_micros(&self) -> Option<i64> {
        self.fresh.as_of_micros()
    }

    /// The primary's clock now, but for the time a heartbeat travels.
    pub fn primary_now(&self, now: Duration) -> Option<Timestamp> {
        self.fresh.primary_now(now)
    }

    /// How old an answer from here may be at most: [`Subscriber::as_of_micros`] is so long ago. It grows while
    /// there are no heartbeats.
    pub fn staleness(&self, now: Duration) -> Option<Duration> {
        let micros = signed_micros(now).saturating_sub(self.as_of_micros()?);
        Some(Duration::from_micros(u64::try_from(micros).unwrap_or_default()))
    }

    /// How far the site is behind, in primary time.
    pub fn lag(&self, now: Duration) -> Lag {
        if !self.live(now) {
            return Lag::default();
        }
        let Progress { received, applied, complete, .. } = self.progress;
        Lag {
            applied: self.fresh.lag(now, received, applied),
            complete: self.fresh.lag(now, received, complete),
        }
    }

    /// SHA-256 of the encoded form of the newest durable event, to be told before a stream opens;
    /// `None` when the log begins there.
    pub const fn handle_have(&mut self, digest: Option<Digest>) {
        self.have_digest = digest;
    }

    /// A stream to the primary is open. What was received before and is not durable yet is sent
    /// again and skipped: a driver that lost it must first say so ([`Subscriber::handle_lost`]).
    pub fn handle_connected(&mut self, now: Duration) {
        self.state = SubscriberState::Greeting;
        self.welcomed = false;
        self.last_heard = now;
        self.hello_due = true;
        self.ack_due = false;
        self.reading = None;
        self.last_probe = None;
        self.behind.clear();
        self.details.clear();
        self.traces.clear();
        self.ack_at = None;
        self.notices.retain(|notice| !matches!(notice, SubscriberNotice::Ended(_)));
    }

    /// The stream is gone.
    pub fn handle_disconnected(&mut self) {
        self.state = SubscriberState::Disconnected;
        self.welcomed = false;
    }

    /// What was received and is not durable got lost on its way to the disk: it is to be sent
    /// again and taken in again. `log_bytes` is the length of the log up to what is durable.
    pub fn handle_lost(&mut self, log_bytes: u64) {
        if self.progress.received != self.progress.durable {
            self.progress.received = self.progress.durable;
            self.progress.log_bytes = log_bytes;
            self.fresh.forget_events_after(self.progress.durable);
        }
    }

    /// A frame came.
    pub fn handle_frame(&mut self, now: Duration, frame: FromPrimary) {
        self.last_heard = now;
        match frame {
            _ if self.state == SubscriberState::Disconnected => {}
            FromPrimary::Refused(refusal) => self.end(Ended::Refused(refusal)),
            FromPrimary::Welcome(welcome) if self.state == SubscriberState::Greeting => self.greeted(welcome),
            _ if !self.welcomed => self.end(Ended::OutOfPlace("a frame before Welcome")),
            FromPrimary::Reading(reading) => self.read(now, reading),
            FromPrimary::Heartbeat(heartbeat) => self.heard(now, heartbeat),
            FromPrimary::Keys(keys) => self.notices.push_back(SubscriberNotice::Keys(keys)),
            FromPrimary::Append(events) if self.state == SubscriberState::Streaming => self.appended(events),
            FromPrimary::Traces(traces) => self.traced(traces),
            FromPrimary::Append(_) => self.end(Ended::OutOfPlace("Append")),
            FromPrimary::Welcome(_) => self.end(Ended::OutOfPlace("Welcome")),
        }
    }

    /// Bytes came that are not yet a frame: the peer is alive, only slow.
    pub const fn handle_activity(&mut self, now: Duration) {
        self.last_heard = now;
    }

    /// Events up to `offset` are on disk.
    pub fn handle_durable(&mut self, offset: Offset) {
        if offset > self.progress.durable {
            self.ack_due = true;
            self.progress.durable = offset;
            self.have_digest = None;
        }
    }

    /// The index shows events up to `offset`.
    pub fn handle_applied(&mut self, offset: Offset) {
        self.ack_due |= offset > self.progress.applied;
        self.progress.applied = self.progress.applied.max(offset);
        self.fresh.handle_applied(self.progress.applied);
        self.forget_passed_events();
    }

    /// Every blob needed up to `offset` is local.
    pub fn handle_complete(&mut self, offset: Offset) {
        self.ack_due |= offset > self.progress.complete;
        self.progress.complete = self.progress.complete.max(offset);
        self.forget_passed_events();
    }

    /// The events that were durable before the start and are not all applied and complete yet: those
    /// after `from`, in order and up to the last. Their ages count as lag, which is unknown without them.
    pub fn handle_replayed(&mut self, from: Offset, events: impl IntoIterator<Item = (Offset, Timestamp)>) {
        self.fresh.handle_replay_from(from);
        events.into_iter().for_each(|(offset, time)| self.fresh.handle_event(offset, time));
    }

    /// A snapshot taken `from` there is loaded and durable: `Hello` goes out again for what follows.
    /// Every blob needed up to `complete` is local.
    pub fn handle_snapshot_loaded(&mut self, from: Offset, complete: Offset) {
        self.progress.received = from;
        self.progress.durable = from;
        self.progress.applied = from;
        self.progress.complete = complete.min(from);
        self.fresh.begin_after(from);
        self.have_digest = None;
        self.fresh.handle_applied(from);
        if self.state == SubscriberState::Snapshot {
            self.state = SubscriberState::Greeting;
            self.hello_due = true;
        }
    }

    /// The site's numbers for the next acknowledgement. Its `log_bytes` and lags are filled in here.
    pub fn handle_report(&mut self, report: SiteReport) {
        self.report = report;
    }

    /// What changed about a site behind this one since the stream was opened. It is said again on the
    /// next stream only if it is told again.
    pub fn handle_behind(&mut self, behind: Behind) {
        self.behind.insert(behind.site.clone(), behind);
        self.ack_due = true;
    }

    /// What changed about this site, or one behind it, for people. An upstream that speaks version 1 is not
    /// told. It is said again on the next stream only if it is told again.
    pub fn handle_detail(&mut self, detail: SiteDetail) {
        if self.welcomed && self.version >= 2 {
            self.details.insert(detail.site.clone(), detail);
        }
    }

    /// Time has passed: see [`Subscriber::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Duration) {
        if self.state == SubscriberState::Disconnected {
            return;
        }
        if now >= self.last_heard + IDLE_MAX {
            self.end(Ended::Idle);
        } else if now >= self.last_ack + ACK_INTERVAL_MAX {
            self.ack_due = true;
            self.ack_at = Some(now);
        }
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self, now: Duration) -> Option<FromSecondary> {
        match self.state {
            SubscriberState::Disconnected => None,
            SubscriberState::Greeting => std::mem::take(&mut self.hello_due).then(|| self.hello(now)),
            SubscriberState::Streaming | SubscriberState::Snapshot => {
                let is_time = self.ack_due && self.is_time_to_ack(now);
                if is_time {
                    Some(self.acknowledge(now))
                } else {
                    self.probe(now).or_else(|| self.next_details())
                }
            }
        }
    }

    /// When to call [`Subscriber::handle_timeout`] and [`Subscriber::poll_transmit`] at the
    /// latest, and when [`Subscriber::live`] may change by itself after `now`.
    pub fn poll_timeout(&self, now: Duration) -> Option<Duration> {
        let idle = self.last_heard + IDLE_MAX;
        match self.state {
            SubscriberState::Disconnected => None,
            SubscriberState::Greeting => Some(idle),
            SubscriberState::Streaming | SubscriberState::Snapshot => {
                let live_until = self.fresh.live_until().filter(|until| *until > now).unwrap_or(idle);
                let ack_at = self.ack_at.unwrap_or(idle).min(self.last_ack + ACK_INTERVAL_MAX);
                Some(idle.min(live_until).min(ack_at))
            }
        }
    }

    /// The next thing the driver should know about.
    pub fn poll_notice(&mut self) -> Option<SubscriberNotice> {
        self.notices.pop_front()
    }

    fn hello(&mut self, now: Duration) -> FromSecondary {
        // The one after a snapshot is not the first of its stream.
        if !self.welcomed {
            self.ahead.begin(now);
        }
        let have = self.progress.durable;
        FromSecondary::Hello(Hello {
            versions: VERSIONS.to_vec(),
            site: self.config.site.clone(),
            node: self.config.node.clone(),
            program: self.config.program.clone(),
            have: (have.seq > 0).then_some(have),
            have_digest: self.have_digest,
            epoch: self.epoch(),
            cluster: self.config.cluster.clone(),
        })
    }

    /// What is received is soon durable, then applied, then complete: one acknowledgement tells of all
    /// of it, unless the primary may be about to wait for it.
    fn is_time_to_ack(&mut self, now: Duration) -> bool {
        let at = *self.ack_at.get_or_insert(now + ACK_DELAY);
        now >= at || self.unacknowledged_bytes >= WINDOW_BYTES / 8
    }

    fn acknowledge(&mut self, now: Duration) -> FromSecondary {
        self.last_ack = now;
        self.ack_due = false;
        self.ack_at = None;
        self.unacknowledged_bytes = 0;
        let Progress { received, durable, applied, complete, log_bytes } = self.progress;
        let lag = self.lag(now);
        let micros = |lag: Option<Duration>| {
            lag.and_then(|lag| u64::try_from(lag.as_micros()).ok()).unwrap_or(LAG_UNKNOWN_MICROS)
        };
        let report = SiteReport {
            log_bytes,
            lag_applied_micros: micros(lag.applied),
            lag_complete_micros: micros(lag.complete),
            ..self.report.clone()
        };
        let mut behind = Vec::new();
        while behind.len() < BEHIND_MAX
            && let Some((_, next)) = self.behind.pop_first()
        {
            behind.push(next);
        }
        self.ack_due = !self.behind.is_empty();
        self.ack_at = self.ack_due.then_some(now);
        FromSecondary::Ack(Ack { received, durable, applied, complete, report, behind })
    }

    /// They go with what else is sent, and at least as often as there is an acknowledgement.
    fn probe(&mut self, now: Duration) -> Option<FromSecondary> {
        let is_due = self.last_probe.is_none_or(|last| now >= last + PROBE_INTERVAL);
        if !is_due || self.version < READINGS_SINCE {
            return None;
        }
        self.last_probe = Some(now);
        Some(FromSecondary::Probe(u64::try_from(now.as_micros()).unwrap_or_default()))
    }

    fn next_details(&mut self) -> Option<FromSecondary> {
        let next = std::iter::from_fn(|| self.details.pop_first()).map(|(_, detail)| detail);
        let details: Vec<_> = next.take(DETAILS_MAX).collect();
        (!details.is_empty()).then_some(FromSecondary::Details(details))
    }

    fn greeted(&mut self, welcome: Box<Welcome>) {
        if !VERSIONS.contains(&welcome.version) {
            return self.end(Ended::Version(welcome.version));
        }
        if self.config.cluster.as_ref().is_some_and(|cluster| *cluster != welcome.cluster) {
            return self.end(Ended::ForeignCluster(welcome.cluster));
        }
        if welcome.path.contains(&self.config.site) || welcome.path.len() >= HOPS_MAX {
            return self.end(Ended::Ring { path: welcome.path });
        }
        let (head, received) = (welcome.head, self.progress.received);
        if head.epoch < self.epoch() || head < received {
            return self.end(Ended::Fork { have: received, epoch: self.epoch(), head });
        }
        match welcome.resume {
            Resume::Snapshot | Resume::Rewind { .. } => {
                self.state = SubscriberState::Snapshot;
                if received.epoch != head.epoch {
                    // It tells of a history that may have ended since.
                    self.fresh.forget_closed_time();
                }
            }
            Resume::Tail => {
                if received.seq == 0 {
                    self.begin_at(welcome.floor);
                }
                self.state = SubscriberState::Streaming;
            }
        }
        self.welcomed = true;
        self.version = welcome.version;
        self.config.epoch = head.epoch;
        self.config.cluster = Some(welcome.cluster.clone());
        self.ack_due = true;
        self.notices.push_back(SubscriberNotice::Welcome(welcome));
    }

    /// The whole log follows: its floor is where this site stands in it.
    fn begin_at(&mut self, floor: Offset) {
        self.progress = Progress {
            received: floor,
            durable: floor,
            applied: floor,
            complete: floor,
            log_bytes: self.progress.log_bytes,
        };
        self.fresh.begin_after(floor);
    }

    /// What was said here and came there at a time tells what time it is there.
    fn read(&mut self, now: Duration, reading: Reading) {
        let echo = reading.echo.map(|echo| (Duration::from_micros(echo.probe_micros), echo.came_at_micros));
        if let Some((left, came_at)) = echo.filter(|(left, _)| *left <= now) {
            self.ahead.came(left, came_at);
        }
        self.reading = Some(reading);
    }

    fn heard(&mut self, now: Duration, heartbeat: Heartbeat) {
        if heartbeat.head == self.progress.received {
            self.progress.log_bytes = heartbeat.log_bytes;
        }
        let word = match self.reading.take() {
            Some(reading) => Word {
                heartbeat,
                age: Duration::from_micros(reading.age_micros),
                as_of_micros: self.as_of(now, &reading),
            },
            None => Word { heartbeat, age: heartbeat.now.since(heartbeat.closed_time), as_of_micros: None },
        };
        self.fresh.handle_heartbeat(now, word, self.progress.received, self.progress.applied);
        self.notices.push_back(SubscriberNotice::Heartbeat(word));
    }

    /// When the primary said what a heartbeat with this `reading` says, or earlier, in the time here.
    fn as_of(&self, now: Duration, reading: &Reading) -> Option<i64> {
        let at = i64::try_from(reading.at_micros).ok()?.checked_sub_unsigned(reading.age_micros)?;
        at.checked_sub(self.ahead.micros(now)?)
    }

    fn appended(&mut self, events: Vec<Bytes>) {
        let mut new = Vec::with_capacity(events.len());
        let mut broken = None;
        for encoded in events {
            match self.take_in(encoded) {
                Ok(Some(received)) => new.push(received),
                Ok(None) => {}
                Err(ended) => {
                    broken = Some(ended);
                    break;
                }
            }
        }
        if !new.is_empty() {
            self.ack_due = true;
            self.notices.push_back(SubscriberNotice::Events(new));
        }
        if let Some(ended) = broken {
            self.end(ended);
        }
    }

    /// They come before the events that they are about. What nobody comes for is forgotten, the oldest first.
    fn traced(&mut self, traces: Vec<(Offset, Traceparent)>) {
        self.traces.extend(traces.into_iter().take(TRACES_MAX));
        while self.traces.len() > TRACES_MAX {
            self.traces.pop_first();
        }
    }

    /// The event, unless it was received before.
    fn take_in(&mut self, encoded: Bytes) -> Result<Option<Received>, Ended> {
        let event = decode_event(&encoded).map_err(Ended::Malformed)?;
        let (offset, after) = (event.offset, self.progress.received);
        if offset.seq <= after.seq && offset.epoch <= after.epoch {
            return Ok(None);
        }
        if offset.epoch < after.epoch || offset.epoch > self.config.epoch {
            return Err(Ended::ForeignEpoch { epoch: self.config.epoch, offset });
        }
        if !offset.follows(after) {
            return Err(Ended::Gap { after, offset });
        }
        self.progress.received = offset;
        self.progress.log_bytes += encoded.len() as u64;
        self.unacknowledged_bytes += encoded.len();
        self.fresh.handle_event(offset, event.time);
        let trace = self.traces.remove(&offset);
        Ok(Some(Received { offset, encoded, event, trace }))
    }

    fn forget_passed_events(&mut self) {
        self.fresh.handle_passed(self.progress.applied.min(self.progress.complete));
    }

    fn end(&mut self, why: Ended) {
        self.handle_disconnected();
        self.notices.push_back(SubscriberNotice::Ended(why));
    }
}
