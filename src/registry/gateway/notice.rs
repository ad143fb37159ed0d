//! What a registry tells of itself: hints, each a reason to look.

use std::time::Duration;

use outport_proto::{Digest, Reference, RepoName, Tag};
use serde::Deserialize;

use super::{
    Gateway, GatewayError,
    observe::{Doubtful, Observed},
};

/// Events of one request, at most.
const EVENTS_MAX: usize = 10_000;

/// What is told may not be there yet: looks at it, and the pauses before them.
const LOOK_AGAIN: [Option<Duration>; 4] = [
    None,
    Some(Duration::from_millis(20)),
    Some(Duration::from_millis(60)),
    Some(Duration::from_millis(150)),
];
/// And how long it is looked at in the background.
const STILL_TO_COME: Duration = Duration::from_secs(10);

/// How a source spells its notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// CNCF Distribution's envelope, which GitLab sends as well.
    Docker,
    /// Harbor's webhooks, in its own format or as CloudEvents.
    Harbor,
    /// CloudEvents of zot.
    Zot,
}

/// What may have changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hint {
    /// A tag, and what it is said to name now.
    Tag {
        /// The repository.
        repo: RepoName,
        /// The tag.
        tag: Tag,
        /// What it names; `None` when it was deleted, or that is not said.
        digest: Option<Digest>,
    },
    /// A manifest was put.
    Manifest {
        /// The repository.
        repo: RepoName,
        /// The manifest.
        digest: Digest,
    },
    /// A blob was put or mounted.
    Blob {
        /// The repository.
        repo: RepoName,
        /// The blob.
        digest: Digest,
    },
    /// A manifest or a blob was deleted.
    Deleted {
        /// The repository.
        repo: RepoName,
        /// Its digest.
        digest: Digest,
    },
    /// Anything of a repository.
    Repository {
        /// The repository.
        repo: RepoName,
    },
    /// Anything: repositories were renamed, those below them as well.
    Everything,
}

/// What stands in one notification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    /// Reasons to look.
    pub hints: Vec<Hint>,
    /// Events that change nothing: pulls.
    pub idle: u64,
    /// Events of a kind that is not known, or about what cannot be named here.
    pub unknown: u64,
}

/// Why a notification cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableNotice {
    /// Not JSON of that shape.
    #[error("not a notification of this format: {0}")]
    Shape(String),
    /// More events than one request may hold.
    #[error("more than {EVENTS_MAX} events")]
    TooMany,
}

/// What became of a hint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heeded {
    /// It is known already.
    Known,
    /// The registry was asked, and something is recorded now.
    New,
    /// That takes a walk.
    Walk,
}

impl Gateway {
    /// Looks at what a hint is about, unless the log says already what the hint does. When this returns,
    /// what the registry says is durable.
    ///
    /// # Errors
    /// [`GatewayError`]: the source should send it again.
    pub async fn heed(&self, hint: &Hint) -> Result<Heeded, GatewayError> {
        if self.says(hint)? {
            return Ok(Heeded::Known);
        }
        let mut heeded = Heeded::Known;
        for pause in LOOK_AGAIN {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            let observed = match hint {
                Hint::Tag { repo, tag, .. } => self.observe(repo, &Reference::Tag(tag.clone())).await?,
                Hint::Manifest { repo, digest } => self.observe(repo, &Reference::Digest(*digest)).await?,
                Hint::Blob { repo, digest } => self.observe_blob(repo, digest).await?,
                Hint::Deleted { repo, digest } => self.observe_deleted(repo, digest).await?,
                Hint::Repository { .. } | Hint::Everything => return Ok(Heeded::Walk),
            };
            if observed != Observed::Same {
                heeded = Heeded::New;
            }
            // Distribution tells of a tag before the tag is there.
            if self.says(hint)? {
                return Ok(heeded);
            }
        }
        // It has moved on since, or is still to come.
        for thing in hint.things() {
            self.doubt(thing, STILL_TO_COME);
        }
        Ok(heeded)
    }

    /// Whether the log says what a hint does.
    fn says(&self, hint: &Hint) -> Result<bool, GatewayError> {
        let index = self.index();
        let has = |repo: &RepoName, digest: &Digest| {
            Ok::<_, GatewayError>(index.manifest_record(repo, digest)?.is_some())
        };
        Ok(match hint {
            Hint::Tag { repo, tag, digest } => {
                let known = index.tag(repo, tag)?.map(|entry| entry.digest);
                known == *digest && digest.map_or(Ok(true), |digest| has(repo, &digest))?
            }
            Hint::Manifest { repo, digest } => has(repo, digest)?,
            Hint::Blob { repo, digest } => index.link(repo, digest)?.is_some(),
            Hint::Deleted { repo, digest } => !has(repo, digest)? && index.link(repo, digest)?.is_none(),
            Hint::Repository { .. } | Hint::Everything => false,
        })
    }

