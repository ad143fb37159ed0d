//! Who the gateway is at the registry, by everything that a registry may demand: each from a file or the
//! environment, and for the registry's eyes alone.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    sync::{Arc, Mutex},
    thread,
};

use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{
    agreement::{report, wait_backfilled},
    support::{
        Cluster, Options, outport, path,
        registry::{Lets, Registry},
        session::Session,
        token_service::{self, NamesKey, TokenService, User},
        wait_for,
    },
};

/// Certificates of one authority below `dir`.
struct Certificates<'a>(&'a Path);

impl Certificates<'_> {
    fn make(dir: &Path, ip: Ipv4Addr) -> Certificates<'_> {
        outport(&["cert", "init", "--dir", path(dir)]);
        for name in ["registry", "storage"] {
            outport(&["cert", "issue", name, "--https", &ip.to_string(), "--dir", path(dir)]);
        }
        outport(&["cert", "issue", "gateway", "--dir", path(dir)]);
        Certificates(dir)
    }

    fn file(&self, name: &str) -> String {
        path(&self.0.join(name)).to_owned()
    }
}

/// A host of the registry's storage, which serves its files to whoever comes, and asks for a certificate
/// without demanding one.
struct StorageHost {
    url: String,
    /// Whether each who came showed a certificate.
    shown: Arc<Mutex<Vec<bool>>>,
}

impl StorageHost {
    fn open(ip: Ipv4Addr, certificates: &Certificates<'_>, root: &Path) -> Self {
        let chain = CertificateDer::pem_file_iter(certificates.file("storage.crt")).unwrap();
        let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_file(certificates.file("storage.key")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(certificates.file("authority.crt")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let shown = Arc::<Mutex<Vec<bool>>>::default();
        let (config, root, note) = (Arc::new(config), root.to_owned(), Arc::clone(&shown));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let session = ServerConnection::new(Arc::clone(&config)).unwrap();
                let stream = StreamOwned::new(session, stream.unwrap());
                let (root, note) = (root.clone(), Arc::clone(&note));
                thread::spawn(move || serve(stream, &root, &note));
            }
        });
        Self { url, shown }
    }
}

fn serve(
    stream: StreamOwned<ServerConnection, std::net::TcpStream>,
    root: &Path,
    shown: &Mutex<Vec<bool>>,
) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        shown.lock().unwrap().push(stream.get_ref().conn.peer_certificates().is_some());
        let target = lines[0].split(' ').nth(1)?.split('?').next()?.to_owned();
        let bytes = fs::read(root.join(target.trim_start_matches('/'))).ok()?;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
        stream.get_mut().write_all(&[head.as_bytes(), &bytes].concat()).ok()?;
    }
}

#[test]
fn the_gateways_certificate_is_shown_to_the_registry_and_to_nobody_it_sends_the_gateway_to() {
    let dir = tempfile::tempdir().unwrap();
    let ip = Ipv4Addr::new(127, 201, 77, 1);
    let pki = dir.path().join("pki");
    let certificates = Certificates::make(&pki, ip);
    let files = dir.path().join("registry");
    let storage = StorageHost::open(ip, &certificates, &files.join("storage"));
    let yaml = format!(
        "http:\n  addr: '{ip}:5000'\n  tls: {{certificate: '{}', key: '{}', clientcas: ['{}']}}\n\
         middleware:\n  storage:\n    - name: redirect\n      options: {{baseurl: '{}/'}}\n",
        certificates.file("registry.crt"),
        certificates.file("registry.key"),
        certificates.file("authority.crt"),
        storage.url
    );
    let mut registry = Registry::create(&files, ip, Lets::Anybody, &yaml);
    registry.start();
    let believing =
        format!("authorities = '{}'\nredirect_hosts = ['{ip}']\n", certificates.file("authority.crt"));
    let identified = format!(
        "{believing}client_certificate = '{}'\nclient_key = '{}'\n",
        certificates.file("gateway.crt"),
        certificates.file("gateway.key")
    );
    let in_front = |gateway_toml| {
        let upstream = Some(format!("https://{}", registry.address()));
        Cluster::start(Options { sites: vec!["mumbai"], upstream, gateway_toml, ..Options::default() })
    };

    let stranger = in_front(believing);
    let error = wait_for("the walk to stop", || report(&stranger)["error"].as_str().map(str::to_owned));
    assert!(error.contains("BadCertificate") || error.contains("CertificateRequired"), "{error}");
    drop(stranger);

    let cluster = in_front(identified);
    wait_backfilled(&cluster);
    let session = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let layer = vec![7; 200_000];
    session.push_image("team/app", "1", &[&layer]);
    let target = format!("/v2/team/app/blobs/{}", outport_proto::Digest::sha256(&layer));
    let pulled = session.at(&cluster.sites[0]).get(&target);
    assert_eq!((pulled.status, pulled.body == layer), (200, true), "{}", pulled.text());
    let shown = storage.shown.lock().unwrap().clone();
    assert!(!shown.is_empty() && shown.iter().all(|shown| !shown), "{shown:?}");
}

