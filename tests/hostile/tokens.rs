//! Tokens that nobody should believe.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use outport::auth::SigningKey;
use serde_json::{Value, json};

use crate::support::{
    Cluster, Options,
    http::Client,
    session::{SERVICE, Session, anonymous_token, user_token},
};

const REPO: &str = "team/app";

/// A cluster, and the means to sign with its key.
struct World {
    cluster: Cluster,
    pem: String,
    jwk: Value,
}

impl World {
    fn start() -> Self {
        let cluster = Cluster::start(Options { sites: vec!["mumbai"], ..Options::default() });
        Session::user(&cluster, &cluster.primary, &[REPO]).push_image(REPO, "1", &[b"layer"]);
        cluster.wait_complete();
        let pem = fs::read_to_string(cluster.primary.data().join("keys/token-signing-key.pem")).unwrap();
        let jwks = SigningKey::jwks([&SigningKey::from_pem(&pem).unwrap()]).unwrap();
        let jwks: Value = serde_json::from_str(&jwks).unwrap();
        Self { cluster, pem, jwk: jwks["keys"][0].clone() }
    }

    fn header(&self) -> Header {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.jwk["kid"].as_str().unwrap().to_owned());
        header
    }

    /// A token as the cluster itself signs it.
    fn signed(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &EncodingKey::from_ec_pem(self.pem.as_bytes()).unwrap()).unwrap()
    }

    /// Status of reading the tag with this token, which is the same at every node.
    fn read(&self, token: &str) -> u16 {
        let target = format!("/v2/{REPO}/manifests/1");
        let statuses: Vec<u16> = self
            .cluster
            .nodes()
            .map(|node| {
                let response = Session::with_token(&node.registry(), token).once("GET", &target, &[], b"");
                if response.status == 401 {
                    assert_eq!(response.code(), "UNAUTHORIZED");
                    let challenge = response.header("www-authenticate").expect("a challenge");
                    assert!(challenge.starts_with("Bearer realm="), "{challenge}");
                    assert!(!response.text().contains(token), "the answer repeats the token");
                }
                response.status
            })
            .collect();
        assert!(statuses.iter().all(|status| *status == statuses[0]), "{statuses:?}");
        statuses[0]
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn claims() -> Value {
    json!({
        "iss": "outport",
        "sub": "mallory",
        "aud": SERVICE,
        "exp": now() + 200,
        "nbf": now() - 5,
        "iat": now() - 5,
        "access": [{ "type": "repository", "name": REPO, "actions": ["pull"] }],
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => claims.as_object_mut().unwrap().remove(name),
        value => claims.as_object_mut().unwrap().insert(name.to_owned(), value),
    };
    claims
}

fn encode(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

#[test]
fn signatures() {
    let world = World::start();
    let header = world.header();
    let good = world.signed(&header, &claims());
    assert_eq!(world.read(&good), 200, "the test's own tokens are good");
    let [head, body, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    let kid = world.jwk["kid"].clone();

    // No signature, under any spelling of "none".
    for algorithm in ["none", "None", "NONE", "nOnE", ""] {
        let head = encode(&json!({ "alg": algorithm, "typ": "JWT", "kid": kid }));
        for signature in ["", signature, "AA"] {
            assert_eq!(world.read(&format!("{head}.{body}.{signature}")), 401, "{algorithm}");
        }
    }
    // The public key as the secret of an HMAC, in every form it is known in.
    let point: Vec<u8> = ["x", "y"]
        .iter()
        .flat_map(|part| URL_SAFE_NO_PAD.decode(world.jwk[part].as_str().unwrap()).unwrap())
        .collect();
    let uncompressed = [vec![4], point.clone()].concat();
    let public = [world.jwk.to_string().into_bytes(), point, uncompressed, world.pem.clone().into_bytes()];
    for secret in &public {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let mut header = world.header();
            header.alg = algorithm;
            let forged = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret)).unwrap();
            assert_eq!(world.read(&forged), 401, "{algorithm:?}");
        }
    }
    // A key of one's own, brought along in the header or named by it.
    let own = SigningKey::generate().unwrap();
    let own_public: Value = serde_json::from_str(&SigningKey::jwks([&own]).unwrap()).unwrap();
    let own_public = &own_public["keys"][0];
    let own_key = EncodingKey::from_ec_pem(own.to_pem().expose().as_bytes()).unwrap();
    let own_header = |more: Value| {
        let mut header = json!({ "alg": "ES256", "typ": "JWT" });
        header.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let text = format!("{}.{}", encode(&header), encode(&claims()));
        let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &own_key, Algorithm::ES256).unwrap();
        format!("{text}.{signature}")
    };
    for more in [
        json!({}),
        json!({ "kid": kid }),
        json!({ "kid": own_public["kid"] }),
        json!({ "kid": "../../../../dev/null" }),
        json!({ "kid": "' OR 1=1 --" }),
        json!({ "kid": kid, "jwk": own_public }),
        json!({ "jwk": own_public }),
        json!({ "kid": kid, "jku": "http://127.0.0.1:1/keys" }),
        json!({ "kid": kid, "x5u": "http://169.254.169.254/" }),
        json!({ "kid": kid, "x5c": [STANDARD.encode("a certificate")] }),
        json!({ "kid": kid, "crit": ["b64"], "b64": false }),
    ] {
        assert_eq!(world.read(&own_header(more.clone())), 401, "{more}");
    }
    // Cut, changed, extended, or no token at all.
    let mut flipped = signature.to_owned().into_bytes();
    flipped[10] = if flipped[10] == b'A' { b'B' } else { b'A' };
    let other_body = encode(&with("sub", json!("root")));
    for broken in [
        format!("{head}.{body}"),
        format!("{head}.{body}."),
        format!("{head}.{other_body}.{signature}"),
        format!("{head}.{body}.{}", String::from_utf8(flipped).unwrap()),
        format!("{head}.{body}.{signature}.{signature}"),
        format!("{head}.{body}.{}", &signature[..signature.len() - 4]),
        format!("{good}="),
        ".".to_owned(),
        "..".to_owned(),
        "x".repeat(20_000),
        "%00".to_owned(),
    ] {
        assert_eq!(world.read(&broken), 401, "{broken:.60}");
    }
    // The same key, another algorithm in its name.
    let head = encode(&json!({ "alg": "ES384", "typ": "JWT", "kid": kid }));
    assert_eq!(world.read(&format!("{head}.{body}.{signature}")), 401);
}

