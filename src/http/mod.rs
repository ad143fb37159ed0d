//! The OCI distribution API on hyper.

mod connection;
mod server;

pub use connection::{Connection, InFlight, Patience};
pub use server::{ServerOptions, TlsConfig, serve};
