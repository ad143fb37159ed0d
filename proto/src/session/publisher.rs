//! The primary's end of one secondary's log stream.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;

use super::{APPEND_BYTES_MAX, HEARTBEAT_INTERVAL, IDLE_MAX, LogState, Place, WINDOW_BYTES};
use crate::{
    Digest, Offset, SiteName, Traceparent,
    frame::{
        Ack, DETAILS_MAX, Echo, FromPrimary, FromSecondary, Heartbeat, Hello, Keys, LAG_UNKNOWN_MICROS,
        READINGS_SINCE, Reading, Refusal, Resume, SiteDetail, TRACES_MAX, TRACES_SINCE, VERSIONS, Welcome,
    },
};

/// What a publisher says about the primary, and its bounds.
#[derive(Clone, Debug)]
pub struct PublisherConfig {
    /// The cluster's identity.
    pub cluster: String,
    /// The site the peer's certificate names, if it is a site that may connect.
    pub site: Option<SiteName>,
    /// Absolute URL of the token endpoint.
    pub token_realm: String,
    /// The `service` of challenges and the audience of tokens.
    pub token_service: String,
    /// Absolute public URL of the primary, without a trailing slash.
    pub public_url: String,
    /// The sites up to the primary, this one last; empty at the primary.
    pub path: Vec<SiteName>,
    /// Most bytes of events under way to the secondary and not yet durable there.
    pub window_bytes: usize,
    /// Most bytes of events in one `Append`, unless one event alone is larger.
    pub append_bytes_max: usize,
}

impl PublisherConfig {
    /// The configuration for the holder of `site`'s certificate, with the usual bounds and no
    /// URLs yet.
    pub fn new(cluster: String, site: Option<SiteName>) -> Self {
        Self {
            cluster,
            site,
            token_realm: String::new(),
            token_service: String::new(),
            public_url: String::new(),
            path: Vec::new(),
            window_bytes: WINDOW_BYTES,
            append_bytes_max: APPEND_BYTES_MAX,
        }
    }
}

/// Answers `Hello`, then sends every event after what the secondary has, heartbeats and keys.
///
/// A driver, whenever anything happened: `handle_*`; then looks up what [`Publisher::to_place`]
/// asks for and tells [`Publisher::handle_placed`]; then, while [`Publisher::wanted`] asks for events, reads them and gives them to [`Publisher::handle_events`]; then sends all that
/// [`Publisher::poll_transmit`] gives; then acts on [`Publisher::poll_notice`].
#[derive(Debug)]
pub struct Publisher {
    config: PublisherConfig,
    keys: Keys,
    keys_due: bool,
    state: State,
    last_heard: Duration,
    next_heartbeat: Duration,
    /// The newest event that could be sent when the log was last looked at.
    head: Offset,
    /// The newest event handed over by the driver.
    cursor: Offset,
    /// The epoch that the secondary was told of.
    epoch: u64,
    queue: VecDeque<(Offset, Bytes)>,
    queue_bytes: usize,
    /// Of events in the queue.
    traces: Vec<(Offset, Traceparent)>,
    /// Sent and not yet durable there: the last offset and the size of every `Append`.
    in_flight: VecDeque<(Offset, usize)>,
    in_flight_bytes: usize,
    hello: Option<Hello>,
    /// When the first one came.
    begun: Option<Duration>,
    /// The newest probe, until it was answered.
    echo: Option<Echo>,
    /// What is said behind a reading of the clock.
    heartbeat: Option<Heartbeat>,
    /// It took a snapshot on this stream: another one would bring it no further.
    took_snapshot: bool,
    /// Where that which `hello` has lies in the log, once the driver has looked.
    place: Option<Place>,
    ack: Option<Ack>,
    notices: VecDeque<PublisherNotice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    AwaitingHello,
    /// `Hello` is here, the answer is not sent yet.
    Greeted,
    Streaming,
    /// The secondary takes a snapshot: it gets heartbeats but no events until its next `Hello`.
    Snapshot,
    Refusing(Refusal),
    Closed,
}

/// What the driver should know about.
#[derive(Clone, Debug, PartialEq)]
pub enum PublisherNotice {
    /// The secondary was welcomed.
    Opened(Resume),
    /// The secondary said how far it is: [`Publisher::ack`].
    Acked,
    /// What the secondary said about itself and the sites behind it, for people.
    Details(Vec<SiteDetail>),
    /// The session is over: close the stream. Nothing follows.
    Closed(Closed),
}

/// Why a publisher ended the session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// The secondary was told so.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// Nothing was heard for [`IDLE_MAX`].
    #[error("nothing was heard from the secondary")]
    Idle,
    /// The log no longer holds what it needs next; at its next `Hello` it is sent to a snapshot.
    #[error("the secondary is further behind than the log reaches")]
    TooSlow,
    /// The log's history forked: the secondary must say `Hello` again.
    #[error("the log's history forked")]
    Forked,
    /// What the secondary was told of the primary holds no longer: it must say `Hello` again.
    #[error("the way to the primary changed")]
    Rerouted,
}

