//! A client of a registry: it holds a token, sends it to the node it talks to, and follows
//! redirects as real clients do, without it.

use std::io;

use outport_proto::Digest;
use serde_json::json;

use super::{
    Cluster, Node, USER,
    http::{Client, Connection, Response, token},
};

/// The audience of a test cluster's tokens.
pub const SERVICE: &str = "outport.test";
/// Media type of an OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux"}"#;
const REDIRECTS_MAX: usize = 5;

/// A client with a token for some repositories; over HTTPS it follows no redirect.
#[derive(Clone)]
pub struct Session {
    http: Client,
    address: String,
    authorization: String,
}

/// What was pushed as an image.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The manifest's digest.
    pub digest: Digest,
}

impl Session {
    /// A client of `node` that may do everything in `repos`.
    pub fn user(cluster: &Cluster, node: &Node, repos: &[&str]) -> Self {
        let token = user_token(cluster, repos);
        Self { http: cluster.client(), ..Self::with_token(&node.registry(), &token) }
    }

    /// A client of `node` that nobody knows, which may pull from `repos`.
    pub fn anyone(cluster: &Cluster, node: &Node, repos: &[&str]) -> Self {
        let token = anonymous_token(cluster, repos);
        Self { http: cluster.client(), ..Self::with_token(&node.registry(), &token) }
    }

    /// A client with a token it got somewhere.
    pub fn with_token(address: &str, token: &str) -> Self {
        Self { http: Client::plain(), address: address.to_owned(), authorization: format!("Bearer {token}") }
    }

    /// The same over `http`.
    pub fn over(http: Client, address: &str, token: &str) -> Self {
        Self { http, ..Self::with_token(address, token) }
    }

    /// The same client, with the same token, at another node.
    pub fn at(&self, node: &Node) -> Self {
        Self { address: node.registry(), ..self.clone() }
    }

    /// The `Authorization` it sends.
    pub fn authorization(&self) -> &str {
        &self.authorization
    }

    /// One request with the token; a redirect is not followed.
    pub fn once(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_once(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} http://{}{target}: {error}", self.address))
    }

    fn try_once(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut all = vec![("Authorization", self.authorization.as_str())];
        all.extend_from_slice(headers);
        self.http.connect(&self.address)?.send(method, target, &all, body)
    }

    /// A request, and those it is redirected to. Absolute URLs go without the token.
    pub fn try_send(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let mut response = match absolute(target) {
            Some((address, path)) => self.http.connect(&address)?.send(method, &path, headers, body)?,
            None => self.try_once(method, target, headers, body)?,
        };
        for _ in 0..REDIRECTS_MAX {
            if response.status != 307 {
                return Ok(response);
            }
            let location = response.header("location").unwrap_or_default().to_owned();
            let (address, path) = absolute(&location)
                .ok_or_else(|| io::Error::other(format!("a 307 to {location:?} is not absolute")))?;
            response = self.http.connect(&address)?.send(method, &path, headers, body)?;
        }
        Err(io::Error::other(format!("more than {REDIRECTS_MAX} redirects")))
    }

