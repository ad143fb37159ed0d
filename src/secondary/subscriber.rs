//! Follows the primary's log: connects, takes in events, acknowledges, and tells the rest of the
//! site what it knows. The session's logic is [`outport_proto::session::Subscriber`].

use crate::watch;
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outport_proto::{
    Change, Digest, Offset, SiteName, Timestamp,
    frame::{Behind, BehindLink, FromPrimary, FromSecondary, Refusal, Resume, SiteReport, Welcome},
    session::{Backoff, Ended, Received, Subscriber, SubscriberConfig, SubscriberNotice, SubscriberState},
};
use tokio::time::Instant;

use super::{
    detail::{About, Details},
    dial::{Dialer, refusal},
    divergence::{Divergence, Todo},
    downstream::{Downstream, Heard, Reports},
    intake::Intake,
    journeys::Journeys,
    memory::Memory,
    prefetch::Progress,
    primary_clock::PrimaryClock,
    repair::repair,
    replay::times_after,
    rewound,
    snapshot::{SnapshotError, Taking, take},
    view::SiteView,
};
use crate::{
    blocking,
    clock::SharedClock,
    fetch::{
        framed::{FrameSink, FrameStream, FramedError, Incoming},
        primary::{Connections, Link, Transport},
        quic::{CloseCode, StreamKind},
    },
    planted::{Bug, is_planted},
    random,
    registry::{
        NEVER, Session,
        journal::{Journal, JournalError},
    },
    shutdown::Shutdown,
    status::{Lag, SiteState, SiteStatus},
    store::Store,
    telemetry::trace::Tracing,
};

/// A primary that sends no byte for this long is given up and dialled anew. Heartbeats come eight
/// times as often.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// A primary that takes no bytes for this long is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked at whether anything changed behind this site.
const REPORTS_INTERVAL: Duration = Duration::from_millis(100);

/// Told what the primary says about itself: once at the start if this site remembers it, and
/// whenever it changes. The keys are in it.
pub type OnIdentity = Arc<dyn Fn(&Welcome) + Send + Sync>;

/// Who follows whom.
#[derive(Clone, Debug)]
pub struct SubscriptionOptions {
    /// This site, as its certificate names it.
    pub site: SiteName,
    /// Which node of the site; for people.
    pub node: String,
    /// `host:port` of the primary, in the order in which they are tried.
    pub primaries: Vec<String>,
    /// Reported on the status page, in milliseconds.
    pub staleness_bound_ms: u64,
}

/// The parts of the site that a subscription reads and feeds.
pub struct SubscriptionParts {
    /// Opens connections.
    pub dialer: Dialer,
    /// The site's log and its view.
    pub journal: Journal,
    /// The site's blobs, for the report.
    pub store: Store,
    /// What the site remembers of its primary.
    pub memory: Memory,
    /// The local clock.
    pub clock: SharedClock,
    /// How far copying ahead is.
    pub progress: watch::Receiver<Progress>,
    /// Told of connections.
    pub link: watch::Sender<Link>,
    /// Told how fresh the site is.
    pub session: watch::Sender<Session>,
    /// Told of the primary's identity and keys.
    pub on_identity: OnIdentity,
    /// Told what the sites that follow this one must hear.
    pub downstream: Downstream,
    /// Asked how those are; `None` when none may follow.
    pub reports: Option<Reports>,
    /// Records what becomes of pushes.
    pub tracing: Tracing,
    /// What people are told of the site.
    pub about: About,
}

/// Follows the primary for as long as it runs.
pub struct Subscription {
    options: SubscriptionOptions,
    parts: SubscriptionParts,
    subscriber: Subscriber,
    intake: Intake,
    journeys: Journeys,
    details: Details,
    primary_clock: PrimaryClock,
    view: SiteView,
    /// By the clock's latest reading: the session's time counts from here.
    begun: Duration,
    /// Whether this session came to a heartbeat.
    heard: bool,
    /// What was said on this stream of the sites behind this one.
    reported: BTreeMap<SiteName, Behind>,
    reported_at: Option<Instant>,
    /// Whether the index is in the primary's state.
    divergence: Divergence,
    /// Why site and primary do not follow one history; ends with the next session.
    alarm: Option<String>,
    forks_refused: u64,
    /// The session before went over TCP, and ended because UDP works again.
    udp_works: bool,
}

