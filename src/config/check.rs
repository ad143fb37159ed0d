//! What the types cannot say: keys that must fit each other.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use outport_proto::frame::HOPS_MAX;

use super::{
    Admin, Auth, ConfigError, JwksPlace, Location, Log, Primary, PrimaryReplication, Proxies, PushMode,
    Secondary, Telemetry, Tls, Webhook,
};
use crate::{
    auth::{AccessRules, Authority, IssuerKeys, IssuerKeysError},
    policy::{RuleError, rule::STALENESS_BOUND_MS_MIN},
    primary::source::Relays,
};

impl Primary {
    /// Checks what the parts of the configuration demand of each other, and that the files it
    /// names are there. `path` is where it was loaded from.
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        check_listener(path, self.registry.listen, self.registry.tls.as_ref(), self.registry.insecure)?;
        check_proxies(path, &self.registry.proxies)?;
        check_admin(path, &self.admin)?;
        check_telemetry(path, &self.telemetry)?;
        self.audit.check(path, &self.telemetry)?;
        check_log(path, &self.log)?;
        check_location(path, self.location)?;
        let tls = &self.replication.tls;
        check_files(path, "replication.tls", &[&tls.certificate, &tls.key, &tls.authority])?;
        self.check_renewal(path)?;
        check_relays(path, &self.replication)?;
        self.check_gateway(path)?;
        let sites = self.replication.sites.iter().chain(self.replication.relays.values().flatten());
        // Whoever lets machines join knows their names later.
        let sites = self.replication.authority_key.is_none().then(|| sites.collect());
        Webhook::check(&self.webhooks, sites.as_ref(), path)?;
        check_auth(path, &self.auth)?;
        Ok(())
    }
}

impl Primary {
    fn check_renewal(&self, path: &Path) -> Result<(), ConfigError> {
        let replication = &self.replication;
        if let Some(key) = &replication.authority_key {
            Authority::load(&replication.tls.authority, key)
                .map_err(|error| ConfigError::of_key(path, "replication.authority_key", error))?;
            return Ok(());
        }
        let needs_key = "a primary renews with the authority's key: name it with replication.authority_key";
        if replication.tls.renew {
            return Err(ConfigError::of_key(path, "replication.tls.renew", needs_key));
        }
        if self.registry.tls.as_ref().is_some_and(|tls| tls.renew) {
            return Err(ConfigError::of_key(path, "registry.tls.renew", needs_key));
        }
        Ok(())
    }

    fn check_gateway(&self, path: &Path) -> Result<(), ConfigError> {
        let Some(upstream) = &self.registry.upstream else {
            if !matches!(self.auth, Auth::Outport(_)) {
                let reason =
                    "is for what a registry behind this primary goes by: name it with registry.upstream";
                return Err(ConfigError::of_key(path, "auth.mode", reason));
            }
            if self.gateway.is_some() {
                let reason = "says how registry.upstream is asked, and there is none";
                return Err(ConfigError::of_key(path, "gateway", reason));
            }
            return Ok(());
        };
        let gateway = self.gateway.clone().unwrap_or_default();
        let of_key = |(key, reason)| ConfigError::of_key(path, key, reason);
        gateway.backend(upstream).map_err(of_key)?;
        gateway.reconcile.options(!gateway.notifications.is_empty()).map_err(of_key)?;
        for (number, source) in gateway.notifications.iter().enumerate() {
            check_files(path, "gateway.notifications.secret_file", &[&source.secret_file])?;
            if gateway.notifications[..number].iter().any(|other| other.name == source.name) {
                let reason = format!("{} stands there twice", source.name);
                return Err(ConfigError::of_key(path, "gateway.notifications.name", reason));
            }
        }
        for (key, file) in [
            ("gateway.password_file", &gateway.password_file),
            ("gateway.token_file", &gateway.token_file),
            ("gateway.authorities", &gateway.authorities),
            ("gateway.client_certificate", &gateway.client_certificate),
            ("gateway.client_key", &gateway.client_key),
            ("gateway.storage", &gateway.storage),
            ("gateway.reconcile.file", &gateway.reconcile.file),
            ("gateway.reconcile.gitlab_token_file", &gateway.reconcile.gitlab_token_file),
        ] {
            check_files(path, key, &file.iter().collect::<Vec<_>>())?;
        }
        if gateway.client_certificate.is_some() != gateway.client_key.is_some() {
            let reason = "gateway.client_certificate and gateway.client_key go together";
            return Err(ConfigError::of_key(path, "gateway.client_key", reason));
        }
        for (key, number) in [
            ("gateway.requests_max", gateway.requests_max),
            ("gateway.bodies_max", gateway.bodies_max),
            ("gateway.answer_seconds", gateway.answer_seconds as usize),
        ] {
            if number == 0 {
                return Err(ConfigError::of_key(path, key, "must be at least 1"));
            }
        }
        if gateway.cache.0 < STORE_LIMIT_MIN {
            let reason = format!("must be at least {STORE_LIMIT_MIN} bytes");
            return Err(ConfigError::of_key(path, "gateway.cache", reason));
        }
        Ok(())
    }
}

