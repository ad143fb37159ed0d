//! What makes a machine a site: printed at the primary, and given to the machine.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use outport_proto::{SiteName, Timestamp, codec};

/// What a token begins with, so that people and scanners for secrets know one.
const PREFIX: &str = "outport-join-";
/// The newest form of a token.
const VERSION: u16 = 1;

/// A token to join with. `Display` shows the secret: it is for whoever made it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Which site the machine becomes.
    pub site: SiteName,
    /// Host and UDP port of the primary's replication listener; the first that answers is asked.
    pub addresses: Vec<String>,
    /// SHA-256 of the certificate of the authority that the primary's own is of.
    pub authority: [u8; 32],
    /// What shows that the machine was given the token.
    pub secret: [u8; 32],
    /// Until when it is good.
    pub expires: Timestamp,
    /// The primary's registry, through which it is reached over TCP where UDP does not work.
    pub fallback_url: String,
    /// Host names and addresses that the primary certifies for the site's HTTPS.
    pub https: Vec<String>,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("site", &self.site).finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { site, addresses, authority, secret, expires, fallback_url, https } = self;
        let names = (fallback_url.clone(), https.clone());
        let content: Content =
            (site.clone(), addresses.clone(), *authority, *secret, expires.as_secs(), names);
        let encoded = codec::encode_value(&(VERSION, content)).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(encoded))
    }
}

type Content = (SiteName, Vec<String>, [u8; 32], [u8; 32], u64, (String, Vec<String>));

impl FromStr for JoinToken {
    type Err = InvalidJoinToken;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().strip_prefix(PREFIX).ok_or(InvalidJoinToken::Prefix)?;
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidJoinToken::Damaged)?;
        let (version, content): (u16, Content) =
            codec::decode_value(&bytes).map_err(|_| InvalidJoinToken::Damaged)?;
        if version != VERSION {
            return Err(InvalidJoinToken::Version(version));
        }
        let (site, addresses, authority, secret, expires, (fallback_url, https)) = content;
        let expires = Timestamp::from_secs(expires);
        Ok(Self { site, addresses, authority, secret, expires, fallback_url, https })
    }
}

/// Why a text is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJoinToken {
    /// It is something else.
    #[error("not a join token: it begins with {PREFIX}")]
    Prefix,
    /// Something is missing or changed.
    #[error("the join token is damaged: copy all of it")]
    Damaged,
    /// Another version of the program made it.
    #[error("the join token is of version {0}, which this program does not know")]
    Version(u16),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_back_whole_or_not_at_all() {
        let token = JoinToken {
            site: "mumbai".parse().unwrap(),
            addresses: vec!["registry-primary.example.com:7443".to_owned(), "[2001:db8::1]:7443".to_owned()],
            authority: [7; 32],
            secret: [9; 32],
            expires: Timestamp::from_secs(1_800_000_000),
            fallback_url: "https://registry-primary.example.com".to_owned(),
            https: vec!["registry-mumbai.example.com".to_owned()],
        };
        let text = token.to_string();
        assert_eq!(format!(" {text}\n").parse::<JoinToken>(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("09"));
        assert_eq!("outport".parse::<JoinToken>(), Err(InvalidJoinToken::Prefix));
        for end in PREFIX.len()..text.len() {
            assert_eq!(text[..end].parse::<JoinToken>(), Err(InvalidJoinToken::Damaged), "{end}");
        }
        let swapped = text.replace(&text[60..62], if &text[60..62] == "AA" { "BB" } else { "AA" });
        assert_eq!(swapped.parse::<JoinToken>(), Err(InvalidJoinToken::Damaged));
    }
}
