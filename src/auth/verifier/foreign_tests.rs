//! Tokens of other issuers, with keys and certificates made here.

use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::EncodingKey;
use outport_proto::RepoName;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256,
    PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData as _,
};
use serde_json::{Value, json};

use super::*;
use crate::{
    auth::{Action, IssuerKeys},
    clock::ManualClock,
};

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "gitlab-issuer";
const AUDIENCE: &str = "container_registry";

/// Somebody who issues tokens.
struct Signer {
    pair: KeyPair,
    key: EncodingKey,
    algorithm: Algorithm,
}

impl Signer {
    fn ecdsa() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { pair, key, algorithm: Algorithm::ES256 }
    }

    fn rsa() -> Self {
        let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap();
        let key = EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { pair, key, algorithm: Algorithm::RS256 }
    }

    fn ed25519() -> Self {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap();
        Self { pair, key, algorithm: Algorithm::EdDSA }
    }

    fn public(&self) -> PublicKey {
        PublicKey::of_spki(&self.pair.subject_public_key_info()).unwrap()
    }

    fn certificate(&self) -> Certificate {
        CertificateParams::default().self_signed(&self.pair).unwrap()
    }

    fn token(&self, header: Value, claims: &Value) -> String {
        use base64::Engine as _;
        let mut header = header;
        header["typ"] = json!("JWT");
        header["alg"] = json!(format!("{:?}", self.algorithm));
        let encode = |text: String| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }
}

fn claims() -> Value {
    json!({
        "jti": "1", "iss": ISSUER, "sub": "ana", "aud": AUDIENCE,
        "iat": NOW, "nbf": NOW - 5, "exp": NOW + 300,
        "access": [
            {"type": "repository", "name": "team/app", "actions": ["pull", "push"]},
            {"type": "repository", "name": "team/base", "actions": ["*"]},
            {"type": "repository", "class": "plugin", "name": "team/plugin", "actions": ["pull"]},
            {"type": "repository(plugin)", "name": "team/odd", "actions": ["pull"]},
            {"type": "repository", "name": "team/nothing", "actions": null},
            {"type": "registry", "name": "catalog", "actions": ["*"]},
        ],
    })
}

fn clock() -> Arc<ManualClock> {
    ManualClock::at(Timestamp::from_secs(NOW))
}

fn trusting_at(clock: Arc<ManualClock>, keys: &IssuerKeys) -> Verifier {
    let verifier = Verifier::new(clock, Leeway::default());
    verifier.set_foreign_keys(&keys.jwks, &keys.roots, ISSUER, AUDIENCE).unwrap();
    verifier
}

fn trusting(keys: &IssuerKeys) -> Verifier {
    trusting_at(clock(), keys)
}

