//! What a newcomer sees.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    BINARY, path,
    session::{OCI_MANIFEST, Session, bytes, token_for},
    signal,
};

#[test]
fn a_newcomer_pushes_at_one_site_and_pulls_at_the_other() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("state");
    let ports = free_ports(3);
    let mut demo = Demo::start(&ports, &["--dir", path(&dir), "--sites", "x,y"]);
    let greeting = demo.wait_ready();
    for part in ["primary", "x", "y", "docker push", "podman pull", "skopeo copy", "outport status"] {
        assert!(greeting.contains(part), "{part} is missing:\n{greeting}");
    }

    let file = dir.join("demo.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let described: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let password = described["password"].as_str().unwrap().to_owned();
    assert!(password.len() >= 16, "{password}");
    let expected = serde_json::json!({
        "primary": { "registry": ports.registry(0), "admin": ports.admin(0) },
        "sites": [
            { "name": "x", "registry": ports.registry(1), "admin": ports.admin(1) },
            { "name": "y", "registry": ports.registry(2), "admin": ports.admin(2) },
        ],
        "user": "demo",
        "password": password,
    });
    assert_eq!(described, expected);

    let repo = "team/app";
    let [primary, x, y] = [0, 1, 2].map(|number| ports.registry(number));
    let sample = token_for(&primary, "localhost", &["demo/hello"], "pull", None);
    for site in [&primary, &x, &y] {
        let response = Session::with_token(site, &sample).get("/v2/demo/hello/manifests/1");
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let anonymous = token_for(&primary, "localhost", &[repo], "pull,push", None);
    let refused = Session::with_token(&x, &anonymous).once("POST", "/v2/team/app/blobs/uploads/", &[], b"");
    assert_eq!(refused.status, 401, "{}", refused.text());

    let user = Some(("demo", password.as_str()));
    let pusher = Session::with_token(&x, &token_for(&primary, "localhost", &[repo], "pull,push", user));
    let image = pusher.push_image(repo, "1", &[&bytes(100_000, 1)]);
    let puller = Session::with_token(&y, &token_for(&primary, "localhost", &[repo], "pull", None));
    let pulled = puller.send("GET", "/v2/team/app/manifests/1", &[("Accept", OCI_MANIFEST)], b"");
    assert_eq!((pulled.status, &pulled.body), (200, &image.manifest), "{}", pulled.text());

    let took = demo.interrupt();
    assert!(took < Duration::from_secs(5), "stopping took {took:?}");

    // Another start in the same directory goes on where the first ended.
    let mut demo = Demo::start(&ports, &["--dir", path(&dir), "--sites", "x,y"]);
    demo.wait_ready();
    let described: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(described, expected);
    let token = token_for(&primary, "localhost", &[repo], "pull,push", user);
    for site in [&primary, &x, &y] {
        let pulled = Session::with_token(site, &token).get("/v2/team/app/manifests/1");
        assert_eq!((pulled.status, &pulled.body), (200, &image.manifest), "{site}: {}", pulled.text());
    }
    demo.interrupt();
}

#[test]
fn without_a_directory_nothing_is_left_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let ports = free_ports(2);
    let mut demo = Demo::start_in(temporary.path(), &ports, &["--sites", "alone"]);
    demo.wait_ready();
    assert_eq!(entries(temporary.path()).len(), 1);
    demo.interrupt();
    assert_eq!(entries(temporary.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_taken_port_is_a_clear_error() {
    let ports = free_ports(2);
    for taken in [ports.registry(1), ports.admin(0)] {
        let temporary = tempfile::tempdir().unwrap();
        let _holder = TcpListener::bind(&taken).unwrap();
        let output = Demo::command(temporary.path(), &ports, &["--sites", "alone"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = said(&output);
        assert!(said.contains(&taken) && said.contains("in use"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(entries(temporary.path()), [] as [PathBuf; 0], "the temporary directory is left behind");
    }
}

#[test]
fn options_that_cannot_be_are_refused() {
    for arguments in [
        ["--sites", "Not A Name", "--port", "5000"],
        ["--sites", "a", "--port", "65536"],
        ["--sites", "a", "--port", "65535"],
        ["--sites", "a,a", "--port", "5000"],
        ["--sites", "primary", "--port", "5000"],
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let output = Command::new(BINARY)
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", temporary.path())
            .output()
            .unwrap();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {output:?}");
        assert!(!said(&output).contains("panicked"), "{}", said(&output));
    }
}

/// Consecutive ports of loopback that no other test uses while this lives.
struct Ports {
    registry: u16,
    admin: u16,
    _reserved: TcpListener,
}

impl Ports {
    fn registry(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.registry + number)
    }

    fn admin(&self, number: u16) -> String {
        format!("127.0.0.1:{}", self.admin + number)
    }
}

/// Free ports below those that the system hands out by itself.
fn free_ports(count: u16) -> Ports {
    let start = std::process::id() as u16 % 1800;
    let found = (0..1800).find_map(|step| {
        let registry = 10_240 + (start + step) % 1800 * 10;
        // Processes that test at the same time meet at another address than the demo's.
        let reserved = TcpListener::bind(("127.0.0.77", registry)).ok()?;
        let ports = Ports { registry, admin: registry + 5, _reserved: reserved };
        let free = |address: String| TcpListener::bind(address).is_ok();
        (0..count).all(|number| free(ports.registry(number)) && free(ports.admin(number))).then_some(ports)
    });
    found.expect("free ports")
}

struct Demo {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Demo {
    fn command(temporary: &Path, ports: &Ports, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        let (port, admin) = (ports.registry.to_string(), ports.admin.to_string());
        command.args(["demo", "--port", &port, "--admin-port", &admin]).args(arguments);
        command.env("TMPDIR", temporary).stdin(Stdio::null());
        command
    }

    fn start(ports: &Ports, arguments: &[&str]) -> Self {
        Self::start_in(&std::env::temp_dir(), ports, arguments)
    }

    fn start_in(temporary: &Path, ports: &Ports, arguments: &[&str]) -> Self {
        let mut child =
            Self::command(temporary, ports, arguments).stdout(Stdio::piped()).spawn().expect("the demo");
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    /// Everything printed up to the line that says it is ready.
    fn wait_ready(&mut self) -> String {
        let mut text = String::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "the demo ended before it was ready:\n{text}");
            text.push_str(&line);
            if line.starts_with("ready") {
                return text;
            }
        }
    }

    /// Ctrl-C; returns how long it took.
    fn interrupt(&mut self) -> Duration {
        let began = Instant::now();
        signal(self.child.id(), "INT");
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "nothing follows the line that says it is ready");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
        began.elapsed()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
