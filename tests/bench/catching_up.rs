//! How fast a secondary that is far behind takes events in: decoded, durable and applied, by the
//! code that does it in a site, without the network between.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use outport::{
    clock::SystemClock,
    log::Record,
    registry::journal::{Journal, JournalError, JournalOptions, Origin, SnapshotPiece},
    shutdown::Shutdown,
};
use outport_proto::{
    Change, Digest, Event, ManifestPut, Offset, RepoName, Timestamp,
    codec::{decode_frame, encode_event, encode_frame},
    frame::FromPrimary,
    oci::{ChildKind, Descriptor, media_type},
    session::{APPEND_BYTES_MAX, WINDOW_BYTES},
};
use tokio::task::JoinHandle;

use crate::{
    Figure,
    load::{self, median, percentile},
};

/// Blobs of an image, each an event before that of the manifest.
const LAYERS: u64 = 4;
const REPOSITORIES: u64 = 500;
const ROUNDS: usize = 3;

/// Events a second of a secondary that catches up, and what its readers and its memory feel of it.
pub fn events() -> Vec<Figure> {
    let images = images(60_000);
    let appends = appends(images);
    let events = images * (LAYERS + 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mut decoded, mut durable, mut applied, mut reads) = (vec![], vec![], vec![], vec![]);
    let before = load::memory_mib(std::process::id(), "VmRSS");
    let mut highest = before;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let found: usize = appends.iter().map(|append| records(append).len()).sum();
        assert_eq!(found as u64, events);
        decoded.push(events as f64 / began.elapsed().as_secs_f64());
        let dir = tempfile::tempdir().unwrap();
        let round = runtime.block_on(take_in(dir.path(), &appends, Offset::new(1, events)));
        durable.push(events as f64 / round.durable.as_secs_f64());
        applied.push(events as f64 / round.applied.as_secs_f64());
        reads.extend(round.reads);
        highest = highest.max(round.memory_mib);
    }
    vec![
        Figure {
            what: "catching up: decode alone, events/s",
            measured: format!("{:.0}", median(&mut decoded)),
            must_reach: "",
        },
        Figure {
            what: "catching up: decode + durable, applied behind it, events/s",
            measured: format!("{:.0}", median(&mut durable)),
            must_reach: "",
        },
        Figure {
            what: "catching up: decode + apply + durable, events/s",
            measured: format!("{:.0} of {events} (median of {ROUNDS})", median(&mut applied)),
            must_reach: "at least 200000",
        },
        Figure {
            what: "catching up: reading a tag meanwhile",
            measured: format!(
                "p50 {:.3} ms, p99 {:.2} ms, longest {:.1} ms",
                percentile(&mut reads, 0.5),
                percentile(&mut reads, 0.99),
                percentile(&mut reads, 1.0)
            ),
            must_reach: "",
        },
        Figure {
            what: "catching up: memory more than before",
            measured: format!("{:.1} MiB", highest - before),
            must_reach: "",
        },
    ]
}

