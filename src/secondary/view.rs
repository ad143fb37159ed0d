//! What a running subscription shows to the rest of the site.

use crate::watch;
use std::sync::Arc;

use outport_proto::session::LIVE_MAX;
use tokio::time::Instant;

use crate::status::{Lag, SiteState, SiteStatus, StoreStatus};

/// The newest status of a site, kept by its subscription. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct SiteView(Arc<watch::Sender<Reading>>);

#[derive(Clone, Debug)]
struct Reading {
    status: SiteStatus,
    at: Instant,
}

impl SiteView {
    /// A view that shows `status` until the subscription says otherwise.
    pub(super) fn new(status: SiteStatus) -> Self {
        Self(Arc::new(watch::Sender::new(Reading { status, at: Instant::now() })))
    }

    pub(super) fn show(&self, status: SiteStatus) {
        self.0.send_replace(Reading { status, at: Instant::now() });
    }

    /// The site's status now, with what its store holds: ages have grown since the last reading.
    pub fn status(&self, store: StoreStatus) -> SiteStatus {
        let Reading { mut status, at } = self.0.borrow().clone();
        let since = at.elapsed().as_secs_f64();
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
        self.0.borrow().status.state
    }

    /// What the subscription said when `check` held for it: now, or as soon as it does.
    pub async fn when(&self, mut check: impl FnMut(&SiteStatus) -> bool) -> SiteStatus {
        match self.0.subscribe().wait_for(|reading| check(&reading.status)).await {
            Ok(reading) => reading.status.clone(),
            // This handle is a sender, so the channel stays open.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_that_nobody_renews_becomes_unknown() {
        let lag_seconds = Lag { applied: Some(0.0), complete: Some(2.0) };
        let heard_seconds_ago = |age: f64| {
            let status =
                SiteStatus { lag_seconds, heartbeat_age_seconds: Some(age), ..SiteStatus::default() };
            SiteView::new(status).status(StoreStatus::default()).lag_seconds
        };
        assert_eq!(heard_seconds_ago(0.1).applied, Some(0.0));
        assert!(heard_seconds_ago(0.1).complete >= Some(2.0));
        assert_eq!(heard_seconds_ago(1.0), Lag::default());
    }
}
