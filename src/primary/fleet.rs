//! Every site the primary knows: what it said last, and how far behind that leaves it.

use crate::watch;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use outport_proto::{
    Offset, SiteName, Timestamp,
    frame::{Ack, Behind, BehindLink, FILLS_MAX, LAG_UNKNOWN_MICROS, MISSING_REPOS_MAX, SiteDetail},
};

use super::source::Relays;
use crate::fetch::primary::Transport;
use crate::status::{Lag, SiteState, SiteStatus, StoreStatus, Traffic};

/// A site that says nothing for this long is shown as disconnected. It is looked for what it says with every
/// heartbeat, which it acknowledges: a cut shows within a second.
const SILENCE_MAX: Duration = Duration::from_millis(700);

/// Most sites that a site which relays tells of: it does not know how many there should be.
const SITES_MAX: usize = 1024;

/// Kinds of pull results that a site may tell of.
const RESULTS_MAX: usize = 32;
/// A text from a site is cut here, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// The table of sites. Cloning gives another handle to the same table.
#[derive(Clone, Debug, Default)]
pub struct Fleet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    rows: Mutex<BTreeMap<SiteName, Row>>,
    /// Who may be behind whom; `None` at a site that relays, which takes what it is told.
    relays: Option<Relays>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    /// The sites in between, nearest to this end first; what they said is all there is to show then.
    via: Vec<SiteName>,
    program: String,
    session: Option<Session>,
    last: Option<(Ack, Instant)>,
    /// When anything came from it in this session.
    heard: Option<Instant>,
    /// What it told people, in whichever session.
    detail: Option<Box<SiteDetail>>,
    reached: watch::Sender<Reached>,
    /// Why the site was last refused because of a fork; ends with the next session.
    alarm: Option<String>,
    forks_refused: u64,
}

/// How far a site said it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Its index shows everything up to here.
    pub applied: Offset,
    /// It holds every blob that it keeps up to here.
    pub complete: Offset,
}

/// A session, of the site itself or of the first of those in between.
#[derive(Clone, Debug)]
struct Session {
    id: u64,
    rtt: Duration,
    snapshot: bool,
    over_tcp: bool,
}

/// The primary's side of a lag: where its log is.
#[derive(Clone, Debug)]
pub struct Head {
    /// Identity of the cluster.
    pub cluster: String,
    /// Newest durable event.
    pub offset: Offset,
    /// Bytes of log up to it.
    pub log_bytes: u64,
    /// The primary's clock.
    pub now: Timestamp,
}

impl Fleet {
    /// A primary's table that shows `sites` even before they first connect; those behind `relays` are among them.
    pub fn new(sites: impl IntoIterator<Item = SiteName>, relays: Relays) -> Self {
        let sites = sites.into_iter();
        let rows = sites.map(|site| (site, Row::default())).collect();
        Self(Arc::new(Shared { rows: Mutex::new(rows), relays: Some(relays) }))
    }

    /// Shows one more site.
    pub fn add(&self, site: &SiteName) {
        self.rows_mut().entry(site.clone()).or_default();
    }

    /// Shows a site no more; whoever follows it hears no more of it.
    pub fn remove(&self, site: &SiteName) {
        self.rows_mut().remove(site);
    }

    /// The table of a site that relays to `sites`.
    pub fn of_relay(sites: impl IntoIterator<Item = SiteName>) -> Self {
        let rows = sites.into_iter().map(|site| (site, Row::default())).collect();
        Self(Arc::new(Shared { rows: Mutex::new(rows), relays: None }))
    }

    /// Session `id` of a site begins; it replaces an earlier one.
    pub fn connected(&self, site: &SiteName, id: u64, program: &str, snapshot: bool) {
        let mut rows = self.rows_mut();
        // One that was removed meanwhile is about to be cut off.
        let Some(row) = rows.get_mut(site) else { return };
        program.clone_into(&mut row.program);
        row.via.clear();
        row.session = Some(Session { id, rtt: Duration::ZERO, snapshot, over_tcp: false });
        row.alarm = None;
        row.heard = None;
    }

    /// The packets of session `id` come through a tunnel.
    pub fn comes_over_tcp(&self, site: &SiteName, id: u64) {
        let mut rows = self.rows_mut();
        let session = rows.get_mut(site).and_then(|row| row.session.as_mut());
        if let Some(session) = session.filter(|session| session.id == id) {
            session.over_tcp = true;
        }
    }

    /// A site was refused because its history is not the log's; `why` is for people.
    pub fn fork_refused(&self, site: &SiteName, why: &str) {
        let mut rows = self.rows_mut();
        let Some(row) = rows.get_mut(site) else { return };
        row.alarm = Some(why.to_owned());
        row.forks_refused += 1;
    }

