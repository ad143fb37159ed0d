//! Where clients run: mount and process namespaces of their own, with a private `/etc/hosts` and
//! empty state directories, so that nothing outside changes and nothing survives the test.

use std::{
    cell::RefCell,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use crate::{
    scenario::As,
    support::{path, required::skip},
};

/// Seconds after which a client that hangs is killed.
const CLIENT_SECONDS_MAX: &str = "60";
const USER_CREDENTIALS: &str = "home/auth.json";
const NO_CREDENTIALS: &str = "home/auth-nobody.json";
/// Makes private what clients and daemons write to, says so, and keeps the namespaces open until
/// its input ends. `/etc` is a copy with another `hosts`: dockerd leaves a key in there.
const SETUP: &str = "mount -t tmpfs tmpfs /run && mkdir /run/etc && cp -a /etc/. /run/etc; \
    cp \"$1\" /run/etc/hosts && mount --bind /run/etc /etc \
    && mount -t tmpfs tmpfs /var/lib && mount -t tmpfs tmpfs /dev/shm \
    && echo ready && exec cat";

/// The namespaces. Dropping this kills everything that runs in them.
pub(crate) struct Sandbox {
    holder: Child,
    daemons: RefCell<Vec<Child>>,
    dir: PathBuf,
    authority: PathBuf,
}

/// What a client printed, and whether it succeeded.
#[derive(Debug)]
pub(crate) struct Done {
    line: String,
    pub(crate) succeeded: bool,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Sandbox {
    /// Opens a sandbox whose files are in `dir`, where `hosts` are known and `authority` is
    /// trusted. `None` where the machine does not let us.
    pub(crate) fn open(dir: PathBuf, hosts: &str, authority: PathBuf) -> Option<Self> {
        for part in ["home", "tmp", "run"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        fs::write(dir.join(NO_CREDENTIALS), "{}").unwrap();
        let hosts_file = dir.join("hosts");
        fs::write(&hosts_file, format!("127.0.0.1 localhost\n{hosts}")).unwrap();
        let mut holder = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["sh", "-c", SETUP, "sh", path(&hosts_file)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        if line != "ready\n" {
            let output = holder.wait_with_output().unwrap();
            let reason = String::from_utf8_lossy(&output.stderr);
            skip(&format!("no mount namespace (that needs root): {}", reason.trim()));
            return None;
        }
        Some(Self { holder, daemons: RefCell::default(), dir, authority })
    }

    /// A place for files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A program in the sandbox, with nothing of our environment but the search path.
    pub(crate) fn command(&self, line: &[&str]) -> Command {
        let namespaces = format!("/proc/{}/ns", self.holder.id());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={namespaces}/mnt"))
            // The holder's parent is in our process namespace, its children are in the new one.
            .arg(format!("--pid={namespaces}/pid_for_children"))
            .args(line)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("SSL_CERT_FILE", &self.authority)
            .env("HOME", self.dir.join("home"))
            .env("TMPDIR", self.dir.join("tmp"))
            .env("XDG_RUNTIME_DIR", self.dir.join("run"))
            .env("REGISTRY_AUTH_FILE", self.dir.join(USER_CREDENTIALS))
            .stdin(Stdio::null());
        command
    }

    /// The file in which the tools of containers/image keep credentials.
    pub(crate) fn credentials(&self, who: As<'_>) -> PathBuf {
        self.dir.join(match who {
            As::User(_) => USER_CREDENTIALS,
            As::Nobody => NO_CREDENTIALS,
        })
    }

    /// Starts a daemon that ends with the sandbox; its output goes to a file of its name.
    pub(crate) fn daemon(&self, line: &[&str]) {
        let log = fs::File::create(self.dir.join(format!("{}.log", line[0]))).unwrap();
        let daemon = self.command(line).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.daemons.borrow_mut().push(daemon);
    }

    /// Runs a client to its end.
    pub(crate) fn run(&self, line: &[&str]) -> Done {
        self.run_with(line, &[])
    }

    /// Runs a client with more environment.
    pub(crate) fn run_with(&self, line: &[&str], environment: &[(&str, &Path)]) -> Done {
        let timed = [&["timeout", "--kill-after=5", CLIENT_SECONDS_MAX], line].concat();
        let output = self.command(&timed).envs(environment.iter().copied()).output().unwrap();
        Done::new(line, &output)
    }

    /// Runs a client that must succeed; returns what it printed.
    pub(crate) fn ok(&self, line: &[&str]) -> String {
        self.run(line).success().stdout
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        for daemon in self.daemons.get_mut() {
            let _ = daemon.wait();
        }
    }
}

impl Done {
    fn new(line: &[&str], output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            line: line.join(" "),
            succeeded: output.status.success(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// It must have succeeded.
    #[track_caller]
    pub(crate) fn success(self) -> Self {
        assert!(self.succeeded, "{self}");
        self
    }

    /// It must have failed, with one of `reasons` in what it printed.
    #[track_caller]
    pub(crate) fn failure(self, reasons: &[&str]) {
        let said = format!("{}{}", self.stdout, self.stderr).to_lowercase();
        assert!(!self.succeeded, "should have failed: {self}");
        assert!(reasons.iter().any(|reason| said.contains(reason)), "none of {reasons:?}: {self}");
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n{}{}", self.line, self.stdout, self.stderr)
    }
}
