//! What a running subscription shows to the rest of the site.

use crate::watch;
use std::{sync::Arc, time::Duration};

use outport_proto::session::LIVE_MAX;

use crate::{
    clock::SharedClock,
    status::{Lag, SiteState, SiteStatus, StoreStatus},
};

/// The newest status of a site, kept by its subscription. Cloning gives another handle.
#[derive(Clone)]
pub struct SiteView {
    newest: Arc<watch::Sender<Reading>>,
    clock: SharedClock,
}

#[derive(Clone, Debug)]
struct Reading {
    status: SiteStatus,
    /// By the clock's latest reading.
    at: Duration,
}

impl SiteView {
    /// A view that shows `status` until the subscription says otherwise.
    pub(super) fn new(status: SiteStatus, clock: SharedClock) -> Self {
        let newest = watch::Sender::new(Reading { status, at: clock.latest() });
        Self { newest: Arc::new(newest), clock }
    }

    pub(super) fn show(&self, status: SiteStatus) {
        self.newest.send_replace(Reading { status, at: self.clock.latest() });
    }

    /// The site's status now, with what its store holds: ages have grown since the last reading.
    pub fn status(&self, store: StoreStatus) -> SiteStatus {
        let Reading { mut status, at } = self.newest.borrow().clone();
        let since = self.clock.latest().saturating_sub(at).as_secs_f64();
        let grow = |age: &mut Option<f64>| *age = age.map(|age| age + since);
        grow(&mut status.heartbeat_age_seconds);
        for lag in [&mut status.lag_seconds.applied, &mut status.lag_seconds.complete] {
            if lag.is_some_and(|lag| lag > 0.0) {
                grow(lag);
            }
        }
        // The subscription may be held up by a peer or a disk that takes nothing: no lag is frozen.
        if status.heartbeat_age_seconds.is_none_or(|age| age > LIVE_MAX.as_secs_f64()) {
            status.lag_seconds = Lag::default();
        }
        status.store = store;
        status
    }

    /// What the site is doing.
    pub fn state(&self) -> SiteState {
        self.newest.borrow().status.state
    }

    /// What the subscription said when `check` held for it: now, or as soon as it does.
    pub async fn when(&self, mut check: impl FnMut(&SiteStatus) -> bool) -> SiteStatus {
        match self.newest.subscribe().wait_for(|reading| check(&reading.status)).await {
            Ok(reading) => reading.status.clone(),
            // This handle is a sender, so the channel stays open.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn a_lag_that_nobody_renews_becomes_unknown() {
        let lag_seconds = Lag { applied: Some(0.0), complete: Some(2.0) };
        let heard_seconds_ago = |age: f64| {
            let status =
                SiteStatus { lag_seconds, heartbeat_age_seconds: Some(age), ..SiteStatus::default() };
            SiteView::new(status, Arc::new(SystemClock)).status(StoreStatus::default()).lag_seconds
        };
        assert_eq!(heard_seconds_ago(0.1).applied, Some(0.0));
        assert!(heard_seconds_ago(0.1).complete >= Some(2.0));
        assert_eq!(heard_seconds_ago(1.0), Lag::default());
    }
}
