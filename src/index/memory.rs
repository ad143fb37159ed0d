//! The index's store in memory alone, for tests and simulations.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use bytes::Bytes;

use super::{
    IndexError,
    kv::{Batch, Kv, Row},
};

/// An ordered map behind a lock.
#[derive(Debug, Default)]
pub(super) struct MemoryKv {
    rows: RwLock<BTreeMap<Vec<u8>, Bytes>>,
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, IndexError> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.get(key).cloned())
    }

    fn page(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Result<Vec<Row>, IndexError> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let page = rows.range(from.max(prefix).to_vec()..);
        let page = page.take_while(|(key, _)| key.starts_with(prefix)).take(rows_max);
        Ok(page.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in batch {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }
}