impl Secondary {
    /// As [`Primary::check`].
    ///
    /// # Errors
    /// Names the key.
    pub fn check(&self, path: &Path) -> Result<(), ConfigError> {
        check_listener(path, self.registry.listen, self.registry.tls.as_ref(), self.registry.insecure)?;
        check_proxies(path, &self.registry.proxies)?;
        check_admin(path, &self.admin)?;
        check_telemetry(path, &self.telemetry)?;
        self.audit.check(path, &self.telemetry)?;
        check_log(path, &self.log)?;
        check_location(path, self.location)?;
        let tls = &self.primary.tls;
        check_files(path, "primary.tls", &[&tls.certificate, &tls.key, &tls.authority])?;
        if let Some(file) = &self.primary.https_authorities {
            check_files(path, "primary.https_authorities", &[file])?;
        }
        if self.store.limit.is_some_and(|limit| limit.0 < STORE_LIMIT_MIN) {
            let reason = format!("must be at least {STORE_LIMIT_MIN} bytes");
            return Err(ConfigError::of_key(path, "store.limit", reason));
        }
        if self.read.staleness_bound_ms < STALENESS_BOUND_MS_MIN {
            let reason = format!("must be at least {STALENESS_BOUND_MS_MIN}, two heartbeats");
            return Err(ConfigError::of_key(path, "read.staleness_bound_ms", reason));
        }
        self.policy().map_err(|error| ConfigError::of_rule(path, "policy", &error))?;
        self.bandwidth().map_err(|error| ConfigError::of_rule(path, "bandwidth", &error))?;
        if self.registry.public_url.is_some() && self.push.mode == PushMode::Redirect {
            let reason =
                "only clients that push through this site ask for tokens here: say push.mode = \"proxy\"";
            return Err(ConfigError::of_key(path, "registry.public_url", reason));
        }
        if self.registry.tls.as_ref().is_some_and(|tls| tls.renew) && !tls.renew {
            let reason =
                "the primary renews it with the site's own certificate: say primary.tls.renew = true";
            return Err(ConfigError::of_key(path, "registry.tls.renew", reason));
        }
        if self.primary.relay.as_ref() == Some(&self.site) {
            return Err(ConfigError::of_key(path, "primary.relay", "a site cannot follow itself"));
        }
        if self.relay.as_ref().is_some_and(|relay| relay.sites.contains(&self.site)) {
            return Err(ConfigError::of_key(path, "relay.sites", "a site cannot follow itself"));
        }
        Ok(())
    }

    /// What is valid and probably not meant, one line each.
    pub fn warnings(&self, path: &Path) -> Vec<String> {
        let shadowed = self.policy().map(|policy| policy.shadowed()).unwrap_or_default();
        let warning = |(number, by)| {
            let reason = format!("the rule never decides: rule {by} before it matches all that it matches");
            ConfigError::of_rule(path, "policy", &RuleError { number, key: "", reason }).to_string()
        };
        shadowed.into_iter().map(warning).collect()
    }
}

