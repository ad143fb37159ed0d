//! What people on both sides would see.
#![cfg(test)]

use std::time::Duration;

use outport_proto::{
    Offset,
    frame::{FromPrimary, FromSecondary, Refusal, Resume},
    session::{
        Closed, Ended, IDLE_MAX, Lag, Misplaced, Publisher, PublisherNotice, SubscriberNotice,
        SubscriberState,
    },
};

use crate::pair::{LATENCY, Pair, keys, subscriber_with};

const fn at(seq: u64) -> Offset {
    Offset::new(1, seq)
}

fn everything_up_to(seq: u64) -> Vec<Offset> {
    (1..=seq).map(at).collect()
}

fn ended(pair: &Pair) -> Option<&Ended> {
    pair.at_secondary.iter().find_map(|notice| match notice {
        SubscriberNotice::Ended(why) => Some(why),
        _ => None,
    })
}

#[test]
fn an_empty_site_catches_up_and_then_follows() {
    let mut pair = Pair::new();
    pair.append(10_000);
    pair.connect();
    pair.run_until(|pair| pair.subscriber.progress().received == at(10_000));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.delivered, everything_up_to(10_000));
    assert_eq!(pair.at_primary[0], PublisherNotice::Opened(Resume::Tail));
    assert_eq!(
        pair.subscriber.lag(pair.now),
        Lag { applied: Some(Duration::ZERO), complete: Some(Duration::ZERO) }
    );

    pair.append(1);
    pair.run(LATENCY * 3);
    assert_eq!(pair.delivered.last(), Some(&at(10_001)), "an event travels at once");
    assert_eq!(pair.subscriber.head(), Some(at(10_001)), "and a heartbeat with it");
    let ack = pair.publisher.as_ref().unwrap().ack().unwrap();
    assert_eq!(
        (ack.received, ack.durable, ack.applied, ack.complete),
        (at(10_001), at(10_001), at(10_001), at(10_001))
    );
    assert_eq!(ack.report.log_bytes, pair.log_state().heartbeat.log_bytes);
    assert_eq!(pair.publisher.as_ref().unwrap().outstanding_bytes(), 0);
}

#[test]
fn a_site_at_rest_stays_live_and_fresh() {
    let mut pair = Pair::new();
    pair.connect();
    pair.run(Duration::from_secs(1));
    for _ in 0..200 {
        pair.run(Duration::from_millis(100));
        assert!(pair.subscriber.live(pair.now));
        assert!(pair.subscriber.staleness(pair.now).unwrap() <= Duration::from_millis(300));
    }
    assert!(pair.connected() && ended(&pair).is_none());
}

#[test]
fn after_a_cut_it_goes_on_where_it_was() {
    let mut pair = Pair::new();
    pair.append(100);
    pair.connect();
    pair.run_until(|pair| pair.delivered.len() == 100);
    pair.cut();
    pair.append(50);
    pair.run(Duration::from_secs(5));
    pair.connect();
    pair.run_until(|pair| pair.delivered.len() == 150);
    assert_eq!(pair.delivered, everything_up_to(150));
}

#[test]
fn a_partition_of_any_length_loses_nothing_and_doubles_nothing() {
    const HOUR: Duration = Duration::from_secs(3600);
    let seconds = Duration::from_secs;
    for length in [seconds(1), seconds(9), seconds(60), HOUR, 24 * HOUR] {
        let mut pair = Pair::new();
        pair.append(10);
        pair.connect();
        pair.run(seconds(1));
        pair.dark = true;
        pair.append(20);
        let watched = length.min(IDLE_MAX + seconds(1));
        pair.run(watched);
        pair.now += length - watched;
        pair.append(20);
        assert!(!pair.subscriber.live(pair.now), "{length:?}");
        assert!(pair.subscriber.staleness(pair.now).unwrap() >= length - seconds(1), "{length:?}");

        pair.dark = false;
        for _ in 0..1000 {
            // The stream ends at the first event that follows those it lost.
            if !pair.connected() {
                pair.connect();
            }
            pair.run(Duration::from_millis(10));
        }
        assert_eq!(pair.delivered, everything_up_to(50), "{length:?}");
        assert!(pair.subscriber.live(pair.now), "{length:?}");
        assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO), "{length:?}");
    }
}

