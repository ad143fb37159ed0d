//! What a running subscription shows to the rest of the site.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use crate::status::{SiteState, SiteStatus, StoreStatus};

/// The newest status of a site, kept by its subscription. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct SiteView(Arc<Mutex<Reading>>);

#[derive(Debug)]
struct Reading {
    status: SiteStatus,
    at: Instant,
}

impl SiteView {
    /// A view that shows `status` until the subscription says otherwise.
    pub(super) fn new(status: SiteStatus) -> Self {
        Self(Arc::new(Mutex::new(Reading { status, at: Instant::now() })))
    }

    pub(super) fn show(&self, status: SiteStatus) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Reading { status, at: Instant::now() };
    }

    /// The site's status now, with what its store holds: ages have grown since the last reading.
    pub fn status(&self, store: StoreStatus) -> SiteStatus {
        let reading = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut status, since) = (reading.status.clone(), reading.at.elapsed().as_secs_f64());
        drop(reading);
        let grow = |age: &mut Option<f64>| *age = age.map(|age| age + since);
        grow(&mut status.heartbeat_age_seconds);
        for lag in [&mut status.lag_seconds.applied, &mut status.lag_seconds.complete] {
            if lag.is_some_and(|lag| lag > 0.0) {
                grow(lag);
            }
        }
        status.store = store;
        status
    }

    /// What the site is doing.
    pub fn state(&self) -> SiteState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).status.state
    }
}
