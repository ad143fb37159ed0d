//! Bad input, against a primary and a site alike: a clear error in the protocol's own form,
//! nothing written, nothing lost, and everybody else unharmed.

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

mod admin;
mod certificates;
mod requests;
mod stalled;
#[path = "../support/mod.rs"]
mod support;
mod tokens;
mod uploads;
