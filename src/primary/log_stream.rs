//! Drives the log stream of one site: the session's logic is
//! [`outport_proto::session::Publisher`]; here bytes move.

use std::{sync::Arc, time::Duration};

use outport_proto::{
    Offset, SiteName,
    frame::{FromPrimary, FromSecondary, Heartbeat, Keys, Refusal, Resume},
    session::{Closed, LogState, Publisher, PublisherConfig, PublisherNotice},
};
use tokio::{sync::watch, time::Instant};

use super::fleet::Fleet;
use crate::{
    blocking,
    clock::SharedClock,
    fetch::framed::{FrameSink, FrameStream, FramedError, Incoming},
    log::LogError,
    registry::journal::Journal,
};

/// What every site is told about this primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrimaryIdentity {
    /// The cluster's identity.
    pub cluster: String,
    /// Absolute URL of the token endpoint.
    pub token_realm: String,
    /// The `service` of challenges and the audience of tokens.
    pub token_service: String,
    /// Absolute public URL of the primary, without a trailing slash.
    pub public_url: String,
}

/// Makes the keys of a site. Called on a blocking thread; the error is for people.
pub type KeysOf = Arc<dyn Fn(&SiteName) -> Result<Keys, String> + Send + Sync>;

/// Publishes the log to sites. Cloning gives another handle to the same publisher.
#[derive(Clone)]
pub struct LogPublisher {
    /// What every site is told.
    pub identity: PrimaryIdentity,
    /// The log and its view.
    pub journal: Journal,
    /// The primary's clock.
    pub clock: SharedClock,
    /// Keys by site.
    pub keys_of: KeysOf,
    /// Moves when sites must be sent their keys again.
    pub keys_changed: watch::Receiver<u64>,
    /// Where acknowledgements are noted.
    pub fleet: Fleet,
}

impl LogPublisher {
    /// Serves the log stream of `site` until it ends.
    ///
    /// # Errors
    /// Why it ended, unless the site said goodbye.
    pub async fn serve(
        &self,
        id: u64,
        site: &SiteName,
        connection: &quinn::Connection,
        frames: FrameStream<FromSecondary>,
        sink: FrameSink,
    ) -> Result<(), FramedError> {
        let Some(keys) = self.keys_of(site).await else {
            return Err(FramedError::Broken("the site has no keys".to_owned()));
        };
        let config = PublisherConfig {
            token_realm: self.identity.token_realm.clone(),
            token_service: self.identity.token_service.clone(),
            public_url: self.identity.public_url.clone(),
            ..PublisherConfig::new(self.identity.cluster.clone(), Some(site.clone()))
        };
        let begun = Instant::now();
        let session = Publisher::new(Duration::ZERO, config, keys);
        let mut stream = LogStream { publisher: self, id, site, connection, session, begun, sink };
        let result = stream.run(frames).await;
        self.fleet.disconnected(site, id);
        result
    }

    /// Every change is acknowledged only once it is durable, and the clock is read before the
    /// head: so whatever was acknowledged before `closed_time` is at or below `head`.
    fn state(&self) -> LogState {
        let now = self.clock.now();
        let log = self.journal.log();
        let (head, log_bytes) = (begun(log.head()), log.bytes());
        let (state_hash, state_at) = self.journal.index().state_hash();
        let heartbeat = Heartbeat { head, closed_time: now, now, log_bytes, state_hash, state_at };
        let tail_events_max = self.journal.tail_events_max();
        LogState { heartbeat, floor: begun(log.floor()), tail_events_max }
    }

    async fn keys_of(&self, site: &SiteName) -> Option<Keys> {
        let (keys_of, of) = (Arc::clone(&self.keys_of), site.clone());
        let keys = blocking::spawn(move || keys_of(&of)).await.map_err(|error| error.to_string()).flatten();
        keys.inspect_err(|error| tracing::error!(%site, %error, "a site's keys cannot be made")).ok()
    }
}

/// A log without an event stands before the first event of the epoch that it will begin with: a
/// site that already follows then sees the first event follow.
fn begun(offset: Offset) -> Offset {
    if offset == Offset::ZERO { Offset::new(1, 0) } else { offset }
}

/// One stream and its session.
struct LogStream<'a> {
    publisher: &'a LogPublisher,
    id: u64,
    site: &'a SiteName,
    connection: &'a quinn::Connection,
    session: Publisher,
    begun: Instant,
    sink: FrameSink,
}

/// What the driver waited for.
enum Happened {
    Frame(Box<FromSecondary>),
    Activity,
    Appended,
    KeysChanged,
    Time,
    Left,
}

