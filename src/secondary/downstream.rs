//! What a site passes on to the sites that follow it instead of the primary.

use crate::watch;
use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use outport_proto::{
    Offset, SiteName, Timestamp,
    frame::{
        Behind, CertificateRequests, Certificates, Credentials, Heartbeat, Keys, Question, Verdict, Welcome,
    },
    session::{LIVE_MAX, LogState, Word, begun},
};
use tokio::time::Instant;

use super::kept_keys::KeptKeys;
use crate::{
    clock::SharedClock,
    fetch::{UpstreamError, primary::QuicUpstream},
    registry::journal::Journal,
};

/// Keys that take longer than this to come are those that came last: the site that waits for them
/// has to be answered.
const KEYS_TIMEOUT: Duration = Duration::from_secs(1);

/// Tells how every site is that follows this one, and every site behind those.
pub type Reports = Arc<dyn Fn() -> Vec<Behind> + Send + Sync>;

/// Where a subscription puts what the sites that follow must hear. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Downstream(Arc<Ends>);

#[derive(Debug, Default)]
struct Ends {
    word: watch::Sender<Last>,
    /// Moves with `word`.
    news: watch::Sender<u64>,
    keys: watch::Sender<u64>,
    /// Whether this site's index is known not to be in the primary's state.
    differs: AtomicBool,
}

/// What was last heard.
#[derive(Clone, Debug, Default)]
struct Last {
    welcome: Option<Arc<Welcome>>,
    heard: Option<Heard>,
}

/// A heartbeat, and what it tells of times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    /// How old it is.
    pub(super) word: Word,
    /// When the primary said it, or earlier, by the clock's latest reading; below zero before its beginning.
    pub(super) as_of_micros: i64,
    /// How far the primary's clock is ahead of the latest reading here, by this and the heartbeats before.
    pub(super) ahead_micros: i64,
    /// When it came.
    pub(super) at: Instant,
}

impl Heard {
    /// How long ago the primary said it, but for the time it travelled.
    fn age(&self) -> Duration {
        self.word.age.saturating_add(self.at.elapsed())
    }
}

impl Downstream {
    /// The primary, or the site in between, said who it is, or sent newer keys.
    pub(super) fn welcomed(&self, welcome: &Welcome) {
        let mut is_other = true;
        self.0.word.send_modify(|word| {
            is_other = word.welcome.as_ref().is_none_or(|last| last.keys != welcome.keys);
            word.welcome = Some(Arc::new(welcome.clone()));
        });
        self.0.news.send_modify(|news| *news += 1);
        // Not by generation: a primary that was started again with other rules counts from where it was.
        if is_other {
            self.0.keys.send_modify(|keys| *keys += 1);
        }
    }

    /// A heartbeat came.
    pub(super) fn heard(&self, heard: Heard) {
        let is_news = self.0.word.send_if_modified(|word| {
            let is_news = word.heard.is_none_or(|last| heard.age() <= last.age());
            if is_news {
                word.heard = Some(heard);
            }
            is_news
        });
        if is_news {
            self.0.news.send_modify(|news| *news += 1);
        }
    }

    /// Whether this site's index is known not to be in the primary's state.
    pub(super) fn differs(&self, differs: bool) {
        self.0.differs.store(differs, Ordering::Relaxed);
    }

    /// What was heard may be of a history that has ended.
    pub(super) fn forget_heard(&self) {
        self.0.word.send_modify(|word| word.heard = None);
    }
}

/// What a site that relays tells the sites that follow it. Cloning gives another handle.
#[derive(Clone)]
pub struct PassedOn {
    site: SiteName,
    downstream: Downstream,
    journal: Journal,
    clock: SharedClock,
    upstream: QuicUpstream,
    kept: KeptKeys,
}

impl PassedOn {
    /// What `site` passes on of what its subscription puts into `downstream`. Keys of the sites
    /// that follow are kept below `dir`, for times without the primary.
    pub fn new(
        site: SiteName,
        dir: &Path,
        downstream: Downstream,
        journal: Journal,
        clock: SharedClock,
        upstream: QuicUpstream,
    ) -> Self {
        Self { site, downstream, journal, clock, upstream, kept: KeptKeys::below(dir) }
    }

    /// What the primary said about itself, and the sites up to it, this one last.
    ///
    /// # Errors
    /// Why nothing can be followed here now; for people.
    pub fn told(&self) -> Result<(Arc<Welcome>, Vec<SiteName>), String> {
        let welcome = self.downstream.0.word.borrow().welcome.clone();
        let welcome = welcome.ok_or_else(|| format!("{} has not heard of the primary yet", self.site))?;
        if !self.journal.is_whole() {
            return Err(format!("{} is taking a snapshot", self.site));
        }
        let path = welcome.path.iter().chain([&self.site]).cloned().collect();
        Ok((welcome, path))
    }

