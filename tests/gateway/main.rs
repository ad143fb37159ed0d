//! A primary in front of a registry that is here already: CNCF Distribution, as Debian ships it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says why on standard error"
)]
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
