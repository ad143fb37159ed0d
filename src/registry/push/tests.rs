use bytes::Bytes;
use outport_proto::{
    Algorithm, Change, Digest, Offset, Reference, Tag,
    oci::{MANIFEST_BYTES_MAX, media_type},
};

use crate::{
    auth::Actions,
    registry::{
        ContentRange, Mounted, NewManifest, PushError, PushLimits, UploadRight, UploadStatus,
        testing::{Primary, caller, image, puller, pusher, reference, repo},
    },
};

async fn chunk(
    primary: &Primary,
    right: &UploadRight,
    range: Option<(u64, u64)>,
    bytes: &'static [u8],
) -> Result<UploadStatus, PushError> {
    let range = range.map(|(first, last)| ContentRange { first, last });
    let mut append = primary.push.append(right, range).await?;
    append.write(Bytes::from_static(bytes)).await?;
    append.finish().await
}

async fn start(primary: &Primary) -> UploadRight {
    let (right, status) = primary.push.start_upload(&pusher(), &repo("team/app"), None).await.unwrap();
    assert_eq!(status.length, 0);
    right
}

#[tokio::test]
async fn a_blob_in_chunks_whatever_comes_out_of_order() {
    let primary = Primary::new().await;
    let right = start(&primary).await;
    assert_eq!(
        chunk(&primary, &right, Some((4, 7)), b"4567").await,
        Err(PushError::RangeInvalid { length: 0 })
    );
    assert_eq!(chunk(&primary, &right, Some((0, 3)), b"0123").await.unwrap().length, 4);
    for wrong in [(0, 3), (8, 9), (3, 4), (4, 2)] {
        let refused = chunk(&primary, &right, Some(wrong), b"x").await;
        assert_eq!(refused, Err(PushError::RangeInvalid { length: 4 }), "{wrong:?}");
    }
    assert_eq!(chunk(&primary, &right, Some((4, 7)), b"45678").await, Err(PushError::SizeInvalid));
    assert_eq!(primary.push.upload_status(&right).await.unwrap().length, 4);
    assert_eq!(chunk(&primary, &right, Some((4, 7)), b"45").await, Err(PushError::SizeInvalid));
    assert_eq!(chunk(&primary, &right, Some((6, 7)), b"67").await.unwrap().length, 8);
    let digest = Digest::of(Algorithm::Sha512, b"01234567");
    let put = primary.push.finish_upload(&right, &digest).await.unwrap();
    assert_eq!((put.digest, put.size, put.offset), (digest, 8, Offset::new(1, 1)));
    assert_eq!(primary.push.upload_status(&right).await, Err(PushError::BlobUploadUnknown));
}

#[tokio::test]
async fn a_blob_that_is_not_what_it_should_be_is_stored_nowhere() {
    let primary = Primary::new().await;
    let right = start(&primary).await;
    chunk(&primary, &right, None, b"something else").await.unwrap();
    let (expected, actual) = (Digest::sha256(b"something"), Digest::sha256(b"something else"));
    assert_eq!(
        primary.push.finish_upload(&right, &expected).await,
        Err(PushError::DigestInvalid { expected, actual: Box::new(actual) })
    );
    assert_eq!(primary.store.size(&expected).unwrap(), None);
    assert_eq!(primary.store.size(&actual).unwrap(), None);
    assert_eq!(primary.push.finish_upload(&right, &actual).await, Err(PushError::BlobUploadUnknown));
    assert!(primary.events(Offset::ZERO).is_empty());
}

#[tokio::test]
async fn one_writer_at_a_time_and_a_cancelled_upload_is_gone() {
    let primary = Primary::new().await;
    let right = start(&primary).await;
    let writing = primary.push.append(&right, None).await.unwrap();
    assert!(matches!(primary.push.append(&right, None).await, Err(PushError::BlobUploadInvalid(_))));
    drop(writing);
    primary.push.cancel_upload(&right).await.unwrap();
    assert!(matches!(primary.push.append(&right, None).await, Err(PushError::BlobUploadUnknown)));
    assert_eq!(primary.push.cancel_upload(&right).await, Err(PushError::BlobUploadUnknown));
    let other = UploadRight { repo: repo("other"), ..start(&primary).await };
    assert_eq!(primary.push.upload_status(&other).await, Err(PushError::BlobUploadUnknown));
}

