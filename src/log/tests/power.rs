//! The power goes at every step of random workloads.

use proptest::prelude::*;

use super::*;

/// One step of a random workload.
#[derive(Clone, Debug)]
enum Step {
    /// That many concurrent appends of that many changes.
    Append(usize, usize),
    Reset,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (1..4usize, 1..4usize).prop_map(|(appends, changes)| Step::Append(appends, changes)),
        1 => Just(Step::Reset),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..25)
}

/// Runs `steps` until the power goes; returns the events acknowledged since the last reset with
/// the reset's place, and the place of a reset that was under way.
fn work(disk: &FaultyDisk, steps: &[Step]) -> (Offset, Vec<(u64, usize)>, Option<Offset>) {
    let (mut floor, mut acknowledged) = (Offset::ZERO, Vec::new());
    let mut number = 0;
    let runtime = runtime();
    let Ok((mut log, _)) = open(disk, small()) else { return (floor, acknowledged, None) };
    for step in steps {
        match step {
            Step::Append(appends, changes) => {
                let first = number;
                number += appends * changes;
                let outcomes = runtime.block_on(async {
                    let tasks: Vec<_> = (0..*appends)
                        .map(|append| {
                            let log = log.clone();
                            let from = first + append * changes;
                            let changes = (from..from + changes).map(change).collect();
                            tokio::spawn(async move { (from, log.append("", changes).await) })
                        })
                        .collect();
                    let mut outcomes = Vec::new();
                    for task in tasks {
                        outcomes.push(task.await.unwrap());
                    }
                    outcomes
                });
                for (from, outcome) in outcomes {
                    let Ok(last) = outcome else { continue };
                    for index in 0..*changes {
                        acknowledged.push((last.seq + 1 + index as u64 - *changes as u64, from + index));
                    }
                }
            }
            Step::Reset => {
                let to = Offset::new(1, log.head().seq + 100);
                if runtime.block_on(log.reset(to, 0)).is_err() {
                    return (floor, acknowledged, Some(to));
                }
                (floor, acknowledged) = (to, Vec::new());
            }
            Step::Reopen => {
                drop(log);
                match open(disk, small()) {
                    Ok((reopened, _)) => log = reopened,
                    Err(_) => break,
                }
            }
        }
    }
    (floor, acknowledged, None)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the moment of the power cut and whatever of the rest survives it.
    #[test]
    fn a_power_cut_loses_nothing_acknowledged(steps in steps(), seed: u64, kill: bool) {
        let counting = FaultyDisk::new();
        work(&counting, &steps);
        for cut in 0..counting.counts().changes {
            let disk = FaultyDisk::new();
            disk.cut_power_at(cut);
            let (floor, acknowledged, resetting) = work(&disk, &steps);
            let survived = if kill { disk.after_kill() } else { disk.power_on(seed.wrapping_add(cut)) };
            // A second cut while the first is being recovered from.
            survived.cut_power_at(seed % 7);
            let survived = match open(&survived, small()) {
                Ok(_) => survived.after_kill(),
                Err(_) => survived.power_on(seed ^ cut),
            };
            let (log, _) = match open(&survived, small()) {
                Ok(opened) => opened,
                Err(error) => return Err(TestCaseError::fail(format!("cut {cut}: {error}"))),
            };
            if resetting == Some(log.floor()) {
                continue;
            }
            prop_assert_eq!(log.floor(), floor, "cut {}", cut);
            let found = read_all(&log, 700).unwrap();
            for (seq, number) in acknowledged {
                let event = found.iter().find(|event| event.offset.seq == seq);
                prop_assert_eq!(event.map(|event| number_of(event)), Some(number), "cut {} seq {}", cut, seq);
            }
            for (index, event) in found.iter().enumerate() {
                prop_assert_eq!(event.offset.seq, floor.seq + 1 + index as u64);
            }
            runtime().block_on(log.append("", vec![change(0)])).unwrap();
        }
    }
}
