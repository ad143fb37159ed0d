use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData as _};
use serde_json::{Value, json};

use super::*;
use crate::auth::SigningKey;

fn names(keys: &IssuerKeys) -> Vec<String> {
    let set: Value = serde_json::from_str(&keys.jwks).unwrap();
    let names = set["keys"].as_array().unwrap().iter();
    names.map(|key| key["kid"].as_str().unwrap().to_owned()).collect()
}

fn libtrust(name: &str) -> bool {
    name.len() == 59 && name.split(':').all(|group| group.len() == 4)
}

#[test]
fn a_bundle_gives_every_key_by_all_its_names() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let certificate = CertificateParams::default().self_signed(&key).unwrap();
    let bare = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let bundle = format!("issued to\n{}{}", certificate.pem(), bare.public_key_pem());
    let keys = IssuerKeys::read(Some(&bundle), None).unwrap();
    assert_eq!(keys.roots, [certificate.der().to_vec()]);
    let names = names(&keys);
    assert_eq!(names.len(), 4);
    assert!(libtrust(&names[1]) && libtrust(&names[3]), "{names:?}");
    let of_der = PublicKey::of_spki(&key.subject_public_key_info()).unwrap();
    assert_eq!(
        (of_der.thumbprint().unwrap(), of_der.libtrust_id().unwrap()),
        (names[0].clone(), names[1].clone())
    );
}

#[test]
fn a_set_adds_its_own_names() {
    let (named, nameless) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    let jwks = SigningKey::jwks([&named, &nameless]).unwrap();
    let mut set: Value = serde_json::from_str(&jwks).unwrap();
    set["keys"][0]["kid"] = json!("2024-05");
    set["keys"][1].as_object_mut().unwrap().remove("kid");
    set["keys"].as_array_mut().unwrap().push(json!({"kty": "quantum", "kid": "q"}));
    let keys = IssuerKeys::read(None, Some(&set.to_string())).unwrap();
    let names = names(&keys);
    assert!(names.contains(&"2024-05".to_owned()) && names.contains(&named.id().to_owned()), "{names:?}");
    assert!(names.contains(&nameless.id().to_owned()));
    assert_eq!(names.iter().filter(|name| libtrust(name)).count(), 2);
    let twice = format!(r#"{{"keys":[{0},{0}]}}"#, set["keys"][0]);
    assert!(IssuerKeys::read(None, Some(&twice)).is_ok(), "the same key under the same name");
}

#[test]
fn mistakes_are_named() {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    assert_eq!(IssuerKeys::read(Some(&key.serialize_pem()), None), Err(IssuerKeysError::Private));
    assert_eq!(IssuerKeys::read(Some(""), None), Err(IssuerKeysError::Pem));
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(IssuerKeys::read(Some(garbage), None), Err(IssuerKeysError::Certificate));
    let garbage = garbage.replace("CERTIFICATE", "PUBLIC KEY");
    assert_eq!(IssuerKeys::read(Some(&garbage), None), Err(IssuerKeysError::PublicKey));
    let symmetric = r#"{"keys":[{"kty":"oct","kid":"s","k":"AAAA"}]}"#;
    assert_eq!(IssuerKeys::read(None, Some(symmetric)), Err(KeySetError::Symmetric.into()));
    assert_eq!(IssuerKeys::read(None, Some("{")), Err(KeySetError::Malformed.into()));
}
