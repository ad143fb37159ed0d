//! A primary's log, a publisher and a subscriber, with a stream between them that keeps frames
//! for a while and then does to them what a test wants.
#![cfg(test)]

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use outport_proto::{
    Change, Digest, Event, Offset, Timestamp,
    codec::{FrameReader, decode_event, encode_event, encode_frame},
    frame::{AuthMode, FromPrimary, FromSecondary, Heartbeat, Hello, Keys, VERSIONS},
    session::{
        LogState, Place, Progress, Publisher, PublisherConfig, PublisherNotice, Subscriber, SubscriberConfig,
        SubscriberNotice,
    },
};

pub(crate) const LATENCY: Duration = Duration::from_millis(20);
/// The primary's wall clock when the monotonic one stands at zero.
const START: Timestamp = Timestamp::from_secs(1_000_000);

/// What becomes of a frame from the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Arrives,
    Lost,
    Doubled,
    /// It arrives behind the next one.
    Overtaken,
    /// The stream breaks in its place.
    Cut,
}

/// What a site that relays has of what the primary has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Relayed {
    /// How many of the newest events it lacks.
    pub(crate) lacks: usize,
    /// When the primary was last heard, if ever.
    pub(crate) heard_at: Option<Duration>,
}

pub(crate) struct Pair {
    pub(crate) now: Duration,
    pub(crate) log: Vec<Bytes>,
    /// When each event came into the log.
    pub(crate) made: Vec<Duration>,
    /// Somebody set the primary's wall clock.
    pub(crate) wall_ahead_micros: i64,
    /// How long every frame travels.
    pub(crate) latency: Duration,
    /// Versions that the publisher finds in `Hello`.
    pub(crate) offers: Vec<u16>,
    pub(crate) floor: Offset,
    pub(crate) tail_events_max: u64,
    pub(crate) epoch: u64,
    /// The publisher is a site that relays.
    pub(crate) relayed: Option<Relayed>,
    pub(crate) config: PublisherConfig,
    pub(crate) keys: Keys,
    pub(crate) publisher: Option<Publisher>,
    pub(crate) subscriber: Subscriber,
    /// What the subscriber's driver was given, in order.
    pub(crate) delivered: Vec<Offset>,
    /// What is in the subscriber's log.
    kept: Vec<(Offset, Digest)>,
    pub(crate) at_primary: Vec<PublisherNotice>,
    pub(crate) at_secondary: Vec<SubscriberNotice>,
    /// Events become durable, applied and complete as they are delivered.
    pub(crate) stages_pass: bool,
    /// The path carries nothing.
    pub(crate) dark: bool,
    pub(crate) fates: VecDeque<Fate>,
    down: VecDeque<(Duration, Bytes)>,
    up: VecDeque<(Duration, Bytes)>,
    down_reader: FrameReader<FromPrimary>,
    up_reader: FrameReader<FromSecondary>,
    overtaken: Option<Bytes>,
}

pub(crate) fn keys(generation: u64) -> Keys {
    Keys { auth: AuthMode::Anonymous, public_pull: Vec::new(), seal: Vec::new(), generation }
}

/// A subscriber that has everything up to `durable`.
pub(crate) fn subscriber_with(durable: Offset, cluster: Option<&str>) -> Subscriber {
    let config = SubscriberConfig {
        site: "mumbai".parse().unwrap(),
        node: "a".to_owned(),
        program: "test".to_owned(),
        cluster: cluster.map(str::to_owned),
        epoch: 0,
    };
    let progress = Progress { durable, applied: durable, complete: durable, ..Progress::default() };
    Subscriber::new(config, progress)
}

impl Pair {
    pub(crate) fn new() -> Self {
        Self {
            now: Duration::from_secs(100),
            log: Vec::new(),
            made: Vec::new(),
            wall_ahead_micros: 0,
            latency: LATENCY,
            offers: VERSIONS.to_vec(),
            floor: Offset::new(1, 0),
            tail_events_max: u64::MAX,
            epoch: 1,
            relayed: None,
            config: PublisherConfig::new("c1".to_owned(), Some("mumbai".parse().unwrap())),
            keys: keys(1),
            publisher: None,
            subscriber: subscriber_with(Offset::default(), None),
            delivered: Vec::new(),
            kept: Vec::new(),
            at_primary: Vec::new(),
            at_secondary: Vec::new(),
            stages_pass: true,
            dark: false,
            fates: VecDeque::new(),
            down: VecDeque::new(),
            up: VecDeque::new(),
            down_reader: FrameReader::new(),
            up_reader: FrameReader::new(),
            overtaken: None,
        }
    }

