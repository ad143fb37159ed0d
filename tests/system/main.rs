//! A running cluster seen from outside: what its clients, its operators and its visitors may rely
//! on, also when processes are killed and the primary is gone.

#![cfg(test)]
#![expect(
    unreachable_pub,
    reason = "a test binary is reached by nobody: `pub` tells its modules apart well enough"
)]

mod audit;
mod bootstrap;
mod callers;
mod canary;
mod certificates;
mod collector;
mod copying;
mod crash;
mod demo;
mod failing_disk;
mod failover;
mod far;
mod fills;
mod intents;
mod joining;
mod lossy;
mod monitoring;
mod networks;
mod outage;
mod policy;
mod promises;
mod proxy;
mod redirect;
mod relays;
mod shim;
mod status;
mod store;
#[path = "../support/mod.rs"]
mod support;
mod traces;
mod verify;
mod webhooks;
mod whereabouts;
#[path = "../support/wire.rs"]
mod wire;
