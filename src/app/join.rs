//! A machine becomes a site: keys, certificates and a configuration, from a token and nothing else.

use std::{
    fs::DirBuilder,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use outport_proto::frame::CertificateRequests;

use super::{StartError, durable_write, renewal::check, secondary::node_name, system_authorities};
use crate::{
    auth::{CertificateRequest, JoinToken, authority::save_certificates, tls},
    clock::{Clock as _, SystemClock},
    config,
    fetch::tunnel::Way,
    secondary,
};

/// Where the keys and certificates are, inside the data directory.
const IDENTITY_DIR: &str = "identity";

/// What a machine joins with.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// What the primary's administrator was given.
    pub token: JoinToken,
    /// The configuration: written if there is none, else it says where the certificates go.
    pub config: PathBuf,
    /// Where everything durable will live.
    pub data_dir: PathBuf,
    /// Where the registry listens; without it port 443 with a certificate, and else 5000 of loopback.
    pub listen: Option<SocketAddr>,
    /// Where the admin listener is.
    pub admin: SocketAddr,
    /// Certificate and key for HTTPS, if they come from elsewhere.
    pub https: Option<(PathBuf, PathBuf)>,
    /// Plain HTTP for others than this machine.
    pub insecure: bool,
}

/// Joins, unless that was done before. Returns whether it was done now.
///
/// # Errors
/// What is in the way; the token is good still unless the primary says otherwise.
pub async fn join(options: &JoinOptions) -> Result<bool, StartError> {
    let failed = |reason: String| StartError::new(format!("join as site {}", options.token.site), reason);
    let is_there = options.config.exists();
    let (config, text) = if is_there {
        let config = config::load::<config::Secondary>(&options.config);
        (config.map_err(|error| StartError::new("read the configuration", error))?, None)
    } else {
        let text = options.configuration().map_err(failed)?;
        let config = toml::from_str::<config::Secondary>(&text).map_err(|error| failed(error.to_string()))?;
        (config, Some(text))
    };
    if config.site != options.token.site {
        let reason = format!("{} is the configuration of site {}", options.config.display(), config.site);
        return Err(failed(reason));
    }
    let node = &config.primary.tls;
    let https = config.registry.tls.as_ref().filter(|tls| tls.renew && !tls.certificate.exists());
    if is_there && node.certificate.exists() && https.is_none() {
        return Ok(false);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(|error| failed(format!("make {}: {error}", config.data_dir.display())))?;
    let files = [&node.certificate, &node.key, &node.authority, &options.config];
    for file in files.into_iter().chain(https.iter().flat_map(|tls| [&tls.certificate, &tls.key])) {
        make_directory_of(file).map_err(failed)?;
    }
    // A key that is there was made by a machine that did not hear the answer: the token is good for it.
    let request = |key: &Path| CertificateRequest::of_key(key).map_err(|error| failed(error.to_string()));
    let node_request = request(&node.key)?;
    let https_request = https.map(|tls| request(&tls.key)).transpose()?;
    let requests = CertificateRequests {
        node: node_request.der().to_vec(),
        https: https_request.as_ref().map(|request| request.der().to_vec()),
    };
    let client = tls::https_client(&system_authorities()).map_err(|error| failed(error.to_string()))?;
    let proxy = config.primary.http_proxy.as_ref().map(|proxy| proxy.as_str().to_owned());
    let way = Way::new(options.token.fallback_url.parse().ok(), Arc::new(client), proxy);
    let certificates = secondary::join::join(&options.token, &way, requests, node_name()).await;
    let certificates = certificates.map_err(|error| failed(error.to_string()))?;
    let unusable =
        |error: Box<dyn std::error::Error + Send + Sync>| failed(format!("the certificate: {error}"));
    let identity = node_request.certified(&certificates.node).map_err(|error| unusable(error.into()))?;
    check(&identity, &certificates.authorities, SystemClock.now()).map_err(unusable)?;
    save_certificates(&node.authority, &certificates.authorities)
        .map_err(|error| failed(error.to_string()))?;
    if let (Some(tls), Some(request)) = (https, https_request) {
        let chain = certificates.https.unwrap_or_default();
        let chain =
            request.certified(&chain).map_err(|_| failed("there is no certificate for HTTPS".to_owned()))?;
        chain.save_chain(&tls.certificate).map_err(|error| failed(error.to_string()))?;
    }
    if let Some(text) = text {
        durable_write(&options.config, &text)?;
    }
    // Last: with it the machine has joined.
    identity.save_chain(&node.certificate).map_err(|error| failed(error.to_string()))?;
    Ok(true)
}

fn make_directory_of(file: &Path) -> Result<(), String> {
    let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::create_dir_all(directory).map_err(|error| format!("make {}: {error}", directory.display()))
}

impl JoinOptions {
    /// The configuration of a machine that has none.
    fn configuration(&self) -> Result<String, String> {
        let token = &self.token;
        let identity = self.data_dir.join(IDENTITY_DIR);
        let text = |path: &Path| {
            let path = path.to_str().ok_or_else(|| format!("{}: not UTF-8", path.display()))?;
            Ok::<_, String>(toml::Value::String(path.to_owned()).to_string())
        };
        let in_identity = |name: &str| text(&identity.join(name));
        let tls = match &self.https {
            Some((certificate, key)) => {
                Some(format!("tls = {{ certificate = {}, key = {} }}", text(certificate)?, text(key)?))
            }
            None if !token.https.is_empty() => Some(format!(
                "tls = {{ certificate = {}, key = {}, renew = true }}",
                in_identity("https.crt")?,
                in_identity("https.key")?
            )),
            None => None,
        };
        let listen = self.listen.unwrap_or(match tls {
            Some(_) => (Ipv4Addr::UNSPECIFIED, 443).into(),
            None => (Ipv4Addr::LOCALHOST, 5000).into(),
        });
        if tls.is_none() && !listen.ip().is_loopback() && !self.insecure {
            return Err(
                "plain HTTP is for loopback: give --certificate and --key, have the token made with \
                        `outport site add --https HOST`, or say --insecure"
                    .to_owned(),
            );
        }
        if !self.admin.ip().is_loopback() {
            return Err("an admin listener that is not on loopback needs admin.token_file: write the \
                        configuration first, and join with it"
                .to_owned());
        }
        let addresses = token.addresses.iter().cloned().map(toml::Value::String).collect();
        let mut lines = vec![
            "# Written when the machine joined. Every key: deploy/examples/secondary.toml.".to_owned(),
            format!("site = \"{}\"", token.site),
            format!("data_dir = {}", text(&self.data_dir)?),
            String::new(),
            "[registry]".to_owned(),
            format!("listen = \"{listen}\""),
        ];
        lines.extend(tls);
        if self.insecure {
            lines.push("insecure = true".to_owned());
        }
        lines.extend([
            String::new(),
            "[primary]".to_owned(),
            format!("address = {}", toml::Value::Array(addresses)),
            format!("fallback_url = {}", toml::Value::String(token.fallback_url.clone())),
            format!("https_authorities = {}", in_identity("authority.crt")?),
            String::new(),
            "[primary.tls]".to_owned(),
            format!("certificate = {}", in_identity("node.crt")?),
            format!("key = {}", in_identity("node.key")?),
            format!("authority = {}", in_identity("authority.crt")?),
            "renew = true".to_owned(),
            String::new(),
            "[admin]".to_owned(),
            format!("listen = \"{}\"", self.admin),
            String::new(),
        ]);
        Ok(lines.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use outport_proto::Timestamp;

    use super::*;

    fn options(https: &[&str]) -> JoinOptions {
        let token = JoinToken {
            site: "mumbai".parse().unwrap(),
            addresses: vec!["primary.example.com:7443".to_owned()],
            authority: [0; 32],
            secret: [0; 32],
            fallback_url: "https://registry-primary.example.com".to_owned(),
            expires: Timestamp::from_secs(1),
            https: https.iter().map(|name| (*name).to_owned()).collect(),
        };
        JoinOptions {
            token,
            config: "/etc/outport/secondary.toml".into(),
            data_dir: "/var/lib/\"outport\"".into(),
            listen: None,
            admin: (Ipv4Addr::LOCALHOST, 9000).into(),
            https: None,
            insecure: false,
        }
    }

    fn written(options: &JoinOptions) -> Result<config::Secondary, String> {
        toml::from_str(&options.configuration()?).map_err(|error| error.to_string())
    }

    #[test]
    fn the_configuration_says_what_the_token_and_the_options_say() {
        let plain = written(&options(&[])).unwrap();
        assert_eq!((plain.site.as_str(), plain.registry.listen.port()), ("mumbai", 5000));
        assert!(plain.registry.tls.is_none() && plain.primary.tls.renew);
        assert_eq!(plain.primary.tls.key, Path::new("/var/lib/\"outport\"/identity/node.key"));
        let certified = written(&options(&["mumbai.example.com"])).unwrap();
        assert_eq!(certified.registry.listen, "0.0.0.0:443".parse().unwrap());
        assert!(certified.registry.tls.unwrap().renew);
        let own =
            JoinOptions { https: Some(("a.crt".into(), "a.key".into())), ..options(&["mumbai.example.com"]) };
        assert!(!written(&own).unwrap().registry.tls.unwrap().renew);
    }

    #[test]
    fn what_could_not_start_does_not_spend_the_token() {
        let everywhere = JoinOptions { listen: Some("0.0.0.0:5000".parse().unwrap()), ..options(&[]) };
        assert!(written(&everywhere).unwrap_err().contains("plain HTTP is for loopback"));
        assert!(written(&JoinOptions { insecure: true, ..everywhere }).unwrap().registry.insecure);
        let open = JoinOptions { admin: "0.0.0.0:9000".parse().unwrap(), ..options(&[]) };
        assert!(written(&open).unwrap_err().contains("admin.token_file"));
    }
}
