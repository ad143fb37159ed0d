//! One primary, or relay, that tells many followers: an event simulation of its cores and the queue
//! before them.
//!
//! Every follower is a task that is woken by an event or by its heartbeat timer. Tasks that are
//! awake wait in one queue; a core takes the first, sends that follower everything it lacks, and
//! takes the next. That is what the program does: a follower that falls behind is sent several
//! events at once, and whatever is sent puts the next heartbeat off.

use std::collections::VecDeque;

use crate::random::Random;

/// How often a follower hears something when nothing happens, in seconds.
pub(crate) const HEARTBEAT_SECONDS: f64 = 0.25;

/// CPU time in seconds that the sender needs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Service {
    /// To take one event in, before anybody can be told.
    pub(crate) commit: f64,
    /// To send one event to one follower.
    pub(crate) event: f64,
    /// To send one more event together with another one.
    pub(crate) further_event: f64,
    /// To send one heartbeat to one follower.
    pub(crate) heartbeat: f64,
}

/// What the sender has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Load {
    /// Followers.
    pub(crate) followers: usize,
    /// Cores of the sender.
    pub(crate) cores: usize,
    /// Events a second, at random (Poisson).
    pub(crate) rate: f64,
    /// Events to simulate.
    pub(crate) events: usize,
    /// Most events that are sent together.
    pub(crate) together_max: usize,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Seconds from an event until it was sent, one for each event and follower.
    pub(crate) delays: Vec<f64>,
    /// Of each event, the longest of them.
    pub(crate) lasts: Vec<f64>,
    /// Share of the time that the cores worked.
    pub(crate) busy: f64,
}

/// Runs until every follower was sent every event.
pub(crate) fn simulate(load: &Load, service: &Service, random: &mut Random) -> Seen {
    Sender::new(load, service).run(random)
}

/// What waits for a core.
#[derive(Clone, Copy)]
enum Task {
    Commit,
    Follower(usize),
}

struct Follower {
    is_queued: bool,
    /// Events it was sent.
    sent: usize,
    /// When it is due a heartbeat.
    due: f64,
}

struct Sender<'a> {
    load: &'a Load,
    service: &'a Service,
    queue: VecDeque<Task>,
    followers: Vec<Follower>,
    /// In the order of time; those that were put off meanwhile are passed over.
    heartbeats: VecDeque<(f64, usize)>,
    /// When each core is free.
    cores: Vec<f64>,
    /// When each event happened.
    happened: Vec<f64>,
    /// When committed events can be sent, in order.
    committed: VecDeque<f64>,
    /// Events that followers can be sent.
    sendable: usize,
    next_event: f64,
    /// When the last task began: everything that came before waits or is done.
    now: f64,
    worked: f64,
    seen: Seen,
}

impl<'a> Sender<'a> {
    fn new(load: &'a Load, service: &'a Service) -> Self {
        let phase = |number: usize| HEARTBEAT_SECONDS * number as f64 / load.followers as f64;
        let followers =
            (0..load.followers).map(|number| Follower { is_queued: false, sent: 0, due: phase(number) });
        Self {
            load,
            service,
            queue: VecDeque::new(),
            followers: followers.collect(),
            heartbeats: (0..load.followers).map(|number| (phase(number), number)).collect(),
            cores: vec![0.0; load.cores.max(1)],
            happened: Vec::with_capacity(load.events),
            committed: VecDeque::new(),
            sendable: 0,
            next_event: 0.0,
            now: 0.0,
            worked: 0.0,
            seen: Seen { lasts: vec![0.0; load.events], ..Seen::default() },
        }
    }

    fn run(mut self, random: &mut Random) -> Seen {
        self.next_event = random.exponential(self.load.rate);
        let all = self.load.events * self.load.followers;
        while self.seen.delays.len() < all {
            let (core, free) = self.first_free();
            // A core that was idle begins when there was something to do, not when it became free.
            let mut now = free.max(self.now);
            self.admit(now, random);
            while self.queue.is_empty() {
                now = self.next_arrival();
                self.admit(now, random);
            }
            self.now = now;
            let Some(task) = self.queue.pop_front() else { break };
            let took = match task {
                Task::Commit => self.commit(now),
                Task::Follower(number) => self.serve(number, now),
            };
            self.worked += took;
            if let Some(free) = self.cores.get_mut(core) {
                *free = now + took;
            }
        }
        let end = self.cores.iter().copied().fold(0.0, f64::max);
        self.seen.busy = self.worked / (end * self.cores.len() as f64);
        self.seen
    }

    fn first_free(&self) -> (usize, f64) {
        let free = self.cores.iter().copied().enumerate();
        free.min_by(|(_, one), (_, other)| one.total_cmp(other)).unwrap_or((0, 0.0))
    }

    fn next_arrival(&self) -> f64 {
        let committed = self.committed.front().copied().unwrap_or(f64::INFINITY);
        let heartbeat = self.heartbeats.front().map_or(f64::INFINITY, |(at, _)| *at);
        self.next_event.min(committed).min(heartbeat)
    }

