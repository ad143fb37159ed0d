use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use outport_proto::{Digest, Offset, event::INLINE_MANIFEST_BYTES_MAX, oci::media_type};

use crate::{
    auth::{Actions, Caller},
    policy::{Keep, Policy, PolicyRule},
    registry::{
        BlobContent, Intent, ManifestAnswer, Page, PullError, PullOptions, PullRules, Staleness, Want,
        metrics::PullResult,
        testing::{NOW, Primary, Secondary, caller, image, puller, pusher, reference, repo},
    },
    shutdown::Shutdown,
};

const APP: &str = "team/app";
const SECOND: Duration = Duration::from_secs(1);

async fn pull_as(site: &Secondary, who: &Caller, named: &str) -> Result<ManifestAnswer, PullError> {
    site.pull.manifest(who, &repo(APP), &reference(named), PullOptions::default()).await
}

async fn pull(site: &Secondary, named: &str) -> Result<ManifestAnswer, PullError> {
    pull_as(site, &puller(), named).await
}

fn announced(number: u64, named: &str) -> Intent {
    Intent { number, repo: repo(APP), names: vec![reference(named)], takes_tags: false }
}

fn head() -> PullOptions {
    PullOptions { want: Want::Headers, min_offset: None }
}

async fn read(content: Option<BlobContent>, size: u64) -> Vec<u8> {
    match content.unwrap() {
        BlobContent::Local(blob) => {
            let mut bytes = vec![0; size as usize];
            std::os::unix::fs::FileExt::read_exact_at(&*blob.file, &mut bytes, 0).unwrap();
            bytes
        }
        BlobContent::Filling(filling) => {
            let (mut reader, mut bytes) = (filling.reader(0..size), Vec::new());
            while let Some(chunk) = reader.chunk().await.unwrap() {
                bytes.extend_from_slice(&chunk);
            }
            bytes
        }
    }
}

fn is_unavailable<T>(answer: &Result<T, PullError>) -> bool {
    matches!(answer, Err(PullError::Unavailable { .. }))
}

#[tokio::test]
async fn what_is_replicated_and_fresh_needs_nobody() {
    let primary = Primary::new().await;
    let pushed = primary.image(&repo(APP), "1", "{}").await;
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    let pulled = pull(&site, "1").await.unwrap();
    assert_eq!((pulled.digest, pulled.offset, pulled.staleness), (pushed.digest, pushed.offset, None));
    assert_eq!(&*pulled.media_type, media_type::OCI_MANIFEST);
    assert_eq!(Digest::sha256(&pulled.bytes), pushed.digest);
    assert_eq!(pull(&site, &pushed.digest.to_string()).await.unwrap(), pulled);
    let of_primary =
        primary.pull.manifest(&puller(), &repo(APP), &reference("1"), PullOptions::default()).await.unwrap();
    assert_eq!(of_primary, pulled, "both sites give the same answer");
    assert_eq!(site.link.asked(), 0);
    assert_eq!(site.metrics.get(PullResult::Local), 2);
}

#[tokio::test]
async fn never_a_false_no_however_far_behind() {
    let primary = Primary::new().await;
    let site = Secondary::of(&primary);
    site.connect(Duration::ZERO);
    assert_eq!(pull(&site, "1").await, Err(PullError::ManifestUnknown));
    let pushed = primary.image(&repo(APP), "1", "{}").await;
    let config = Digest::sha256(b"{}");
    for named in ["1".to_owned(), pushed.digest.to_string()] {
        for options in [PullOptions::default(), head()] {
            let pulled =
                site.pull.manifest(&puller(), &repo(APP), &reference(&named), options).await.unwrap();
            assert_eq!((pulled.digest, pulled.offset), (pushed.digest, pushed.offset));
        }
    }
    let seen = site.pull.blob(&puller(), &repo(APP), &config, head()).await.unwrap();
    assert_eq!((seen.size, seen.content.is_none()), (2, true));
    let blob = site.pull.blob(&puller(), &repo(APP), &config, PullOptions::default()).await.unwrap();
    assert_eq!(read(blob.content, blob.size).await, b"{}");
    let (who, app, all) = (puller(), repo(APP), Page::default());
    let list = site.pull.tags(&who, &app, &all, PullOptions::default());
    let (tags, ()) = tokio::join!(list, async {
        while site.link.asked() < 7 {
            tokio::task::yield_now().await;
        }
        site.catch_up(&primary);
    });
    assert_eq!(tags.unwrap().names, ["1".parse().unwrap()], "it waits for what the primary has");
}

