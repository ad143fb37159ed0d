//! Content digests: `algorithm:hex`, the identity of every blob and manifest.
//!
//! Source: OCI image specification, `descriptor.md`, "Digests".

use std::{fmt, str::FromStr};

use sha2::Digest as _;

use crate::codec::{Decode, Encode};

/// A registered digest algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256: 32 bytes, 64 hex characters.
    Sha256,
    /// SHA-512: 64 bytes, 128 hex characters.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hash in bytes.
    pub const fn len_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        match text {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(InvalidDigest::UnknownAlgorithm),
        }
    }
}

/// The digest of some content. Holding one means that it is well formed: a registered
/// algorithm and a hash of exactly its length.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

impl Digest {
    /// The digest of `content` under `algorithm`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The SHA-256 digest of `content`.
    pub fn sha256(content: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, content)
    }

    /// The algorithm that made this digest.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The raw hash: 32 or 64 bytes.
    pub const fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => hash,
        }
    }

    /// A digest from its raw hash; `None` when the length does not fit the algorithm.
    pub fn from_bytes(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        match algorithm {
            Algorithm::Sha256 => hash.try_into().ok().map(Self::Sha256),
            Algorithm::Sha512 => hash.try_into().ok().map(Self::Sha512),
        }
    }

    /// The lower-case hex after the colon.
    pub fn hex(&self) -> String {
        self.hex_in(&mut [0; HEX_BYTES_MAX]).to_owned()
    }

    /// Appends the digest as it is written: `algorithm:hex`.
    pub fn push_to(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.algorithm().as_str().as_bytes());
        text.push(b':');
        self.push_hex(text);
    }

    /// Appends [`Digest::hex`] to `text`.
    pub(crate) fn push_hex(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(self.hex_in(&mut [0; HEX_BYTES_MAX]).as_bytes());
    }

    /// [`Digest::hex`], written to `room`.
    fn hex_in<'a>(&self, room: &'a mut [u8; HEX_BYTES_MAX]) -> &'a str {
        let bytes = self.as_bytes();
        for (pair, byte) in room.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&hex_pair(*byte));
        }
        // Every one of them is ASCII.
        std::str::from_utf8(&room[..bytes.len() * 2]).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm().as_str())?;
        f.write_str(":")?;
        f.write_str(self.hex_in(&mut [0; HEX_BYTES_MAX]))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let (algorithm, hex) = text.split_once(':').ok_or(InvalidDigest::NoColon)?;
        let algorithm = algorithm.parse::<Algorithm>()?;
        let hex = hex.as_bytes();
        if hex.len() != algorithm.len_bytes() * 2 {
            return Err(InvalidDigest::WrongLength);
        }
        let mut hash = [0_u8; 64];
        let mut is_hex = true;
        for (byte, pair) in hash.iter_mut().zip(hex.as_chunks::<2>().0) {
            let [high, low] = pair.map(hex_value);
            // Only what is no digit has bits beyond a digit's.
            is_hex &= (high | low) < 16;
            *byte = high << 4 | low & 15;
        }
        if !is_hex {
            return Err(InvalidDigest::NotHex);
        }
        Self::from_bytes(algorithm, &hash[..algorithm.len_bytes()]).ok_or(InvalidDigest::WrongLength)
    }
}

/// Hexadecimal digits of the longest hash.
const HEX_BYTES_MAX: usize = 128;

fn hex_pair(byte: u8) -> [u8; 2] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
}

/// Upper-case hex is not allowed by the grammar: two spellings would be two identities.
const fn hex_value(character: u8) -> u8 {
    VALUES[character as usize]
}

const NOT_HEX: u8 = 0xff;
const VALUES: [u8; 256] = {
    let mut values = [NOT_HEX; 256];
    let mut digit = 0;
    while digit < 16 {
        values[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    values
};

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDigest {
    /// There is no `:` between algorithm and hash.
    #[error("a digest has the form algorithm:hex")]
    NoColon,
    /// The algorithm is neither `sha256` nor `sha512`.
    #[error("the digest algorithm is not supported (sha256 and sha512 are)")]
    UnknownAlgorithm,
    /// The hash has not the length of its algorithm.
    #[error("the digest has not the length of its algorithm")]
    WrongLength,
    /// A character of the hash is not lower-case hex.
    #[error("the digest is not lower-case hex")]
    NotHex,
}

/// Hashes content as it flows by.
#[derive(Clone, Debug)]
pub enum Hasher {
    /// SHA-256 in progress.
    Sha256(sha2::Sha256),
    /// SHA-512 in progress.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// An empty hasher for `algorithm`.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::new()),
        }
    }

    /// The algorithm this hasher was made for.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Self::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_back() {
        assert_eq!(Digest::sha256(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse(), Ok(Digest::sha256(b"")));
        let long = Digest::of(Algorithm::Sha512, b"outport");
        assert_eq!(long.to_string().parse(), Ok(long));
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, why) in [
            ("", InvalidDigest::NoColon),
            ("e3b0c442", InvalidDigest::NoColon),
            ("md5:d41d8cd98f00b204e9800998ecf8427e", InvalidDigest::UnknownAlgorithm),
            ("sha256:", InvalidDigest::WrongLength),
            ("sha256:../../../../etc/passwd", InvalidDigest::WrongLength),
            (&EMPTY.to_uppercase().replace("SHA256", "sha256"), InvalidDigest::NotHex),
            (&EMPTY.replace("sha256", "sha512"), InvalidDigest::WrongLength),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(why), "{text}");
        }
    }
}
