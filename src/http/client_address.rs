//! Proxies in front of the registry: whose a request is when the connection is a proxy's.
//!
//! Only proxies that are trusted by their address are believed, either at the start of their connections (the PROXY
//! protocol, versions 1 and 2) or in the headers of each request (`Forwarded`, RFC 7239, or `X-Forwarded-For`).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderMap, header};
use ipnet::IpNet;
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::{io::AsyncReadExt as _, net::TcpStream};

/// The first bytes of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The shortest header of version 1: `PROXY UNKNOWN\r\n`.
const SHORTEST_BYTES: usize = 15;
/// The longest of version 1 is 107 bytes; of version 2 no proxy comes near this.
const LONGEST_BYTES: usize = 1024;
/// Of version 2: signature, command, family and length.
const FIXED_BYTES: usize = 16;

/// What stands in front of a listener.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    networks: Vec<IpNet>,
    by_connection: bool,
}

impl Proxies {
    /// Believes what comes from `networks`: with the PROXY protocol, without which such a connection is then
    /// refused, or else by headers.
    pub fn new(networks: Vec<IpNet>, by_proxy_protocol: bool) -> Self {
        Self { networks, by_connection: by_proxy_protocol }
    }

    fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether a connection from there begins by telling whose it is.
    pub(super) fn announce(&self, peer: IpAddr) -> bool {
        self.by_connection && self.trusts(peer)
    }

    /// Whose a request is that came on a connection from `peer`: the last address of the way it took that is no
    /// trusted proxy's. What stands before that may be made up.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if self.by_connection || self.networks.is_empty() || !self.trusts(peer) {
            return peer;
        }
        let mut client = peer;
        for hop in hops(headers).into_iter().rev() {
            let Some(address) = hop else { break };
            client = address;
            if !self.trusts(address) {
                break;
            }
        }
        client
    }
}

/// The way of a request as its headers tell it, the client first; `None` stands for who hides.
fn hops(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let texts = |name| headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    if headers.contains_key(header::FORWARDED) {
        return texts(header::FORWARDED).flat_map(|value| value.split(',')).map(forwarded_for).collect();
    }
    let name = http::HeaderName::from_static("x-forwarded-for");
    texts(name).flat_map(|value| value.split(',')).map(|hop| node(hop.trim())).collect()
}

/// `for=192.0.2.60;proto=http`, `for="[2001:db8::1]:4711"`.
fn forwarded_for(element: &str) -> Option<IpAddr> {
    element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| node(value.trim().trim_matches('"')))?
    })
}

