//! The demo: a primary and its sites in one process on loopback, with generated keys,
//! certificates and password, and a sample image.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use outport_proto::{Reference, RepoName, SiteName, oci::media_type};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{GRACE, StartError, durable_write, primary, sample, secondary};
use crate::{
    auth::{Access, AccessRule, Authority, Caller, NodeIdentity, password, random_text},
    clock::{Clock as _, SystemClock},
    config,
    fetch::quic::Congestion,
    registry::{NewManifest, journal::History},
    shutdown::Shutdown,
};

const USER: &str = "demo";
const FILE: &str = "demo.json";
const SAMPLE_REPO: &str = "demo/hello";
const SAMPLE_TAG: &str = "1";

/// What `outport demo` was asked for.
#[derive(Clone, Debug)]
pub struct DemoOptions {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// Registry port of the primary; the sites take the next ones.
    pub port: u16,
    /// Admin port of the primary; the sites take the next ones.
    pub admin_port: u16,
    /// The sites.
    pub sites: Vec<SiteName>,
}

/// A running demo.
pub struct Running {
    /// Where the primary is.
    pub primary: Addresses,
    /// Where the sites are.
    pub sites: Vec<Site>,
    /// Who may push.
    pub user: String,
    /// And with which password.
    pub password: String,
    /// The sample image, `repository:tag`.
    pub sample: String,
    /// The file that says all this.
    pub file: PathBuf,
    running_primary: primary::Running,
    running_sites: Vec<secondary::Running>,
}

/// The content of `demo.json`.
#[derive(Serialize, Deserialize)]
struct DemoFile {
    primary: Addresses,
    sites: Vec<Site>,
    user: String,
    password: String,
}

/// Where a node listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Addresses {
    /// `address:port` of the registry.
    pub registry: String,
    /// `address:port` of the admin listener.
    pub admin: String,
}

impl Addresses {
    fn of(port: u16, admin_port: u16) -> Self {
        Self { registry: loopback(port).to_string(), admin: loopback(admin_port).to_string() }
    }

    /// The registry as docker takes it for granted over plain HTTP: `localhost:port`.
    pub fn local_name(&self) -> String {
        self.registry.replace(&Ipv4Addr::LOCALHOST.to_string(), "localhost")
    }
}

/// A site of the demo.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Its name.
    pub name: SiteName,
    /// Where it listens.
    #[serde(flatten)]
    pub node: Addresses,
}

/// Starts everything, pushes the sample and waits until every site has it; `None` when it is told
/// to stop meanwhile.
///
/// # Errors
/// When a port is taken, or the directory cannot be used.
pub async fn start(options: &DemoOptions, shutdown: &Shutdown) -> Result<Option<Running>, StartError> {
    let started = tokio::select! {
        started = start_all(options, shutdown) => started.map(Some),
        () = super::until_stopped(shutdown) => Ok(None),
    };
    if !matches!(started, Ok(Some(_))) {
        // What has started still uses the directory, which the caller may be about to remove.
        shutdown.finish(GRACE).await;
    }
    started
}

