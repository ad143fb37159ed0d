//! The registry under test as a client sees it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outport_proto::{Algorithm, Digest};
use serde_json::json;

use crate::support::{
    Cluster, Node, USER,
    http::{Client, Response, token},
    token_service::TokenService,
};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const REDIRECTS_MAX: usize = 5;

pub struct Registry {
    client: Client,
    /// Where requests begin.
    address: String,
    way_in: WayIn,
    /// What the names of its repositories begin with.
    root: String,
    /// The repository that paths without one are about.
    pub repo: String,
    /// Another one of the same row.
    pub other: String,
    authorization: String,
}

/// How the client proves who it is.
#[derive(Clone)]
pub enum WayIn {
    /// By tokens that the primary gives [`USER`] for a password.
    Own { primary: String, password: String },
    /// By a user's password in every request.
    Password { user: &'static str, password: String },
    /// By tokens that a service gives a user.
    Service { service: TokenService, user: &'static str },
}

impl Registry {
    pub fn new(cluster: &Cluster, node: &Node) -> Self {
        let (primary, password) = (cluster.primary.registry(), cluster.password.clone());
        Self::by(WayIn::Own { primary, password }, node)
    }

    pub fn by(way_in: WayIn, node: &Node) -> Self {
        let mut registry = Self {
            client: Client::plain(),
            address: node.registry(),
            way_in,
            root: "conformance".to_owned(),
            repo: String::new(),
            other: String::new(),
            authorization: String::new(),
        };
        registry.authorize();
        registry
    }

    /// The same registry, with repositories below another root.
    pub fn below(self, root: &str) -> Self {
        Self { root: root.to_owned(), ..self }
    }

    /// The same registry, with repositories named after a row.
    pub fn with_repo(&self, row: &str) -> Self {
        let name: String = row.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
        let repo = format!("{}/{}", self.root, words.join("-").to_lowercase());
        let mut registry = Self {
            client: self.client.clone(),
            address: self.address.clone(),
            way_in: self.way_in.clone(),
            root: self.root.clone(),
            other: format!("{repo}/other"),
            repo,
            authorization: String::new(),
        };
        registry.authorize();
        registry
    }

    /// The same registry about the row's other repository.
    pub fn of_other(&self) -> Self {
        Self {
            client: self.client.clone(),
            address: self.address.clone(),
            way_in: self.way_in.clone(),
            root: self.root.clone(),
            repo: self.other.clone(),
            other: self.repo.clone(),
            authorization: self.authorization.clone(),
        }
    }

    fn authorize(&mut self) {
        let scopes = [
            format!("repository:{}:pull,push,delete", self.repo),
            format!("repository:{}:pull,push,delete", self.other),
            "registry:catalog:*".to_owned(),
        ];
        self.authorization = match &self.way_in {
            WayIn::Own { primary, password } => {
                let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
                let user = Some((USER, password.as_str()));
                format!("Bearer {}", token(&self.client, primary, "outport.test", &scopes, user))
            }
            WayIn::Password { user, password } => {
                format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
            }
            WayIn::Service { service, user } => service.authorization_for(user, &scopes),
        };
    }

    /// `/v2/<repo>/<rest>`.
    pub fn path(&self, rest: &str) -> String {
        format!("/v2/{}/{rest}", self.repo)
    }

    /// Sends a request with the client's authorization and follows redirects as clients do: without it.
    pub fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let (address, path) = self.split(target);
        let mut with_token = vec![("Authorization", self.authorization.as_str())];
        with_token.extend_from_slice(headers);
        let mut response = self.client.send(&address, method, &path, &with_token, body);
        for _ in 0..REDIRECTS_MAX {
            if response.status != 307 {
                return response;
            }
            let location = response.header("location").expect("a 307 has a Location").to_owned();
            let (address, path) = self.split(&location);
            response = self.client.send(&address, method, &path, headers, body);
        }
        panic!("{method} {target}: more than {REDIRECTS_MAX} redirects");
    }

    fn split(&self, target: &str) -> (String, String) {
        match target.strip_prefix("http://") {
            Some(rest) => {
                let (address, path) = rest.split_at(rest.find('/').expect("a path"));
                (address.to_owned(), path.to_owned())
            }
            None => (self.address.clone(), target.to_owned()),
        }
    }

    pub fn get(&self, rest: &str, headers: &[(&str, &str)]) -> Response {
        self.send("GET", &self.path(rest), headers, b"")
    }

    pub fn head(&self, rest: &str) -> Response {
        self.send("HEAD", &self.path(rest), &[], b"")
    }

    pub fn delete(&self, rest: &str) -> Response {
        self.send("DELETE", &self.path(rest), &[], b"")
    }

    /// Begins an upload; returns its location.
    pub fn begin_upload(&self) -> String {
        let response = self.send("POST", &self.path("blobs/uploads/"), &[], b"");
        assert_eq!(response.status, 202, "{}", response.text());
        response.header("location").expect("an upload has a Location").to_owned()
    }

    /// Pushes a blob the usual way, POST then PUT.
    pub fn push_blob(&self, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        let response = self.put_blob(&self.begin_upload(), &digest, content);
        assert_eq!(response.status, 201, "{}", response.text());
        digest
    }

    /// Ends an upload.
    pub fn put_blob(&self, location: &str, digest: &Digest, content: &[u8]) -> Response {
        self.send(
            "PUT",
            &with_query(location, &format!("digest={}", escape(&digest.to_string()))),
            &[],
            content,
        )
    }

    /// Pushes a manifest as clients of Go do: chunked, without a length.
    pub fn put_manifest(&self, reference: &str, media_type: &str, content: &[u8]) -> Response {
        let mut body = format!("{:x}\r\n", content.len()).into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
        self.send(
            "PUT",
            &self.path(&format!("manifests/{reference}")),
            &[("Content-Type", media_type), ("Transfer-Encoding", "chunked")],
            &body,
        )
    }

    /// Pushes an image of one layer under a tag; returns its manifest.
    pub fn push_image(&self, tag: &str, layer: &[u8]) -> Vec<u8> {
        let manifest = self.image(layer);
        let response = self.put_manifest(tag, OCI_MANIFEST, &manifest);
        assert_eq!(response.status, 201, "{}", response.text());
        manifest
    }

    /// The manifest of an image whose blobs are pushed.
    pub fn image(&self, layer: &[u8]) -> Vec<u8> {
        let config = br#"{"architecture":"amd64","os":"linux"}"#;
        let descriptor = |media_type: &str, content: &[u8]| json!({ "mediaType": media_type, "digest": self.push_blob(content), "size": content.len() });
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
        })
        .to_string()
        .into_bytes()
    }
}

/// Adds to a URL's query.
pub fn with_query(location: &str, query: &str) -> String {
    let separator = if location.contains('?') { '&' } else { '?' };
    format!("{location}{separator}{query}")
}

/// A query value as clients encode it.
pub fn escape(value: &str) -> String {
    value.replace('%', "%25").replace(':', "%3A").replace('/', "%2F").replace('+', "%2B")
}

/// Both digests of some content.
pub fn digests(content: &[u8]) -> [Digest; 2] {
    [Digest::of(Algorithm::Sha256, content), Digest::of(Algorithm::Sha512, content)]
}

/// Bytes that differ from place to place.
pub fn bytes(length: usize, salt: u8) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) >> 3) as u8 ^ salt ^ (at as u8)).collect()
}
