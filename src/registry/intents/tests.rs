use outport_proto::{Change, Digest, IntentId, Offset};

use super::*;
use crate::log::{
    disk::{Disk as _, read_all},
    faulty::FaultyDisk,
};

const NOW: Timestamp = Timestamp::from_secs(1_000);

fn site() -> SiteName {
    "mumbai".parse().unwrap()
}

fn repo() -> RepoName {
    "team/app".parse().unwrap()
}

fn tag(text: &str) -> Reference {
    Reference::Tag(text.parse().unwrap())
}

fn put(number: u64, tags: &[&str]) -> Intent {
    Intent { number, repo: repo(), names: tags.iter().map(|text| tag(text)).collect(), takes_tags: false }
}

/// An event of [`repo`] that site `from` announced.
fn event(from: &str, number: u64) -> Event {
    let change = Change::TagDeleted { repo: repo(), tag: "1".parse().unwrap() };
    let intent = Some(IntentId { site: from.parse().unwrap(), number });
    Event { offset: Offset::new(1, 1), time: NOW, actor: String::new(), intent, change }
}

fn in_memory(intents_max: usize) -> Intents {
    Intents::in_memory(site(), intents_max)
}

#[test]
fn its_own_event_ends_it_and_no_other() {
    let intents = in_memory(10);
    assert!(!intents.is_open(&repo(), &tag("1"), NOW));
    intents.open(put(7, &["1", "2"]), NOW);
    for name in ["1", "2"] {
        assert!(intents.is_open(&repo(), &tag(name), NOW));
    }
    assert!(intents.is_open_in(&repo(), NOW) && intents.is_any_open(NOW));
    assert!(!intents.is_open(&repo(), &tag("3"), NOW));
    assert!(!intents.is_open(&"team/other".parse().unwrap(), &tag("1"), NOW));
    let unannounced = Event { intent: None, ..event("mumbai", 0) };
    for other in [event("mumbai", 8), event("frankfurt", 7), unannounced] {
        intents.note_applied(&other);
        assert!(intents.is_open(&repo(), &tag("1"), NOW), "{other:?}");
    }
    intents.note_applied(&event("mumbai", 7));
    assert!(!intents.is_any_open(NOW));
    assert!(!intents.shared.any.load(Ordering::Acquire), "readers pass without the lock");
}

#[test]
fn two_requests_end_by_two_events() {
    let intents = in_memory(10);
    intents.open(put(1, &["1"]), NOW);
    intents.open(put(2, &["1"]), NOW);
    intents.note_applied(&event("mumbai", 2));
    intents.note_applied(&event("mumbai", 2));
    assert!(intents.is_open(&repo(), &tag("1"), NOW));
    intents.note_applied(&event("mumbai", 1));
    assert!(!intents.is_open(&repo(), &tag("1"), NOW));
}

#[test]
fn a_manifest_that_goes_takes_tags_along() {
    let intents = in_memory(10);
    let digest = Reference::Digest(Digest::sha256(b"m"));
    let by_digest =
        |number, takes_tags| Intent { names: vec![digest.clone()], takes_tags, ..put(number, &[]) };
    intents.open(by_digest(1, false), NOW);
    assert!(intents.is_open(&repo(), &digest, NOW) && !intents.is_open(&repo(), &tag("1"), NOW));
    intents.open(by_digest(2, true), NOW);
    assert!(intents.is_open(&repo(), &tag("1"), NOW));
    assert!(!intents.is_open(&repo(), &Reference::Digest(Digest::sha256(b"n")), NOW));
}

#[test]
fn it_runs_out_when_no_request_can_be_acknowledged_any_longer() {
    let intents = in_memory(10);
    intents.open(put(1, &["1"]), NOW);
    let end = NOW.plus(INTENT_LIFE);
    assert!(intents.is_open(&repo(), &tag("1"), Timestamp::from_micros(end.as_micros() - 1)));
    assert!(!intents.is_open(&repo(), &tag("1"), end));
    intents.is_any_open(end.plus(SWEEP_INTERVAL));
    assert!(!intents.shared.any.load(Ordering::Acquire));
}

#[test]
fn without_room_everything_counts_as_announced_for_a_while() {
    let intents = in_memory(1);
    intents.open(put(1, &["1"]), NOW);
    intents.open(put(2, &["2"]), NOW);
    let other = "other".parse().unwrap();
    assert!(intents.is_open(&other, &tag("x"), NOW));
    assert!(!intents.is_open(&other, &tag("x"), NOW.plus(INTENT_LIFE)));
}

/// A machine with one disk on which the site starts again and again.
struct Machine(FaultyDisk);

impl Machine {
    fn new() -> Self {
        Self(FaultyDisk::new())
    }

    fn start(&self, boot: &str, past: Past) -> Intents {
        Intents::open_on(Arc::new(self.0.clone()), Some(boot), past, (site(), 1000), NOW)
    }

    fn restart(&self) -> Intents {
        self.start("boot 1", Past::Perhaps)
    }
}

fn doubts(intents: &Intents) -> bool {
    intents.is_open(&"never/heard/of".parse().unwrap(), &tag("x"), NOW)
}

