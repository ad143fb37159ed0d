//! Readers do not wait for what beginning to defer reads.

use std::{
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use super::{
    super::{
        IndexError,
        kv::{Batch, Kv, Row},
    },
    *,
};

/// A database that tells when somebody reads more than one row of it, and waits to be let go.
struct Held {
    base: Arc<dyn Kv>,
    asked: Mutex<Sender<()>>,
    released: Mutex<Receiver<()>>,
}

impl Kv for Held {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        self.base.get(key)
    }

    fn page(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Row>, IndexError> {
        // Only the first is waited for.
        let _ = self.asked.lock().unwrap().send(());
        let _ = self.released.lock().unwrap().recv();
        self.base.page(prefix, from, rows_max)
    }

    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        self.base.write(batch)
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.base.flush()
    }
}

#[test]
fn readers_do_not_wait_while_the_database_is_looked_through() {
    let dir = tempfile::tempdir().unwrap();
    let (mut index, _) = Index::open(dir.path(), options()).unwrap();
    apply(&index, 1, put("r", "a", &["a"]));
    let ((asked, was_asked), (release, released)) = (channel(), channel());
    let shared = Arc::get_mut(&mut index.shared).unwrap();
    let base = Arc::clone(&shared.base);
    shared.base = Arc::new(Held { base, asked: Mutex::new(asked), released: Mutex::new(released) });

    let deferring = {
        let index = index.clone();
        std::thread::spawn(move || index.defer().unwrap())
    };
    was_asked.recv().unwrap();
    let (read, was_read) = channel();
    let reading = {
        let index = index.clone();
        std::thread::spawn(move || read.send(pull(&index, "r", "a")).unwrap())
    };
    let seen = was_read.recv_timeout(Duration::from_secs(10)).expect("a reader waits");
    assert_eq!(seen.as_deref(), Some("manifest a"));
    drop(release);
    reading.join().unwrap();
    deferring.join().unwrap();
    assert!(index.is_deferring());
}