fn bundle(text: &str) -> IssuerKeys {
    IssuerKeys::read(Some(text), None).unwrap()
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

#[test]
fn keys_of_every_kind_are_found_by_every_name() {
    for signer in [Signer::rsa(), Signer::ecdsa(), Signer::ed25519()] {
        let verifier = trusting(&bundle(&signer.certificate().pem()));
        let public = signer.public();
        for kid in [public.libtrust_id().unwrap(), public.thumbprint().unwrap()] {
            let caller = verifier.verify(&signer.token(json!({ "kid": kid }), &claims())).unwrap();
            assert_eq!(&*caller.subject, "ana");
        }
        let bare = trusting(&bundle(&signer.pair.public_key_pem()));
        assert!(bare.verify(&signer.token(json!({}), &claims())).is_ok(), "the only key needs no name");
        let jwks = serde_json::to_string(&JwkSet { keys: vec![public.named("2024-05")] }).unwrap();
        let set = trusting(&IssuerKeys::read(None, Some(&jwks)).unwrap());
        for kid in ["2024-05".to_owned(), public.libtrust_id().unwrap()] {
            assert!(set.verify(&signer.token(json!({ "kid": kid }), &claims())).is_ok());
        }
        let stranger = Signer::ecdsa();
        let kid = public.libtrust_id().unwrap();
        for header in [json!({ "kid": kid }), json!({ "kid": "other" }), json!({})] {
            assert!(verifier.verify(&stranger.token(header, &claims())).is_err());
        }
    }
}

#[test]
fn without_a_name_there_must_be_one_key_alone() {
    let (one, two) = (Signer::ecdsa(), Signer::ecdsa());
    let verifier = trusting(&bundle(&format!("{}{}", one.pair.public_key_pem(), two.pair.public_key_pem())));
    for signer in [&one, &two] {
        assert_eq!(verifier.verify(&signer.token(json!({}), &claims())), Err(TokenError::UnknownKey));
        let kid = json!({ "kid": signer.public().thumbprint() });
        assert!(verifier.verify(&signer.token(kid, &claims())).is_ok());
    }
}

#[test]
fn access_is_what_the_registry_takes_it_for() {
    let signer = Signer::ecdsa();
    let verifier = trusting(&bundle(&signer.certificate().pem()));
    let caller = verifier.verify(&signer.token(json!({}), &claims())).unwrap();
    let access = &caller.access;
    assert!(
        access.allows(&repo("team/app"), Action::Push) && !access.allows(&repo("team/app"), Action::Delete)
    );
    assert!(access.allows(&repo("team/base"), Action::Delete));
    assert!(access.allows(&repo("team/plugin"), Action::Pull), "a class is no part of the name");
    assert!(!access.allows(&repo("team/odd"), Action::Pull), "but it is one of the type");
    assert!(!access.allows(&repo("team/nothing"), Action::Pull) && access.allows_catalog());
    assert_eq!((caller.issued_at, caller.offset), (Some(Timestamp::from_secs(NOW)), None));
}

#[test]
fn what_issuers_leave_out_may_be_missing_and_nothing_else() {
    let signer = Signer::ecdsa();
    let verifier = trusting(&bundle(&signer.certificate().pem()));
    let without = |names: &[&str]| {
        let mut claims = claims();
        names.iter().for_each(|name| drop(claims.as_object_mut().unwrap().remove(*name)));
        verifier.verify(&signer.token(json!({}), &claims))
    };
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        verifier.verify(&signer.token(json!({}), &claims))
    };
    let seen = without(&["iat", "nbf", "jti", "sub", "access"]).unwrap();
    assert!(seen.anonymous && seen.access.is_empty());
    assert_eq!(seen.issued_at, Some(Timestamp::from_secs(NOW)), "issued before it was seen");
    assert!(with("sub", json!(null)).unwrap().anonymous);
    assert!(with("aud", json!([AUDIENCE])).is_ok());
    for name in ["exp", "iss", "aud"] {
        assert_eq!(without(&[name]), Err(TokenError::Claims), "{name}");
    }
    assert_eq!(with("iss", json!("outport")), Err(TokenError::Issuer));
    assert_eq!(with("aud", json!("other")), Err(TokenError::Audience));
    assert_eq!(with("exp", json!(NOW)), Err(TokenError::Expired));
    assert!(with("nbf", json!(NOW + 60)).is_ok(), "clocks may differ as far as registries allow");
    assert_eq!(with("nbf", json!(NOW + 61)), Err(TokenError::NotYetValid));
    assert_eq!(with("outport_offset", json!("1.9")).unwrap().offset, None, "not theirs to say");
    for name in ["exp", "nbf", "iat"] {
        for bad in [json!(NOW as f64 + 0.5), json!((NOW + 9).to_string()), json!(CLAIM_SECONDS_MAX + 1)] {
            assert_eq!(with(name, bad.clone()), Err(TokenError::Claims), "{name} {bad}");
        }
    }
}

/// An authority, and a certificate of it for a signer.
struct Chain {
    root: Certificate,
    leaf: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Chain {
    fn for_signer(signer: &Signer, days: std::ops::Range<i64>) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "token authority");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf = Self::leaf(signer, &issuer, days);
        Self { root, leaf, issuer }
    }

    fn leaf(signer: &Signer, issuer: &Issuer<'static, KeyPair>, days: std::ops::Range<i64>) -> Certificate {
        let mut params = CertificateParams::default();
        let now = time::OffsetDateTime::from_unix_timestamp(NOW as i64).unwrap();
        params.not_before = now + time::Duration::days(days.start);
        params.not_after = now + time::Duration::days(days.end);
        params.signed_by(&signer.pair, issuer).unwrap()
    }
}

fn x5c(certificates: &[&Certificate]) -> Value {
    use base64::Engine as _;
    let encoded: Vec<_> = certificates.iter().map(|certificate| STANDARD.encode(certificate.der())).collect();
    json!({ "x5c": encoded })
}

