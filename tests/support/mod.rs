//! A real cluster for tests and benchmarks: one primary and its sites as processes of the built
//! binary, on loopback addresses of their own, each with a configuration file as an operator
//! would write it.

#![expect(dead_code, reason = "every test binary uses another part of this")]

pub mod http;
pub mod registry;
pub mod required;
pub mod session;
pub mod sites;
pub mod token_service;

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::{Duration, Instant},
};

/// The user that may push; its password is made for each cluster.
pub const USER: &str = "demo";
/// How long anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(30);
const REGISTRY_PORT: u16 = 5000;
const ADMIN_PORT: u16 = 9000;
const REPLICATION_PORT: u16 = 5443;

/// How a cluster is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// Site names.
    pub sites: Vec<&'static str>,
    /// Sites that the primary lists and nobody starts.
    pub listed: Vec<String>,
    /// The primary has the authority's key: machines can join, and certificates be renewed.
    pub certifies: bool,
    /// HTTPS with certificates of the cluster's authority, else plain HTTP.
    pub tls: bool,
    /// More of the primary's configuration, TOML; here and below `{data}` is the node's directory.
    pub primary_toml: String,
    /// More of the primary's `[auth]` section, TOML.
    pub primary_auth_toml: String,
    /// How often the primary pushes its canary, in seconds; 0 for none, so that logs hold what the test did.
    pub canary_seconds: u32,
    /// The primary's whole `[auth]`, TOML, instead of users and rules.
    pub auth_toml: Option<String>,
    /// A registry that the primary stands in front of.
    pub registry: Option<registry::Lets>,
    /// The URL of something else that the primary stands in front of.
    pub upstream: Option<String>,
    /// More of its configuration, YAML at the top level.
    pub registry_yaml: String,
    /// Fills it before the primary starts.
    pub registry_filled: Option<fn(&registry::Registry)>,
    /// More of the primary's `[gateway]` section, TOML; with a `username`, instead of the registry's owner.
    pub gateway_toml: String,
    /// Glob of the repositories that anybody may pull from; [`USER`] may do everything.
    pub public: &'static str,
    /// More of every site's configuration, TOML.
    pub site_toml: String,
    /// Sites that follow another site instead of the primary, and which; that one comes first in `sites`.
    pub behind: Vec<(&'static str, &'static str)>,
    /// More of some sites' configuration, TOML, by site.
    pub toml_of: Vec<(&'static str, String)>,
    /// Another program than the one under test, by node.
    pub program_of: Vec<(&'static str, PathBuf)>,
    /// Run nodes on this core alone.
    pub core: Option<usize>,
    /// What nodes log.
    pub log_filter: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sites: vec!["frankfurt", "mumbai"],
            listed: Vec::new(),
            certifies: false,
            tls: false,
            primary_toml: String::new(),
            primary_auth_toml: String::new(),
            canary_seconds: 0,
            auth_toml: None,
            registry: None,
            upstream: None,
            registry_yaml: String::new(),
            registry_filled: None,
            gateway_toml: String::new(),
            public: "**",
            site_toml: String::new(),
            behind: Vec::new(),
            toml_of: Vec::new(),
            program_of: Vec::new(),
            core: None,
            log_filter: "info",
        }
    }
}

/// A running cluster. Dropping it kills every process and removes every file.
#[derive(Debug)]
pub struct Cluster {
    pub primary: Node,
    pub sites: Vec<Node>,
    pub password: String,
    pub tls: bool,
    /// What the primary stands in front of, if it does.
    pub registry: Option<registry::Registry>,
    /// Last, so that nodes are gone and their logs are read before it goes.
    pub dir: tempfile::TempDir,
}

/// One node of a cluster.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// Its address of the loopback network; no other node shares it.
    pub ip: Ipv4Addr,
    /// The name clients know it by.
    pub host: String,
    dir: PathBuf,
    /// What runs from the next start on.
    pub program: PathBuf,
    role: &'static str,
    core: Option<usize>,
    child: Option<Child>,
    /// What its process finds in its environment from the next start on.
    pub environment: Vec<(&'static str, PathBuf)>,
    /// What else its process is told from the next start on.
    pub arguments: Vec<String>,
}

