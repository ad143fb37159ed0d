//! A site: real log, real index, real subscriber and backoff, real write intents. Its driver is
//! the world's, and does what those of `outport::secondary` and `outport::registry::Journal` do.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use outport::{
    clock::SharedClock,
    index::Index,
    log::{Log, Record, Stepper, faulty::FaultyDisk},
    registry::{Intents, Past, Session},
    secondary::primary_clock::PrimaryClock,
};
use outport_proto::{
    Change, Event, Offset,
    codec::{FrameReader, encode_frame},
    frame::FromPrimary,
    session::{Backoff, Progress, Received, Subscriber, SubscriberConfig, SubscriberNotice, SubscriberState},
};

use crate::{
    Broken, Bug,
    network::Session as Connection,
    oracle,
    primary::{Appending, CLUSTER, log_options, new_index, poll_now, replay, site_name},
    world::{Happening, World},
};

/// What the real driver gives a silent primary.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// How long dialling takes that leads nowhere.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Intents that a site keeps one by one.
const INTENTS_MAX: usize = 1000;

/// The machine a site runs on.
pub(crate) struct Site {
    pub(crate) number: usize,
    pub(crate) clock: SharedClock,
    pub(crate) disk: FaultyDisk,
    /// The disk of its write intents.
    pub(crate) notes: FaultyDisk,
    /// Counts the starts of the machine.
    pub(crate) boots: u64,
    /// Counts its starts.
    pub(crate) life: u64,
    /// What its log held for sure when it last ran.
    durable: u64,
    pub(crate) running: Option<SiteProcess>,
}

impl Site {
    pub(crate) fn new(number: usize, clock: SharedClock) -> Self {
        let (disk, notes) = (FaultyDisk::new(), FaultyDisk::new());
        Self { number, clock, disk, notes, boots: 0, life: 0, durable: 0, running: None }
    }
}

/// A site between a start and a crash.
pub(crate) struct SiteProcess {
    log: Log,
    pub(crate) stepper: Stepper,
    pub(crate) index: Index,
    pub(crate) subscriber: Subscriber,
    pub(crate) intents: Intents,
    backoff: Backoff,
    primary_clock: PrimaryClock,
    /// The round trip as the transport measures it.
    rtt: Duration,
    connection: Option<Open>,
    /// A dial is due once the batch on its way to the disk is.
    dial_due: bool,
    waiting: Vec<Record>,
    appending: Option<Appending>,
    apply_due: bool,
    wake_at: Option<Duration>,
    /// Pulls that wait for something to be applied or closed.
    pub(crate) waiters: BTreeSet<u64>,
    /// Events a planted bug will put on top of newer tombstones.
    haunting: Vec<(Offset, Change)>,
    loses_next: bool,
}

/// The site's end of a session.
struct Open {
    session: u64,
    reader: FrameReader<FromPrimary>,
    heard_at: Duration,
    heartbeats: u64,
}

impl SiteProcess {
    /// What the read rules are told of the session.
    pub(crate) fn session(&self, now: Duration) -> Session {
        let is_open =
            matches!(self.subscriber.state(), SubscriberState::Streaming | SubscriberState::Snapshot);
        Session {
            live: self.subscriber.live(now),
            reachable: is_open,
            closed_time: self.subscriber.closed_time().unwrap_or_default(),
            head: self.subscriber.head().unwrap_or_default(),
            primary_ahead_micros: self.primary_clock.ahead_micros(),
            ..Session::default()
        }
    }

    pub(crate) fn connection(&self) -> Option<u64> {
        self.connection.as_ref().map(|open| open.session)
    }
}

impl World {
    pub(crate) fn start_site(&mut self, number: usize) -> Result<(), Broken> {
        let site = &mut self.sites[number];
        if site.running.is_some() {
            return Ok(());
        }
        let opened = Log::open_stepped(Arc::new(site.disk.clone()), log_options(), Arc::clone(&site.clock));
        let (log, stepper, _) = opened.map_err(|error| Broken(format!("open the log of a site: {error}")))?;
        self.oracle.check_log(&log, &format!("site {number}"), site.durable)?;
        let index = new_index();
        replay(&log, &index)?;
        let config = SubscriberConfig {
            site: site_name(number)?,
            node: String::new(),
            program: "simulation".to_owned(),
            cluster: (log.head() > Offset::ZERO).then(|| CLUSTER.to_owned()),
            epoch: log.head().epoch,
        };
        let (head, log_bytes) = (log.head(), log.bytes());
        let progress =
            Progress { received: head, durable: head, applied: index.applied(), complete: head, log_bytes };
        let past = if site.life == 0 { Past::None } else { Past::Perhaps };
        let intents = Intents::open_on(
            Arc::new(site.notes.clone()),
            Some(&format!("boot {}", site.boots)),
            past,
            (site_name(number)?, INTENTS_MAX),
            site.clock.now(),
        );
        site.life += 1;
        site.running = Some(SiteProcess {
            log,
            stepper,
            index,
            subscriber: Subscriber::new(config, progress),
            intents,
            backoff: Backoff::default(),
            primary_clock: PrimaryClock::default(),
            rtt: Duration::ZERO,
            connection: None,
            dial_due: false,
            waiting: Vec::new(),
            appending: None,
            apply_due: false,
            wake_at: None,
            waiters: BTreeSet::new(),
            haunting: Vec::new(),
            loses_next: false,
        });
        let life = site.life;
        self.after_millis(0, 50, Happening::Dial { site: number, life });
        Ok(())
    }