#[tokio::test]
async fn a_moved_tag_is_seen_by_those_who_must_see_it() {
    let primary = Primary::new().await;
    let old = primary.image(&repo(APP), "1", "old").await;
    let site =
        Secondary::with(&primary, PullRules { wait_max: Duration::from_millis(5), ..PullRules::default() });
    site.catch_up(&primary);
    let new = primary.image_as(&primary.led(7), &repo(APP), "1", "new").await;
    assert_eq!(pull(&site, "1").await.unwrap().digest, old.digest, "within the staleness bound");
    let after_push = Caller { offset: Some(new.offset), ..puller() };
    assert_eq!(pull_as(&site, &after_push, "1").await.unwrap().digest, new.digest, "token after the push");
    assert_eq!(pull_as(&site, &pusher(), "1").await.unwrap().digest, new.digest, "push session");
    let asked = PullOptions { min_offset: Some(new.offset), ..PullOptions::default() };
    let pulled = site.pull.manifest(&puller(), &repo(APP), &reference("1"), asked).await.unwrap();
    assert_eq!((pulled.digest, pulled.offset), (new.digest, new.offset), "Outport-Min-Offset");
    let foreign = Caller { issued_at: Some(NOW), ..puller() };
    assert_eq!(pull_as(&site, &foreign, "1").await.unwrap().digest, new.digest, "another issuer's token");
    site.connect(2 * SECOND);
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest, "closed time is too far behind");
    site.connect(Duration::ZERO);
    site.intents.open(announced(7, "1"), NOW);
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest, "redirected from here");
    let asked = site.link.asked();
    assert_eq!(asked, 6);
    site.catch_up(&primary);
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest);
    assert_eq!(pull_as(&site, &after_push, "1").await.unwrap().digest, new.digest);
    assert_eq!(site.link.asked(), asked, "the events ended every doubt");
}

fn with_policy(rule: PolicyRule) -> PullRules {
    let policy = Arc::new(Policy::new(&[rule]).unwrap());
    PullRules { policy, wait_max: Duration::from_millis(5), ..PullRules::default() }
}

#[tokio::test]
async fn the_policy_sets_a_staleness_bound_by_repository() {
    let primary = Primary::new().await;
    for (glob, asked) in [("team/*", 0), ("other/*", 1)] {
        primary.image(&repo(APP), "1", "old").await;
        let rule = PolicyRule {
            repository: Some(glob.to_owned()),
            staleness_bound_ms: Some(10_000),
            ..PolicyRule::default()
        };
        let site = Secondary::with(&primary, with_policy(rule));
        site.catch_up(&primary);
        site.connect(5 * SECOND);
        pull(&site, "1").await.unwrap();
        assert_eq!(site.link.asked(), asked, "{glob}: closed time is 5 s old");
        site.connect(11 * SECOND);
        pull(&site, "1").await.unwrap();
        assert_eq!(site.link.asked(), asked + 1, "{glob}: 11 s are more than any bound here");
    }
}

