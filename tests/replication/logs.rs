//! What the program logged, for tests that expect an admin to read it.

use std::{
    io,
    sync::{Mutex, OnceLock, PoisonError},
    time::Duration,
};

use crate::world::LIMIT;

static LINES: Mutex<String> = Mutex::new(String::new());
static READING: OnceLock<()> = OnceLock::new();

struct Writer;

impl io::Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
        lines.push_str(&String::from_utf8_lossy(bytes));
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
    let wait = async {
        while !is_there() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(LIMIT, wait).await.is_err() {
        panic!("no line with {words:?} in:\n{}", LINES.lock().unwrap());
    }
}
