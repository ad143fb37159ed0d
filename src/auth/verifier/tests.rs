use jsonwebtoken::{Algorithm, EncodingKey};
use outport_proto::{Offset, RepoName};
use serde_json::{Value, json};

use super::*;
use crate::{
    auth::{Access, Action, Grant, Scope, SigningKey, TokenIssuer},
    clock::ManualClock,
};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://primary.example.com/token";
const AUDIENCE: &str = "registry.example.com";

struct World {
    key: SigningKey,
    clock: Arc<ManualClock>,
    verifier: Verifier,
}

fn world() -> World {
    let key = SigningKey::generate().unwrap();
    let clock = ManualClock::at(Timestamp::from_secs(NOW));
    let verifier = Verifier::new(clock.clone(), Leeway::default());
    let jwks = SigningKey::jwks([&key]).unwrap();
    verifier.set_keys(&jwks, ISSUER, AUDIENCE).unwrap();
    World { key, clock, verifier }
}

impl World {
    fn claims(&self) -> Value {
        json!({
            "iss": ISSUER, "sub": "ana", "aud": AUDIENCE, "exp": NOW + 300, "nbf": NOW, "iat": NOW,
            "access": [{"type": "repository", "name": "a/b", "actions": ["pull"]}],
        })
    }

    fn header(&self) -> Value {
        json!({"typ": "JWT", "alg": "ES256", "kid": self.key.id()})
    }

    fn signed(&self, header: &Value, claims: &str) -> String {
        sign(header, claims, &self.key.private, Algorithm::ES256)
    }

    fn verify_claims(&self, claims: &str) -> Result<Caller, TokenError> {
        self.verifier.verify(&self.signed(&self.header(), claims))
    }