/// A whole state handed out by one journal and taken in by another: how fast, and with how much memory.
pub fn snapshot() -> Vec<Figure> {
    let images = images(40_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (from_dir, to_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (entries, seconds, memory_mib) = runtime.block_on(async {
        let shutdown = Shutdown::new();
        let open = async |dir: &Path, origin| {
            let options = JournalOptions { origin, ..JournalOptions::default() };
            Journal::open(dir, options, Arc::new(SystemClock), &shutdown).await.unwrap()
        };
        let (from, to) =
            (open(from_dir.path(), Origin::Own).await, open(to_dir.path(), Origin::Followed).await);
        for image in (0..images).step_by(20) {
            from.commit("ci", (image..image + 20).flat_map(push).collect()).await.unwrap();
        }
        let before = load::memory_mib(std::process::id(), "VmRSS");
        let (began, mut highest) = (Instant::now(), before);
        let mut pieces = from.snapshot(None);
        let mut installation = None;
        let entries = loop {
            highest = highest.max(load::memory_mib(std::process::id(), "VmRSS"));
            match (pieces.next().await.unwrap().unwrap(), installation.take()) {
                (SnapshotPiece::Begin { from, .. }, _) => {
                    installation = Some(to.install_snapshot(from, 0).await.unwrap());
                }
                (SnapshotPiece::Part(part), Some(taking)) => {
                    installation = Some(taking.part(part).await.unwrap());
                }
                (SnapshotPiece::End { until, entries }, Some(taking)) => {
                    taking.finish(until, entries).await.unwrap();
                    break entries;
                }
                (piece, None) => panic!("{piece:?} before the beginning"),
            }
        };
        let seconds = began.elapsed().as_secs_f64();
        highest = highest.max(load::memory_mib(std::process::id(), "VmRSS"));
        assert_eq!(from.index().state_hash(), to.index().state_hash());
        assert!(shutdown.finish(Duration::from_secs(600)).await);
        (entries, seconds, highest - before)
    });
    vec![
        Figure {
            what: "snapshot: handed out, on disk and in the index, entries/s",
            measured: format!("{:.0} of {entries}", entries as f64 / seconds),
            must_reach: "",
        },
        Figure {
            what: "snapshot: memory more than before, both ends",
            measured: format!("{memory_mib:.1} MiB"),
            must_reach: "",
        },
    ]
}

/// How many images are pushed; fewer or more where the environment says so.
fn images(usually: u64) -> u64 {
    std::env::var("CATCH_UP_IMAGES").ok().and_then(|number| number.parse().ok()).unwrap_or(usually)
}

struct Round {
    durable: Duration,
    applied: Duration,
    /// Milliseconds that reads took.
    reads: Vec<f64>,
    memory_mib: f64,
}

/// As the subscription does: decodes what comes while one batch is on its way to the disk, within
/// the publisher's window.
async fn take_in(dir: &Path, appends: &[Bytes], last: Offset) -> Round {
    let shutdown = Shutdown::new();
    let options = JournalOptions { origin: Origin::Followed, ..JournalOptions::default() };
    let journal = Journal::open(dir, options, Arc::new(SystemClock), &shutdown).await.unwrap();
    let began = Instant::now();
    let reading = tokio::spawn(read_tags(journal.clone(), last));
    let mut running: Option<JoinHandle<Result<Offset, JournalError>>> = None;
    let (mut waiting, mut waiting_bytes, mut running_bytes) = (Vec::new(), 0, 0);
    for append in appends {
        waiting.extend(records(append));
        waiting_bytes += append.len();
        if running
            .as_ref()
            .is_some_and(|running| running.is_finished() || running_bytes + waiting_bytes >= WINDOW_BYTES)
        {
            running.take().unwrap().await.unwrap().unwrap();
        }
        if running.is_none() {
            let (journal, records) = (journal.clone(), std::mem::take(&mut waiting));
            running_bytes = std::mem::take(&mut waiting_bytes);
            running = Some(tokio::spawn(async move { journal.replicate(records).await }));
        }
    }
    if let Some(running) = running {
        running.await.unwrap().unwrap();
    }
    let head = journal.replicate(waiting).await.unwrap();
    assert_eq!(head, last);
    let durable = began.elapsed();
    assert!(journal.wait_applied(last, Duration::from_secs(600)).await);
    let applied = began.elapsed();
    let (reads, memory_mib) = reading.await.unwrap();
    assert!(shutdown.finish(Duration::from_secs(600)).await);
    Round { durable, applied, reads, memory_mib }
}

async fn read_tags(journal: Journal, last: Offset) -> (Vec<f64>, f64) {
    let (mut reads, mut memory_mib, mut number) = (Vec::new(), 0_f64, 0);
    while journal.applied() < last {
        number += 7919;
        let began = Instant::now();
        let tag = "latest".parse().unwrap();
        journal.index().tag(&repo(number), &tag).unwrap();
        reads.push(began.elapsed().as_secs_f64() * 1000.0);
        memory_mib = memory_mib.max(load::memory_mib(std::process::id(), "VmRSS"));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (reads, memory_mib)
}

fn records(append: &Bytes) -> Vec<Record> {
    let FromPrimary::Append(events) = decode_frame(append).unwrap() else { panic!("not an Append") };
    let record = |encoded: Bytes| {
        let event = outport_proto::codec::decode_event(&encoded).unwrap();
        Record { event: Arc::new(event), encoded, trace: None }
    };
    events.into_iter().map(record).collect()
}

fn repo(number: u64) -> RepoName {
    format!("team-{}/service-{}", number % 20, number % REPOSITORIES).parse().unwrap()
}

/// The `Append` frames of many pushes of images to many repositories.
fn appends(images: u64) -> Vec<Bytes> {
    let (mut frames, mut events, mut bytes, mut seq) = (Vec::new(), Vec::new(), 0, 0);
    for image in 0..images {
        for change in push(image) {
            seq += 1;
            let (offset, time) = (Offset::new(1, seq), Timestamp::from_secs(1_700_000_000 + seq / 10));
            let event = Event { offset, time, actor: "ci".to_owned(), intent: None, change };
            let encoded = encode_event(&event).unwrap();
            if bytes + encoded.len() > APPEND_BYTES_MAX {
                frames.push(encode_frame(&FromPrimary::Append(std::mem::take(&mut events))).unwrap());
                bytes = 0;
            }
            bytes += encoded.len();
            events.push(encoded);
        }
    }
    frames.push(encode_frame(&FromPrimary::Append(events)).unwrap());
    frames
}

fn push(image: u64) -> Vec<Change> {
    let repo = repo(image.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7);
    let size = 1_000_000 + image;
    let digests: Vec<Digest> =
        (0..LAYERS).map(|layer| Digest::sha256(format!("{image} {layer}").as_bytes())).collect();
    let mut changes: Vec<Change> = digests
        .iter()
        .map(|digest| Change::BlobCommitted { repo: repo.clone(), digest: *digest, size })
        .collect();
    let layers: Vec<String> = digests
        .iter()
        .map(|digest| format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{size}}}"#))
        .collect();
    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        layers[0],
        layers[1..].join(",")
    ));
    changes.push(Change::ManifestPut(Box::new(ManifestPut {
        repo,
        digest: Digest::sha256(&manifest),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: manifest.len() as u64,
        bytes: Some(manifest),
        tags: vec![format!("build-{image}").parse().unwrap(), "latest".parse().unwrap()],
        subject: None,
        artifact_type: None,
        platform: None,
        annotations: Vec::new(),
        children: digests
            .iter()
            .map(|digest| Descriptor { digest: *digest, size, kind: ChildKind::Blob, platform: None })
            .collect(),
    })));
    changes
}
