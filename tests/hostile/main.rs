//! Bad input, against a primary and a site alike: a clear error in the protocol's own form,
//! nothing written, nothing lost, and everybody else unharmed.

#![cfg(test)]
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
