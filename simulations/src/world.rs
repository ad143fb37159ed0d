//! One world: the queue of what will happen, and the loop that lets it happen.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use outport::clock::{Clock, SharedClock};
use outport_proto::Timestamp;

use crate::{
    Broken, Bug, Options, Outcome, Report,
    clients::{Client, Write},
    network::{Link, Network},
    oracle::Oracle,
    primary::{Answer, Primary},
    pulls::Pull,
    random::Random,
    site::Site,
};

/// The primary's wall clock when a world begins.
const BEGINNING: Timestamp = Timestamp::from_secs(1_000_000_000);
/// After the last fault everything must be well within this: an idle session is noticed after
/// 10 s, and the longest backoff is 15 s.
const RECOVERY_MAX: Duration = Duration::from_secs(60);

/// What can happen.
#[derive(Debug)]
pub(crate) enum Happening {
    /// A piece of a log stream reaches the primary.
    Up { session: u64, bytes: Bytes },
    /// A piece of a log stream reaches the site.
    Down { session: u64, bytes: Bytes, travelled: Duration },
    /// The primary notices that a connection is gone.
    UpBreaks { session: u64 },
    /// The site notices that a connection is gone.
    DownBreaks { session: u64 },
    /// A question of a site reaches the primary.
    Question { pull: u64, stage: u64, session: u64 },
    /// The primary's answer reaches the site.
    Answer { pull: u64, stage: u64, answer: Answer },
    /// A pull has waited long enough.
    PullTimeout { pull: u64, stage: u64 },
    /// A session's timer at the primary.
    ServingWakes { session: u64 },
    /// A site's timer.
    SiteWakes { site: usize, life: u64 },
    /// A site tries to connect.
    Dial { site: usize, life: u64 },
    /// It is connected, or not.
    Dialled { site: usize, life: u64, worked: bool },
    /// The primary's writer gets to work.
    PrimaryWrites { life: u64 },
    /// The primary's index takes in what is durable.
    PrimaryApplies { life: u64 },
    /// A site's writer gets to work.
    SiteWrites { site: usize, life: u64 },
    /// A site's index takes in what is durable.
    SiteApplies { site: usize, life: u64 },
    /// A client does the next thing.
    ClientActs { client: usize },
    /// A client's write reaches the primary.
    WriteArrives { write: u64 },
    /// A client's token request reaches the primary.
    TokenAsked { client: usize },
    /// Something goes wrong.
    Fault,
    /// The primary comes back.
    PrimaryStarts,
    /// A site comes back.
    SiteStarts { site: usize },
    /// A disk has room again.
    RoomAgain { site: Option<usize> },
}

/// Wall time as one machine of the world sees it.
#[derive(Debug)]
struct WorldClock {
    micros: Arc<AtomicU64>,
    ahead_micros: i64,
}

impl Clock for WorldClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.micros.load(Ordering::Relaxed).saturating_add_signed(self.ahead_micros))
    }
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) random: Random,
    pub(crate) bug: Option<Bug>,
    pub(crate) report: Report,
    pub(crate) oracle: Oracle,
    pub(crate) network: Network,
    pub(crate) primary: Primary,
    pub(crate) sites: Vec<Site>,
    pub(crate) clients: Vec<Client>,
    pub(crate) pulls: BTreeMap<u64, Pull>,
    pub(crate) writes: BTreeMap<u64, Write>,
    /// Nothing goes wrong and nobody acts any more.
    pub(crate) is_calm: bool,
    queue: BTreeMap<(Duration, u64), Happening>,
    numbers: u64,
    trace: u64,
    micros: Arc<AtomicU64>,
}

impl World {
    pub(crate) fn new(options: &Options) -> Self {
        let mut random = Random::new(options.seed);
        let micros = Arc::new(AtomicU64::new(BEGINNING.as_micros()));
        let clock = |ahead_micros| -> SharedClock {
            Arc::new(WorldClock { micros: Arc::clone(&micros), ahead_micros })
        };
        let sites: Vec<_> = (0..2 + random.index(2))
            .map(|number| {
                let day = 24 * 3600 * 1_000_000;
                let ahead = i64::try_from(random.below(2 * day)).unwrap_or_default() - day as i64;
                Site::new(number, clock(ahead))
            })
            .collect();
        let links = sites.iter().map(|_| Link::new(&mut random)).collect();
        Self {
            now: Duration::from_secs(100),
            bug: options.bug,
            report: Report { worlds: 1, ..Report::default() },
            oracle: Oracle::default(),
            network: Network { links, sessions: BTreeMap::new() },
            primary: Primary::new(clock(0)),
            clients: (0..4 + random.index(4)).map(|_| Client::default()).collect(),
            sites,
            random,
            pulls: BTreeMap::new(),
            writes: BTreeMap::new(),
            is_calm: false,
            queue: BTreeMap::new(),
            numbers: 0,
            trace: 0xcbf2_9ce4_8422_2325,
            micros,
        }
    }

    /// Lets the world run until its time is over and everything is well again, or a promise is broken.
    pub(crate) fn run(mut self, options: &Options) -> Outcome {
        let begun = self.now;
        let broken = self.live(begun + options.duration).err();
        self.report.time = self.now - begun;
        self.report.events = self.oracle.head();
        Outcome { report: self.report, trace: self.trace, broken: broken.map(|broken| (self.now, broken)) }
    }

