//! A site that is far from its primary.

use std::{fs, time::Duration};

use crate::{
    support::Cluster,
    wire::{Quality, Wire},
};

/// Moves the only site of `cluster` away from its primary, `delay` one way. Asking the primary
/// takes twice that and no less, so an answer that comes sooner was not asked for.
pub fn moved_away(cluster: &mut Cluster, delay: Duration) -> Wire {
    let near = cluster.primary.replication();
    let wire = Wire::to(near, Quality { delay, ..Quality::default() });
    let site = &mut cluster.sites[0];
    site.stop();
    let text = fs::read_to_string(site.config()).unwrap();
    let (near, far) = (near.to_string(), wire.address.to_string());
    assert!(text.contains(&near), "{text}");
    fs::write(site.config(), text.replace(&near, &far)).unwrap();
    site.start();
    site.wait_until(|status| status["state"] == "streaming");
    let (carried, lost) = wire.counts();
    assert!(carried > 0 && lost == 0, "{carried} packets carried, {lost} lost");
    wire
}
