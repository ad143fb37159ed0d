//! Random bytes and texts.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

pub use crate::random::NoRandomness;

/// `N` random bytes.
pub(super) fn bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    crate::random::fill(&mut bytes)?;
    Ok(bytes)
}

/// A random number.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random_number() -> Result<u64, NoRandomness> {
    bytes().map(u64::from_le_bytes)
}

/// `N` random bytes as unpadded base64url.
pub(super) fn text<const N: usize>() -> Result<String, NoRandomness> {
    bytes::<N>().map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
}

/// 128 random bits as text: a password or a secret for people to copy.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random_text() -> Result<String, NoRandomness> {
    text::<16>()
}