#[test]
fn a_killed_process_forgets_none() {
    let machine = Machine::new();
    let intents = machine.start("boot 1", Past::None);
    assert!(!doubts(&intents), "a new site has nothing to forget");
    intents.open(put(1, &["1"]), NOW);
    intents.open(put(2, &["2"]), NOW);
    for _ in 0..3 {
        let again = machine.restart();
        assert!(!doubts(&again));
        assert!(again.is_open(&repo(), &tag("1"), NOW) && again.is_open(&repo(), &tag("2"), NOW));
        assert!(!again.is_open(&repo(), &tag("1"), NOW.plus(INTENT_LIFE)));
    }
    let again = machine.restart();
    again.note_applied(&event("mumbai", 1));
    assert!(!again.is_open(&repo(), &tag("1"), NOW) && again.is_open(&repo(), &tag("2"), NOW));
}

#[test]
fn an_intent_that_others_were_opened_beside_is_not_lost_with_them() {
    let machine = Machine::new();
    let intents = machine.start("boot 1", Past::None);
    intents.open(put(1, &["1"]), NOW);
    intents.open(put(2, &["2"]), NOW);
    intents.note_applied(&event("mumbai", 2));
    intents.open(put(3, &["3"]), NOW);
    intents.note_applied(&event("mumbai", 3));
    intents.open(put(4, &["4"]), NOW);
    assert!(machine.restart().is_open(&repo(), &tag("1"), NOW));
    assert!(machine.restart().is_open(&repo(), &tag("4"), NOW));
}

#[test]
fn a_start_that_cannot_know_doubts_and_remembers_that_it_does() {
    let of = |change: &dyn Fn(&Machine)| {
        let machine = Machine::new();
        machine.start("boot 1", Past::None).open(put(1, &["1"]), NOW);
        change(&machine);
        machine
    };
    let damaged = |machine: &Machine| {
        let mut content = read(machine);
        let last = content.len() - 1;
        content[last] ^= 1;
        write(machine, &content);
    };
    for (what, machine) in [
        ("lost", of(&|machine| machine.0.remove("open").unwrap())),
        ("damaged", of(&damaged)),
        ("empty", of(&|machine| write(machine, b""))),
    ] {
        let intents = machine.restart();
        assert!(doubts(&intents), "{what}");
        assert!(!intents.is_open(&repo(), &tag("1"), NOW.plus(INTENT_LIFE)), "{what}");
        assert!(doubts(&machine.restart()), "{what}: a restart right after");
    }
    let machine = of(&|_| ());
    assert!(doubts(&machine.start("boot 2", Past::Perhaps)), "the machine went down");
    assert!(doubts(&Intents::open_on(Arc::new(machine.0), None, Past::Perhaps, (site(), 9), NOW)));
}

/// The first start may lose power before it remembers durably that it has a primary.
#[test]
fn a_first_start_that_loses_power_is_doubted_by_the_next() {
    for seed in 0..20 {
        let machine = Machine::new();
        machine.start("boot 1", Past::None).open(put(1, &["1"]), NOW);
        machine.0.cut_power();
        let machine = Machine(machine.0.power_on(seed));
        assert!(doubts(&machine.start("boot 2", Past::None)), "seed {seed}");
    }
}

#[test]
fn what_a_kill_tore_off_was_never_waited_for() {
    let machine = Machine::new();
    machine.start("boot 1", Past::None).open(put(1, &["1"]), NOW);
    let whole = read(&machine);
    let intents = machine.restart();
    intents.open(put(2, &["2"]), NOW);
    let both = read(&machine);
    for end in whole.len()..both.len() {
        write(&machine, &both[..end]);
        let again = machine.restart();
        assert!(!doubts(&again) && again.is_open(&repo(), &tag("1"), NOW), "{end}");
        assert_eq!(read(&machine), whole, "the torn record is gone");
    }
}

#[test]
fn a_full_disk_is_doubt_at_the_next_start_alone() {
    let machine = Machine::new();
    let intents = machine.start("boot 1", Past::None);
    intents.open(put(1, &["1"]), NOW);
    machine.0.set_capacity(Some(machine.0.bytes()));
    intents.open(put(2, &["2"]), NOW);
    assert!(intents.is_open(&repo(), &tag("2"), NOW) && !doubts(&intents));
    assert!(doubts(&machine.restart()));
    machine.0.set_capacity(None);
    intents.open(put(3, &["3"]), NOW);
    let again = machine.restart();
    assert!(!doubts(&again), "written anew once there is room");
    for name in ["1", "2", "3"] {
        assert!(again.is_open(&repo(), &tag(name), NOW), "{name}");
    }
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let machine = Machine::new();
    let intents = machine.start("boot 1", Past::None);
    for number in 0..200 {
        intents.open(put(number, &["1"]), NOW);
        intents.note_applied(&event("mumbai", number));
    }
    assert!(read(&machine).len() < 400, "{}", read(&machine).len());
}

fn read(machine: &Machine) -> Vec<u8> {
    read_all(&machine.0, "open", 1 << 20).unwrap()
}

fn write(machine: &Machine, content: &[u8]) {
    let mut file = machine.0.open("open").unwrap();
    file.truncate(0).unwrap();
    file.append(content).unwrap();
}
