//! How far each receiver was told of each site, in a file.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use outport_proto::{Offset, SiteName};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::{
    auth::{FileError, read_text, write_private},
    blocking,
    shutdown::Shutdown,
};

/// The file is written no oftener: what was told since is told again after a crash.
const INTERVAL: Duration = Duration::from_millis(200);

/// How far one receiver was told of one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// It was told of every image up to here that it is visible.
    pub(super) visible: Offset,
    /// The same of those that are complete.
    pub(super) complete: Offset,
    /// It was told last that the site is behind.
    pub(super) behind: bool,
}

/// The same in the file, where offsets are texts.
#[derive(Serialize, Deserialize)]
struct Written {
    visible: String,
    complete: String,
    behind: bool,
}

type All = BTreeMap<String, BTreeMap<SiteName, Mark>>;

/// All marks. Cloning gives another handle.
#[derive(Clone)]
pub(super) struct Marks(Arc<Shared>);

struct Shared {
    file: PathBuf,
    marks: Mutex<All>,
    changed: Notify,
}

impl Marks {
    /// Reads the marks of `wanted`, pairs of webhook and site; those that are missing stand at `head`, and none
    /// is beyond it. Others are forgotten.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub(super) fn open(
        file: PathBuf,
        wanted: Vec<(String, SiteName)>,
        head: Offset,
    ) -> Result<Self, FileError> {
        let text = read_text(&file)?.unwrap_or_default();
        let known: BTreeMap<String, BTreeMap<SiteName, Written>> =
            serde_json::from_str(&text).unwrap_or_else(|error| {
                if !text.is_empty() {
                    tracing::error!(%error, file = %file.display(), "marks of webhooks are damaged: they begin anew");
                }
                BTreeMap::new()
            });
        let mark_of = |webhook: &str, site: &SiteName| {
            let written = known.get(webhook)?.get(site)?;
            let offset = |text: &str| text.parse::<Offset>().ok().map(|offset| offset.min(head));
            let (visible, complete) = (offset(&written.visible)?, offset(&written.complete)?);
            Some(Mark { visible, complete, behind: written.behind })
        };
        let mut marks = All::new();
        for (webhook, site) in wanted {
            let new = Mark { visible: head, complete: head, behind: false };
            let mark = mark_of(&webhook, &site).unwrap_or(new);
            marks.entry(webhook).or_default().insert(site, mark);
        }
        let this = Self(Arc::new(Shared { file, marks: Mutex::new(marks), changed: Notify::new() }));
        this.write()?;
        Ok(this)
    }

    /// Of a site that has no mark nothing older than `head` is told.
    pub(super) fn begin(&self, webhook: &str, site: &SiteName, head: Offset) {
        let new = Mark { visible: head, complete: head, behind: false };
        self.marks().entry(webhook.to_owned()).or_default().entry(site.clone()).or_insert(new);
        self.0.changed.notify_one();
    }

    pub(super) fn get(&self, webhook: &str, site: &SiteName) -> Mark {
        let mark = self.marks().get(webhook).and_then(|sites| sites.get(site)).copied();
        // Whoever asks was there when they were opened.
        mark.unwrap_or(Mark { visible: Offset::ZERO, complete: Offset::ZERO, behind: false })
    }

    pub(super) fn change(&self, webhook: &str, site: &SiteName, change: impl FnOnce(&mut Mark)) {
        if let Some(mark) = self.marks().get_mut(webhook).and_then(|sites| sites.get_mut(site)) {
            change(mark);
        }
        self.0.changed.notify_one();
    }

    /// Writes what changed until shutdown, and once more then.
    pub(super) async fn keep(self, shutdown: Shutdown) {
        loop {
            let stops = tokio::select! {
                biased;
                () = shutdown.requested() => true,
                () = self.0.changed.notified() => false,
            };
            let this = self.clone();
            match blocking::spawn(move || this.write()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "it is not kept what webhooks were told"),
                Err(error) => tracing::error!(%error, "keeping what webhooks were told crashed"),
            }
            if stops {
                return;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    fn write(&self) -> Result<(), FileError> {
        let text = {
            let marks = self.marks();
            let of_site = |(site, mark): (&SiteName, &Mark)| {
                let Mark { visible, complete, behind } = *mark;
                let (visible, complete) = (visible.to_string(), complete.to_string());
                (site.clone(), Written { visible, complete, behind })
            };
            let written: BTreeMap<_, BTreeMap<_, _>> =
                marks.iter().map(|(webhook, sites)| (webhook, sites.iter().map(of_site).collect())).collect();
            serde_json::to_string_pretty(&written).unwrap_or_default()
        };
        write_private(&self.0.file, &text)
    }

    fn marks(&self) -> MutexGuard<'_, All> {
        // Marks are plain numbers: none is half written.
        self.0.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_outlive_a_restart_and_never_lead_past_the_head() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("webhooks.json");
        let [mumbai, goa]: [SiteName; 2] = ["mumbai", "goa"].map(|name| name.parse().unwrap());
        let head = Offset::new(1, 40);
        let wanted = |sites: &[&SiteName]| {
            sites.iter().map(|site| ("ci".to_owned(), (*site).clone())).collect::<Vec<_>>()
        };
        let marks = Marks::open(file.clone(), wanted(&[&mumbai]), head).unwrap();
        assert_eq!(marks.get("ci", &mumbai), Mark { visible: head, complete: head, behind: false });
        marks.change("ci", &mumbai, |mark| (mark.visible, mark.behind) = (Offset::new(1, 50), true));
        marks.write().unwrap();

        let later = Offset::new(1, 60);
        let again = Marks::open(file.clone(), wanted(&[&goa, &mumbai]), later).unwrap();
        assert_eq!(
            again.get("ci", &mumbai),
            Mark { visible: Offset::new(1, 50), complete: head, behind: true },
            "what was not told yet will be"
        );
        assert_eq!(again.get("ci", &goa).visible, later, "a new site's past is told to nobody");
        // A log that was restored from a backup is shorter.
        let restored = Marks::open(file.clone(), wanted(&[&mumbai]), Offset::new(1, 45)).unwrap();
        assert_eq!(restored.get("ci", &mumbai).visible, Offset::new(1, 45));
        std::fs::write(&file, "{").unwrap();
        let anew = Marks::open(file, wanted(&[&mumbai]), later).unwrap();
        assert_eq!(anew.get("ci", &mumbai).complete, later);
    }
}