    pub(crate) fn head(&self) -> Offset {
        self.log.last().map_or(Offset::new(self.epoch, 0), |last| decode_event(last).unwrap().offset)
    }

    /// The primary comes back from a copy of its log up to `seq`, as another history or, when
    /// it was not told so, as the same one.
    pub(crate) fn restore(&mut self, seq: u64, restored: bool) {
        self.cut();
        self.log.truncate(seq as usize);
        self.made.truncate(seq as usize);
        if restored {
            self.epoch += 1;
            self.append_change(Change::EpochBegan { fork: self.head() });
        }
    }

    /// Where what a secondary has lies in the log.
    fn place(&self, (have, digest): (Offset, Option<Digest>)) -> Place {
        let head = self.head();
        let event = (have.seq as usize).checked_sub(1).and_then(|index| self.log.get(index));
        let same = event.is_some_and(|event| {
            decode_event(event).unwrap().offset == have
                && digest.is_none_or(|digest| digest == Digest::sha256(event))
        });
        match () {
            () if same && have >= self.floor => Place::Within,
            () if have.epoch < head.epoch && !same => {
                let of_epoch = self.log.iter().map(|event| decode_event(event).unwrap().offset);
                let fork = of_epoch.filter(|offset| offset.epoch <= have.epoch).last();
                Place::Beyond { fork: fork.unwrap_or_default() }
            }
            () if same => Place::Behind,
            () => Place::Foreign,
        }
    }

    /// The primary's wall clock.
    pub(crate) fn wall(&self) -> Timestamp {
        self.wall_at(self.now)
    }

    fn wall_at(&self, time: Duration) -> Timestamp {
        Timestamp::from_micros(START.plus(time).as_micros().saturating_add_signed(self.wall_ahead_micros))
    }

    pub(crate) fn append(&mut self, events: usize) {
        for _ in 0..events {
            self.append_change(Change::RepositoryDeleted { repo: "team/app".parse().unwrap() });
        }
    }

    fn append_change(&mut self, change: Change) {
        let offset = Offset::new(self.epoch, self.head().seq + 1);
        let event = Event { offset, time: self.wall(), actor: String::new(), intent: None, change };
        self.log.push(encode_event(&event).unwrap());
        self.made.push(self.now);
    }

    /// The newest event that the publisher has.
    fn durable(&self) -> Offset {
        let events = self.log.len().saturating_sub(self.relayed.map_or(0, |relayed| relayed.lacks));
        self.log[..events].last().map_or(Offset::new(1, 0), |last| decode_event(last).unwrap().offset)
    }

    /// When the primary's word came to the publisher.
    fn heard_at(&self) -> Option<Duration> {
        self.relayed.map_or(Some(self.now), |relayed| relayed.heard_at)
    }

    pub(crate) fn log_state(&self) -> LogState {
        let heartbeat = Heartbeat {
            head: self.head(),
            closed_time: self.heard_at().map_or(Timestamp::default(), |at| self.wall_at(at)),
            now: self.wall(),
            log_bytes: self.log.iter().map(|event| event.len() as u64).sum(),
            state_hash: [0; 32],
            state_at: self.head(),
            unsure: false,
        };
        LogState {
            heartbeat,
            age: self.heard_at().map(|at| self.now - at),
            durable: self.durable(),
            is_level: self.relayed.is_none(),
            floor: self.floor,
            tail_events_max: self.tail_events_max,
        }
    }

    pub(crate) fn connect(&mut self) {
        self.publisher = Some(Publisher::new(self.now, self.config.clone(), self.keys.clone()));
        let durable = self.subscriber.progress().durable;
        let newest = self.kept.iter().rfind(|(offset, _)| *offset == durable);
        self.subscriber.handle_have(newest.map(|(_, digest)| *digest));
        self.subscriber.handle_connected(self.now);
        (self.down, self.up) = Default::default();
        (self.down_reader, self.up_reader) = Default::default();
        self.overtaken = None;
    }

    pub(crate) fn cut(&mut self) {
        self.publisher = None;
        self.subscriber.handle_disconnected();
        (self.down, self.up) = Default::default();
    }

    pub(crate) fn connected(&self) -> bool {
        self.publisher.is_some()
    }

