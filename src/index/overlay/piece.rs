//! Sorted rows in memory. A batch of many rows is a piece of its own, and small ones are merged with
//! their neighbours, so that there are never many: that costs less than one large tree, which is
//! searched from cache miss to cache miss.

use std::{iter::Peekable, mem, sync::Arc};

use bytes::Bytes;

use super::{
    super::kv::Batch,
    Change,
    filter::{Filter, hash},
};

/// Rows from which on a piece is not merged any more: readers wait for as long.
const ROWS_MAX: usize = 8 * 1024;

/// A row with the hash of its key.
#[derive(Clone, Debug)]
pub(super) struct Hashed {
    pub(super) hash: u64,
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Bytes>,
}

/// Rows that came later than those of the piece before.
#[derive(Debug)]
pub(super) struct Piece {
    rows: Vec<Hashed>,
    filter: Filter,
}

impl Piece {
    pub(super) fn new(batch: Batch) -> Self {
        let rows = batch.into_iter().map(|(key, value)| Hashed { hash: hash(&key), key, value });
        Self::of(rows.collect())
    }

    fn of(rows: Vec<Hashed>) -> Self {
        let filter = Filter::of(rows.iter().map(|row| row.hash));
        Self { rows, filter }
    }

    /// The hashes of its keys.
    pub(super) fn hashes(&self) -> impl Iterator<Item = u64> {
        self.rows.iter().map(|row| row.hash)
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.rows.iter().map(|row| row.key.len() + row.value.as_ref().map_or(0, Bytes::len)).sum()
    }

    /// The row under `key`, if it is here: with its value or removed.
    pub(super) fn get(&self, hash: u64, key: &[u8]) -> Option<&Option<Bytes>> {
        if !self.filter.may_have(hash) {
            return None;
        }
        let at = self.rows.binary_search_by(|row| row.key.as_slice().cmp(key)).ok()?;
        Some(&self.rows[at].value)
    }

    /// At most `rows_max` rows at or behind `from` that begin with `prefix`.
    pub(super) fn rows(&self, prefix: &[u8], from: &[u8], rows_max: usize) -> Vec<Change> {
        let begin = self.rows.partition_point(|row| row.key.as_slice() < from);
        let rows = self.rows[begin..].iter().take_while(|row| row.key.starts_with(prefix));
        rows.take(rows_max).map(|row| (row.key.clone(), row.value.clone())).collect()
    }

    /// This with the rows of `newer` over it.
    fn under(self, newer: Self) -> Self {
        let mut rows = Vec::with_capacity(self.rows.len() + newer.rows.len());
        let (mut old, mut new) = (self.rows.into_iter().peekable(), newer.rows.into_iter().peekable());
        while let Some(row) = next_of(&mut old, &mut new) {
            rows.push(row);
        }
        Self::of(rows)
    }
}

/// The lesser of two rows that come next; of two with one key the new one, and the old one is gone.
fn next_of<R: AsRef<[u8]>>(
    old: &mut Peekable<impl Iterator<Item = R>>,
    new: &mut Peekable<impl Iterator<Item = R>>,
) -> Option<R> {
    let (Some(older), Some(newer)) = (old.peek(), new.peek()) else {
        return old.next().or_else(|| new.next());
    };
    match older.as_ref().cmp(newer.as_ref()) {
        std::cmp::Ordering::Less => old.next(),
        std::cmp::Ordering::Greater => new.next(),
        std::cmp::Ordering::Equal => {
            old.next();
            new.next()
        }
    }
}

impl AsRef<[u8]> for Hashed {
    fn as_ref(&self) -> &[u8] {
        &self.key
    }
}

/// Puts a piece behind the others, merged with those before it that are not much longer.
pub(super) fn add_piece(pieces: &mut Vec<Arc<Piece>>, mut newest: Piece) {
    let is_near = |last: &mut Arc<Piece>, rows: usize| {
        last.rows.len() <= 2 * rows && last.rows.len() + rows <= ROWS_MAX && Arc::get_mut(last).is_some()
    };
    while let Some(last) = pieces.pop_if(|last| is_near(last, newest.rows.len())) {
        match Arc::try_unwrap(last) {
            Ok(last) => newest = last.under(newest),
            Err(last) => {
                pieces.push(last);
                break;
            }
        }
    }
    pieces.push(Arc::new(newest));
}

/// The rows of all pieces in order, the newest of each key.
pub(super) fn merged(pieces: &[Arc<Piece>]) -> Vec<&Hashed> {
    let mut lists: Vec<Vec<&Hashed>> = pieces.iter().map(|piece| piece.rows.iter().collect()).collect();
    while lists.len() > 1 {
        let mut pairs = mem::take(&mut lists).into_iter();
        while let Some(old) = pairs.next() {
            let Some(new) = pairs.next() else {
                lists.push(old);
                break;
            };
            let mut both = Vec::with_capacity(old.len() + new.len());
            let (mut old, mut new) = (old.into_iter().peekable(), new.into_iter().peekable());
            while let Some(row) = next_of(&mut old, &mut new) {
                both.push(row);
            }
            lists.push(both);
        }
    }
    lists.pop().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn key(number: u32) -> Vec<u8> {
        format!("k{number:06}").into_bytes()
    }

    #[test]
    fn pieces_stay_few_and_the_newest_row_of_a_key_wins() {
        let (mut pieces, mut expected) = (Vec::new(), BTreeMap::new());
        for round in 0..5000_u32 {
            let value = (round % 7 > 0).then(|| Bytes::from(round.to_string()));
            let key = key(round.wrapping_mul(7919) % 1777);
            expected.insert(key.clone(), value.clone());
            add_piece(&mut pieces, Piece::new(Batch::from([(key, value)])));
            assert!(pieces.len() < 20, "{}", pieces.len());
        }
        let found: Vec<Change> =
            merged(&pieces).iter().map(|row| (row.key.clone(), row.value.clone())).collect();
        assert_eq!(found, expected.clone().into_iter().collect::<Vec<_>>());
        for (key, value) in &expected {
            let newest = pieces.iter().rev().find_map(|piece| piece.get(hash(key), key));
            assert_eq!(newest, Some(value));
        }
    }

    #[test]
    fn a_long_piece_is_left_as_it_is() {
        let batch = |from: u32| (from..from + 10_000).map(|number| (key(number), None)).collect();
        let mut pieces = Vec::new();
        (0..4).for_each(|from| add_piece(&mut pieces, Piece::new(batch(from * 10_000))));
        assert_eq!(pieces.len(), 4);
        assert_eq!(merged(&pieces).len(), 40_000);
    }
}
