//! `[auth]` of a primary: who lets callers in, and what that one needs to know.

use std::path::PathBuf;

use serde::Deserialize;

use super::value::HttpUrl;
use crate::auth::{AccessRule, AccessRules, Remembering, RuleError};

/// Who may do what at the primary, and so everywhere. `auth.mode` in the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub enum Auth {
    /// Outport's own users, rules and tokens.
    Outport(OutportAuth),
    /// Tokens of the service that the registry behind the primary trusts.
    Token(TokenAuth),
    /// Whatever the registry behind the primary says when it is asked.
    Delegated(DelegatedAuth),
    /// Everybody may do everything.
    Anonymous,
}

/// Outport's own users, rules and tokens.
#[derive(Clone, Debug)]
pub struct OutportAuth {
    /// The `service` of challenges and the audience of tokens; by convention the hostname that clients use.
    pub service: String,
    /// The issuer that tokens name.
    pub issuer: String,
    /// Users and their password hashes; kept by `outport user`.
    pub users_file: PathBuf,
    /// Life of a token in seconds.
    pub token_lifetime_seconds: u32,
    /// Rules by repository; without any, users may do everything and anonymous callers nothing.
    pub access: Vec<AccessRule>,
    /// Who may list all repositories: user names, `authenticated`, `anonymous`. Whoever may sees the
    /// names of those they may not pull from as well; so with rules it is nobody by default.
    pub catalog: Option<Vec<String>>,
}

/// Tokens of another service, as CNCF Distribution's `auth.token` describes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenAuth {
    /// Absolute URL of the token endpoint, where clients are sent.
    pub realm: HttpUrl,
    /// The `service` of challenges and the audience of tokens.
    pub service: String,
    /// The issuer that tokens name.
    pub issuer: String,
    /// Certificates and public keys that tokens are signed with, PEM: `rootcertbundle`.
    pub certificates: Option<PathBuf>,
    /// A JSON Web Key Set: a file, or an `http` or `https` URL.
    pub jwks: Option<JwksPlace>,
    /// How often the key set is fetched again from a URL, in seconds. A key that is not known is looked
    /// for at once.
    #[serde(default = "jwks_refresh_seconds")]
    pub jwks_refresh_seconds: u32,
    /// How long a key set is believed after it was fetched from a URL, in hours: tokens are refused from
    /// then on, with status 503.
    #[serde(default = "jwks_stale_hours")]
    pub jwks_stale_hours: u32,
    /// Take the key set from an `http` URL that is not on this machine: whoever is on the way there can
    /// issue tokens.
    #[serde(default)]
    pub jwks_insecure: bool,
    /// Extra authorities for HTTPS to the key set's URL, PEM; the system's are always trusted.
    pub https_authorities: Option<PathBuf>,
    /// Globs of repositories that anybody may pull from without a token. Only sites that cannot reach the
    /// primary go by it: otherwise it is for the service to say.
    #[serde(default)]
    pub public_pull: Vec<String>,
}

/// The registry is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DelegatedAuth {
    /// How long a yes of the registry is remembered, in seconds: a user who was removed may go on for so
    /// long, unless `outport revoke` says so.
    pub allow_seconds: u32,
    /// How long it is remembered that credentials are wrong or do not reach that far, in seconds.
    pub deny_seconds: u32,
    /// Answers remembered at most, by each site.
    pub cached_max: u32,
    /// As in [`TokenAuth`].
    pub public_pull: Vec<String>,
}

/// Where a JSON Web Key Set is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum JwksPlace {
    /// In a file.
    File(PathBuf),
    /// At a URL, which may turn out to be none.
    Url(String),
}

impl From<String> for JwksPlace {
    fn from(text: String) -> Self {
        if text.contains("://") { Self::Url(text) } else { Self::File(text.into()) }
    }
}