    fn live(&mut self, end: Duration) -> Result<(), Broken> {
        self.start_primary()?;
        for site in 0..self.sites.len() {
            self.start_site(site)?;
        }
        for client in 0..self.clients.len() {
            self.client_rests(client);
        }
        self.after_millis(500, 4000, Happening::Fault);
        self.until(|world| world.now >= end)?;
        self.is_calm = true;
        self.heal();
        let recovered_by = self.now + RECOVERY_MAX;
        self.until(|world| world.is_well() || world.now >= recovered_by)?;
        self.check_end()
    }

    fn until(&mut self, done: impl Fn(&Self) -> bool) -> Result<(), Broken> {
        while !done(self) {
            let Some(((at, number), happening)) = self.queue.pop_first() else {
                return Err(Broken("nothing will ever happen again".to_owned()));
            };
            self.now = at;
            let micros = u64::try_from(at.as_micros()).unwrap_or(u64::MAX);
            self.micros.store(BEGINNING.as_micros().saturating_add(micros), Ordering::Relaxed);
            self.report.happenings += 1;
            self.note(&[micros, number]);
            self.happen(happening)?;
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Broken> {
        match happening {
            Happening::Up { session, bytes } => {
                self.note_bytes(&bytes);
                self.primary_hears(session, &bytes)
            }
            Happening::Down { session, bytes, travelled } => {
                self.note_bytes(&bytes);
                self.site_hears(session, &bytes, travelled)
            }
            Happening::UpBreaks { session } => {
                self.primary_loses(session);
                Ok(())
            }
            Happening::DownBreaks { session } => self.site_loses(session),
            Happening::Question { pull, stage, session } => self.primary_is_asked(pull, stage, session),
            Happening::Answer { pull, stage, answer } => self.pull_is_answered(pull, stage, &answer),
            Happening::PullTimeout { pull, stage } => self.pull_times_out(pull, stage),
            Happening::ServingWakes { session } => self.serving_wakes(session),
            Happening::SiteWakes { site, life } => self.site_wakes(site, life),
            Happening::Dial { site, life } => {
                self.site_dials(site, life);
                Ok(())
            }
            Happening::Dialled { site, life, worked } => self.site_dialled(site, life, worked),
            Happening::PrimaryWrites { life } => self.primary_writes(life),
            Happening::PrimaryApplies { life } => self.primary_applies(life),
            Happening::SiteWrites { site, life } => self.site_writes(site, life),
            Happening::SiteApplies { site, life } => self.site_applies(site, life),
            Happening::ClientActs { client } => self.client_acts(client),
            Happening::WriteArrives { write } => {
                self.write_arrives(write);
                Ok(())
            }
            Happening::TokenAsked { client } => {
                self.token_asked(client);
                Ok(())
            }
            Happening::Fault => self.fault(),
            Happening::PrimaryStarts => self.start_primary(),
            Happening::SiteStarts { site } => self.start_site(site),
            Happening::RoomAgain { site } => {
                self.room_again(site);
                Ok(())
            }
        }
    }

    /// Everybody has everything and nobody waits.
    fn is_well(&self) -> bool {
        let head = self.oracle.head();
        let at_head = |applied: Option<u64>| applied == Some(head);
        self.pulls.is_empty()
            && at_head(self.primary.running.as_ref().map(|process| process.index.applied().seq))
            && self.sites.iter().all(|site| {
                let applied = site.running.as_ref().map(|process| process.index.applied().seq);
                at_head(applied)
                    && site.running.as_ref().is_some_and(|process| process.subscriber.live(self.now))
            })
    }

    fn check_end(&self) -> Result<(), Broken> {
        if let Some((number, pull)) = self.pulls.first_key_value() {
            return Err(Broken(format!("pull {number} never ends: {pull:?}")));
        }
        let truth = self.oracle.state_hash();
        let primary = self.primary.running.as_ref().map(|process| ("the primary".to_owned(), &process.index));
        let sites = self.sites.iter().filter_map(|site| {
            site.running.as_ref().map(|process| (format!("site {}", site.number), &process.index))
        });
        for (whose, index) in primary.into_iter().chain(sites) {
            let (hash, at) = index.state_hash();
            if at.seq != self.oracle.head() {
                return Err(Broken(format!(
                    "{RECOVERY_MAX:?} after the last fault {whose} is at {at}, the log at {}",
                    self.oracle.head()
                )));
            }
            if hash != truth {
                return Err(Broken(format!("the state of {whose} at {at} is not what the log leads to")));
            }
        }
        if !self.is_well() {
            return Err(Broken(format!("{RECOVERY_MAX:?} after the last fault a site has no live session")));
        }
        Ok(())
    }

    pub(crate) fn at(&mut self, at: Duration, happening: Happening) {
        let number = self.number();
        self.queue.insert((at.max(self.now), number), happening);
    }

    pub(crate) fn after_millis(&mut self, shortest: u64, longest: u64, happening: Happening) {
        let delay = self.random.millis(shortest, longest);
        self.at(self.now + delay, happening);
    }

    /// A number nothing else has.
    pub(crate) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// Makes the trace depend on `numbers` (FNV-1a, word by word).
    pub(crate) fn note(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.trace = (self.trace ^ number).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    pub(crate) fn note_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(0_u64, |word, byte| (word << 8) | u64::from(*byte));
            self.note(&[word]);
        }
    }

    pub(crate) fn count_fault(&mut self, kind: &'static str) {
        *self.report.faults.entry(kind).or_default() += 1;
    }
}
