//! The primary: real log, real index, a real publisher for every session. Its drivers are the
//! world's, and do what those of `outport::primary` and `outport::registry::Journal` do.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use outport::{
    clock::SharedClock,
    index::{Index, IndexOptions},
    log::{Cause, Log, LogError, LogOptions, Stepper, faulty::FaultyDisk},
};
use outport_proto::{
    Change, Digest, Offset, Reference,
    codec::{FrameReader, encode_frame},
    frame::{FromSecondary, Heartbeat, Keys},
    session::{LogState, Publisher, PublisherConfig, PublisherNotice},
};

use crate::{Broken, Bug, oracle, world::Happening, world::World};

pub(crate) const CLUSTER: &str = "world";

/// The machine the primary runs on.
pub(crate) struct Primary {
    pub(crate) clock: SharedClock,
    pub(crate) disk: FaultyDisk,
    /// Counts its starts.
    pub(crate) life: u64,
    pub(crate) running: Option<PrimaryProcess>,
}

impl Primary {
    pub(crate) fn new(clock: SharedClock) -> Self {
        Self { clock, disk: FaultyDisk::new(), life: 0, running: None }
    }
}

/// The primary between a start and a crash.
pub(crate) struct PrimaryProcess {
    pub(crate) log: Log,
    pub(crate) stepper: Stepper,
    pub(crate) index: Index,
    commits: Vec<Commit>,
    serving: BTreeMap<u64, Serving>,
    write_due: bool,
    apply_due: bool,
}

/// What the log was asked and has not answered yet.
pub(crate) type Appending = Pin<Box<dyn Future<Output = Result<Offset, LogError>>>>;

/// A write on its way to the disk and the index.
struct Commit {
    write: u64,
    appending: Option<Appending>,
    durable: Option<Offset>,
}

/// The primary's end of a session.
struct Serving {
    publisher: Publisher,
    reader: FrameReader<FromSecondary>,
    wake_at: Option<Duration>,
}

/// What the primary says to a question.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Answer {
    /// This, or nothing, holds at that event.
    Said(Option<Digest>, Offset),
    /// No answer came.
    Lost,
}

/// Small segments and a small ring, so that a short run goes through many.
pub(crate) fn log_options() -> LogOptions {
    LogOptions { segment_bytes_max: 16 * 1024, recent_bytes_max: 8 * 1024 }
}

pub(crate) fn new_index() -> Index {
    Index::in_memory(IndexOptions { hot_bytes_max: 64 * 1024, cache_bytes_max: 0 })
}

