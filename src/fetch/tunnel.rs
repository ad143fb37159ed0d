//! UDP in HTTP (RFC 9298) for networks that carry none: the packets of a QUIC connection as capsules (RFC 9297) on
//! a connection to the primary's registry that was upgraded. Whoever ends the TLS of that sees QUIC, which is
//! encrypted and authenticated as it is without.

mod capsule;
mod way;

use std::{io, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UdpSocket,
};

pub use way::{Tunnel, Way, WayError};

/// Where a tunnel is asked for: the primary's name to sites stands for its replication listener, and nothing
/// else can be reached.
pub const PATH: &str = "/.well-known/masque/udp/primary.outport/443/";
/// What a connection is upgraded to.
pub const PROTOCOL: &str = "connect-udp";

/// A tunnel over which nothing comes for this long has ended. QUIC connections are kept alive every second.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Bytes that are gathered before they are written: packets that are there already go together.
const TOGETHER_BYTES: usize = 64 * 1024;
/// Room for the largest UDP payload.
const PACKET_BYTES_MAX: usize = 65_536;

/// Carries packets between `stream`, which was upgraded, and the peer that `socket` is connected to, until one of
/// them ends or falls silent.
///
/// # Errors
/// How it ended.
pub async fn carry(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    socket: &UdpSocket,
) -> io::Result<std::convert::Infallible> {
    let (reading, writing) = tokio::io::split(stream);
    tokio::select! {
        ended = inwards(reading, socket) => ended,
        ended = outwards(socket, writing) => ended,
    }
}

async fn inwards(
    mut stream: impl AsyncRead + Unpin,
    socket: &UdpSocket,
) -> io::Result<std::convert::Infallible> {
    let mut buffer = BytesMut::with_capacity(TOGETHER_BYTES);
    loop {
        while let Some(packet) = capsule::next(&mut buffer)? {
            // One that the other end does not take is lost, as any packet may be.
            let _ = socket.send(&packet).await;
        }
        let read = tokio::time::timeout(SILENCE_MAX, stream.read_buf(&mut buffer)).await;
        if read.map_err(io::Error::from).flatten()? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn outwards(
    socket: &UdpSocket,
    mut stream: impl AsyncWrite + Unpin,
) -> io::Result<std::convert::Infallible> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut together = BytesMut::with_capacity(TOGETHER_BYTES);
    loop {
        let mut received = socket.recv(&mut packet).await;
        loop {
            match received {
                Ok(bytes) => capsule::put(&packet[..bytes], &mut together),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // The other end does not listen for a moment.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => break,
                Err(error) => return Err(error),
            }
            if together.len() > TOGETHER_BYTES {
                break;
            }
            received = socket.try_recv(&mut packet);
        }
        if !together.is_empty() {
            stream.write_all(&together).await?;
            stream.flush().await?;
            together.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (UdpSocket, UdpSocket) {
        let [one, other] = [UdpSocket::bind("127.0.0.1:0").await, UdpSocket::bind("127.0.0.1:0").await];
        let (one, other) = (one.unwrap(), other.unwrap());
        one.connect(other.local_addr().unwrap()).await.unwrap();
        other.connect(one.local_addr().unwrap()).await.unwrap();
        (one, other)
    }

    #[tokio::test]
    async fn packets_come_out_as_they_went_in() {
        let (near, near_inside) = pair().await;
        let (far, far_inside) = pair().await;
        let (left, right) = tokio::io::duplex(100);
        let carrying = tokio::spawn(async move {
            tokio::select! {
                ended = carry(left, &near_inside) => ended,
                ended = carry(right, &far_inside) => ended,
            }
        });
        let mut buffer = vec![0; PACKET_BYTES_MAX];
        for length in [0, 1, 63, 64, 1200, 1472, 16_383, 16_384, 60_000] {
            let packet: Vec<u8> = (0..length).map(|at| at as u8).collect();
            for (from, to) in [(&near, &far), (&far, &near)] {
                from.send(&packet).await.unwrap();
                let received = to.recv(&mut buffer).await.unwrap();
                assert_eq!(buffer[..received], packet, "{length} bytes");
            }
        }
        carrying.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_ends_when_the_other_end_is_gone_or_silent() {
        for is_gone in [true, false] {
            let (_near, inside) = pair().await;
            let (left, right) = tokio::io::duplex(100);
            let kept = (!is_gone).then_some(right);
            let kind = carry(left, &inside).await.unwrap_err().kind();
            let expected = if is_gone { io::ErrorKind::UnexpectedEof } else { io::ErrorKind::TimedOut };
            assert_eq!(kind, expected);
            drop(kept);
        }
    }
}
