//! What a site asks its primary, and what it gets.

use std::time::Duration;

use outport::fetch::{At, Upstream as _, UpstreamError};
use outport_proto::{Change, Digest, Offset, Reference};

use crate::world::{Site, World, committed, repo, tagged};

async fn fetched(site: &Site, digest: &Digest, offset: u64) -> Option<(u64, Vec<u8>)> {
    let mut body = site.upstream.fetch(&repo("lazy/app"), digest, offset).await.unwrap()?;
    let mut content = Vec::new();
    while let Some(chunk) = body.chunk().await.unwrap() {
        content.extend_from_slice(&chunk);
    }
    Some((body.size(), content))
}

#[tokio::test]
async fn a_blob_comes_from_any_offset() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let content: Vec<u8> = (0..2_000_000_u32).map(|number| (number % 251) as u8).collect();
    let digest = primary.blob(&content);
    let head = primary.commit(vec![committed("lazy/app", &content)]).await;
    site.applied(head).await;
    for offset in [0, 1, 262_144, 262_145, 1_999_999, 2_000_000, 3_000_000] {
        let (size, rest) = fetched(&site, &digest, offset).await.unwrap();
        assert_eq!(size, 2_000_000);
        assert!(rest == content[content.len().min(offset as usize)..], "from {offset}");
    }
    let elsewhere = site.upstream.fetch(&repo("other/app"), &digest, 0).await.unwrap();
    assert!(elsewhere.is_none(), "a repository without the link does not get the blob");
}

#[tokio::test]
async fn a_site_is_answered_as_of_what_it_was_sent_or_later() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    site.session("going live", |session| session.live).await;
    let name = repo("lazy/app");
    for number in 0..200_u64 {
        let tag = number.to_string();
        let sent = Offset::new(1, number + 1);
        let asked = async {
            // The primary may still be about to show it itself.
            site.applied(sent).await;
            site.upstream.resolve(&name, &tag.parse().unwrap()).await.unwrap()
        };
        let commit = primary.commit(vec![tagged("lazy/app", &tag, b"{}", &[])]);
        let (_, answer) = tokio::join!(commit, asked);
        assert!(answer.at >= sent && answer.value.is_some(), "{sent}: {answer:?}");
    }
}

#[tokio::test]
async fn no_is_said_by_the_index_alone_and_with_its_offset() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    let name = repo("lazy/app");
    let manifest = Digest::sha256(b"{}");
    let gone = Digest::sha256(b"never stored");
    let head = primary
        .commit(vec![committed("lazy/app", b"never stored"), tagged("lazy/app", "1", b"{}", &[])])
        .await;
    site.applied(head).await;

    let tag: Reference = "1".parse().unwrap();
    let found = site.upstream.resolve(&name, &tag).await.unwrap();
    let named = found.value.unwrap();
    assert_eq!((named.digest, named.bytes.as_deref(), found.at), (manifest, Some(&b"{}"[..]), head));
    let by_digest = site.upstream.resolve(&name, &Reference::Digest(manifest)).await.unwrap();
    assert_eq!(by_digest.value.unwrap().digest, manifest);
    assert_eq!(fetched(&site, &manifest, 1).await.unwrap(), (2, b"}".to_vec()));

    let unknown: Reference = "2".parse().unwrap();
    assert_eq!(site.upstream.resolve(&name, &unknown).await.unwrap(), At { value: None, at: head });
    assert_eq!(site.upstream.link(&name, &manifest).await.unwrap().value, None);
    assert_eq!(site.upstream.link(&name, &gone).await.unwrap(), At { value: Some(12), at: head });
    assert_eq!(site.upstream.referrers(&name, &manifest).await.unwrap(), At { value: vec![], at: head });

    let linked_and_lost = site.upstream.fetch(&name, &gone, 0).await.map(|_| ());
    assert!(matches!(linked_and_lost, Err(UpstreamError::Unavailable(_))), "{linked_and_lost:?}");
    primary.commit(vec![Change::BlobDeleted { repo: name.clone(), digest: gone }]).await;
    assert!(site.upstream.fetch(&name, &gone, 0).await.unwrap().is_none());
}

#[tokio::test]
async fn an_index_that_takes_nothing_more_is_behind_at_once() {
    let world = World::new();
    let primary = world.primary().await;
    let site = world.site(&primary).await;
    site.session("going live", |session| session.live).await;
    primary.journal.index().close().unwrap();
    let change = tagged("lazy/app", "1", b"{}", &[]);
    let head = primary.journal.log().append("tester", vec![change]).await.unwrap();
    primary.journal.applied_or_stuck(head).await.unwrap_err();
    let (name, tag) = (repo("lazy/app"), "1".parse().unwrap());
    // Each of them once waited for a second.
    let asked = async {
        for _ in 0..20 {
            let answer = site.upstream.resolve(&name, &tag).await.unwrap_err().to_string();
            assert!(answer.contains("the index is behind the log's head 1.1"), "{answer}");
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("no question waits");
    site.stop().await;
}