    /// What a crash may not take away.
    pub(crate) fn note_durable(&mut self, number: usize) {
        let site = &mut self.sites[number];
        if let Some(process) = &site.running {
            site.durable = process.log.head().seq;
        }
    }

    pub(crate) fn site_dials(&mut self, number: usize, life: u64) {
        if self.sites[number].life != life || self.sites[number].running.is_none() {
            return;
        }
        let now = self.now;
        let link = &self.network.links[number];
        let is_deaf = link.up.is_blocked(now) || link.down.is_blocked(now);
        let worked = !is_deaf && self.primary.running.is_some();
        let at = if worked {
            let there = link.up.arrival(now, &mut self.random);
            link.down.arrival(there, &mut self.random)
        } else {
            now + DIAL_TIMEOUT
        };
        self.at(at, Happening::Dialled { site: number, life, worked });
    }

    pub(crate) fn site_dialled(&mut self, number: usize, life: u64, worked: bool) -> Result<(), Broken> {
        let primary_life = self.primary.life;
        let is_there = worked && self.primary.running.is_some();
        let session = self.number();
        let (now, bug) = (self.now, self.bug);
        let site = &mut self.sites[number];
        let Some(process) = site.running.as_mut().filter(|_| site.life == life) else { return Ok(()) };
        if !is_there {
            self.redial(number);
            return Ok(());
        }
        self.network.sessions.insert(session, Connection::new(number, (life, primary_life)));
        let link = &self.network.links[number];
        let there = link.up.arrival(now, &mut self.random) - now;
        process.rtt = there + (link.down.arrival(now, &mut self.random) - now);
        process.connection = Some(Open { session, reader: FrameReader::new(), heard_at: now, heartbeats: 0 });
        let have = process.log.digest_at(process.subscriber.progress().durable);
        process.subscriber.handle_have(have.map_err(|error| Broken(format!("read the log: {error}")))?);
        process.subscriber.handle_connected(now);
        process.loses_next = bug == Some(Bug::LoseEventAtReconnect) && process.index.applied().seq > 0;
        self.drive_site(number)
    }

    pub(crate) fn site_hears(
        &mut self,
        session: u64,
        bytes: &[u8],
        travelled: Duration,
    ) -> Result<(), Broken> {
        let now = self.now;
        let Some(known) = self.network.sessions.get(&session).filter(|known| !known.is_cut) else {
            return Ok(());
        };
        let number = known.site;
        let Some(process) = &mut self.sites[number].running else { return Ok(()) };
        let Some(open) = process.connection.as_mut().filter(|open| open.session == session) else {
            return Ok(());
        };
        open.heard_at = now;
        process.rtt = (process.rtt * 7 + travelled * 2) / 8;
        open.reader.push(bytes);
        loop {
            match open.reader.next() {
                Ok(Some(frame)) => process.subscriber.handle_frame(now, frame),
                Ok(None) => break,
                Err(error) => return Err(Broken(format!("the primary's frame: {error}"))),
            }
        }
        self.drive_site(number)
    }

    pub(crate) fn site_loses(&mut self, session: u64) -> Result<(), Broken> {
        let Some(known) = self.network.sessions.get(&session) else { return Ok(()) };
        let number = known.site;
        let is_current = self.sites[number].running.as_ref().and_then(SiteProcess::connection);
        if is_current == Some(session) { self.part(number) } else { Ok(()) }
    }

    pub(crate) fn site_wakes(&mut self, number: usize, life: u64) -> Result<(), Broken> {
        let (now, site) = (self.now, &mut self.sites[number]);
        let Some(process) = site.running.as_mut().filter(|_| site.life == life) else { return Ok(()) };
        let Some(open) = &process.connection else { return Ok(()) };
        if process.wake_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        process.wake_at = None;
        if now >= open.heard_at + SILENCE_MAX {
            return self.part(number);
        }
        process.subscriber.handle_timeout(now);
        self.drive_site(number)
    }

