use std::{
    collections::VecDeque,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use outport_proto::{Algorithm, ManifestPut, Reference};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::*;
use crate::fetch::{At, Body, BoxFuture};

const PIECE: usize = 40_000;
const SIZE: usize = 1_000_003;

/// What one fetch does.
#[derive(Clone, Copy)]
enum Plan {
    /// Gives everything.
    Whole,
    /// Breaks when so many bytes of the blob were given.
    BreakAt(usize),
    /// Says that this is the end when it is not.
    EndAt(usize),
    /// Gives some bytes more than announced.
    TooLong,
    /// Gives a wrong byte there.
    WrongByteAt(usize),
    /// Announces another size.
    Size(u64),
    /// Does not answer.
    Unreachable,
}

struct Script {
    content: Bytes,
    plans: Mutex<VecDeque<Plan>>,
    /// Every fetch: in whose name, from which byte.
    asked: Mutex<Vec<(String, u64)>>,
    links: Mutex<Vec<RepoName>>,
    /// A piece costs one permit when this is set.
    is_metered: AtomicBool,
    pieces: Arc<Semaphore>,
}

impl Script {
    fn asked_from(&self) -> Vec<u64> {
        self.asked.lock().unwrap().iter().map(|(_, at)| *at).collect()
    }
}

struct Upstreamed(Arc<Script>);

impl Upstream for Upstreamed {
    fn resolve<'a>(
        &'a self,
        _: &'a RepoName,
        _: &'a Reference,
    ) -> BoxFuture<'a, Result<At<Option<ManifestPut>>, UpstreamError>> {
        unreachable!("flights only fetch")
    }

    fn link<'a>(
        &'a self,
        _: &'a RepoName,
        _: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Option<u64>>, UpstreamError>> {
        unreachable!("flights only fetch")
    }

    fn referrers<'a>(
        &'a self,
        _: &'a RepoName,
        _: &'a Digest,
    ) -> BoxFuture<'a, Result<At<Vec<ManifestPut>>, UpstreamError>> {
        unreachable!("flights only fetch")
    }

    fn fetch<'a>(
        &'a self,
        repo: &'a RepoName,
        _: &'a Digest,
        offset: u64,
    ) -> BoxFuture<'a, Result<Option<Box<dyn Body>>, UpstreamError>> {
        Box::pin(async move {
            let script = &self.0;
            script.asked.lock().unwrap().push((repo.to_string(), offset));
            if !script.links.lock().unwrap().contains(repo) {
                return Ok(None);
            }
            let plan = script.plans.lock().unwrap().pop_front().unwrap_or(Plan::Whole);
            if matches!(plan, Plan::Unreachable) {
                return Err(UpstreamError::Unreachable("scripted".to_owned()));
            }
            let mut content = script.content.to_vec();
            match plan {
                Plan::WrongByteAt(at) => content[at] ^= 1,
                Plan::TooLong => content.extend_from_slice(b"more"),
                _ => {}
            }
            let body =
                Given { script: Arc::clone(script), content: content.into(), plan, at: offset as usize };
            Ok(Some(Box::new(body) as Box<dyn Body>))
        })
    }
}

struct Given {
    script: Arc<Script>,
    content: Bytes,
    plan: Plan,
    at: usize,
}

impl Body for Given {
    fn size(&self) -> u64 {
        if let Plan::Size(size) = self.plan { size } else { self.script.content.len() as u64 }
    }

    fn chunk(&mut self) -> BoxFuture<'_, Result<Option<Bytes>, UpstreamError>> {
        Box::pin(async move {
            let mut end = (self.at + PIECE).min(self.content.len());
            match self.plan {
                Plan::BreakAt(at) if self.at >= at => {
                    return Err(UpstreamError::Unreachable("scripted".to_owned()));
                }
                Plan::EndAt(at) if self.at >= at => return Ok(None),
                Plan::BreakAt(at) | Plan::EndAt(at) => end = end.min(at),
                // The surplus comes alone, behind a whole blob.
                Plan::TooLong if self.at < self.script.content.len() => {
                    end = end.min(self.script.content.len())
                }
                _ => {}
            }
            if self.at == end {
                return Ok(None);
            }
            if self.script.is_metered.load(Ordering::SeqCst) {
                self.script.pieces.acquire().await.unwrap().forget();
            }
            let piece = self.content.slice(self.at..end);
            self.at = end;
            Ok(Some(piece))
        })
    }
}

