//! What the program logged, for tests that expect an admin to read it.

use outport::watch;
use std::{
    io,
    sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError},
};

use tracing::subscriber::DefaultGuard;

use crate::world::LIMIT;

/// What the tasks of one test log, on the one thread that they run on.
#[derive(Clone, Default)]
pub(crate) struct OwnLines(Arc<Mutex<String>>);

impl OwnLines {
    /// Lines are kept until the guard is dropped.
    pub(crate) fn read_along() -> (Self, DefaultGuard) {
        // A lone subscriber may be told nothing: whether a line is wanted is asked, once, on whichever
        // thread comes to it first.
        read_along();
        let lines = Self::default();
        let kept = lines.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || kept.clone()).finish();
        (lines, tracing::subscriber::set_default(subscriber))
    }

    /// The lines that hold all of `words`.
    pub(crate) fn with(&self, words: &[&str]) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lines.lines().filter(|line| words.iter().all(|word| line.contains(word)));
        found.map(str::to_owned).collect()
    }
}

impl io::Write for OwnLines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

static LINES: Mutex<String> = Mutex::new(String::new());
static READING: OnceLock<()> = OnceLock::new();
static WRITTEN: LazyLock<watch::Sender<()>> = LazyLock::new(Default::default);

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_str(&String::from_utf8_lossy(bytes));
        WRITTEN.send_replace(());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From here on everything logged by any test of this program is kept.
pub(crate) fn read_along() {
    READING.get_or_init(|| {
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Writer).finish();
        tracing::subscriber::set_global_default(subscriber).unwrap();
    });
}

/// Resolves once one line holds all of `words`.
pub(crate) async fn logged(words: &[&str]) {
    let is_there = || {
        let lines = LINES.lock().unwrap();
        lines.lines().any(|line| words.iter().all(|word| line.contains(word)))
    };
    let mut written = WRITTEN.subscribe();
    let wait = written.wait_for(|()| is_there());
    if tokio::time::timeout(LIMIT, wait).await.is_err() {
        panic!("no line with {words:?} in:\n{}", LINES.lock().unwrap());
    }
}