#[test]
fn claims_have_types_and_are_all_there() {
    let world = World::start();
    let header = world.header();
    let status = |claims: &Value| world.read(&world.signed(&header, claims));
    assert_eq!(status(&claims()), 200);
    for name in ["exp", "nbf", "iat"] {
        let good = claims()[name].as_i64().unwrap();
        for value in [
            Value::Null,
            json!(good.to_string()),
            json!(good as f64 + 0.5),
            json!(-1),
            json!(true),
            json!([good]),
            json!({ "value": good }),
            json!(u64::MAX),
            json!(1e300),
            json!(999_999_999_999_999_u64),
        ] {
            assert_eq!(status(&with(name, value.clone())), 401, "{name}: {value}");
        }
    }
    for (name, values) in [
        (
            "aud",
            vec![
                Value::Null,
                json!("other.test"),
                json!(""),
                json!([]),
                json!(["other.test"]),
                json!(1),
                json!({}),
            ],
        ),
        ("iss", vec![Value::Null, json!("other"), json!(""), json!(["outport"]), json!(1)]),
        ("access", vec![json!("pull"), json!({}), json!([1]), json!([{ "type": "repository" }])]),
        ("outport_offset", vec![json!("x"), json!(1.5), json!("1.2.3")]),
    ] {
        for value in values {
            let status = status(&with(name, value.clone()));
            assert_eq!(status, 401, "{name}: {value}");
        }
    }
    assert_eq!(status(&with("aud", json!(["other.test", SERVICE]))), 200);
    // Times, with the leeway that clocks need and no more.
    let minute = 60;
    for (why, claims, expected) in [
        ("expired", with("exp", json!(now() - 2 * minute)), 401),
        ("expires at the time it began", with("exp", json!(claims()["nbf"])), 200),
        ("not yet valid", with("nbf", json!(now() + 2 * minute)), 401),
        ("issued in the future", with("iat", json!(now() + 2 * minute)), 401),
    ] {
        // A token just past its end is within the leeway of clocks: both are right.
        let got = status(&claims);
        assert!(got == expected || (expected == 200 && got == 401), "{why}: {got}");
    }
}