impl Default for DelegatedAuth {
    fn default() -> Self {
        let Remembering { allow, deny, .. } = Remembering::default();
        Self {
            allow_seconds: u32::try_from(allow.as_secs()).unwrap_or(u32::MAX),
            deny_seconds: u32::try_from(deny.as_secs()).unwrap_or(u32::MAX),
            cached_max: 100_000,
            public_pull: Vec::new(),
        }
    }
}

impl OutportAuth {
    /// Users of a file and no rules, everything else by default.
    pub fn new(service: &str, users_file: PathBuf) -> Self {
        Self {
            service: service.to_owned(),
            issuer: "outport".to_owned(),
            users_file,
            token_lifetime_seconds: TOKEN_LIFETIME_SECONDS,
            access: Vec::new(),
            catalog: None,
        }
    }

    /// The rules as text: the same for the same rules.
    pub fn rules_as_text(&self) -> String {
        serde_json::json!({ "access": self.access, "catalog": self.catalog }).to_string()
    }

    /// The rules, ready to be asked.
    ///
    /// # Errors
    /// Names the glob that is malformed.
    pub fn rules(&self) -> Result<AccessRules, RuleError> {
        match (&*self.access, &self.catalog) {
            ([], None) => Ok(AccessRules::authenticated_only()),
            ([], Some(catalog)) => Ok(AccessRules::authenticated_only().with_catalog(catalog)),
            (rules, catalog) => AccessRules::new(rules, catalog.as_deref().unwrap_or_default()),
        }
    }
}

/// Short, because nothing can take a token back.
const TOKEN_LIFETIME_SECONDS: u32 = 300;

const fn jwks_refresh_seconds() -> u32 {
    300
}

const fn jwks_stale_hours() -> u32 {
    24
}

/// As it stands in the file: every key of every mode.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    mode: Mode,
    service: Option<String>,
    issuer: Option<String>,
    users_file: Option<PathBuf>,
    token_lifetime_seconds: Option<u32>,
    access: Option<Vec<AccessRule>>,
    catalog: Option<Vec<String>>,
    token: Option<TokenAuth>,
    delegated: Option<DelegatedAuth>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Outport,
    Token,
    Delegated,
    Anonymous,
}

impl TryFrom<Written> for Auth {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { mode, service, issuer, users_file, token_lifetime_seconds, access, catalog, .. } =
            written;
        let given = [
            ("service", service.is_some(), Mode::Outport),
            ("issuer", issuer.is_some(), Mode::Outport),
            ("users_file", users_file.is_some(), Mode::Outport),
            ("token_lifetime_seconds", token_lifetime_seconds.is_some(), Mode::Outport),
            ("access", access.is_some(), Mode::Outport),
            ("catalog", catalog.is_some(), Mode::Outport),
            ("token", written.token.is_some(), Mode::Token),
            ("delegated", written.delegated.is_some(), Mode::Delegated),
        ];
        if let Some((key, _, of)) = given.into_iter().find(|(_, given, of)| *given && *of != mode) {
            return Err(format!(
                "{key} has a meaning only with mode = {:?}, not with {:?}",
                of.word(),
                mode.word()
            ));
        }
        match mode {
            Mode::Outport => {
                let missing = |key: &str| format!("{key} is needed with mode = \"outport\"");
                let defaults = OutportAuth::new(
                    &service.ok_or_else(|| missing("service"))?,
                    users_file.ok_or_else(|| missing("users_file"))?,
                );
                Ok(Self::Outport(OutportAuth {
                    issuer: issuer.unwrap_or(defaults.issuer),
                    token_lifetime_seconds: token_lifetime_seconds.unwrap_or(defaults.token_lifetime_seconds),
                    access: access.unwrap_or_default(),
                    catalog,
                    ..defaults
                }))
            }
            Mode::Token => {
                let token = written.token.ok_or("[auth.token] is needed with mode = \"token\"")?;
                if token.certificates.is_none() && token.jwks.is_none() {
                    return Err(
                        "token.certificates or token.jwks must say what tokens are signed with".into()
                    );
                }
                Ok(Self::Token(token))
            }
            Mode::Delegated => Ok(Self::Delegated(written.delegated.unwrap_or_default())),
            Mode::Anonymous => Ok(Self::Anonymous),
        }
    }
}

