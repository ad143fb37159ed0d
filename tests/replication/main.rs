//! What two sites see of each other, over real QUIC with real certificates and real files.

mod following;
mod hostile;
mod logs;
mod refusals;
mod relay;
mod requests;
mod world;
