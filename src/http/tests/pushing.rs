use outport_proto::Algorithm;

use super::*;

const CONTENT: &[u8] = b"the quick brown fox jumps over the lazy dog";
const IMAGE: &str = outport_proto::oci::media_type::OCI_MANIFEST;

struct Pushing {
    primary: Primary,
    token: String,
}

impl Pushing {
    async fn start() -> Self {
        let primary = Primary::start().await;
        let token = primary.token(&["team/app"], Actions::ALL);
        Self { primary, token }
    }

    /// Begins an upload; path and query to go on at.
    async fn upload(&self) -> String {
        let answer =
            self.primary.ask(ask("POST", "/v2/team/app/blobs/uploads/").by(&self.token)).await.is(202);
        assert_eq!(answer.header("range"), "0-0");
        let path = self.primary.path_of(answer.location());
        assert!(path.contains(answer.header("docker-upload-uuid")));
        path
    }

    async fn ask(&self, ask: Ask) -> Answer {
        self.primary.ask(ask).await
    }

    async fn pulls(&self, digest: &Digest) -> Bytes {
        let answer = self.ask(ask("GET", format!("/v2/team/app/blobs/{digest}")).by(&self.token)).await;
        answer.is(200).body
    }

    fn put(&self, reference: impl std::fmt::Display, content_type: &str) -> Ask {
        ask("PUT", format!("/v2/team/app/manifests/{reference}"))
            .by(&self.token)
            .with("content-type", content_type)
    }
}

fn patch(path: &str, range: &str, bytes: &'static [u8]) -> Ask {
    ask("PATCH", path).with("content-range", range).body(bytes)
}

#[tokio::test]
async fn every_way_to_push_a_blob() {
    let world = Pushing::start().await;
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, CONTENT);
        let blob = format!("{}/v2/team/app/blobs/{digest}", world.primary.url);
        let whole = format!("/v2/team/app/blobs/uploads/?digest={}", digest.to_string().replace(':', "%3A"));
        let put = |path: String| ask("PUT", format!("{path}&digest={digest}"));
        let pieces = || CONTENT.chunks(10).map(Bytes::from_static);

        let answers = [
            world.ask(ask("POST", whole).by(&world.token).body(CONTENT)).await,
            world.ask(put(world.upload().await).body(CONTENT)).await,
            world.ask(put(world.upload().await).chunks(pieces())).await,
            {
                let path = world.upload().await;
                let streamed = world.ask(ask("PATCH", &path).chunks(pieces())).await.is(202);
                assert_eq!(streamed.header("range"), "0-42");
                world.ask(put(world.primary.path_of(streamed.location())).body("")).await
            },
            {
                let path = world.upload().await;
                world.ask(patch(&path, "0-19", &CONTENT[..20])).await.is(202);
                world.ask(put(path).with("content-range", "20-42").body(&CONTENT[20..])).await
            },
        ];
        for answer in answers {
            let answer = answer.is(201);
            assert_eq!(answer.location(), blob);
            assert_eq!(answer.header("docker-content-digest"), digest.to_string());
            assert!(answer.has("outport-offset"));
            assert_eq!(world.pulls(&digest).await, CONTENT);
        }
    }
}

#[tokio::test]
async fn the_empty_blob() {
    let world = Pushing::start().await;
    let empty = Digest::sha256(b"");
    let put = |path: String| ask("PUT", format!("{path}&digest={empty}"));
    world.ask(put(world.upload().await).chunks([])).await.is(201);
    world.ask(put(world.upload().await)).await.is(201);
    let head = world.ask(ask("HEAD", format!("/v2/team/app/blobs/{empty}")).by(&world.token)).await.is(200);
    assert_eq!(head.header("content-length"), "0");
}

