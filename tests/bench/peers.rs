//! What others do with the same bytes on the same core: nginx with a static file, and Debian's
//! docker-registry.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
};

use outport_proto::Digest;

use crate::{
    load,
    support::{self, http::Client, wait_for},
};

/// A server of someone else's.
pub struct Peer {
    pub name: &'static str,
    pub address: String,
    child: Child,
    /// The process that does the work.
    pub pid: u32,
    _dir: tempfile::TempDir,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // nginx's master takes its worker with it only when asked.
        support::signal(self.child.id(), "TERM");
        let _ = self.child.wait();
    }
}

/// nginx with one worker, serving files of `contents` by name.
pub fn nginx(contents: &[(&str, &[u8])]) -> Option<Peer> {
    let program = find("nginx")?;
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    for (name, content) in contents {
        fs::write(root.join(name), content).unwrap();
    }
    let path = support::path(dir.path());
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {path}/pid; error_log {path}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;\n\
           open_file_cache max=100; default_type application/vnd.oci.image.manifest.v1+json;\n\
           client_body_temp_path {path}/t1; proxy_temp_path {path}/t2; fastcgi_temp_path {path}/t3;\n\
           uwsgi_temp_path {path}/t4; scgi_temp_path {path}/t5;\n\
           server {{ listen {address}; root {path}/root; }} }}\n"
    );
    let file = dir.path().join("nginx.conf");
    fs::write(&file, config).unwrap();
    let child = on_server_core(&program).args(["-c", support::path(&file)]).spawn().unwrap();
    wait_until_listening(&address);
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    let worker = wait_for("nginx's worker", || {
        fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()
    });
    Some(Peer { name: "nginx", address, child, pid: worker, _dir: dir })
}

/// Debian's docker-registry without authentication, holding one image under `peer/image:1`.
pub fn docker_registry(manifest: &[u8], blobs: &[&[u8]]) -> Option<Peer> {
    let program = find("docker-registry")?;
    let dir = tempfile::tempdir().unwrap();
    let address = free_address();
    let config = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{cache: {{blobdescriptor: inmemory}}, filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '{address}'}}\n",
        support::path(dir.path())
    );
    let file = dir.path().join("registry.yml");
    fs::write(&file, config).unwrap();
    let child = on_server_core(&program).args(["serve", support::path(&file)]).spawn().unwrap();
    wait_until_listening(&address);
    push(&address, "peer/image", "1", manifest, blobs, None);
    let pid = child.id();
    Some(Peer { name: "docker-registry", address, child, pid, _dir: dir })
}

/// Pushes an image the way every registry understands.
pub fn push(address: &str, repo: &str, tag: &str, manifest: &[u8], blobs: &[&[u8]], token: Option<&str>) {
    let client = Client::plain();
    let bearer = token.map(|token| format!("Bearer {token}")).unwrap_or_default();
    let authorization: &[(&str, &str)] = if token.is_some() { &[("Authorization", &bearer)] } else { &[] };
    for blob in blobs {
        let begun = client.send(address, "POST", &format!("/v2/{repo}/blobs/uploads/"), authorization, b"");
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").unwrap();
        let path = location.strip_prefix(&format!("http://{address}")).unwrap_or(location);
        let separator = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{separator}digest={}", Digest::sha256(blob));
        let put = client.send(address, "PUT", &target, authorization, blob);
        assert_eq!(put.status, 201, "{}", put.text());
    }
    let kind = ("Content-Type", "application/vnd.oci.image.manifest.v1+json");
    let headers: Vec<(&str, &str)> = authorization.iter().copied().chain([kind]).collect();
    let put = client.send(address, "PUT", &format!("/v2/{repo}/manifests/{tag}"), &headers, manifest);
    assert_eq!(put.status, 201, "{}", put.text());
}

/// The manifest of an image of these blobs, the first of them its config.
pub fn manifest(blobs: &[&[u8]]) -> Vec<u8> {
    let descriptor = |kind: &str, blob: &&[u8]| {
        serde_json::json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::sha256(blob), "size": blob.len(),
        })
    };
    let layers: Vec<_> = blobs[1..].iter().map(|blob| descriptor("layer.v1.tar", blob)).collect();
    serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &blobs[0]), "layers": layers,
    })
    .to_string()
    .into_bytes()
}

/// Bytes that do not compress and differ by `salt`.
pub fn noise(length: usize, salt: u64) -> Vec<u8> {
    let mut state = salt.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn find(program: &str) -> Option<String> {
    let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/usr/bin";
    let found = folders.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("  {program} is not installed: measured without it");
    }
    found.map(|path| support::path(&path).to_owned())
}

fn on_server_core(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command
        .args(["-c", &load::SERVER_CORE.to_string(), program])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn wait_until_listening(address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    wait_for("a peer to listen", || support::listens(address).then_some(()));
}