async fn start_all(options: &DemoOptions, shutdown: &Shutdown) -> Result<Running, StartError> {
    let ports = ports(options)?;
    let (primary_node, site_nodes) = ports.split_first().ok_or_else(too_many_sites)?;
    let sites: Vec<Site> = options
        .sites
        .iter()
        .zip(site_nodes)
        .map(|(name, node)| Site { name: name.clone(), node: node.clone() })
        .collect();
    let dir = &options.dir;
    fs::create_dir_all(dir).map_err(|error| StartError::new(format!("make {}", dir.display()), error))?;
    let password = password(dir)?;
    let users = dir.join("users");
    password::add(&users, USER, &password)
        .map_err(|error| StartError::new("write the demo's user", error))?;
    let pki = Pki::prepare(dir, &options.sites)?;

    let config = primary_config(dir, primary_node, &users, &pki, &options.sites)?;
    let running_primary = primary::start(&config, History::Continues, shutdown).await?;
    let replication = running_primary.replication_address();
    let mut running_sites = Vec::new();
    for site in &sites {
        let config = site_config(dir, site, replication, &pki)?;
        running_sites.push(secondary::start(&config, shutdown).await?);
    }
    seed(&running_primary).await?;
    let head = running_primary.head();
    for site in &running_sites {
        site.wait_applied(head).await;
    }

    let file = dir.join(FILE);
    let content = DemoFile {
        primary: primary_node.clone(),
        sites: sites.clone(),
        user: USER.to_owned(),
        password: password.clone(),
    };
    let text = serde_json::to_string_pretty(&content)
        .map_err(|error| StartError::new(format!("write {}", file.display()), error))?;
    durable_write(&file, &text)?;
    Ok(Running {
        primary: primary_node.clone(),
        sites,
        user: USER.to_owned(),
        password,
        sample: format!("{SAMPLE_REPO}:{SAMPLE_TAG}"),
        file,
        running_primary,
        running_sites,
    })
}

impl Running {
    /// Stops all nodes at once.
    ///
    /// # Errors
    /// When something could not be made durable.
    pub async fn stop(self) -> Result<(), StartError> {
        let mut stopping = JoinSet::new();
        for site in self.running_sites {
            stopping.spawn(site.stop());
        }
        stopping.spawn(self.running_primary.stop());
        stopping.join_all().await.into_iter().collect()
    }
}

/// The addresses of the primary and of each site.
fn ports(options: &DemoOptions) -> Result<Vec<Addresses>, StartError> {
    (0..=options.sites.len())
        .map(|number| {
            let number = u16::try_from(number).ok()?;
            let port = options.port.checked_add(number)?;
            Some(Addresses::of(port, options.admin_port.checked_add(number)?))
        })
        .collect::<Option<_>>()
        .ok_or_else(too_many_sites)
}

fn too_many_sites() -> StartError {
    StartError::new("choose ports", "there are not that many ports after --port and --admin-port")
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// The password an earlier start in this directory made, else a new one.
fn password(dir: &Path) -> Result<String, StartError> {
    let earlier = fs::read_to_string(dir.join(FILE))
        .ok()
        .and_then(|text| serde_json::from_str::<DemoFile>(&text).ok())
        .map(|file| file.password);
    match earlier {
        Some(password) => Ok(password),
        None => random_text().map_err(|error| StartError::new("make a password", error)),
    }
}

/// Certificates of the demo's cluster, kept between starts.
struct Pki {
    dir: PathBuf,
}

impl Pki {
    fn prepare(dir: &Path, sites: &[SiteName]) -> Result<Self, StartError> {
        let pki = Self { dir: dir.join("pki") };
        let failed = |error| StartError::new("make the demo's certificates", error);
        fs::create_dir_all(&pki.dir)
            .map_err(|error| StartError::new(format!("make {}", pki.dir.display()), error))?;
        let (certificate, key) = pki.files("authority");
        let now = SystemClock.now();
        let authority = if certificate.exists() {
            Authority::load(&certificate, &key).map_err(failed)?
        } else {
            let authority = Authority::create("demo", now).map_err(failed)?;
            authority.save(&certificate, &key).map_err(failed)?;
            authority
        };
        let nodes = sites.iter().map(|site| (site.to_string(), NodeIdentity::Site(site.clone())));
        for (name, identity) in nodes.chain([("primary".to_owned(), NodeIdentity::Primary)]) {
            let (certificate, key) = pki.files(&name);
            let node = authority.issue_node(&identity, now).map_err(failed)?;
            node.save(&certificate, &key).map_err(failed)?;
        }
        Ok(pki)
    }

    fn files(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.dir.join(format!("{name}.crt")), self.dir.join(format!("{name}.key")))
    }

    fn mutual_tls(&self, name: &str) -> config::MutualTls {
        let (certificate, key) = self.files(name);
        config::MutualTls { certificate, key, authority: self.files("authority").0, renew: false }
    }
}

