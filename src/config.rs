//! Configuration: TOML and environment, parsed into each part's own options.