#[tokio::test]
async fn a_blob_larger_than_allowed() {
    let primary = Primary::with(PushLimits { blob_bytes_max: 3, ..PushLimits::default() }).await;
    let right = start(&primary).await;
    assert_eq!(chunk(&primary, &right, None, b"1234").await, Err(PushError::TooLarge { bytes_max: 3 }));
    assert_eq!(chunk(&primary, &right, None, b"123").await.unwrap().length, 3);
}

#[tokio::test]
async fn many_bytes_in_small_pieces() {
    let primary = Primary::new().await;
    let right = start(&primary).await;
    let mut append = primary.push.append(&right, None).await.unwrap();
    let piece = Bytes::from(vec![7; 10_000]);
    for _ in 0..120 {
        append.write(piece.clone()).await.unwrap();
    }
    assert_eq!(append.finish().await.unwrap().length, 1_200_000);
    let digest = Digest::sha256(&vec![7; 1_200_000]);
    assert_eq!(primary.push.finish_upload(&right, &digest).await.unwrap().size, 1_200_000);
}

#[tokio::test]
async fn a_blob_pushed_again_is_no_event() {
    let primary = Primary::new().await;
    primary.blob(&repo("team/app"), b"a").await;
    primary.blob(&repo("team/app"), b"a").await;
    assert_eq!(primary.events(Offset::ZERO).len(), 1);
    primary.blob(&repo("team/other"), b"a").await;
    assert_eq!(primary.events(Offset::ZERO).len(), 2);
}

#[tokio::test]
async fn an_image_tells_its_platform_with_its_own_event() {
    let primary = Primary::new().await;
    let app = repo("team/app");
    let config = primary.blob(&app, br#"{"os":"linux","architecture":"arm64","variant":"v8"}"#).await;
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"{}","digest":"{config}","size":9}},"layers":[]}}"#,
        media_type::OCI_CONFIG
    );
    primary.put(&app, "1", media_type::OCI_MANIFEST, manifest).await.unwrap();
    primary.image(&app, "2", "no config of an image").await;
    let platforms: Vec<_> = primary
        .events(Offset::ZERO)
        .iter()
        .filter_map(|event| match &event.change {
            Change::ManifestPut(put) => Some(put.platform.as_ref().map(ToString::to_string)),
            _ => None,
        })
        .collect();
    assert_eq!(platforms, [Some("linux/arm64/v8".to_owned()), None]);
}

#[tokio::test]
async fn mounts_honour_what_the_caller_may_pull() {
    let primary = Primary::new().await;
    let (app, base) = (repo("team/app"), repo("base/os"));
    let digest = primary.blob(&base, b"layer").await;
    let absent = Digest::sha256(b"absent");
    let mount = async |who, digest: &Digest, from: Option<&_>| {
        primary.push.mount(who, &app, digest, from).await.unwrap()
    };
    let stranger = pusher();
    let mut friend = caller(&["base/os"], Actions::PULL);
    let mut access = (*pusher().access).clone();
    access.grant(&crate::auth::Scope::repository(&base, Actions::PULL));
    friend.access = access.into();
    for (who, digest, from) in [
        (&stranger, &digest, Some(&base)),
        (&stranger, &digest, None),
        (&friend, &absent, Some(&base)),
        (&friend, &absent, None),
        (&friend, &digest, Some(&app)),
    ] {
        let Mounted::Upload(right, _) = mount(who, digest, from).await else {
            panic!("{} mounted {digest} from {from:?}", who.subject);
        };
        primary.push.cancel_upload(&right).await.unwrap();
    }
    assert!(matches!(mount(&friend, &digest, Some(&base)).await, Mounted::Linked(put) if put.size == 5));
    let events = primary.events(Offset::ZERO);
    let mounted = &events.last().unwrap().change;
    assert!(matches!(mounted, Change::BlobMounted { from: Some(from), .. } if *from == base), "{mounted:?}");
    assert!(matches!(mount(&stranger, &digest, None).await, Mounted::Linked(_)), "it is linked here already");
}

#[tokio::test]
async fn an_anonymous_mount() {
    let primary = Primary::new().await;
    let digest = primary.blob(&repo("base/os"), b"layer").await;
    let everything = caller(&["base/os", "team/app"], Actions::ALL);
    let mounted = primary.push.mount(&everything, &repo("team/app"), &digest, None).await.unwrap();
    assert!(matches!(mounted, Mounted::Linked(_)), "{mounted:?}");
    let primary = Primary::with(PushLimits { anonymous_mount: false, ..PushLimits::default() }).await;
    let digest = primary.blob(&repo("base/os"), b"layer").await;
    let mounted = primary.push.mount(&everything, &repo("team/app"), &digest, None).await.unwrap();
    assert!(matches!(mounted, Mounted::Upload(..)), "{mounted:?}");
}