struct World {
    dir: TempDir,
    store: Store,
    script: Arc<Script>,
    flights: Flights,
    shutdown: Shutdown,
    metrics: FlightMetrics,
    content: Bytes,
    digest: Digest,
}

fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

fn app() -> RepoName {
    repo("team/app")
}

fn world_of(size: usize, plans: &[Plan], options: FlightOptions) -> World {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path()).unwrap();
    let content: Bytes = (0..size).map(|at| (at * 31 / 7 + at / 251) as u8).collect();
    let script = Arc::new(Script {
        content: content.clone(),
        plans: Mutex::new(plans.iter().copied().collect()),
        asked: Mutex::default(),
        links: Mutex::new(vec![app()]),
        is_metered: AtomicBool::new(false),
        pieces: Arc::new(Semaphore::new(0)),
    });
    let (shutdown, metrics) = (Shutdown::new(), FlightMetrics::default());
    let upstream = Arc::new(Upstreamed(Arc::clone(&script)));
    let flights = Flights::new(store.clone(), upstream, shutdown.clone(), options, metrics.clone());
    let digest = Digest::sha256(&content);
    World { dir, store, script, flights, shutdown, metrics, content, digest }
}

fn options() -> FlightOptions {
    FlightOptions {
        backoff_min: Duration::from_millis(1),
        attempts_max: 3,
        pump: PumpOptions { batch_bytes_min: 1, ..PumpOptions::default() },
        ..FlightOptions::default()
    }
}

fn world(plans: &[Plan]) -> World {
    world_of(SIZE, plans, options())
}

impl World {
    fn join(&self) -> Flight {
        self.flights.join(&app(), &self.digest, Linked { size: Some(self.content.len() as u64) })
    }

    fn meter(&self) {
        self.script.is_metered.store(true, Ordering::SeqCst);
    }

    fn temp_files(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("tmp")).unwrap().count()
    }

    fn is_stored(&self) -> bool {
        self.store.get(&self.digest).unwrap().is_some()
    }
}

/// Everything a reader got, and how it ended.
async fn drain(reader: &mut FlightReader) -> (Vec<u8>, Result<(), FillError>) {
    let mut got = Vec::new();
    loop {
        match reader.chunk().await {
            Ok(Some(bytes)) => got.extend_from_slice(&bytes),
            Ok(None) => return (got, Ok(())),
            Err(error) => return (got, Err(error)),
        }
    }
}

