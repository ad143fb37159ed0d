//! Values that a configuration may hold, valid once parsed.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

/// An absolute `http` or `https` URL with a host and without path, query or trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(String);

impl PublicUrl {
    /// The URL, as in `https://registry-primary.example.com`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its host, an IPv6 address in brackets.
    pub fn host(&self) -> String {
        let uri: http::Uri = self.0.parse().unwrap_or_default();
        uri.host().unwrap_or_default().to_owned()
    }

    /// Whether it is `https`.
    pub fn is_https(&self) -> bool {
        self.0.starts_with("https://")
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PublicUrl {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let uri: http::Uri = text.parse().map_err(|_| InvalidValue::Url)?;
        let scheme = uri.scheme_str().ok_or(InvalidValue::Url)?;
        let authority = uri.authority().ok_or(InvalidValue::Url)?;
        if !matches!(scheme, "http" | "https") || authority.as_str().contains('@') {
            return Err(InvalidValue::Url);
        }
        if uri.path() != "/" || uri.query().is_some() || text.contains('#') {
            return Err(InvalidValue::Url);
        }
        Ok(Self(format!("{scheme}://{authority}")))
    }
}

/// An absolute `http` or `https` URL with a host, and without user, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUrl(String);

impl HttpUrl {
    /// The URL, as in `https://gitlab.example.com/jwt/auth`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl HttpUrl {
    /// Whether what goes there can be read by others: plain HTTP to another machine.
    pub fn is_readable_on_the_way(&self) -> bool {
        let uri: http::Uri = self.0.parse().unwrap_or_default();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_here = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        uri.scheme_str() != Some("https") && !is_here
    }
}

impl FromStr for HttpUrl {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let uri: http::Uri = text.parse().map_err(|_| InvalidValue::HttpUrl)?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
        if !is_http || uri.query().is_some() || text.contains(['@', '#']) {
            return Err(InvalidValue::HttpUrl);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A host name or address and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort(String);

impl HostPort {
    /// The text, resolvable as it is.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostPort {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let authority: http::uri::Authority = text.parse().map_err(|_| InvalidValue::HostPort)?;
        match authority.port_u16() {
            Some(port) if port > 0 && !authority.host().is_empty() && !text.contains('@') => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(InvalidValue::HostPort),
        }
    }
}

/// One `host:port`, or a list of them, of which the first that works is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts(Vec<HostPort>);

impl HostPorts {
    /// The texts; there is at least one.
    pub fn texts(&self) -> Vec<String> {
        self.0.iter().map(|address| address.0.clone()).collect()
    }
}

impl From<HostPort> for HostPorts {
    fn from(address: HostPort) -> Self {
        Self(vec![address])
    }
}

impl<'de> Deserialize<'de> for HostPorts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = HostPorts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("host:port, or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HostPorts, E> {
                text.parse::<HostPort>().map(HostPorts::from).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<HostPorts, A::Error> {
                let mut addresses = Vec::new();
                while let Some(address) = list.next_element()? {
                    addresses.push(address);
                }
                if addresses.is_empty() {
                    return Err(A::Error::custom("expected at least one host:port"));
                }
                Ok(HostPorts(addresses))
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

/// `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedNetwork(pub IpNet);

impl FromStr for TrustedNetwork {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let network = text.parse::<IpNet>().ok();
        let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
        network.or_else(one).map(Self).ok_or(InvalidValue::Network)
    }
}

/// A number of bytes: `"200GiB"`, `"1.5 TB"`, or a plain number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let digits = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit {
            "" | "B" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "TB" => 1e12,
            "KiB" => 1024.0,
            "MiB" => 1024.0 * 1024.0,
            "GiB" => 1024.0 * 1024.0 * 1024.0,
            "TiB" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
            _ => return Err(InvalidValue::Size),
        };
        match number.trim().parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(Self((number * unit) as u64)),
            _ => Err(InvalidValue::Size),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match toml::Value::deserialize(deserializer)? {
            toml::Value::Integer(bytes) => u64::try_from(bytes).map(Self).map_err(|_| InvalidValue::Size),
            toml::Value::String(text) => text.parse(),
            _ => Err(InvalidValue::Size),
        }
        .map_err(D::Error::custom)
    }
}

macro_rules! deserialize_from_text {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}
deserialize_from_text!(PublicUrl);
deserialize_from_text!(HttpUrl);
deserialize_from_text!(HostPort);
deserialize_from_text!(TrustedNetwork);

/// Why a text is not such a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    /// Not an absolute URL without a path.
    #[error(
        "expected an http or https URL with a host and without a path, as in https://registry.example.com"
    )]
    Url,
    /// Not an absolute URL.
    #[error(
        "expected an absolute http or https URL without user and query, as in https://auth.example.com/token"
    )]
    HttpUrl,
    /// Not a host and a port.
    #[error("expected a host and a port, as in primary.example.com:5443")]
    HostPort,
    /// Not a network.
    #[error("expected an address or a network, as in 10.0.0.0/8")]
    Network,
    /// Not a size.
    #[error("expected a size in bytes, as in \"200GiB\"")]
    Size,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let url: PublicUrl = "https://registry.example.com:8443/".parse().unwrap();
        assert_eq!(url.as_str(), "https://registry.example.com:8443");
        for bad in [
            "",
            "registry.example.com",
            "ftp://a",
            "https://a/b",
            "https://a?b",
            "https://u@a",
            "https://a/#x",
        ] {
            assert_eq!(bad.parse::<PublicUrl>(), Err(InvalidValue::Url), "{bad}");
        }
    }

    #[test]
    fn hosts_and_ports() {
        for good in ["primary.example.com:5443", "[::1]:1", "10.0.0.1:65535"] {
            assert!(good.parse::<HostPort>().is_ok(), "{good}");
        }
        for bad in ["", "primary", "primary:", "primary:0", "primary:70000", ":1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
        #[derive(Debug, Deserialize)]
        struct Asked {
            at: HostPorts,
        }
        let read =
            |value: &str| toml::from_str::<Asked>(&format!("at = {value}")).map(|asked| asked.at.texts());
        assert_eq!(read("'a:1'").unwrap(), ["a:1"]);
        assert_eq!(read("['a:1', '[::1]:2']").unwrap(), ["a:1", "[::1]:2"]);
        for bad in ["'a'", "[]", "['a:1', 'b']", "1"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks() {
        for (text, network) in [("10.0.0.0/8", "10.0.0.0/8"), ("10.1.2.3", "10.1.2.3/32"), ("::1", "::1/128")]
        {
            assert_eq!(text.parse::<TrustedNetwork>().unwrap().0.to_string(), network);
        }
        for bad in ["", "10.0.0.0/33", "10.0.0", "proxy.example.com"] {
            assert_eq!(bad.parse::<TrustedNetwork>(), Err(InvalidValue::Network), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("512", 512), ("1.5 KiB", 1536), ("200GiB", 200 << 30), ("2TB", 2_000_000_000_000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "GiB", "-1GiB", "1gb", "1 G", "NaN", "inf"] {
            assert_eq!(bad.parse::<ByteSize>(), Err(InvalidValue::Size), "{bad}");
        }
    }
}
