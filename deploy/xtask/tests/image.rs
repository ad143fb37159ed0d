//! The image is pushed to a registry of Outport's own, pulled from a site of it, and run by containerd.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says why")]

#[expect(unreachable_pub, reason = "other test binaries share it")]
#[path = "../../../tests/support/required.rs"]
mod required;

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use required::installed;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// The program as tests are built, without what only debuggers read.
fn binary(dir: &Path) -> PathBuf {
    let built = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("outport");
    if !built.exists() {
        run(Command::new(env!("CARGO")).args([
            "build",
            "--locked",
            "--package",
            "outport",
            "--bin",
            "outport",
        ]));
    }
    let stripped = dir.join("outport");
    run(Command::new("strip").arg("-o").args([&stripped, &built]));
    stripped
}

fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {said}{}", String::from_utf8_lossy(&stderr));
    said
}

fn wait_for<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(command: &mut Command, log: &Path) -> Running {
    let log = fs::File::create(log).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    Running(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// Three ports in a row that nothing listens at.
fn ports() -> u16 {
    wait_for("free ports", || {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
        (first.checked_add(2)? < u16::MAX && free(first) && free(first + 1) && free(first + 2))
            .then_some(first)
    })
}

#[test]
fn an_image_comes_out_the_same_and_holds_what_is_promised() {
    let dir = tempfile::tempdir().unwrap();
    // Any program will do.
    let binary = fs::canonicalize("/bin/true").unwrap();
    let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
    let written = xtask::image::write(&binary, "1.2.3", &one).unwrap();
    assert_eq!(xtask::image::write(&binary, "1.2.3", &other).unwrap(), written);
    let read = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let blob =
        |digest: &Value| one.join("blobs/sha256").join(digest.as_str().unwrap().split_once(':').unwrap().1);
    let index = read(one.join("index.json"));
    assert_eq!(index["manifests"][0]["digest"], written.digest.to_string());
    let manifest = read(blob(&index["manifests"][0]["digest"]));
    let config = read(blob(&manifest["config"]["digest"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    let error = xtask::image::write(Path::new("Cargo.toml"), "1", &other).unwrap_err().to_string();
    assert!(error.contains("not a program"), "{error}");
}

#[test]
fn an_image_is_pushed_to_the_demo_pulled_from_a_site_and_run() {
    if !installed(&["skopeo", "containerd", "ctr"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let binary = binary(dir.path());
    let archive = dir.path().join("outport.tar");
    xtask::image::write(&binary, "1.2.3", &archive).unwrap();

    let (port, admin) = (ports(), ports());
    let demo_dir = dir.path().join("demo");
    let _demo = started(
        Command::new(&binary).arg("demo").arg("--dir").arg(&demo_dir).args([
            "--port",
            &port.to_string(),
            "--admin-port",
            &admin.to_string(),
        ]),
        &dir.path().join("demo.log"),
    );
    let demo: Value =
        wait_for("the demo", || serde_json::from_slice(&fs::read(demo_dir.join("demo.json")).ok()?).ok());
    let (user, password) = (demo["user"].as_str().unwrap(), demo["password"].as_str().unwrap());
    let at = |port: u16| format!("localhost:{port}/tools/outport:1.2.3");
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--dest-tls-verify=false"])
        .args(["--dest-creds", &format!("{user}:{password}")])
        .arg(format!("oci-archive:{}", archive.display()))
        .arg(format!("docker://{}", at(port))));

    let (root, state, socket) =
        (dir.path().join("root"), dir.path().join("state"), dir.path().join("socket"));
    let _containerd = started(
        Command::new("containerd")
            .args(["--root", root.to_str().unwrap(), "--state", state.to_str().unwrap()])
            .args(["--address", socket.to_str().unwrap()]),
        &dir.path().join("containerd.log"),
    );
    let ctr = || {
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", socket.to_str().unwrap()]);
        ctr
    };
    wait_for("containerd", || ctr().arg("version").output().unwrap().status.success().then_some(()));
    // From Mumbai.
    let image = at(port + 2);
    run(ctr().args(["images", "pull", "--plain-http", "--snapshotter", "native", &image]));
    let ran = ctr()
        .args(["run", "--rm", "--snapshotter", "native", "--net-host", &image, "tried"])
        .args(["/usr/bin/outport", "--version"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(said.starts_with("outport "), "{said}{}", String::from_utf8_lossy(&ran.stderr));
    run(ctr().args(["images", "rm", &image]));
}