impl Publisher {
    /// A publisher on a stream the secondary has just opened.
    pub fn new(now: Duration, config: PublisherConfig, keys: Keys) -> Self {
        Self {
            config,
            keys,
            keys_due: false,
            state: State::AwaitingHello,
            last_heard: now,
            next_heartbeat: now,
            head: Offset::ZERO,
            cursor: Offset::ZERO,
            epoch: 0,
            queue: VecDeque::new(),
            queue_bytes: 0,
            traces: Vec::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            hello: None,
            begun: None,
            echo: None,
            heartbeat: None,
            took_snapshot: false,
            place: None,
            ack: None,
            notices: VecDeque::new(),
        }
    }

    /// What the secondary said about itself.
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// How far the secondary was when it last said so on this stream.
    pub const fn ack(&self) -> Option<&Ack> {
        self.ack.as_ref()
    }

    /// When anything was last heard.
    pub const fn last_heard(&self) -> Duration {
        self.last_heard
    }

    /// Bytes of events handed over and not yet durable at the secondary.
    pub const fn outstanding_bytes(&self) -> usize {
        self.queue_bytes + self.in_flight_bytes
    }

    /// A frame came.
    pub fn handle_frame(&mut self, now: Duration, frame: FromSecondary) {
        self.last_heard = now;
        match (&self.state, frame) {
            (State::Closed | State::Refusing(_), _) => {}
            (State::AwaitingHello | State::Snapshot, FromSecondary::Hello(hello)) => {
                self.took_snapshot |= self.state == State::Snapshot;
                self.hello = Some(hello);
                self.begun.get_or_insert(now);
                self.place = None;
                self.state = State::Greeted;
            }
            (State::AwaitingHello, _) => self.violated("the first frame is not Hello"),
            (State::Greeted | State::Streaming, FromSecondary::Hello(_)) => self.violated("a second Hello"),
            (State::Greeted | State::Streaming | State::Snapshot, FromSecondary::Details(mut details)) => {
                details.truncate(DETAILS_MAX);
                self.notices.push_back(PublisherNotice::Details(details));
            }
            (State::Greeted | State::Streaming | State::Snapshot, FromSecondary::Probe(probe_micros)) => {
                self.echo = Some(Echo { probe_micros, came_at_micros: self.micros(now) });
            }
            // It may still acknowledge the end of what it had before it asked to resume.
            (State::Greeted | State::Snapshot, FromSecondary::Ack(ack)) => self.acked(ack),
            (State::Streaming, FromSecondary::Ack(ack)) if ack.received > self.head => {
                self.violated("Ack of events never sent");
            }
            (State::Streaming, FromSecondary::Ack(ack)) => {
                while let Some((_, bytes)) = self.in_flight.pop_front_if(|(last, _)| *last <= ack.durable) {
                    self.in_flight_bytes -= bytes;
                }
                self.acked(ack);
            }
        }
    }

    /// Bytes came that are not yet a frame: the peer is alive, only slow.
    pub const fn handle_activity(&mut self, now: Duration) {
        self.last_heard = now;
    }

    /// The keys of this site; they are sent if they differ from what was sent. Not by generation: a primary
    /// that was started again with others counts from where it was, and a relay passes them on in the same
    /// session.
    pub fn handle_keys(&mut self, keys: Keys) {
        self.keys_due |= keys != self.keys;
        self.keys = keys;
    }

