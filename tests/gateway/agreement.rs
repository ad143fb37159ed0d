//! Whether the log says what the registry does.

use std::collections::BTreeMap;

use crate::support::{
    Cluster, Node,
    http::get_plain,
    session::{OCI_MANIFEST, Session},
    wait_for,
};

/// What every tag of some repositories names, as somebody tells.
pub type Tags = BTreeMap<String, String>;

/// A client of the registry itself.
pub fn direct(cluster: &Cluster) -> Session {
    Session::with_token(&registry(cluster), "nobody looks at it")
}

fn registry(cluster: &Cluster) -> String {
    cluster.registry.as_ref().expect("a registry").address()
}

/// All tags of `repos` and what they name, told by whoever `session` talks to.
pub fn tags(session: &Session, repos: &[&str]) -> Tags {
    let mut all = Tags::new();
    for repo in repos {
        let mut next = Some(format!("/v2/{repo}/tags/list?n=1000"));
        while let Some(target) = next.take() {
            let page = session.get(&target);
            if page.status == 404 {
                break;
            }
            assert_eq!(page.status, 200, "{}", page.text());
            let link = page.header("link").and_then(|link| link.split(['<', '>']).nth(1));
            next = link.map(|link| link[link.find("/v2/").unwrap()..].to_owned());
            let names = page.json();
            for tag in names["tags"].as_array().into_iter().flatten() {
                let tag = tag.as_str().unwrap();
                let head = session.send(
                    "HEAD",
                    &format!("/v2/{repo}/manifests/{tag}"),
                    &[("Accept", OCI_MANIFEST)],
                    b"",
                );
                if head.status == 200 {
                    all.insert(
                        format!("{repo}:{tag}"),
                        head.header("docker-content-digest").unwrap().to_owned(),
                    );
                }
            }
        }
    }
    all
}

/// `/v1/reconcile` of the primary.
pub fn report(cluster: &Cluster) -> serde_json::Value {
    let (status, body) = get_plain(&cluster.primary.admin(), "/v1/reconcile").unwrap();
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// Waits until the whole registry was walked once.
pub fn wait_backfilled(cluster: &Cluster) {
    wait_for("the first walk to end", || report(cluster)["last_reconciled_at"].as_u64());
}

/// Waits until a site shows everything that the primary's log has.
pub fn wait_applied(cluster: &Cluster, site: &Node) {
    let head = cluster.primary.status()["head_seq"].as_u64().unwrap();
    site.wait_until(|status| status["applied_seq"].as_u64().unwrap() >= head);
}
