use super::*;

struct Pulling {
    primary: Primary,
    token: String,
    digest: Digest,
    content: Vec<u8>,
}

impl Pulling {
    /// A repository with a blob of 2048 bytes.
    async fn start() -> Self {
        let primary = Primary::start().await;
        let token = primary.token(&["team/app"], Actions::ALL);
        let content: Vec<u8> = (0..2048_u32).map(|number| (number % 251) as u8).collect();
        let digest = push_blob(&primary, &token, "team/app", &content).await;
        Self { primary, token, digest, content }
    }

    fn blob(&self, method: &str) -> Ask {
        ask(method, format!("/v2/team/app/blobs/{}", self.digest)).by(&self.token)
    }

    async fn ask(&self, ask: Ask) -> Answer {
        self.primary.ask(ask).await
    }
}

#[tokio::test]
async fn head_and_get_agree_in_every_header() {
    let world = Pulling::start().await;
    let (digest, bytes) = push_image(&world.primary, &world.token, "team/app", "one", "").await;
    for path in [
        "/v2/".to_owned(),
        "/v2/team/app/manifests/one".to_owned(),
        format!("/v2/team/app/manifests/{digest}"),
        format!("/v2/team/app/blobs/{}", world.digest),
        "/v2/team/app/tags/list".to_owned(),
        format!("/v2/team/app/referrers/{digest}"),
        "/v2/team/app/manifests/missing".to_owned(),
    ] {
        let get = world.ask(ask("GET", &path).by(&world.token)).await;
        let head = world.ask(ask("HEAD", &path).by(&world.token)).await;
        assert_eq!(get.status, head.status, "{path}");
        assert!(head.body.is_empty(), "{path}");
        let mut expected = get.headers.clone();
        expected.entry("content-length").or_insert(get.body.len().into());
        assert_eq!(expected, head.headers, "{path}");
        assert_eq!(expected["content-length"], get.body.len().to_string().as_str(), "{path}");
        assert!(!head.has("content-encoding"), "{path}");
    }
    let manifest = world.ask(ask("GET", "/v2/team/app/manifests/one").by(&world.token)).await;
    assert_eq!(manifest.body, bytes);
    assert_eq!(manifest.header("docker-content-digest"), digest.to_string());
    assert_eq!(manifest.header("etag"), format!("\"{digest}\""));
    assert!(manifest.has("outport-offset") && !manifest.has("age"));
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again() {
    let world = Pulling::start().await;
    let (digest, _) = push_image(&world.primary, &world.token, "team/app", "one", "").await;
    let etag = format!("\"{digest}\"");
    let manifest = || ask("GET", "/v2/team/app/manifests/one").by(&world.token);
    let same = world.ask(manifest().with("if-none-match", &etag)).await.is(304);
    assert!(same.body.is_empty());
    assert_eq!((same.header("etag"), same.header("docker-content-digest")), (&*etag, &*digest.to_string()));
    world.ask(manifest().with("if-none-match", "\"other\"")).await.is(200);
    let blob_etag = format!("W/\"{}\"", world.digest);
    world.ask(world.blob("GET").with("if-none-match", blob_etag)).await.is(304);
    world.ask(world.blob("HEAD").with("if-none-match", "*")).await.is(304);
}

#[tokio::test]
async fn one_range() {
    let world = Pulling::start().await;
    for (range, first, end) in [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-2048", 0, 2048),
    ] {
        let answer = world.ask(world.blob("GET").with("range", range)).await.is(206);
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{}/2048", end - 1), "{range}");
        assert_eq!(answer.header("content-length"), (end - first).to_string(), "{range}");
        assert_eq!(answer.header("accept-ranges"), "bytes");
        assert_eq!(answer.body, world.content[first..end], "{range}");
    }
    for range in ["bytes=500-0", "bytes=5000-10000", "bytes=2048-"] {
        let answer = world.ask(world.blob("GET").with("range", range)).await;
        answer.refused(416, "RANGE_INVALID");
        assert_eq!(answer.header("content-range"), "bytes */2048");
    }
    for ignored in ["bytes=x", "lines=1-2", "bytes=0-,0-"] {
        let answer = world.ask(world.blob("GET").with("range", ignored)).await.is(200);
        assert_eq!(answer.body, world.content);
    }
    let head = world.ask(world.blob("HEAD").with("range", "bytes=0-0")).await.is(200);
    assert_eq!(head.header("content-length"), "2048");
}

#[tokio::test]
async fn a_range_of_another_content_is_ignored() {
    let world = Pulling::start().await;
    let ranged = |if_range: &str| world.blob("GET").with("range", "bytes=0-0").with("if-range", if_range);
    world.ask(ranged(&format!("\"{}\"", world.digest))).await.is(206);
    world.ask(ranged("\"sha256:other\"")).await.is(200);
    world.ask(ranged("Fri, 20 Nov 2026 20:00:00 GMT")).await.is(200);
}

#[tokio::test]
async fn several_ranges_come_as_parts() {
    let world = Pulling::start().await;
    let answer = world.ask(world.blob("GET").with("range", "bytes=0-9,100-199,-1")).await.is(206);
    let boundary = answer.header("content-type").strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = Vec::new();
    for (index, (first, last)) in [(0, 9), (100, 199), (2047, 2047)].into_iter().enumerate() {
        let line = if index == 0 { "" } else { "\r\n" };
        let head = format!(
            "{line}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/2048\r\n\r\n"
        );
        expected.extend_from_slice(head.as_bytes());
        expected.extend_from_slice(&world.content[first..=last]);
    }
    expected.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    assert_eq!(answer.body, expected);
    assert_eq!(answer.header("content-length"), expected.len().to_string());
    let one_left = world.ask(world.blob("GET").with("range", "bytes=0-9,5000-")).await.is(206);
    assert_eq!(one_left.header("content-range"), "bytes 0-9/2048");
}

#[tokio::test]
async fn a_secondary_streams_what_it_does_not_have() {
    let world = Pulling::start().await;
    let site = world.primary.secondary(PushMode::Redirect);
    let ranged = site.ask(world.blob("GET").with("range", "bytes=10-19,30-39")).await.is(206);
    assert!(ranged.body.windows(10).any(|window| window == &world.content[10..20]));
    let whole = site.ask(world.blob("GET")).await.is(200);
    assert_eq!(whole.body, world.content);
    assert_eq!(site.api.metrics.served_bytes(), (whole.body.len() + ranged.body.len()) as u64);
    assert_eq!(
        world.primary.ask(world.blob("HEAD")).await.headers,
        site.ask(world.blob("HEAD")).await.headers
    );
}

#[tokio::test]
async fn cut_off_a_site_says_how_old_its_answer_is() {
    let world = Pulling::start().await;
    push_image(&world.primary, &world.token, "team/app", "one", "").await;
    let site = world.primary.secondary(PushMode::Redirect);
    let pull = world.primary.token(&["team/app"], Actions::PULL);
    site.inner.cut_off(std::time::Duration::from_millis(90_500));
    let stale = site.ask(ask("GET", "/v2/team/app/manifests/one").by(&pull)).await.is(200);
    assert_eq!(stale.header("age"), "90");
    assert_eq!(stale.header("outport-staleness"), "90.500");
    assert!(stale.header("warning").starts_with("110 "));
    let tags = site.ask(ask("GET", "/v2/team/app/tags/list").by(&pull)).await.is(200);
    assert_eq!((tags.header("age"), tags.header("outport-staleness")), ("90", "90.500"));
    let pushing = site.ask(world.blob("HEAD")).await.is(200);
    assert_eq!((pushing.header("age"), pushing.has("outport-offset")), ("90", true));
    let blob = format!("/v2/team/app/blobs/{}", world.digest);
    let content = site.ask(ask("HEAD", blob).by(&pull)).await.is(200);
    assert!(!content.has("age") && content.has("outport-offset"), "what a digest names has no age");
    let unknown = site.ask(ask("GET", "/v2/team/app/manifests/two").by(&pull)).await;
    unknown.refused(503, "UNAVAILABLE");
    assert!(unknown.has("retry-after"));
}

#[tokio::test]
async fn lists_are_paged_with_links() {
    let world = Pulling::start().await;
    for tag in ["c", "a", "b"] {
        push_image(&world.primary, &world.token, "team/app", tag, "").await;
    }
    let list = async |query: &str| {
        world.ask(ask("GET", format!("/v2/team/app/tags/list{query}")).by(&world.token)).await
    };
    let all = list("").await.is(200);
    assert_eq!(all.json(), serde_json::json!({"name": "team/app", "tags": ["a", "b", "c"]}));
    assert_eq!(all.header("content-type"), "application/json");
    assert!(!all.has("link"));
    let page = list("?n=2").await.is(200);
    assert_eq!(page.json()["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(page.header("link"), "</v2/team/app/tags/list?n=2&last=b>; rel=\"next\"");
    assert_eq!(list("?n=2&last=b").await.is(200).json()["tags"], serde_json::json!(["c"]));
    let none = list("?n=0").await.is(200);
    assert_eq!((none.json()["tags"].clone(), none.has("link")), (serde_json::json!([]), false));
    list("?n=1000000000").await.is(200);
    list("?n=-1").await.refused(400, "PAGINATION_NUMBER_INVALID");
    let access: Access = [Scope::Catalog].into_iter().collect();
    let catalog =
        world.ask(ask("GET", "/v2/_catalog?n=1").by(&world.primary.token_of(&access))).await.is(200);
    assert_eq!(catalog.json(), serde_json::json!({"repositories": ["team/app"]}));
    let nowhere = primary_token_for(&world, "nowhere");
    world.ask(ask("GET", "/v2/nowhere/tags/list").by(&nowhere)).await.refused(404, "NAME_UNKNOWN");
}

fn primary_token_for(world: &Pulling, name: &str) -> String {
    world.primary.token(&[name], Actions::PULL)
}

#[tokio::test]
async fn referrers_by_type() {
    let world = Pulling::start().await;
    let index = outport_proto::oci::media_type::OCI_INDEX;
    let (subject, _) = push_image(&world.primary, &world.token, "team/app", "one", "").await;
    let refer = |kind: &str| {
        format!(
            r#","artifactType":"{kind}","annotations":{{"k":"v"}},"subject":{{"mediaType":"m","digest":"{subject}","size":3}}"#
        )
    };
    let (signature, bytes) =
        push_image(&world.primary, &world.token, "team/app", "sig", &refer("a/sig")).await;
    push_image(&world.primary, &world.token, "team/app", "sbom", &refer("a/sbom+json")).await;
    let get = async |query: &str| {
        world
            .ask(ask("GET", format!("/v2/team/app/referrers/{subject}{query}")).by(&world.token))
            .await
            .is(200)
    };
    let all = get("").await;
    assert_eq!(all.header("content-type"), index);
    assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2);
    assert!(!all.has("oci-filters-applied"));
    let signatures = get("?artifactType=a%2Fsig").await;
    assert_eq!(signatures.header("oci-filters-applied"), "artifactType");
    assert_eq!(
        signatures.json(),
        serde_json::json!({"schemaVersion": 2, "mediaType": index, "manifests": [{
            "mediaType": outport_proto::oci::media_type::OCI_MANIFEST, "digest": signature.to_string(), "size": bytes.len(),
            "artifactType": "a/sig", "annotations": {"k": "v"},
        }]})
    );
    assert_eq!(get("?artifactType=a%2Fsbom%2Bjson").await.json()["manifests"].as_array().unwrap().len(), 1);
    let path = format!("/v2/nowhere/referrers/{subject}");
    let empty = world.ask(ask("GET", path).by(&primary_token_for(&world, "nowhere"))).await.is(200);
    assert_eq!(empty.json()["manifests"], serde_json::json!([]));
}