#[tokio::test]
async fn manifests_are_checked_before_they_are_put() {
    let primary = Primary::new().await;
    let app = repo("team/app");
    let absent = Digest::sha256(b"absent");
    let put = async |named: &str, content_type: &str, bytes: String| {
        primary.put(&app, named, content_type, bytes).await.map(|pushed| pushed.digest)
    };
    let bytes = image(&absent, "");
    let missing = put("1", media_type::OCI_MANIFEST, bytes.clone()).await;
    assert_eq!(missing, Err(PushError::ManifestBlobUnknown(absent)));
    let config = primary.blob(&app, b"{}").await;
    let bytes = image(&config, "");
    let digest = Digest::sha256(bytes.as_bytes());
    let expected = Digest::sha256(b"x");
    let wrong = put(&expected.to_string(), media_type::OCI_MANIFEST, bytes.clone()).await;
    assert_eq!(wrong, Err(PushError::DigestInvalid { expected, actual: Box::new(digest) }));
    let listed =
        format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"{digest}","size":1}}]}}"#);
    let child_missing = put("list", media_type::OCI_INDEX, listed.clone()).await;
    assert_eq!(child_missing, Err(PushError::ManifestBlobUnknown(digest)));
    let broken = put("1", media_type::OCI_MANIFEST, "{}".to_owned()).await;
    assert!(matches!(broken, Err(PushError::ManifestInvalid(_))));
    let large = put("1", "any/thing", " ".repeat(MANIFEST_BYTES_MAX + 1)).await;
    assert!(matches!(large, Err(PushError::TooLarge { .. })));
    let before = primary.journal.applied();
    assert_eq!(before.seq, 1, "nothing was written but the blob");
    assert_eq!(put("1", media_type::OCI_MANIFEST, bytes).await, Ok(digest));
    assert!(put("list", media_type::OCI_INDEX, listed).await.is_ok());
    assert!(put("any", "any/thing", " ".repeat(MANIFEST_BYTES_MAX)).await.is_ok());
}

#[tokio::test]
async fn sparse_where_the_configuration_allows_it() {
    let limits = PushLimits { sparse_indexes: true, sparse_manifests: true, ..PushLimits::default() };
    let primary = Primary::with(limits).await;
    let absent = Digest::sha256(b"absent");
    let app = repo("team/app");
    primary.put(&app, "1", media_type::OCI_MANIFEST, image(&absent, "")).await.unwrap();
    let listed =
        format!(r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"m","digest":"{absent}","size":1}}]}}"#);
    primary.put(&app, "2", media_type::OCI_INDEX, listed).await.unwrap();
}

#[tokio::test]
async fn an_artifact_names_its_subject_which_need_not_be_there() {
    let primary = Primary::new().await;
    let app = repo("team/app");
    let (config, subject) = (primary.blob(&app, b"{}").await, Digest::sha256(b"subject"));
    let extra =
        format!(r#","subject":{{"mediaType":"m","digest":"{subject}","size":7}},"annotations":{{"a":"b"}}"#);
    let pushed = primary.put(&app, "sig", media_type::OCI_MANIFEST, image(&config, &extra)).await.unwrap();
    assert_eq!(pushed.subject, Some(subject));
    let listed =
        primary.pull.referrers(&puller(), &app, &subject, None, Default::default()).await.unwrap().referrers;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].artifact_type.as_deref(), Some("a/config"));
    assert_eq!(listed[0].annotations, [("a".to_owned(), "b".to_owned())]);
}

