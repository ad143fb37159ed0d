//! Where clients are sent: by configuration, never by what a request says.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::Uri;

/// Where clients find the primary. From configuration or from the primary itself, never from a
/// request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The primary's registry: `https://host[:port]`, without a slash at its end.
    pub public_url: String,
    /// The token endpoint, absolute.
    pub token_realm: String,
    /// The audience of tokens.
    pub service: String,
}

impl Addresses {
    /// Addresses that can stand in a header.
    ///
    /// # Errors
    /// [`InvalidAddress`] when one is not an absolute `http` or `https` URL without query.
    pub fn new(public_url: &str, token_realm: &str, service: &str) -> Result<Self, InvalidAddress> {
        for url in [public_url, token_realm] {
            let parsed: Uri = url.parse().map_err(|_| InvalidAddress(url.to_owned()))?;
            let absolute = matches!(parsed.scheme_str(), Some("http" | "https")) && parsed.host().is_some();
            if !absolute || parsed.query().is_some() || url.contains('@') {
                return Err(InvalidAddress(url.to_owned()));
            }
        }
        Ok(Self {
            public_url: public_url.trim_end_matches('/').to_owned(),
            token_realm: token_realm.to_owned(),
            service: service.to_owned(),
        })
    }
}

/// A URL that clients cannot be sent to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an absolute http or https URL without user and query")]
pub struct InvalidAddress(String);

/// The primary's addresses; empty at a secondary that has never heard of them. Replaced when the
/// primary says others.
pub type SharedAddresses = Arc<ArcSwapOption<Addresses>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_urls_are_addresses() {
        let good =
            Addresses::new("https://registry.example.com/", "https://a.example.com/token", "s").unwrap();
        assert_eq!(good.public_url, "https://registry.example.com");
        for bad in [
            "",
            "registry.example.com",
            "/token",
            "ftp://registry.example.com",
            "https://",
            "https://user@registry.example.com",
            "https://registry.example.com/?x=y",
            "https://registry.example.com/\r\nx: y",
        ] {
            assert!(Addresses::new(bad, "https://a.example.com/token", "s").is_err(), "{bad}");
            assert!(Addresses::new("https://a.example.com", bad, "s").is_err(), "{bad}");
        }
    }
}
