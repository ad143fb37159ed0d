//! A listener whose process has run out of file descriptors goes on when there are some again.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use outport::{
    http::{Connection, ServerOptions, serve},
    shutdown::Shutdown,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

#[tokio::test]
async fn a_listener_survives_without_descriptors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hello = |_: Request<Incoming>, _: Arc<Connection>| async {
        Response::new(Full::new(Bytes::from_static(b"still here")))
    };
    drop(tokio::spawn(serve(listener, None, ServerOptions::default(), hello, Shutdown::new())));
    let mut open = TcpStream::connect(address).await.unwrap();
    asked(&mut open).await;

    // One more connection than there are descriptors for: the system takes it, the listener cannot.
    let limit = getrlimit(Resource::Nofile);
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + 8), ..limit }).unwrap();
    let mut held: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    held.pop();
    let mut late = TcpStream::connect(address).await.unwrap();
    asked(&mut open).await;

    drop(held);
    setrlimit(Resource::Nofile, limit).unwrap();
    asked(&mut late).await;
}

/// Asks once and reads the answer.
async fn asked(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"still here") {
        let read = stream.read_buf(&mut answer).await.unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&answer));
    }
}