impl Subscription {
    /// A subscription that goes on where log and index stand, and where its status shows.
    pub fn new(options: SubscriptionOptions, parts: SubscriptionParts) -> (Self, SiteView) {
        // Before anything is served: a restarted site knows whom to believe from its first answer on.
        if let Some(remembered) = parts.memory.last() {
            (parts.on_identity)(remembered);
            parts.downstream.welcomed(remembered);
        }
        let config = SubscriberConfig {
            site: options.site.clone(),
            node: options.node.clone(),
            program: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: parts.memory.cluster().map(str::to_owned),
            epoch: parts.memory.epoch(),
        };
        let progress = outport_proto::session::Progress {
            received: parts.journal.log().head(),
            durable: parts.journal.log().head(),
            applied: parts.journal.applied(),
            complete: parts.progress.borrow().complete,
            log_bytes: parts.journal.log().bytes(),
        };
        let intake = Intake::new(parts.journal.clone());
        let begun = parts.clock.latest();
        let this = Self {
            subscriber: Subscriber::new(config, progress),
            intake,
            journeys: Journeys::new(parts.tracing.clone(), options.site.clone()),
            details: Details::new(options.site.clone(), parts.about.clone()),
            primary_clock: PrimaryClock::default(),
            view: SiteView::new(SiteStatus::default(), Arc::clone(&parts.clock)),
            begun,
            heard: false,
            reported: BTreeMap::new(),
            reported_at: None,
            divergence: Divergence::default(),
            alarm: None,
            forks_refused: 0,
            udp_works: false,
            options,
            parts,
        };
        this.show(None);
        let view = this.view.clone();
        (this, view)
    }

    /// The session's time: what was heard before the machine was held or slept is as old as that.
    fn now(&self) -> Duration {
        self.parts.clock.latest().saturating_sub(self.begun)
    }

    /// Follows until shutdown.
    pub async fn run(mut self, shutdown: Shutdown) {
        self.replay().await;
        let mut backoff = Backoff::default();
        loop {
            let worked = tokio::select! {
                biased;
                worked = self.attempt() => worked,
                () = shutdown.requested() => break,
            };
            self.part().await;
            if worked {
                backoff.reset();
            }
            // Spreads what many sites do at the same moment.
            let delay = backoff.next_delay(random::number());
            tokio::select! {
                biased;
                () = tokio::time::sleep(delay) => {}
                () = shutdown.requested() => break,
            }
        }
        self.part().await;
    }

    /// Events that still wait for blobs from before the start count as lag from the beginning.
    async fn replay(&mut self) {
        let (log, complete) = (self.parts.journal.log().clone(), self.subscriber.progress().complete);
        match blocking::spawn(move || times_after(&log, complete)).await {
            Ok(Ok(Some(times))) => self.subscriber.handle_replayed(complete, times),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the times of earlier events cannot be read"),
            Err(error) => tracing::error!(%error, "reading the times of earlier events crashed"),
        }
    }