async fn read_all(flight: &Flight) -> Vec<u8> {
    let size = flight.size().await.unwrap();
    let (got, end) = drain(&mut flight.reader(0..size)).await;
    end.unwrap();
    got
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_cost_one_fetch() {
    let world = world(&[]);
    let readers: Vec<_> = (0..131)
        .map(|_| {
            let flight = world.join();
            tokio::spawn(async move { read_all(&flight).await })
        })
        .collect();
    for reader in readers {
        assert!(reader.await.unwrap() == world.content);
    }
    // Who comes after finds it in the store, by whichever way it comes.
    assert!(read_all(&world.join()).await == world.content);
    assert_eq!(world.script.asked_from(), [0]);
    assert_eq!(world.metrics.upstream_bytes(), SIZE as u64);
    assert!(world.is_stored());
    assert_eq!(world.temp_files(), 0);
}

#[tokio::test]
async fn the_fill_goes_on_when_its_only_client_leaves() {
    let world = world(&[]);
    world.meter();
    let flight = world.join();
    let mut reader = flight.reader(0..SIZE as u64);
    world.script.pieces.add_permits(1);
    assert!(!reader.chunk().await.unwrap().unwrap().is_empty());
    drop((flight, reader));
    world.script.pieces.add_permits(1000);
    let flight = world.join();
    assert_eq!(flight.kept().await.unwrap(), SIZE as u64);
    assert!(world.is_stored());
    assert_eq!(world.script.asked_from(), [0]);
}

#[tokio::test]
async fn a_broken_upstream_is_resumed_from_the_byte_reached() {
    let world = world(&[Plan::BreakAt(100_000), Plan::Unreachable, Plan::BreakAt(100_001)]);
    assert!(read_all(&world.join()).await == world.content);
    assert_eq!(world.script.asked_from(), [0, 100_000, 100_000, 100_001]);
    assert_eq!(world.join().kept().await.unwrap(), SIZE as u64);
    assert_eq!(world.metrics.upstream_bytes(), SIZE as u64);
}

#[tokio::test]
async fn an_upstream_that_stays_away_fails_the_fill_and_the_next_pull_works() {
    let world = world(&[Plan::BreakAt(PIECE), Plan::Unreachable, Plan::Unreachable]);
    let flight = world.join();
    flight.size().await.unwrap();
    let (got, end) = drain(&mut flight.reader(0..SIZE as u64)).await;
    assert!(matches!(end, Err(FillError::Upstream(_))), "{end:?}");
    assert!(got == world.content[..got.len()]);
    assert!(!world.is_stored());
    assert_eq!(world.flights.in_progress(), 0);
    assert!(read_all(&world.join()).await == world.content);
}

#[tokio::test]
async fn short_long_and_wrong_bytes_are_never_published_nor_given_whole() {
    for (plan, is_expected) in [
        (
            Plan::EndAt(SIZE - 1),
            (|error| matches!(error, FillError::TooShort { .. })) as fn(&FillError) -> bool,
        ),
        (Plan::EndAt(0), |error| matches!(error, FillError::TooShort { received: 0, .. })),
        (Plan::TooLong, |error| matches!(error, FillError::TooLong { .. })),
        (Plan::WrongByteAt(0), |error| matches!(error, FillError::WrongContent { .. })),
        (Plan::WrongByteAt(SIZE - 1), |error| matches!(error, FillError::WrongContent { .. })),
        (Plan::Size(7), |error| matches!(error, FillError::WrongSize { actual: 7, .. })),
    ] {
        let world = world(&[plan]);
        let flight = world.join();
        let mut reader = flight.reader(0..SIZE as u64);
        let (got, end) = drain(&mut reader).await;
        let error = end.unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert!(got.len() <= SIZE - HOLD_BACK_BYTES as usize, "{error}: {} bytes given", got.len());
        assert!(reader.chunk().await.unwrap().is_none());
        assert!(!world.is_stored());
        assert_eq!(world.temp_files(), 0);
        assert!(read_all(&world.join()).await == world.content, "the next pull works");
        assert_eq!(world.script.asked_from(), [0, 0], "from the start");
    }
}

#[tokio::test]
async fn the_tail_is_held_back_until_the_digest_matches() {
    let world = world(&[]);
    world.meter();
    let flight = world.join();
    let pieces = SIZE.div_ceil(PIECE);
    world.script.pieces.add_permits(pieces - 1);
    assert_eq!(flight.size().await.unwrap(), SIZE as u64);
    let held_from = SIZE as u64 - HOLD_BACK_BYTES;
    // Everything but the last, small piece is there.
    let received = (PIECE * (pieces - 1)) as u64;
    flight.shared.watch().wait_for(|progress| progress.received == received).await.unwrap();
    assert!(received > held_from);
    let (got, end) = drain(&mut flight.reader(0..held_from)).await;
    end.unwrap();
    assert!(got == world.content[..held_from as usize]);
    let mut tail = flight.reader(held_from..SIZE as u64);
    assert!(
        tokio::time::timeout(Duration::from_millis(30), tail.chunk()).await.is_err(),
        "the tail was given"
    );
    world.script.pieces.add_permits(1);
    let (got, end) = drain(&mut tail).await;
    end.unwrap();
    assert!(got == world.content[held_from as usize..]);
}

#[tokio::test]
async fn a_small_wrong_blob_is_known_before_any_header_is_sent() {
    let world = world_of(1000, &[Plan::WrongByteAt(999)], options());
    assert!(matches!(world.join().size().await, Err(FillError::WrongContent { .. })));
    assert_eq!(world.join().size().await.unwrap(), 1000);
    let world = world_of(0, &[], options());
    assert_eq!(world.join().size().await.unwrap(), 0);
    assert!(read_all(&world.join()).await.is_empty());
    assert!(world.join().kept().await.is_ok());
    assert!(world.is_stored());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_during_a_fill_are_exact() {
    let world = world(&[]);
    world.meter();
    let flight = world.join();
    world.script.pieces.add_permits(3);
    let size = flight.size().await.unwrap();
    let ranges =
        [0..1, 0..size, 5..50_000, 30_000..90_000, 500_000..500_001, size - 1..size, size - 70_000..size];
    let beyond = [900_000..size + 5, size..size + 5, size + 1..size + 2];
    let readers: Vec<_> = ranges
        .into_iter()
        .chain(beyond)
        .map(|range| {
            let mut reader = flight.reader(range.clone());
            (range, tokio::spawn(async move { drain(&mut reader).await }))
        })
        .collect();
    world.script.pieces.add_permits(1000);
    for (range, reader) in readers {
        let (got, end) = reader.await.unwrap();
        end.unwrap();
        let expected = range.start.min(size) as usize..range.end.min(size) as usize;
        assert!(got == world.content[expected], "{range:?}");
    }
    assert_eq!(world.script.asked_from(), [0]);
}

#[tokio::test]
async fn a_repository_without_the_link_is_refused_alone() {
    let world = world(&[]);
    let other = repo("team/other");
    // The flight begins in the name of a repository that the upstream refuses.
    let refused = world.flights.join(&other, &world.digest, Linked { size: None });
    let served = world.join();
    assert!(served.is_joined());
    assert!(read_all(&served).await == world.content);
    assert!(matches!(refused.size().await, Err(FillError::NotLinked)));
    let (got, end) = drain(&mut refused.reader(0..SIZE as u64)).await;
    assert!(got.is_empty() && matches!(end, Err(FillError::NotLinked)));
    served.kept().await.unwrap();
    let asked: Vec<_> = world.script.asked.lock().unwrap().iter().map(|(repo, _)| repo.clone()).collect();
    assert_eq!(asked, ["team/other", "team/app"]);
}

#[tokio::test]
async fn a_no_is_an_answer_and_not_kept_for_ever() {
    let world = world(&[]);
    world.script.links.lock().unwrap().clear();
    assert!(matches!(world.join().size().await, Err(FillError::NotLinked)));
    world.script.links.lock().unwrap().push(app());
    assert!(read_all(&world.join()).await == world.content);
}

#[tokio::test]
async fn a_link_of_another_size_is_not_served() {
    let world = world(&[]);
    let wrong = Linked { size: Some(7) };
    let first = world.join();
    let second = world.flights.join(&app(), &world.digest, wrong);
    assert!(matches!(second.size().await, Err(FillError::WrongSize { expected: 7, .. })));
    assert!(read_all(&first).await == world.content);
}

#[tokio::test]
async fn flights_are_bounded_and_clients_go_before_background_fills() {
    let world = world_of(SIZE, &[], FlightOptions { flights_max: 1, background_flights_max: 1, ..options() });
    world.meter();
    let digests: Vec<_> = (0..4_u8).map(|n| Digest::sha256(&[n])).collect();
    let background = |digest: Digest| {
        let flights = world.flights.clone();
        tokio::spawn(async move { flights.ensure(&app(), &digest, Linked { size: None }).await })
    };
    let (first, second) = (background(digests[0]), background(digests[1]));
    while world.flights.in_progress() < 2 || world.script.asked_from().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.script.asked_from().len(), 1, "one background fill at a time");
    // A client wants what waits in the background: it goes ahead on a client's turn.
    let hurried = world.flights.join(&app(), &digests[1], Linked { size: None });
    assert_eq!(hurried.size().await.unwrap(), SIZE as u64);
    let waiting = world.flights.join(&app(), &digests[2], Linked { size: None });
    assert!(tokio::time::timeout(Duration::from_millis(20), waiting.size()).await.is_err(), "over the bound");
    world.script.pieces.add_permits(1000);
    assert!(matches!(waiting.kept().await, Err(FillError::WrongContent { .. })), "its turn came");
    for ensured in [first, second] {
        assert!(matches!(ensured.await.unwrap(), Err(FillError::WrongContent { .. })));
    }
    assert_eq!(
        world.flights.ensure(&app(), &world.digest, Linked { size: None }).await.unwrap(),
        SIZE as u64
    );
}

#[tokio::test]
async fn stopping_in_the_middle_leaves_nothing_behind() {
    let world = world(&[]);
    world.meter();
    world.script.pieces.add_permits(2);
    let flight = world.join();
    let mut reader = flight.reader(0..SIZE as u64);
    reader.chunk().await.unwrap().unwrap();
    assert!(world.shutdown.finish(Duration::from_secs(5)).await);
    let (_, end) = drain(&mut reader).await;
    assert!(matches!(end, Err(FillError::Stopping)), "{end:?}");
    assert!(!world.is_stored());
    assert_eq!(world.temp_files(), 0);
    assert!(matches!(world.join().size().await, Err(FillError::Stopping)));
}

#[tokio::test]
async fn a_full_disk_fails_no_pull() {
    for room in [0, 1, PIECE as u64 * 2, SIZE as u64 - 10_000] {
        let world = world(&[]);
        world.store.fill_up_after(room);
        let flight = world.join();
        let (whole, middle) = (flight.reader(0..SIZE as u64), flight.reader(300_000..400_000));
        let tail = flight.reader(SIZE as u64 - 1..SIZE as u64);
        for (mut reader, range) in [(whole, 0..SIZE), (middle, 300_000..400_000), (tail, SIZE - 1..SIZE)] {
            let (got, end) = drain(&mut reader).await;
            end.unwrap();
            assert!(got == world.content[range.clone()], "{range:?} with room for {room}");
        }
        assert!(matches!(flight.kept().await, Err(FillError::Disk(_))));
        assert!(!world.is_stored());
        assert_eq!(world.temp_files(), 0);
        world.store.fill_up_after(u64::MAX);
        world.join().kept().await.unwrap();
        assert!(world.is_stored(), "recovers without a restart");
    }
}

#[tokio::test]
async fn a_disk_that_fills_up_within_the_held_back_tail_gives_no_wrong_byte() {
    for (size, pieces) in [(100_000, 2), (60_000, 1)] {
        let world = world_of(size, &[], options());
        let written = (pieces * PIECE) as u64;
        world.store.fill_up_after(written);
        world.meter();
        let flight = world.join();
        for piece in 1..=pieces {
            world.script.pieces.add_permits(1);
            let mut progress = flight.shared.watch();
            progress.wait_for(|now| now.received == (piece * PIECE) as u64).await.unwrap();
        }
        world.script.pieces.add_permits(1000);
        for range in [0..size, 39_000..40_000, size - 1..size] {
            let (got, end) = drain(&mut flight.reader(range.start as u64..range.end as u64)).await;
            end.unwrap();
            assert!(got == world.content[range.clone()], "{range:?} of {size}");
        }
    }
}

#[tokio::test]
async fn streaming_past_a_full_disk_gives_no_wrong_byte_and_resumes() {
    let world = world(&[Plan::Whole, Plan::WrongByteAt(SIZE - 1)]);
    world.store.fill_up_after(PIECE as u64);
    let flight = world.join();
    let (got, end) = drain(&mut flight.reader(0..SIZE as u64)).await;
    assert!(matches!(end, Err(FillError::WrongContent { .. })), "{end:?}");
    assert!(got == world.content[..SIZE - HOLD_BACK_BYTES as usize]);
    world.script.plans.lock().unwrap().extend([Plan::BreakAt(300_000)]);
    let (got, end) = drain(&mut flight.reader(0..SIZE as u64)).await;
    end.unwrap();
    assert!(got == world.content);
    assert_eq!(world.script.asked_from().last(), Some(&300_000));
}

#[tokio::test]
async fn a_failed_sync_is_not_kept_and_still_served() {
    let world = world(&[]);
    world.store.fail_syncs(true);
    assert!(read_all(&world.join()).await == world.content);
    assert!(matches!(world.join().kept().await, Err(FillError::Disk(_))));
    assert!(!world.is_stored());
    world.store.fail_syncs(false);
    world.join().kept().await.unwrap();
    assert!(world.is_stored());
}

#[tokio::test]
async fn sha512_is_verified_as_well() {
    let world = world(&[]);
    let digest = Digest::of(Algorithm::Sha512, &world.content);
    let flight = world.flights.join(&app(), &digest, Linked { size: None });
    assert!(read_all(&flight).await == world.content);
    flight.kept().await.unwrap();
    assert!(world.store.get(&digest).unwrap().is_some());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]

    #[test]
    fn whatever_breaks_and_fills_up_every_range_is_exact(
        size in 0..300_000_usize,
        breaks in proptest::collection::vec(0..300_000_usize, 0..3),
        room in proptest::option::of(0..300_000_u64),
        (start, end) in (0..300_000_u64, 0..400_000_u64),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let plans: Vec<_> = breaks.iter().map(|at| Plan::BreakAt(*at)).collect();
            let world = world_of(size, &plans, FlightOptions { attempts_max: 9, ..options() });
            world.store.fill_up_after(room.unwrap_or(u64::MAX));
            let flight = world.join();
            let (got, ended) = drain(&mut flight.reader(start..end)).await;
            ended.unwrap();
            let clamped = |at: u64| (at as usize).min(size);
            let expected = clamped(start)..clamped(end).max(clamped(start));
            assert!(got == world.content[expected]);
            assert_eq!(flight.kept().await.is_ok(), world.is_stored());
        });
    }
}