    /// What the site says about itself on session `id`, and the round trip now.
    pub fn acknowledged(&self, site: &SiteName, id: u64, mut ack: Ack, rtt: Duration) {
        let mut rows = self.rows_mut();
        let Some(row) = rows.get_mut(site) else { return };
        if let Some(session) = row.session.as_mut().filter(|session| session.id == id) {
            session.rtt = rtt;
            let behind = std::mem::take(&mut ack.behind);
            row.said(ack, Instant::now());
            for behind in behind {
                self.reported(&mut rows, site, id, behind);
            }
        }
    }

    /// Packets came from the site on session `id`: it is there, if it has nothing to say.
    pub fn heard(&self, site: &SiteName, id: u64) {
        let mut rows = self.rows_mut();
        let Some(row) = rows.get_mut(site) else { return };
        if row.session.as_ref().is_some_and(|session| session.id == id) {
            row.heard = Some(Instant::now());
        }
    }

    /// What the site said for people on session `id`, about itself and those behind it.
    pub fn detailed(&self, site: &SiteName, id: u64, details: Vec<SiteDetail>) {
        let mut rows = self.rows_mut();
        for mut detail in details {
            let Some(row) = rows.get_mut(&detail.site) else { continue };
            let is_its_own = detail.site == *site || row.via.first() == Some(site);
            if is_its_own && row.session.as_ref().is_some_and(|session| session.id == id) {
                detail.pulls.truncate(RESULTS_MAX);
                detail.missing.truncate(MISSING_REPOS_MAX);
                detail.fills.truncate(FILLS_MAX);
                detail.pulls.iter_mut().for_each(|(result, _)| cut(result));
                let canary = detail.canary.as_mut().and_then(|canary| canary.error.as_mut());
                detail.last_error.as_mut().map(|(text, _)| text).into_iter().chain(canary).for_each(cut);
                row.detail = Some(Box::new(detail));
            }
        }
    }

    /// What every site said for people, for the next site up.
    pub fn details(&self) -> Vec<SiteDetail> {
        self.rows_mut().values().filter_map(|row| row.detail.as_deref().cloned()).collect()
    }

    /// `relay` said in session `id` how a site behind it is.
    fn reported(&self, rows: &mut BTreeMap<SiteName, Row>, relay: &SiteName, id: u64, behind: Behind) {
        let Behind { site, via, program, link, silent_micros, .. } = &behind;
        let via: Vec<_> = std::iter::once(relay).chain(via).cloned().collect();
        let may_be_there = match &self.0.relays {
            Some(relays) => {
                rows.contains_key(site) && relays.lead(site, &via.iter().rev().cloned().collect::<Vec<_>>())
            }
            None => !via.contains(site) && (rows.contains_key(site) || rows.len() < SITES_MAX),
        };
        if !may_be_there {
            tracing::debug!(%relay, %site, "a relay tells of a site that is not behind it");
            return;
        }
        let row = rows.entry(site.clone()).or_default();
        // Whoever has the site's session now knows better than whoever had it.
        let is_elsewhere = row.session.as_ref().is_some_and(|session| session.id != id);
        if is_elsewhere && (row.via.is_empty() || *link == BehindLink::Down) {
            return;
        }
        let session = |rtt_micros, snapshot| {
            Some(Session { id, rtt: Duration::from_micros(rtt_micros), snapshot, over_tcp: false })
        };
        row.via = via;
        program.clone_into(&mut row.program);
        row.session = match *link {
            BehindLink::Down => None,
            BehindLink::Up { rtt_micros } => session(rtt_micros, false),
            BehindLink::Snapshot { rtt_micros } => session(rtt_micros, true),
        };
        row.alarm.clone_from(&behind.alarm);
        row.forks_refused = behind.forks_refused;
        if *silent_micros == u64::MAX {
            return;
        }
        let now = Instant::now();
        let heard = now.checked_sub(Duration::from_micros(*silent_micros)).unwrap_or(now);
        let Behind { received, durable, applied, complete, report, .. } = behind;
        row.said(Ack { received, durable, applied, complete, report, behind: Vec::new() }, heard);
    }

    /// How every site is that was ever heard of, for the next site up.
    pub fn behind(&self) -> Vec<Behind> {
        let rows = self.rows_mut();
        rows.iter().filter_map(|(site, row)| row.behind(site, silence(&rows, row))).collect()
    }

