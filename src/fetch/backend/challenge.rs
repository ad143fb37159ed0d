//! The `WWW-Authenticate` of a registry. Sources: RFC 9110 section 11.6.1, CNCF Distribution "Token
//! Authentication Specification".

use http::{HeaderMap, header};

/// How a registry wants to be told who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// A user's name and password with every request.
    Basic {
        /// What they are for; for people.
        realm: String,
    },
    /// A token.
    Bearer {
        /// Absolute URL of the token endpoint.
        realm: String,
        /// For whom the token shall be; empty when it names none.
        service: String,
    },
}

impl Challenge {
    /// The one to be answered among those of an answer: a token before a password.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<Self> = values.filter_map(Self::parse).collect();
        let bearer = challenges.iter().position(|challenge| matches!(challenge, Self::Bearer { .. }));
        challenges.into_iter().nth(bearer.unwrap_or_default())
    }

    /// Reads one header value with one challenge in it.
    fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        let parameter = |wanted: &str| {
            parameters(rest)
                .into_iter()
                .find_map(|(name, value)| name.eq_ignore_ascii_case(wanted).then_some(value))
        };
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic { realm: parameter("realm").unwrap_or_default() });
        }
        let is_bearer = scheme.eq_ignore_ascii_case("bearer");
        is_bearer.then(|| {
            Some(Self::Bearer {
                realm: parameter("realm")?,
                service: parameter("service").unwrap_or_default(),
            })
        })?
    }
}

/// `name=token` and `name="quoted \" text"`, separated by commas.
fn parameters(mut text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',', '\t']);
        let rest = rest.trim_start();
        let Some(quoted) = rest.strip_prefix('"') else {
            let (value, rest) = rest.split_once(',').unwrap_or((rest, ""));
            found.push((name, value.trim().to_owned()));
            text = rest;
            continue;
        };
        let (mut value, mut escaped, mut end) = (String::new(), false, quoted.len());
        for (at, character) in quoted.char_indices() {
            match character {
                '\\' if !escaped => escaped = true,
                '"' if !escaped => {
                    end = at + 1;
                    break;
                }
                _ => {
                    value.push(character);
                    escaped = false;
                }
            }
        }
        found.push((name, value));
        text = &quoted[end.min(quoted.len())..];
    }
    found
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(values: &[&'static str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(value));
        }
        Challenge::of(&headers)
    }

    #[test]
    fn challenges_of_registries() {
        let bearer = |realm: &str, service: &str| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.to_owned() })
        };
        assert_eq!(
            of(&[
                r#"Bearer realm="https://gitlab.example.com/jwt/auth",service="container_registry",scope="repository:a/b:pull",error="invalid_token""#
            ]),
            bearer("https://gitlab.example.com/jwt/auth", "container_registry")
        );
        assert_eq!(
            of(&[r#"bearer service=a , realm=https://x.example/t"#]),
            bearer("https://x.example/t", "a")
        );
        assert_eq!(
            of(&[r#"Basic realm="Registry \"5\" Realm""#]),
            Some(Challenge::Basic { realm: r#"Registry "5" Realm"#.to_owned() })
        );
        assert_eq!(
            of(&["Basic realm=x", r#"Bearer realm="https://x.example/t""#]),
            bearer("https://x.example/t", "")
        );
        assert_eq!(of(&["Bearer service=\"no realm\""]), None);
        assert_eq!(of(&["Negotiate", "", "Bearer realm=\"unclosed"]), bearer("unclosed", ""));
    }
}