impl World {
    fn pass(&self) -> Flight {
        self.flights.pass(&app(), &self.digest, Linked { size: Some(self.content.len() as u64) })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_kept_is_shared_and_verified_all_the_same() {
    let world = world(&[]);
    world.meter();
    let readers: Vec<_> = (0..7)
        .map(|_| {
            let flight = world.pass();
            tokio::spawn(async move { read_all(&flight).await })
        })
        .collect();
    world.script.pieces.add_permits(100);
    for reader in readers {
        assert!(reader.await.unwrap() == world.content);
    }
    assert_eq!(world.script.asked_from(), [0], "one fill for all");
    while world.flights.in_progress() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(!world.is_stored());
    assert_eq!(world.temp_files(), 0);
    // The next one begins anew, and gets no wrong byte either.
    world.script.plans.lock().unwrap().push_back(Plan::WrongByteAt(SIZE - 1));
    let wrong = world.pass();
    let (got, end) = drain(&mut wrong.reader(0..SIZE as u64)).await;
    assert!(matches!(end, Err(FillError::WrongContent { .. })) && got.len() < SIZE, "{end:?}");
    assert_eq!(world.script.asked_from(), [0, 0]);
}

#[tokio::test]
async fn somebody_on_board_who_keeps_it_is_enough() {
    let world = world(&[]);
    world.meter();
    let passing = world.pass();
    let kept = world.flights.bring(&app(), &world.digest, Linked { size: None });
    assert!(kept.is_joined());
    world.script.pieces.add_permits(100);
    assert_eq!(kept.kept().await.unwrap(), SIZE as u64);
    assert!(read_all(&passing).await == world.content);
    assert!(world.is_stored());
    assert!(read_all(&world.pass()).await == world.content);
    assert_eq!(world.script.asked_from(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_nobody_waits_for_goes_at_the_pace_and_hurries_for_a_client() {
    let mut world = world(&[]);
    let upstream = Arc::new(Upstreamed(Arc::clone(&world.script)));
    let limit = SIZE as u64 / 10;
    world.flights = Flights::paced(
        world.store.clone(),
        upstream,
        world.shutdown.clone(),
        options(),
        world.metrics.clone(),
        Pace::new(move || Some(limit)),
    );
    let began = tokio::time::Instant::now();
    let linked = Linked { size: None };
    assert_eq!(world.flights.ensure(&app(), &world.digest, linked).await.unwrap(), SIZE as u64);
    let took = began.elapsed().as_secs_f64();
    assert!((9.5..10.5).contains(&took), "at the limit it takes 10 s, not {took}");

    world.store.remove(&world.digest).unwrap();
    let background = world.flights.bring(&app(), &world.digest, linked);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!((SIZE / 5..SIZE / 2).contains(&(background.received() as usize)), "{}", background.received());
    let began = tokio::time::Instant::now();
    assert!(read_all(&world.join()).await == world.content);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(world.script.asked_from(), [0, 0], "it is the same fill");
}
