//! The network between the primary and the sites. A stream is reliable and in order while it
//! lives; questions and answers travel each by themselves.

use std::{collections::BTreeMap, time::Duration};

use crate::random::Random;

/// One direction between the primary and a site.
#[derive(Debug)]
pub(crate) struct Path {
    delay: Duration,
    jitter_micros: u64,
    /// Nothing arrives before; what was sent meanwhile arrives then.
    pub(crate) blocked_until: Duration,
    /// Until then everything takes longer.
    pub(crate) slow_until: Duration,
}

impl Path {
    fn new(random: &mut Random) -> Self {
        Self {
            delay: random.micros(200, 120_000),
            jitter_micros: random.below(20_000),
            blocked_until: Duration::ZERO,
            slow_until: Duration::ZERO,
        }
    }

    pub(crate) fn is_blocked(&self, now: Duration) -> bool {
        now < self.blocked_until
    }

    pub(crate) fn arrival(&self, now: Duration, random: &mut Random) -> Duration {
        let mut arrival = now.max(self.blocked_until) + self.delay + random.micros(0, self.jitter_micros);
        if now < self.slow_until {
            arrival += random.millis(0, 400);
        }
        arrival
    }
}

/// Both directions between the primary and a site.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) up: Path,
    pub(crate) down: Path,
}

impl Link {
    pub(crate) fn new(random: &mut Random) -> Self {
        Self { up: Path::new(random), down: Path::new(random) }
    }

    pub(crate) fn heal(&mut self) {
        for path in [&mut self.up, &mut self.down] {
            (path.blocked_until, path.slow_until) = (Duration::ZERO, Duration::ZERO);
        }
    }
}

/// A connection of a site to the primary.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) site: usize,
    /// Which run of the site and of the primary hold its ends.
    pub(crate) lives: (u64, u64),
    /// It broke: what is on its way is lost.
    pub(crate) is_cut: bool,
    last_up: Duration,
    last_down: Duration,
}

impl Session {
    pub(crate) fn new(site: usize, lives: (u64, u64)) -> Self {
        Self { site, lives, is_cut: false, last_up: Duration::ZERO, last_down: Duration::ZERO }
    }
}

/// All links and all connections there ever were.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) links: Vec<Link>,
    pub(crate) sessions: BTreeMap<u64, Session>,
}

impl Network {
    /// When a piece of the stream arrives at the primary; `None` when it is lost.
    pub(crate) fn up(&mut self, session: u64, now: Duration, random: &mut Random) -> Option<Duration> {
        let session = self.sessions.get_mut(&session).filter(|session| !session.is_cut)?;
        let arrival = self.links.get(session.site)?.up.arrival(now, random);
        session.last_up = session.last_up.max(arrival);
        Some(session.last_up)
    }

    /// When a piece of the stream arrives at the site; `None` when it is lost.
    pub(crate) fn down(&mut self, session: u64, now: Duration, random: &mut Random) -> Option<Duration> {
        let session = self.sessions.get_mut(&session).filter(|session| !session.is_cut)?;
        let arrival = self.links.get(session.site)?.down.arrival(now, random);
        session.last_down = session.last_down.max(arrival);
        Some(session.last_down)
    }

    pub(crate) fn is_cut(&self, session: u64) -> bool {
        self.sessions.get(&session).is_none_or(|session| session.is_cut)
    }

    pub(crate) fn cut(&mut self, session: u64) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.is_cut = true;
        }
    }
}
