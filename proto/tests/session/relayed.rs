//! A site that follows another site instead of the primary.
#![cfg(test)]

use std::{collections::BTreeSet, time::Duration};

use outport_proto::{
    Offset, SiteName,
    frame::{BEHIND_MAX, Behind, BehindLink, FromSecondary, HOPS_MAX, Refusal, SiteReport},
    session::{
        ACK_DELAY, Closed, Ended, IDLE_MAX, LIVE_MAX, Lag, PublisherNotice, SubscriberNotice, SubscriberState,
    },
};

use crate::pair::{LATENCY, Pair, Relayed, subscriber_with};

const fn at(seq: u64) -> Offset {
    Offset::new(1, seq)
}

fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

fn ended(pair: &Pair) -> Option<&Ended> {
    pair.at_secondary.iter().find_map(|notice| match notice {
        SubscriberNotice::Ended(why) => Some(why),
        _ => None,
    })
}

#[test]
fn behind_a_relay_that_is_behind_a_site_knows_how_far_the_primary_is() {
    let mut pair = Pair::new();
    pair.append(7);
    pair.connect();
    pair.run(Duration::from_secs(1));
    let closed = pair.subscriber.closed_time().unwrap();
    pair.append(3);
    pair.relayed = Some(Relayed { lacks: 3, heard_at: Some(pair.now) });
    for _ in 0..40 {
        pair.relayed = Some(Relayed { lacks: 3, heard_at: Some(pair.now) });
        pair.run(Duration::from_millis(50));
    }
    assert_eq!(pair.subscriber.head(), Some(at(10)));
    assert_eq!(pair.delivered.last(), Some(&at(7)), "what the relay does not have it does not send");
    assert!(pair.subscriber.closed_time().unwrap().since(closed) < Duration::from_millis(300));
    assert!(pair.subscriber.lag(pair.now).applied.unwrap() > Duration::from_millis(1500));

    pair.relayed = Some(Relayed { lacks: 0, heard_at: Some(pair.now) });
    pair.run(LATENCY * 3);
    assert_eq!(pair.delivered.last(), Some(&at(10)));
    pair.run(Duration::from_millis(300));
    assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO));
}

#[test]
fn a_relay_that_no_longer_hears_the_primary_keeps_the_session_and_makes_nobody_fresh() {
    let mut pair = Pair::new();
    pair.append(7);
    pair.connect();
    pair.run(Duration::from_secs(1));
    assert!(pair.subscriber.live(pair.now));
    let closed = pair.subscriber.closed_time();

    let cut_at = pair.now;
    pair.relayed = Some(Relayed { lacks: 0, heard_at: Some(pair.now) });
    pair.run(LIVE_MAX + LATENCY + Duration::from_millis(5));
    assert!(!pair.subscriber.live(pair.now), "heartbeats go on, and tell how old they are");
    assert_eq!(pair.subscriber.lag(pair.now), Lag::default());
    pair.run(IDLE_MAX * 2);
    assert_eq!(pair.subscriber.state(), SubscriberState::Streaming, "blobs are still to be had there");
    let silence = pair.now - cut_at;
    assert!(pair.subscriber.heartbeat_age(pair.now).unwrap() >= silence - LATENCY);
    assert!(pair.subscriber.staleness(pair.now).unwrap() >= silence - LATENCY);

    // Restarted, it does not even know what it had heard.
    pair.relayed = Some(Relayed { lacks: 0, heard_at: None });
    pair.run(Duration::from_secs(5));
    assert!(pair.subscriber.closed_time() >= closed, "what was closed stays closed");
    let age = pair.subscriber.heartbeat_age(pair.now).unwrap();
    assert!(age >= silence && age < silence + Duration::from_secs(6), "{age:?}");
    assert!(!pair.subscriber.live(pair.now));

    pair.relayed = None;
    pair.run(Duration::from_millis(300));
    assert!(pair.subscriber.live(pair.now));
    assert!(pair.subscriber.staleness(pair.now).unwrap() < Duration::from_millis(300));
}