impl LogStream<'_> {
    async fn run(&mut self, mut frames: FrameStream<FromSecondary>) -> Result<(), FramedError> {
        let mut head = self.publisher.journal.log().watch();
        let mut keys_changed = self.publisher.keys_changed.clone();
        loop {
            let wake_at = self.session.poll_timeout().map(|at| self.begun + at);
            let happened = tokio::select! {
                biased;
                Ok(()) = head.changed() => Happened::Appended,
                Ok(()) = keys_changed.changed() => Happened::KeysChanged,
                incoming = frames.incoming() => match incoming? {
                    Incoming::Frame(frame) => Happened::Frame(Box::new(frame)),
                    Incoming::Bytes => Happened::Activity,
                    Incoming::End => Happened::Left,
                },
                () = sleep_until(wake_at) => Happened::Time,
            };
            let now = self.begun.elapsed();
            match happened {
                Happened::Frame(frame) => self.session.handle_frame(now, *frame),
                Happened::Activity => self.session.handle_activity(now),
                Happened::Time => self.session.handle_timeout(now),
                Happened::Appended => {}
                Happened::KeysChanged => {
                    if let Some(keys) = self.publisher.keys_of(self.site).await {
                        self.session.handle_keys(keys);
                    }
                }
                Happened::Left => {
                    tracing::info!(site = %self.site, "site left");
                    return Ok(());
                }
            }
            head.mark_unchanged();
            self.transmit().await?;
            if self.notice() {
                self.sink.finish();
                return Ok(());
            }
        }
    }

    /// Sends all that is to be sent now. The log's state is read anew for every frame, so that a
    /// heartbeat never waits behind events with an old head.
    async fn transmit(&mut self) -> Result<(), FramedError> {
        loop {
            let state = self.publisher.state();
            self.place().await?;
            if let Some((after, bytes_max)) = self.session.wanted(&state) {
                self.read_events(after, bytes_max).await?;
            }
            let Some(frame) = self.session.poll_transmit(self.begun.elapsed(), &state) else {
                return Ok(());
            };
            self.sink.send::<FromPrimary>(&frame).await?;
        }
    }

    /// Finds what the site has in the log.
    async fn place(&mut self) -> Result<(), FramedError> {
        let Some((have, digest)) = self.session.to_place() else { return Ok(()) };
        let log = self.publisher.journal.log().clone();
        let placed = blocking::spawn(move || log.place(have, digest)).await;
        match placed.map_err(|error| FramedError::Broken(error.to_string()))? {
            Ok(place) => self.session.handle_placed(place),
            Err(error) => {
                tracing::error!(site = %self.site, %error, "cannot read the log for a site");
                return Err(FramedError::Broken("the log cannot be read".to_owned()));
            }
        }
        Ok(())
    }

    /// From the ring in memory when the site keeps up; from the disk, away from the runtime's
    /// threads, when it does not.
    async fn read_events(&mut self, after: Offset, bytes_max: usize) -> Result<(), FramedError> {
        let read = match self.publisher.journal.log().read_recent(after, bytes_max) {
            Ok(Some(records)) => Ok(records),
            Ok(None) => {
                let log = self.publisher.journal.log().clone();
                let read = blocking::spawn(move || log.read(after, bytes_max)).await;
                read.map_err(|error| FramedError::Broken(error.to_string()))?
            }
            Err(error) => Err(error),
        };
        match read {
            Ok(records) => {
                let events = records.into_iter().map(|record| (record.event.offset, record.encoded));
                self.session.handle_events(events).map_err(|error| FramedError::Broken(error.to_string()))
            }
            // The next look at the log's floor tells the session.
            Err(LogError::BelowFloor { .. }) => Ok(()),
            Err(LogError::NotInLog { .. }) => {
                self.session.handle_forked();
                Ok(())
            }
            Err(error) => {
                tracing::error!(site = %self.site, %error, "cannot read the log for a site");
                Err(FramedError::Broken("the log cannot be read".to_owned()))
            }
        }
    }

    /// Acts on what the session noticed; returns whether it is over.
    fn notice(&mut self) -> bool {
        let (site, id) = (self.site, self.id);
        while let Some(notice) = self.session.poll_notice() {
            match notice {
                PublisherNotice::Opened(resume) => {
                    let hello = self.session.hello();
                    let (program, node, have) = match hello {
                        Some(hello) => (hello.program.as_str(), hello.node.as_str(), hello.have),
                        None => ("", "", None),
                    };
                    let peer = self.connection.remote_address();
                    tracing::info!(%site, node, program, %peer, ?have, ?resume, "site connected");
                    self.publisher.fleet.connected(site, id, program, resume != Resume::Tail);
                }
                PublisherNotice::Acked => {
                    if let Some(ack) = self.session.ack() {
                        let rtt = self.connection.rtt();
                        self.publisher.fleet.acknowledged(site, id, ack.clone(), rtt);
                    }
                }
                PublisherNotice::Closed(Closed::Refused(why @ Refusal::Fork { .. })) => {
                    tracing::error!(%site, %why, "site refused: the histories forked");
                    self.publisher.fleet.fork_refused(site, &why.to_string());
                    return true;
                }
                PublisherNotice::Closed(why @ Closed::Refused(_)) => {
                    tracing::warn!(%site, %why, "site refused");
                    return true;
                }
                PublisherNotice::Closed(why) => {
                    tracing::info!(%site, %why, "session closed");
                    return true;
                }
            }
        }
        false
    }
}

/// Pends for ever without a time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
