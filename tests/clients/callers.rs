//! A gateway in front of a registry that knows its callers itself: by password, and by tokens of a service
//! that neither the registry nor Outport runs.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, RwLock},
    thread,
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use outport_proto::Digest;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

use crate::{
    bed::Bed,
    image::Image,
    sandbox::Done,
    support::{Node, Options, http, outport, path, registry::Lets, wait_for},
};

const ANA: &str = "ana:s3cret";
const BOB: &str = "bob:hunter2";
const UNAUTHORIZED: &[&str] = &["unauthorized", "authentication required", "invalid username/password"];

fn login(bed: &Bed, node: &Node, credentials: &str) -> Done {
    let (user, password) = credentials.split_once(':').unwrap();
    let file = bed.sandbox.path(&format!("login-{user}.json"));
    let host = node.registry_by_name();
    bed.sandbox.run(&["skopeo", "login", "--authfile", path(&file), "-u", user, "-p", password, &host])
}

fn push(bed: &Bed, image: &Image, node: &Node, credentials: &str) -> Done {
    let to = format!("docker://{}", bed.reference(node, "team/app", &image.version));
    bed.sandbox.run(&["skopeo", "copy", "--dest-creds", credentials, &image.oci(), &to])
}

/// Pulls version one, as `credentials` or as nobody.
fn pull(bed: &Bed, node: &Node, credentials: &str) -> Done {
    let from = format!("docker://{}", bed.reference(node, "team/app", "one"));
    let dir = tempfile::tempdir_in(bed.sandbox.path("tmp")).unwrap();
    let to = format!("dir:{}", path(dir.path()));
    match credentials {
        "" => bed.sandbox.run(&["skopeo", "copy", "--src-no-creds", &from, &to]),
        _ => bed.sandbox.run(&["skopeo", "copy", "--src-creds", credentials, &from, &to]),
    }
}

#[test]
fn a_registry_with_passwords_is_asked_who_may() {
    let options = Options {
        registry: Some(Lets::Users),
        auth_toml: Some("[auth]\nmode = 'delegated'\n[auth.delegated]\nallow_seconds = 3600\n".to_owned()),
        ..Options::default()
    };
    let Some(mut bed) = Bed::start_unwired(&["skopeo"], options) else { return };
    let registry = bed.cluster.registry.as_ref().unwrap();
    registry.let_in(&[("ana", "s3cret"), ("bob", "hunter2")]);
    let image = Image::make(&bed.sandbox.path("images"), "one");

    for node in [&bed.cluster.primary, bed.frankfurt(), bed.mumbai()] {
        login(&bed, node, ANA).success();
        login(&bed, node, "ana:wrong").failure(UNAUTHORIZED);
    }
    push(&bed, &image, bed.frankfurt(), "ana:wrong").failure(UNAUTHORIZED);
    push(&bed, &image, bed.frankfurt(), ANA).success();
    for node in [bed.mumbai(), &bed.cluster.primary] {
        pull(&bed, node, BOB).success();
        pull(&bed, node, "bob:wrong").failure(UNAUTHORIZED);
        pull(&bed, node, "").failure(UNAUTHORIZED);
    }
    push(&bed, &image, &bed.cluster.primary, BOB).success();

    // The yes for bob outlives bob, unless it is taken back.
    registry.let_in(&[("ana", "s3cret")]);
    pull(&bed, bed.mumbai(), BOB).success();
    assert!(outport(&["revoke", "--admin", &bed.cluster.primary.admin()]).contains("asked again"));
    wait_for("bob to be refused", || (!pull(&bed, bed.mumbai(), BOB).succeeded).then_some(()));
    pull(&bed, bed.mumbai(), BOB).failure(UNAUTHORIZED);
    pull(&bed, &bed.cluster.primary, BOB).failure(UNAUTHORIZED);
    pull(&bed, bed.mumbai(), ANA).success();

    // Without the primary, what was said goes on to be true, and nothing new is.
    bed.cluster.primary.stop();
    pull(&bed, bed.mumbai(), ANA).success();
    let client = bed.raw.client();
    let unknown = format!("Basic {}", STANDARD.encode("new:user"));
    let unsaid =
        client.get(&bed.mumbai().registry(), "/v2/team/app/manifests/one", &[("Authorization", &unknown)]);
    assert_eq!((unsaid.status, &*unsaid.code()), (503, "UNAVAILABLE"), "{}", unsaid.text());
    assert!(unsaid.text().contains("the registry was asked"), "{}", unsaid.text());
}

