//! The two headers of HTTP authentication: `WWW-Authenticate` out, `Authorization` in.
//!
//! Sources: RFC 6750 section 3, RFC 7617, CNCF Distribution "Token authentication specification".

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{Scope, Secret};

/// Longest `Authorization` value that is looked at, in bytes: a token of the largest size and its scheme.
pub const AUTHORIZATION_BYTES_MAX: usize = super::token::TOKEN_BYTES_MAX + 16;

/// What a client must fetch a token for; `Display` is the value of `WWW-Authenticate`.
#[derive(Clone, Copy, Debug)]
pub struct Challenge<'a> {
    /// Absolute URL of the token endpoint.
    pub realm: &'a str,
    /// The audience to ask a token for; nothing is said of it when it is empty.
    pub service: &'a str,
    /// What the refused request needed.
    pub scopes: &'a [Scope],
    /// Why a token that was sent is not enough; `None` when none was sent.
    pub error: Option<ChallengeError>,
}

/// That a password is wanted with every request (RFC 7617); `Display` is the value of `WWW-Authenticate`.
#[derive(Clone, Copy, Debug)]
pub struct BasicChallenge<'a> {
    /// For people.
    pub realm: &'a str,
}

impl fmt::Display for BasicChallenge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Basic realm=\"{}\"", Quoted(self.realm))
    }
}

/// RFC 6750's words for a refused token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengeError {
    /// The token is expired, forged or not for this service.
    InvalidToken,
    /// The token is good and grants too little.
    InsufficientScope,
}

impl ChallengeError {
    const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
        }
    }
}

impl fmt::Display for Challenge<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bearer realm=\"{}\"", Quoted(self.realm))?;
        if !self.service.is_empty() {
            write!(f, ",service=\"{}\"", Quoted(self.service))?;
        }
        for (index, scope) in self.scopes.iter().enumerate() {
            f.write_str(if index == 0 { ",scope=\"" } else { " " })?;
            scope.fmt(f)?;
        }
        if !self.scopes.is_empty() {
            f.write_str("\"")?;
        }
        match self.error {
            Some(error) => write!(f, ",error=\"{}\"", error.as_str()),
            None => Ok(()),
        }
    }
}

/// The inside of an RFC 9110 quoted string; control characters cannot be written in one.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for character in self.0.chars().filter(|character| !character.is_control()) {
            if matches!(character, '"' | '\\') {
                f.write_char('\\')?;
            }
            f.write_char(character)?;
        }
        Ok(())
    }
}

/// The credentials of an `Authorization` header. `Debug` shows none of them.
#[derive(Clone, PartialEq, Eq)]
pub enum Authorization<'a> {
    /// A token, still to be verified.
    Bearer(&'a str),
    /// A user and a password, still to be verified.
    Basic {
        /// Who.
        user: String,
        /// The proof.
        password: Secret,
    },
}

impl<'a> Authorization<'a> {
    /// Reads the header's value. Scheme names have no case; the rest is taken strictly.
    pub fn parse(value: &'a str) -> Result<Self, AuthorizationError> {
        if value.len() > AUTHORIZATION_BYTES_MAX {
            return Err(AuthorizationError::TooLong);
        }
        let (scheme, credentials) = value.split_once(' ').ok_or(AuthorizationError::Malformed)?;
        let credentials = credentials.trim_matches(' ');
        if credentials.is_empty() || credentials.contains([' ', ',', '\t']) {
            return Err(AuthorizationError::Malformed);
        }
        if scheme.eq_ignore_ascii_case("bearer") {
            Ok(Self::Bearer(credentials))
        } else if scheme.eq_ignore_ascii_case("basic") {
            Self::parse_basic(credentials)
        } else {
            Err(AuthorizationError::Scheme)
        }
    }

    fn parse_basic(credentials: &str) -> Result<Self, AuthorizationError> {
        let bytes = STANDARD.decode(credentials).map_err(|_| AuthorizationError::Malformed)?;
        let text = String::from_utf8(bytes).map_err(|_| AuthorizationError::Malformed)?;
        let (user, password) = text.split_once(':').ok_or(AuthorizationError::Malformed)?;
        if text.contains(char::is_control) {
            return Err(AuthorizationError::Malformed);
        }
        Ok(Self::Basic { user: user.to_owned(), password: password.into() })
    }
}

