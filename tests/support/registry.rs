//! CNCF Distribution as Debian ships it (`docker-registry`), as a process of its own.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{http, path, random_hex, wait_for};

/// The user that may do everything at a registry with passwords.
pub const OWNER: &str = "owner";
const PROGRAM: &str = "docker-registry";
const PORT: u16 = 5000;

/// Who a registry lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lets {
    /// Everybody, to do everything.
    Anybody,
    /// Users of a password file, to do everything.
    Users,
}

/// A registry. Dropping it kills it and leaves its files.
#[derive(Debug)]
pub struct Registry {
    pub ip: Ipv4Addr,
    /// Of [`OWNER`].
    pub password: String,
    /// Where its `docker/registry/v2` lies.
    pub storage: PathBuf,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Registry {
    /// Writes a registry's files below `dir`, which need not exist. `more` is YAML at the top level.
    pub fn create(dir: &Path, ip: Ipv4Addr, lets: Lets, more: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let storage = dir.join("storage");
        let password = random_hex();
        let log = if more.contains("log:") { "" } else { "log: {level: info}\n" };
        let http = if more.starts_with("http:") {
            String::new()
        } else {
            format!("http: {{addr: '{ip}:{PORT}'}}\n")
        };
        let mut config = format!(
            "version: 0.1\n{log}storage:\n  filesystem: {{rootdirectory: '{}'}}\n  \
             delete: {{enabled: true}}\n{http}",
            path(&storage)
        );
        if lets == Lets::Users {
            let users = dir.join("htpasswd");
            // The lowest cost there is: every request has the password checked.
            let hash = bcrypt::hash(&password, 4).unwrap();
            fs::write(&users, format!("{OWNER}:{hash}\n")).unwrap();
            write!(config, "auth:\n  htpasswd: {{realm: registry, path: '{}'}}\n", path(&users)).unwrap();
        }
        config.push_str(more);
        let file = dir.join("config.yml");
        fs::write(&file, config).unwrap();
        Self { ip, password, storage, config: file, log: dir.join("log"), child: None }
    }

    /// `address:port`.
    pub fn address(&self) -> String {
        format!("{}:{PORT}", self.ip)
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Starts it and waits until it answers.
    pub fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["serve", path(&self.config)]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("{PROGRAM} (Debian's package of that name) cannot be started: {error}")
        });
        self.child = Some(child);
        wait_for("the registry to answer", || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("the registry ended with {status}:\n{}", fs::read_to_string(&self.log).unwrap());
            }
            http::get_plain(&self.address(), "/v2/").ok()
        });
    }

    /// Whom it lets in beside its owner from now on, with their passwords ([`Lets::Users`]).
    pub fn let_in(&self, users: &[(&str, &str)]) {
        let all = [(OWNER, self.password.as_str())].into_iter().chain(users.iter().copied());
        let line = |(user, password)| format!("{user}:{}\n", bcrypt::hash(password, 4).unwrap());
        fs::write(self.config.with_file_name("htpasswd"), all.map(line).collect::<String>()).unwrap();
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the registry runs").id()
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("the registry runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("== the last lines of the registry's log\n{}", tail.join("\n"));
        }
    }
}
