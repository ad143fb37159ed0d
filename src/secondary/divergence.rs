//! Whether this site's index is in the state that the primary's is in at the same place of the
//! log, and what is done when it is not.
//!
//! From the heartbeat that shows a difference until one shows that it is gone, the site's tags
//! are revalidated at the primary. Rounds of repair follow one another, each judged by the next
//! heartbeat; when they do not lead to equality, a snapshot replaces everything.

use std::time::Duration;

use outport_proto::{Offset, frame::Heartbeat};
use tokio::{task::JoinSet, time::Instant};

use super::repair::{RepairError, Repaired};
use crate::{index::Index, process};

/// Rounds that may leave a difference before a snapshot is taken.
const ROUNDS_MAX: u32 = 8;
/// Rest after a round that could not be made, doubled with each until [`REST_MAX`].
const REST_MIN: Duration = Duration::from_millis(250);
const REST_MAX: Duration = Duration::from_secs(30);
/// A snapshot that did not help is not taken again for this long: it is work for the primary.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(600);

/// The comparison of the two indexes, and the repair under way.
#[derive(Debug, Default)]
pub(super) struct Divergence {
    /// The primary's state at a place that is not compared yet.
    pending: Option<(Offset, [u8; 32])>,
    incident: Option<Incident>,
    rounds: JoinSet<Result<Repaired, RepairError>>,
    snapshot_at: Option<Instant>,
    counts: Counts,
}

/// A difference that is known.
#[derive(Debug)]
struct Incident {
    at: Offset,
    begun: Instant,
    entries: usize,
    /// Rounds made.
    rounds: u32,
    /// Rounds that could not be made, one after another.
    failures: u32,
    /// When the next may begin.
    next_at: Instant,
    /// Whether a heartbeat showed a difference since the last one.
    is_judged: bool,
}

/// What happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Differences found.
    pub(super) mismatches: u64,
    /// Of those, repaired.
    pub(super) repairs: u64,
    /// Entries put, removed or replaced.
    pub(super) entries: u64,
    /// Comparisons made.
    pub(super) comparisons: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Todo {
    /// Nothing.
    Nothing,
    /// A round of repair.
    Repair,
    /// A snapshot.
    Snapshot,
}

impl Divergence {
    /// Notes the primary's state, to be compared once this site is there. One that is waited for
    /// stays: with events without end, the newest would never be reached.
    pub(super) fn handle_heartbeat(&mut self, heartbeat: &Heartbeat) {
        self.pending.get_or_insert((heartbeat.state_at, heartbeat.state_hash));
    }

    /// Nothing is heard any more; what was heard may be of a history that ended.
    pub(super) fn handle_disconnected(&mut self) {
        self.pending = None;
        self.rounds = JoinSet::new();
    }

    /// Compares, if this site is where the primary was.
    pub(super) fn compare(&mut self, index: &Index) {
        let Some((at, theirs)) = self.pending.filter(|(at, _)| index.applied() >= *at) else { return };
        self.pending = None;
        // Without one it is too long ago.
        let Some(own) = index.state_hash_at(at) else { return };
        self.counts.comparisons += 1;
        if own == theirs { self.equal(at) } else { self.differs(at) }
    }

    fn equal(&mut self, at: Offset) {
        let Some(incident) = self.incident.take() else { return };
        self.counts.repairs += 1;
        let Incident { entries, rounds, begun, .. } = incident;
        let seconds = begun.elapsed().as_secs_f64();
        tracing::info!(%at, entries, rounds, seconds, "the index is in the primary's state again");
    }

    fn differs(&mut self, at: Offset) {
        let now = Instant::now();
        let counts = &mut self.counts;
        let incident = self.incident.get_or_insert_with(|| {
            counts.mismatches += 1;
            tracing::error!(%at, "the index is not in the primary's state: it is being repaired");
            Incident { at, begun: now, entries: 0, rounds: 0, failures: 0, next_at: now, is_judged: true }
        });
        (incident.at, incident.is_judged) = (at, true);
    }