/// Below this hardly any layer could be kept.
const STORE_LIMIT_MIN: u64 = 1024 * 1024;

fn check_listener(
    path: &Path,
    listen: SocketAddr,
    tls: Option<&Tls>,
    insecure: bool,
) -> Result<(), ConfigError> {
    match tls {
        Some(tls) => check_files(path, "registry.tls", &[&tls.certificate, &tls.key]),
        None if listen.ip().is_loopback() || insecure => Ok(()),
        None => Err(ConfigError::of_key(
            path,
            "registry.listen",
            "plain HTTP is for loopback: configure registry.tls, or say registry.insecure = true",
        )),
    }
}

fn check_proxies(path: &Path, proxies: &Proxies) -> Result<(), ConfigError> {
    if proxies.proxy_protocol && proxies.trusted.is_empty() {
        let reason = "says how proxies tell whose a connection is; name those in registry.proxies.trusted";
        return Err(ConfigError::of_key(path, "registry.proxies.proxy_protocol", reason));
    }
    Ok(())
}

fn check_location(path: &Path, Location { latitude, longitude }: Location) -> Result<(), ConfigError> {
    if latitude.is_some() != longitude.is_some() {
        return Err(ConfigError::of_key(path, "location", "latitude and longitude go together"));
    }
    for (key, degrees, most) in
        [("location.latitude", latitude, 90.0), ("location.longitude", longitude, 180.0)]
    {
        // Not a number is not in a range.
        if degrees.is_some_and(|degrees| !(-most..=most).contains(&degrees)) {
            return Err(ConfigError::of_key(path, key, format!("must be from -{most} to {most}")));
        }
    }
    Ok(())
}

fn check_admin(path: &Path, admin: &Admin) -> Result<(), ConfigError> {
    match &admin.token_file {
        Some(file) => check_files(path, "admin.token_file", &[file]),
        None if admin.listen.ip().is_loopback() => Ok(()),
        None => Err(ConfigError::of_key(
            path,
            "admin.listen",
            "an admin listener that is not on loopback needs admin.token_file",
        )),
    }
}

fn check_telemetry(path: &Path, telemetry: &Telemetry) -> Result<(), ConfigError> {
    let Some(otlp) = &telemetry.otlp else { return Ok(()) };
    if !(0.0..=1.0).contains(&otlp.trace_ratio) {
        return Err(ConfigError::of_key(path, "telemetry.otlp.trace_ratio", "must be from 0 to 1"));
    }
    match &otlp.authorities {
        Some(file) => check_files(path, "telemetry.otlp.authorities", &[file]),
        None => Ok(()),
    }
}

