//! A token service that neither a registry nor Outport runs, as an operator would have one for CNCF Distribution
//! with `auth.token`.

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
use jsonwebtoken::{
    Algorithm, EncodingKey, Header,
    jwk::{Jwk, JwkSet},
};
use outport_proto::Digest;
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use serde_json::{Value, json};

/// What its tokens are for.
pub const SERVICE: &str = "registry.test";
/// Whose its tokens are.
pub const ISSUER: &str = "token-service";

/// A service on loopback. It ends with the process: nobody else connects to it.
#[derive(Clone, Debug)]
pub struct TokenService {
    pub address: SocketAddr,
    state: Arc<RwLock<State>>,
}

#[derive(Debug)]
struct State {
    key: Key,
    users: Vec<User>,
    /// Whether it answers anything but errors.
    works: bool,
    /// How long its tokens live, in seconds.
    life: u64,
}

/// Somebody with a password. Nobody in particular has neither name nor password.
#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    pub password: String,
    pub names_key: NamesKey,
    /// What they may do in which repository.
    pub may: fn(repo: &str, action: &str) -> bool,
}

/// How tokens say what they are signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamesKey {
    /// By libtrust's key ID, as GitLab and Harbor do.
    Libtrust,
    /// By the key's certificate.
    Chain,
}

/// What everything is signed with at a time.
struct Key {
    pair: KeyPair,
    certificate: rcgen::Certificate,
}

impl TokenService {
    /// A service that knows `users`.
    pub fn start(users: Vec<User>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(RwLock::new(State { key: Key::new(), users, works: true, life: 300 }));
        let served = Arc::clone(&state);
        drop(thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = served.read().unwrap().answer(stream);
            }
        }));
        Self { address, state }
    }

    /// Knows one more.
    pub fn let_in(&self, user: User) {
        self.state.write().unwrap().users.push(user);
    }

    /// Where tokens are.
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.address)
    }

    /// Where its keys are.
    pub fn jwks(&self) -> String {
        format!("http://{}/jwks", self.address)
    }

    /// Writes the certificate of its key, as registries are configured with.
    pub fn write_bundle(&self, file: &Path) {
        fs::write(file, self.state.read().unwrap().key.certificate.pem()).unwrap();
    }

    /// Signs with another key from now on.
    pub fn renew_key(&self) {
        self.state.write().unwrap().key = Key::new();
    }

    /// Answers from now on, or says that it cannot.
    pub fn works(&self, works: bool) {
        self.state.write().unwrap().works = works;
    }

    /// Tokens live for so many seconds from now on.
    pub fn live_for(&self, seconds: u64) {
        self.state.write().unwrap().life = seconds;
    }

    /// `Authorization` with a token of `user` to pull from `repo`.
    pub fn authorization(&self, user: &str, repo: &str) -> String {
        self.authorization_for(user, &[format!("repository:{repo}:pull")])
    }

    /// `Authorization` with a token of `user` for what they may of `scopes`.
    pub fn authorization_for(&self, user: &str, scopes: &[String]) -> String {
        let state = self.state.read().unwrap();
        let user = state.users.iter().find(|known| known.name == user).unwrap();
        format!("Bearer {}", state.key.token(user, scopes, state.life))
    }
}

impl State {
    fn answer(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream);
        let (mut first, mut credentials) = (String::new(), ":".to_owned());
        reader.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? <= 2 {
                break;
            }
            if let Some(basic) = line.to_ascii_lowercase().find("basic ").map(|at| line[at + 6..].trim()) {
                credentials =
                    String::from_utf8(STANDARD.decode(basic).unwrap_or_default()).unwrap_or_default();
            }
        }
        let (method, target) = first.split_once(' ').unwrap_or_default();
        let target = target.split(' ').next().unwrap_or_default();
        let (status, body) = match target.split_once('?').unwrap_or((target, "")) {
            // OAuth2 it does not speak: clients come again with GET.
            _ if method != "GET" => ("405 Method Not Allowed", json!({})),
            _ if !self.works => ("503 Service Unavailable", json!({})),
            ("/jwks", _) => ("200 OK", self.key.jwks()),
            ("/token", query) => self.issue(&credentials, query),
            _ => ("404 Not Found", json!({})),
        };
        let (body, length) = (body.to_string(), body.to_string().len());
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
             Connection: close\r\n\r\n"
        );
        reader.get_mut().write_all(format!("{head}{body}").as_bytes())
    }

    fn issue(&self, credentials: &str, query: &str) -> (&'static str, Value) {
        let scopes = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == "scope");
        let scopes: Vec<String> =
            scopes.flat_map(|(_, scope)| scope.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
        let is_theirs = |user: &&User| format!("{}:{}", user.name, user.password) == credentials;
        match self.users.iter().find(is_theirs) {
            Some(user) => ("200 OK", json!({ "token": self.key.token(user, &scopes, self.life) })),
            None => {
                let errors = json!([{ "code": "UNAUTHORIZED", "message": "authentication required" }]);
                ("401 Unauthorized", json!({ "errors": errors }))
            }
        }
    }
}

impl Key {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&pair).unwrap();
        Self { pair, certificate }
    }

    fn private(&self) -> EncodingKey {
        EncodingKey::from_ec_pem(self.pair.serialize_pem().as_bytes()).unwrap()
    }

    /// libtrust's key ID: the first 240 bits of SHA-256 of the public key's DER, in base 32, in groups.
    fn libtrust_id(&self) -> String {
        const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let hash = Digest::sha256(&self.pair.subject_public_key_info()).to_string();
        let digits = &hash.split_once(':').unwrap().1[..60];
        let bits: String =
            digits.chars().map(|digit| format!("{:04b}", digit.to_digit(16).unwrap())).collect();
        let letter = |place: usize| usize::from_str_radix(&bits[place * 5..place * 5 + 5], 2).unwrap();
        let letters: Vec<u8> = (0..48).map(|place| ALPHABET[letter(place)]).collect();
        let groups: Vec<_> = letters.chunks(4).map(String::from_utf8_lossy).collect();
        groups.join(":")
    }

    fn jwks(&self) -> Value {
        let mut key = Jwk::from_encoding_key(&self.private(), Algorithm::ES256).unwrap();
        key.common.key_id = Some("current".to_owned());
        serde_json::to_value(JwkSet { keys: vec![key] }).unwrap()
    }

    fn token(&self, user: &User, scopes: &[String], life: u64) -> String {
        let mut header = Header::new(Algorithm::ES256);
        match user.names_key {
            NamesKey::Chain => header.x5c = Some(vec![STANDARD.encode(self.certificate.der())]),
            NamesKey::Libtrust => header.kid = Some(self.libtrust_id()),
        }
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let access: Vec<Value> = scopes.iter().filter_map(|scope| granted(user, scope)).collect();
        let claims = json!({
            "jti": "1", "iss": ISSUER, "sub": user.name, "aud": SERVICE,
            "iat": now, "nbf": now - 5, "exp": now + life, "access": access,
        });
        jsonwebtoken::encode(&header, &claims, &self.private()).unwrap()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.libtrust_id())
    }
}

/// What of a scope somebody is granted.
fn granted(user: &User, scope: &str) -> Option<Value> {
    let mut parts = scope.split(':');
    let (kind, name, actions) = (parts.next()?, parts.next()?, parts.next()?);
    let actions: Vec<&str> = actions.split(',').filter(|action| (user.may)(name, action)).collect();
    Some(json!({ "type": kind, "name": name, "actions": actions }))
}