#[test]
fn scopes_match_whole_names() {
    let world = World::start();
    let header = world.header();
    let access = |name: &str, kind: &str, actions: Value| {
        with("access", json!([{ "type": kind, "name": name, "actions": actions }]))
    };
    let pull = || json!(["pull"]);
    for (claims, allowed) in [
        (access(REPO, "repository", pull()), true),
        (access("team/ap", "repository", pull()), false),
        (access("team/app/x", "repository", pull()), false),
        (access("team", "repository", pull()), false),
        (access("team/*", "repository", pull()), false),
        (access("*", "repository", pull()), false),
        (access("**", "repository", pull()), false),
        (access("TEAM/APP", "repository", pull()), false),
        (access(REPO, "registry", pull()), false),
        (access(REPO, "Repository", pull()), false),
        (access(REPO, "repository", json!(["push"])), false),
        (access(REPO, "repository", json!(["PULL"])), false),
        (access(REPO, "repository", json!([])), false),
        (with("access", json!([])), false),
        (with("access", Value::Null), false),
    ] {
        let status = world.read(&world.signed(&header, &claims));
        assert_eq!(status, if allowed { 200 } else { 401 }, "{}", claims["access"]);
    }
}

#[test]
fn the_token_endpoint_grants_what_the_rules_say() {
    let world = World::start();
    let (cluster, client) = (&world.cluster, Client::plain());
    let primary = cluster.primary.registry();
    // Nobody gets more than pulling, whatever they ask for.
    let token = anonymous_token(cluster, &[REPO]);
    let greedy = format!("/token?service={SERVICE}&scope=repository:{REPO}:pull,push,delete,*");
    let response = client.get(&primary, &greedy, &[]);
    let greedy = response.json()["token"].as_str().unwrap().to_owned();
    for token in [&token, &greedy] {
        let push = Session::with_token(&primary, token);
        assert_eq!(push.once("POST", &format!("/v2/{REPO}/blobs/uploads/"), &[], b"").status, 401);
        assert_eq!(push.once("DELETE", &format!("/v2/{REPO}/manifests/1"), &[], b"").status, 401);
    }
    for (target, authorization, expected) in [
        ("/token", None, 200),
        ("/token?service=other.test", None, 400),
        ("/token?service=outport.test&scope=nonsense", None, 200),
        ("/token?service=outport.test&scope=repository:../../etc:pull", None, 200),
        ("/token?service=outport.test", Some("Basic !!!"), 400),
        ("/token?service=outport.test", Some("Basic ZGVtbw=="), 400),
        ("/token?service=outport.test", Some("Basic ZGVtbzp3cm9uZw=="), 401),
        ("/token?service=outport.test", Some("Basic bm9ib2R5Ongx"), 401),
    ] {
        let headers: Vec<(&str, &str)> =
            authorization.map(|value| ("Authorization", value)).into_iter().collect();
        let response = client.get(&primary, target, &headers);
        let expected_or_bad = response.status == expected || (expected == 200 && response.status == 400);
        assert!(expected_or_bad, "{target} {authorization:?}: {} {}", response.status, response.text());
        if response.status != 200 {
            assert!(!response.code().is_empty());
        }
    }
    // A password is for the token endpoint alone.
    let basic = format!("Basic {}", STANDARD.encode(format!("demo:{}", cluster.password)));
    let read = client.get(&primary, &format!("/v2/{REPO}/manifests/1"), &[("Authorization", &basic)]);
    assert_eq!(read.status, 401);
    assert!(world.read(&user_token(cluster, &[REPO])) == 200);
}