    /// Lets `duration` pass, a few milliseconds at a time.
    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        self.drive();
        while self.now < end {
            self.now += Duration::from_millis(5);
            self.drive();
        }
    }

    /// Runs until `done`, at most a minute of its time.
    pub(crate) fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let deadline = self.now + Duration::from_secs(60);
        while !done(self) {
            assert!(self.now < deadline, "it did not come to pass");
            self.run(Duration::from_millis(5));
        }
    }

    fn drive(&mut self) {
        self.receive();
        self.drive_subscriber();
        self.drive_publisher();
    }

    fn receive(&mut self) {
        while let Some((_, bytes)) = self.up.pop_front_if(|(at, _)| *at <= self.now) {
            self.up_reader.push(&bytes);
            while let Some(frame) = self.up_reader.next().unwrap() {
                let frame = match frame {
                    FromSecondary::Hello(hello) => {
                        FromSecondary::Hello(Hello { versions: self.offers.clone(), ..hello })
                    }
                    frame => frame,
                };
                if let Some(publisher) = &mut self.publisher {
                    publisher.handle_frame(self.now, frame);
                }
            }
        }
        while let Some((_, bytes)) = self.down.pop_front_if(|(at, _)| *at <= self.now) {
            self.down_reader.push(&bytes);
            while let Some(frame) = self.down_reader.next().unwrap() {
                self.subscriber.handle_frame(self.now, frame);
                self.take_notices();
            }
        }
    }

    fn drive_subscriber(&mut self) {
        if self.subscriber.poll_timeout(self.now).is_some_and(|at| at <= self.now) {
            self.subscriber.handle_timeout(self.now);
        }
        self.take_notices();
        while let Some(frame) = self.subscriber.poll_transmit(self.now) {
            if !self.dark {
                self.up.push_back((self.now + self.latency, encode_frame(&frame).unwrap()));
            }
        }
    }

    fn take_notices(&mut self) {
        while let Some(notice) = self.subscriber.poll_notice() {
            if let SubscriberNotice::Events(events) = &notice {
                for event in events {
                    assert_eq!(event.encoded, self.log[event.offset.seq as usize - 1]);
                    self.delivered.push(event.offset);
                    self.kept.push((event.offset, Digest::sha256(&event.encoded)));
                }
                if self.stages_pass {
                    self.pass_stages();
                }
            }
            if matches!(notice, SubscriberNotice::Ended(_)) {
                self.publisher = None;
            }
            self.at_secondary.push(notice);
        }
    }

    pub(crate) fn pass_stages(&mut self) {
        let received = self.subscriber.progress().received;
        self.subscriber.handle_durable(received);
        self.subscriber.handle_applied(received);
        self.subscriber.handle_complete(received);
    }

    fn drive_publisher(&mut self) {
        let log = self.log_state();
        let Some(mut publisher) = self.publisher.take() else { return };
        if publisher.poll_timeout().is_some_and(|at| at <= self.now) {
            publisher.handle_timeout(self.now);
        }
        let mut closed = false;
        loop {
            if let Some(have) = publisher.to_place() {
                publisher.handle_placed(self.place(have));
            }
            while let Some((after, bytes_max)) = publisher.wanted(&log) {
                let events = self.read(after, bytes_max);
                publisher.handle_events(events).unwrap();
            }
            assert!(publisher.outstanding_bytes() <= self.config.window_bytes + self.config.append_bytes_max);
            let Some(frame) = publisher.poll_transmit(self.now, &log) else { break };
            self.send(encode_frame(&frame).unwrap());
        }
        while let Some(notice) = publisher.poll_notice() {
            closed |= matches!(notice, PublisherNotice::Closed(_));
            self.at_primary.push(notice);
        }
        if self.fates.front() == Some(&Fate::Cut) {
            self.fates.pop_front();
            self.cut();
        } else if !closed {
            self.publisher = Some(publisher);
        }
    }

    fn read(&self, after: Offset, bytes_max: usize) -> Vec<(Offset, Bytes)> {
        let mut bytes = 0;
        let first = after.seq as usize;
        let records =
            self.log[first..].iter().map(|event| (decode_event(event).unwrap().offset, event.clone()));
        records
            .take_while(|(_, event)| {
                let fits = bytes == 0 || bytes + event.len() <= bytes_max;
                bytes += event.len();
                fits
            })
            .collect()
    }

    fn send(&mut self, frame: Bytes) {
        if self.dark {
            return;
        }
        let at = self.now + self.latency;
        match self.fates.pop_front_if(|fate| *fate != Fate::Cut).unwrap_or(Fate::Arrives) {
            Fate::Lost => {}
            Fate::Overtaken => self.overtaken = Some(frame),
            fate => {
                if fate == Fate::Doubled {
                    self.down.push_back((at, frame.clone()));
                }
                self.down.push_back((at, frame));
                self.down.extend(self.overtaken.take().map(|late| (at, late)));
            }
        }
    }
}