    /// Time has passed: see [`Publisher::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Duration) {
        if now >= self.last_heard + IDLE_MAX {
            self.close(Closed::Idle);
        }
    }

    /// What a secondary has that said `Hello`, with the digest of the event if it has it: the driver
    /// must look where that lies in its log and call [`Publisher::handle_placed`]. `Hello` is not
    /// answered before.
    pub fn to_place(&self) -> Option<(Offset, Option<Digest>)> {
        let hello = self.hello.as_ref().filter(|_| self.state == State::Greeted && self.place.is_none())?;
        Some((hello.have?, hello.have_digest))
    }

    /// Where it lies.
    pub const fn handle_placed(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// What [`Publisher::wanted`] asks for is no longer in the log, though its floor is not above
    /// it: another history took its place.
    pub fn handle_forked(&mut self) {
        self.close(Closed::Forked);
    }

    /// What `Welcome` says about the primary changed.
    pub fn handle_rerouted(&mut self) {
        self.close(Closed::Rerouted);
    }

    /// A site that relays heard from the primary: what it heard is passed on now.
    pub fn handle_news(&mut self, now: Duration) {
        self.next_heartbeat = self.next_heartbeat.min(now);
    }

    /// Which events the driver should read and hand to [`Publisher::handle_events`]: those after
    /// an offset, up to about so many bytes. `None` while the secondary has enough on its way.
    pub fn wanted(&mut self, log: &LogState) -> Option<(Offset, usize)> {
        if self.state != State::Streaming {
            return None;
        }
        let head = log.durable;
        self.head = head;
        if head < self.cursor || head.epoch > self.epoch {
            self.close(Closed::Forked);
            return None;
        }
        if self.cursor < log.floor {
            self.close(Closed::TooSlow);
            return None;
        }
        let room = self.config.window_bytes.saturating_sub(self.outstanding_bytes());
        (self.cursor < head && room > 0).then(|| (self.cursor, room.min(self.config.append_bytes_max)))
    }

    /// Events the driver read because of [`Publisher::wanted`], each with its encoded form.
    ///
    /// # Errors
    /// [`Misplaced`] when one does not follow the one before it; those before it are taken.
    pub fn handle_events(
        &mut self,
        events: impl IntoIterator<Item = (Offset, Bytes)>,
    ) -> Result<(), Misplaced> {
        for (offset, encoded) in events {
            if self.state != State::Streaming || !offset.follows(self.cursor) {
                return Err(Misplaced { after: self.cursor, offset });
            }
            self.cursor = offset;
            self.queue_bytes += encoded.len();
            self.queue.push_back((offset, encoded));
        }
        Ok(())
    }

    /// In which span an event was made that was just handed over. It goes out before the event.
    pub fn handle_trace(&mut self, offset: Offset, trace: Traceparent) {
        let is_understood = self.version().is_some_and(|version| version >= TRACES_SINCE);
        if is_understood && self.state == State::Streaming && self.traces.len() < TRACES_MAX {
            self.traces.push((offset, trace));
        }
    }

    /// The next frame to send; `log` is where the log was at `now` or later.
    pub fn poll_transmit(&mut self, now: Duration, log: &LogState) -> Option<FromPrimary> {
        self.head = log.durable;
        match &self.state {
            State::AwaitingHello | State::Closed => return None,
            State::Refusing(refusal) => {
                let refusal = refusal.clone();
                self.close(Closed::Refused(refusal.clone()));
                return Some(FromPrimary::Refused(refusal));
            }
            State::Greeted if self.to_place().is_some() => return None,
            State::Greeted => return Some(self.answer(now, log)),
            State::Streaming | State::Snapshot => {}
        }
        if let Some(heartbeat) = self.heartbeat.take() {
            return Some(FromPrimary::Heartbeat(heartbeat));
        }
        if std::mem::take(&mut self.keys_due) {
            return Some(FromPrimary::Keys(self.keys.clone()));
        }
        if !self.traces.is_empty() {
            return Some(FromPrimary::Traces(std::mem::take(&mut self.traces)));
        }
        let heartbeat_due = now >= self.next_heartbeat;
        if !heartbeat_due && let Some(append) = self.next_append() {
            if self.queue.is_empty() {
                self.next_heartbeat = now;
            }
            return Some(append);
        }
        if heartbeat_due {
            self.next_heartbeat = now + HEARTBEAT_INTERVAL;
            if self.version().is_none_or(|version| version < READINGS_SINCE) {
                return Some(FromPrimary::Heartbeat(log.heartbeat));
            }
            self.heartbeat = Some(log.heartbeat);
            return Some(FromPrimary::Reading(Reading {
                at_micros: self.micros(now),
                age_micros: log.age.map_or(LAG_UNKNOWN_MICROS, micros_of),
                echo: self.echo.take(),
            }));
        }
        None
    }

    /// Since the first `Hello`.
    fn micros(&self, now: Duration) -> u64 {
        micros_of(now.saturating_sub(self.begun.unwrap_or(now)))
    }

    /// When to call [`Publisher::handle_timeout`] and [`Publisher::poll_transmit`] at the latest.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let idle = self.last_heard + IDLE_MAX;
        match self.state {
            State::Closed => None,
            State::Streaming | State::Snapshot => Some(self.next_heartbeat.min(idle)),
            State::AwaitingHello | State::Greeted | State::Refusing(_) => Some(idle),
        }
    }

    /// The next thing the driver should know about.
    pub fn poll_notice(&mut self) -> Option<PublisherNotice> {
        self.notices.pop_front()
    }

    fn answer(&mut self, now: Duration, log: &LogState) -> FromPrimary {
        let resume = match self.judge(log) {
            Ok(resume) => resume,
            Err(refusal) => {
                self.close(Closed::Refused(refusal.clone()));
                return FromPrimary::Refused(refusal);
            }
        };
        self.state = match resume {
            Resume::Tail => State::Streaming,
            Resume::Snapshot | Resume::Rewind { .. } => State::Snapshot,
        };
        let have = self.hello.as_ref().and_then(|hello| hello.have);
        self.cursor = have.unwrap_or(log.floor);
        // A relay has heard of the head later than of the events up to it, and earlier than it has them.
        let head = log.heartbeat.head.max(log.durable);
        self.epoch = head.epoch;
        self.keys_due = false;
        self.next_heartbeat = now;
        self.notices.push_back(PublisherNotice::Opened(resume));
        FromPrimary::Welcome(Box::new(Welcome {
            version: self.version().unwrap_or(VERSIONS[0]),
            cluster: self.config.cluster.clone(),
            head,
            floor: log.floor,
            resume,
            keys: self.keys.clone(),
            token_realm: self.config.token_realm.clone(),
            token_service: self.config.token_service.clone(),
            public_url: self.config.public_url.clone(),
            path: self.config.path.clone(),
        }))
    }

    /// The one that both ends speak and the secondary likes best.
    fn version(&self) -> Option<u16> {
        let offered = self.hello.as_ref().map(|hello| hello.versions.iter());
        offered.into_iter().flatten().copied().find(|version| VERSIONS.contains(version))
    }

    fn judge(&self, log: &LogState) -> Result<Resume, Refusal> {
        let Some(hello) = &self.hello else {
            return Err(Refusal::Violation("no Hello".to_owned()));
        };
        if self.version().is_none() {
            return Err(Refusal::Version(VERSIONS.to_vec()));
        }
        if self.config.site.as_ref() != Some(&hello.site) {
            return Err(Refusal::Site(hello.site.to_string()));
        }
        if hello.cluster.as_ref().is_some_and(|cluster| *cluster != self.config.cluster) {
            return Err(Refusal::Cluster(self.config.cluster.clone()));
        }
        let (head, have) = (log.durable, hello.have.unwrap_or_default());
        if !log.is_level && (hello.epoch > head.epoch || have > head) {
            return Err(Refusal::Unready(format!("the site is at {have}, this relay is still at {head}")));
        }
        // Only durable events are ever sent, so what is not in this history is in another one.
        // Going on would overwrite what the secondary has with what may be the wrong primary's.
        let fork = Refusal::Fork { have, epoch: hello.epoch, head };
        if hello.epoch > head.epoch {
            return Err(fork);
        }
        match (hello.have, self.place) {
            // The log has this one's whole history only if nothing was cut off its beginning.
            (None, _) if log.floor.seq == 0 => Ok(self.tail_unless_long(0, log)),
            (None, _) | (Some(_), Some(Place::Behind) | None) => Ok(Resume::Snapshot),
            (Some(have), Some(Place::Within)) => Ok(self.tail_unless_long(have.seq, log)),
            (Some(_), Some(Place::Beyond { fork })) => Ok(Resume::Rewind { fork }),
            (Some(_), Some(Place::Foreign)) => Err(fork),
        }
    }

    fn tail_unless_long(&self, have: u64, log: &LogState) -> Resume {
        let is_long = log.durable.seq.saturating_sub(have) > log.tail_events_max;
        if is_long && !self.took_snapshot { Resume::Snapshot } else { Resume::Tail }
    }

    fn next_append(&mut self) -> Option<FromPrimary> {
        let (mut last, first) = self.queue.pop_front()?;
        let mut bytes = first.len();
        let mut events = vec![first];
        while let Some((offset, event)) =
            self.queue.pop_front_if(|(_, next)| bytes + next.len() <= self.config.append_bytes_max)
        {
            bytes += event.len();
            events.push(event);
            last = offset;
        }
        self.queue_bytes -= bytes;
        self.in_flight_bytes += bytes;
        self.in_flight.push_back((last, bytes));
        Some(FromPrimary::Append(events))
    }

    fn acked(&mut self, ack: Ack) {
        self.ack = Some(ack);
        if !matches!(self.notices.back(), Some(PublisherNotice::Acked)) {
            self.notices.push_back(PublisherNotice::Acked);
        }
    }

    fn violated(&mut self, how: &str) {
        self.state = State::Refusing(Refusal::Violation(how.to_owned()));
    }

    fn close(&mut self, why: Closed) {
        if self.state == State::Closed {
            return;
        }
        self.state = State::Closed;
        self.queue.clear();
        self.traces.clear();
        self.in_flight.clear();
        (self.queue_bytes, self.in_flight_bytes) = (0, 0);
        self.notices.push_back(PublisherNotice::Closed(why));
    }
}

fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The driver handed over an event that was not asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("event {offset} was handed over after {after}")]
pub struct Misplaced {
    /// The newest event handed over before.
    pub after: Offset,
    /// The event that does not follow it.
    pub offset: Offset,
}
