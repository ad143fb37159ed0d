//! What two sites see of each other, over real QUIC with real certificates and real files.

mod following;
mod world;