    /// As [`Session::try_send`]; it must be answered.
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        self.try_send(method, target, headers, body)
            .unwrap_or_else(|error| panic!("{method} {target} at {}: {error}", self.address))
    }

    /// A GET.
    pub fn get(&self, target: &str) -> Response {
        self.send("GET", target, &[], b"")
    }

    /// A HEAD.
    pub fn head(&self, target: &str) -> Response {
        self.send("HEAD", target, &[], b"")
    }

    /// Sends a GET and reads the head of its answer; the body can be read from the connection.
    pub fn open(&self, target: &str) -> (Connection, Response) {
        let mut connection = self.http.connect(&self.address).unwrap();
        let authorization = &self.authorization;
        let head = format!(
            "GET {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: {authorization}\r\n\r\n",
            self.address
        );
        connection.raw(head.as_bytes()).unwrap();
        let response = connection.receive_head().unwrap();
        (connection, response)
    }

    /// Begins an upload and returns its location.
    pub fn begin_upload(&self, repo: &str) -> String {
        let response = self.send("POST", &format!("/v2/{repo}/blobs/uploads/"), &[], b"");
        assert_eq!(response.status, 202, "{}", response.text());
        response.header("location").expect("a Location").to_owned()
    }

    /// Pushes a blob in two requests.
    pub fn push_blob(&self, repo: &str, content: &[u8]) -> Digest {
        self.try_push_blob(repo, content).unwrap_or_else(|error| panic!("push a blob to {repo}: {error}"))
    }

    fn try_push_blob(&self, repo: &str, content: &[u8]) -> io::Result<Digest> {
        let digest = Digest::sha256(content);
        let begun = self.try_send("POST", &format!("/v2/{repo}/blobs/uploads/"), &[], b"")?;
        let location = expect(&begun, 202)?.header("location").unwrap_or_default().to_owned();
        // Over HTTPS it names the primary by a host that only its own clients can look up.
        let path = location.strip_prefix("https://").and_then(|rest| Some(&rest[rest.find('/')?..]));
        let end = self.try_send("PUT", &finish(path.unwrap_or(&location), &digest), &[], content)?;
        expect(&end, 201)?;
        Ok(digest)
    }

    /// Pushes an image under a tag or a digest.
    pub fn push_image(&self, repo: &str, reference: &str, layers: &[&[u8]]) -> Image {
        self.try_push_image(repo, reference, layers)
            .unwrap_or_else(|error| panic!("push {repo}:{reference}: {error}"))
    }

    /// Pushes an image; an error where the registry cannot be reached or does not accept it.
    pub fn try_push_image(&self, repo: &str, reference: &str, layers: &[&[u8]]) -> io::Result<Image> {
        self.try_push_blob(repo, CONFIG)?;
        for layer in layers {
            self.try_push_blob(repo, layer)?;
        }
        let manifest = image(layers);
        let response = self.try_put_manifest(repo, reference, &manifest)?;
        expect(&response, 201)?;
        Ok(Image { digest: Digest::sha256(&manifest), manifest })
    }

    /// Puts a manifest; its answer may be anything.
    pub fn put_manifest(&self, repo: &str, reference: &str, manifest: &[u8]) -> Response {
        self.try_put_manifest(repo, reference, manifest)
            .unwrap_or_else(|error| panic!("put {repo}:{reference}: {error}"))
    }

    fn try_put_manifest(&self, repo: &str, reference: &str, manifest: &[u8]) -> io::Result<Response> {
        let target = format!("/v2/{repo}/manifests/{reference}");
        self.try_send("PUT", &target, &[("Content-Type", OCI_MANIFEST)], manifest)
    }
}

/// The manifest of an image with these layers.
pub fn image(layers: &[&[u8]]) -> Vec<u8> {
    let descriptor = |media_type: &str, content: &[u8]| json!({ "mediaType": media_type, "digest": Digest::sha256(content).to_string(), "size": content.len() });
    let layers: Vec<_> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", CONFIG),
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

/// Where an upload at `location` ends.
pub fn finish(location: &str, digest: &Digest) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}digest={}", digest.to_string().replace(':', "%3A"))
}

/// Address and path of an URL; `None` for a path.
pub fn absolute(target: &str) -> Option<(String, String)> {
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"))?;
    let (address, path) = rest.split_at(rest.find('/')?);
    Some((address.to_owned(), path.to_owned()))
}

/// A token of the user who may push and delete.
pub fn user_token(cluster: &Cluster, repos: &[&str]) -> String {
    let user = Some((USER, cluster.password.as_str()));
    tokens_from((&cluster.client(), &cluster.primary.registry()), SERVICE, repos, "pull,push,delete", user)
}

/// A token of nobody.
pub fn anonymous_token(cluster: &Cluster, repos: &[&str]) -> String {
    tokens_from((&cluster.client(), &cluster.primary.registry()), SERVICE, repos, "pull", None)
}

/// A token for `actions` in `repos`, over plain HTTP.
pub fn token_for(
    primary: &str,
    service: &str,
    repos: &[&str],
    actions: &str,
    user: Option<(&str, &str)>,
) -> String {
    tokens_from((&Client::plain(), primary), service, repos, actions, user)
}

fn tokens_from(
    (http, primary): (&Client, &str),
    service: &str,
    repos: &[&str],
    actions: &str,
    user: Option<(&str, &str)>,
) -> String {
    let scopes: Vec<String> = repos.iter().map(|repo| format!("repository:{repo}:{actions}")).collect();
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    token(http, primary, service, &scopes, user)
}

/// Bytes without a pattern, the same for the same seed.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(length + 8);
    while content.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(length);
    content
}

fn expect(response: &Response, status: u16) -> io::Result<&Response> {
    if response.status == status {
        Ok(response)
    } else {
        Err(io::Error::other(format!("{} instead of {status}: {}", response.status, response.text())))
    }
}
