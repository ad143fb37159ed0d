//! A registry client that shows everything: what is asked at which node, and what came back. It
//! follows redirects as clients do, without credentials.

use std::cell::RefCell;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use outport_proto::Digest;

use crate::support::{
    Cluster, Node, USER,
    http::{self, Client, Response},
    token_service,
};

const SERVICE: &str = "outport.test";
const REDIRECTS_MAX: usize = 5;

/// How callers prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ways {
    /// By tokens of the primary.
    Outport,
    /// By tokens of a service elsewhere, at `address:port`.
    Service {
        /// Where it is.
        address: String,
    },
    /// By their password with every request.
    Password,
    /// Not at all.
    Nothing,
}

pub(crate) struct Raw {
    client: Client,
    ways: Ways,
    /// `host:port` and `address:port` of every node.
    names: Vec<(String, String)>,
    primary: String,
    password: String,
    authorization: RefCell<String>,
}

impl Raw {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self {
            client: Client::trusting(&cluster.authority()),
            ways: Ways::Outport,
            names: cluster.nodes().map(|node| (node.registry_by_name(), node.registry())).collect(),
            primary: cluster.primary.registry(),
            password: cluster.password.clone(),
            authorization: RefCell::default(),
        }
    }

    /// Goes by that from now on.
    pub(crate) fn go_by(&mut self, ways: Ways) {
        self.ways = ways;
    }

    /// What requests are sent with.
    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Fetches a token, as a client does before each pull; later requests carry it.
    pub(crate) fn anonymous(&self, repo: &str) -> &Self {
        self.login(&format!("repository:{repo}:pull"), None)
    }

    /// Fetches a token of the user who may push.
    pub(crate) fn user(&self, repo: &str) -> &Self {
        self.login(&format!("repository:{repo}:pull,push,delete"), Some((USER, &self.password)))
    }

    fn login(&self, scope: &str, user: Option<(&str, &str)>) -> &Self {
        let authorization = match &self.ways {
            Ways::Outport => {
                format!("Bearer {}", http::token(&self.client, &self.primary, SERVICE, &[scope], user))
            }
            Ways::Service { address } => {
                let service = token_service::SERVICE;
                format!("Bearer {}", http::token(&Client::plain(), address, service, &[scope], user))
            }
            Ways::Password => format!("Basic {}", STANDARD.encode(format!("{USER}:{}", self.password))),
            Ways::Nothing => String::new(),
        };
        *self.authorization.borrow_mut() = authorization;
        self
    }

    /// The `Authorization` header in use.
    pub(crate) fn authorization(&self) -> String {
        self.authorization.borrow().clone()
    }

    pub(crate) fn get(&self, node: &Node, target: &str) -> Response {
        self.send(node, "GET", target, &[], b"")
    }

    /// Sends a request with the token to `node` and follows redirects.
    pub(crate) fn send(
        &self,
        node: &Node,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Response {
        let authorization = self.authorization();
        let own = [("Authorization", authorization.as_str())];
        let own = if authorization.is_empty() { &[][..] } else { &own[..] };
        let with_token = [own, headers].concat();
        let mut response = self.client.send(&node.registry(), method, target, &with_token, body);
        for _ in 0..REDIRECTS_MAX {
            if response.status != 307 {
                return response;
            }
            let location = response.header("location").expect("a 307 has a Location").to_owned();
            response = self.send_absolute(method, &location, headers, body);
        }
        panic!("{method} {target}: more than {REDIRECTS_MAX} redirects");
    }

    /// Sends a request without a token to where a `Location` points.
    fn send_absolute(&self, method: &str, url: &str, headers: &[(&str, &str)], body: &[u8]) -> Response {
        let rest = url.strip_prefix("https://").unwrap_or_else(|| panic!("{url} is not absolute"));
        let (host, path) = rest.split_at(rest.find('/').expect("a path"));
        let (_, address) = self.names.iter().find(|(name, _)| name == host).expect("a node of the cluster");
        self.client.send(address, method, path, headers, body)
    }

    /// Pushes a blob as clients do: POST to `node`, then PUT to where the answer says.
    pub(crate) fn push_blob(&self, node: &Node, repo: &str, content: &[u8]) {
        let begun = self.send(node, "POST", &format!("/v2/{repo}/blobs/uploads/"), &[], b"");
        assert_eq!(begun.status, 202, "{}", begun.text());
        let location = begun.header("location").expect("an upload has a Location");
        let separator = if location.contains('?') { '&' } else { '?' };
        let digest = Digest::sha256(content).to_string().replace(':', "%3A");
        let put = self.send_absolute("PUT", &format!("{location}{separator}digest={digest}"), &[], content);
        assert_eq!(put.status, 201, "{}", put.text());
    }

    /// Pushes a manifest through `node`.
    pub(crate) fn push_manifest(
        &self,
        node: &Node,
        repo: &str,
        reference: &str,
        media_type: &str,
        content: &[u8],
    ) -> Response {
        let target = format!("/v2/{repo}/manifests/{reference}");
        let response = self.send(node, "PUT", &target, &[("Content-Type", media_type)], content);
        assert_eq!(response.status, 201, "{}", response.text());
        response
    }

    /// The manifest of a tag with a token that is new, as at the start of every client's pull.
    pub(crate) fn manifest(&self, node: &Node, repo: &str, reference: &str) -> Response {
        self.anonymous(repo).get(node, &format!("/v2/{repo}/manifests/{reference}"))
    }

    /// Every node must answer the same manifest, and all that it names, byte for byte; returns
    /// the manifest's digest.
    pub(crate) fn same_everywhere(&self, cluster: &Cluster, repo: &str, tag: &str) -> String {
        let answers: Vec<Response> = cluster.nodes().map(|node| self.manifest(node, repo, tag)).collect();
        for (node, answer) in cluster.nodes().zip(&answers) {
            assert_eq!(answer.status, 200, "{repo}:{tag} at {}: {}", node.name, answer.text());
            let digest = Digest::sha256(&answer.body).to_string();
            assert_eq!(answer.header("docker-content-digest"), Some(digest.as_str()), "at {}", node.name);
            assert_eq!(answer.header("content-type"), answers[0].header("content-type"), "at {}", node.name);
            assert_eq!(answer.text(), answers[0].text(), "{repo}:{tag} at {}", node.name);
        }
        let manifest = answers[0].json();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        for blob in layers.chain(manifest.get("config")) {
            let digest = blob["digest"].as_str().expect("a descriptor has a digest");
            for node in cluster.nodes() {
                let content = self.get(node, &format!("/v2/{repo}/blobs/{digest}"));
                assert_eq!(content.status, 200, "{digest} at {}: {}", node.name, content.text());
                assert_eq!(Digest::sha256(&content.body).to_string(), digest, "at {}", node.name);
            }
        }
        Digest::sha256(&answers[0].body).to_string()
    }
}