#[test]
fn an_open_registry_lets_everybody_push_and_pull_anywhere() {
    let options = Options {
        registry: Some(Lets::Anybody),
        auth_toml: Some("[auth]\nmode = 'anonymous'\n".to_owned()),
        ..Options::default()
    };
    let Some(bed) = Bed::start_unwired(&["skopeo"], options) else { return };
    let image = Image::make(&bed.sandbox.path("images"), "one");
    let to = format!("docker://{}", bed.reference(bed.frankfurt(), "team/app", "one"));
    bed.sandbox.run(&["skopeo", "copy", "--dest-no-creds", &image.oci(), &to]).success();
    pull(&bed, bed.mumbai(), "").success();
    pull(&bed, &bed.cluster.primary, "").success();
}

const SERVICE: &str = "registry.test";
const ISSUER: &str = "token-service";

/// A token service: knows ana, who may push to team/app, bob, who may pull, and the gateway. ana's and the
/// gateway's tokens name their key as libtrust does, bob's show its certificate.
struct TokenService {
    address: SocketAddr,
    key: Arc<RwLock<Key>>,
}

struct Key {
    pair: KeyPair,
    certificate: rcgen::Certificate,
}

impl Key {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&pair).unwrap();
        Self { pair, certificate }
    }

    /// libtrust's key ID: the first 240 bits of SHA-256 of the public key's DER, in base 32, in groups.
    fn libtrust_id(&self) -> String {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let hash = Digest::sha256(&self.pair.subject_public_key_info()).to_string();
        let bits: String = hash.split_once(':').unwrap().1[..60]
            .chars()
            .map(|digit| format!("{:04b}", digit.to_digit(16).unwrap()))
            .collect();
        let letters: Vec<u8> = (0..48)
            .map(|place| ALPHABET[usize::from_str_radix(&bits[place * 5..place * 5 + 5], 2).unwrap()])
            .collect();
        let groups: Vec<_> = letters.chunks(4).map(String::from_utf8_lossy).collect();
        groups.join(":")
    }

    fn token(&self, user: &str, access: &[Value]) -> String {
        let mut header = Header::new(Algorithm::ES256);
        match user {
            "bob" => header.x5c = Some(vec![STANDARD.encode(self.certificate.der())]),
            _ => header.kid = Some(self.libtrust_id()),
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let claims = json!({
            "jti": "1", "iss": ISSUER, "sub": user, "aud": SERVICE,
            "iat": now, "nbf": now - 5, "exp": now + 300, "access": access,
        });
        let key = EncodingKey::from_ec_pem(self.pair.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }
}

impl TokenService {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let key = Arc::new(RwLock::new(Key::new()));
        let served = Arc::clone(&key);
        // Ends with the process: nobody else connects to it.
        drop(thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &served.read().unwrap());
            }
        }));
        Self { address, key }
    }

    fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    fn write_bundle(&self, file: &Path) {
        fs::write(file, self.key.read().unwrap().certificate.pem()).unwrap();
    }
}