/// An address, with a port or without.
fn node(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

/// Reads whose a connection is from its first bytes, and nothing behind them. `None` when it is the proxy's own, as
/// for checks of health.
///
/// # Errors
/// When they are not that, or the connection breaks.
pub(super) async fn announced(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut head = vec![0; SHORTEST_BYTES];
    stream.read_exact(&mut head).await?;
    if head.starts_with(SIGNATURE) {
        head.resize(FIXED_BYTES, 0);
        stream.read_exact(&mut head[SHORTEST_BYTES..]).await?;
        let length = u16::from_be_bytes([head[FIXED_BYTES - 2], head[FIXED_BYTES - 1]]);
        let whole = FIXED_BYTES + usize::from(length);
        if whole > LONGEST_BYTES {
            return Err(malformed());
        }
        head.resize(whole, 0);
        stream.read_exact(&mut head[FIXED_BYTES..]).await?;
    } else {
        while !head.ends_with(b"\r\n") {
            let mut ahead = [0; LONGEST_BYTES];
            let seen = stream.peek(&mut ahead).await?;
            let line = ahead[..seen].iter().position(|byte| *byte == b'\n').map_or(seen, |end| end + 1);
            if seen == 0 || head.len() + line > LONGEST_BYTES {
                return Err(malformed());
            }
            stream.read_exact(&mut ahead[..line]).await?;
            head.extend_from_slice(&ahead[..line]);
        }
    }
    let (header, bytes) = ProxyHeader::parse(&head, ParseConfig::default()).map_err(|_| malformed())?;
    if bytes != head.len() {
        return Err(malformed());
    }
    Ok(header.proxied_address().map(|proxied| proxied.source))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the connection does not begin with the PROXY protocol")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use tokio::{io::AsyncWriteExt as _, net::TcpListener};

    use super::*;

    fn proxies() -> Proxies {
        Proxies::new(vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()], false)
    }

    fn client(proxies: &Proxies, peer: &str, headers: &[(&'static str, &'static str)]) -> String {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        proxies.client(peer.parse().unwrap(), &map).to_string()
    }

    #[test]
    fn the_last_address_that_is_no_trusted_proxy_is_the_clients() {
        let forwarded = "x-forwarded-for";
        for (peer, headers, expected) in [
            ("192.0.2.1", &[][..], "192.0.2.1"),
            ("192.0.2.1", &[(forwarded, "198.51.100.7")], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[(forwarded, "198.51.100.7")], "198.51.100.7"),
            ("::ffff:10.0.0.1", &[(forwarded, "198.51.100.7")], "198.51.100.7"),
            ("10.0.0.1", &[(forwarded, "1.2.3.4, 198.51.100.7, 10.9.9.9")], "198.51.100.7"),
            ("10.0.0.1", &[(forwarded, "1.2.3.4"), (forwarded, "198.51.100.7:4711")], "198.51.100.7"),
            ("10.0.0.1", &[(forwarded, "10.1.1.1, 10.2.2.2")], "10.1.1.1"),
            ("10.0.0.1", &[(forwarded, "198.51.100.7, unknown")], "10.0.0.1"),
            ("10.0.0.1", &[("forwarded", "for=198.51.100.7;proto=https;by=10.0.0.1")], "198.51.100.7"),
            ("10.0.0.1", &[("forwarded", "for=1.2.3.4, For=\"[2001:470::7]:99\"")], "2001:470::7"),
            ("10.0.0.1", &[("forwarded", "for=_hidden"), (forwarded, "198.51.100.7")], "10.0.0.1"),
            ("2001:db8::1", &[("forwarded", "proto=https;for=198.51.100.7")], "198.51.100.7"),
        ] {
            assert_eq!(client(&proxies(), peer, headers), expected, "{peer} {headers:?}");
        }
        let by_connection = Proxies { by_connection: true, ..proxies() };
        assert_eq!(client(&by_connection, "10.0.0.1", &[(forwarded, "198.51.100.7")]), "10.0.0.1");
        assert!(by_connection.announce("10.0.0.1".parse().unwrap()));
        assert!(!by_connection.announce("192.0.2.1".parse().unwrap()));
    }

    async fn told(pieces: &[&[u8]]) -> io::Result<(Option<SocketAddr>, Vec<u8>)> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let writer = tokio::spawn(async move {
            for piece in pieces {
                client.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let address = announced(&mut stream).await?;
        writer.await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await?;
        Ok((address, rest))
    }

    #[tokio::test]
    async fn a_connection_tells_whose_it_is_and_nothing_behind_that_is_taken() {
        let client = Some("198.51.100.7:4711".parse().unwrap());
        let first = b"PROXY TCP4 198.51.100.7 10.0.0.1 4711 443\r\n";
        let two: Vec<u8> = [
            &SIGNATURE[..],
            &[0x21, 0x11, 0, 12, 198, 51, 100, 7, 10, 0, 0, 1],
            &4711_u16.to_be_bytes(),
            &443_u16.to_be_bytes(),
        ]
        .concat();
        let local: Vec<u8> = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        for (head, expected) in
            [(&first[..], client), (&two[..], client), (&local[..], None), (b"PROXY UNKNOWN\r\n", None)]
        {
            let behind = b"GET / HTTP/1.1\r\n\r\n";
            let whole = [head, behind].concat();
            assert_eq!(told(&[&whole]).await.unwrap(), (expected, behind.to_vec()));
            for cut in [1, 14, 15, head.len() - 1] {
                let pieces = [&whole[..cut], &whole[cut..]];
                assert_eq!(told(&pieces).await.unwrap(), (expected, behind.to_vec()), "cut at {cut}");
            }
        }
        let long: Vec<u8> = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        let endless = [b"PROXY TCP4 ", &[b'1'; 2000][..]].concat();
        for bad in
            [&b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"[..], &long, &endless, b"PROXY", b"", b"\x16\x03\x01"]
        {
            assert!(told(&[bad]).await.is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
