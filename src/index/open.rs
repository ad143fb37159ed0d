//! Opening the index of a directory: use the database that is there, or set it aside and start
//! with an empty one.

use std::{path::Path, sync::Arc};

use outport_proto::{Offset, statehash::StateHash};

use super::{
    IndexError, Opened,
    home::{Found, Home, Marker},
    key,
    kv::Kv,
    row::{self, State},
    sled::SledKv,
    tombstones::Tombstones,
};

/// An open database and what it holds.
pub(super) struct OpenIndex {
    pub(super) home: Home,
    pub(super) kv: Arc<dyn Kv>,
    pub(super) state: State,
    pub(super) opened: Opened,
}

/// The state of an empty index.
pub(super) const NOTHING: State =
    State { applied: Offset::ZERO, hash: [0; 32], tombstones: Tombstones::NONE, day: 0 };

/// Opens the index in `dir`.
pub(super) fn open(dir: &Path, cache_bytes_max: u64) -> Result<OpenIndex, IndexError> {
    let home = Home::enter(dir)?;
    let found = home.find();
    let marked_in_use = matches!(&found, Found::Database(marker) if !marker.clean);
    let (kv, state, opened) = match found {
        Found::Nothing => fresh(&home, cache_bytes_max, "there was no index".into())?,
        Found::Doubtful(reason) => replace(&home, cache_bytes_max, reason)?,
        Found::Database(marker) => match existing(&home, cache_bytes_max, &marker) {
            Ok((kv, state)) => (kv, state, Opened::Ready(state.applied)),
            Err(IndexError::Damaged(reason)) => replace(&home, cache_bytes_max, reason)?,
            Err(error) => return Err(error),
        },
    };
    // From here on it is in use: only a clean close says otherwise. After a kill that is already
    // written down, and a flush would wait for all that the killed process had left to the kernel.
    if !(marked_in_use && matches!(opened, Opened::Ready(_))) {
        home.checkpoint(state, false, || kv.flush())?;
    }
    Ok(OpenIndex { home, kv: Arc::new(kv), state, opened })
}

fn existing(home: &Home, cache_bytes_max: u64, marker: &Marker) -> Result<(SledKv, State), IndexError> {
    let kv = SledKv::open(&home.database(), cache_bytes_max)?;
    let state = read_state(&kv)?;
    let reaches = if marker.clean { state == marker.state } else { state.applied >= marker.state.applied };
    if reaches {
        return Ok((kv, state));
    }
    Err(IndexError::Damaged(format!(
        "the database holds events up to {} and should hold those up to {}",
        state.applied, marker.state.applied
    )))
}

fn read_state(kv: &dyn Kv) -> Result<State, IndexError> {
    let key = key::state();
    match kv.get(&key)? {
        Some(value) => row::decode_state(&row::unseal(&key, &value)?),
        None => Ok(NOTHING),
    }
}

fn replace(home: &Home, cache_bytes_max: u64, reason: String) -> Result<(SledKv, State, Opened), IndexError> {
    let aside = home.set_aside()?;
    tracing::warn!(%reason, kept = %aside.display(), "index set aside, it will be rebuilt");
    fresh(home, cache_bytes_max, reason)
}

fn fresh(home: &Home, cache_bytes_max: u64, reason: String) -> Result<(SledKv, State, Opened), IndexError> {
    debug_assert_eq!(StateHash::EMPTY.bytes(), NOTHING.hash);
    Ok((SledKv::open(&home.database(), cache_bytes_max)?, NOTHING, Opened::Empty(reason)))
}
