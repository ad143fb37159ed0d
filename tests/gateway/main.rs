//! A primary in front of a registry that is here already: CNCF Distribution, as Debian ships it.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod agreement;
mod backfill;
mod delegated;
mod hostile;
mod identities;
mod kills;
mod liar;
mod notifications;
mod pushes;
mod restored;
mod sources;
#[path = "../support/mod.rs"]
mod support;