impl Mode {
    const fn word(self) -> &'static str {
        match self {
            Self::Outport => "outport",
            Self::Token => "token",
            Self::Delegated => "delegated",
            Self::Anonymous => "anonymous",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Scope;

    fn read(text: &str) -> Result<Auth, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn who_may_list_all_repositories() {
        let everybody = || AccessRule { repository: "**".to_owned(), ..AccessRule::default() };
        let may_list = |access: Vec<AccessRule>, catalog: Option<&str>, user| {
            let catalog = catalog.map(|who| vec![who.to_owned()]);
            let auth = OutportAuth { access, catalog, ..OutportAuth::new("service", PathBuf::new()) };
            auth.rules().unwrap().grant(user, &[Scope::Catalog]).allows_catalog()
        };
        assert!(may_list(vec![], None, Some("ana")) && !may_list(vec![], None, None));
        assert!(!may_list(vec![], Some("bob"), Some("ana")) && may_list(vec![], Some("bob"), Some("bob")));
        assert!(!may_list(vec![everybody()], None, Some("ana")), "others' repositories would show");
        assert!(may_list(vec![everybody()], Some("authenticated"), Some("ana")));
    }

    #[test]
    fn each_mode_has_its_keys_and_no_others() {
        let token = "[token]\nrealm = \"https://gitlab.example.com/jwt/auth\"\nservice = \"container_registry\"\nissuer = \"gitlab-issuer\"";
        assert!(matches!(read("service = \"s\"\nusers_file = \"u\""), Ok(Auth::Outport(_))));
        assert!(matches!(read("mode = \"delegated\""), Ok(Auth::Delegated(_))));
        assert!(matches!(read("mode = \"anonymous\""), Ok(Auth::Anonymous)));
        let set = format!("mode = \"token\"\n{token}\njwks = \"https://gitlab.example.com/keys?a=b\"");
        let Ok(Auth::Token(set)) = read(&set) else { panic!() };
        assert_eq!(set.jwks, Some(JwksPlace::Url("https://gitlab.example.com/keys?a=b".to_owned())));
        let bundle =
            format!("mode = \"token\"\n{token}\ncertificates = \"/etc/bundle.pem\"\njwks = \"keys.json\"");
        let Ok(Auth::Token(bundle)) = read(&bundle) else { panic!() };
        assert_eq!(bundle.jwks, Some(JwksPlace::File("keys.json".into())));
        for (text, reason) in [
            ("service = \"s\"".to_owned(), "users_file is needed with mode = \"outport\""),
            ("users_file = \"u\"".to_owned(), "service is needed with mode = \"outport\""),
            (
                "mode = \"anonymous\"\nusers_file = \"u\"".to_owned(),
                "users_file has a meaning only with mode = \"outport\"",
            ),
            ("mode = \"delegated\"\n[[access]]\nrepository = \"a\"".to_owned(), "access has a meaning only"),
            (
                format!("service = \"s\"\nusers_file = \"u\"\n{token}"),
                "token has a meaning only with mode = \"token\"",
            ),
            ("mode = \"anonymous\"\n[delegated]".to_owned(), "delegated has a meaning only"),
            ("mode = \"token\"".to_owned(), "[auth.token] is needed"),
            (format!("mode = \"token\"\n{token}"), "token.certificates or token.jwks"),
            ("mode = \"magic\"".to_owned(), "unknown variant"),
            ("mode = \"delegated\"\n[delegated]\nallow = 1".to_owned(), "unknown field"),
            (token.replace("https://", "ftp://"), "expected an absolute http or https URL"),
            (token.replace("/jwt/auth", "/jwt/auth?a=b"), "expected an absolute http or https URL"),
        ] {
            let error = read(&text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