impl Cluster {
    /// Starts a primary and its sites and waits until every site follows.
    pub fn start(options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("outport-test-").tempdir().unwrap();
        let password = random_hex();
        let network = network();
        let program = |name: &str| {
            let other = options.program_of.iter().find(|(node, _)| *node == name);
            other.map_or_else(|| BINARY.into(), |(_, program)| program.clone())
        };
        let node = |number: u8, name: &str, host: String, role: &'static str| Node {
            name: name.to_owned(),
            program: program(name),
            ip: Ipv4Addr::new(network[0], network[1], network[2], number),
            host,
            dir: dir.path().join(name),
            role,
            core: options.core,
            child: None,
            environment: Vec::new(),
            arguments: Vec::new(),
        };
        let primary = node(1, "primary", "registry-primary.outport.test".to_owned(), "primary");
        let sites: Vec<Node> = options
            .sites
            .iter()
            .zip(2..)
            .map(|(name, number)| node(number, name, format!("{name}.outport.example"), "secondary"))
            .collect();
        let registry = options.registry.map(|lets| {
            let ip = Ipv4Addr::new(network[0], network[1], network[2], 250);
            let mut registry =
                registry::Registry::create(&dir.path().join("registry"), ip, lets, &options.registry_yaml);
            registry.start();
            if let Some(fill) = options.registry_filled {
                fill(&registry);
            }
            registry
        });
        let mut cluster = Self { dir, primary, sites, password, tls: options.tls, registry };
        cluster.write_files(&options);
        cluster.primary.start();
        cluster.sites.iter_mut().for_each(Node::start);
        for site in &cluster.sites {
            site.wait_until(|status| status["state"] == "streaming");
        }
        cluster
    }

    fn write_files(&self, options: &Options) {
        let pki = self.dir.path().join("pki");
        fs::create_dir(&pki).unwrap();
        outport(&["cert", "init", "--dir", path(&pki)]);
        for node in self.nodes() {
            fs::create_dir(&node.dir).unwrap();
            outport(&["cert", "issue", &node.name, "--dir", path(&pki)]);
            if options.tls {
                let names = format!("{},{},localhost", node.host, node.ip);
                let file = format!("{}-https", node.name);
                outport(&["cert", "issue", &file, "--https", &names, "--dir", path(&pki)]);
            }
        }
        let users = self.dir.path().join("users");
        let mut add = Command::new(BINARY)
            .args(["user", "add", USER, "--password-stdin", "--file", path(&users)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        add.stdin.take().unwrap().write_all(self.password.as_bytes()).unwrap();
        assert!(add.wait().unwrap().success());
        let followed = |site: &Node| options.behind.iter().find(|(name, _)| *name == site.name);
        let names = self.sites.iter().filter(|site| followed(site).is_none()).map(|site| site.name.clone());
        let names: Vec<String> = names.chain(options.listed.iter().cloned()).collect();
        let followers = |relay: &Node| {
            let behind = options.behind.iter().filter(|(_, upstream)| *upstream == relay.name);
            behind.map(|(site, _)| *site).collect::<Vec<_>>()
        };
        let relays = self.sites.iter().map(|site| (&site.name, followers(site)));
        let relays = relays.filter(|(_, behind)| !behind.is_empty());
        let relays: String = relays.map(|(relay, behind)| format!("{relay} = {behind:?}\n")).collect();
        let primary = format!(
            "data_dir = '{data}'\n{registry}public_url = '{url}'\n{behind}\n\
             {auth}\n[replication]\nlisten = '{ip}:{REPLICATION_PORT}'\nsites = {names:?}\n{certifies}\n\
             [replication.relays]\n{relays}\n[replication.tls]\n{mutual}\n{admin}[canary]\ninterval_seconds = {canary}\n{more}",
            canary = options.canary_seconds,
            certifies = match options.certifies {
                true => format!(
                    "authority_key = '{}/authority.key'\npublic_address = ['nowhere.invalid:1', '{}:1', '{}']\n",
                    path(&pki),
                    self.primary.ip,
                    self.primary.replication()
                ),
                false => String::new(),
            },
            data = path(&self.primary.dir),
            registry = self.registry_section(&self.primary, &pki),
            url = self.public_url(),
            behind = self.gateway_section(options),
            auth = options.auth_toml.clone().unwrap_or_else(|| users_and_rules(&users, options)),
            ip = self.primary.ip,
            mutual = mutual_tls(&self.primary, &pki),
            admin = admin_section(&self.primary, options.log_filter),
            more = options.primary_toml,
        );
        fs::write(self.primary.config(), with_data_dir(&self.primary, &primary)).unwrap();
        for site in &self.sites {
            let (upstream, relay) = match followed(site) {
                Some((_, relay)) => (self.site(relay), format!("relay = '{relay}'\n")),
                None => (&self.primary, String::new()),
            };
            let relays = match followers(site).as_slice() {
                [] => String::new(),
                sites => format!("[relay]\nlisten = '{}:{REPLICATION_PORT}'\nsites = {sites:?}\n\n", site.ip),
            };
            let own =
                options.toml_of.iter().filter(|(name, _)| *name == site.name).map(|(_, toml)| toml.as_str());
            let text = format!(
                "data_dir = '{data}'\nsite = '{name}'\n{registry}\n\
                 [primary]\naddress = '{upstream}:{REPLICATION_PORT}'\n{relay}https_authorities = '{pki}/authority.crt'\n\n\
                 [primary.tls]\n{mutual}\n{relays}{admin}{more}{own}",
                data = path(&site.dir),
                name = site.name,
                registry = self.registry_section(site, &pki),
                upstream = upstream.ip,
                pki = path(&pki),
                mutual = mutual_tls(site, &pki),
                admin = admin_section(site, options.log_filter),
                more = options.site_toml,
                own = own.collect::<String>(),
            );
            fs::write(site.config(), with_data_dir(site, &text)).unwrap();
        }
    }

    fn gateway_section(&self, options: &Options) -> String {
        let more = &options.gateway_toml;
        let Some(registry) = &self.registry else {
            let upstream = options.upstream.as_ref();
            return upstream
                .map(|url| format!("upstream = '{url}'\n\n[gateway]\n{more}\n"))
                .unwrap_or_default();
        };
        let password = self.dir.path().join("registry-password");
        fs::write(&password, &registry.password).unwrap();
        let credentials = match options.registry {
            Some(registry::Lets::Users) if !more.contains("username =") => {
                format!("username = '{}'\npassword_file = '{}'\n", registry::OWNER, path(&password))
            }
            _ => String::new(),
        };
        let url = registry.url();
        format!("upstream = '{url}'\n\n[gateway]\n{credentials}{more}\n")
    }

    fn registry_section(&self, node: &Node, pki: &Path) -> String {
        let tls = if self.tls {
            let name = &node.name;
            let pki = path(pki);
            format!("tls = {{ certificate = '{pki}/{name}-https.crt', key = '{pki}/{name}-https.key' }}\n")
        } else {
            String::new()
        };
        format!("\n[registry]\nlisten = '{}:{REGISTRY_PORT}'\n{tls}", node.ip)
    }

    /// The primary's public URL: by name with TLS, where clients get a hosts file; by address without.
    pub fn public_url(&self) -> String {
        if self.tls {
            format!("https://{}:{REGISTRY_PORT}", self.primary.host)
        } else {
            format!("http://{}", self.primary.registry())
        }
    }

    /// A site by its name.
    pub fn site(&self, name: &str) -> &Node {
        self.sites.iter().find(|site| site.name == name).expect("a site of this cluster")
    }

    /// A site by its name, to stop and start it.
    pub fn site_mut(&mut self, name: &str) -> &mut Node {
        self.sites.iter_mut().find(|site| site.name == name).expect("a site of this cluster")
    }

    /// All nodes, the primary first.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.primary).chain(&self.sites)
    }

    /// The certificate that clients must trust.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("pki/authority.crt")
    }

    /// A machine beside the nodes, which is not started and has no configuration: the one `number` behind the last.
    pub fn machine(&self, name: &str, number: u8) -> Node {
        let [a, b, c, _] = self.primary.ip.octets();
        Node {
            name: name.to_owned(),
            ip: Ipv4Addr::new(a, b, c, 100 + number),
            host: format!("{name}.outport.example"),
            dir: self.dir.path().join(format!("{name}-{number}")),
            program: BINARY.into(),
            role: "secondary",
            core: None,
            child: None,
            environment: Vec::new(),
            arguments: Vec::new(),
        }
    }

    /// Lines for a hosts file.
    pub fn hosts(&self) -> String {
        self.nodes().map(|node| format!("{} {}\n", node.ip, node.host)).collect()
    }

    /// A client that speaks as its registries do.
    pub fn client(&self) -> http::Client {
        if self.tls { http::Client::trusting(&self.authority()) } else { http::Client::plain() }
    }

    /// Waits until every site shows and holds everything the primary has.
    pub fn wait_complete(&self) {
        let head = self.primary.status()["head_seq"].as_u64().unwrap();
        for site in &self.sites {
            site.wait_until(|status| status["complete_seq"].as_u64().unwrap() >= head);
        }
    }
}

