//! Sites that are far from their primary.

use std::{fs, net::SocketAddr, time::Duration};

use crate::{
    support::{Cluster, Node},
    wire::{Quality, Wire},
};

/// Moves the only site of `cluster` away from its primary, `delay` one way. Asking the primary
/// takes twice that and no less, so an answer that comes sooner was not asked for.
pub fn moved_away(cluster: &mut Cluster, delay: Duration) -> Wire {
    let near = cluster.primary.replication();
    let wire = moved_behind(near, &mut cluster.sites[0], Quality { delay, ..Quality::default() });
    let (carried, lost) = wire.counts();
    assert!(carried > 0 && lost == 0, "{carried} packets carried, {lost} lost");
    wire
}

/// Moves `site` behind a wire of that `quality` to its primary, which is at `near`.
pub fn moved_behind(near: SocketAddr, site: &mut Node, quality: Quality) -> Wire {
    let wire = Wire::to(near, quality);
    site.stop();
    let text = fs::read_to_string(site.config()).unwrap();
    let (near, far) = (near.to_string(), wire.address.to_string());
    assert!(text.contains(&near), "{text}");
    let mut text = text.replace(&near, &far);
    if !quality.delay.is_zero() {
        // TCP to the primary is as near as it was: no network has a short cut.
        text = text.replace("[primary]\n", "[primary]\ntcp_fallback = false\n");
    }
    fs::write(site.config(), text).unwrap();
    site.start();
    site.wait_until(|status| status["state"] == "streaming");
    wire
}