#[test]
fn what_is_received_and_not_yet_durable_is_not_delivered_twice() {
    for durable in [0, 40] {
        let mut pair = Pair::new();
        pair.stages_pass = false;
        pair.append(100);
        pair.connect();
        pair.run_until(|pair| pair.delivered.len() == 100);
        pair.subscriber.handle_durable(at(durable));
        pair.cut();
        pair.append(1);
        pair.connect();
        pair.run_until(|pair| pair.delivered.len() == 101);
        pair.run(Duration::from_secs(1));
        assert_eq!(pair.delivered, everything_up_to(101));
        assert!(pair.connected());
    }
}

#[test]
fn what_is_lost_before_it_is_durable_comes_again() {
    let mut pair = Pair::new();
    pair.append(3);
    pair.connect();
    pair.run_until(|pair| pair.subscriber.progress().applied == at(3));
    pair.stages_pass = false;
    pair.append(4);
    pair.run_until(|pair| pair.delivered.len() == 7);
    pair.cut();
    pair.subscriber.handle_durable(at(5));
    pair.subscriber.handle_lost(0);
    assert_eq!(pair.subscriber.progress().received, at(5));
    pair.delivered.clear();
    pair.append(1);
    pair.connect();
    pair.run_until(|pair| pair.delivered.len() == 3);
    assert_eq!(pair.delivered, [at(6), at(7), at(8)]);
}

#[test]
fn when_heartbeats_stop_nothing_is_claimed_any_more() {
    let mut pair = Pair::new();
    pair.connect();
    pair.run(Duration::from_secs(1));
    pair.dark = true;
    pair.run(Duration::from_millis(980));
    assert!(!pair.subscriber.live(pair.now), "a cut shows within a second");
    assert_eq!(pair.subscriber.lag(pair.now), Lag { applied: None, complete: None });
    assert_eq!(pair.subscriber.state(), SubscriberState::Streaming);
    let staleness = pair.subscriber.staleness(pair.now).unwrap();
    pair.run(IDLE_MAX);
    assert!(pair.subscriber.staleness(pair.now).unwrap() >= staleness + IDLE_MAX - Duration::from_millis(10));
    assert_eq!(ended(&pair), Some(&Ended::Idle));

    pair.dark = false;
    pair.connect();
    pair.run(Duration::from_millis(100));
    assert!(pair.subscriber.live(pair.now));
    assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO));
}

#[test]
fn a_silent_secondary_is_given_up() {
    let mut pair = Pair::new();
    let mut publisher = Publisher::new(pair.now, pair.config.clone(), keys(1));
    let deadline = publisher.poll_timeout().unwrap();
    publisher.handle_timeout(deadline - Duration::from_millis(1));
    assert_eq!(publisher.poll_notice(), None);
    publisher.handle_activity(pair.now + Duration::from_secs(1));
    publisher.handle_timeout(deadline);
    assert_eq!(publisher.poll_notice(), None, "half a frame is a sign of life");
    pair.now = deadline + Duration::from_secs(1);
    publisher.handle_timeout(pair.now);
    assert_eq!(publisher.poll_notice(), Some(PublisherNotice::Closed(Closed::Idle)));
    assert_eq!(
        (publisher.poll_timeout(), publisher.poll_transmit(pair.now, &pair.log_state())),
        (None, None)
    );
}