fn check_auth(path: &Path, auth: &Auth) -> Result<(), ConfigError> {
    let public_pull = |key: &str, globs: &[String]| {
        let rules = AccessRules::only_public_pull(globs);
        rules.map(drop).map_err(|error| ConfigError::of_key(path, key, error))
    };
    match auth {
        Auth::Outport(own) => {
            check_files(path, "auth.users_file", &[&own.users_file])?;
            own.rules().map_err(|error| ConfigError::of_key(path, "auth.access", error))?;
            return Ok(());
        }
        Auth::Token(token) => {
            let of_key = |key: &str, reason: String| ConfigError::of_key(path, key, reason);
            let text = |key, file: &PathBuf| {
                let text = std::fs::read_to_string(file);
                text.map_err(|error| of_key(key, format!("{}: {error}", file.display())))
            };
            let wrong = |key: &'static str, file: &PathBuf| {
                let file = file.display().to_string();
                move |error: IssuerKeysError| of_key(key, format!("{file}: {error}"))
            };
            if let Some(file) = &token.certificates {
                let key = "auth.token.certificates";
                IssuerKeys::read(Some(&text(key, file)?), None).map_err(wrong(key, file))?;
            }
            match &token.jwks {
                Some(JwksPlace::File(file)) => {
                    let key = "auth.token.jwks";
                    IssuerKeys::read(None, Some(&text(key, file)?)).map_err(wrong(key, file))?;
                }
                Some(JwksPlace::Url(url)) if !is_http(url) => {
                    return Err(of_key(
                        "auth.token.jwks",
                        "expected a file or an http or https URL".to_owned(),
                    ));
                }
                Some(JwksPlace::Url(url)) if !token.jwks_insecure && !is_private(url) => {
                    let reason = "whoever is on the way to an http URL can issue tokens: say https, or \
                                  auth.token.jwks_insecure = true";
                    return Err(of_key("auth.token.jwks", reason.to_owned()));
                }
                Some(JwksPlace::Url(_)) | None => {}
            }
            if let Some(file) = &token.https_authorities {
                check_files(path, "auth.token.https_authorities", &[file])?;
            }
            if token.jwks_refresh_seconds == 0 {
                return Err(of_key("auth.token.jwks_refresh_seconds", "must be at least 1".to_owned()));
            }
            if u64::from(token.jwks_stale_hours) * 3600 < u64::from(token.jwks_refresh_seconds) {
                let reason = "must be at least 1, and not less than auth.token.jwks_refresh_seconds";
                return Err(of_key("auth.token.jwks_stale_hours", reason.to_owned()));
            }
            public_pull("auth.token.public_pull", &token.public_pull)?;
        }
        Auth::Delegated(delegated) => public_pull("auth.delegated.public_pull", &delegated.public_pull)?,
        Auth::Anonymous => {}
    }
    Ok(())
}

fn is_http(url: &str) -> bool {
    url.parse::<http::Uri>()
        .is_ok_and(|url| matches!(url.scheme_str(), Some("http" | "https")) && url.host().is_some())
}

/// Whether nobody on the way can change what is answered at this URL.
fn is_private(url: &str) -> bool {
    url.parse::<http::Uri>().is_ok_and(|url| {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let is_loopback = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback());
        url.scheme_str() == Some("https") || is_loopback
    })
}

/// A site that relays connects itself, and no way down comes back.
fn check_relays(path: &Path, replication: &PrimaryReplication) -> Result<(), ConfigError> {
    let failed = |reason: String| Err(ConfigError::of_key(path, "replication.relays", reason));
    let relays = Relays::new(replication.relays.clone());
    let behind = relays.behind_any();
    for (relay, sites) in &replication.relays {
        let may_join = replication.authority_key.is_some();
        if !may_join && !replication.sites.contains(relay) && !behind.contains(relay) {
            return failed(format!("{relay} is neither in replication.sites nor behind another site"));
        }
        if let Some(site) = sites.iter().find(|site| relays.is_ring(site)) {
            return failed(format!("the way to {site} is a ring, or longer than {HOPS_MAX} sites"));
        }
    }
    Ok(())
}

/// A log that keeps less would send every site that blinks to a snapshot.
fn check_log(path: &Path, log: &Log) -> Result<(), ConfigError> {
    if log.retain_bytes < RETAIN_BYTES_MIN {
        let reason = format!("must be at least {RETAIN_BYTES_MIN}, one segment");
        return Err(ConfigError::of_key(path, "log.retain_bytes", reason));
    }
    if log.retain_hours == 0 {
        return Err(ConfigError::of_key(path, "log.retain_hours", "must be at least 1"));
    }
    if log.snapshot_after_events == 0 {
        return Err(ConfigError::of_key(path, "log.snapshot_after_events", "must be at least 1"));
    }
    if log.tombstones_hours < log.retain_hours {
        let reason = "must be at least log.retain_hours: whoever is that far behind still needs them";
        return Err(ConfigError::of_key(path, "log.tombstones_hours", reason));
    }
    Ok(())
}

const RETAIN_BYTES_MIN: u64 = 64 * 1024 * 1024;

pub(super) fn check_files(path: &Path, key: &str, files: &[&std::path::PathBuf]) -> Result<(), ConfigError> {
    for file in files {
        std::fs::File::open(file)
            .map_err(|error| ConfigError::of_key(path, key, format!("{}: {error}", file.display())))?;
    }
    Ok(())
}
