//! Drives the log stream of one site: the session's logic is
//! [`outport_proto::session::Publisher`]; here bytes move.

use crate::watch;
use std::{mem, net::SocketAddr, sync::Arc, time::Duration};

use outport_proto::{
    Offset, SiteName, codec,
    frame::{FromPrimary, FromSecondary, Keys, Refusal, Resume},
    session::{APPEND_BYTES_MAX, Closed, Publisher, PublisherConfig, PublisherNotice, WINDOW_BYTES},
};
use tokio::time::Instant;

use super::{
    fleet::Fleet,
    source::{KeysDenied, PrimaryIdentity, Source},
};
use crate::{
    blocking, bounds,
    fetch::{
        framed::{FrameSink, FrameStream, FramedError, Incoming},
        quic::CloseCode,
    },
    log::LogError,
    registry::journal::Journal,
};

/// Frames of up to so many bytes are handed to a stream together.
const TOGETHER_BYTES_MAX: usize = 4 * 1024;

/// The log of a site that keeps up goes before the answers on the connection they share: heartbeats that
/// come late make every pull ask.
const KEEPING_UP: i32 = 1;

/// The log of a site that has much to catch up shares the connection with the answers, packet by packet.
/// Before them it would take all of a slow wire for as long as it lasts, and no question be answered.
const CATCHING_UP: i32 = 0;

/// A site has much to catch up when so many bytes of events are not durable there yet: about what any
/// connection may send at once.
const MUCH_BYTES: usize = 16 * 1024;

/// The window may be passed by one event.
const OUTSTANDING_MAX: usize = WINDOW_BYTES + APPEND_BYTES_MAX;

/// Publishes the log to sites. Cloning gives another handle to the same publisher.
#[derive(Clone)]
pub struct LogPublisher {
    /// On whose word.
    pub source: Arc<dyn Source>,
    /// The log and its view.
    pub journal: Journal,
    /// Where acknowledgements are noted.
    pub fleet: Fleet,
    /// Whether whoever comes from there came through a tunnel, if any can.
    pub tunnelled: Option<Tunnelled>,
}

/// Tells whether a peer's packets come over TCP.
pub type Tunnelled = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

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
        mut sink: FrameSink,
    ) -> Result<(), FramedError> {
        // Followed before they are read: a change that comes meanwhile is seen then.
        let changes = Changes { news: self.source.news(), keys: self.source.keys_changed() };
        let (identity, keys) = match self.known_for(site).await {
            Ok(known) => known,
            Err(refusal) => {
                tracing::info!(%site, %refusal, "site refused");
                sink.send(&FromPrimary::Refused(refusal)).await?;
                sink.finish();
                return Ok(());
            }
        };
        let config = PublisherConfig {
            token_realm: identity.token_realm.clone(),
            token_service: identity.token_service.clone(),
            public_url: identity.public_url.clone(),
            path: identity.path.clone(),
            ..PublisherConfig::new(identity.cluster.clone(), Some(site.clone()))
        };
        let begun = Instant::now();
        let session = Publisher::new(Duration::ZERO, config, keys);
        let mut stream =
            LogStream { publisher: self, identity, id, site, connection, session, begun, sink, packets: 0 };
        let result = stream.run(frames, changes).await;
        self.fleet.disconnected(site, id);
        result
    }

    /// What `site` is told of the primary. Only a site that relays may not know it.
    async fn known_for(&self, site: &SiteName) -> Result<(PrimaryIdentity, Keys), Refusal> {
        let identity = self.source.identity().map_err(Refusal::Unready)?;
        if identity.path.contains(site) {
            return Err(Refusal::Ring(identity.path));
        }
        match self.keys_of(site).await {
            Ok(keys) => Ok((identity, keys)),
            Err(_) => Err(Refusal::Unready("there are no keys for this site".to_owned())),
        }
    }

    async fn keys_of(&self, site: &SiteName) -> Result<Keys, KeysDenied> {
        let keys = self.source.keys(site, &[]).await;
        keys.inspect_err(|error| tracing::error!(%site, %error, "there are no keys for a site"))
    }
}

/// One stream and its session.
struct LogStream<'a> {
    publisher: &'a LogPublisher,
    /// What the site was told of the primary.
    identity: PrimaryIdentity,
    id: u64,
    site: &'a SiteName,
    connection: &'a quinn::Connection,
    session: Publisher,
    begun: Instant,
    sink: FrameSink,
    /// Packets that came from the site when it was last looked.
    packets: u64,
}

