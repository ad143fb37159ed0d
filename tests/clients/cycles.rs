//! Push through one site, `outport wait`, pull through the other, over and over, as a CI job and a
//! deployment do.
//!
//! `OUTPORT_CYCLES=200 cargo test --release --test clients cycles -- --nocapture --test-threads 1` is
//! the figure, so many cycles with each of five clients; without the variable a few are made, as a test.

use std::time::Instant;

use outport_proto::Digest;

use crate::{
    bed::Bed,
    image::Image,
    scenario::{As, Client, Tool},
    support::{BINARY, Options},
};

const CYCLES: usize = 3;
const REPO: &str = "team/cycles";
const TAG: &str = "latest";

/// Makes cycles with a client; every pull must show what was pushed just before it.
pub(crate) fn run(name: &str, tool: &Tool) {
    let cycles = std::env::var("OUTPORT_CYCLES").map_or(CYCLES, |count| count.parse().unwrap());
    let Some(bed) = Bed::start_unwired(tool.programs, Options::default()) else { return };
    let client = (tool.start)(&bed.sandbox);
    for site in [bed.frankfurt(), bed.mumbai()] {
        client.login(&site.registry_by_name(), &bed.cluster.password).map(|done| done.success());
    }
    let images = ["one", "two", "three"].map(|version| Image::make(&bed.sandbox.path("images"), version));
    let begun = Instant::now();
    let (mut stale, mut errors) = (0, 0);
    let mut before = String::new();
    for cycle in 0..cycles {
        let image = &images[cycle % images.len()];
        let digest = cycle_once(&bed, &*client, image, cycle);
        let pushed = pushed_digest(&bed);
        // Every cycle moves the tag.
        let is_moved = pushed != std::mem::replace(&mut before, pushed.clone());
        match digest {
            Ok(pulled) if pulled == pushed && is_moved => {}
            Ok(pulled) => {
                stale += 1;
                println!("{name}: cycle {cycle} pulled {pulled}, pushed was {pushed}");
            }
            Err(error) => {
                errors += 1;
                println!("{name}: cycle {cycle}: {error}");
            }
        }
    }
    println!(
        "{name}: {cycles} cycles of push, wait and pull in {:.0?}: {stale} stale, {errors} errors",
        begun.elapsed()
    );
    assert_eq!((stale, errors), (0, 0));
}

/// What the primary shows.
fn pushed_digest(bed: &Bed) -> String {
    let answer = bed.raw.manifest(&bed.cluster.primary, REPO, TAG);
    Digest::sha256(&answer.body).to_string()
}

/// The digest that was pulled.
fn cycle_once(bed: &Bed, client: &dyn Client, image: &Image, cycle: usize) -> Result<String, String> {
    let (through, elsewhere) = match cycle % 2 {
        0 => (bed.frankfurt(), bed.mumbai()),
        _ => (bed.mumbai(), bed.frankfurt()),
    };
    let pushed = client.push(image, &bed.reference(through, REPO, TAG), As::User(&bed.cluster.password));
    if !pushed.succeeded {
        return Err(format!("push: {pushed}"));
    }
    let waited = std::process::Command::new(BINARY)
        .args(["wait", &format!("{REPO}:{TAG}"), "--all-sites", "--complete", "--timeout", "30s"])
        .args(["--admin", &bed.cluster.primary.admin()])
        .output()
        .map_err(|error| error.to_string())?;
    if !waited.status.success() {
        return Err(format!("wait: {}", String::from_utf8_lossy(&waited.stderr)));
    }
    let pulled = client.pull(&bed.reference(elsewhere, REPO, TAG));
    if pulled.done.succeeded { Ok(pulled.digest) } else { Err(format!("pull: {}", pulled.done)) }
}
