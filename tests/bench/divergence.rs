//! How one wrong fact among 1,000,000 of a site's index is found and repaired, over real QUIC.

use std::time::Duration;

use crate::{
    Figure,
    incident::{Incident, incidents},
};

/// What it takes for a lost, an added and a changed tag and link.
pub fn divergence() -> Vec<Figure> {
    let facts = std::env::var("DIVERGENCE_FACTS").ok().and_then(|number| number.parse().ok());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let incidents = runtime.block_on(incidents(facts.unwrap_or(1_000_000)));
    let most = |of: fn(&Incident) -> u64| incidents.iter().map(of).max().unwrap();
    let slowest = |of: fn(&Incident) -> Duration| incidents.iter().map(of).max().unwrap();
    for Incident { what, noticed, repaired, bytes, entries, .. } in &incidents {
        eprintln!(
            "  {what}: noticed after {noticed:.3?}, repaired after {repaired:.3?}, {bytes} bytes, {entries} entries"
        );
    }
    vec![
        Figure {
            what: "one wrong fact among 1,000,000: heartbeats until it is noticed, at most",
            // One more may have been under way.
            measured: format!(
                "{} ({:.3?})",
                most(|incident| incident.comparisons),
                slowest(|incident| incident.noticed)
            ),
            must_reach: "1",
        },
        Figure {
            what: "one wrong fact among 1,000,000: bytes exchanged until it is repaired, at most",
            measured: most(|incident| incident.bytes).to_string(),
            must_reach: "less than 1048576",
        },
        Figure {
            what: "one wrong fact among 1,000,000: until it is repaired, at most",
            measured: format!("{:.3?}", slowest(|incident| incident.repaired)),
            must_reach: "",
        },
    ]
}