/// What may change about the primary while the stream lasts.
struct Changes {
    news: watch::Receiver<u64>,
    keys: watch::Receiver<u64>,
}

/// What the driver waited for.
enum Happened {
    Frame(Box<FromSecondary>),
    Activity,
    Appended,
    News,
    KeysChanged,
    Time,
    Left,
}

impl LogStream<'_> {
    async fn run(
        &mut self,
        mut frames: FrameStream<FromSecondary>,
        mut changes: Changes,
    ) -> Result<(), FramedError> {
        let mut head = self.publisher.journal.log().watch();
        loop {
            let wake_at = self.session.poll_timeout().map(|at| self.begun + at);
            let happened = tokio::select! {
                biased;
                Ok(()) = head.changed() => Happened::Appended,
                Ok(()) = changes.keys.changed() => Happened::KeysChanged,
                Ok(()) = changes.news.changed() => Happened::News,
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
                Happened::News if self.publisher.source.identity().as_ref() == Ok(&self.identity) => {
                    self.session.handle_news(now);
                }
                Happened::News => self.session.handle_rerouted(),
                Happened::KeysChanged => match self.publisher.keys_of(self.site).await {
                    Ok(keys) => self.session.handle_keys(keys),
                    Err(KeysDenied::Unavailable(_)) => {}
                    // Removed while it was connected, here or to a site that relays.
                    Err(denied) => {
                        self.connection.close(CloseCode::Refused.into(), denied.to_string().as_bytes());
                        return Ok(());
                    }
                },
                Happened::Left => {
                    tracing::info!(site = %self.site, "site left");
                    return Ok(());
                }
            }
            head.mark_unchanged();
            let packets = self.connection.stats().udp_rx.datagrams;
            if std::mem::replace(&mut self.packets, packets) != packets {
                self.publisher.fleet.heard(self.site, self.id);
            }
            self.transmit().await?;
            if self.notice() {
                self.sink.finish();
                return Ok(());
            }
        }
    }

    /// Sends all that is to be sent now. The log's state is read anew for every frame, so that a
    /// heartbeat never waits behind events with an old head; but small frames go together, because an
    /// event and the heartbeat with it then cost one packet.
    async fn transmit(&mut self) -> Result<(), FramedError> {
        let mut together = Vec::new();
        loop {
            // Read first: a heartbeat must not be taken for younger than what it says.
            let now = self.begun.elapsed();
            let state = self.publisher.source.state();
            self.place().await?;
            if let Some((after, bytes_max)) = self.session.wanted(&state) {
                self.read_events(after, bytes_max).await?;
            }
            let frame = self.session.poll_transmit(now, &state);
            let is_last = frame.is_none();
            if let Some(frame) = frame {
                codec::append_frame::<FromPrimary>(&frame, &mut together)?;
            }
            if is_last || together.len() > TOGETHER_BYTES_MAX {
                self.prioritise();
                if !together.is_empty() {
                    self.sink.write(&mut [mem::take(&mut together).into()]).await?;
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// What is already queued follows, packet by packet.
    fn prioritise(&mut self) {
        let is_much = self.session.outstanding_bytes() > MUCH_BYTES;
        // A stream that is gone has no priority, and fails at the next frame.
        let _ = self.sink.stream().set_priority(if is_much { CATCHING_UP } else { KEEPING_UP });
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
                let traces = records.iter().filter_map(|record| Some((record.event.offset, record.trace?)));
                traces.for_each(|(offset, trace)| self.session.handle_trace(offset, trace));
                let events = records.into_iter().map(|record| (record.event.offset, record.encoded));
                let handled = self.session.handle_events(events);
                let outstanding = self.session.outstanding_bytes();
                bounds::note("bytes of events on their way to a site", outstanding, OUTSTANDING_MAX);
                handled.map_err(|error| FramedError::Broken(error.to_string()))
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
                    if self.publisher.tunnelled.as_ref().is_some_and(|tunnelled| tunnelled(peer)) {
                        self.publisher.fleet.comes_over_tcp(site, id);
                    }
                }
                PublisherNotice::Acked => {
                    if let Some(ack) = self.session.ack() {
                        let rtt = self.connection.rtt();
                        self.publisher.fleet.acknowledged(site, id, ack.clone(), rtt);
                    }
                }
                PublisherNotice::Details(details) => self.publisher.fleet.detailed(site, id, details),
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