#[test]
fn a_site_that_never_heard_of_the_primary_is_not_live_however_young_it_is() {
    let mut pair = Pair::new();
    pair.now = Duration::ZERO;
    pair.append(7);
    pair.relayed = Some(Relayed { lacks: 0, heard_at: None });
    pair.connect();
    for _ in 0..100 {
        pair.run(Duration::from_millis(5));
        assert!(!pair.subscriber.live(pair.now));
    }
    assert_eq!(pair.delivered.last(), Some(&at(7)), "the relay's events are the primary's all the same");
}

#[test]
fn a_site_ahead_of_its_relay_is_told_to_wait_and_no_fork_is_seen_in_it() {
    let mut pair = Pair::new();
    pair.append(7);
    pair.connect();
    pair.run(Duration::from_secs(1));
    pair.cut();
    pair.relayed = Some(Relayed { lacks: 2, heard_at: None });
    pair.connect();
    pair.run(Duration::from_secs(1));
    assert!(matches!(ended(&pair), Some(Ended::Refused(Refusal::Unready(_)))), "{:?}", ended(&pair));

    pair.relayed = Some(Relayed { lacks: 0, heard_at: None });
    pair.connect();
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.subscriber.state(), SubscriberState::Streaming);
}

#[test]
fn a_way_that_leads_back_here_or_is_endless_is_refused() {
    let long: Vec<_> = (0..HOPS_MAX).map(|n| site(&format!("s{n}"))).collect();
    for path in [vec![site("mumbai")], vec![site("mumbai"), site("pune")], long] {
        let mut pair = Pair::new();
        pair.append(1);
        pair.config.path = path.clone();
        pair.connect();
        pair.run(Duration::from_secs(1));
        assert_eq!(ended(&pair), Some(&Ended::Ring { path }));
        assert!(pair.delivered.is_empty());
    }
    let mut pair = Pair::new();
    pair.append(1);
    pair.config.path = vec![site("frankfurt"), site("pune")];
    pair.connect();
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.delivered, [at(1)]);
}

#[test]
fn when_the_way_changes_the_site_says_hello_again() {
    let mut pair = Pair::new();
    pair.append(1);
    pair.connect();
    pair.run(Duration::from_secs(1));
    pair.publisher.as_mut().unwrap().handle_rerouted();
    pair.run(LATENCY);
    assert!(pair.at_primary.contains(&PublisherNotice::Closed(Closed::Rerouted)));
}

#[test]
fn what_changed_behind_a_site_is_said_once_and_not_all_in_one_frame() {
    let mut subscriber = subscriber_with(at(7), None);
    let behind = |n: usize| Behind {
        site: site(&format!("s{n}")),
        via: Vec::new(),
        program: String::new(),
        link: BehindLink::Up { rtt_micros: 1 },
        silent_micros: 0,
        received: at(7),
        durable: at(7),
        applied: at(7),
        complete: at(7),
        report: SiteReport::default(),
        alarm: None,
        forks_refused: 0,
    };
    let mut pair = Pair::new();
    pair.append(7);
    std::mem::swap(&mut pair.subscriber, &mut subscriber);
    pair.connect();
    pair.run(Duration::from_secs(1));
    for n in 0..BEHIND_MAX + 5 {
        pair.subscriber.handle_behind(behind(n));
        pair.subscriber.handle_behind(behind(n));
    }
    let mut said = Vec::new();
    assert!(pair.subscriber.poll_transmit(pair.now).is_none(), "what changes next may go with it");
    let later = pair.now + ACK_DELAY;
    while let Some(FromSecondary::Ack(ack)) = pair.subscriber.poll_transmit(later) {
        assert!(ack.behind.len() <= BEHIND_MAX);
        said.extend(ack.behind.into_iter().map(|behind| behind.site));
    }
    assert_eq!(said.len(), BEHIND_MAX + 5);
    assert_eq!(said.iter().collect::<BTreeSet<_>>().len(), said.len());
}