#[test]
fn lag_is_the_age_of_what_is_not_applied() {
    let mut pair = Pair::new();
    pair.connect();
    pair.run(Duration::from_secs(1));
    pair.stages_pass = false;
    pair.append(1);
    pair.run(Duration::from_secs(3));
    let lag = pair.subscriber.lag(pair.now).applied.unwrap();
    assert!(lag > Duration::from_millis(2900) && lag <= Duration::from_secs(3), "{lag:?}");
    assert!(
        pair.subscriber.staleness(pair.now).unwrap() > Duration::from_millis(2900),
        "not applied is not fresh"
    );
    pair.subscriber.handle_durable(at(1));
    pair.subscriber.handle_applied(at(1));
    assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO));
    assert!(pair.subscriber.lag(pair.now).complete.unwrap() > Duration::from_millis(2900));
    assert!(pair.subscriber.staleness(pair.now).unwrap() < Duration::from_millis(300));
}

#[test]
fn who_does_not_fit_is_refused() {
    type Change = fn(&mut Pair);
    let cases: [(Change, Refusal); 6] = [
        (|pair| pair.config.site = Some("frankfurt".parse().unwrap()), Refusal::Site("mumbai".to_owned())),
        (|pair| pair.config.site = None, Refusal::Site("mumbai".to_owned())),
        (|pair| pair.subscriber = subscriber_with(at(0), Some("c2")), Refusal::Cluster("c1".to_owned())),
        (
            |pair| pair.subscriber = subscriber_with(at(8), None),
            Refusal::Fork { have: at(8), epoch: 1, head: at(7) },
        ),
        (
            |pair| pair.subscriber = subscriber_with(Offset::new(2, 3), None),
            Refusal::Fork { have: Offset::new(2, 3), epoch: 2, head: at(7) },
        ),
        (
            |pair| {
                let publisher = pair.publisher.as_mut().unwrap();
                let ack = outport_proto::frame::Ack {
                    received: at(0),
                    durable: at(0),
                    applied: at(0),
                    complete: at(0),
                    report: Default::default(),
                    behind: Vec::new(),
                };
                publisher.handle_frame(pair.now, FromSecondary::Ack(ack));
            },
            Refusal::Violation("the first frame is not Hello".to_owned()),
        ),
    ];
    for (change, refusal) in cases {
        let mut pair = Pair::new();
        pair.append(7);
        pair.connect();
        change(&mut pair);
        pair.subscriber.handle_connected(pair.now);
        if pair.config.site != Some("mumbai".parse().unwrap()) {
            pair.connect();
        }
        pair.run(Duration::from_secs(1));
        assert_eq!(ended(&pair), Some(&Ended::Refused(refusal.clone())));
        assert_eq!(pair.at_primary, [PublisherNotice::Closed(Closed::Refused(refusal))]);
        assert!(pair.delivered.is_empty());
    }
}

