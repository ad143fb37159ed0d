//! Machines made of namespaces: each has an address on a network that they share, an `/etc` and a `/var/lib` of its
//! own, a name for each of the others, and a firewall.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use crate::support::{BINARY, path, signal};

/// Makes private what nodes and clients write to, says so, and keeps the namespaces open until its input ends. Names
/// are looked up in a file that can be changed while they run.
const SETUP: &str = "mount -t tmpfs tmpfs /run && mkdir /run/etc && cp -a /etc/. /run/etc \
    && mkdir -p /run/etc/outport && mount --bind /run/etc /etc \
    && mount --bind \"$1/etc\" /etc/outport && mount --bind \"$1/hosts\" /etc/hosts \
    && mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/outport && mount --bind \"$1/data\" /var/lib/outport \
    && ip link set lo up && echo ready && exec cat";

/// The switch that all machines are plugged into. Dropping it ends them.
pub struct Network {
    switch: Child,
    dir: PathBuf,
}

impl Network {
    /// Without a machine yet; their files are in `dir`. `None` where no namespaces may be made.
    pub fn create(dir: &Path) -> Option<Self> {
        let ready = "echo ready && exec cat";
        let switch = hold(Command::new("unshare").args(["--mount", "--net", "sh", "-c", ready]))?;
        let this = Self { switch, dir: dir.to_owned() };
        this.administer("ip link add switch type bridge && ip link set switch up");
        Some(this)
    }

    /// Plugs in another machine.
    pub fn machine(&self, name: &'static str, ip: Ipv4Addr) -> Machine {
        let dir = self.dir.join(name);
        for part in ["etc", "data", "bin"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        fs::write(dir.join("hosts"), "").unwrap();
        std::os::unix::fs::symlink(BINARY, dir.join("bin/outport")).unwrap();
        let holder =
            hold(Command::new("unshare").args(["--mount", "--net", "--propagation", "private"]).args([
                "sh",
                "-c",
                SETUP,
                "sh",
                path(&dir),
            ]));
        let holder = holder.expect("what the switch could is possible");
        let port = format!("to-{name}");
        self.administer(&format!(
            "ip link add {port} type veth peer name eth0 netns {} && ip link set {port} master switch up",
            holder.id()
        ));
        let machine = Machine { name, ip, dir, holder, services: Vec::new() };
        machine.run(&format!("ip address add {ip}/24 dev eth0 && ip link set eth0 up"));
        machine
    }

    fn administer(&self, line: &str) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.switch.id().to_string(), "--net", "sh", "-c", line]);
        succeeded(line, command.output().unwrap());
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        end(&mut self.switch);
    }
}

/// One machine. Dropping it ends all that runs there.
pub struct Machine {
    pub name: &'static str,
    pub ip: Ipv4Addr,
    dir: PathBuf,
    holder: Child,
    /// What runs there, by the command that began it.
    services: Vec<(String, Child)>,
}

impl Machine {
    /// Runs a line of shell there and returns what it printed; it must succeed.
    pub fn run(&self, line: &str) -> String {
        succeeded(&format!("{}$ {line}", self.name), self.command(line).output().unwrap())
    }

    /// What a line of shell printed, if it succeeded.
    pub fn attempt(&self, line: &str) -> Option<String> {
        let output = self.command(line).output().unwrap();
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Begins what goes on. `line` is one command.
    pub fn begin(&mut self, line: &str) {
        let log = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let child = self
            .command(&format!("exec {line}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.services.push((line.to_owned(), child));
    }

    /// Asks what was begun with `line` to end, by a signal, and waits for it.
    pub fn end(&mut self, line: &str, by: &str) {
        let at = self.services.iter().position(|(begun, _)| begun == line);
        let (_, mut child) = self.services.remove(at.unwrap_or_else(|| panic!("{line} does not run")));
        signal(child.id(), by);
        let status = child.wait().unwrap();
        assert!(status.success(), "{}$ {line}: {status}: {}", self.name, self.said());
    }

    /// As if it were another machine in its place: nothing is left on its disk.
    pub fn wipe(&self) {
        assert!(self.services.is_empty(), "{} runs", self.name);
        for part in ["etc", "data"] {
            for entry in fs::read_dir(self.dir.join(part)).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
            }
        }
    }

    /// `/etc/outport`, from outside.
    pub fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    /// `/var/lib/outport`, from outside.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Which names lead where, from now on.
    pub fn names(&self, names: &[(&str, Ipv4Addr)]) {
        let lines = names.iter().map(|(name, ip)| format!("{ip} {name}\n"));
        // In its place: it is mounted.
        fs::write(self.dir.join("hosts"), format!("127.0.0.1 localhost\n{}", lines.collect::<String>()))
            .unwrap();
    }

    /// What everything that was begun there printed.
    pub fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn command(&self, line: &str) -> Command {
        let search = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.holder.id().to_string(), "--mount", "--net", "sh", "-c", line])
            .env("PATH", format!("{}:{search}", path(&self.dir.join("bin"))));
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("== {} said:\n{}", self.name, self.said());
        }
        self.services.iter_mut().for_each(|(_, child)| end(child));
        end(&mut self.holder);
    }
}

/// Runs until its input ends, and has said that it is ready; `None` if it may not.
fn hold(command: &mut Command) -> Option<Child> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare (Debian: util-linux) runs");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    if line != "ready\n" {
        end(&mut child);
        return None;
    }
    Some(child)
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn succeeded(what: &str, output: Output) -> String {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}
