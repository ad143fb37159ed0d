//! What goes wrong.

use std::{fs::OpenOptions, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use outport::registry::journal::History;
use outport_proto::Digest;
use tokio::time::Instant;

use crate::{content::blobs, random::Random, world::World};

impl World {
    /// Lets things go wrong until nothing may any more.
    pub(crate) async fn fail(self: Arc<Self>) {
        let random = Random::new(self.options.seed, 0x0066_6175);
        let mut number = 0;
        loop {
            let pause = if self.is_busy() { random.millis(200, 8000) } else { random.millis(5_000, 240_000) };
            tokio::time::sleep(pause).await;
            if self.is_calm() {
                return;
            }
            if number < self.options.faults_max {
                self.fault(&random).await;
            }
            number += 1;
        }
    }

    async fn fault(self: &Arc<Self>, random: &Random) {
        let site = 1 + random.index(self.machines.len() - 1);
        match random.below(100) {
            0..14 => self.block(random, site, true, false),
            14..28 => self.block(random, site, false, true),
            28..44 => self.block(random, site, true, true),
            44..50 => (1..self.machines.len()).for_each(|site| self.block(random, site, true, true)),
            50..60 => self.slow(random, site),
            60..74 => self.crash(random, site).await,
            74..84 => self.crash(random, 0).await,
            84..92 => self.fill_disk(random, if random.percent(40) { 0 } else { site }),
            92..95 => self.rot(random).await,
            95..97 => self.collect(if random.percent(60) { 0 } else { site }),
            _ => self.restore(random).await,
        }
    }

    fn count_fault(&self, kind: &'static str) {
        *self.report().faults.entry(kind).or_default() += 1;
    }

    fn block(&self, random: &Random, site: usize, up: bool, down: bool) {
        self.count_fault(match (up, down) {
            (true, true) => "partition",
            (true, false) => "partition towards the primary",
            _ => "partition from the primary",
        });
        let longest = if self.is_busy() { 25_000 } else { 600_000 };
        let until = Some(Instant::now() + random.millis(50, longest));
        let (site, primary) = (self.machines[site].host, self.machines[0].host);
        if up {
            self.network.path(site, primary, |path| path.blocked_until = until);
        }
        if down {
            self.network.path(primary, site, |path| path.blocked_until = until);
        }
    }

    fn slow(&self, random: &Random, site: usize) {
        self.count_fault("slow path");
        let until = Some(Instant::now() + random.millis(100, 10_000));
        let (site, primary) = (self.machines[site].host, self.machines[0].host);
        self.network.path(site, primary, |path| path.slow_until = until);
        self.network.path(primary, site, |path| path.slow_until = until);
    }

    async fn crash(self: &Arc<Self>, random: &Random, number: usize) {
        let loses_power = random.percent(50);
        self.count_fault(match (number == 0, loses_power) {
            (true, true) => "primary loses power",
            (true, false) => "primary killed",
            (false, true) => "site loses power",
            (false, false) => "site killed",
        });
        if loses_power && random.percent(50) {
            // In the midst of a write, if there is one.
            {
                let state = self.machines[number].state();
                state.log.cut_power_at(state.log.counts().changes + random.below(3));
            }
            tokio::time::sleep(random.millis(1, 300)).await;
        }
        self.kill(number, loses_power);
        self.start_later(random, number);
    }

    fn start_later(self: &Arc<Self>, random: &Random, number: usize) {
        let longest = if self.is_busy() { 5_000 } else { 300_000 };
        let (world, pause) = (Arc::clone(self), random.millis(50, longest));
        drop(tokio::spawn(async move {
            tokio::select! {
                biased;
                () = world.calm.cancelled() => tokio::time::sleep(Duration::from_millis(50)).await,
                () = tokio::time::sleep(pause) => {}
            }
            world.start(number);
        }));
    }

    fn fill_disk(self: &Arc<Self>, random: &Random, number: usize) {
        self.count_fault(if number == 0 { "disk of the primary full" } else { "disk of a site full" });
        let (log, blobs) = (random.percent(60), random.percent(60));
        {
            let state = self.machines[number].state();
            if log {
                state.log.set_capacity(Some(state.log.bytes() + random.below(300)));
            }
            if blobs {
                state.blobs.set_room(Some(random.below(100_000)));
            }
        }
        let (world, pause) = (Arc::clone(self), random.millis(100, 8000));
        drop(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            world.room_again(number);
        }));
    }

    fn room_again(&self, number: usize) {
        let state = self.machines[number].state();
        state.log.set_capacity(None);
        state.snapshots.set_capacity(None);
        state.blobs.set_room(None);
    }

    /// A bit of a blob at the primary flips, and is found and mended a moment later.
    async fn rot(&self, random: &Random) {
        let blob = &blobs()[random.index(blobs().len())];
        let at = blob.bytes.len() as u64 - 1 - random.below(blob.bytes.len().min(60_000) as u64);
        let good = blob.bytes[at as usize];
        if self.change_blob(&blob.digest, at, good, !good) {
            self.count_fault("bit flipped at the primary");
            tokio::time::sleep(random.millis(100, 4000)).await;
            self.change_blob(&blob.digest, at, !good, good);
        }
    }

    /// Changes a byte of a blob at the primary if it is what it is expected to be.
    fn change_blob(&self, digest: &Digest, at: u64, from: u8, to: u8) -> bool {
        let life = self.machines[0].state().life;
        let hex = digest.hex();
        // It lies where the present life has it, or the next one will.
        [life, life + 1].into_iter().any(|life| {
            let path = self.machines[0].dir(life).join("store/blobs/sha256").join(&hex[..2]).join(&hex);
            let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return false };
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).is_ok()
                && byte[0] == from
                && file.write_all_at(&[to], at).is_ok()
        })
    }

    /// Garbage is collected now, of all times.
    fn collect(&self, number: usize) {
        if let Some(running) = self.machines[number].running() {
            self.count_fault("garbage collected");
            running.collect();
        }
    }

    /// The primary comes back with an older copy of its log, and knows it.
    async fn restore(self: &Arc<Self>, random: &Random) {
        let copy = {
            let state = self.machines[0].state();
            (state.log.copy(), state.snapshots.copy())
        };
        // How much is lost.
        tokio::time::sleep(random.millis(1, 4000)).await;
        if self.is_calm() {
            return;
        }
        self.count_fault("primary restored");
        self.kill(0, false);
        {
            let mut state = self.machines[0].state();
            (state.log, state.snapshots) = copy;
            state.history = History::Restored;
        }
        self.start_later(random, 0);
    }

    /// Everything that is broken is mended.
    pub(crate) fn heal(self: &Arc<Self>) {
        self.network.paths(crate::network::Path::heal);
        for number in 0..self.machines.len() {
            self.room_again(number);
        }
    }
}