#[test]
fn versions_are_agreed_on() {
    let pair = Pair::new();
    let mut secondary = subscriber_with(at(0), None);
    secondary.handle_connected(pair.now);
    let Some(FromSecondary::Hello(mut hello)) = secondary.poll_transmit(pair.now) else { panic!("no Hello") };
    for (versions, accepted) in
        [(vec![2, 1], Some(2)), (vec![1], Some(1)), (vec![9, 1], Some(1)), (vec![9, 8], None), (vec![], None)]
    {
        hello.versions = versions;
        let mut publisher = Publisher::new(pair.now, pair.config.clone(), keys(1));
        publisher.handle_frame(pair.now, FromSecondary::Hello(hello.clone()));
        match publisher.poll_transmit(pair.now, &pair.log_state()) {
            Some(FromPrimary::Welcome(mut welcome)) => {
                assert_eq!(accepted, Some(welcome.version));
                welcome.version = 7;
                secondary.handle_frame(pair.now, FromPrimary::Welcome(welcome));
                assert_eq!(secondary.poll_notice(), Some(SubscriberNotice::Ended(Ended::Version(7))));
                secondary.handle_connected(pair.now);
            }
            Some(FromPrimary::Refused(refusal)) => {
                assert!(accepted.is_none() && refusal == Refusal::Version(vec![3, 2, 1]));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn who_speaks_version_1_is_told_nothing_for_people() {
    let detail = |name: &str| outport_proto::frame::SiteDetail {
        site: name.parse().unwrap(),
        eta_micros: None,
        applied: None,
        complete: None,
        pulls: Vec::new(),
        hits_ppm: None,
        served_bytes: 0,
        upstream_bytes: 0,
        clock: None,
        canary: None,
        missing: Vec::new(),
        fills: Vec::new(),
        last_error: None,
        location: None,
    };
    for (version, told) in
        [(1, None), (2, Some(FromSecondary::Details(vec![detail("goa"), detail("mumbai")])))]
    {
        let pair = Pair::new();
        let mut secondary = subscriber_with(at(0), None);
        secondary.handle_connected(pair.now);
        let Some(FromSecondary::Hello(mut hello)) = secondary.poll_transmit(pair.now) else {
            panic!("no Hello")
        };
        hello.versions = vec![version];
        let mut publisher = Publisher::new(pair.now, pair.config.clone(), keys(1));
        publisher.handle_frame(pair.now, FromSecondary::Hello(hello));
        let welcome = publisher.poll_transmit(pair.now, &pair.log_state()).unwrap();
        secondary.handle_frame(pair.now, welcome);
        secondary.handle_detail(detail("mumbai"));
        secondary.handle_detail(detail("goa"));
        let sent = std::iter::from_fn(|| secondary.poll_transmit(pair.now));
        let details = sent.filter(|frame| matches!(frame, FromSecondary::Details(_))).last();
        assert_eq!(details, told);
    }
}

#[test]
fn a_site_behind_the_floor_takes_a_snapshot_first() {
    let mut pair = Pair::new();
    pair.append(100);
    pair.floor = at(50);
    pair.subscriber = subscriber_with(at(20), Some("c1"));
    pair.connect();
    pair.run(Duration::from_secs(30));
    assert_eq!(pair.at_primary[0], PublisherNotice::Opened(Resume::Snapshot));
    assert_eq!(pair.subscriber.state(), SubscriberState::Snapshot);
    assert!(pair.delivered.is_empty() && pair.subscriber.live(pair.now), "heartbeats go on meanwhile");

    pair.subscriber.handle_snapshot_loaded(at(90), at(90));
    pair.run(Duration::from_secs(1));
    assert_eq!(pair.subscriber.state(), SubscriberState::Streaming);
    assert_eq!(pair.delivered, (91..=100).map(at).collect::<Vec<_>>());
    assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO));
}

#[test]
fn a_site_so_far_behind_that_the_events_cost_more_takes_one_snapshot() {
    for (had, resume) in [(0, Resume::Snapshot), (39, Resume::Snapshot), (40, Resume::Tail)] {
        let mut pair = Pair::new();
        pair.tail_events_max = 60;
        pair.append(100);
        pair.subscriber = subscriber_with(if had == 0 { Offset::ZERO } else { at(had) }, Some("c1"));
        pair.connect();
        pair.run(Duration::from_secs(1));
        assert_eq!(pair.at_primary[0], PublisherNotice::Opened(resume), "with {had}");
        if resume == Resume::Snapshot {
            assert!(pair.delivered.is_empty());
            // While it was taken, as much happened again.
            pair.append(100);
            pair.subscriber.handle_snapshot_loaded(at(100), at(100));
            pair.run(Duration::from_secs(1));
            assert!(pair.at_primary.contains(&PublisherNotice::Opened(Resume::Tail)), "with {had}");
        }
        assert_eq!(pair.delivered.last(), Some(&pair.head()), "with {had}");
    }
}

#[test]
fn a_site_past_the_fork_rewinds_and_one_before_it_goes_on() {
    for (had, resume) in [(10, Resume::Rewind { fork: at(6) }), (6, Resume::Tail), (3, Resume::Tail)] {
        let mut pair = Pair::new();
        pair.append(had);
        pair.connect();
        pair.run(Duration::from_secs(1));
        assert!(pair.subscriber.closed_time().is_some());
        pair.append(10 - had);
        pair.cut();
        pair.restore(6, true);
        pair.connect();
        let opened = PublisherNotice::Opened(resume);
        pair.run_until(|pair| pair.at_primary.contains(&opened));
        if had == 10 {
            pair.run(Duration::from_secs(1));
            assert_eq!(pair.subscriber.state(), SubscriberState::Snapshot);
            assert_eq!(pair.subscriber.closed_time(), None, "it was the other history's");
            assert_eq!(pair.delivered, everything_up_to(10));
            pair.subscriber.handle_snapshot_loaded(Offset::new(2, 7), at(10));
        }
        pair.append(2);
        pair.run_until(|pair| pair.subscriber.progress().applied == Offset::new(2, 9));
        pair.run(Duration::from_secs(1));
        assert!(pair.subscriber.live(pair.now) && pair.subscriber.closed_time().is_some());
        assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO));
        assert_eq!((pair.subscriber.epoch(), ended(&pair)), (2, None));
    }
}

