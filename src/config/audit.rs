//! `[audit]`: where the audit log goes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{ByteSize, ConfigError, Telemetry};
use crate::telemetry::audit::FileOptions;

/// Less would put a file aside with almost every write.
const ROTATE_MIN: u64 = 64 * 1024;

/// Who pulled, pushed, deleted, was led elsewhere or denied what, and what administrators did: where that is
/// kept. Nowhere unless one of the places is named.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// A file that is appended to and put aside when it is large or old.
    pub file: Option<PathBuf>,
    /// Standard output.
    pub stdout: bool,
    /// The collector of `[telemetry.otlp]`, as log records.
    pub otlp: bool,
    /// The file is put aside before it is larger, in bytes or as in `"100MiB"`.
    pub rotate: ByteSize,
    /// It is put aside when it is older, in hours.
    pub rotate_hours: u32,
    /// So many files are kept beside it.
    pub keep: usize,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            file: None,
            stdout: false,
            otlp: false,
            rotate: ByteSize(100 << 20),
            rotate_hours: 24,
            keep: 30,
        }
    }
}

impl Audit {
    /// The file, if there is one.
    pub fn file(&self) -> Option<FileOptions> {
        let hours = Duration::from_secs(u64::from(self.rotate_hours) * 3600);
        let options = |path: &PathBuf| FileOptions {
            path: path.clone(),
            bytes_max: self.rotate.0,
            age_max: hours,
            keep: self.keep,
        };
        self.file.as_ref().map(options)
    }

    pub(super) fn check(&self, path: &Path, telemetry: &Telemetry) -> Result<(), ConfigError> {
        let of_key = |key, reason: &str| Err(ConfigError::of_key(path, key, reason));
        if self.rotate.0 < ROTATE_MIN {
            return of_key("audit.rotate", "must be at least 64KiB");
        }
        if self.rotate_hours == 0 {
            return of_key("audit.rotate_hours", "must be at least 1");
        }
        if self.otlp && telemetry.otlp.is_none() {
            return of_key("audit.otlp", "goes to the collector of telemetry.otlp, and there is none");
        }
        Ok(())
    }
}
