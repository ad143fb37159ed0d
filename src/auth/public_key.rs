//! Public keys that tokens are signed with: from JSON web keys, certificates and PEM, and the names
//! that issuers give them.

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::{AsDer as _, PublicKeyX509Der},
    rsa::{PublicEncryptingKey, PublicKeyComponents},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{
    DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, ThumbprintHash},
};
use rustls_pki_types::CertificateDer;

/// A public key without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey(Jwk);

impl PublicKey {
    /// The key of a JSON web key, whatever its name.
    pub(super) fn of_jwk(jwk: &Jwk) -> Self {
        let mut jwk = jwk.clone();
        jwk.common.key_id = None;
        Self(jwk)
    }

    /// The key that a certificate is about; nobody has said yet that the certificate is true.
    pub(super) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
        Self::of_spki(&certificate.subject_public_key_info())
    }

    /// From an X.509 `SubjectPublicKeyInfo`, in DER.
    pub(super) fn of_spki(der: &[u8]) -> Option<Self> {
        let pem = format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines(der));
        let key = DecodingKey::from_ec_pem(pem.as_bytes())
            .or_else(|_| DecodingKey::from_rsa_pem(pem.as_bytes()))
            .or_else(|_| DecodingKey::from_ed_pem(pem.as_bytes()));
        Jwk::from_decoding_key(&key.ok()?, None).ok().map(Self)
    }

    /// The key under a name.
    pub(super) fn named(&self, name: &str) -> Jwk {
        let mut jwk = self.0.clone();
        jwk.common.key_id = Some(name.to_owned());
        jwk
    }

    /// The key without a name.
    pub(super) fn jwk(&self) -> &Jwk {
        &self.0
    }

    /// RFC 7638: what CNCF Distribution 3 knows the keys of its `rootcertbundle` by.
    pub(super) fn thumbprint(&self) -> Option<String> {
        self.0.thumbprint(ThumbprintHash::SHA256).ok()
    }

    /// libtrust's key ID, which Docker's registry (to 2.8), GitLab and Harbor name keys by: the first 240
    /// bits of SHA-256 of the `SubjectPublicKeyInfo`, in base 32, in groups of four.
    pub(super) fn libtrust_id(&self) -> Option<String> {
        let spki = self.spki()?;
        let hash = digest(&SHA256, &spki);
        let text = base32(hash.as_ref().get(..30)?);
        let groups: Vec<_> = text.as_bytes().chunks(4).map(String::from_utf8_lossy).collect();
        Some(groups.join(":"))
    }

    /// The X.509 `SubjectPublicKeyInfo`, in DER.
    fn spki(&self) -> Option<Vec<u8>> {
        let bytes = |text: &String| URL_SAFE_NO_PAD.decode(text).ok();
        match &self.0.algorithm {
            AlgorithmParameters::RSA(key) => {
                let (n, e) = (bytes(&key.n)?, bytes(&key.e)?);
                let key: PublicEncryptingKey = PublicKeyComponents { n: &n, e: &e }.try_into().ok()?;
                let der: PublicKeyX509Der<'_> = key.as_der().ok()?;
                Some(der.as_ref().to_vec())
            }
            AlgorithmParameters::EllipticCurve(key) => {
                let (prefix, size) = match key.curve {
                    EllipticCurve::P256 => (P256_PREFIX, 32),
                    EllipticCurve::P384 => (P384_PREFIX, 48),
                    _ => return None,
                };
                let (x, y) = (bytes(&key.x)?, bytes(&key.y)?);
                (x.len() == size && y.len() == size).then(|| [prefix, &x, &y].concat())
            }
            AlgorithmParameters::OctetKeyPair(key) => {
                let x = bytes(&key.x).filter(|x| x.len() == 32)?;
                Some([ED25519_PREFIX, &x].concat())
            }
            _ => None,
        }
    }
}

/// What stands before a point on the curve in a `SubjectPublicKeyInfo` (RFC 5480 section 2), the byte for
/// "uncompressed" included.
const P256_PREFIX: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];
/// The same for P-384.
const P384_PREFIX: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81,
    0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04,
];
/// What stands before the 32 bytes of an Ed25519 key (RFC 8410 section 4).
const ED25519_PREFIX: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

fn lines(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    lines.join("\n")
}

/// RFC 4648 base 32 of a whole number of 5-byte groups: nothing to pad.
fn base32(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut text = String::with_capacity(bytes.len() / 5 * 8);
    for group in bytes.chunks_exact(5) {
        let bits = group.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        text.extend((0..8).rev().map(|place| char::from(ALPHABET[(bits >> (5 * place)) as usize & 31])));
    }
    text
}

#[cfg(test)]
mod tests;
