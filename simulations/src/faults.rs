//! What goes wrong.

use crate::{
    Broken,
    world::{Happening, World},
};

impl World {
    /// One more fault, and the next one later.
    pub(crate) fn fault(&mut self) -> Result<(), Broken> {
        if self.is_calm {
            return Ok(());
        }
        self.after_millis(200, 8000, Happening::Fault);
        let site = self.random.index(self.sites.len());
        match self.random.below(100) {
            0..20 => self.drop_connection(site),
            20..32 => self.block(site, true, false),
            32..44 => self.block(site, false, true),
            44..58 => self.block(site, true, true),
            58..64 => {
                for site in 0..self.sites.len() {
                    self.block(site, true, true);
                }
            }
            64..74 => {
                self.count_fault("slow path");
                let until = self.now + self.random.millis(100, 10_000);
                let link = &mut self.network.links[site];
                (link.up.slow_until, link.down.slow_until) = (until, until);
            }
            74..84 => self.crash_site(site),
            84..92 => self.crash_primary()?,
            _ => self.fill_disk(site),
        }
        Ok(())
    }

    fn drop_connection(&mut self, site: usize) {
        let Some(session) = self.sites[site].running.as_ref().and_then(|process| process.connection()) else {
            return;
        };
        self.count_fault("connection dropped");
        self.network.cut(session);
        self.after_millis(0, 300, Happening::UpBreaks { session });
        self.after_millis(0, 300, Happening::DownBreaks { session });
    }

    fn block(&mut self, site: usize, up: bool, down: bool) {
        self.count_fault(match (up, down) {
            (true, true) => "partition",
            (true, false) => "stall towards the primary",
            _ => "stall from the primary",
        });
        let until = self.now + self.random.millis(50, 25_000);
        let link = &mut self.network.links[site];
        if up {
            link.up.blocked_until = until;
        }
        if down {
            link.down.blocked_until = until;
        }
    }

    fn crash_site(&mut self, number: usize) {
        let (mid_write, steps, seed) = self.crash_choices();
        let site = &mut self.sites[number];
        let Some(process) = &mut site.running else { return };
        if mid_write {
            site.disk.cut_power_at(site.disk.counts().changes + steps);
            process.stepper.step();
        }
        self.note_durable(number);
        let site = &mut self.sites[number];
        let session = site.running.take().and_then(|process| process.connection());
        let is_power_cut = site.disk.is_off() || seed % 2 == 0;
        site.disk = if is_power_cut { site.disk.power_on(seed) } else { site.disk.after_kill() };
        site.notes = if is_power_cut { site.notes.power_on(seed) } else { site.notes.after_kill() };
        site.boots += u64::from(is_power_cut);
        self.count_fault(if is_power_cut { "site loses power" } else { "site killed" });
        if let Some(session) = session {
            self.network.cut(session);
            if self.random.percent(50) {
                self.after_millis(1, 500, Happening::UpBreaks { session });
            }
        }
        self.after_millis(50, 5000, Happening::SiteStarts { site: number });
    }

    fn crash_primary(&mut self) -> Result<(), Broken> {
        let (mid_write, steps, seed) = self.crash_choices();
        let primary = &mut self.primary;
        let Some(process) = &mut primary.running else { return Ok(()) };
        if mid_write {
            primary.disk.cut_power_at(primary.disk.counts().changes + steps);
            process.stepper.step();
        }
        primary.running = None;
        let is_power_cut = primary.disk.is_off() || seed % 2 == 0;
        primary.disk = if is_power_cut { primary.disk.power_on(seed) } else { primary.disk.after_kill() };
        self.count_fault(if is_power_cut { "primary loses power" } else { "primary killed" });
        let life = self.primary.life;
        let ended = self.network.sessions.iter().filter(|(_, session)| session.lives.1 == life);
        let ended: Vec<_> = ended.filter(|(_, session)| !session.is_cut).map(|(number, _)| *number).collect();
        for session in ended {
            self.network.cut(session);
            if self.random.percent(50) {
                self.after_millis(1, 500, Happening::DownBreaks { session });
            }
        }
        // Whoever waits for an acknowledgement gets none; it may have happened all the same.
        let waiting: Vec<_> = self.writes.keys().copied().collect();
        for write in waiting {
            self.write_ends(write, None);
        }
        self.after_millis(50, 5000, Happening::PrimaryStarts);
        Ok(())
    }

    /// Whether the writer is caught in the midst of its work and after how many changes of the
    /// disk, and what decides what survives.
    fn crash_choices(&mut self) -> (bool, u64, u64) {
        (self.random.percent(50), self.random.below(4), self.random.number())
    }

    fn fill_disk(&mut self, site: usize) {
        let site = (!self.random.percent(40)).then_some(site);
        let disk = match site {
            Some(site) => &self.sites[site].disk,
            None => &self.primary.disk,
        };
        disk.set_capacity(Some(disk.bytes() + self.random.below(300)));
        self.count_fault(if site.is_some() { "disk of a site full" } else { "disk of the primary full" });
        self.after_millis(100, 5000, Happening::RoomAgain { site });
    }

    pub(crate) fn room_again(&mut self, site: Option<usize>) {
        match site {
            Some(site) => self.sites[site].disk.set_capacity(None),
            None => self.primary.disk.set_capacity(None),
        }
    }

    /// Everything that is broken is mended, or will be soon.
    pub(crate) fn heal(&mut self) {
        self.network.links.iter_mut().for_each(crate::network::Link::heal);
        self.room_again(None);
        self.after_millis(0, 1, Happening::PrimaryStarts);
        for site in 0..self.sites.len() {
            self.room_again(Some(site));
            self.after_millis(0, 1, Happening::SiteStarts { site });
        }
    }
}
