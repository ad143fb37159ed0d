//! The ordered key-value store the index stands on: all it needs of one, and nothing else.

use std::{collections::BTreeMap, vec};

use bytes::Bytes;

use super::IndexError;

/// Writes that become visible and survive together or not at all; `None` removes.
pub(super) type Batch = BTreeMap<Vec<u8>, Option<Bytes>>;
/// A key and its value.
pub(super) type Row = (Vec<u8>, Bytes);

/// An ordered map from bytes to bytes. One key space holds every table, told apart by the first
/// byte of a key, so that one batch covers them all.
pub(super) trait Kv: Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError>;

    /// At most `rows_max` rows with keys from `from` on that begin with `prefix`, in key order.
    /// Rows written meanwhile may or may not be among them.
    fn page(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Row>, IndexError>;

    /// Applies a batch atomically.
    fn write(&self, batch: Batch) -> Result<(), IndexError>;

    /// Makes everything written so far survive a power cut.
    fn flush(&self) -> Result<(), IndexError>;

    /// The first row with a key from `from` on that begins with `prefix`.
    fn first(&self, prefix: &[u8], from: &[u8]) -> Result<Option<Row>, IndexError> {
        Ok(self.page(prefix, from, 1)?.pop())
    }
}

/// Fewest rows read at once: most scans are short.
const PAGE_ROWS_MIN: usize = 16;
/// Most rows read at once.
const PAGE_ROWS_MAX: usize = 512;

/// Walks the rows that begin with a prefix without holding the store between pages.
pub(super) struct Rows<'a> {
    kv: &'a dyn Kv,
    prefix: Vec<u8>,
    from: Vec<u8>,
    page_rows: usize,
    page: vec::IntoIter<Row>,
    done: bool,
}

impl<'a> Rows<'a> {
    /// All rows that begin with `prefix`.
    pub(super) fn all(kv: &'a dyn Kv, prefix: Vec<u8>) -> Self {
        let from = prefix.clone();
        Self::starting(kv, prefix, from)
    }

    /// Those of them with keys from `from` on.
    pub(super) fn starting(kv: &'a dyn Kv, prefix: Vec<u8>, from: Vec<u8>) -> Self {
        Self { kv, prefix, from, page_rows: PAGE_ROWS_MIN, page: Vec::new().into_iter(), done: false }
    }

    fn read_page(&mut self) -> Result<(), IndexError> {
        let page = self.kv.page(&self.prefix, &self.from, self.page_rows)?;
        match page.last() {
            Some((last, _)) if page.len() == self.page_rows => {
                self.from.clone_from(last);
                self.from.push(0);
            }
            _ => self.done = true,
        }
        self.page_rows = (self.page_rows * 2).min(PAGE_ROWS_MAX);
        self.page = page.into_iter();
        Ok(())
    }
}

impl Iterator for Rows<'_> {
    type Item = Result<Row, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.page.next() {
                return Some(Ok(row));
            }
            if self.done {
                return None;
            }
            if let Err(error) = self.read_page() {
                self.done = true;
                return Some(Err(error));
            }
        }
    }
}
