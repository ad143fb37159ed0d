//! What people are told of this site beside how far it is.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use outport_proto::{
    Offset, SiteName, Timestamp,
    frame::{Canary, Fill, MISSING_REPOS_MAX, SiteDetail},
    session::{Progress, Received},
};

use super::{
    complete::Lacking,
    eta::Eta,
    propagation::{Propagation, PropagationMetrics},
};
use crate::status::{Location, SiteStatus, Traffic};

/// How often it is looked at whether anything changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// An error said in more bytes is cut.
const ERROR_BYTES_MAX: usize = 256;

/// Computes what a node serves when asked.
pub type TrafficSource = Arc<dyn Fn() -> Traffic + Send + Sync>;
/// Tells how the canary does when asked.
pub type CanarySource = Arc<dyn Fn() -> Option<Canary> + Send + Sync>;
/// Tells what is on its way here when asked.
pub type FillsSource = Arc<dyn Fn() -> Vec<Fill> + Send + Sync>;
/// Tells what is known of every site behind this one.
pub type DetailsBehind = Arc<dyn Fn() -> Vec<SiteDetail> + Send + Sync>;

/// What a subscription cannot know by itself.
#[derive(Clone, Default)]
pub struct About {
    /// What the site serves.
    pub traffic: Option<TrafficSource>,
    /// Where it stands.
    pub location: Location,
    /// Where it counts how long events take.
    pub propagation: PropagationMetrics,
    /// How long the canary takes; `None` when nobody looks.
    pub canary: Option<CanarySource>,
    /// What repositories lack.
    pub lacking: Lacking,
    /// What is on its way.
    pub fills: Option<FillsSource>,
    /// What is known of the sites behind it; `None` when there can be none.
    pub behind: Option<DetailsBehind>,
}

/// What there is to tell, and what was told.
pub(super) struct Details {
    about: About,
    propagation: Propagation,
    eta: Eta,
    own: SiteDetail,
    looked_at: Option<Duration>,
    /// On this stream.
    told: BTreeMap<SiteName, SiteDetail>,
}

impl Details {
    pub(super) fn new(site: SiteName, about: About) -> Self {
        let own = SiteDetail {
            site,
            eta_micros: None,
            applied: None,
            complete: None,
            pulls: Vec::new(),
            hits_ppm: None,
            served_bytes: 0,
            upstream_bytes: 0,
            clock: None,
            last_error: None,
            location: microdegrees(about.location),
            canary: None,
            missing: Vec::new(),
            fills: Vec::new(),
        };
        let propagation = Propagation::new(about.propagation.clone());
        Self { about, propagation, eta: Eta::default(), own, looked_at: None, told: BTreeMap::new() }
    }

    /// A stream begins: nothing was told on it.
    pub(super) fn connected(&mut self) {
        self.told.clear();
        self.looked_at = None;
    }

    pub(super) fn disconnected(&mut self) {
        self.eta.forget();
        self.propagation.forget();
    }

    /// Something went wrong; `now` is by the wall clock.
    pub(super) fn failed(&mut self, mut what: String, now: Timestamp) {
        what.truncate(what.floor_char_boundary(ERROR_BYTES_MAX));
        self.own.last_error = Some((what, now));
    }

    pub(super) fn received(&mut self, events: &[Received]) {
        self.propagation.received(events);
    }

    /// The site is so far; `primary_now` is only asked when an event came somewhere.
    pub(super) fn reached(&mut self, progress: Progress, primary_now: impl FnOnce() -> Option<Timestamp>) {
        let Progress { applied, complete, .. } = progress;
        if self.propagation.is_waiting(applied, complete) {
            let now = primary_now();
            self.propagation.applied(applied, now);
            self.propagation.complete(complete, now);
        }
    }

    /// Looks at what there is to tell, unless it did lately. Returns what changed since it was told.
    pub(super) fn changed(
        &mut self,
        now: Duration,
        (complete, head): (Offset, Offset),
        clock: Option<outport_proto::frame::ClockOffset>,
    ) -> Vec<SiteDetail> {
        if self.looked_at.is_some_and(|at| now < at + INTERVAL) {
            return Vec::new();
        }
        self.looked_at = Some(now);
        let left = left(complete, head);
        self.eta.see(now, left);
        let [applied, complete] = self.propagation.spreads();
        let traffic = self.about.traffic.as_ref().map(|traffic| traffic()).unwrap_or_default();
        let eta = self.eta.eta(now, left).map(|eta| u64::try_from(eta.as_micros()).unwrap_or(u64::MAX));
        self.own = SiteDetail {
            eta_micros: eta,
            applied,
            complete,
            pulls: traffic.pulls.into_iter().filter(|(_, count)| *count > 0).collect(),
            hits_ppm: traffic.hit_ratio.map(|ratio| (ratio * 1e6).round() as u32),
            served_bytes: traffic.served_bytes,
            upstream_bytes: traffic.upstream_bytes,
            clock,
            canary: self.about.canary.as_ref().and_then(|canary| canary()),
            missing: self.about.lacking.most(MISSING_REPOS_MAX),
            fills: self.about.fills.as_ref().map(|fills| fills()).unwrap_or_default(),
            ..self.own.clone()
        };
        let behind = self.about.behind.as_ref().map(|behind| behind()).unwrap_or_default();
        let all = behind.into_iter().chain([self.own.clone()]);
        let told = &mut self.told;
        all.filter(|detail| told.insert(detail.site.clone(), detail.clone()).as_ref() != Some(detail))
            .collect()
    }

    /// Adds it to what the site shows of itself.
    pub(super) fn describe(&self, status: &mut SiteStatus) {
        status.describe(&self.own);
        status.location = self.about.location;
        status.eta_seconds = match status.lag_seconds.complete {
            None => None,
            Some(_) if status.complete_seq >= status.head_seq => Some(0.0),
            Some(_) => status.eta_seconds.filter(|eta| *eta > 0.0),
        };
    }
}

fn left(complete: Offset, head: Offset) -> u64 {
    if complete >= head { 0 } else { head.seq.saturating_sub(complete.seq).max(1) }
}

fn microdegrees(location: Location) -> Option<(i32, i32)> {
    // Its bounds were checked when it was read.
    let micro = |degrees: f64| (degrees * 1e6).round() as i32;
    Some((micro(location.latitude?), micro(location.longitude?)))
}
