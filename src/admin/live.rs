//! `/v1/live`: the status as it changes, by server-sent events; `/v1/history`: how it was.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{Either, Full};
use outport_proto::SiteName;
use serde_json::{Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::Instant,
};

use super::{Admin, Body, answer, error, json as json_answer};
use crate::{
    shutdown::Shutdown,
    status::{SiteState, SiteStatus, Status, StatusSource},
};

/// Those who follow at once; more are refused.
pub const FOLLOWERS_MAX: usize = 32;
/// How often it is looked whether a site changed its state, which is told at once.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// How often everything else is told.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// A follower that takes nothing is left behind by so many changes at most.
const WAITING_MAX: usize = 4;

impl Admin {
    /// `GET /v1/live`: an event of all that `/v1/status` says, then one whenever something changed:
    /// `{"node": .., "sites": [..]}` with the sites that did, and `gone` with the names of those that went.
    pub(super) fn live(&self) -> Response<Body> {
        let Ok(turn) = self.followers.clone().try_acquire_owned() else { return busy() };
        let (sender, events) = mpsc::channel(WAITING_MAX);
        let (status, shutdown) = (self.status.clone(), self.shutdown.clone());
        self.shutdown.spawn(tell(status, sender, shutdown));
        let live = Live::new(events, turn);
        answer(StatusCode::OK, "text/event-stream", String::new()).map(|_| Either::Right(Either::Right(live)))
    }

    /// `GET /v1/history`: the lag of the last hour of every site; with `site` and `from` (seconds since the
    /// Unix epoch) all that is known of one.
    pub(super) fn history(&self, query: &str) -> Response<Full<Bytes>> {
        let now = self.clock.now().as_secs();
        let (mut site, mut from) = (None, now.saturating_sub(3600));
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            match (&*key, value.parse()) {
                ("site", _) => match value.parse::<SiteName>() {
                    Ok(name) => site = Some(name),
                    Err(reason) => return error(StatusCode::BAD_REQUEST, &format!("site: {reason}")),
                },
                ("from", Ok(seconds)) => from = seconds,
                ("from", Err(_)) => {
                    return error(StatusCode::BAD_REQUEST, "from: seconds since the Unix epoch");
                }
                _ => return error(StatusCode::BAD_REQUEST, &format!("{key:?} is not known here")),
            }
        }
        let Some(site) = site else { return json_answer(StatusCode::OK, &self.history.lags(now)) };
        let known = self.history.of(site.as_str(), from, now);
        if known.is_none() && !parts((self.status)()).1.contains_key(site.as_str()) {
            return error(StatusCode::NOT_FOUND, &format!("nothing is known of site {site}"));
        }
        json_answer(StatusCode::OK, &known.unwrap_or_default())
    }
}

/// There are as many followers as there may be.
pub(super) fn busy() -> Response<Body> {
    let mut refused = error(StatusCode::SERVICE_UNAVAILABLE, "too many follow this node already");
    refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
    refused.map(Either::Left)
}

async fn tell(status: StatusSource, events: mpsc::Sender<Bytes>, shutdown: Shutdown) {
    let (mut told, mut told_at) = (Told::default(), None::<Instant>);
    loop {
        let now = Instant::now();
        let is_due = told_at.is_none_or(|at| now.duration_since(at) >= TELL_INTERVAL);
        if let Some(event) = told.changes((status)(), is_due) {
            if is_due {
                told_at = Some(now);
            }
            let event = Bytes::from(format!("data: {event}\n\n"));
            tokio::select! {
                biased;
                () = shutdown.requested() => return,
                sent = events.send(event) => if sent.is_err() { return },
            }
        }
        tokio::select! {
            biased;
            () = shutdown.requested() => return,
            () = events.closed() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}

/// What a follower was told last.
#[derive(Default)]
struct Told {
    node: Value,
    sites: BTreeMap<String, SiteStatus>,
}

impl Told {
    /// What is new, unless it can wait: a change of state cannot.
    fn changes(&mut self, status: Status, is_due: bool) -> Option<Value> {
        let (node, sites) = parts(status);
        let states = |sites: &mut dyn Iterator<Item = &SiteStatus>| -> Vec<SiteState> {
            sites.map(|site| site.state).collect()
        };
        if !is_due && states(&mut sites.values()) == states(&mut self.sites.values()) {
            return None;
        }
        let changed: Vec<&SiteStatus> =
            sites.values().filter(|site| self.sites.get(&site.site) != Some(site)).collect();
        let gone: Vec<&String> = self.sites.keys().filter(|name| !sites.contains_key(*name)).collect();
        let event = (!changed.is_empty() || !gone.is_empty() || node != self.node)
            .then(|| json!({ "node": node, "sites": changed, "gone": gone }));
        (self.node, self.sites) = (node, sites);
        event
    }
}

/// What a node says of itself, and of each site that it knows.
fn parts(status: Status) -> (Value, BTreeMap<String, SiteStatus>) {
    let (node, sites) = match status {
        Status::Primary(mut primary) => {
            let sites = std::mem::take(&mut primary.sites);
            (Status::Primary(primary), sites)
        }
        Status::Secondary(mut own) => {
            let behind = std::mem::take(&mut own.sites);
            let sites = std::iter::once((*own).clone()).chain(behind).collect();
            (Status::Secondary(own), sites)
        }
    };
    let node = serde_json::to_value(&node).unwrap_or_default();
    (node, sites.into_iter().map(|site| (site.site.clone(), site)).collect())
}

/// Events on their way to a follower.
#[derive(Debug)]
pub struct Live {
    events: mpsc::Receiver<Bytes>,
    _turn: OwnedSemaphorePermit,
}

impl Live {
    pub(super) fn new(events: mpsc::Receiver<Bytes>, turn: OwnedSemaphorePermit) -> Self {
        Self { events, _turn: turn }
    }
}

impl http_body::Body for Live {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.events.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::PrimaryStatus;

    fn status(lag_events: u64, state: SiteState) -> Status {
        let site = |name: &str, lag_events, state| SiteStatus {
            site: name.to_owned(),
            lag_events,
            state,
            ..SiteStatus::default()
        };
        let sites = vec![site("goa", lag_events, state), site("pune", 0, SiteState::Streaming)];
        Status::Primary(Box::new(PrimaryStatus { sites, ..PrimaryStatus::default() }))
    }

    #[test]
    fn only_what_changed_is_told_and_a_change_of_state_at_once() {
        let mut told = Told::default();
        let all = told.changes(status(0, SiteState::Streaming), true).unwrap();
        assert_eq!((all["sites"].as_array().unwrap().len(), &all["node"]["role"]), (2, &json!("primary")));
        assert_eq!(told.changes(status(0, SiteState::Streaming), true), None);
        assert_eq!(told.changes(status(5, SiteState::Streaming), false), None, "that can wait");
        let later = told.changes(status(5, SiteState::Streaming), true).unwrap();
        assert_eq!(later["sites"].as_array().unwrap().len(), 1);
        assert_eq!(later["sites"][0]["lag_events"], 5);
        let cut = told.changes(status(5, SiteState::Disconnected), false).unwrap();
        assert_eq!(cut["sites"][0]["state"], "disconnected");
        let gone = told.changes(Status::Primary(Box::default()), true).unwrap();
        assert_eq!(gone["gone"], json!(["goa", "pune"]));
    }
}