    /// Sends what is to be sent, acts on notices and sets the timer.
    fn drive_site(&mut self, number: usize) -> Result<(), Broken> {
        let now = self.now;
        let site = &mut self.sites[number];
        let life = site.life;
        let Some(process) = &mut site.running else { return Ok(()) };
        let Some(session) = process.connection() else { return Ok(()) };
        let mut is_over = false;
        let mut received = Vec::new();
        while let Some(notice) = process.subscriber.poll_notice() {
            match notice {
                SubscriberNotice::Welcome(_) | SubscriberNotice::Keys(_) => {}
                SubscriberNotice::Events(events) => received.extend(events),
                SubscriberNotice::Heartbeat(heartbeat) => {
                    process.primary_clock.heard(heartbeat.now, site.clock.now(), process.rtt);
                    if let Some(open) = &mut process.connection {
                        open.heartbeats += 1;
                    }
                    let (hash, at) = process.index.state_hash();
                    if at == heartbeat.state_at && hash != heartbeat.state_hash {
                        return Err(Broken(format!("at {at} site {number} is not in the primary's state")));
                    }
                }
                SubscriberNotice::Ended(_) => is_over = true,
            }
        }
        let mut frames = Vec::new();
        while let Some(frame) = process.subscriber.poll_transmit(now) {
            frames.push(encode_frame(&frame).map_err(|error| Broken(format!("encode: {error}")))?);
        }
        let silent_at = process.connection.as_ref().map_or(now, |open| open.heard_at) + SILENCE_MAX;
        let wake_at = process.subscriber.poll_timeout(now).map_or(silent_at, |at| at.min(silent_at));
        let is_new = process.wake_at.replace(wake_at) != Some(wake_at);
        for bytes in frames {
            if let Some(at) = self.network.up(session, now, &mut self.random) {
                self.at(at, Happening::Up { session, bytes });
            }
        }
        if is_new {
            self.at(wake_at, Happening::SiteWakes { site: number, life });
        }
        self.take_in(number, received)?;
        if is_over {
            return self.part(number);
        }
        self.wake_waiters(number)
    }

    /// Received events go to the log, one batch at a time.
    fn take_in(&mut self, number: usize, received: Vec<Received>) -> Result<(), Broken> {
        let Some(process) = &mut self.sites[number].running else { return Ok(()) };
        for received in received {
            self.oracle.check_record(&received.event, &received.encoded, &format!("site {number}"))?;
            let record = Record { event: Arc::new(received.event), encoded: received.encoded };
            process.waiting.push(record);
        }
        self.append(number);
        Ok(())
    }

    fn append(&mut self, number: usize) {
        let life = self.sites[number].life;
        let Some(process) = &mut self.sites[number].running else { return };
        if process.appending.is_some() || process.waiting.is_empty() {
            return;
        }
        let (log, records) = (process.log.clone(), std::mem::take(&mut process.waiting));
        let mut appending: Appending = Box::pin(async move { log.append_replicated(records).await });
        // It has to be asked before it can be answered; the answer is looked at with the others.
        if poll_now(&mut appending).is_none() {
            process.appending = Some(appending);
            let fsync = self.random.micros(100, 40_000);
            self.at(self.now + fsync, Happening::SiteWrites { site: number, life });
        }
    }

    pub(crate) fn site_writes(&mut self, number: usize, life: u64) -> Result<(), Broken> {
        let site = &mut self.sites[number];
        let Some(process) = site.running.as_mut().filter(|_| site.life == life) else { return Ok(()) };
        process.stepper.step();
        let Some(mut appending) = process.appending.take() else { return Ok(()) };
        let Some(written) = poll_now(&mut appending) else {
            return Err(Broken("the writer left a site waiting".to_owned()));
        };
        let apply_due = std::mem::replace(&mut process.apply_due, true);
        if !apply_due {
            let delay = self.random.micros(10, 20_000);
            self.at(self.now + delay, Happening::SiteApplies { site: number, life });
        }
        let Some(process) = &mut self.sites[number].running else { return Ok(()) };
        let is_parted = process.connection.is_none();
        match written {
            Ok(durable) => process.subscriber.handle_durable(durable),
            Err(_) if is_parted => {}
            Err(_) => return self.part(number),
        }
        if is_parted {
            return self.settled(number);
        }
        self.append(number);
        self.drive_site(number)
    }