#[tokio::test]
async fn chunks_out_of_order_change_nothing() {
    let world = Pushing::start().await;
    let path = world.upload().await;
    let status = async |range: &str| {
        let answer = world.ask(ask("GET", &path)).await.is(204);
        assert_eq!(answer.header("range"), range);
        world.primary.path_of(answer.location());
    };
    let early = world.ask(patch(&path, "20-42", &CONTENT[20..])).await;
    early.refused(416, "BLOB_UPLOAD_INVALID");
    assert_eq!(early.header("range"), "0-0");
    status("0-0").await;
    world.ask(patch(&path, "0-19", &CONTENT[..20])).await.is(202);
    let digest = Digest::sha256(CONTENT);
    let put = |range| ask("PUT", format!("{path}&digest={digest}")).with("content-range", range);
    let again = world.ask(put("0-22").body(&CONTENT[20..])).await;
    again.refused(416, "BLOB_UPLOAD_INVALID");
    status("0-19").await;
    world.primary.path_of(again.location());
    world.ask(put("x-y").body(&CONTENT[20..])).await.refused(400, "UNSUPPORTED");
    world.ask(put("20-50").body(&CONTENT[20..])).await.refused(400, "SIZE_INVALID");
    status("0-19").await;
    world.ask(put("20-42").body(&CONTENT[20..])).await.is(201);
    assert_eq!(world.pulls(&digest).await, CONTENT);
    world.ask(ask("GET", &path)).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn what_does_not_fit_its_digest_is_refused() {
    let world = Pushing::start().await;
    let digest = Digest::sha256(CONTENT);
    let put = ask("PUT", format!("{}&digest={digest}", world.upload().await)).body("something else");
    world.ask(put).await.refused(400, "DIGEST_INVALID");
    let whole =
        ask("POST", format!("/v2/team/app/blobs/uploads/?digest={digest}")).by(&world.token).body("else");
    world.ask(whole).await.refused(400, "DIGEST_INVALID");
    let get = ask("GET", format!("/v2/team/app/blobs/{digest}")).by(&world.token);
    world.ask(get).await.refused(404, "BLOB_UNKNOWN");
    let path = world.upload().await;
    world.ask(ask("PUT", &path).body(CONTENT)).await.refused(400, "DIGEST_INVALID");
    world.ask(ask("PUT", format!("{path}&digest=sha256:x"))).await.refused(400, "DIGEST_INVALID");
    world.ask(ask("DELETE", &path)).await.is(204);
    world.ask(ask("DELETE", &path)).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
}

#[tokio::test]
async fn upload_state_is_the_right_to_one_upload() {
    let world = Pushing::start().await;
    let (path, other) = (world.upload().await, world.upload().await);
    let (base, state) = path.split_once("?state=").unwrap();
    let (_, other_state) = other.split_once("?state=").unwrap();
    // Clients add parameters, sort and encode anew.
    world.ask(ask("GET", format!("{base}?a=b&ns=registry.example.com&state={state}&z=%3A"))).await.is(204);
    for forged in [other_state, "", "x", &format!("{state}A"), &state[1..]] {
        for method in ["GET", "PATCH", "DELETE"] {
            let answer = world.ask(ask(method, format!("{base}?state={forged}"))).await;
            answer.refused(403, "DENIED");
            assert!(!answer.has("www-authenticate"));
        }
    }
    let in_other_repository = path.replace("team/app", "team/other");
    world.ask(ask("GET", in_other_repository)).await.refused(403, "DENIED");
    world.ask(ask("GET", base)).await.refused(401, "UNAUTHORIZED");
    world.ask(ask("GET", base).by(&world.token)).await.is(204);
    world.ask(ask("GET", base).by(&world.primary.token(&["team/app"], Actions::PULL))).await.is(401);
    world.primary.clock.set(NOW.plus(std::time::Duration::from_secs(48 * 3600)));
    world.ask(ask("GET", &path)).await.refused(403, "DENIED");
}

#[tokio::test]
async fn mounts() {
    let world = Pushing::start().await;
    let both = world.primary.token(&["team/app", "base"], Actions::ALL);
    let digest = push_blob(&world.primary, &both, "base", CONTENT).await;
    let mount = |digest: &Digest, from: &str| {
        ask("POST", format!("/v2/team/app/blobs/uploads/?mount={digest}{from}")).by(&both)
    };
    let linked = world.ask(mount(&digest, "&from=base")).await.is(201);
    assert_eq!(linked.header("docker-content-digest"), digest.to_string());
    assert_eq!(world.pulls(&digest).await, CONTENT);
    let missing = world.ask(mount(&Digest::sha256(b"missing"), "&from=base")).await.is(202);
    let put = format!("{}&digest={}", world.primary.path_of(missing.location()), Digest::sha256(b"missing"));
    world.ask(ask("PUT", put).body("missing")).await.is(201);
}

#[tokio::test]
async fn manifests_up_to_their_limit() {
    let world = Pushing::start().await;
    let config = push_blob(&world.primary, &world.token, "team/app", b"config").await;
    let max = outport_proto::oci::MANIFEST_BYTES_MAX;
    let padded = |length: usize| {
        let bare = image(&config, r#","annotations":{"a":""}"#);
        image(&config, &format!(r#","annotations":{{"a":"{}"}}"#, "x".repeat(length - bare.len())))
    };
    let pieces = |text: String| {
        let bytes = Bytes::from(text);
        (0..bytes.len())
            .step_by(100_000)
            .map(move |at| bytes.slice(at..bytes.len().min(at + 100_000)))
            .collect::<Vec<_>>()
    };
    world.ask(world.put("most", IMAGE).body(padded(max))).await.is(201);
    world.ask(world.put("most", IMAGE).chunks(pieces(padded(max)))).await.is(201);
    world.ask(world.put("more", IMAGE).body(padded(max + 1))).await.refused(413, "SIZE_INVALID");
    world.ask(world.put("more", IMAGE).chunks(pieces(padded(max + 1)))).await.refused(413, "SIZE_INVALID");
    world
        .ask(ask("GET", "/v2/team/app/manifests/more").by(&world.token))
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_manifest_by_digest_with_tags_and_subject() {
    let world = Pushing::start().await;
    let config = push_blob(&world.primary, &world.token, "team/app", b"config").await;
    let subject = Digest::sha256(b"not here");
    let bytes = image(&config, &format!(r#","subject":{{"mediaType":"m","digest":"{subject}","size":3}}"#));
    let digest = Digest::of(Algorithm::Sha512, bytes.as_bytes());
    let put = world.put(format_args!("{digest}?tag=one&tag=two"), &format!("{IMAGE}; charset=utf-8"));
    let answer = world.ask(put.body(bytes.clone())).await.is(201);
    assert_eq!(answer.header("oci-subject"), subject.to_string());
    assert_eq!(answer.location(), format!("{}/v2/team/app/manifests/{digest}", world.primary.url));
    let tags: Vec<_> = answer.headers.get_all("oci-tag").iter().map(|tag| tag.to_str().unwrap()).collect();
    assert_eq!(tags, ["one", "two"]);
    let head = world.ask(ask("HEAD", "/v2/team/app/manifests/two").by(&world.token)).await.is(200);
    assert_eq!(head.header("docker-content-digest"), digest.to_string());
    assert_eq!(head.header("content-type"), IMAGE);
    let changed = world.put(digest, IMAGE).body(format!("{bytes}  "));
    world.ask(changed).await.refused(400, "DIGEST_INVALID");
    world.ask(world.put("sha256:baddigest", IMAGE).body(bytes)).await.refused(400, "DIGEST_INVALID");
    world.ask(world.put("broken", IMAGE).body("{")).await.refused(400, "MANIFEST_INVALID");
}

#[tokio::test]
async fn deletes_are_seen_at_once() {
    let world = Pushing::start().await;
    let (digest, _) = push_image(&world.primary, &world.token, "team/app", "one", "").await;
    let delete = |what: String| ask("DELETE", format!("/v2/team/app/{what}")).by(&world.token);
    let get = |what: String| ask("GET", format!("/v2/team/app/{what}")).by(&world.token);
    world.ask(delete("manifests/one".to_owned())).await.is(202);
    world.ask(get("manifests/one".to_owned())).await.refused(404, "MANIFEST_UNKNOWN");
    world.ask(get(format!("manifests/{digest}"))).await.is(200);
    assert!(world.ask(delete(format!("manifests/{digest}"))).await.is(202).has("outport-offset"));
    world.ask(get(format!("manifests/{digest}"))).await.refused(404, "MANIFEST_UNKNOWN");
    world.ask(delete(format!("manifests/{digest}"))).await.refused(404, "MANIFEST_UNKNOWN");
    let config = Digest::sha256(b"one");
    world.ask(delete(format!("blobs/{config}"))).await.is(202);
    world.ask(get(format!("blobs/{config}"))).await.refused(404, "BLOB_UNKNOWN");
}