    async fn observe_deleted(&self, repo: &RepoName, digest: &Digest) -> Result<Observed, GatewayError> {
        let mut observed = Observed::Same;
        if self.index().manifest_record(repo, digest)?.is_some() {
            observed = self.observe(repo, &Reference::Digest(*digest)).await?;
        }
        if self.index().link(repo, digest)?.is_some() {
            observed = self.observe_blob(repo, digest).await?;
        }
        Ok(observed)
    }
}

impl Hint {
    /// What it is about, to be looked at again.
    fn things(&self) -> Vec<Doubtful> {
        let manifest =
            |repo: &RepoName, digest: &Digest| Doubtful::Manifest(repo.clone(), Reference::Digest(*digest));
        match self {
            Self::Tag { repo, tag, digest } => {
                let tag = Doubtful::Manifest(repo.clone(), Reference::Tag(tag.clone()));
                std::iter::once(tag).chain(digest.map(|digest| manifest(repo, &digest))).collect()
            }
            Self::Manifest { repo, digest } => vec![manifest(repo, digest)],
            Self::Blob { repo, digest } => vec![Doubtful::Blob(repo.clone(), *digest)],
            Self::Deleted { repo, digest } => {
                vec![manifest(repo, digest), Doubtful::Blob(repo.clone(), *digest)]
            }
            Self::Repository { .. } | Self::Everything => Vec::new(),
        }
    }
}

/// Reads a notification. `event_type` is the `ce-type` header of a CloudEvent in binary mode.
///
/// # Errors
/// [`UnreadableNotice`]; an event of an unknown kind among others is none.
pub fn read(format: Format, event_type: Option<&str>, body: &[u8]) -> Result<Notices, UnreadableNotice> {
    match format {
        Format::Docker => docker(body),
        Format::Harbor => harbor(body),
        Format::Zot => zot(event_type, body),
    }
}

fn json<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, UnreadableNotice> {
    serde_json::from_slice(body).map_err(|error| UnreadableNotice::Shape(error.to_string()))
}

impl Notices {
    /// Adds the hint that `made` gives, unless a name in it is none.
    fn add(&mut self, made: Option<Hint>) {
        match made {
            Some(hint) => self.hints.push(hint),
            None => self.unknown += 1,
        }
    }
}

