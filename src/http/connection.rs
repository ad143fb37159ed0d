//! One client connection: its bytes are counted where they meet the socket, so that one timer
//! can tell an idle client, slow headers and a reader that does not read from honest work.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What is known of a connection while it lives.
#[derive(Debug)]
pub struct Connection {
    peer: SocketAddr,
    /// Whose it is, when a proxy told.
    client: OnceLock<SocketAddr>,
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
    /// The last write found the socket's buffer full: the client has bytes to read and does not.
    blocked: AtomicBool,
    requests: AtomicU64,
    in_flight: AtomicU32,
}

impl Connection {
    /// A connection from `peer` over which nothing was said yet.
    pub fn new(peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self {
            peer,
            client: OnceLock::new(),
            read_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
        })
    }

    /// The client's address, or that of a proxy which does not tell of it here.
    pub fn peer(&self) -> SocketAddr {
        self.client.get().copied().unwrap_or(self.peer)
    }

    /// A proxy told whose connection it is.
    pub(super) fn is_of(&self, client: SocketAddr) {
        // It tells once.
        let _ = self.client.set(client);
    }

    /// Counts a request in; it counts out when the guard is dropped.
    pub fn begin_request(self: &Arc<Self>) -> InFlight {
        self.requests.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(self.clone())
    }
}

/// A request that is being answered, until its response's last byte was taken from its body.
#[derive(Debug)]
pub struct InFlight(Arc<Connection>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// How long a connection may do nothing useful.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a request's headers, from its first byte (for the first request: from the accept).
    pub header_read: Duration,
    /// Between requests.
    pub idle: Duration,
    /// For a client that has bytes to read and takes fewer than [`Patience::progress_bytes_min`].
    pub write_stall: Duration,
    /// For a request in either direction that moves fewer bytes than that, whoever is waiting.
    pub request_stall: Duration,
    /// Bytes that count as progress within one stall time.
    pub progress_bytes_min: u64,
}

impl Patience {
    /// How often to look: several times within the shortest patience.
    fn tick(&self) -> Duration {
        let shortest = self.header_read.min(self.idle).min(self.write_stall).min(self.request_stall);
        (shortest / 4).max(Duration::from_millis(10))
    }
}

/// Looks at a connection in regular steps and says when patience is at its end.
#[derive(Debug)]
pub(super) struct Watch {
    patience: Patience,
    step: Duration,
    requests: u64,
    /// A request was in flight when last looked at.
    busy: bool,
    read_bytes: u64,
    moved_bytes: u64,
    moved_while_stalled: u64,
    quiet: Duration,
    reading_head: Duration,
    stalled: Duration,
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nobody wants anything from it.
    Idle,
    /// The headers of a request do not come to an end.
    SlowHeaders,
    /// The client does not take what it asked for, or does not send what it announced.
    Stalled,
}

impl Watch {
    pub(super) fn new(patience: Patience) -> Self {
        Self {
            patience,
            step: patience.tick(),
            requests: 0,
            busy: false,
            read_bytes: 0,
            moved_bytes: 0,
            moved_while_stalled: 0,
            quiet: Duration::ZERO,
            reading_head: Duration::ZERO,
            stalled: Duration::ZERO,
        }
    }

    /// Time between two calls of [`Watch::look`].
    pub(super) fn step(&self) -> Duration {
        self.step
    }

    /// One step has passed.
    pub(super) fn look(&mut self, connection: &Connection) -> Option<Verdict> {
        let requests = connection.requests.load(Relaxed);
        let read_bytes = connection.read_bytes.load(Relaxed);
        let moved_bytes = read_bytes + connection.written_bytes.load(Relaxed);
        let blocked = connection.blocked.load(Relaxed);
        let moved = moved_bytes - self.moved_bytes;
        self.moved_bytes = moved_bytes;
        if connection.in_flight.load(Relaxed) > 0 || blocked {
            self.busy = true;
            return self.look_at_progress(moved, blocked);
        }
        self.stalled = Duration::ZERO;
        self.moved_while_stalled = 0;
        // What came before the last request's end was no head of the next one.
        if std::mem::take(&mut self.busy) || requests != self.requests {
            self.begin_quiet(requests, read_bytes);
            return None;
        }
        self.quiet += self.step;
        if requests == 0 || read_bytes > self.read_bytes {
            self.reading_head += self.step;
        }
        if self.reading_head >= self.patience.header_read {
            return Some(Verdict::SlowHeaders);
        }
        (self.quiet >= self.patience.idle).then_some(Verdict::Idle)
    }

