//! Many worlds, on as many threads as are given.

use std::{
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use crate::{Options, Outcome, run};

/// Runs the worlds `seeds` (a range), each as `options` say but for its seed, and hands every outcome to
/// `take` as it comes; that says whether to go on. No world begins after `until`.
///
/// # Errors
/// When this machine cannot run a world.
pub fn run_many(
    options: &Options,
    seeds: std::ops::Range<u64>,
    jobs: usize,
    until: Option<Instant>,
    mut take: impl FnMut(Options, Outcome) -> bool,
) -> anyhow::Result<()> {
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let (sender, outcomes) = mpsc::sync_channel(64);
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            let (sender, next, stop, end) = (sender.clone(), &next, &stop, seeds.end);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) && until.is_none_or(|until| Instant::now() < until) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let options = Options { seed, ..options.clone() };
                    let outcome = run(&options);
                    if sender.send((options, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let mut ended = Ok(());
        for (options, outcome) in outcomes {
            match outcome {
                Ok(outcome) => {
                    if !take(options, outcome) {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    ended = Err(error);
                }
            }
        }
        ended
    })
}