    pub(crate) fn site_applies(&mut self, number: usize, life: u64) -> Result<(), Broken> {
        let bug = self.bug;
        let site = &mut self.sites[number];
        let Some(process) = site.running.as_mut().filter(|_| site.life == life) else { return Ok(()) };
        process.apply_due = false;
        while process.index.applied() < process.log.head() {
            let before = process.index.applied();
            let records = oracle::read(&process.log, before)?;
            let mut events: Vec<_> = records.into_iter().map(|record| record.event).collect();
            for (event, seq) in events.iter().zip(before.seq + 1..) {
                if event.offset.seq != seq {
                    return Err(Broken(format!("site {number} applies {} after {before}", event.offset)));
                }
            }
            if process.loses_next && events.len() > 1 {
                process.loses_next = false;
                events.remove(0);
            }
            apply(&process.index, &events)?;
            for event in &events {
                process.intents.note_applied(event);
                if let (Change::TagDeleted { repo, tag }, Some(Bug::LatePushOverTombstone)) =
                    (&event.change, bug)
                {
                    let earlier = (1..event.offset.seq).rev().filter_map(|seq| self.oracle.event(seq));
                    let late = earlier.map(|event| &event.change).find(
                        |change| matches!(change, Change::ManifestPut(put) if put.repo == *repo && put.tags.contains(tag)),
                    );
                    process.haunting.extend(late.map(|change| (event.offset, change.clone())));
                }
            }
        }
        let applied = process.index.applied();
        let due = process.haunting.extract_if(.., |(deleted, _)| *deleted < applied);
        for (_, change) in due.collect::<Vec<_>>() {
            let (actor, intent) = (String::new(), None);
            let late = Event { offset: applied, time: site.clock.now(), actor, intent, change };
            apply(&process.index, &[Arc::new(late)])?;
        }
        // What was applied before may come again; it changes nothing.
        if applied.seq > 1 && self.random.percent(10) {
            let again = 1 + self.random.below(applied.seq);
            if let Some(event) = self.oracle.event(again) {
                apply(&process.index, &[Arc::clone(event)])?;
            }
        }
        process.subscriber.handle_applied(applied);
        process.subscriber.handle_complete(applied);
        self.drive_site(number)?;
        self.wake_waiters(number)
    }

    /// The session is over: what is not on its way to the disk is forgotten; the next dial waits
    /// for what is.
    pub(crate) fn part(&mut self, number: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(process) = &mut self.sites[number].running else { return Ok(()) };
        let Some(open) = process.connection.take() else { return Ok(()) };
        process.subscriber.handle_disconnected();
        if open.heartbeats > 0 {
            process.backoff.reset();
        }
        process.waiting.clear();
        process.wake_at = None;
        process.dial_due = true;
        let is_settled = process.appending.is_none();
        // The other end may hear of it, or notice by itself that nobody is there any more.
        if self.random.percent(60)
            && let Some(at) = self.network.up(open.session, now, &mut self.random)
        {
            self.at(at, Happening::UpBreaks { session: open.session });
        }
        self.network.cut(open.session);
        let cut_off = self.pulls.iter().filter(|(_, pull)| pull.asked == Some(open.session));
        let cut_off: Vec<_> = cut_off.map(|(number, pull)| (*number, pull.stage)).collect();
        for (pull, stage) in cut_off {
            self.pull_is_answered(pull, stage, &crate::primary::Answer::Lost)?;
        }
        if is_settled { self.settled(number) } else { Ok(()) }
    }

    /// What was on its way to the disk has ended.
    fn settled(&mut self, number: usize) -> Result<(), Broken> {
        let Some(process) = &mut self.sites[number].running else { return Ok(()) };
        process.subscriber.handle_durable(process.log.head());
        process.subscriber.handle_lost(process.log.bytes());
        if std::mem::take(&mut process.dial_due) {
            self.redial(number);
        }
        Ok(())
    }

    fn redial(&mut self, number: usize) {
        let (site, random) = (&mut self.sites[number], self.random.number());
        let life = site.life;
        let Some(process) = &mut site.running else { return };
        let delay = process.backoff.next_delay(random);
        self.at(self.now + delay, Happening::Dial { site: number, life });
    }

    /// Those who waited and have what they waited for go on.
    fn wake_waiters(&mut self, number: usize) -> Result<(), Broken> {
        let now = self.now;
        let Some(process) = &self.sites[number].running else { return Ok(()) };
        let (applied, closed_time) = (process.index.applied(), process.session(now).closed_time);
        let ready: Vec<_> = process
            .waiters
            .iter()
            .filter(|pull| self.pulls.get(pull).is_some_and(|pull| pull.has_come(applied, closed_time)))
            .copied()
            .collect();
        ready.into_iter().try_for_each(|pull| self.decide_pull(pull))
    }
}

fn apply(index: &Index, events: &[Arc<Event>]) -> Result<(), Broken> {
    index.apply(events).map_err(|error| Broken(format!("apply: {error}")))
}
