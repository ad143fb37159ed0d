//! What goes wrong.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use outport::{
    fetch::HOLD_BACK_BYTES,
    log::faulty::FaultyDisk,
    registry::{Want, journal::History},
};
use outport_proto::Digest;
use tokio::time::Instant;

use crate::{
    clients::{REPOS, Token},
    content::{Content, blobs},
    oracle::What,
    random::Random,
    world::World,
};

/// A restore loses no more than this: collected garbage, which the copy may name, is older.
const LOST_MAX_MICROS: u64 = 2_900_000;
/// How long a restored primary is waited for.
const START_MAX: Duration = Duration::from_secs(20);

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
        match random.below(110) {
            0..14 => self.block(random, site, true, false),
            14..28 => self.block(random, site, false, true),
            28..44 => self.block(random, site, true, true),
            44..50 => (1..self.machines.len()).for_each(|site| self.block(random, site, true, true)),
            50..60 => self.slow(random, site),
            60..74 => self.crash(random, site).await,
            74..84 => self.crash(random, 0).await,
            84..88 => self.fill_disk(random, if random.percent(40) { 0 } else { site }),
            88..91 => self.slow_disk(random, if random.percent(40) { 0 } else { site }),
            91..95 => self.rot(random, site).await,
            95..97 => self.collect(if random.percent(60) { 0 } else { site }),
            97..100 => self.restore(random).await,
            100..105 => self.fail_fsync(random, if random.percent(40) { 0 } else { site }).await,
            _ => self.turn_clock(random, if random.percent(30) { 0 } else { site }),
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
        let (site, upstream) = (self.machines[site].host, self.machines[self.upstreams[site]].host);
        if up {
            self.network.path(site, upstream, |path| path.blocked_until = until);
        }
        if down {
            self.network.path(upstream, site, |path| path.blocked_until = until);
        }
    }

    fn slow(&self, random: &Random, site: usize) {
        self.count_fault("slow path");
        let until = Some(Instant::now() + random.millis(100, 10_000));
        let (site, upstream) = (self.machines[site].host, self.machines[self.upstreams[site]].host);
        self.network.path(site, upstream, |path| path.slow_until = until);
        self.network.path(upstream, site, |path| path.slow_until = until);
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

    /// What was to be made durable is not, and nothing says so again: once, or for a while.
    async fn fail_fsync(self: &Arc<Self>, random: &Random, number: usize) {
        self.count_fault(if number == 0 { "fsync fails at the primary" } else { "fsync fails at a site" });
        {
            let state = self.machines[number].state();
            let disk = match random.below(10) {
                0 => &state.snapshots,
                1 => &state.intents,
                _ => &state.log,
            };
            match random.below(3) {
                0 => disk.refuse_syncs(Some("")),
                1 => disk.refuse_syncs(Some(".log")),
                _ => disk.fail_sync(random.below(3)),
            }
        }
        let (world, pause) = (Arc::clone(self), random.millis(100, 12_000));
        drop(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            world.mend_disks(number);
        }));
        // Then it shows what is on the disk.
        if random.percent(40) {
            tokio::time::sleep(random.millis(100, 3000)).await;
            if !self.is_calm() {
                self.kill(number, true);
                self.start_later(random, number);
            }
        }
    }

    fn mend_disks(&self, number: usize) {
        let state = self.machines[number].state();
        [&state.log, &state.snapshots, &state.intents].into_iter().for_each(FaultyDisk::mend);
    }

    /// Somebody sets a wall clock, or whoever holds machines corrects it. The primary's is watched more closely.
    fn turn_clock(&self, random: &Random, number: usize) {
        let most = if number == 0 { 10_000_000 } else { 2 * 3600 * 1_000_000 };
        let by = random.micros(60_000, most).as_micros() as i64;
        let is_back = random.percent(50);
        self.count_fault(match (number == 0, is_back) {
            (true, true) => "clock of the primary set back",
            (true, false) => "clock of the primary set forward",
            (false, true) => "clock of a site set back",
            (false, false) => "clock of a site set forward",
        });
        self.machines[number].clock.turn(if is_back { -by } else { by });
        // Whoever hears of it hears of it late.
        if number == 0 && random.percent(50) {
            (1..self.machines.len()).for_each(|site| self.slow(random, site));
        }
    }

    fn slow_disk(&self, random: &Random, number: usize) {
        self.count_fault(if number == 0 { "disk of the primary slow" } else { "disk of a site slow" });
        self.machines[number].state().slow_until = Some(Instant::now() + random.millis(500, 10_000));
    }

    /// Bits of the large blobs at the primary flip, and are found and mended a moment later. A site
    /// that lost them is asked for them meanwhile.
    async fn rot(self: &Arc<Self>, random: &Random, site: usize) {
        let mut flipped = Vec::new();
        for blob in blobs().iter().filter(|blob| blob.bytes.len() as u64 > HOLD_BACK_BYTES) {
            let at = blob.bytes.len() as u64 - 1 - random.below(HOLD_BACK_BYTES);
            let good = blob.bytes[at as usize];
            if self.change_blob(&blob.digest, at, good, !good) {
                self.rotten().insert(blob.digest);
                flipped.push((blob, at, good));
            }
        }
        if flipped.is_empty() {
            return;
        }
        self.count_fault("bits flipped at the primary");
        for (blob, ..) in &flipped {
            if let Some(running) = self.machines[site].running() {
                // When it is not removed, the site has it.
                let _ = running.store.remove(&blob.digest);
            }
            for repo in 0..REPOS {
                let Ok(repo) = format!("team/app-{repo}").parse() else { continue };
                let (world, what) = (Arc::clone(self), What::Blob(blob.digest));
                drop(tokio::spawn(async move {
                    let token = Token::default();
                    let pulled = world.pull(site, repo, what, Want::Content, token, None, None).await;
                    if let Err(broken) = pulled {
                        world.broken(broken);
                    }
                }));
            }
        }
        tokio::time::sleep(random.millis(100, 4000)).await;
        for (blob, at, good) in flipped {
            if !self.change_blob(&blob.digest, at, !good, good) {
                self.put_back(blob);
            }
            self.rotten().remove(&blob.digest);
        }
    }

    /// A bad copy that the primary set aside is replaced from a backup.
    fn put_back(&self, blob: &Content) {
        let life = self.machines[0].state().life;
        for path in [life, life + 1].map(|life| self.path_of(life, &blob.digest)) {
            let is_there = path.parent().is_some_and(|dir| dir.is_dir());
            if is_there && !path.exists() {
                let _ = fs::write(path, &blob.bytes);
            }
        }
    }

    /// Where the primary has a blob in one of its lives.
    fn path_of(&self, life: u64, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.machines[0].dir(life).join("store/blobs/sha256").join(&hex[..2]).join(&hex)
    }

    /// Changes a byte of a blob at the primary if it is what it is expected to be.
    fn change_blob(&self, digest: &Digest, at: u64, from: u8, to: u8) -> bool {
        let life = self.machines[0].state().life;
        // It lies where the present life has it, or the next one will.
        [life, life + 1].into_iter().any(|life| {
            let path = self.path_of(life, digest);
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
        if self.grace.is_zero() {
            // What the copy names may be gone, and nobody brings it back.
            return self.crash(random, 0).await;
        }
        let copy = {
            let state = self.machines[0].state();
            (state.log.copy(), state.snapshots.copy())
        };
        // How much is lost.
        tokio::time::sleep(random.micros(1000, LOST_MAX_MICROS)).await;
        if self.is_calm() {
            return;
        }
        self.count_fault("primary restored");
        self.come_back_with(random, (copy.0.copy(), copy.1.copy()));
        // The second time the copy knows nothing of the epoch that began meanwhile.
        if random.percent(40) {
            let up = async {
                while self.machines[0].running().is_none() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let _ = tokio::time::timeout(START_MAX, up).await;
            tokio::time::sleep(random.micros(1000, LOST_MAX_MICROS)).await;
            if !self.is_calm() {
                self.count_fault("primary restored again");
                self.come_back_with(random, copy);
            }
        }
    }

    fn come_back_with(self: &Arc<Self>, random: &Random, copy: (FaultyDisk, FaultyDisk)) {
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
            self.mend_disks(number);
        }
    }
}
