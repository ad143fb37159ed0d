//! Tells others what becomes of images at each site, so that what waits for one can go on: that it is visible,
//! that all of it is there, that a site is behind, that it is back.
//!
//! A primary knows of every site how far it has come ([`Fleet`]), and has the log. So the queue of what is still
//! to be told is the log itself, behind a mark for each webhook and site ([`marks`]), which is moved once the
//! receiver took what stands there. Nothing is lost over a restart; what was taken just before one may come
//! again, under the same identity. What the log has let go of before it could be told is skipped, and counted.
//!
//! - [`message`]: a CloudEvent, and its signature.
//! - [`delivery`]: sends one until it is taken.
//! - [`marks`]: how far each receiver was told of each site.

mod delivery;
mod marks;
mod message;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use outport_proto::{Change, Offset, SiteName, Tag, session::Place};
use prometheus_client::registry::Registry;
use tokio::{sync::Semaphore, time::Instant};

pub use self::{
    delivery::Target,
    message::{Kind, Secret},
};
use self::{
    delivery::{Receiver, WebhookMetrics},
    marks::{Mark, Marks},
    message::Message,
};
use super::fleet::{Fleet, Head, Reached};
use crate::{
    auth::FileError,
    blocking,
    clock::SharedClock,
    glob::Glob,
    log::{Log, LogError, Record},
    shutdown::Shutdown,
    status::{SiteState, SiteStatus, WebhookStatus},
};

/// Log read at once.
const READ_BYTES: usize = 256 * 1024;
/// How often it is looked who is behind.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// When a log that cannot be read is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Deliveries to one receiver at once.
const DELIVERIES_MAX: usize = 16;

/// Who is told of what.
#[derive(Clone, Debug)]
pub struct WebhookOptions {
    /// Its name: marks and metrics go by it.
    pub name: String,
    /// Where messages go, and how they are signed.
    pub target: Target,
    /// What is told.
    pub kinds: BTreeSet<Kind>,
    /// Of images in which repositories.
    pub repositories: Vec<Glob>,
    /// Of which sites; `None` for all.
    pub sites: Option<BTreeSet<SiteName>>,
    /// A site is behind once its images are whole later than this, or it is cut off for so long.
    pub behind_after: Duration,
}

impl WebhookOptions {
    fn wants(&self, site: &SiteName) -> bool {
        self.sites.as_ref().is_none_or(|sites| sites.contains(site))
    }
}

/// What the tellers look at.
#[derive(Clone)]
pub struct Sources {
    /// Identity of the cluster.
    pub cluster: String,
    /// What happened.
    pub log: Log,
    /// How far the sites are.
    pub fleet: Fleet,
    /// The primary's clock.
    pub clock: SharedClock,
}

/// The webhooks of a primary. Cloning gives another handle.
#[derive(Clone)]
pub struct Webhooks {
    running: Option<Arc<Running>>,
}

struct Running {
    receivers: Vec<(Arc<WebhookOptions>, Arc<Receiver>)>,
    sources: Sources,
    marks: Marks,
    shutdown: Shutdown,
}

impl Webhooks {
    /// Begins to tell; `file` holds the marks. Of a site that has none nothing older than now is told.
    ///
    /// # Errors
    /// When the marks cannot be read or written.
    pub fn start(
        webhooks: Vec<WebhookOptions>,
        sources: &Sources,
        file: PathBuf,
        registry: &mut Registry,
        shutdown: &Shutdown,
    ) -> Result<Self, FileError> {
        let metrics = WebhookMetrics::new(registry);
        if webhooks.is_empty() {
            return Ok(Self { running: None });
        }
        let sites = sources.fleet.sites();
        let all = webhooks.iter().flat_map(|webhook| {
            let wanted = sites.iter().filter(|site| webhook.wants(site));
            wanted.map(|site| (webhook.name.clone(), site.clone()))
        });
        let marks = Marks::open(file, all.collect(), sources.log.head())?;
        let receiver = |webhook: WebhookOptions| {
            let (name, target) = (webhook.name.clone(), webhook.target.clone());
            let metrics = metrics.of(&webhook.name);
            let receiver = Receiver::new(name, target, metrics, Semaphore::new(DELIVERIES_MAX));
            (Arc::new(webhook), Arc::new(receiver))
        };
        let receivers = webhooks.into_iter().map(receiver).collect();
        let running =
            Running { receivers, sources: sources.clone(), marks: marks.clone(), shutdown: shutdown.clone() };
        let this = Self { running: Some(Arc::new(running)) };
        sites.iter().for_each(|site| this.follow(site));
        shutdown.spawn(marks.keep(shutdown.clone()));
        Ok(this)
    }