#[test]
fn an_older_copy_of_the_primary_is_refused_until_it_says_that_it_is_one() {
    // Shorter than what the site has; or longer again, with other events.
    for pushed_since in [0, 6] {
        let mut pair = Pair::new();
        pair.append(10);
        pair.connect();
        pair.run(Duration::from_secs(1));
        pair.restore(6, false);
        pair.append(pushed_since);
        pair.connect();
        pair.run(Duration::from_secs(1));
        let refusal = Refusal::Fork { have: at(10), epoch: 1, head: pair.head() };
        assert!(refusal.to_string().contains("--restored"));
        assert_eq!(ended(&pair), Some(&Ended::Refused(refusal)));
        assert_eq!(pair.subscriber.progress().applied, at(10), "what it has stays");

        pair.restore(6 + pushed_since as u64, true);
        pair.connect();
        let fork = at(6 + pushed_since as u64);
        pair.run_until(|pair| pair.at_primary.contains(&PublisherNotice::Opened(Resume::Rewind { fork })));
    }
}

#[test]
fn of_two_primaries_the_one_of_the_older_epoch_is_left() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.connect();
    pair.run(Duration::from_secs(1));
    let old = pair.log.clone();
    pair.restore(10, true);
    pair.connect();
    pair.run_until(|pair| pair.subscriber.progress().applied == Offset::new(2, 11));

    pair.cut();
    (pair.log, pair.epoch) = (old, 1);
    pair.append(5);
    pair.connect();
    pair.run(Duration::from_secs(1));
    let refusal = Refusal::Fork { have: Offset::new(2, 11), epoch: 2, head: at(15) };
    assert_eq!(ended(&pair), Some(&Ended::Refused(refusal)));

    // One that lost its log but remembers the epoch is not misled, whoever answers.
    pair.at_secondary.clear();
    let mut config_of_two = subscriber_with(at(0), Some("c1"));
    config_of_two.handle_connected(pair.now);
    let Some(FromSecondary::Hello(hello)) = config_of_two.poll_transmit(pair.now) else { panic!("no Hello") };
    let mut publisher = Publisher::new(pair.now, pair.config.clone(), keys(1));
    publisher.handle_frame(pair.now, FromSecondary::Hello(hello.clone()));
    let Some(FromPrimary::Welcome(welcome)) = publisher.poll_transmit(pair.now, &pair.log_state()) else {
        panic!("no Welcome")
    };
    let mut publisher = Publisher::new(pair.now, pair.config.clone(), keys(1));
    let knows_two = outport_proto::frame::Hello { epoch: 2, ..hello };
    publisher.handle_frame(pair.now, FromSecondary::Hello(knows_two));
    let refused = publisher.poll_transmit(pair.now, &pair.log_state());
    assert!(matches!(refused, Some(FromPrimary::Refused(Refusal::Fork { epoch: 2, .. }))), "{refused:?}");
    let mut ahead = subscriber_with(Offset::new(2, 11), Some("c1"));
    ahead.handle_connected(pair.now);
    ahead.handle_frame(pair.now, FromPrimary::Welcome(welcome));
    let why = Ended::Fork { have: Offset::new(2, 11), epoch: 2, head: at(15) };
    assert_eq!(ahead.poll_notice(), Some(SubscriberNotice::Ended(why)));
}

