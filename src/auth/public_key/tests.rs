use super::*;

/// Keys with their libtrust IDs, as OpenSSL and coreutils make them of the same definition:
/// `openssl pkey -pubin -in KEY -outform DER | openssl dgst -sha256 -binary | head -c 30 | base32 | fold -w4 | paste -sd:`
const KNOWN: [(&str, &str); 4] = [
    (
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAETnhAljXjIs5BUag7QzAuCHQIMW1M3LokRp/TY3eMWjMX/1Ty3NeWAsN2lXPy\
         LNdD/AXShtWY0NH2sEGpIAywRA==",
        "DTQ4:CP2Y:5YJ3:GJDJ:YTDL:GNBA:MAPW:ZCFU:36ZZ:TLKZ:2WY2:CYM7",
    ),
    (
        "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA4+r4hwkTczkGLHA1u7q7bsuYH6e47b6QWDeS/pJIObl3jqbb0ggj\
         P4KwkWtz7FWR9rvF8BOviVFxSgGsjz2DmQtWEfIxiTDwKXtVS76clwOUqNvXWSlnfl73smcxJvQ2WoUaamTJXdzxkINnxXBQ\
         oFLoEwdZMCl5PdGNBWZh76bOk5igOIYBYrkCSrDgQ8f6lsVNhUBEwfinho+ds6EjLxR772jCuNxhYpItidwZwOWE7txi82fq\
         1p6lpKubjk/NQdCx2fFfO3W6J20dTstQsf1n0mRerf4edCMp6nlfoNWk3LdFMQLN6hAIQR8HUFFNXpBcxo6BT9QG+nmArFJQ\
         oQIDAQAB",
        "C65L:4ATL:C7GW:6SEB:TAHS:VC3W:S3KV:NJJ5:NXUI:RXGX:467Z:DPRI",
    ),
    (
        "MCowBQYDK2VwAyEA/hA5RrCewIdzHZs72s21VsU4XT3xHiSvg2ABmJ1ZFM8=",
        "7ORA:EJXY:Z54U:PZMZ:BEOX:C77K:G33Z:6GY4:NIFJ:6LI6:I2J4:DU3Q",
    ),
    (
        "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEqxTZs/1a9tSW79o0q56UZknHxWSkah/mvRTa11vJTzxVxaXlO+o6PwhEVG8Ti/aJ\
         kgZ0KyUoRvAfqALC9gc1lXN4iQSt8oFCjD4sVg5Cq9ENTNwe1mIEVwVqnPR/cDsR",
        "RBYB:IYOH:YZBF:LZ7T:TNBC:DBU6:CU4A:5FBQ:24GT:NAQK:S3XT:PSZW",
    ),
];

#[test]
fn keys_of_every_kind_have_the_names_that_issuers_give_them() {
    for (spki, id) in KNOWN {
        let der = STANDARD.decode(spki).unwrap();
        let key = PublicKey::of_spki(&der).unwrap();
        assert_eq!(key.spki().as_deref(), Some(&*der), "{id}");
        assert_eq!(key.libtrust_id().as_deref(), Some(id));
        assert_eq!(key.thumbprint().unwrap().len(), 43);
        assert_eq!(PublicKey::of_jwk(&key.named("any")), key);
    }
}

/// RFC 7638 section 3.1 and RFC 8037 appendix A.3.
#[test]
fn thumbprints_are_those_of_the_standards() {
    let rsa = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256","kid":"2011-04-29"}"#;
    let ed25519 = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    for (jwk, thumbprint) in [
        (rsa, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),
        (ed25519, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
    ] {
        let key = PublicKey::of_jwk(&serde_json::from_str(jwk).unwrap());
        assert_eq!(key.thumbprint().as_deref(), Some(thumbprint));
    }
}

#[test]
fn what_is_no_key_is_none() {
    let (spki, _) = KNOWN[0];
    let der = STANDARD.decode(spki).unwrap();
    for bad in [&[][..], &[0x30], &der[..der.len() - 1], b"garbage"] {
        assert!(PublicKey::of_spki(bad).is_none(), "{bad:?}");
    }
    assert!(PublicKey::of_certificate(&CertificateDer::from(der)).is_none());
}

/// RFC 4648 section 10, as far as nothing is padded.
#[test]
fn base_32_is_that_of_the_standard() {
    assert_eq!(base32(b"fooba"), "MZXW6YTB");
    assert_eq!(base32(&[0xff; 5]), "77777777");
    assert_eq!(base32(&[0; 10]), "AAAAAAAAAAAAAAAA");
}