#[test]
fn a_password_is_read_from_the_environment_when_it_is_needed() {
    let mut cluster = Cluster::start(Options {
        registry: Some(Lets::Users),
        sites: vec!["mumbai"],
        gateway_toml: "username = 'owner'\npassword_env = 'REGISTRY_PASSWORD'\n".to_owned(),
        ..Options::default()
    });
    let error = wait_for("the walk to stop", || report(&cluster)["error"].as_str().map(str::to_owned));
    assert!(error.contains("REGISTRY_PASSWORD"), "{error}");
    let password = cluster.registry.as_ref().unwrap().password.clone();
    cluster.primary.environment.push(("REGISTRY_PASSWORD", password.clone().into()));
    cluster.primary.stop();
    cluster.primary.start();
    cluster.sites[0].wait_until(|status| status["state"] == "streaming");
    wait_backfilled(&cluster);
    let session = Session::user(&cluster, &cluster.primary, &["team/app"]);
    let image = session.push_image("team/app", "1", &[b"layer"]);
    assert_eq!(session.at(&cluster.sites[0]).get("/v2/team/app/manifests/1").body, image.manifest);
    assert!(!cluster.primary.log().contains(&password), "a password is in the log");
}

#[test]
fn a_token_that_somebody_else_renews_is_read_from_its_file_each_time() {
    let service = TokenService::start(vec![User {
        name: "gateway".to_owned(),
        password: "secret".to_owned(),
        names_key: NamesKey::Libtrust,
        may: |_, _| true,
    }]);
    let dir = tempfile::tempdir().unwrap();
    let (bundle, token) = (dir.path().join("registry.crt"), dir.path().join("token"));
    service.write_bundle(&bundle);
    let renew = |repo: &str| {
        let scopes = ["registry:catalog:*".to_owned(), format!("repository:{repo}:pull,push")];
        let authorization = service.authorization_for("gateway", &scopes);
        fs::write(&token, authorization.strip_prefix("Bearer ").unwrap()).unwrap();
    };
    renew("team/app");
    let cluster = Cluster::start(Options {
        registry: Some(Lets::Anybody),
        registry_yaml: format!(
            "auth:\n  token: {{realm: '{}', service: '{}', issuer: '{}', rootcertbundle: '{}'}}\n",
            service.realm(),
            token_service::SERVICE,
            token_service::ISSUER,
            path(&bundle)
        ),
        sites: vec!["mumbai"],
        gateway_toml: format!("token_file = '{}'\n", path(&token)),
        ..Options::default()
    });
    wait_backfilled(&cluster);
    let session = Session::user(&cluster, &cluster.primary, &["team/app", "team/other"]);
    let image = session.push_image("team/app", "1", &[b"layer"]);
    assert_eq!(session.at(&cluster.sites[0]).get("/v2/team/app/manifests/1").body, image.manifest);
    // This token is not for that; the next one is.
    let begin = || session.send("POST", "/v2/team/other/blobs/uploads/", &[], b"").status;
    assert_ne!(begin(), 202);
    renew("team/other");
    assert_eq!(begin(), 202);
}