    /// What is to be done now, while there is a difference. To be called after [`Divergence::compare`].
    pub(super) fn todo(&self) -> Todo {
        let Some(incident) =
            self.incident.as_ref().filter(|incident| incident.is_judged && self.rounds.is_empty())
        else {
            return Todo::Nothing;
        };
        let now = Instant::now();
        let may_replace = self.snapshot_at.is_none_or(|at| now.duration_since(at) >= SNAPSHOT_INTERVAL);
        if incident.rounds >= ROUNDS_MAX && may_replace {
            Todo::Snapshot
        } else if now >= incident.next_at {
            Todo::Repair
        } else {
            Todo::Nothing
        }
    }

    /// A round begins.
    pub(super) fn begin_round(
        &mut self,
        round: impl Future<Output = Result<Repaired, RepairError>> + Send + 'static,
    ) {
        self.rounds.spawn(process::inherit(round));
    }

    /// The end of the round under way; pends while there is none. May be dropped and called again.
    pub(super) async fn round_ended(&mut self) -> Result<Repaired, RepairError> {
        match self.rounds.join_next().await {
            Some(ended) => ended.unwrap_or_else(|error| Err(RepairError::Crashed(error.to_string()))),
            None => std::future::pending().await,
        }
    }

    /// Notes how a round ended. Whether it helped, the next heartbeat tells.
    pub(super) fn handle_round(&mut self, ended: &Result<Repaired, RepairError>) {
        // What was compared before is not what is there now.
        self.pending = None;
        let Some(incident) = &mut self.incident else { return };
        incident.is_judged = false;
        match ended {
            Ok(repaired) => {
                tracing::info!(
                    buckets = repaired.buckets,
                    entries = repaired.entries,
                    moved = repaired.moved,
                    "a round of repair ended"
                );
                incident.entries += repaired.entries;
                self.counts.entries += repaired.entries as u64;
                incident.rounds += 1;
                incident.failures = 0;
            }
            Err(error @ RepairError::TooMuch(_)) => {
                tracing::info!(%error, "a snapshot is to be taken instead of a repair");
                incident.rounds = ROUNDS_MAX;
                incident.failures = 0;
            }
            Err(error) => {
                tracing::info!(%error, "a round of repair could not be made");
                incident.failures += 1;
            }
        }
        let exponent = incident.failures.max(incident.rounds.saturating_sub(2)).min(16);
        let rest =
            if exponent == 0 { Duration::ZERO } else { REST_MIN.saturating_mul(1 << exponent).min(REST_MAX) };
        incident.next_at = Instant::now() + rest;
    }

    /// A snapshot is taken.
    pub(super) fn handle_snapshot(&mut self) {
        self.snapshot_at = Some(Instant::now());
        if let Some(incident) = &mut self.incident {
            incident.rounds = 0;
        }
    }

    /// Whether the index is known to differ.
    pub(super) const fn is_known(&self) -> bool {
        self.incident.is_some()
    }

    /// What a person should know.
    pub(super) fn alarm(&self) -> Option<String> {
        let Incident { at, rounds, .. } = self.incident.as_ref()?;
        Some(format!("at {at} the index is not in the primary's state; repairs tried: {rounds}"))
    }

    /// What happened since the start.
    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use outport_proto::{Change, Digest, Event, Timestamp};

    use super::*;
    use crate::index::IndexOptions;

    const OTHER: [u8; 32] = [7; 32];

    /// An index of one link.
    fn index() -> Index {
        let index = Index::in_memory(IndexOptions { hot_bytes_max: 0, cache_bytes_max: 0 });
        let change = Change::BlobCommitted {
            repo: "team/app".parse().unwrap(),
            digest: Digest::sha256(b"layer"),
            size: 5,
        };
        let (offset, time) = (Offset::new(1, 1), Timestamp::from_secs(1));
        index.apply(&[Arc::new(Event { offset, time, actor: String::new(), intent: None, change })]).unwrap();
        index
    }

