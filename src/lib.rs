//! Outport: one registry URL, many sites, every pull served from the nearest one.
//!
//! (The architecture page comes with the composition root.)

pub mod clock;
pub mod shutdown;
pub mod status;
pub mod telemetry;

pub mod index;
pub mod log;
pub mod store;

pub mod auth;
pub mod fetch;

pub mod registry;

pub mod admin;
pub mod http;
pub mod primary;
pub mod secondary;

pub mod app;
pub mod config;

pub mod cli;