    fn begin_quiet(&mut self, requests: u64, read_bytes: u64) {
        self.requests = requests;
        self.read_bytes = read_bytes;
        self.quiet = Duration::ZERO;
        self.reading_head = Duration::ZERO;
    }

    fn look_at_progress(&mut self, moved: u64, blocked: bool) -> Option<Verdict> {
        self.moved_while_stalled += moved;
        if self.moved_while_stalled >= self.patience.progress_bytes_min {
            self.stalled = Duration::ZERO;
            self.moved_while_stalled = 0;
            return None;
        }
        self.stalled += self.step;
        let limit = if blocked { self.patience.write_stall } else { self.patience.request_stall };
        (self.stalled >= limit).then_some(Verdict::Stalled)
    }
}

/// A socket that counts what passes.
#[derive(Debug)]
pub(super) struct Metered {
    stream: TcpStream,
    connection: Arc<Connection>,
}

impl Metered {
    pub(super) fn new(stream: TcpStream, connection: Arc<Connection>) -> Self {
        Self { stream, connection }
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(bytes)) => {
                self.connection.written_bytes.fetch_add(*bytes as u64, Relaxed);
                self.connection.blocked.store(false, Relaxed);
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.connection.blocked.store(true, Relaxed),
        }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = (buf.filled().len() - before) as u64;
        if bytes > 0 {
            self.connection.read_bytes.fetch_add(bytes, Relaxed);
        }
        result
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn patience() -> Patience {
        Patience {
            header_read: 4 * SECOND,
            idle: 8 * SECOND,
            write_stall: 8 * SECOND,
            request_stall: 16 * SECOND,
            progress_bytes_min: 1000,
        }
    }

    /// Looks until there is a verdict; `between` happens before each look.
    fn outcome(connection: &Arc<Connection>, mut between: impl FnMut()) -> Option<(Verdict, u64)> {
        let mut watch = Watch::new(patience());
        (1..=60).find_map(|second| {
            between();
            watch.look(connection).map(|verdict| (verdict, second))
        })
    }

    fn connection() -> Arc<Connection> {
        Connection::new(([127, 0, 0, 1], 1).into())
    }

    #[test]
    fn a_client_that_never_asks_is_closed() {
        assert_eq!(outcome(&connection(), || ()), Some((Verdict::SlowHeaders, 4)));
    }

    #[test]
    fn a_client_that_asked_once_is_idle_later() {
        let connection = connection();
        drop(connection.begin_request());
        assert_eq!(outcome(&connection, || ()), Some((Verdict::Idle, 9)));
    }

    #[test]
    fn a_body_that_was_just_read_is_no_slow_head() {
        let connection = connection();
        let mut requests = vec![Some(connection.begin_request()), None];
        let read_and_answer = || {
            connection.read_bytes.fetch_add(u64::from(requests.len() == 1), Relaxed);
            drop(requests.pop());
        };
        assert_eq!(outcome(&connection, read_and_answer), Some((Verdict::Idle, 10)));
    }

    #[test]
    fn headers_byte_by_byte_are_slow() {
        let connection = connection();
        drop(connection.begin_request());
        let mut first = true;
        let trickle = || {
            let bytes = u64::from(!std::mem::take(&mut first));
            connection.read_bytes.fetch_add(bytes, Relaxed);
        };
        assert_eq!(outcome(&connection, trickle), Some((Verdict::SlowHeaders, 5)));
    }

    #[test]
    fn a_reader_of_one_byte_a_second_is_closed_and_an_honest_one_is_not() {
        let connection = connection();
        let _request = connection.begin_request();
        connection.blocked.store(true, Relaxed);
        let slow = || _ = connection.written_bytes.fetch_add(1, Relaxed);
        assert_eq!(outcome(&connection, slow), Some((Verdict::Stalled, 8)));
        let honest = || _ = connection.written_bytes.fetch_add(300, Relaxed);
        assert_eq!(outcome(&connection, honest), None);
    }

    #[test]
    fn a_request_that_waits_for_the_server_has_more_time() {
        let connection = connection();
        let _request = connection.begin_request();
        assert_eq!(outcome(&connection, || ()), Some((Verdict::Stalled, 16)));
    }
}