#[test]
fn a_chain_in_the_header_must_lead_to_the_bundle() {
    let signer = Signer::ecdsa();
    let chain = Chain::for_signer(&signer, -1..1);
    let verifier = trusting(&bundle(&chain.root.pem()));
    assert!(verifier.verify(&signer.token(x5c(&[&chain.leaf]), &claims())).is_ok());
    assert!(verifier.verify(&signer.token(x5c(&[&chain.leaf, &chain.root]), &claims())).is_ok());
    let mut named = x5c(&[&chain.leaf]);
    named["kid"] = json!("of no key");
    assert!(verifier.verify(&signer.token(named, &claims())).is_ok());

    let refused = |header: Value, signer: &Signer, why: TokenError| {
        assert_eq!(verifier.verify(&signer.token(header, &claims())), Err(why));
    };
    let stranger = Signer::ecdsa();
    refused(x5c(&[&chain.leaf]), &stranger, TokenError::Signature);
    let elsewhere = Chain::for_signer(&stranger, -1..1);
    refused(x5c(&[&elsewhere.leaf, &elsewhere.root]), &stranger, TokenError::UnknownKey);
    refused(x5c(&[&elsewhere.leaf, &chain.leaf, &chain.root]), &stranger, TokenError::UnknownKey);
    refused(x5c(&[&stranger.certificate()]), &stranger, TokenError::UnknownKey);
    let expired = Chain::leaf(&signer, &chain.issuer, -2..-1);
    refused(x5c(&[&expired]), &signer, TokenError::UnknownKey);
    let to_come = Chain::leaf(&signer, &chain.issuer, 1..2);
    refused(x5c(&[&to_come]), &signer, TokenError::UnknownKey);
    refused(json!({ "x5c": [] }), &signer, TokenError::UnknownKey);
    refused(json!({ "x5c": ["AAAA"] }), &signer, TokenError::UnknownKey);
    refused(json!({ "x5c": ["no base 64"] }), &signer, TokenError::UnknownKey);
    let long: Vec<_> = std::iter::once(&chain.leaf).chain([&chain.root; 8]).collect();
    refused(x5c(&long), &signer, TokenError::UnknownKey);

    // Of the header only what was configured counts.
    let bare = trusting(&bundle(&stranger.pair.public_key_pem()));
    let refusal = bare.verify(&signer.token(x5c(&[&chain.leaf]), &claims()));
    assert_eq!(refusal, Err(TokenError::Signature), "without a bundle the only key is tried");
}

#[test]
fn an_issuers_own_certificate_is_a_chain_of_one() {
    for is_authority in [false, true] {
        let signer = Signer::rsa();
        let mut params = CertificateParams::default();
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let certificate = params.self_signed(&signer.pair).unwrap();
        let verifier = trusting(&bundle(&certificate.pem()));
        assert!(verifier.verify(&signer.token(x5c(&[&certificate]), &claims())).is_ok(), "{is_authority}");
    }
}

#[test]
fn keys_that_went_are_not_believed_any_longer() {
    let (old, new) = (Signer::ecdsa(), Signer::ecdsa());
    let verifier = trusting(&bundle(&old.certificate().pem()));
    let token = |signer: &Signer| signer.token(json!({ "kid": signer.public().libtrust_id() }), &claims());
    let by_chain = old.token(x5c(&[&old.certificate()]), &claims());
    assert!(verifier.verify(&token(&old)).is_ok());
    assert_eq!(verifier.verify(&token(&new)), Err(TokenError::UnknownKey));
    let next = bundle(&new.certificate().pem());
    verifier.set_foreign_keys(&next.jwks, &next.roots, ISSUER, AUDIENCE).unwrap();
    assert!(verifier.verify(&token(&new)).is_ok());
    for gone in [token(&old), by_chain] {
        assert_eq!(verifier.verify(&gone), Err(TokenError::UnknownKey));
    }
    let none = IssuerKeys::read(None, None).unwrap();
    verifier.set_foreign_keys(&none.jwks, &none.roots, ISSUER, AUDIENCE).unwrap();
    assert_eq!(verifier.verify(&token(&new)), Err(TokenError::NoKeys), "it cannot be told yet");
}

#[test]
fn a_token_cannot_choose_how_it_is_verified() {
    use base64::Engine as _;
    let signer = Signer::rsa();
    let certificate = signer.certificate();
    let verifier = trusting(&bundle(&certificate.pem()));
    let kid = signer.public().libtrust_id().unwrap();
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for secret in
        [certificate.der().to_vec(), certificate.pem().into_bytes(), signer.pair.subject_public_key_info()]
    {
        for mut header in [json!({ "kid": kid }), json!({}), x5c(&[&certificate])] {
            header["alg"] = json!("HS256");
            let message = format!("{}.{}", encode(&header), encode(&claims()));
            let key = EncodingKey::from_secret(&secret);
            let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
            assert_eq!(
                verifier.verify(&format!("{message}.{signature}")),
                Err(TokenError::Algorithm),
                "{header}"
            );
            header["alg"] = json!("none");
            let unsigned = format!("{}.{}.", encode(&header), encode(&claims()));
            assert_eq!(verifier.verify(&unsigned), Err(TokenError::Malformed), "{header}");
        }
    }
    let stranger = Signer::rsa();
    let own_key = serde_json::to_value(stranger.public().named("mine")).unwrap();
    for header in
        [json!({ "jwk": own_key, "kid": kid }), json!({ "jku": "https://evil.example/keys", "kid": kid })]
    {
        assert_eq!(verifier.verify(&stranger.token(header, &claims())), Err(TokenError::Signature));
    }
    let mut critical = json!({ "kid": kid });
    critical["crit"] = json!(["b64"]);
    assert_eq!(verifier.verify(&signer.token(critical, &claims())), Err(TokenError::Malformed));
}