    fn hear(divergence: &mut Divergence, index: &Index, state_hash: [u8; 32]) {
        let state_at = index.applied();
        let head = Heartbeat {
            head: state_at,
            closed_time: Timestamp::from_secs(1),
            now: Timestamp::from_secs(1),
            log_bytes: 0,
            state_at,
            unsure: false,
            state_hash,
        };
        divergence.handle_heartbeat(&head);
        divergence.compare(index);
    }

    const fn round(entries: usize) -> Result<Repaired, RepairError> {
        Ok(Repaired { buckets: 1, entries, moved: 0 })
    }

    /// Goes on until there is something to do, and says what.
    async fn todo(divergence: &Divergence) -> Todo {
        let limit = Instant::now() + REST_MAX;
        while divergence.todo() == Todo::Nothing && Instant::now() < limit {
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        divergence.todo()
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_that_do_not_help_end_in_a_snapshot_and_an_incident_is_an_error_once() {
        let lines = Lines::default();
        let kept = lines.clone();
        // While there is but one subscriber, whether a line is wanted is asked on the thread that comes to
        // it first, and remembered: on that of another test nobody wants it.
        let _other = tracing::Dispatch::new(tracing_subscriber::registry());
        let logger = tracing_subscriber::fmt().with_ansi(false).with_writer(move || kept.clone()).finish();
        let _logging = tracing::subscriber::set_default(logger);
        let (index, mut divergence) = (index(), Divergence::default());
        hear(&mut divergence, &index, index.state_hash().0);
        assert_eq!(
            (divergence.todo(), divergence.is_known(), divergence.alarm()),
            (Todo::Nothing, false, None)
        );

        let began = Instant::now();
        for number in 0..ROUNDS_MAX {
            hear(&mut divergence, &index, OTHER);
            assert_eq!(todo(&divergence).await, Todo::Repair, "round {number}");
            divergence.handle_round(&round(2));
            assert_eq!(divergence.todo(), Todo::Nothing, "the next heartbeat judges it");
        }
        assert!(began.elapsed() > Duration::from_secs(10), "rounds that do not help become rare");
        hear(&mut divergence, &index, OTHER);
        assert_eq!(divergence.todo(), Todo::Snapshot);
        assert!(divergence.alarm().unwrap().contains("repairs tried: 8"), "{:?}", divergence.alarm());

        // It did not help either: rounds go on, and the next snapshot is far away.
        divergence.handle_snapshot();
        for _ in 0..ROUNDS_MAX + 2 {
            hear(&mut divergence, &index, OTHER);
            assert_eq!(todo(&divergence).await, Todo::Repair);
            divergence.handle_round(&round(0));
        }
        hear(&mut divergence, &index, index.state_hash().0);
        assert_eq!(
            (divergence.todo(), divergence.is_known(), divergence.alarm()),
            (Todo::Nothing, false, None)
        );
        let counts = divergence.counts();
        let incident = Counts { mismatches: 1, repairs: 1, entries: 16, comparisons: counts.comparisons };
        assert_eq!(counts, incident);

        // Another one.
        hear(&mut divergence, &index, OTHER);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches(" ERROR ").count(), 2, "{text}");
        assert_eq!(divergence.counts().mismatches, 2);
        assert_eq!(text.matches("in the primary's state again").count(), 1, "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_that_cannot_be_made_are_tried_again_and_too_much_is_a_snapshot_at_once() {
        let (index, mut divergence) = (index(), Divergence::default());
        for _ in 0..2 * ROUNDS_MAX {
            hear(&mut divergence, &index, OTHER);
            assert_eq!(todo(&divergence).await, Todo::Repair);
            divergence.handle_round(&Err(RepairError::Unavailable("full".to_owned())));
        }
        hear(&mut divergence, &index, OTHER);
        assert_eq!(todo(&divergence).await, Todo::Repair, "nothing was learnt from those");
        divergence.handle_round(&Err(RepairError::TooMuch(4000)));
        hear(&mut divergence, &index, OTHER);
        assert_eq!(divergence.todo(), Todo::Snapshot);
        assert_eq!(divergence.counts().entries, 0);
    }
}
