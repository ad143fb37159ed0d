//! Random bytes: from the operating system's generator, or from the seed of a simulated process
//! ([`crate::process`]).

use crate::process::simulated;

/// The generator gave nothing, which no correct machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system's random generator failed")]
pub struct NoRandomness;

/// Fills `bytes`.
///
/// # Errors
/// When the system has no randomness to give.
pub fn fill(bytes: &mut [u8]) -> Result<(), NoRandomness> {
    let Some(process) = simulated() else {
        return aws_lc_rs::rand::fill(bytes).map_err(|_| NoRandomness);
    };
    for part in bytes.chunks_mut(8) {
        part.copy_from_slice(&process.number().to_le_bytes()[..part.len()]);
    }
    Ok(())
}

/// A random number, for what is to be spread and need not be secret. Without randomness all of
/// them are zero: worse, not wrong.
pub fn number() -> u64 {
    let mut bytes = [0; 8];
    let _ = fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