fn answer(stream: TcpStream, key: &Key) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut user) = (String::new(), String::new());
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some(basic) = line.to_ascii_lowercase().find("basic ").map(|at| line[at + 6..].trim()) {
            user = String::from_utf8(STANDARD.decode(basic).unwrap_or_default()).unwrap_or_default();
        }
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let query = target.split_once('?').map(|(_, query)| query).unwrap_or_default();
    let scopes = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "scope");
    let scopes: Vec<String> =
        scopes.flat_map(|(_, scope)| scope.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
    let (status, body) = match user.as_str() {
        ANA | BOB | "gateway:secret" => {
            let name = user.split(':').next().unwrap();
            let granted: Vec<Value> = scopes.iter().filter_map(|scope| granted(name, scope)).collect();
            ("200 OK", json!({ "token": key.token(name, &granted) }))
        }
        "" => ("200 OK", json!({ "token": key.token("", &[]) })),
        _ => ("401 Unauthorized", json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "wrong" }] })),
    };
    let (body, length) = (body.to_string(), body.to_string().len());
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    );
    reader.get_mut().write_all(format!("{head}{body}").as_bytes())
}

/// What of a scope somebody is granted.
fn granted(user: &str, scope: &str) -> Option<Value> {
    let mut parts = scope.split(':');
    let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
    let may = |action: &str| match user {
        "gateway" => true,
        "ana" => name == "team/app",
        _ => name == "team/app" && action == "pull",
    };
    let actions: Vec<&str> = actions.split(',').filter(|action| may(action)).collect();
    Some(json!({ "type": kind, "name": name, "actions": actions }))
}

#[test]
fn a_registry_with_tokens_of_another_service_is_pulled_from_every_site() {
    let service = TokenService::start();
    let files = tempfile::tempdir().unwrap();
    let (theirs, ours) = (files.path().join("registry.crt"), files.path().join("gateway.crt"));
    service.write_bundle(&theirs);
    service.write_bundle(&ours);
    let password = files.path().join("password");
    fs::write(&password, "secret").unwrap();
    let realm = service.realm();
    let options = Options {
        registry: Some(Lets::Anybody),
        registry_yaml: format!(
            "auth:\n  token:\n    realm: '{realm}'\n    service: '{SERVICE}'\n    issuer: '{ISSUER}'\n    \
             rootcertbundle: '{}'\n",
            path(&theirs)
        ),
        gateway_toml: format!("username = 'gateway'\npassword_file = '{}'\n", path(&password)),
        auth_toml: Some(format!(
            "[auth]\nmode = 'token'\n[auth.token]\nrealm = '{realm}'\nservice = '{SERVICE}'\nissuer = '{ISSUER}'\n\
             certificates = '{}'\n",
            path(&ours)
        )),
        ..Options::default()
    };
    let Some(bed) = Bed::start_unwired(&["skopeo"], options) else { return };
    let image = Image::make(&bed.sandbox.path("images"), "one");
    for node in [&bed.cluster.primary, bed.frankfurt(), bed.mumbai()] {
        login(&bed, node, ANA).success();
        login(&bed, node, "ana:wrong").failure(UNAUTHORIZED);
    }
    push(&bed, &image, bed.frankfurt(), BOB).failure(&["unauthorized", "denied", "authentication required"]);
    push(&bed, &image, bed.frankfurt(), ANA).success();
    for credentials in [ANA, BOB] {
        pull(&bed, bed.mumbai(), credentials).success();
        pull(&bed, &bed.cluster.primary, credentials).success();
    }
    pull(&bed, bed.mumbai(), "").failure(UNAUTHORIZED);

    // The key is another one from now on: a site hears of it as soon as somebody comes with a token of it.
    let old =
        service.key.read().unwrap().token("ana", &[granted("ana", "repository:team/app:pull").unwrap()]);
    *service.key.write().unwrap() = Key::new();
    service.write_bundle(&ours);
    let new =
        service.key.read().unwrap().token("ana", &[granted("ana", "repository:team/app:pull").unwrap()]);
    let get = |token: &str| -> http::Response {
        let authorization = format!("Bearer {token}");
        let target = "/v2/team/app/manifests/one";
        bed.raw.client().get(&bed.mumbai().registry(), target, &[("Authorization", &authorization)])
    };
    assert_eq!(get(&new).status, 200);
    assert_eq!(get(&old).status, 401, "a key that went is not believed any longer");
}
