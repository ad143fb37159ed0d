//! However the stream behaves, every event is delivered exactly once and in order.
#![cfg(test)]

use std::time::Duration;

use outport_proto::Offset;
use proptest::{collection::vec, prelude::*};

use crate::pair::{Fate, Pair, subscriber_with};

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Arrives),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Doubled),
        1 => Just(Fate::Overtaken),
        1 => Just(Fate::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn exactly_once_and_in_order(
        fates in vec(fate(), 0..60), bursts in vec((0_usize..40, 0_u64..400, any::<bool>()), 1..12),
        append_bytes_max in 100_usize..2000,
    ) {
        let mut pair = Pair::new();
        pair.config.append_bytes_max = append_bytes_max;
        pair.config.window_bytes = 4 * append_bytes_max;
        pair.fates = fates.into();
        for (events, pause_ms, stages_pass) in bursts {
            pair.append(events);
            pair.stages_pass = stages_pass;
            if !pair.connected() {
                pair.connect();
            }
            pair.run(Duration::from_millis(pause_ms));
            prop_assert!(pair.subscriber.staleness(pair.now).is_none_or(|age| age <= pair.now));
        }
        pair.fates.clear();
        pair.stages_pass = true;
        pair.pass_stages();
        pair.connect();
        let head = pair.head();
        pair.run_until(|pair| pair.subscriber.progress().applied == head && pair.subscriber.live(pair.now) && pair.connected());
        let all: Vec<_> = (1..=head.seq).map(|seq| Offset::new(1, seq)).collect();
        prop_assert_eq!(&pair.delivered, &all);
        prop_assert_eq!(pair.subscriber.lag(pair.now).applied, Some(Duration::ZERO));
    }

    #[test]
    fn a_restart_resumes_after_what_is_durable(durable in 0_u64..50, more in 0_usize..50) {
        let mut pair = Pair::new();
        pair.append(50);
        pair.connect();
        pair.stages_pass = false;
        pair.run_until(|pair| pair.delivered.len() == 50);
        pair.cut();
        pair.subscriber = subscriber_with(Offset::new(1, durable), Some("c1"));
        pair.delivered.clear();
        pair.append(more);
        pair.stages_pass = true;
        pair.connect();
        let head = pair.head();
        pair.run_until(|pair| pair.subscriber.progress().applied == head);
        let rest: Vec<_> = (durable + 1..=head.seq).map(|seq| Offset::new(1, seq)).collect();
        prop_assert_eq!(&pair.delivered, &rest);
    }
}
