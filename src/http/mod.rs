//! The OCI distribution API on hyper: [`serve`] listens, [`Api`] answers.
//!
//! A request is parsed into an action before anybody is authenticated; a handler receives names
//! and digests that cannot be invalid; `error` alone knows status codes.

mod action;
mod addresses;
mod alone;
mod audited;
mod authenticate;

mod body;
mod client_address;
mod connection;
mod error;
mod gateway;
mod headers;
mod list;
mod metrics;
mod proxy;
mod pull;
mod push;
mod pushed;
mod range;
mod redirect;
mod request;
mod router;
mod server;
#[cfg(test)]
mod tests;
mod token;
mod tunnel;

pub use action::TOKEN_PATH;
pub use addresses::{Addresses, InvalidAddress, SharedAddresses};
pub use body::{Body, BodyError};
pub use client_address::Proxies;
pub use connection::{Connection, InFlight, Patience};
pub use gateway::Behind;
pub use metrics::{HttpMetrics, RedirectKind};
pub use proxy::Proxy;
pub use redirect::{PushMode, Redirects};
pub use request::RequestBody;
pub use router::{Api, PrimaryRole, Role, Writes};
pub use server::{ServerOptions, TlsConfig, serve};
pub use tunnel::Tunnels;