impl fmt::Debug for Authorization<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bearer(_) => "Bearer(..)",
            Self::Basic { .. } => "Basic(..)",
        })
    }
}

/// Why an `Authorization` header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationError {
    /// Longer than [`AUTHORIZATION_BYTES_MAX`].
    #[error("the Authorization header is too long")]
    TooLong,
    /// Neither Bearer nor Basic.
    #[error("the Authorization scheme is neither Bearer nor Basic")]
    Scheme,
    /// Not what the scheme prescribes.
    #[error("the Authorization header is malformed")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Action, Actions};

    #[test]
    fn a_challenge_names_realm_service_scope_and_error() {
        let repo = "team/app".parse().unwrap();
        let from = "base/os".parse().unwrap();
        let scopes = [Scope::repository(&repo, Actions::PULL_PUSH), Scope::repository(&from, Action::Pull)];
        let challenge = Challenge {
            realm: "https://primary.example.com/token",
            service: "registry.example.com",
            scopes: &scopes,
            error: Some(ChallengeError::InsufficientScope),
        };
        assert_eq!(
            challenge.to_string(),
            "Bearer realm=\"https://primary.example.com/token\",service=\"registry.example.com\",\
             scope=\"repository:team/app:pull,push repository:base/os:pull\",error=\"insufficient_scope\""
        );
        let bare = Challenge { realm: "a\"b\\c\r\nX: y", service: "s", scopes: &[], error: None };
        assert_eq!(bare.to_string(), "Bearer realm=\"a\\\"b\\\\cX: y\",service=\"s\"");
    }

    #[test]
    fn authorization_is_read_strictly() {
        let basic = |user: &str, password: &str| {
            Ok(Authorization::Basic { user: user.to_owned(), password: password.into() })
        };
        assert_eq!(Authorization::parse("Bearer abc.def.ghi"), Ok(Authorization::Bearer("abc.def.ghi")));
        assert_eq!(Authorization::parse("bEARER  abc"), Ok(Authorization::Bearer("abc")));
        assert_eq!(Authorization::parse("Basic ZGVtbzpwYTpzcw=="), basic("demo", "pa:ss"));
        assert_eq!(Authorization::parse("basic Og=="), basic("", ""));
        for bad in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer a b",
            "Bearer a, Basic b",
            "Basic ZGVtbzpwYTpzcw",
            "Basic ZGVtbzpwYTpzcw==x",
            "Basic ZGVtbzpwYTpzc-==",
            "Basic ZGVtbw==",
            "Basic ////",
            "Basic YTpiCg==",
        ] {
            assert_eq!(Authorization::parse(bad), Err(AuthorizationError::Malformed), "{bad}");
        }
        assert_eq!(Authorization::parse("Digest a"), Err(AuthorizationError::Scheme));
        let long = format!("Bearer {}", "a".repeat(AUTHORIZATION_BYTES_MAX));
        assert_eq!(Authorization::parse(&long), Err(AuthorizationError::TooLong));
    }

    #[test]
    fn credentials_are_never_shown() {
        let shown = format!(
            "{:?} {:?}",
            Authorization::parse("Bearer s3cret"),
            Authorization::parse("Basic ZGVtbzpwYTpzcw==")
        );
        assert!(!shown.contains("s3cret") && !shown.contains("pa:ss") && !shown.contains("demo"), "{shown}");
    }

    proptest::proptest! {
        #[test]
        fn any_basic_credentials_come_through(user in "[^:\\x00-\\x1f\\x7f-\\u{9f}]{0,20}", password in "[^\\x00-\\x1f\\x7f-\\u{9f}]{0,20}") {
            let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            let expected = Authorization::Basic { user, password: password.into() };
            proptest::prop_assert_eq!(Authorization::parse(&value), Ok(expected));
        }

        #[test]
        fn no_header_value_breaks_the_reader(value in "(Basic |Bearer |)\\PC{0,40}") {
            let _ = Authorization::parse(&value);
        }
    }
}