#[test]
fn a_log_that_became_another_ends_the_session() {
    let mut pair = Pair::new();
    pair.append(10);
    pair.connect();
    pair.run(Duration::from_secs(1));
    pair.log.truncate(5);
    pair.run(Duration::from_secs(1));
    assert!(pair.at_primary.contains(&PublisherNotice::Closed(Closed::Forked)));
}

#[test]
fn a_site_the_log_has_left_behind_is_told_to_come_back() {
    let mut pair = Pair::new();
    pair.config.window_bytes = 1000;
    pair.stages_pass = false;
    pair.append(100);
    pair.connect();
    pair.run(Duration::from_secs(1));
    assert!(pair.delivered.len() < 20, "a slow site stalls itself: {}", pair.delivered.len());
    assert!(pair.connected() && pair.subscriber.live(pair.now));
    pair.floor = at(90);
    pair.run(Duration::from_secs(1));
    assert!(pair.at_primary.contains(&PublisherNotice::Closed(Closed::TooSlow)));
}

#[test]
fn a_slow_site_goes_on_when_it_acknowledges() {
    let mut pair = Pair::new();
    pair.config.window_bytes = 1000;
    pair.config.append_bytes_max = 300;
    pair.stages_pass = false;
    pair.append(100);
    pair.connect();
    for _ in 0..40 {
        pair.run(Duration::from_millis(100));
        pair.pass_stages();
    }
    assert_eq!(pair.delivered, everything_up_to(100));
}

#[test]
fn new_keys_are_sent_once() {
    let mut pair = Pair::new();
    pair.connect();
    pair.run(Duration::from_millis(500));
    for generation in [1, 2, 2] {
        pair.publisher.as_mut().unwrap().handle_keys(keys(generation));
        pair.run(Duration::from_millis(500));
    }
    let sent = pair.at_secondary.iter().filter(|notice| matches!(notice, SubscriberNotice::Keys(_)));
    assert_eq!(sent.collect::<Vec<_>>(), [&SubscriberNotice::Keys(keys(2))]);
}

#[test]
fn a_gap_or_another_history_ends_the_session() {
    let mut pair = Pair::new();
    pair.append(3);
    pair.connect();
    pair.run(Duration::from_secs(1));
    let history = |epoch, count| {
        let mut other = Pair::new();
        other.epoch = epoch;
        other.append(count);
        other.log.split_off(count - 1)
    };
    for (append, why) in [
        (history(1, 5), Ended::Gap { after: at(3), offset: at(5) }),
        (history(2, 4), Ended::ForeignEpoch { epoch: 1, offset: Offset::new(2, 4) }),
    ] {
        pair.at_secondary.clear();
        pair.subscriber.handle_frame(pair.now, FromPrimary::Append(append));
        pair.run(Duration::from_millis(100));
        assert_eq!(ended(&pair), Some(&why));
        pair.connect();
        pair.run(Duration::from_secs(1));
    }
    pair.subscriber.handle_frame(pair.now, FromPrimary::Append(vec!["?".into()]));
    assert!(matches!(pair.subscriber.poll_notice(), Some(SubscriberNotice::Ended(Ended::Malformed(_)))));
    pair.subscriber.handle_connected(pair.now);
    pair.subscriber.handle_frame(pair.now, FromPrimary::Keys(keys(1)));
    assert!(matches!(pair.subscriber.poll_notice(), Some(SubscriberNotice::Ended(Ended::OutOfPlace(_)))));
    assert_eq!(pair.delivered, everything_up_to(3));
}

#[test]
fn a_driver_that_hands_over_the_wrong_events_is_told() {
    let mut pair = Pair::new();
    pair.append(3);
    pair.connect();
    pair.run(Duration::from_secs(1));
    let event = pair.log[0].clone();
    let publisher = pair.publisher.as_mut().unwrap();
    assert_eq!(publisher.handle_events([(at(5), event)]), Err(Misplaced { after: at(3), offset: at(5) }));
}