impl Node {
    /// `address:port` of the registry.
    pub fn registry(&self) -> String {
        format!("{}:{REGISTRY_PORT}", self.ip)
    }

    /// `name:port` of the registry, for clients with a hosts file.
    pub fn registry_by_name(&self) -> String {
        format!("{}:{REGISTRY_PORT}", self.host)
    }

    /// `address:port` of the admin listener.
    pub fn admin(&self) -> String {
        format!("{}:{ADMIN_PORT}", self.ip)
    }

    /// Where sites connect to a primary.
    pub fn replication(&self) -> SocketAddr {
        SocketAddr::new(self.ip.into(), REPLICATION_PORT)
    }

    /// The node's data directory.
    pub fn data(&self) -> &Path {
        &self.dir
    }

    /// The node's configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir.with_extension("toml")
    }

    /// Where it keeps everything.
    pub fn data_dir(&self) -> &Path {
        &self.dir
    }

    /// Everything the node has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }

    /// The node's process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Starts the node and waits until its admin listener answers.
    pub fn start(&mut self) {
        self.spawn();
        wait_for(&format!("{} to answer", self.name), || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            http::get_plain(&self.admin(), "/healthz").ok().filter(|(status, _)| *status == 200)
        });
    }

    /// What it is from the next start on: `primary` or `secondary`.
    pub fn becomes(&mut self, role: &'static str) {
        self.role = role;
    }

    /// Starts the node and waits for nothing.
    pub fn spawn(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.with_extension("log")).unwrap();
        let mut command = match self.core {
            Some(core) => {
                let mut command = Command::new("taskset");
                command.args(["-c", &core.to_string(), path(&self.program)]);
                command
            }
            None => Command::new(&self.program),
        };
        command.args([self.role, "--config", path(&self.config())]).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Asks the node to stop, as a service manager does, and waits for it; returns how long it took.
    pub fn stop(&mut self) -> Duration {
        let began = Instant::now();
        let mut child = self.child.take().expect("the node runs");
        signal(child.id(), "TERM");
        let status = child.wait().unwrap();
        assert!(status.success(), "{} ended with {status}:\n{}", self.name, self.log());
        began.elapsed()
    }

    /// Waits until the node ends by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the node runs");
        wait_for(&format!("{} to end", self.name), || child.try_wait().unwrap())
    }

    /// Kills the node without a word.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the node runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// `/v1/status`.
    pub fn status(&self) -> serde_json::Value {
        let (status, body) = http::get_plain(&self.admin(), "/v1/status").unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// Waits until the node's status satisfies `condition`.
    pub fn wait_until(&self, condition: impl Fn(&serde_json::Value) -> bool) {
        wait_for(&format!("the status of {}", self.name), || condition(&self.status()).then_some(()));
    }

    /// The sum of all samples of a metric whose labels hold `labels`.
    pub fn metric(&self, name: &str, labels: &str) -> f64 {
        let (_, text) = http::get_plain(&self.admin(), "/metrics").unwrap();
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("== the last lines of {}'s log\n{}", self.name, tail.join("\n"));
        }
    }
}

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_outport");