    /// Session `id` ended. A newer one of the same site stays.
    pub fn disconnected(&self, site: &SiteName, id: u64) {
        let mut rows = self.rows_mut();
        // Nothing is known any more of those behind it either.
        let told_of = |row: &Row| row.via.first() == Some(site);
        let mut ended = |row: &mut Row| row.session.take_if(|session| session.id == id).is_some();
        if rows.get_mut(site).is_some_and(&mut ended) {
            rows.values_mut().filter(|row| told_of(row)).for_each(|row| _ = ended(row));
        }
    }

    /// One status a site, by name. `time_after` gives the primary time of the first event after
    /// an offset, when the log still has it; it may read the disk.
    pub fn statuses(&self, head: &Head, time_after: impl Fn(Offset) -> Option<Timestamp>) -> Vec<SiteStatus> {
        // Acknowledgements must not wait for the disk.
        let rows = self.rows_mut().clone();
        rows.iter().map(|(site, row)| row.status(site, silence(&rows, row), head, &time_after)).collect()
    }

    /// The status of one site; `None` when there is no such site.
    pub fn status(
        &self,
        site: &SiteName,
        head: &Head,
        time_after: impl Fn(Offset) -> Option<Timestamp>,
    ) -> Option<SiteStatus> {
        let row = {
            let rows = self.rows_mut();
            rows.get(site).map(|row| (row.clone(), silence(&rows, row)))
        };
        row.map(|(row, silence)| row.status(site, silence, head, &time_after))
    }

    /// The sites, by name.
    pub fn sites(&self) -> Vec<SiteName> {
        self.rows_mut().keys().cloned().collect()
    }

    /// Follows how far a site is; `None` when there is no such site.
    pub fn follow(&self, site: &SiteName) -> Option<watch::Receiver<Reached>> {
        self.rows_mut().get(site).map(|row| row.reached.subscribe())
    }

    fn rows_mut(&self) -> MutexGuard<'_, BTreeMap<SiteName, Row>> {
        // No code that holds the lock can panic midway and leave a row half written.
        self.0.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long nothing was heard of a site. One behind another is told of only when something changes:
/// what was heard last of the one in between counts for it.
fn silence(rows: &BTreeMap<SiteName, Row>, row: &Row) -> Option<Duration> {
    let teller = row.via.first().filter(|_| row.session.is_some()).and_then(|relay| rows.get(relay));
    let teller = teller.unwrap_or(row);
    let (_, said) = teller.last.as_ref()?;
    Some(teller.heard.map_or(*said, |heard| heard.max(*said)).elapsed())
}

fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
}

impl Row {
    fn said(&mut self, ack: Ack, heard: Instant) {
        let reached = Reached { applied: ack.applied, complete: ack.complete };
        self.reached.send_if_modified(|last| std::mem::replace(last, reached) != reached);
        self.last = Some((ack, heard));
    }

    fn behind(&self, site: &SiteName, silence: Option<Duration>) -> Option<Behind> {
        let ack = match &self.last {
            Some((ack, _)) => ack.clone(),
            None if self.alarm.is_some() => Ack::default(),
            None => return None,
        };
        let Ack { received, durable, applied, complete, report, .. } = ack;
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let is_heard = silence.is_some_and(|silence| silence < SILENCE_MAX);
        Some(Behind {
            site: site.clone(),
            via: self.via.clone(),
            program: self.program.clone(),
            link: match &self.session {
                Some(Session { rtt, snapshot: false, .. }) if is_heard => {
                    BehindLink::Up { rtt_micros: micros(*rtt) }
                }
                Some(Session { rtt, .. }) if is_heard => BehindLink::Snapshot { rtt_micros: micros(*rtt) },
                _ => BehindLink::Down,
            },
            silent_micros: silence.map_or(u64::MAX, micros),
            received,
            durable,
            applied,
            complete,
            report,
            alarm: self.alarm.clone(),
            forks_refused: self.forks_refused,
        })
    }