fn primary_config(
    dir: &Path,
    node: &Addresses,
    users: &Path,
    pki: &Pki,
    sites: &[SiteName],
) -> Result<config::Primary, StartError> {
    let public_url = format!("http://{}", node.local_name());
    let owner = || vec![USER.to_owned()];
    let rule = AccessRule {
        repository: "**".to_owned(),
        pull: vec!["anonymous".to_owned()],
        push: owner(),
        delete: owner(),
    };
    let public_url = public_url.parse().map_err(|error| StartError::new("configure the demo", error))?;
    Ok(config::Primary {
        data_dir: dir.join("primary"),
        gateway: None,
        registry: config::PrimaryRegistry::plain(parse_address(&node.registry)?, public_url),
        auth: config::Auth::Outport(config::OutportAuth {
            access: vec![rule],
            catalog: Some(vec!["anonymous".to_owned()]),
            ..config::OutportAuth::new("localhost", users.to_owned())
        }),
        location: config::Location::default(),
        log: config::Log::default(),
        store: config::PrimaryStore::default(),
        canary: config::Canary::default(),
        webhooks: Vec::new(),
        replication: config::PrimaryReplication {
            listen: loopback(0),
            tls: pki.mutual_tls("primary"),
            sites: sites.to_vec(),
            authority_key: Some(pki.files("authority").1),
            public_address: None,
            relays: BTreeMap::new(),
            congestion: Congestion::default(),
        },
        admin: config::Admin { listen: parse_address(&node.admin)?, ..config::Admin::default() },
        audit: config::Audit::default(),
        telemetry: config::Telemetry::default(),
    })
}

fn site_config(
    dir: &Path,
    site: &Site,
    primary: SocketAddr,
    pki: &Pki,
) -> Result<config::Secondary, StartError> {
    let address: config::HostPort =
        primary.to_string().parse().map_err(|error| StartError::new("configure the demo", error))?;
    Ok(config::Secondary {
        data_dir: dir.join(site.name.as_str()),
        site: site.name.clone(),
        registry: config::SecondaryRegistry::plain(parse_address(&site.node.registry)?),
        primary: config::Upstream {
            address: address.into(),
            tcp_fallback: true,
            fallback_url: None,
            http_proxy: None,
            relay: None,
            tls: pki.mutual_tls(site.name.as_str()),
            https_authorities: None,
        },
        location: config::Location::default(),
        relay: None,
        read: config::Read::default(),
        log: config::Log::default(),
        policy: Vec::new(),
        bandwidth: Vec::new(),
        push: config::Push::default(),
        store: config::SecondaryStore::default(),
        admin: config::Admin { listen: parse_address(&site.node.admin)?, ..config::Admin::default() },
        audit: config::Audit::default(),
        telemetry: config::Telemetry::default(),
    })
}

fn parse_address(text: &str) -> Result<SocketAddr, StartError> {
    text.parse().map_err(|error| StartError::new("configure the demo", error))
}

/// Pushes the sample image as any client's push ends: through the push service.
async fn seed(primary: &primary::Running) -> Result<(), StartError> {
    let failed = |error: crate::registry::PushError| StartError::new("push the sample image", error);
    let repo: RepoName =
        SAMPLE_REPO.parse().map_err(|error| StartError::new("push the sample image", error))?;
    let tag = SAMPLE_TAG.parse().map_err(|error| StartError::new("push the sample image", error))?;
    let caller =
        Caller { subject: USER.into(), anonymous: false, ..Caller::anonymous(Access::unlimited().into()) };
    let Some(push) = primary.push() else { return Ok(()) };
    let sample = sample::image();
    for blob in sample.blobs {
        push.put_blob(&caller, &repo, blob).await.map_err(failed)?;
    }
    let manifest = NewManifest {
        reference: Reference::Tag(tag),
        tags: Vec::new(),
        content_type: media_type::OCI_MANIFEST.to_owned(),
        bytes: sample.manifest,
    };
    push.put_manifest(&caller, &repo, manifest).await.map_err(failed)?;
    Ok(())
}