#[tokio::test]
async fn what_the_policy_excludes_is_streamed_through_and_its_manifest_is_known() {
    let primary = Primary::new().await;
    let pushed = primary.image(&repo(APP), "1", "{}").await;
    let rule = PolicyRule { keep: Some(Keep::Exclude), ..PolicyRule::default() };
    let site = Secondary::with(&primary, with_policy(rule));
    site.catch_up(&primary);
    assert_eq!(pull(&site, "1").await.unwrap().digest, pushed.digest);
    let config = Digest::sha256(b"{}");
    for _ in 0..2 {
        let blob = site.pull.blob(&puller(), &repo(APP), &config, PullOptions::default()).await.unwrap();
        assert_eq!(read(blob.content, blob.size).await, b"{}");
    }
    assert_eq!(site.store.size(&config).unwrap(), None);
    assert_eq!(site.link.asked(), 0, "it is known what is there");
    // A manifest that is too large for its event is metadata all the same.
    let padding = format!(r#","annotations":{{"a":"{}"}}"#, "x".repeat(INLINE_MANIFEST_BYTES_MAX));
    let large = primary.put(&repo(APP), "large", media_type::OCI_MANIFEST, image(&config, &padding)).await;
    let large = large.unwrap();
    site.catch_up(&primary);
    assert_eq!(pull(&site, "large").await.unwrap().digest, large.digest);
    while site.store.size(&large.digest).unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    site.cut_off(SECOND);
    assert_eq!(pull(&site, "1").await.unwrap().digest, pushed.digest);
    assert!(is_unavailable(&site.pull.blob(&puller(), &repo(APP), &config, PullOptions::default()).await));
}

#[tokio::test]
async fn a_pull_waits_for_the_event_it_needs() {
    let primary = Primary::new().await;
    let pushed = primary.image(&repo(APP), "1", "old").await;
    let site = Secondary::with(&primary, PullRules { wait_max: 60 * SECOND, ..PullRules::default() });
    site.catch_up(&primary);
    let new = primary.image(&repo(APP), "1", "new").await;
    let after_push = Caller { offset: Some(new.offset), ..puller() };
    let (pulled, ()) = tokio::join!(pull_as(&site, &after_push, "1"), async {
        tokio::task::yield_now().await;
        site.catch_up(&primary);
    });
    assert_ne!(pulled.unwrap().digest, pushed.digest);
    assert_eq!((site.link.asked(), site.metrics.get(PullResult::Waited)), (0, 1));
}

#[tokio::test]
async fn cut_off_it_says_how_old_its_answer_is() {
    let primary = Primary::new().await;
    let pushed = primary.image(&repo(APP), "1", "{}").await;
    let stale_max = Some(90 * SECOND);
    let site = Secondary::with(&primary, PullRules { stale_max, ..PullRules::default() });
    site.catch_up(&primary);
    site.cut_off(60 * SECOND);
    let pulled = pull(&site, "1").await.unwrap();
    assert_eq!(pulled.staleness, Some(Staleness { age: 60 * SECOND }));
    assert_eq!(pull(&site, &pushed.digest.to_string()).await.unwrap().staleness, None, "digests do not age");
    assert!(is_unavailable(&pull(&site, "2").await));
    assert!(is_unavailable(&pull(&site, &Digest::sha256(b"x").to_string()).await));
    let unknown = Digest::sha256(b"x");
    assert!(is_unavailable(&site.pull.blob(&puller(), &repo(APP), &unknown, PullOptions::default()).await));
    let listed =
        site.pull.tags(&puller(), &repo(APP), &Page::default(), PullOptions::default()).await.unwrap();
    assert_eq!(listed.staleness, Some(Staleness { age: 60 * SECOND }));
    site.cut_off(91 * SECOND);
    assert!(is_unavailable(&pull(&site, "1").await));
    assert!(pull(&site, &pushed.digest.to_string()).await.is_ok());
    assert_eq!(site.metrics.get(PullResult::NotFound), 0);
}

#[tokio::test]
async fn a_primary_that_does_not_answer_is_as_one_that_cannot_be_reached() {
    let primary = Primary::new().await;
    primary.image(&repo(APP), "1", "{}").await;
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    site.link.cut.store(true, Ordering::SeqCst);
    assert!(pull_as(&site, &pusher(), "1").await.unwrap().staleness.is_some());
    assert!(is_unavailable(&pull(&site, "2").await));
    let config = Digest::sha256(b"{}");
    assert!(is_unavailable(&site.pull.blob(&puller(), &repo(APP), &config, PullOptions::default()).await));
    let seen = site.pull.blob(&puller(), &repo(APP), &config, head()).await;
    assert_eq!(seen.unwrap().size, 2, "its headers are known");
}

#[tokio::test]
async fn a_blob_is_filled_once_and_then_local() {
    let primary = Primary::new().await;
    let digest = primary.blob(&repo(APP), b"layer").await;
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    let (app, who) = (repo(APP), puller());
    let get = || site.pull.blob(&who, &app, &digest, PullOptions::default());
    let (one, two) = tokio::join!(get(), get());
    for blob in [one.unwrap(), two.unwrap()] {
        assert_eq!(blob.size, 5);
        assert_eq!(read(blob.content, 5).await, b"layer");
    }
    assert_eq!(site.link.fetched.load(Ordering::SeqCst), 1);
    while site.store.size(&digest).unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    site.cut_off(60 * SECOND);
    let blob = get().await.unwrap();
    assert!(matches!(blob.content, Some(BlobContent::Local(_))));
}

#[tokio::test]
async fn bytes_held_for_others_do_not_show() {
    let primary = Primary::new().await;
    let secret = primary.blob(&repo("private"), b"secret").await;
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    let owner = caller(&["private"], Actions::PULL);
    let get = PullOptions::default();
    let blob = site.pull.blob(&owner, &repo("private"), &secret, get).await.unwrap();
    read(blob.content, blob.size).await;
    while site.store.size(&secret).unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let absent = Digest::sha256(b"absent");
    for pull in [&site.pull, &primary.pull] {
        for options in [get, head()] {
            for digest in [&secret, &absent] {
                let answer = pull.blob(&puller(), &repo(APP), digest, options).await;
                assert_eq!(answer.unwrap_err(), PullError::BlobUnknown);
                let answer = pull.blob(&puller(), &repo("private"), digest, options).await;
                assert_eq!(answer.unwrap_err(), PullError::Denied);
            }
        }
    }
    assert_eq!(site.metrics.get(PullResult::Denied), 4);
}

#[tokio::test]
async fn a_manifest_too_large_for_its_event_is_filled() {
    let primary = Primary::new().await;
    let (app, config) = (repo(APP), primary.blob(&repo(APP), b"{}").await);
    let padding = format!(r#","padding":"{}""#, "x".repeat(300_000));
    let bytes = image(&config, &padding);
    let pushed = primary.put(&app, "1", media_type::OCI_MANIFEST, bytes.clone()).await.unwrap();
    let site = Secondary::of(&primary);
    site.connect(Duration::ZERO);
    assert_eq!(pull(&site, "1").await.unwrap().bytes, bytes, "known by the primary alone");
    site.catch_up(&primary);
    assert_eq!(pull(&site, "1").await.unwrap().bytes, bytes);
    while site.store.size(&pushed.digest).unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    site.cut_off(SECOND);
    assert_eq!(pull(&site, &pushed.digest.to_string()).await.unwrap().bytes, bytes);
    let as_blob = primary.pull.blob(&puller(), &app, &pushed.digest, PullOptions::default()).await;
    assert_eq!(as_blob.unwrap_err(), PullError::BlobUnknown, "a manifest is no blob");
}

#[tokio::test]
async fn those_who_ask_at_once_share_a_question() {
    let primary = Primary::new().await;
    primary.image(&repo(APP), "1", "{}").await;
    let site = Secondary::of(&primary);
    site.connect(Duration::ZERO);
    let permits = site.link.permits.acquire_many(1_000_000).await.unwrap();
    let pulls: Vec<_> = (0..50)
        .map(|_| {
            let service = site.pull.clone();
            tokio::spawn(async move {
                service.manifest(&puller(), &repo(APP), &reference("1"), PullOptions::default()).await
            })
        })
        .collect();
    while site.link.asked() == 0 {
        tokio::task::yield_now().await;
    }
    drop(permits);
    for pull in pulls {
        assert!(pull.await.unwrap().is_ok());
    }
    assert!(site.link.asked() <= 2, "{} questions", site.link.asked());
}

#[tokio::test]
async fn a_no_is_remembered_where_the_configuration_says_so() {
    let primary = Primary::new().await;
    primary.image(&repo(APP), "1", "{}").await;
    let site = Secondary::with(&primary, PullRules { remembered_max: 10, ..PullRules::default() });
    site.catch_up(&primary);
    for _ in 0..3 {
        assert_eq!(pull(&site, "2").await, Err(PullError::ManifestUnknown));
    }
    assert_eq!(site.link.asked(), 1);
    let new = primary.image(&repo(APP), "2", "new").await;
    let after_push = Caller { offset: Some(new.offset), ..puller() };
    assert!(pull_as(&site, &after_push, "2").await.is_ok(), "a newer token asks again");
    site.catch_up(&primary);
    assert!(pull(&site, "2").await.is_ok());
    site.cut_off(SECOND);
    assert!(is_unavailable(&pull(&site, "3").await), "cut off, a no is not known");
}

#[tokio::test]
async fn a_no_of_before_what_is_here_is_nobodys_word() {
    let primary = Primary::new().await;
    let (app, content) = (repo(APP), Digest::sha256(b"{}"));
    let pushed = primary.image(&app, "1", "{}").await;
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    let blob = async |who: &Caller, options| site.pull.blob(who, &app, &content, options).await;
    let deny = |at| *site.link.denies_at.lock().unwrap() = at;

    // A push session asks about all of it, and the bytes of the blob are not here.
    deny(Some(Offset::new(1, pushed.offset.seq - 1)));
    let stale = pull_as(&site, &pusher(), "1").await.unwrap();
    assert_eq!((stale.digest, stale.staleness.is_some()), (pushed.digest, true));
    assert!(blob(&pusher(), head()).await.unwrap().staleness.is_some());
    assert!(is_unavailable(&blob(&puller(), PullOptions::default()).await));
    assert!(is_unavailable(&pull(&site, "2").await));
    let all = Page::default();
    let listed = site.pull.tags(&pusher(), &app, &all, PullOptions::default()).await.unwrap();
    assert!(listed.names.len() == 1 && listed.staleness.is_some());
    let referrers = site.pull.referrers(&puller(), &app, &content, None, PullOptions::default()).await;
    assert!(is_unavailable(&referrers), "an empty list is a no");

    // The primary contradicts itself.
    deny(None);
    site.link.withholds.store(true, Ordering::SeqCst);
    assert!(is_unavailable(&blob(&puller(), PullOptions::default()).await));
    site.link.withholds.store(false, Ordering::SeqCst);

    // Nothing was purged, and a "no" of now counts.
    let got = blob(&puller(), PullOptions::default()).await.unwrap();
    assert_eq!(read(got.content, got.size).await, b"{}");
    assert_eq!(pull(&site, "1").await.unwrap().digest, pushed.digest);
    deny(Some(pushed.offset.next()));
    assert_eq!(pull_as(&site, &pusher(), "1").await, Err(PullError::ManifestUnknown));
    assert_eq!(pull(&site, "2").await, Err(PullError::ManifestUnknown));
}

#[tokio::test]
async fn referrers_never_miss_what_was_pushed() {
    let primary = Primary::new().await;
    let app = repo(APP);
    let (config, subject) = (primary.blob(&app, b"{}").await, Digest::sha256(b"subject"));
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    let list = async |kind: Option<&str>| {
        site.pull.referrers(&puller(), &app, &subject, kind, PullOptions::default()).await
    };
    assert!(list(None).await.unwrap().referrers.is_empty());
    let extra = format!(r#","subject":{{"mediaType":"m","digest":"{subject}","size":7}}"#);
    primary.put(&app, "sig", media_type::OCI_MANIFEST, image(&config, &extra)).await.unwrap();
    assert_eq!(list(None).await.unwrap().referrers.len(), 1, "an empty list is the primary's to say");
    site.catch_up(&primary);
    let asked = site.link.asked();
    assert_eq!(list(Some("a/config")).await.unwrap().referrers.len(), 1);
    assert!(list(Some("other")).await.unwrap().referrers.is_empty());
    assert_eq!(site.link.asked(), asked);
    let nowhere = repo("nowhere");
    let who = caller(&["nowhere"], Actions::PULL);
    let none = primary.pull.referrers(&who, &nowhere, &subject, None, PullOptions::default()).await;
    assert!(none.unwrap().referrers.is_empty());
}

#[tokio::test]
async fn listings_in_pages() {
    let primary = Primary::new().await;
    let app = repo(APP);
    for tag in ["c", "a", "b"] {
        primary.image(&app, tag, "{}").await;
    }
    let page = async |n: Option<usize>, last: Option<&str>| {
        let page = Page { n, last: last.map(str::to_owned) };
        let listed = primary.pull.tags(&puller(), &app, &page, PullOptions::default()).await.unwrap();
        let names: Vec<String> = listed.names.iter().map(ToString::to_string).collect();
        (names.join(" "), listed.next.map(|next| (next.n, next.last)))
    };
    assert_eq!(page(None, None).await, ("a b c".to_owned(), None));
    assert_eq!(page(Some(2), None).await, ("a b".to_owned(), Some((2, "b".to_owned()))));
    assert_eq!(page(Some(2), Some("b")).await, ("c".to_owned(), None));
    assert_eq!(page(Some(0), None).await, (String::new(), None));
    assert_eq!(page(Some(usize::MAX), None).await, ("a b c".to_owned(), None));
    let unknown = caller(&["nowhere"], Actions::PULL);
    let all = Page::default();
    let none = primary.pull.tags(&unknown, &repo("nowhere"), &all, PullOptions::default()).await;
    assert_eq!(none, Err(PullError::NameUnknown));
    let denied = primary.pull.catalog(&puller(), &all, PullOptions::default()).await;
    assert_eq!(denied, Err(PullError::Denied));
    let anyone = Caller::anonymous(std::sync::Arc::new(crate::auth::Access::unlimited()));
    let listed = primary.pull.catalog(&anyone, &all, PullOptions::default()).await.unwrap();
    assert_eq!(listed.names, [repo(APP)]);
    assert_eq!(listed.offset, primary.journal.applied());
    assert!(listed.offset > Offset::ZERO);
}

#[tokio::test]
async fn what_the_journal_applies_ends_write_intents() {
    let primary = Primary::new().await;
    let (site, shutdown) = (Secondary::of(&primary), Shutdown::new());
    site.intents.open(announced(7, "1"), NOW);
    site.pull.follow(&primary.journal, &shutdown);
    primary.image(&repo(APP), "1", "{}").await;
    assert!(site.intents.is_open(&repo(APP), &reference("1"), NOW));
    primary.image_as(&primary.led(7), &repo(APP), "1", "{}").await;
    while site.intents.is_open(&repo(APP), &reference("1"), NOW) {
        tokio::task::yield_now().await;
    }
    assert!(shutdown.finish(60 * SECOND).await);
}

/// The session's word comes a moment after the index was emptied: readers must not wait for it.
#[tokio::test]
async fn what_is_found_while_a_snapshot_replaces_everything_is_not_believed() {
    let primary = Primary::new().await;
    let old = primary.image(&repo(APP), "1", "old").await;
    let site = Secondary::of(&primary);
    site.catch_up(&primary);
    let new = primary.image(&repo(APP), "1", "new").await;
    let events = primary.events(Offset::ZERO);
    let (before, since) = events.split_at(old.offset.seq as usize);
    site.catch_up(&primary);
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest);

    site.index.clear().unwrap();
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest, "nothing is here, and nobody says so");
    site.index.apply(before).unwrap();
    site.index.whole_from(new.offset);
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest, "an older state is here");
    assert_eq!(site.link.asked(), 2, "the primary was asked");
    site.index.apply(since).unwrap();
    assert_eq!(pull(&site, "1").await.unwrap().digest, new.digest);
    assert_eq!(site.link.asked(), 2, "all is here again");
}