    fn with(&self, claim: &str, value: Value) -> Result<Caller, TokenError> {
        let mut claims = self.claims();
        claims[claim] = value;
        self.verify_claims(&claims.to_string())
    }
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn sign(header: &Value, claims: &str, key: &EncodingKey, algorithm: Algorithm) -> String {
    let message = format!("{}.{}", base64(header.to_string()), base64(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

#[test]
fn an_issued_token_says_who_and_what() {
    let world = world();
    let issuer = TokenIssuer::new(world.key.clone(), ISSUER, AUDIENCE);
    let access: Access = Scope::parse_list("repository:a/b:pull,push registry:catalog:*").collect();
    let offset = Some(Offset::new(3, 4711));
    let grant = Grant { subject: "ana", access: &access, offset, life: Duration::from_secs(300) };
    let issued = issuer.issue(&grant, Timestamp::from_micros(NOW * 1_000_000 + 999_999)).unwrap();
    assert_eq!(issued.expires_in, 300);
    for _ in 0..2 {
        let caller = world.verifier.verify(issued.token.expose()).unwrap();
        assert_eq!(&*caller.subject, "ana");
        assert!(!caller.anonymous);
        assert!(caller.access.allows(&repo("a/b"), Action::Push));
        assert!(caller.access.allows_catalog());
        assert_eq!(caller.offset, offset);
        assert_eq!(caller.issued_at, Some(Timestamp::from_secs(NOW)));
    }
    let anonymous = Grant { subject: "", ..grant };
    let token = issuer.issue(&anonymous, Timestamp::from_secs(NOW)).unwrap().token;
    assert!(world.verifier.verify(token.expose()).unwrap().anonymous);
}

#[test]
fn a_token_with_a_hundred_scopes_works_and_a_larger_one_is_not_issued() {
    let world = world();
    let issuer = TokenIssuer::new(world.key.clone(), ISSUER, AUDIENCE);
    let access = |count: usize| -> Access {
        (0..count).map(|n| Scope::repository(&repo(&format!("team/application-{n}")), Action::Pull)).collect()
    };
    let issue = |access: &Access| {
        let grant = Grant { subject: "ana", access, offset: None, life: Duration::from_secs(60) };
        issuer.issue(&grant, Timestamp::from_secs(NOW))
    };
    let token = issue(&access(100)).unwrap().token;
    let caller = world.verifier.verify(token.expose()).unwrap();
    assert!(caller.access.allows(&repo("team/application-99"), Action::Pull));
    assert_eq!(issue(&access(1000)).err(), Some(TokenError::TooLong));
    let long = format!("{}{}", token.expose(), "A".repeat(TOKEN_BYTES_MAX));
    assert_eq!(world.verifier.verify(&long), Err(TokenError::TooLong));
}

#[test]
fn only_configured_keys_and_their_algorithm_are_believed() {
    let world = world();
    let claims = world.claims().to_string();
    let stranger = SigningKey::generate().unwrap();
    let stranger_jwk: Value = serde_json::from_str(&SigningKey::jwks([&stranger]).unwrap()).unwrap();
    let stranger_jwk = stranger_jwk["keys"][0].clone();
    let by_stranger = |header: &Value| sign(header, &claims, &stranger.private, Algorithm::ES256);
    let header_with = |name: &str, value: Value| {
        let mut header = world.header();
        header[name] = value;
        header
    };
    assert!(world.verifier.verify(&world.signed(&world.header(), &claims)).is_ok());

    let unsigned =
        |alg: &str| format!("{}.{}.", base64(header_with("alg", alg.into()).to_string()), base64(&claims));
    for alg in ["none", "None", "NONE", ""] {
        assert_eq!(world.verifier.verify(&unsigned(alg)), Err(TokenError::Malformed), "{alg}");
    }
    assert_eq!(world.verifier.verify(&unsigned("ES256")), Err(TokenError::Signature));

    let jwks = SigningKey::jwks([&world.key]).unwrap();
    let jwk: Value = serde_json::from_str(&jwks).unwrap();
    let public_bytes = [jwks.as_bytes(), jwk["keys"][0]["x"].as_str().unwrap().as_bytes()];
    for (alg, algorithm) in
        [("HS256", Algorithm::HS256), ("HS384", Algorithm::HS384), ("HS512", Algorithm::HS512)]
    {
        for bytes in public_bytes {
            let key = EncodingKey::from_secret(bytes);
            let token = sign(&header_with("alg", alg.into()), &claims, &key, algorithm);
            assert_eq!(world.verifier.verify(&token), Err(TokenError::Algorithm), "{alg}");
        }
    }
    for alg in ["ES384", "RS256", "PS256", "EdDSA"] {
        let token = world.signed(&header_with("alg", alg.into()), &claims);
        assert_eq!(world.verifier.verify(&token), Err(TokenError::Algorithm), "{alg}");
    }

    assert_eq!(world.verifier.verify(&by_stranger(&world.header())), Err(TokenError::Signature));
    for (name, value) in [
        ("jwk", stranger_jwk),
        ("jku", json!("https://evil.example.com/jwks")),
        ("x5u", json!("https://evil.example.com/chain")),
        ("x5c", json!(["MIIBszCCAVmgAwIBAgIU"])),
    ] {
        let header = header_with(name, value);
        assert_eq!(world.verifier.verify(&by_stranger(&header)), Err(TokenError::Signature), "{name}");
        assert!(world.verifier.verify(&world.signed(&header, &claims)).is_ok(), "{name} is ignored");
    }

    for kid in ["", "../../key", stranger.id(), "0", "a\0b", "' or 1=1"] {
        let header = header_with("kid", kid.into());
        assert_eq!(
            world.verifier.verify(&world.signed(&header, &claims)),
            Err(TokenError::UnknownKey),
            "{kid}"
        );
        assert_eq!(world.verifier.verify(&by_stranger(&header)), Err(TokenError::UnknownKey), "{kid}");
    }
    for kid in [json!(1), json!(["a"]), json!({}), json!(true)] {
        let token = world.signed(&header_with("kid", kid.clone()), &claims);
        assert_eq!(world.verifier.verify(&token), Err(TokenError::Malformed), "{kid}");
    }
    let mut nameless = world.header();
    nameless.as_object_mut().unwrap().remove("kid");
    assert_eq!(world.verifier.verify(&world.signed(&nameless, &claims)), Err(TokenError::UnknownKey));
    let critical = header_with("crit", json!(["b64"]));
    assert_eq!(world.verifier.verify(&world.signed(&critical, &claims)), Err(TokenError::Malformed));
}

#[test]
fn no_part_of_a_token_can_be_changed() {
    let world = world();
    let token = world.signed(&world.header(), &world.claims().to_string());
    assert!(world.verifier.verify(&token).is_ok());
    for index in (0..token.len()).step_by(7) {
        let mut bytes = token.clone().into_bytes();
        bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(world.verifier.verify(&changed).is_err(), "byte {index}");
    }
    for bad in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "a.b",
        &token[..token.len() - 1],
        &format!("{token}."),
        &format!(" {token}"),
    ] {
        assert!(world.verifier.verify(bad).is_err(), "{bad}");
    }
    assert!(world.verifier.verify(&token).is_ok());
}

#[test]
fn times_must_be_there_and_be_integers() {
    let world = world();
    for claim in ["exp", "nbf", "iat"] {
        let good = if claim == "exp" { NOW + 300 } else { NOW };
        assert!(world.with(claim, json!(good)).is_ok(), "{claim}");
        for bad in [
            json!(good.to_string()),
            json!(good as f64),
            json!(good as f64 + 0.5),
            json!(-1),
            json!(null),
            json!(true),
            json!([good]),
            json!({"seconds": good}),
            json!(CLAIM_SECONDS_MAX + 1),
            json!(u64::MAX),
            json!(i64::MAX),
            json!(1e300),
        ] {
            assert_eq!(world.with(claim, bad.clone()), Err(TokenError::Claims), "{claim} {bad}");
        }
        let text = world.claims().to_string();
        let written = format!("\"{claim}\":{good}");
        assert!(text.contains(&written));
        for bad in ["18446744073709551616", "1e999", "1.8e9", "01800000300", "Infinity", "NaN", ""] {
            let text = text.replace(&written, &format!("\"{claim}\":{bad}"));
            assert_eq!(world.verify_claims(&text), Err(TokenError::Claims), "{claim} {bad}");
        }
        let twice = text.replace(&written, &format!("{written},{written}"));
        assert_eq!(world.verify_claims(&twice), Err(TokenError::Claims), "{claim} twice");
    }
}

#[test]
fn required_claims_cannot_be_left_out() {
    let world = world();
    for claim in ["iss", "aud", "exp", "nbf", "iat"] {
        let mut claims = world.claims();
        claims.as_object_mut().unwrap().remove(claim);
        assert_eq!(world.verify_claims(&claims.to_string()), Err(TokenError::Claims), "{claim}");
    }
    for (claim, bad) in [
        ("access", json!("repository:a/b:pull")),
        ("access", json!([{"type": "repository", "name": "a/b", "actions": "pull"}])),
        ("access", json!([{"name": "a/b", "actions": ["pull"]}])),
        ("sub", json!(7)),
        ("outport_offset", json!(7)),
        ("outport_offset", json!("7")),
        ("outport_offset", json!("1.x")),
    ] {
        assert_eq!(world.with(claim, bad.clone()), Err(TokenError::Claims), "{claim} {bad}");
    }
    let foreign = world.with("access", json!(null)).unwrap();
    assert!(foreign.access.is_empty() && foreign.offset.is_none());
}

#[test]
fn issuer_and_audience_are_exact() {
    let world = world();
    for bad in [
        "",
        "https://primary.example.com/token/",
        "https://PRIMARY.example.com/token",
        "https://primary.example.com",
    ] {
        assert_eq!(world.with("iss", json!(bad)), Err(TokenError::Issuer), "{bad}");
    }
    assert_eq!(world.with("iss", json!([ISSUER])), Err(TokenError::Claims));
    for bad in [json!(""), json!("registry.example.com."), json!("example.com"), json!([]), json!(["a", "b"])]
    {
        assert_eq!(world.with("aud", bad.clone()), Err(TokenError::Audience), "{bad}");
    }
    assert_eq!(world.with("aud", json!(1)), Err(TokenError::Claims));
    assert!(world.with("aud", json!(["other", AUDIENCE])).is_ok());
}

#[test]
fn leeway_ends_where_it_says() {
    let world = world();
    let leeway = Leeway { expiry: Duration::from_secs(2), not_before: Duration::from_secs(5) };
    let lenient = Verifier::new(world.clock.clone(), leeway);
    lenient.set_keys(&SigningKey::jwks([&world.key]).unwrap(), ISSUER, AUDIENCE).unwrap();
    let mut claims = world.claims();
    claims["nbf"] = json!(NOW + 10);
    let token = world.signed(&world.header(), &claims.to_string());
    let exp = NOW + 300;
    for (micros, strict, lenient_answer) in [
        ((NOW + 5) * 1_000_000 - 1, Err(TokenError::NotYetValid), Err(TokenError::NotYetValid)),
        ((NOW + 5) * 1_000_000, Ok(()), Ok(())),
        (exp * 1_000_000 - 1, Ok(()), Ok(())),
        (exp * 1_000_000, Err(TokenError::Expired), Ok(())),
        ((exp + 2) * 1_000_000 - 1, Err(TokenError::Expired), Ok(())),
        ((exp + 2) * 1_000_000, Err(TokenError::Expired), Err(TokenError::Expired)),
    ] {
        world.clock.set(Timestamp::from_micros(micros));
        assert_eq!(world.verifier.verify(&token).map(drop), strict, "strict at {micros}");
        assert_eq!(lenient.verify(&token).map(drop), lenient_answer, "lenient at {micros}");
    }
    world.clock.set(Timestamp::from_secs(NOW));
    assert_eq!(world.verifier.verify(&token), Err(TokenError::NotYetValid), "even when it was seen valid");
    assert_eq!(world.with("iat", json!(NOW + 6)), Err(TokenError::NotYetValid));
    assert!(world.with("iat", json!(NOW + 5)).is_ok());
}

#[test]
fn replaced_keys_take_their_tokens_with_them() {
    let world = world();
    let token = world.signed(&world.header(), &world.claims().to_string());
    assert!(world.verifier.verify(&token).is_ok());
    let next = SigningKey::generate().unwrap();
    let both = SigningKey::jwks([&next, &world.key]).unwrap();
    world.verifier.set_keys(&both, ISSUER, AUDIENCE).unwrap();
    assert!(world.verifier.verify(&token).is_ok(), "rotation keeps the older key for a while");
    let next_only = SigningKey::jwks([&next]).unwrap();
    assert_eq!(world.verifier.set_keys("{", ISSUER, AUDIENCE), Err(KeySetError::Malformed));
    assert!(world.verifier.verify(&token).is_ok(), "a bad set changes nothing");
    world.verifier.set_keys(&next_only, ISSUER, AUDIENCE).unwrap();
    assert_eq!(world.verifier.verify(&token), Err(TokenError::UnknownKey));

    let fresh = Verifier::new(world.clock.clone(), Leeway::default());
    assert_eq!(fresh.verify(&token), Err(TokenError::NoKeys));
}

#[test]
fn key_sets_are_read_with_care() {
    let read = |keys: Value| parse_keys(&json!({ "keys": keys }).to_string()).map(|keys| keys.len());
    let key = SigningKey::generate().unwrap();
    let jwks: Value = serde_json::from_str(&SigningKey::jwks([&key]).unwrap()).unwrap();
    let good = jwks["keys"][0].clone();
    let with = |name: &str, value: Value| {
        let mut jwk = good.clone();
        jwk[name] = value;
        jwk
    };
    assert_eq!(read(json!([good])), Ok(1));
    assert_eq!(read(json!([good, good])), Err(KeySetError::Duplicate(key.id().to_owned())));
    assert_eq!(read(json!([with("use", json!("enc"))])), Ok(0));
    assert_eq!(read(json!([with("alg", json!("HS256"))])), Ok(0));
    assert_eq!(read(json!([with("alg", json!("ES384"))])), Ok(0));
    assert_eq!(read(json!([{"kty": "quantum", "kid": "q"}])), Ok(0));
    assert_eq!(read(json!([{"kty": "oct", "kid": "s", "k": "AAAA"}])), Err(KeySetError::Symmetric));
    let mut nameless = good.clone();
    nameless.as_object_mut().unwrap().remove("kid");
    assert_eq!(read(json!([nameless])), Err(KeySetError::NoKeyId));
}