    /// Begins to tell of one more site. It ends when the fleet shows the site no more.
    pub fn follow(&self, site: &SiteName) {
        let Some(running) = &self.running else { return };
        for (webhook, receiver) in &running.receivers {
            if !webhook.wants(site) {
                continue;
            }
            running.marks.begin(&webhook.name, site, running.sources.log.head());
            let teller = Teller {
                webhook: Arc::clone(webhook),
                receiver: Arc::clone(receiver),
                sources: running.sources.clone(),
                marks: running.marks.clone(),
                site: site.clone(),
            };
            teller.start(&running.shutdown);
        }
    }

    /// What `/v1/status` says of them.
    pub fn status(&self) -> Vec<WebhookStatus> {
        let receivers = self.running.iter().flat_map(|running| &running.receivers);
        receivers.map(|(_, receiver)| receiver.status()).collect()
    }
}

/// Tells one receiver of one site.
#[derive(Clone)]
struct Teller {
    webhook: Arc<WebhookOptions>,
    receiver: Arc<Receiver>,
    sources: Sources,
    marks: Marks,
    site: SiteName,
}

impl Teller {
    fn start(self, shutdown: &Shutdown) {
        let wants = |kind| self.webhook.kinds.contains(&kind);
        for kind in [Kind::Visible, Kind::Complete] {
            if wants(kind) {
                let (this, stop) = (self.clone(), shutdown.clone());
                shutdown.spawn(async move { until(&stop, this.tell_images(kind)).await });
            }
        }
        if wants(Kind::Behind) || wants(Kind::Back) {
            let stop = shutdown.clone();
            shutdown.spawn(async move { until(&stop, self.tell_state()).await });
        }
    }

    /// Tells of every image that the site has come to, in the order of the log.
    async fn tell_images(&self, kind: Kind) {
        let Some(mut reached) = self.sources.fleet.follow(&self.site) else { return };
        loop {
            let (mark, to) = (self.mark(kind), stage(&reached.borrow_and_update(), kind));
            if mark < to {
                self.tell_until(kind, mark, to).await;
            } else if reached.changed().await.is_err() {
                return;
            }
        }
    }

    /// Tells of one piece of the log.
    async fn tell_until(&self, kind: Kind, mark: Offset, to: Offset) {
        let log = self.sources.log.clone();
        let records = match blocking::spawn(move || log.read(mark, READ_BYTES)).await {
            Ok(Ok(records)) => records,
            Ok(Err(LogError::BelowFloor { .. } | LogError::NotInLog { .. })) => {
                // Gone, or of a history that never happened.
                return self.move_mark(kind, self.skipped(mark, to));
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the log cannot be read for a webhook");
                return tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                tracing::error!(%error, "reading the log for a webhook crashed");
                return tokio::time::sleep(RETRY).await;
            }
        };
        let due = records.iter().take_while(|record| record.event.offset <= to);
        let mut last = mark;
        for record in due {
            for tag in self.tags(record) {
                self.receiver.deliver(self.message_of(kind, record, tag)).await;
            }
            last = record.event.offset;
            self.move_mark(kind, last);
        }
        if last == mark {
            // What stands next in the log is past `to`: of another epoch, before which nothing is left.
            self.move_mark(kind, to);
        }
    }

    /// Where to go on when the log does not have what stands at `mark`.
    fn skipped(&self, mark: Offset, to: Offset) -> Offset {
        if let Ok(Place::Beyond { fork }) = self.sources.log.place(mark, None) {
            // What stood behind the fork never happened.
            return fork;
        }
        self.receiver.skipped();
        tracing::warn!(webhook = self.webhook.name, site = %self.site, after = %mark, "events are skipped that the log does not have any more");
        let floor = self.sources.log.floor();
        if floor > mark { floor } else { to }
    }