    /// Whether this site's index may be handed on as the primary's.
    ///
    /// # Errors
    /// Why not; for people.
    pub fn sound(&self) -> Result<(), String> {
        if self.downstream.0.differs.load(Ordering::Relaxed) {
            return Err(format!("{} is not in the primary's state and is being repaired", self.site));
        }
        Ok(())
    }

    /// Where this site's log is, and where the primary's was when it was last heard of. Its clock is
    /// never understated, so that nothing behind this site looks younger than it is. The
    /// state is the primary's own: what went wrong here must not go wrong behind this site.
    pub fn state(&self) -> LogState {
        // Read before the log, which is then never behind what it is compared with.
        let heard = self.downstream.0.word.borrow().heard;
        let log = self.journal.log();
        let (durable, log_bytes) = (begun(log.head()), log.bytes());
        let heartbeat = match heard {
            Some(heard) => {
                Heartbeat { now: self.clock.ahead_of_latest(heard.ahead_micros), ..heard.word.heartbeat }
            }
            None => Heartbeat {
                head: durable,
                closed_time: Timestamp::default(),
                now: self.clock.now(),
                log_bytes,
                state_hash: [0; 32],
                state_at: Offset::ZERO,
                unsure: false,
            },
        };
        let is_level =
            heard.is_some_and(|heard| heard.age() < LIVE_MAX && heard.word.heartbeat.head <= durable);
        let tail_events_max = self.journal.tail_events_max();
        let age = heard.map(|heard| self.clock.latest_since(heard.as_of_micros));
        LogState { heartbeat, age, durable, is_level, floor: begun(log.floor()), tail_events_max }
    }

    /// The keys of `site`, which follows the first of `via`, or this site; `None` when the primary
    /// says that they are not for here.
    ///
    /// # Errors
    /// Why they cannot be had now; for people.
    pub async fn keys(&self, site: &SiteName, via: &[SiteName]) -> Result<Option<Keys>, String> {
        let follows_here = via.is_empty();
        let via = via.iter().chain([&self.site]).cloned().collect();
        let asked = tokio::time::timeout(KEYS_TIMEOUT, self.upstream.site_keys(site.clone(), via)).await;
        match asked.unwrap_or(Err(UpstreamError::Timeout(KEYS_TIMEOUT))) {
            Ok(keys) if follows_here => {
                self.kept.keep(site, keys.clone()).await;
                Ok(keys)
            }
            Ok(keys) => Ok(keys),
            Err(error) if follows_here => match self.kept.last(site).await {
                Some(keys) => Ok(Some(keys)),
                None => Err(error.to_string()),
            },
            Err(error) => Err(error.to_string()),
        }
    }

    /// New certificates of `site`, as [`PassedOn::keys`]; `None` when the primary says that they are not for here.
    ///
    /// # Errors
    /// Why they cannot be had now; for people.
    pub async fn certify(
        &self,
        site: &SiteName,
        via: &[SiteName],
        requests: CertificateRequests,
    ) -> Result<Option<Certificates>, String> {
        let via = via.iter().chain([&self.site]).cloned().collect();
        let asked = self.upstream.certify(site.clone(), via, requests).await;
        asked.map_err(|error| error.to_string())
    }

    /// Makes whoever gives out keys look for the one that a token calls `unknown`.
    ///
    /// # Errors
    /// When that cannot be done; for people.
    pub async fn find_key(&self, unknown: &str) -> Result<(), String> {
        let asked = self.upstream.own_keys(unknown.to_owned()).await;
        asked.map(drop).map_err(|error| error.to_string())
    }

    /// What the registry behind the primary says to `question` by whoever sends this `Authorization`.
    ///
    /// # Errors
    /// When it says neither yes nor no; for people.
    pub async fn verdict(
        &self,
        authorization: Option<Credentials>,
        question: Question,
    ) -> Result<Verdict, String> {
        let said = self.upstream.authorize(authorization, question).await;
        said.map_err(|error| error.to_string())
    }

    /// Moves when what is passed on changed.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.downstream.0.news.subscribe()
    }

    /// Moves when the primary changed keys.
    pub fn keys_changed(&self) -> watch::Receiver<u64> {
        self.downstream.0.keys.subscribe()
    }
}