#[tokio::test]
async fn tags_beside_a_digest_move_in_one_event() {
    let primary = Primary::new().await;
    let app = repo("team/app");
    let bytes = image(&primary.blob(&app, b"{}").await, "");
    let digest = Digest::of(Algorithm::Sha512, bytes.as_bytes());
    let tags: Vec<Tag> = ["a", "b", "a"].map(|tag| tag.parse().unwrap()).to_vec();
    let manifest = NewManifest {
        reference: Reference::Digest(digest),
        tags: tags.clone(),
        content_type: media_type::OCI_MANIFEST.to_owned(),
        bytes: bytes.into(),
    };
    let pushed = primary.push.put_manifest(&pusher(), &app, manifest.clone()).await.unwrap();
    assert_eq!((pushed.digest, pushed.tags), (digest, tags.clone()));
    assert_eq!(pushed.offset.seq, 2);
    for tag in ["a", "b"] {
        let pulled = primary.pull.manifest(&puller(), &app, &reference(tag), Default::default()).await;
        assert_eq!(pulled.unwrap().digest, digest);
    }
    let again = primary.push.put_manifest(&pusher(), &app, manifest.clone()).await.unwrap();
    assert_eq!(again.offset.seq, 3, "sites wait for the event of every push of a tag");
    let many = NewManifest { tags: vec![tags[0].clone(); 101], ..manifest };
    let refused = primary.push.put_manifest(&pusher(), &app, many).await;
    assert!(matches!(refused, Err(PushError::Unsupported(_))));
}

#[tokio::test]
async fn deletes_and_what_they_leave() {
    let primary = Primary::new().await;
    let (app, other) = (repo("team/app"), repo("team/other"));
    let nobody = primary.push.delete_manifest(&pusher(), &app, &reference("1")).await;
    assert_eq!(nobody, Err(PushError::NameUnknown));
    let config = primary.blob(&other, b"1").await;
    let digest = primary.image(&app, "1", "1").await.digest;
    primary.image(&app, "2", "1").await;
    let delete = async |named: &str| primary.push.delete_manifest(&pusher(), &app, &reference(named)).await;
    let look = async |named: &str| {
        primary.pull.manifest(&puller(), &app, &reference(named), Default::default()).await.is_ok()
    };
    delete("1").await.unwrap();
    assert_eq!(delete("1").await, Err(PushError::ManifestUnknown));
    assert!(!look("1").await && look("2").await && look(&digest.to_string()).await);
    delete(&digest.to_string()).await.unwrap();
    assert!(!look("2").await && !look(&digest.to_string()).await);
    assert_eq!(delete(&digest.to_string()).await, Err(PushError::ManifestUnknown));
    primary.push.delete_blob(&pusher(), &app, &config).await.unwrap();
    assert!(primary.push.delete_blob(&pusher(), &app, &config).await.is_err());
    let elsewhere = caller(&["team/other"], Actions::PULL);
    assert!(primary.pull.blob(&elsewhere, &other, &config, Default::default()).await.is_ok());
    primary.image(&app, "1", "1").await;
    assert!(look("1").await, "what was deleted can be pushed again");
}

#[tokio::test]
async fn a_manifest_never_outlives_what_it_names() {
    let primary = Primary::new().await;
    let app = repo("team/app");
    for _ in 0..8 {
        let config = primary.blob(&app, b"{}").await;
        let who = pusher();
        let delete = primary.push.delete_blob(&who, &app, &config);
        let put = primary.put(&app, "1", media_type::OCI_MANIFEST, image(&config, ""));
        let (deleted, put) = tokio::join!(delete, put);
        let deleted = deleted.unwrap().offset;
        if let Ok(put) = put {
            assert!(put.offset < deleted, "put after its blob was deleted");
        }
    }
}

#[tokio::test]
async fn nothing_without_the_right_to_it() {
    let primary = Primary::new().await;
    let app = repo("team/app");
    let (who, digest) = (puller(), Digest::sha256(b"x"));
    let manifest = NewManifest {
        reference: reference("1"),
        tags: Vec::new(),
        content_type: String::new(),
        bytes: Bytes::new(),
    };
    let right = start(&primary).await;
    let push = &primary.push;
    assert_eq!(push.start_upload(&who, &app, None).await.unwrap_err(), PushError::Denied);
    assert_eq!(push.upload_right(&who, &app, right.upload).unwrap_err(), PushError::Denied);
    assert_eq!(push.mount(&who, &app, &digest, None).await.unwrap_err(), PushError::Denied);
    assert_eq!(push.put_manifest(&who, &app, manifest).await.unwrap_err(), PushError::Denied);
    assert_eq!(push.delete_manifest(&who, &app, &reference("1")).await.unwrap_err(), PushError::Denied);
    assert_eq!(push.delete_blob(&who, &app, &digest).await.unwrap_err(), PushError::Denied);
}