    /// One session from dialling to its end; returns whether it came to a heartbeat.
    async fn attempt(&mut self) -> bool {
        let primary = self.options.primaries.join(", ");
        // A way over TCP that is quicker than UDP must not be taken again and again.
        let over_udp = std::mem::take(&mut self.udp_works);
        let (dialer, primaries) = (&self.parts.dialer, &self.options.primaries);
        let connected = match over_udp {
            true => dialer.connect_over_udp(primaries).await,
            false => dialer.connect(primaries).await,
        };
        let connections = match connected {
            Ok(connections) => connections,
            Err(error) => {
                tracing::info!(primary, %error, "primary unreachable");
                self.failed(format!("primary unreachable: {error}"));
                return false;
            }
        };
        self.heard = false;
        let ended = self.follow(&connections).await;
        self.udp_works = matches!(ended, End::Better);
        if matches!(ended, End::Diverged) {
            self.replace(&connections).await;
        }
        let (code, reason) = match &ended {
            End::Framed(error) if error.is_violation() => (CloseCode::Protocol, error.to_string()),
            _ => (CloseCode::Bye, String::new()),
        };
        let why_closed = connections.log.close_reason();
        connections.log.close(code.into(), reason.as_bytes());
        connections.bulk.close(code, &reason);
        self.failed(format!("session ended: {ended}"));
        match (ended, refusal(why_closed)) {
            (End::Session(why @ (Ended::Refused(Refusal::Fork { .. }) | Ended::Fork { .. })), _) => {
                tracing::error!(primary, %why, "histories forked: this site does not follow the primary, and serves what it has");
                self.alarm = Some(why.to_string());
                self.forks_refused += 1;
                self.show(None);
            }
            (End::Session(why @ (Ended::Refused(Refusal::Ring(_)) | Ended::Ring { .. })), _) => {
                tracing::error!(primary, %why, "this site does not follow");
                self.alarm = Some(why.to_string());
                self.show(None);
            }
            (End::Session(why @ Ended::Refused(Refusal::Unready(_))), _) => {
                tracing::info!(primary, %why, "the upstream cannot be followed yet");
            }
            (End::Session(why @ (Ended::Refused(_) | Ended::ForeignCluster(_))), _) => {
                tracing::error!(primary, %why, "the primary does not take this site");
            }
            (_, Some(why)) => tracing::error!(primary, %why, "the primary does not take this site"),
            (End::Journal(error), None) => {
                tracing::error!(primary, %error, "session ended: events cannot be kept")
            }
            (why, None) => tracing::info!(primary, %why, "session ended"),
        }
        self.heard
    }

