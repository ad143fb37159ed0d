//! A relay in front of a node that counts what passes. TLS goes through it unopened, so the
//! numbers owe nothing to what the node says of itself.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

/// One relay. Dropping it closes its listener.
pub(crate) struct Wire {
    /// Where clients connect to.
    pub(crate) address: SocketAddr,
    received: Arc<AtomicU64>,
    closed: Arc<AtomicBool>,
}

impl Wire {
    /// Relays connections to `ip` on `port` to `node`.
    pub(crate) fn before(node: SocketAddr, ip: Ipv4Addr, port: u16) -> Self {
        let listener = TcpListener::bind((ip, port)).unwrap();
        let address = listener.local_addr().unwrap();
        let (received, closed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&received), Arc::clone(&closed));
        thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), count) = (client, Arc::clone(&count)) else { continue };
                thread::spawn(move || relay(&client, node, &count));
            }
        });
        Self { address, received, closed }
    }

    /// Bytes that clients have sent to the node.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // Wakes the listener, which then sees that it is closed.
        let _ = TcpStream::connect(self.address);
    }
}

fn relay(client: &TcpStream, node: SocketAddr, received: &AtomicU64) {
    let Ok(server) = TcpStream::connect(node) else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    thread::scope(|scope| {
        scope.spawn(|| copy(client, &server, received));
        copy(&server, client, &AtomicU64::new(0));
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        count.fetch_add(length as u64, Ordering::Relaxed);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Half-closed ways stay open the other way, as without a relay.
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