/// Whether it is done.
pub(crate) fn poll_now(appending: &mut Appending) -> Option<Result<Offset, LogError>> {
    match appending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Applies everything durable that `index` does not show; what a start does.
pub(crate) fn replay(log: &Log, index: &Index) -> Result<(), Broken> {
    while index.applied() < log.head() {
        let records = oracle::read(log, index.applied())?;
        let events: Vec<_> = records.into_iter().map(|record| record.event).collect();
        index.apply(&events).map_err(|error| Broken(format!("apply: {error}")))?;
    }
    Ok(())
}

impl PrimaryProcess {
    fn state(&self, clock: &SharedClock) -> LogState {
        let now = clock.now();
        let begun = |offset| if offset == Offset::ZERO { Offset::new(1, 0) } else { offset };
        let (head, log_bytes) = (begun(self.log.head()), self.log.bytes());
        let (state_hash, state_at) = self.index.state_hash();
        let heartbeat = Heartbeat { head, closed_time: now, now, log_bytes, state_hash, state_at };
        LogState {
            heartbeat,
            durable: head,
            is_level: true,
            floor: begun(self.log.floor()),
            tail_events_max: u64::MAX,
        }
    }
}

impl World {
    pub(crate) fn start_primary(&mut self) -> Result<(), Broken> {
        if self.primary.running.is_some() {
            return Ok(());
        }
        let opened = Log::open_stepped(
            Arc::new(self.primary.disk.clone()),
            log_options(),
            Arc::clone(&self.primary.clock),
        );
        let (log, stepper, _) = opened.map_err(|error| Broken(format!("open the primary's log: {error}")))?;
        let needed = self.oracle.head().max(self.oracle.acknowledged_at(self.now));
        self.oracle.check_log(&log, "the primary", needed)?;
        self.oracle.observe(&log)?;
        let index = new_index();
        replay(&log, &index)?;
        self.primary.life += 1;
        self.primary.running = Some(PrimaryProcess {
            log,
            stepper,
            index,
            commits: Vec::new(),
            serving: BTreeMap::new(),
            write_due: false,
            apply_due: false,
        });
        Ok(())
    }

    /// Asks the log for `change`, on behalf of a client.
    pub(crate) fn commit(&mut self, write: u64, cause: Cause, change: Change) {
        let life = self.primary.life;
        let Some(process) = &mut self.primary.running else { return };
        let log = process.log.clone();
        let mut appending: Appending = Box::pin(async move { log.append(cause, vec![change]).await });
        let answered = poll_now(&mut appending);
        if let Some(Err(_)) = answered {
            return self.write_ends(write, None);
        }
        process.commits.push(Commit { write, appending: Some(appending), durable: None });
        let early = Offset::new(1, process.log.head().seq + process.commits.len() as u64);
        if !std::mem::replace(&mut process.write_due, true) {
            let fsync = self.random.micros(100, 30_000);
            self.at(self.now + fsync, Happening::PrimaryWrites { life });
        }
        if self.bug == Some(Bug::AcknowledgeBeforeFsync) {
            self.acknowledge(write, early);
        }
    }

    pub(crate) fn primary_writes(&mut self, life: u64) -> Result<(), Broken> {
        if life != self.primary.life {
            return Ok(());
        }
        let Some(process) = &mut self.primary.running else { return Ok(()) };
        process.write_due = false;
        process.stepper.step();
        let mut failed = Vec::new();
        for commit in &mut process.commits {
            let Some(appending) = &mut commit.appending else { continue };
            match poll_now(appending) {
                Some(Ok(durable)) => (commit.appending, commit.durable) = (None, Some(durable)),
                Some(Err(_)) => failed.push(commit.write),
                None => return Err(Broken("the writer left somebody waiting".to_owned())),
            }
        }
        process.commits.retain(|commit| !failed.contains(&commit.write));
        self.oracle.observe(&process.log)?;
        let apply_due = std::mem::replace(&mut process.apply_due, true);
        let sessions: Vec<_> = process.serving.keys().copied().collect();
        for write in failed {
            self.write_ends(write, None);
        }
        if !apply_due {
            let delay = self.random.micros(10, 5_000);
            self.at(self.now + delay, Happening::PrimaryApplies { life });
        }
        sessions.into_iter().try_for_each(|session| self.serve(session))
    }

    pub(crate) fn primary_applies(&mut self, life: u64) -> Result<(), Broken> {
        if life != self.primary.life {
            return Ok(());
        }
        let Some(process) = &mut self.primary.running else { return Ok(()) };
        process.apply_due = false;
        replay(&process.log, &process.index)?;
        let applied = process.index.applied();
        let done = process.commits.extract_if(.., |commit| commit.durable.is_some_and(|at| at <= applied));
        let done: Vec<_> = done.filter_map(|commit| Some((commit.write, commit.durable?))).collect();
        for (write, offset) in done {
            self.acknowledge(write, offset);
        }
        Ok(())
    }

    /// Bytes of a log stream came; the first of a session open it.
    pub(crate) fn primary_hears(&mut self, session: u64, bytes: &[u8]) -> Result<(), Broken> {
        let (now, life) = (self.now, self.primary.life);
        let Some(known) = self.network.sessions.get(&session) else { return Ok(()) };
        let Some(process) = &mut self.primary.running else { return Ok(()) };
        if known.is_cut || known.lives.1 != life {
            return Ok(());
        }
        let site = site_name(known.site)?;
        let serving = process.serving.entry(session).or_insert_with(|| {
            let config = PublisherConfig {
                window_bytes: 16 * 1024,
                append_bytes_max: 2 * 1024,
                ..PublisherConfig::new(CLUSTER.to_owned(), Some(site))
            };
            let keys = Keys {
                token_jwks: String::new(),
                token_issuer: String::new(),
                seal: Vec::new(),
                public_pull: Vec::new(),
                generation: 1,
            };
            let publisher = Publisher::new(now, config, keys);
            Serving { publisher, reader: FrameReader::new(), wake_at: None }
        });
        serving.reader.push(bytes);
        loop {
            match serving.reader.next() {
                Ok(Some(frame)) => serving.publisher.handle_frame(now, frame),
                Ok(None) => break,
                Err(error) => return Err(Broken(format!("a site's frame: {error}"))),
            }
        }
        self.serve(session)
    }

    pub(crate) fn primary_loses(&mut self, session: u64) {
        if let Some(process) = &mut self.primary.running {
            process.serving.remove(&session);
        }
    }

    pub(crate) fn serving_wakes(&mut self, session: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(process) = &mut self.primary.running else { return Ok(()) };
        let Some(serving) = process.serving.get_mut(&session) else { return Ok(()) };
        if serving.wake_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        serving.wake_at = None;
        serving.publisher.handle_timeout(now);
        self.serve(session)
    }

    /// Sends what is to be sent, as `outport::primary` does.
    fn serve(&mut self, session: u64) -> Result<(), Broken> {
        let now = self.now;
        let Some(process) = &mut self.primary.running else { return Ok(()) };
        let Some(mut serving) = process.serving.remove(&session) else { return Ok(()) };
        let mut frames = Vec::new();
        loop {
            let state = process.state(&self.primary.clock);
            if let Some((have, digest)) = serving.publisher.to_place() {
                let place = process.log.place(have, digest);
                serving
                    .publisher
                    .handle_placed(place.map_err(|error| Broken(format!("read the log: {error}")))?);
            }
            if let Some((after, bytes_max)) = serving.publisher.wanted(&state) {
                let records = process.log.read(after, bytes_max);
                let records = records.map_err(|error| Broken(format!("read for a site: {error}")))?;
                let events = records.into_iter().map(|record| (record.event.offset, record.encoded));
                let handed = serving.publisher.handle_events(events);
                handed.map_err(|error| Broken(format!("hand over events: {error}")))?;
            }
            let Some(frame) = serving.publisher.poll_transmit(now, &state) else { break };
            frames.push(encode_frame(&frame).map_err(|error| Broken(format!("encode: {error}")))?);
        }
        let mut is_over = false;
        while let Some(notice) = serving.publisher.poll_notice() {
            is_over |= matches!(notice, PublisherNotice::Closed(_));
        }
        let wake_at = serving.publisher.poll_timeout();
        let is_new = wake_at != serving.wake_at;
        serving.wake_at = wake_at;
        if !is_over {
            process.serving.insert(session, serving);
        }
        for bytes in frames {
            if let Some(at) = self.network.down(session, now, &mut self.random) {
                self.at(at, Happening::Down { session, bytes, travelled: at - now });
            }
        }
        if is_over {
            if let Some(at) = self.network.down(session, now, &mut self.random) {
                self.at(at, Happening::DownBreaks { session });
            }
        } else if let Some(at) = wake_at.filter(|_| is_new) {
            self.at(at, Happening::ServingWakes { session });
        }
        Ok(())
    }

    /// Answers from its index; the offset is read before the lookup.
    pub(crate) fn primary_is_asked(&mut self, pull: u64, stage: u64, session: u64) -> Result<(), Broken> {
        let life = self.primary.life;
        let (Some(process), Some(asked)) = (&self.primary.running, self.pulls.get(&pull)) else {
            return Ok(());
        };
        let Some(known) = self.network.sessions.get(&session) else { return Ok(()) };
        if known.is_cut || known.lives.1 != life {
            return Ok(());
        }
        let at = process.index.applied();
        let digest = match &asked.reference {
            Reference::Digest(digest) => Ok(Some(*digest)),
            Reference::Tag(tag) => {
                process.index.tag(&asked.repo, tag).map(|entry| entry.map(|entry| entry.digest))
            }
        };
        let held = digest.and_then(|digest| match digest {
            Some(digest) => process.index.manifest_record(&asked.repo, &digest),
            None => Ok(None),
        });
        let held = held.map_err(|error| Broken(format!("the primary's index: {error}")))?;
        let answer = Answer::Said(held.map(|put| put.digest), at);
        let Some(link) = self.network.links.get(known.site) else { return Ok(()) };
        let arrival = link.down.arrival(self.now, &mut self.random);
        self.at(arrival, Happening::Answer { pull, stage, answer });
        Ok(())
    }
}

pub(crate) fn site_name(number: usize) -> Result<outport_proto::SiteName, Broken> {
    format!("site-{number}").parse().map_err(|error| Broken(format!("a site's name: {error}")))
}
