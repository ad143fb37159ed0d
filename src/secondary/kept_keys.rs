//! The keys of the sites that follow a site, so that they are let in without the primary too.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use outport_proto::{
    SiteName, codec,
    frame::{FromPrimary, Keys},
};

use super::memory::replace;
use crate::blocking;

/// Directory inside the site's data directory.
const DIR: &str = "relayed-keys";

/// One file a site that follows, which only its owner may read. There are as many as such sites.
#[derive(Clone, Debug)]
pub(super) struct KeptKeys {
    dir: PathBuf,
}

impl KeptKeys {
    pub(super) fn below(dir: &Path) -> Self {
        Self { dir: dir.join(DIR) }
    }

    /// What the primary gave last; `None` makes what it gave before void.
    pub(super) async fn keep(&self, site: &SiteName, keys: Option<Keys>) {
        let (dir, path) = (self.dir.clone(), self.path(site));
        let kept = blocking::spawn(move || match keys {
            Some(keys) => {
                fs::create_dir_all(&dir)?;
                if read(&path).is_some_and(|last| last == keys) {
                    return Ok(());
                }
                replace(&path, FromPrimary::Keys(keys))
            }
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        });
        match kept.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%site, %error, "cannot keep the keys of a site that follows"),
            Err(error) => tracing::error!(%site, %error, "keeping the keys of a site that follows crashed"),
        }
    }

    /// What was kept. What cannot be read is as if it were not there.
    pub(super) async fn last(&self, site: &SiteName) -> Option<Keys> {
        let path = self.path(site);
        blocking::spawn(move || read(&path)).await.ok().flatten()
    }

    /// A site's name has no character that means anything to a file system.
    fn path(&self, site: &SiteName) -> PathBuf {
        self.dir.join(site.as_str())
    }
}

fn read(path: &Path) -> Option<Keys> {
    match codec::decode_frame(&fs::read(path).ok()?) {
        Ok(FromPrimary::Keys(keys)) => Some(keys),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use outport_proto::frame::AuthMode;

    use super::*;

    #[tokio::test]
    async fn the_last_keys_outlive_a_restart_and_end_with_a_no() {
        let dir = tempfile::tempdir().unwrap();
        let site: SiteName = "pune".parse().unwrap();
        let keys = |generation| Keys {
            auth: AuthMode::Outport { jwks: "{}".to_owned(), issuer: "issuer".to_owned() },
            public_pull: Vec::new(),
            seal: Vec::new(),
            generation,
        };
        let kept = KeptKeys::below(dir.path());
        assert_eq!(kept.last(&site).await, None);
        kept.keep(&site, Some(keys(1))).await;
        kept.keep(&site, Some(keys(2))).await;
        let kept = KeptKeys::below(dir.path());
        assert_eq!(kept.last(&site).await, Some(keys(2)));
        assert_eq!(kept.last(&"goa".parse().unwrap()).await, None);
        let mode = fs::metadata(kept.path(&site)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        kept.keep(&site, None).await;
        assert_eq!(kept.last(&site).await, None);
    }
}