    async fn follow(&mut self, connections: &Connections) -> End {
        match self.drive(connections).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn drive(&mut self, connections: &Connections) -> Result<std::convert::Infallible, End> {
        let (send, receive) = connections.log.open_bi().await.map_err(FramedError::from)?;
        let mut stream = Stream { sink: FrameSink::new(send, STALL_TIMEOUT), is_open: false };
        let mut frames = FrameStream::<FromPrimary>::new(receive);
        self.subscriber.handle_have(self.have_digest().await?);
        self.subscriber.handle_connected(self.now());
        self.reported.clear();
        self.reported_at = None;
        self.details.connected();
        let mut heard_at = Instant::now();
        let mut progress = self.parts.progress.clone();
        let mut applied = self.parts.journal.watch_applied();
        let mut taking = Taking::default();
        let (dialer, primaries) = (self.parts.dialer.clone(), self.options.primaries.clone());
        let mut better = Box::pin(async move { dialer.better(connections.transport, &primaries).await });
        loop {
            while let Some(frame) = self.subscriber.poll_transmit(self.now()) {
                stream.send(&frame).await?;
            }
            while let Some(notice) = self.subscriber.poll_notice() {
                self.act_on(notice, connections, &mut taking).await?;
            }
            self.show(Some(connections));
            let now = self.now();
            let wake_at = self.subscriber.poll_timeout(now).map(|at| Instant::now() + at.saturating_sub(now));
            let silent_at = heard_at + SILENCE_MAX;
            tokio::select! {
                biased;
                durable = self.intake.durable() => match durable {
                    Err(error) if self.parts.journal.failed().is_some() => {
                        tracing::error!(%error, "events are not kept any more: tags are asked of the primary");
                    }
                    durable => self.subscriber.handle_durable(durable?),
                },
                Ok(()) = applied.changed() => {}
                Ok(()) = progress.changed() => {}
                taken = taking.taken() => {
                    let complete = progress.borrow().complete;
                    self.subscriber.handle_snapshot_loaded(taken?, complete);
                }
                () = better.as_mut() => return Err(End::Better),
                ended = self.divergence.round_ended() => self.divergence.handle_round(&ended),
                incoming = frames.incoming() => {
                    heard_at = Instant::now();
                    let now = self.now();
                    match incoming? {
                        Incoming::Frame(frame) => self.subscriber.handle_frame(now, frame),
                        Incoming::Bytes => self.subscriber.handle_activity(now),
                        Incoming::End => return Err(End::Left),
                    }
                }
                () = tokio::time::sleep_until(wake_at.unwrap_or(silent_at).min(silent_at)) => {
                    if Instant::now() >= silent_at {
                        return Err(End::Silent);
                    }
                    self.subscriber.handle_timeout(self.now());
                }
            }
            self.handle_applied(*applied.borrow_and_update());
            self.compare(connections)?;
            let complete = progress.borrow_and_update().complete;
            self.subscriber.handle_complete(complete);
            self.journeys.complete(complete);
            let (clock, primary_clock) = (&self.parts.clock, &self.primary_clock);
            self.details.reached(self.subscriber.progress(), || {
                let ahead = primary_clock.offset(clock.now(), clock.latest())?.ahead_micros;
                Some(Timestamp::from_micros(clock.now().as_micros().saturating_add_signed(-ahead)))
            });
        }
    }

    /// What the newest durable event is, so that the primary can tell whether it has the same.
    async fn have_digest(&self) -> Result<Option<Digest>, End> {
        let (log, at) = (self.parts.journal.log().clone(), self.subscriber.progress().durable);
        let read = blocking::spawn(move || log.digest_at(at)).await;
        read.map_err(|error| JournalError::Panicked(error.to_string()))?
            .map_err(|error| End::Journal(error.into()))
    }

    /// The index is emptied and loaded anew while a snapshot replaces it: what it shows then is
    /// no place in the log.
    fn handle_applied(&mut self, offset: Offset) {
        if self.subscriber.state() != SubscriberState::Snapshot {
            self.subscriber.handle_applied(offset);
            self.journeys.applied(offset);
        }
    }

    async fn act_on(
        &mut self,
        notice: SubscriberNotice,
        connections: &Connections,
        taking: &mut Taking,
    ) -> Result<(), End> {
        match notice {
            SubscriberNotice::Welcome(welcome) => {
                let peer = connections.log.remote_address();
                tracing::info!(%peer, cluster = %welcome.cluster, head = %welcome.head, resume = ?welcome.resume,
                    "session with the primary is open");
                let agreed = Connections { version: welcome.version, ..connections.clone() };
                self.parts.link.send_replace(Link::Up(agreed));
                self.alarm = None;
                if let Resume::Rewind { fork } = welcome.resume {
                    let have = self.subscriber.progress().durable;
                    tracing::warn!(%fork, %have, epoch = welcome.head.epoch,
                        "the primary's history forked: what this site has behind the fork goes");
                    rewound::tell(self.parts.journal.log().clone(), fork).await;
                }
                if self.parts.journal.failed().is_some() {
                    tracing::warn!("the log stopped: the primary is asked, and not followed");
                } else if welcome.resume != Resume::Tail {
                    self.parts.downstream.forget_heard();
                    let log_bytes = self.subscriber.heartbeat().map_or(0, |heartbeat| heartbeat.log_bytes);
                    taking.begin(take(self.parts.journal.clone(), connections.bulk.clone(), log_bytes));
                } else if let Err(error) = self.parts.journal.forget_snapshot().await {
                    tracing::warn!(%error, "what is left of a snapshot is not removed");
                }
                self.parts.memory.welcomed(welcome);
                self.identified().await;
            }
            SubscriberNotice::Keys(keys) => {
                self.parts.memory.rekeyed(keys);
                self.identified().await;
            }
            SubscriberNotice::Events(mut events) => {
                if is_planted(Bug::LoseEventAtReconnect) && events.len() > 1 {
                    lose(&mut events);
                }
                // A log that stopped takes nothing more. The session goes on: the primary is there to ask.
                if self.parts.journal.failed().is_none() {
                    self.journeys.received(&events);
                    self.details.received(&events);
                    self.intake.take(events);
                }
            }
            SubscriberNotice::Heartbeat(word) => {
                let heartbeat = word.heartbeat;
                self.heard = true;
                connections.bulk.rest();
                let rtt = connections.log.rtt();
                // A relay that has not heard of the primary knows neither its clock nor its state.
                if heartbeat.closed_time > Timestamp::default() {
                    let clock = &self.parts.clock;
                    let (steady, latest) = (clock.steady(), clock.latest());
                    let here = match is_planted(Bug::AgeByWallClock) {
                        true => clock.now().since(Timestamp::default()),
                        false => latest,
                    };
                    let forward = latest.saturating_sub(steady);
                    let ahead = self.primary_clock.heard(heartbeat.now, here, forward, rtt);
                    self.parts.downstream.heard(Heard {
                        word,
                        as_of_micros: self.as_of(word.as_of_micros, heartbeat.closed_time),
                        ahead_micros: ahead,
                        at: Instant::now(),
                    });
                    self.divergence.handle_heartbeat(&heartbeat);
                }
                self.report();
                self.report_behind();
                self.report_details();
                self.remember().await;
            }
            SubscriberNotice::Ended(why) => return Err(End::Session(why)),
        }
        Ok(())
    }

    /// First what the primary said is remembered: with its keys this site leads requests to it, and
    /// a start that remembers no primary takes none for announced.
    async fn identified(&mut self) {
        self.remember().await;
        if let Some(welcome) = self.parts.memory.last() {
            (self.parts.on_identity)(welcome);
            self.parts.downstream.welcomed(welcome);
        }
    }

    /// Makes what the primary said durable, unless it is. A disk that was full is tried again.
    async fn remember(&mut self) {
        if !self.parts.memory.is_due() {
            return;
        }
        let memory = self.parts.memory.clone();
        match blocking::spawn(move || memory.save()).await {
            Ok(Ok(())) => return self.parts.memory.saved(),
            Ok(Err(error)) => tracing::warn!(%error, "cannot remember the primary"),
            Err(error) => tracing::error!(%error, "remembering the primary crashed"),
        }
        self.parts.memory.failed();
    }

    /// The session is over: nothing more comes, and what runs ends.
    async fn part(&mut self) {
        self.subscriber.handle_disconnected();
        self.details.disconnected();
        self.divergence.handle_disconnected();
        let is_down = matches!(&*self.parts.link.borrow(), Link::Down { .. });
        if !is_down {
            self.parts.link.send_replace(Link::Down { since: Instant::now() });
        }
        self.show(None);
        if let Some(Err(error)) = self.intake.settle().await {
            tracing::error!(%error, "received events are not durable");
        }
        let log = self.parts.journal.log();
        self.subscriber.handle_durable(log.head());
        self.subscriber.handle_lost(log.bytes());
    }

    /// Two indexes that stand at one place of one log must be alike.
    fn compare(&mut self, connections: &Connections) -> Result<(), End> {
        let journal = &self.parts.journal;
        if self.subscriber.state() != SubscriberState::Streaming || !journal.is_whole() {
            return Ok(());
        }
        self.divergence.compare(journal.index());
        // While its database is behind, an index is not mended: rounds would be spent for nothing.
        if journal.index().is_deferring() {
            return Ok(());
        }
        match self.divergence.todo() {
            Todo::Nothing => {}
            Todo::Repair => self.divergence.begin_round(repair(journal.clone(), connections.bulk.clone())),
            Todo::Snapshot => return Err(End::Diverged),
        }
        Ok(())
    }

    /// Replaces an index that repairs did not make equal to the primary's. Nothing is streamed meanwhile.
    async fn replace(&mut self, connections: &Connections) {
        self.divergence.handle_snapshot();
        if let Some(Err(error)) = self.intake.settle().await {
            tracing::warn!(%error, "received events are not durable");
        }
        let log_bytes = self.subscriber.heartbeat().map_or(0, |heartbeat| heartbeat.log_bytes);
        match take(self.parts.journal.clone(), connections.bulk.clone(), log_bytes).await {
            Ok(from) => {
                tracing::info!(%from, "the index was replaced by a snapshot of the primary's");
                let complete = self.parts.progress.borrow().complete;
                self.subscriber.handle_snapshot_loaded(from, complete);
            }
            Err(error) => tracing::warn!(%error, "the index could not be replaced by a snapshot"),
        }
    }

    fn report(&mut self) {
        let store = self.parts.store.stats();
        self.subscriber.handle_report(SiteReport {
            store_bytes: store.bytes,
            store_limit_bytes: self.parts.store.limit(),
            store_blobs: store.blobs,
            missing_blobs: self.parts.progress.borrow().missing_blobs,
            staleness_bound_micros: self.options.staleness_bound_ms.saturating_mul(1000),
            ..SiteReport::default()
        });
    }

    /// Says what changed behind this site. How long one of those is silent changes all the time and
    /// follows from the rest; round trips tremble.
    fn report_behind(&mut self) {
        let Some(reports) = &self.parts.reports else { return };
        if self.reported_at.is_some_and(|at| at.elapsed() < REPORTS_INTERVAL) {
            return;
        }
        self.reported_at = Some(Instant::now());
        for behind in reports() {
            let link = match behind.link {
                BehindLink::Down => BehindLink::Down,
                BehindLink::Up { .. } => BehindLink::Up { rtt_micros: 0 },
                BehindLink::Snapshot { .. } => BehindLink::Snapshot { rtt_micros: 0 },
            };
            let lasting = Behind { silent_micros: 0, link, ..behind.clone() };
            if self.reported.get(&behind.site) != Some(&lasting) {
                self.reported.insert(behind.site.clone(), lasting);
                self.subscriber.handle_behind(behind);
            }
        }
    }

    /// Says what changed that people want to know.
    fn report_details(&mut self) {
        let clock = &self.parts.clock;
        let offset = self.primary_clock.offset(clock.now(), clock.latest());
        let Progress { complete, .. } = *self.parts.progress.borrow();
        let head = self.subscriber.head().unwrap_or_default();
        for detail in self.details.changed(self.now(), (complete, head), offset) {
            self.subscriber.handle_detail(detail);
        }
    }

    fn failed(&mut self, what: String) {
        self.details.failed(what, self.parts.clock.now());
    }

    /// Tells readers and the status page where the site stands.
    fn show(&self, connections: Option<&Connections>) {
        let now = self.now();
        let is_following = self.subscriber.state() == SubscriberState::Streaming;
        let is_open = is_following || self.subscriber.state() == SubscriberState::Snapshot;
        let link = connections.map(|connections| (connections.transport, connections.log.rtt()));
        let (differs, is_unsure) =
            (self.divergence.is_known(), self.subscriber.heartbeat().is_some_and(|heard| heard.unsure));
        let session = Session {
            // A snapshot may empty the index at any moment.
            live: is_following && self.subscriber.live(now) && self.parts.journal.is_whole(),
            differs: differs || is_unsure,
            comparisons: self.divergence.counts().comparisons,
            entries_repaired: self.divergence.counts().entries,
            reachable: is_open,
            closed_time: if is_unsure { NEVER } else { self.closed_time().unwrap_or_default() },
            as_of_micros: self.closed_time().filter(|_| !is_unsure).map(|closed_time| {
                let of_applied = self.subscriber.as_of_micros();
                self.as_of(of_applied.filter(|_| !is_planted(Bug::AppliedBeforeData)), closed_time)
            }),
            head: self.subscriber.head().unwrap_or_default(),
            primary_ahead_micros: self.primary_clock.ahead_micros(),
            primary_ahead_error_micros: self.primary_clock.error_micros(),
        };
        self.parts.downstream.differs(differs);
        // First, so that whoever the session wakes finds a status that is as new.
        self.view.show(self.status(now, link.filter(|_| is_open)));
        self.parts.session.send_if_modified(|last| std::mem::replace(last, session) != session);
    }

    /// When the primary's clock read `closed_time`, or earlier, by the latest reading of the clock here. The session
    /// knows for sure, unless its upstream speaks an old version: then it is as good as heartbeats are quick.
    fn as_of(&self, session_micros: Option<i64>, closed_time: Timestamp) -> i64 {
        let micros = |time: u128| i64::try_from(time).unwrap_or(i64::MAX);
        match session_micros.filter(|_| !is_planted(Bug::AgeByPrimarysClock)) {
            Some(at) => at.saturating_add(micros(self.begun.as_micros())),
            None => {
                let ahead = self.primary_clock.ahead_micros().unwrap_or(i64::MAX);
                micros(closed_time.as_micros().into()).saturating_sub(ahead)
            }
        }
    }

    /// Every change acknowledged before it shows here.
    fn closed_time(&self) -> Option<Timestamp> {
        if is_planted(Bug::AppliedBeforeData) {
            return self.subscriber.heartbeat().map(|heartbeat| heartbeat.closed_time);
        }
        self.subscriber.closed_time()
    }

    /// The sites up to the primary.
    fn via(&self) -> Vec<String> {
        let path = self.parts.memory.last().map(|welcome| welcome.path.as_slice());
        path.unwrap_or_default().iter().map(SiteName::to_string).collect()
    }

    fn status(&self, now: Duration, link: Option<(Transport, Duration)>) -> SiteStatus {
        let (progress, lag) = (self.subscriber.progress(), self.subscriber.lag(now));
        let head = self.subscriber.head().unwrap_or(progress.durable).max(progress.received);
        let log_bytes =
            self.subscriber.heartbeat().map_or(progress.log_bytes, |heartbeat| heartbeat.log_bytes);
        let is_level = progress.applied >= head;
        let counts = self.divergence.counts();
        let mut status = SiteStatus {
            site: self.options.site.to_string(),
            cluster: self.subscriber.cluster().unwrap_or_default().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: head.epoch,
            head_seq: head.seq,
            received_seq: progress.received.seq,
            durable_seq: progress.durable.seq,
            applied_seq: progress.applied.seq,
            complete_seq: progress.complete.seq,
            lag_seconds: Lag {
                applied: lag.applied.map(|lag| lag.as_secs_f64()),
                complete: lag.complete.map(|lag| lag.as_secs_f64()),
            },
            lag_events: head.seq.saturating_sub(progress.applied.seq),
            lag_bytes: if is_level { 0 } else { log_bytes.saturating_sub(progress.log_bytes) },
            missing_blobs: self.parts.progress.borrow().missing_blobs,
            heartbeat_age_seconds: self.subscriber.heartbeat_age(now).map(|age| age.as_secs_f64()),
            staleness_bound_seconds: Duration::from_millis(self.options.staleness_bound_ms).as_secs_f64(),
            transport: link.map_or("", |(transport, _)| transport.name()).to_owned(),
            rtt_seconds: link.map(|(_, rtt)| rtt.as_secs_f64()),
            state: match self.subscriber.state() {
                SubscriberState::Snapshot => SiteState::Snapshot,
                SubscriberState::Streaming if !self.subscriber.live(now) => SiteState::Disconnected,
                SubscriberState::Streaming if is_level => SiteState::Streaming,
                SubscriberState::Streaming => SiteState::CatchingUp,
                SubscriberState::Disconnected | SubscriberState::Greeting => SiteState::Disconnected,
            },
            alarm: self
                .alarm
                .clone()
                .or_else(|| {
                    self.parts.journal.failed().map(|error| format!("nothing more is taken in: {error}"))
                })
                .or_else(|| self.parts.journal.alarm().map(str::to_owned))
                .or_else(|| self.divergence.alarm()),
            forks_refused: self.forks_refused,
            via: self.via(),
            state_mismatches: counts.mismatches,
            state_repairs: counts.repairs,
            state_entries_repaired: counts.entries,
            ..SiteStatus::default()
        };
        self.details.describe(&mut status);
        status
    }
}

/// Makes nothing of the first event: a mistake that a simulation asks for.
fn lose(events: &mut [Received]) {
    if let Some(first) = events.first_mut()
        && let Some(repo) = first.event.change.repo().cloned()
    {
        first.event.change = Change::BlobDeleted { repo, digest: Digest::sha256(b"") };
    }
}

/// The sending half of a log stream; the first frame opens it.
struct Stream {
    sink: FrameSink,
    is_open: bool,
}

impl Stream {
    async fn send(&mut self, frame: &FromSecondary) -> Result<(), FramedError> {
        if std::mem::replace(&mut self.is_open, true) {
            self.sink.send(frame).await
        } else {
            self.sink.open(StreamKind::Log, frame).await
        }
    }
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Session(Ended),
    #[error(transparent)]
    Framed(#[from] FramedError),
    #[error("the primary finished the stream")]
    Left,
    #[error("the primary is silent for {SILENCE_MAX:?}")]
    Silent,
    #[error("keep events: {0}")]
    Journal(#[from] JournalError),
    #[error("take a snapshot: {0}")]
    Snapshot(#[from] SnapshotError),
    #[error("UDP works again")]
    Better,
    #[error("repairs did not lead to the primary's state: a snapshot replaces it")]
    Diverged,
}