    /// Wakes everybody who has something to do by `now`.
    fn admit(&mut self, now: f64, random: &mut Random) {
        while self.next_event <= now {
            if self.happened.len() < self.load.events {
                self.queue.push_back(Task::Commit);
                self.happened.push(self.next_event);
                self.next_event += random.exponential(self.load.rate);
            } else {
                self.next_event = f64::INFINITY;
            }
        }
        while self.committed.front().is_some_and(|at| *at <= now) {
            self.committed.pop_front();
            self.sendable += 1;
            for number in 0..self.followers.len() {
                self.wake(number);
            }
        }
        while let Some((at, number)) = self.heartbeats.front().copied().filter(|(at, _)| *at <= now) {
            self.heartbeats.pop_front();
            if self.followers.get(number).is_some_and(|follower| follower.due == at) {
                self.wake(number);
            }
        }
    }

    fn wake(&mut self, number: usize) {
        if let Some(follower) = self.followers.get_mut(number)
            && !std::mem::replace(&mut follower.is_queued, true)
        {
            self.queue.push_back(Task::Follower(number));
        }
    }

    fn commit(&mut self, now: f64) -> f64 {
        self.committed.push_back(now + self.service.commit);
        self.service.commit
    }

    /// Sends a follower what it lacks; returns how long that takes.
    fn serve(&mut self, number: usize, now: f64) -> f64 {
        let Some(follower) = self.followers.get_mut(number) else { return 0.0 };
        let (first, lacks) = (follower.sent, self.sendable - follower.sent);
        let together = lacks.min(self.load.together_max);
        let took = match together {
            0 => self.service.heartbeat,
            some => self.service.event + (some - 1) as f64 * self.service.further_event,
        };
        follower.sent += together;
        follower.is_queued = false;
        follower.due = now + HEARTBEAT_SECONDS;
        self.heartbeats.push_back((follower.due, number));
        for event in first..first + together {
            let delay = now + took - self.happened.get(event).copied().unwrap_or(now);
            self.seen.delays.push(delay);
            if let Some(last) = self.seen.lasts.get_mut(event) {
                *last = last.max(delay);
            }
        }
        if lacks > together {
            self.wake(number);
        }
        took
    }
}

/// The value that `fraction` of all are at or below; `values` are sorted by it.
pub(crate) fn percentile(values: &mut [f64], fraction: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len().saturating_sub(1) as f64 * fraction).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Service = Service { commit: 0.0, event: 0.01, further_event: 0.01, heartbeat: 0.0 };

    #[test]
    fn one_follower_on_one_core_waits_as_long_as_queueing_theory_says() {
        for utilisation in [0.2, 0.5, 0.8] {
            let rate = utilisation / ALONE.event;
            let load = Load { followers: 1, cores: 1, rate, events: 200_000, together_max: 1 };
            let seen = simulate(&load, &ALONE, &mut Random::new(7));
            let mean = seen.delays.iter().sum::<f64>() / seen.delays.len() as f64;
            // M/D/1 (Pollaczek and Khinchine): the mean wait is rho s / (2 (1 - rho)).
            let theory = ALONE.event + utilisation * ALONE.event / (2.0 * (1.0 - utilisation));
            assert!((mean / theory - 1.0).abs() < 0.03, "{utilisation}: {mean} instead of {theory}");
            assert!((seen.busy / utilisation - 1.0).abs() < 0.03, "{} busy", seen.busy);
        }
    }

    #[test]
    fn an_event_alone_reaches_the_last_follower_after_all_are_served() {
        let service = Service { commit: 0.001, event: 20e-6, further_event: 1e-6, heartbeat: 0.0 };
        let load = Load { followers: 1000, cores: 2, rate: 0.01, events: 20, together_max: 100 };
        let mut seen = simulate(&load, &service, &mut Random::new(1));
        assert!(seen.delays.iter().all(|delay| *delay > 0.0), "nothing is sent before it happened");
        let (last, alone) = (percentile(&mut seen.lasts, 0.5), 0.001 + 1000.0 * 20e-6 / 2.0);
        assert!((last / alone - 1.0).abs() < 0.01, "{last} instead of {alone}");
    }

    #[test]
    fn more_cores_and_fewer_followers_are_quicker_and_the_same_seed_is_the_same() {
        let service = Service { commit: 0.0005, event: 20e-6, further_event: 1e-6, heartbeat: 10e-6 };
        let last = |followers, cores| {
            let load = Load { followers, cores, rate: 10.0, events: 100, together_max: 100 };
            percentile(&mut simulate(&load, &service, &mut Random::new(1)).lasts, 0.5)
        };
        assert!(last(1000, 2) > last(1000, 4) && last(1000, 2) > last(500, 2));
        assert_eq!(last(1000, 2), last(1000, 2));
    }

    #[test]
    fn an_overloaded_sender_sends_more_at_once_instead_of_falling_behind_for_ever() {
        let service = Service { commit: 0.0, event: 100e-6, further_event: 1e-6, heartbeat: 50e-6 };
        let load = Load { followers: 1000, cores: 2, rate: 100.0, events: 500, together_max: 1000 };
        let mut seen = simulate(&load, &service, &mut Random::new(1));
        // One by one it would need 100 x 1000 x 100 us / 2 = 5 s of every second.
        assert!(percentile(&mut seen.delays, 1.0) < 0.2, "{:?}", seen.lasts.last());
    }
}