    /// The tags of an image that somebody wants to hear of.
    fn tags<'a>(&self, record: &'a Record) -> &'a [Tag] {
        match &record.event.change {
            Change::ManifestPut(put)
                if !put.repo.is_canary()
                    && self.webhook.repositories.iter().any(|glob| glob.matches(put.repo.as_str())) =>
            {
                &put.tags
            }
            _ => &[],
        }
    }

    fn message_of(&self, kind: Kind, record: &Record, tag: &Tag) -> Message {
        let now = self.sources.clock.now();
        Message::of_image(&self.sources.cluster, &self.site, kind, &record.event, tag, now)
    }

    /// Tells that the site is behind, and that it is back. What changed twice meanwhile is not told.
    async fn tell_state(&self) {
        let mut silent_since: Option<Instant> = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let Some(status) = self.status().await else {
                match self.sources.fleet.follow(&self.site) {
                    Some(_) => continue,
                    // It was removed.
                    None => return,
                }
            };
            let told_behind = self.marks.get(&self.webhook.name, &self.site).behind;
            let standing = standing(&status, self.webhook.behind_after);
            silent_since = silent_since.filter(|_| standing == Standing::Silent);
            let is_behind = match standing {
                Standing::Late => true,
                Standing::Silent => {
                    // The primary itself may just have come back.
                    let since = *silent_since.get_or_insert_with(Instant::now);
                    told_behind || since.elapsed() >= self.webhook.behind_after
                }
                Standing::Catching => told_behind,
                Standing::Good => false,
            };
            if is_behind == told_behind {
                continue;
            }
            let kind = if is_behind { Kind::Behind } else { Kind::Back };
            if self.webhook.kinds.contains(&kind) {
                let now = self.sources.clock.now();
                self.receiver.deliver(Message::of_site(&self.sources.cluster, &status, kind, now)).await;
            }
            self.marks.change(&self.webhook.name, &self.site, |mark| mark.behind = is_behind);
        }
    }

    async fn status(&self) -> Option<SiteStatus> {
        let (sources, site) = (self.sources.clone(), self.site.clone());
        let looked = blocking::spawn(move || {
            let head = Head {
                cluster: sources.cluster,
                offset: sources.log.head(),
                log_bytes: sources.log.bytes(),
                now: sources.clock.now(),
            };
            let time_after = |offset| Some(sources.log.read(offset, 1).ok()?.first()?.event.time);
            sources.fleet.status(&site, &head, time_after)
        });
        looked.await.ok().flatten()
    }

    fn mark(&self, kind: Kind) -> Offset {
        let Mark { visible, complete, .. } = self.marks.get(&self.webhook.name, &self.site);
        if kind == Kind::Visible { visible } else { complete }
    }

    fn move_mark(&self, kind: Kind, to: Offset) {
        self.marks.change(&self.webhook.name, &self.site, |mark| match kind {
            Kind::Visible => mark.visible = to,
            _ => mark.complete = to,
        });
    }
}

fn stage(reached: &Reached, kind: Kind) -> Offset {
    if kind == Kind::Visible { reached.applied } else { reached.complete }
}

async fn until(shutdown: &Shutdown, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = shutdown.requested() => {}
        () = work => {}
    }
}

/// How a site is, for who wants to know whether it is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Whole within half of what is allowed.
    Good,
    /// Neither: who was late stays so, and who was not as well.
    Catching,
    /// Later than allowed.
    Late,
    /// Nobody hears of it.
    Silent,
}

fn standing(status: &SiteStatus, behind_after: Duration) -> Standing {
    match (status.state, status.lag_seconds.complete) {
        (SiteState::Disconnected, _) => Standing::Silent,
        (_, Some(lag)) if lag > behind_after.as_secs_f64() => Standing::Late,
        (SiteState::Streaming | SiteState::CatchingUp, Some(lag))
            if lag <= behind_after.as_secs_f64() / 2.0 =>
        {
            Standing::Good
        }
        _ => Standing::Catching,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Lag;

    #[test]
    fn a_site_between_late_and_good_stays_what_it_was() {
        let after = Duration::from_secs(30);
        let of = |state, complete| {
            let lag_seconds = Lag { applied: Some(0.0), complete };
            standing(&SiteStatus { state, lag_seconds, ..SiteStatus::default() }, after)
        };
        assert_eq!(of(SiteState::Streaming, Some(0.0)), Standing::Good);
        assert_eq!(of(SiteState::CatchingUp, Some(14.0)), Standing::Good);
        assert_eq!(of(SiteState::Streaming, Some(20.0)), Standing::Catching);
        assert_eq!(of(SiteState::Streaming, Some(31.0)), Standing::Late);
        assert_eq!(of(SiteState::Snapshot, None), Standing::Catching);
        assert_eq!(of(SiteState::Disconnected, None), Standing::Silent);
    }
}