/// Sources: CNCF Distribution, "Work with notifications"; GitLab, "Container registry notifications".
/// What is absent in version 2 is empty in version 3.
fn docker(body: &[u8]) -> Result<Notices, UnreadableNotice> {
    #[derive(Deserialize)]
    struct Envelope {
        events: Vec<Event>,
    }
    #[derive(Deserialize)]
    struct Event {
        action: String,
        #[serde(default)]
        target: Target,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Target {
        media_type: String,
        digest: String,
        repository: String,
        tag: String,
    }
    let Envelope { events } = json(body)?;
    if events.len() > EVENTS_MAX {
        return Err(UnreadableNotice::TooMany);
    }
    let mut notices = Notices::default();
    for Event { action, target } in events {
        let Target { media_type, digest, repository, tag } = target;
        let hint = || -> Option<Hint> {
            let repo: RepoName = repository.parse().ok()?;
            let digest_said = || digest.parse::<Digest>().ok();
            Some(match (action.as_str(), tag.as_str(), digest.as_str()) {
                // GitLab's, of a project or group that moved with all its repositories.
                ("rename", ..) => Hint::Everything,
                ("delete", "", "") => Hint::Repository { repo },
                ("delete", "", _) => Hint::Deleted { repo, digest: digest_said()? },
                ("delete", tag, _) => Hint::Tag { repo, tag: tag.parse().ok()?, digest: None },
                ("mount", ..) => Hint::Blob { repo, digest: digest_said()? },
                ("push", "", _) if is_blob(&media_type) => Hint::Blob { repo, digest: digest_said()? },
                ("push", "", _) => Hint::Manifest { repo, digest: digest_said()? },
                ("push", tag, _) => Hint::Tag { repo, tag: tag.parse().ok()?, digest: digest_said() },
                _ => return None,
            })
        };
        match action.as_str() {
            "pull" => notices.idle += 1,
            _ => notices.add(hint()),
        }
    }
    Ok(notices)
}

/// A registry names blobs so whatever they are.
fn is_blob(media_type: &str) -> bool {
    matches!(media_type, "" | "application/octet-stream")
}

/// Source: Harbor, "Configure Webhook Notifications". A tag that is removed while its artifact stays is
/// never told of.
fn harbor(body: &[u8]) -> Result<Notices, UnreadableNotice> {
    #[derive(Deserialize)]
    struct Webhook {
        #[serde(rename = "type")]
        kind: String,
        /// Of its own format.
        event_data: Option<Data>,
        /// Of a CloudEvent.
        data: Option<Data>,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        resources: Vec<Resource>,
        repository: Option<Repository>,
        retention: Option<Retention>,
    }
    #[derive(Deserialize)]
    struct Resource {
        #[serde(default)]
        digest: String,
        #[serde(default)]
        tag: String,
    }
    #[derive(Deserialize)]
    struct Repository {
        repo_full_name: String,
    }
    #[derive(Deserialize)]
    struct Retention {
        project_name: String,
        deleted_artifact: Vec<Artifact>,
    }
    #[derive(Deserialize)]
    struct Artifact {
        name_tag: String,
    }
    let Webhook { kind, event_data, data } = json(body)?;
    let mut notices = Notices::default();
    let data = event_data.or(data);
    let (is_deletion, data) = match (kind.as_str(), data) {
        ("PUSH_ARTIFACT" | "harbor.artifact.pushed", Some(data)) => (false, data),
        ("DELETE_ARTIFACT" | "harbor.artifact.deleted", Some(data)) => (true, data),
        (
            "TAG_RETENTION" | "harbor.tag_retention.finished",
            Some(Data { retention: Some(retention), .. }),
        ) => {
            for Artifact { name_tag } in retention.deleted_artifact {
                let name = name_tag.split([':', '@', ' ']).next().unwrap_or_default();
                let repo = format!("{}/{name}", retention.project_name).parse();
                notices.add(repo.ok().map(|repo| Hint::Repository { repo }));
            }
            return Ok(notices);
        }
        // What a replication brings here is told of as pushes.
        (
            "PULL_ARTIFACT" | "harbor.artifact.pulled" | "REPLICATION" | "harbor.replication.status.changed",
            _,
        ) => {
            notices.idle += 1;
            return Ok(notices);
        }
        _ => {
            notices.unknown += 1;
            return Ok(notices);
        }
    };
    let Data { resources, repository: Some(repository), .. } = data else {
        notices.unknown += 1;
        return Ok(notices);
    };
    if resources.len() > EVENTS_MAX {
        return Err(UnreadableNotice::TooMany);
    }
    for Resource { digest, tag } in resources {
        let hint = || -> Option<Hint> {
            let repo: RepoName = repository.repo_full_name.parse().ok()?;
            let digest: Option<Digest> = digest.parse().ok();
            // An artifact goes with all its tags, of which one is named. Where it has none, its digest stands
            // in the tag's place.
            match (tag.parse::<Tag>(), digest) {
                (_, Some(digest)) if is_deletion => Some(Hint::Deleted { repo, digest }),
                (Ok(tag), digest) => Some(Hint::Tag { repo, tag, digest }),
                (Err(_), digest) => Some(Hint::Manifest { repo, digest: digest? }),
            }
        };
        notices.add(hint());
    }
    Ok(notices)
}

/// Source: zot, "Events".
fn zot(event_type: Option<&str>, body: &[u8]) -> Result<Notices, UnreadableNotice> {
    #[derive(Deserialize)]
    struct CloudEvent {
        #[serde(rename = "type")]
        kind: Option<String>,
        data: Option<Data>,
        #[serde(flatten)]
        bare: Data,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Data {
        name: String,
        reference: String,
        digest: String,
    }
    let CloudEvent { kind, data, bare } = json(body)?;
    let Data { name, reference, digest } = data.unwrap_or(bare);
    let mut notices = Notices::default();
    let hint = || -> Option<Hint> {
        let repo: RepoName = name.parse().ok()?;
        // What stands before the kind is configuration.
        let kind = event_type.or(kind.as_deref())?;
        match kind.rsplit_once('.').map(|(before, last)| (before.rsplit('.').next(), last))? {
            (Some("image"), "updated") => match reference.parse().ok()? {
                Reference::Tag(tag) => Some(Hint::Tag { repo, tag, digest: digest.parse().ok() }),
                Reference::Digest(digest) => Some(Hint::Manifest { repo, digest }),
            },
            (Some("image"), "deleted") => match reference.parse().ok()? {
                Reference::Tag(tag) => Some(Hint::Tag { repo, tag, digest: None }),
                Reference::Digest(digest) => Some(Hint::Deleted { repo, digest }),
            },
            (Some("repository"), "created") => Some(Hint::Repository { repo }),
            _ => None,
        }
    };
    notices.add(hint());
    Ok(notices)
}

#[cfg(test)]
mod tests;