    fn status(
        &self,
        site: &SiteName,
        silence: Option<Duration>,
        head: &Head,
        time_after: &impl Fn(Offset) -> Option<Timestamp>,
    ) -> SiteStatus {
        let session = self.session.as_ref();
        let mut status = SiteStatus {
            site: site.to_string(),
            cluster: head.cluster.clone(),
            version: self.program.clone(),
            epoch: head.offset.epoch,
            head_seq: head.offset.seq,
            lag_events: head.offset.seq,
            lag_bytes: head.log_bytes,
            heartbeat_age_seconds: silence.map(|silence| silence.as_secs_f64()),
            alarm: self.alarm.clone(),
            forks_refused: self.forks_refused,
            via: self.via.iter().map(SiteName::to_string).collect(),
            ..SiteStatus::default()
        };
        if let Some(detail) = &self.detail {
            status.describe(detail);
            status.traffic = Traffic::from(&**detail);
        }
        if let Some(session) = session {
            let transport = if session.over_tcp { Transport::Tcp } else { Transport::Quic };
            transport.name().clone_into(&mut status.transport);
            status.rtt_seconds = Some(session.rtt.as_secs_f64());
            if session.snapshot {
                status.state = SiteState::Snapshot;
            }
        }
        let said_eta = status.eta_seconds.take();
        let Some((ack, _)) = &self.last else { return status };
        let live = session.is_some() && silence.is_some_and(|silence| silence < SILENCE_MAX);
        let lag = |offset: Offset, said_micros: u64| {
            if !live {
                return None;
            }
            if offset >= head.offset {
                return Some(0.0);
            }
            let said = (said_micros != LAG_UNKNOWN_MICROS).then_some(Duration::from_micros(said_micros));
            let age = time_after(offset).map(|time| head.now.since(time)).or(said);
            age.map(|age| age.as_secs_f64())
        };
        if !live {
            // Nobody knows how these are now.
            status.fills.clear();
            if let Some(canary) = &mut status.canary {
                canary.lag_seconds = None;
            }
        }
        let seq = |offset: Offset| if offset.epoch == head.offset.epoch { offset.seq } else { 0 };
        let report = &ack.report;
        status.received_seq = seq(ack.received);
        status.durable_seq = seq(ack.durable);
        status.applied_seq = seq(ack.applied);
        status.complete_seq = seq(ack.complete);
        status.lag_seconds = Lag {
            applied: lag(ack.applied, report.lag_applied_micros),
            complete: lag(ack.complete, report.lag_complete_micros),
        };
        status.eta_seconds = match status.lag_seconds.complete {
            None => None,
            Some(_) if ack.complete >= head.offset => Some(0.0),
            Some(_) => said_eta.filter(|eta| *eta > 0.0),
        };
        status.lag_events = head.offset.seq.saturating_sub(status.applied_seq);
        status.lag_bytes =
            if ack.applied >= head.offset { 0 } else { head.log_bytes.saturating_sub(report.log_bytes) };
        status.missing_blobs = report.missing_blobs;
        status.staleness_bound_seconds = Duration::from_micros(report.staleness_bound_micros).as_secs_f64();
        status.store = StoreStatus {
            bytes: report.store_bytes,
            limit_bytes: report.store_limit_bytes,
            blobs: report.store_blobs,
        };
        status.state = match session {
            Some(session) if session.snapshot => SiteState::Snapshot,
            Some(_) if live && ack.applied >= head.offset => SiteState::Streaming,
            Some(_) if live => SiteState::CatchingUp,
            _ => SiteState::Disconnected,
        };
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(applied: u64) -> Ack {
        let offset = Offset::new(1, applied);
        let report = outport_proto::frame::SiteReport { log_bytes: applied * 100, ..Default::default() };
        Ack {
            received: offset,
            durable: offset,
            applied: offset,
            complete: offset,
            report,
            behind: Vec::new(),
        }
    }

    fn head(seq: u64) -> Head {
        let (offset, now) = (Offset::new(1, seq), Timestamp::from_secs(1000));
        Head { cluster: "c".to_owned(), offset, log_bytes: seq * 100, now }
    }

    fn detail(site: &SiteName, served_bytes: u64) -> SiteDetail {
        SiteDetail {
            site: site.clone(),
            eta_micros: Some(7_000_000),
            applied: None,
            complete: None,
            pulls: vec![("local".to_owned(), 3)],
            hits_ppm: Some(500_000),
            served_bytes,
            upstream_bytes: 0,
            clock: None,
            last_error: Some(("ä".repeat(TEXT_BYTES_MAX), Timestamp::from_secs(9))),
            location: Some((19_076_000, -72_878_000)),
            canary: None,
            missing: Vec::new(),
            fills: Vec::new(),
        }
    }

    #[test]
    fn a_site_tells_of_itself_and_of_nobody_else() {
        let [mumbai, goa]: [SiteName; 2] = ["mumbai", "goa"].map(|name| name.parse().unwrap());
        let fleet = Fleet::new([mumbai.clone(), goa.clone()], Relays::default());
        let show = |number: usize| fleet.statuses(&head(10), |_| None).remove(number);
        fleet.connected(&mumbai, 1, "0.1.0", false);
        fleet.connected(&goa, 2, "0.1.0", false);
        fleet.acknowledged(&mumbai, 1, ack(7), Duration::ZERO);
        fleet.detailed(&mumbai, 1, vec![detail(&mumbai, 5), detail(&goa, 6)]);
        fleet.detailed(&mumbai, 9, vec![detail(&mumbai, 7)]);
        let (silent, told) = (show(0), show(1));
        assert_eq!(silent.traffic, Traffic::default(), "mumbai cannot tell of goa");
        assert_eq!(told.traffic.served_bytes, 5, "a session that ended tells nothing");
        assert_eq!((told.traffic.pulls["local"], told.traffic.hit_ratio), (3, Some(0.5)));
        assert_eq!((told.location.latitude, told.location.longitude), (Some(19.076), Some(-72.878)));
        assert_eq!(told.eta_seconds, Some(7.0));
        assert_eq!(told.last_error.unwrap().text.len(), TEXT_BYTES_MAX);
        fleet.disconnected(&mumbai, 1);
        let gone = show(1);
        assert_eq!((gone.eta_seconds, gone.traffic.served_bytes), (None, 5));
    }

    #[test]
    fn a_site_is_as_far_behind_as_its_oldest_event_is_old() {
        let site: SiteName = "mumbai".parse().unwrap();
        let fleet = Fleet::new([site.clone()], Relays::default());
        let show = |fleet: &Fleet| {
            fleet.statuses(&head(10), |after| Some(Timestamp::from_secs(990 + after.seq))).remove(0)
        };

        let never = show(&fleet);
        assert_eq!((never.state, never.lag_seconds.applied), (SiteState::Disconnected, None));
        assert_eq!((never.lag_events, never.heartbeat_age_seconds), (10, None));

        fleet.connected(&site, 1, "0.1.0", false);
        fleet.acknowledged(&site, 1, ack(7), Duration::from_millis(3));
        let behind = show(&fleet);
        assert_eq!((behind.state, behind.lag_seconds.applied), (SiteState::CatchingUp, Some(3.0)));
        assert_eq!((behind.lag_events, behind.lag_bytes), (3, 300));

        fleet.acknowledged(&site, 1, ack(10), Duration::from_millis(3));
        let level = show(&fleet);
        assert_eq!((level.state, level.lag_seconds.applied), (SiteState::Streaming, Some(0.0)));

        fleet.disconnected(&site, 1);
        let gone = show(&fleet);
        assert_eq!((gone.state, gone.lag_seconds.applied), (SiteState::Disconnected, None));
        assert_eq!(gone.applied_seq, 10);
    }

    #[test]
    fn a_lag_that_neither_end_knows_is_unknown() {
        let site: SiteName = "mumbai".parse().unwrap();
        let fleet = Fleet::new([site.clone()], Relays::default());
        fleet.connected(&site, 1, "0.1.0", true);
        let mut behind = ack(3);
        behind.report.lag_applied_micros = LAG_UNKNOWN_MICROS;
        behind.report.lag_complete_micros = 2_000_000;
        fleet.acknowledged(&site, 1, behind, Duration::ZERO);
        let lag = fleet.statuses(&head(10), |_| None)[0].lag_seconds;
        assert_eq!((lag.applied, lag.complete), (None, Some(2.0)));
    }

    #[test]
    fn who_follows_a_site_hears_of_what_it_reached_and_nothing_else() {
        let site: SiteName = "mumbai".parse().unwrap();
        let fleet = Fleet::new([site.clone()], Relays::default());
        let mut followed = fleet.follow(&site).unwrap();
        assert!(fleet.follow(&"nowhere".parse().unwrap()).is_none());
        fleet.connected(&site, 1, "0.1.0", false);
        fleet.acknowledged(&site, 1, ack(7), Duration::ZERO);
        assert!(followed.has_changed().unwrap());
        assert_eq!(followed.borrow_and_update().applied, Offset::new(1, 7));
        fleet.acknowledged(&site, 1, ack(7), Duration::from_millis(1));
        assert!(!followed.has_changed().unwrap(), "the same again is no news");
    }

    #[test]
    fn a_late_goodbye_leaves_the_new_session() {
        let site: SiteName = "mumbai".parse().unwrap();
        let fleet = Fleet::of_relay([site.clone()]);
        fleet.connected(&site, 1, "0.1.0", false);
        fleet.connected(&site, 2, "0.1.0", false);
        fleet.disconnected(&site, 1);
        fleet.acknowledged(&site, 2, ack(10), Duration::ZERO);
        assert_eq!(fleet.statuses(&head(10), |_| None)[0].state, SiteState::Streaming);
    }
}
