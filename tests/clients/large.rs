//! A layer of 300 MiB: pushed through a site and pulled from the other, and the site it was
//! pushed through has seen next to nothing of it.

use std::fs;

use crate::{
    bed::Bed,
    image::{Layout, OCI_MANIFEST},
    support::{Options, USER, path},
};

const LAYER_BYTES: u64 = 300 * 1024 * 1024;
/// What a push may send to the site: requests without bodies, a manifest, TLS.
const SITE_BYTES_MAX: u64 = 256 * 1024;

#[test]
fn push_bytes_never_pass_the_site() {
    // Copied on the first pull only: what frankfurt holds in the end came with the push.
    let options = Options { site_toml: "[[policy]]\nkeep = 'lazy'\n".to_owned(), ..Options::default() };
    let Some(bed) = Bed::start(&["skopeo"], options) else { return };
    let layout = Layout::create(&bed.sandbox.path("large"));
    let manifest = layout.large_image(LAYER_BYTES);
    layout.refer_to(&[(OCI_MANIFEST, &manifest, "one")]);

    let from = format!("oci:{}:one", layout.dir.display());
    let to = format!("docker://{}", bed.reference(bed.frankfurt(), "team/large", "one"));
    let credentials = format!("{USER}:{}", bed.cluster.password);
    bed.sandbox.ok(&["skopeo", "copy", "--dest-creds", &credentials, &from, &to]);
    assert!(bed.received_by_primary() > LAYER_BYTES);
    let received = bed.received_by_frankfurt();
    assert!(received < SITE_BYTES_MAX, "{received} bytes were sent to the site");
    let proxied = bed.frankfurt().metric("outport_proxied_push_bytes_total", "");
    assert!(proxied < SITE_BYTES_MAX as f64, "{proxied} bytes of pushes passed through the site");
    let held = bed.frankfurt().status()["store"]["bytes"].as_u64().unwrap();
    assert!(held < SITE_BYTES_MAX, "the site holds {held} bytes");
    fs::remove_dir_all(&layout.dir).unwrap();

    let pulled = bed.sandbox.path("pulled");
    let from = format!("docker://{}", bed.reference(bed.mumbai(), "team/large", "one"));
    bed.sandbox.ok(&["skopeo", "copy", "--src-no-creds", &from, &format!("dir:{}", path(&pulled))]);
    assert_eq!(fs::read(pulled.join("manifest.json")).unwrap(), manifest);
}