/// Runs the program and returns what it printed; it must succeed.
pub fn outport(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(arguments).output().unwrap();
    assert!(output.status.success(), "outport {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks `attempt` again and again until it answers; panics when patience ends.
pub fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Sends a signal by name.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success());
}

/// Whether something listens there.
pub fn listens(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// A path as text.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// 128 random bits.
pub fn random_hex() -> String {
    use std::{hash::BuildHasher, hash::RandomState};
    format!("{:016x}{:016x}", RandomState::new().hash_one(1), RandomState::new().hash_one(2))
}

/// A part of the loopback network that no other cluster of this machine uses: from the process
/// id, which is unique among the processes alive, and a counter.
fn network() -> [u8; 3] {
    static CLUSTERS: AtomicU8 = AtomicU8::new(0);
    let pid = std::process::id();
    let cluster = CLUSTERS.fetch_add(1, Ordering::Relaxed);
    assert!(cluster < 128, "too many clusters in one process");
    let low = (pid & 0x3f) as u8;
    // More clusters than four in one process spread over the second byte, which is never 0.
    let high = ((pid >> 6) + u32::from(cluster >> 2)) % 255 + 1;
    let candidate = [127, high as u8, low << 2 | (cluster & 3)];
    let first = IpAddr::from([candidate[0], candidate[1], candidate[2], 1]);
    assert!(!listens(SocketAddr::new(first, ADMIN_PORT)), "{first} is taken");
    candidate
}

fn users_and_rules(users: &Path, options: &Options) -> String {
    let (users, auth, public) = (path(users), &options.primary_auth_toml, options.public);
    format!(
        "[auth]\nservice = 'outport.test'\nusers_file = '{users}'\ncatalog = ['authenticated']\n{auth}\n\
         [[auth.access]]\nrepository = '{public}'\npull = ['anonymous']\n\n\
         [[auth.access]]\nrepository = '**'\npull = ['{USER}']\npush = ['{USER}']\ndelete = ['{USER}']\n"
    )
}

/// In what tests add to a configuration `{data}` is the node's own directory.
fn with_data_dir(node: &Node, text: &str) -> String {
    text.replace("{data}", path(&node.dir))
}

fn mutual_tls(node: &Node, pki: &Path) -> String {
    let (pki, name) = (path(pki), &node.name);
    format!("certificate = '{pki}/{name}.crt'\nkey = '{pki}/{name}.key'\nauthority = '{pki}/authority.crt'\n")
}

fn admin_section(node: &Node, log_filter: &str) -> String {
    format!("\n[admin]\nlisten = '{}'\n\n[telemetry]\nlog_filter = '{log_filter}'\n\n", node.admin())
}
