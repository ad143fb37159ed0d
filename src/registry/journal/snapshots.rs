//! Snapshots on disk: the state a prefix of the log led to, so that a rebuild need not begin at
//! the first event. A file is whole or it is not used.
//!
//! ```text
//! header   0 magic "OUTPSNP\n"   8 format version u16   10 zero u16
//!         12 from: epoch u64, seq u64   28 log bytes up to from u64
//! part     0 length u32          4 `codec::encode_entries`
//! trailer  0 length 0 u32        4 until: epoch u64, seq u64   20 entries u64
//!         28 SHA-256 over everything before it
//! ```

use std::io;

use outport_proto::{
    Algorithm, Hasher, Offset,
    codec::{self, CodecError},
    frame::FRAME_BYTES_MAX,
    snapshot::{Entry, EntryKey},
};

use crate::log::disk::{File, SharedDisk};

const MAGIC: &[u8; 8] = b"OUTPSNP\n";
const FORMAT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 36;
const HASH_BYTES: usize = 32;
const TRAILER_BYTES: usize = 28 + HASH_BYTES;
/// The newest, and one to fall back to.
const KEPT: usize = 2;
/// Read from the disk at once.
const READ_BYTES: usize = 256 * 1024;
const SUFFIX: &str = ".snapshot";
const UNFINISHED_SUFFIX: &str = ".snapshot.new";
/// Of one that comes from another site; it outlives the process.
const RECEIVED_SUFFIX: &str = ".snapshot.received";

/// Between which places of the log a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Events after this one go on top.
    pub(super) from: Offset,
    /// From here on the state is one the log led to.
    pub(super) until: Offset,
    /// `Log::bytes` at `from`; 0 if unknown.
    pub(super) log_bytes: u64,
    pub(super) entries: u64,
}

/// Why a snapshot file is not used or not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum SnapshotError {
    #[error("snapshot {name} is damaged: {reason}")]
    Damaged { name: String, reason: &'static str },
    #[error("snapshot {name} has format version {version}, this program reads up to 1")]
    Newer { name: String, version: u16 },
    #[error("encode snapshot: {0}")]
    Codec(#[from] CodecError),
    #[error("snapshot files: {0}")]
    Io(#[from] io::Error),
}

/// The directory of snapshots.
#[derive(Clone, Debug)]
pub(super) struct Snapshots {
    disk: SharedDisk,
}

impl Snapshots {
    /// Removes what a crash left unfinished.
    pub(super) fn open(disk: SharedDisk) -> io::Result<Self> {
        for name in disk.list()? {
            if name.ends_with(UNFINISHED_SUFFIX) {
                disk.remove(&name)?;
            }
        }
        Ok(Self { disk })
    }

    /// Names of all whole-looking snapshots with their `from`, newest first.
    pub(super) fn list(&self) -> io::Result<Vec<(Offset, String)>> {
        let mut found: Vec<(Offset, String)> =
            self.disk.list()?.into_iter().filter_map(|name| Some((parse_name(&name)?, name))).collect();
        found.sort_by(|left, right| right.cmp(left));
        Ok(found)
    }

    /// What the newest one is, as far as its two ends tell.
    pub(super) fn newest(&self) -> Option<Taken> {
        self.list().ok()?.iter().find_map(|(_, name)| self.peek(name).ok())
    }

    /// Begins a snapshot of the state at `from`.
    pub(super) fn create(&self, from: Offset, log_bytes: u64) -> Result<SnapshotWriter, SnapshotError> {
        self.create_as(name_of(from, UNFINISHED_SUFFIX), from, log_bytes)
    }

    /// Begins to take in the snapshot of another site; forgets any other one.
    pub(super) fn receive(&self, from: Offset, log_bytes: u64) -> Result<SnapshotWriter, SnapshotError> {
        self.forget_received()?;
        self.create_as(name_of(from, RECEIVED_SUFFIX), from, log_bytes)
    }

    /// Removes what there is of a snapshot of another site.
    pub(super) fn forget_received(&self) -> io::Result<()> {
        for name in self.disk.list()? {
            if name.ends_with(RECEIVED_SUFFIX) {
                self.disk.remove(&name)?;
            }
        }
        Ok(())
    }

    /// Goes on with a snapshot of another site behind the last part of it that is whole.
    pub(super) fn resume(&self) -> Result<Option<SnapshotWriter>, SnapshotError> {
        for name in self.disk.list()? {
            let Some(from) = name.strip_suffix(RECEIVED_SUFFIX).and_then(parse_place) else { continue };
            let file = self.disk.open(&name)?;
            let mut header = vec![0; HEADER_BYTES];
            let read = file.read_at(&mut header, 0)?;
            let log_bytes = u64_at(&header, 28);
            if read < HEADER_BYTES || header != header_of(from, log_bytes) {
                self.disk.remove(&name)?;
                continue;
            }
            let mut writer = self.writer(name, file, from, log_bytes);
            writer.hasher.update(&header);
            let end = writer.take_up()?;
            if writer.last.is_some() {
                writer.file.truncate(end)?;
                return Ok(Some(writer));
            }
            self.disk.remove(&writer.unfinished)?;
        }
        Ok(None)
    }

    fn create_as(
        &self,
        unfinished: String,
        from: Offset,
        log_bytes: u64,
    ) -> Result<SnapshotWriter, SnapshotError> {
        self.disk.remove(&unfinished)?;
        let file = self.disk.create(&unfinished)?;
        let mut writer = self.writer(unfinished, file, from, log_bytes);
        writer.write(&header_of(from, log_bytes))?;
        Ok(writer)
    }

    fn writer(
        &self,
        unfinished: String,
        file: Box<dyn File>,
        from: Offset,
        log_bytes: u64,
    ) -> SnapshotWriter {
        SnapshotWriter {
            disk: self.disk.clone(),
            name: file_name(from),
            unfinished,
            file,
            hasher: Hasher::new(Algorithm::Sha256),
            taken: Taken { from, until: from, log_bytes, entries: 0 },
            last: None,
            finished: false,
        }
    }

    /// Removes all but the newest ones of those that `usable` wants kept.
    pub(super) fn prune(&self, usable: impl Fn(Offset) -> bool) -> io::Result<()> {
        let mut kept = 0;
        for (from, name) in self.list()? {
            if usable(from) && kept < KEPT {
                kept += 1;
            } else {
                self.disk.remove(&name)?;
            }
        }
        self.disk.sync_dir()
    }

    /// Reads a file to its end and says what it is, if it is whole.
    pub(super) fn verify(&self, name: &str) -> Result<Taken, SnapshotError> {
        let file = self.disk.open(name)?;
        let (taken, hash) = read_ends(&*file, name)?;
        let hashed = file.length()? - HASH_BYTES as u64;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut position = 0;
        while position < hashed {
            let wanted = usize::try_from(hashed - position).unwrap_or(usize::MAX).min(READ_BYTES);
            hasher.update(&read_exact(&*file, position, wanted)?);
            position += wanted as u64;
        }
        if hasher.finish().as_bytes() == hash {
            Ok(taken)
        } else {
            Err(SnapshotError::Damaged { name: name.to_owned(), reason: "the hash does not fit" })
        }
    }

    /// Says what a file is from its two ends alone: not enough to load it.
    pub(super) fn peek(&self, name: &str) -> Result<Taken, SnapshotError> {
        let file = self.disk.open(name)?;
        Ok(read_ends(&*file, name)?.0)
    }

    /// Hands the parts of a verified file to `sink`, in order.
    pub(super) fn parts<E: From<SnapshotError>>(
        &self,
        name: &str,
        mut sink: impl FnMut(Vec<Entry>) -> Result<(), E>,
    ) -> Result<(), E> {
        let file = self.disk.open(name).map_err(SnapshotError::from)?;
        let mut position = HEADER_BYTES as u64;
        while let Some(part) = read_part(&*file, name, position)? {
            sink(codec::decode_entries(&part).map_err(SnapshotError::from)?)?;
            position += 4 + part.len() as u64;
        }
        Ok(())
    }
}

/// A snapshot being written. Dropped unfinished, it leaves nothing, unless it is another site's.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    disk: SharedDisk,
    name: String,
    unfinished: String,
    file: Box<dyn File>,
    hasher: Hasher,
    taken: Taken,
    /// The last entry added.
    last: Option<EntryKey>,
    finished: bool,
}

impl SnapshotWriter {
    /// Adds entries. A part whose encoding exceeds a frame is split.
    pub(super) fn part(&mut self, entries: &[Entry]) -> Result<(), SnapshotError> {
        if entries.is_empty() {
            return Ok(());
        }
        match codec::encode_entries(entries) {
            Ok(encoded) => {
                self.write(&length_of(&encoded))?;
                self.write(&encoded)?;
                self.taken.entries += entries.len() as u64;
                self.last = entries.last().map(Entry::key);
                Ok(())
            }
            Err(CodecError::TooLarge { .. }) if entries.len() > 1 => {
                let (left, right) = entries.split_at(entries.len() / 2);
                self.part(left)?;
                self.part(right)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the parts that are there up to the first that is not whole; returns where that begins.
    fn take_up(&mut self) -> Result<u64, SnapshotError> {
        let mut position = HEADER_BYTES as u64;
        loop {
            let part = match read_part(&*self.file, &self.unfinished, position) {
                Ok(Some(part)) => part,
                // A crash may leave anything behind what was written.
                Ok(None) | Err(SnapshotError::Damaged { .. }) => return Ok(position),
                Err(SnapshotError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(position);
                }
                Err(error) => return Err(error),
            };
            let Ok(entries) = codec::decode_entries(&part) else { return Ok(position) };
            let Some(last) = entries.last() else { return Ok(position) };
            self.hasher.update(&length_of(&part));
            self.hasher.update(&part);
            self.taken.entries += entries.len() as u64;
            self.last = Some(last.key());
            position += 4 + part.len() as u64;
        }
    }

    /// Where it begins.
    pub(super) fn from(&self) -> Offset {
        self.taken.from
    }

    /// The last entry added.
    pub(super) fn last(&self) -> Option<&EntryKey> {
        self.last.as_ref()
    }

    /// How many entries were added.
    pub(super) fn entries(&self) -> u64 {
        self.taken.entries
    }

    /// Makes it durable, under its name; returns the name.
    pub(super) fn finish(mut self, until: Offset) -> Result<(String, Taken), SnapshotError> {
        self.taken.until = until;
        let mut trailer = vec![0; 4];
        for number in [until.epoch, until.seq, self.taken.entries] {
            trailer.extend_from_slice(&number.to_le_bytes());
        }
        self.write(&trailer)?;
        let hash = std::mem::replace(&mut self.hasher, Hasher::new(Algorithm::Sha256)).finish();
        self.file.append(hash.as_bytes())?;
        self.file.sync()?;
        self.disk.rename(&self.unfinished, &self.name)?;
        self.disk.sync_dir()?;
        self.finished = true;
        Ok((self.name.clone(), self.taken))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.hasher.update(bytes);
        Ok(self.file.append(bytes)?)
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // Another one may go on with it, or have begun anew under its name.
        let is_received = self.unfinished.ends_with(RECEIVED_SUFFIX);
        if !self.finished && !is_received {
            // What stays is removed at the next start.
            let _ = self.disk.remove(&self.unfinished);
        }
    }
}

fn header_of(from: Offset, log_bytes: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    for number in [from.epoch, from.seq, log_bytes] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header
}

fn length_of(part: &[u8]) -> [u8; 4] {
    u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn file_name(from: Offset) -> String {
    name_of(from, SUFFIX)
}

fn name_of(from: Offset, suffix: &str) -> String {
    format!("{:020}-{:020}{suffix}", from.epoch, from.seq)
}

fn parse_name(name: &str) -> Option<Offset> {
    let from = parse_place(name.strip_suffix(SUFFIX)?)?;
    (file_name(from) == name).then_some(from)
}

fn parse_place(text: &str) -> Option<Offset> {
    let (epoch, seq) = text.split_once('-')?;
    Some(Offset::new(epoch.parse().ok()?, seq.parse().ok()?))
}

/// The encoded part at `position`; `None` where the trailer is.
fn read_part(file: &dyn File, name: &str, position: u64) -> Result<Option<Vec<u8>>, SnapshotError> {
    let length = read_exact(file, position, 4)?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if length == 0 {
        return Ok(None);
    }
    if length > FRAME_BYTES_MAX {
        return Err(SnapshotError::Damaged { name: name.to_owned(), reason: "impossible length" });
    }
    Ok(Some(read_exact(file, position + 4, length)?))
}

/// What header and trailer say, and the hash there.
fn read_ends(file: &dyn File, name: &str) -> Result<(Taken, Vec<u8>), SnapshotError> {
    let damaged = |reason| SnapshotError::Damaged { name: name.to_owned(), reason };
    let length = file.length()?;
    if length < (HEADER_BYTES + TRAILER_BYTES) as u64 {
        return Err(damaged("it is cut off"));
    }
    let header = read_exact(file, 0, HEADER_BYTES)?;
    if !header.starts_with(MAGIC) {
        return Err(damaged("wrong magic"));
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version > FORMAT_VERSION {
        return Err(SnapshotError::Newer { name: name.to_owned(), version });
    }
    let trailer = read_exact(file, length - TRAILER_BYTES as u64, TRAILER_BYTES)?;
    let taken = Taken {
        from: Offset::new(u64_at(&header, 12), u64_at(&header, 20)),
        until: Offset::new(u64_at(&trailer, 4), u64_at(&trailer, 12)),
        log_bytes: u64_at(&header, 28),
        entries: u64_at(&trailer, 20),
    };
    if file_name(taken.from) != name {
        return Err(damaged("its name is another's"));
    }
    Ok((taken, trailer[28..].to_vec()))
}

fn read_exact(file: &dyn File, position: u64, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    if file.read_at(&mut buffer, position)? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(buffer)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |number| u64::from_le_bytes(*number))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use outport_proto::Digest;

    use super::*;
    use crate::log::{disk::Disk as _, faulty::FaultyDisk};

    fn entry(number: u64) -> Entry {
        Entry::Link {
            repo: "team/app".parse().unwrap(),
            digest: Digest::sha256(&number.to_le_bytes()),
            size: number,
            offset: Offset::new(1, number),
        }
    }

    fn snapshots(disk: &FaultyDisk) -> Snapshots {
        Snapshots::open(Arc::new(disk.clone())).unwrap()
    }

    fn write(snapshots: &Snapshots, from: u64) -> Result<(String, Taken), SnapshotError> {
        let mut writer = snapshots.create(Offset::new(1, from), from * 10)?;
        writer.part(&[entry(1), entry(2)])?;
        writer.part(&[])?;
        writer.part(&[entry(3)])?;
        writer.finish(Offset::new(1, from + 2))
    }

    fn entries(snapshots: &Snapshots, name: &str) -> Vec<Entry> {
        let mut found = Vec::new();
        let read = snapshots.parts(name, |part| {
            found.extend(part);
            Ok::<_, SnapshotError>(())
        });
        read.unwrap();
        found
    }

    #[test]
    fn a_snapshot_comes_back_and_older_ones_go() {
        let disk = FaultyDisk::new();
        let snapshots = snapshots(&disk);
        for from in [5, 7, 9] {
            let (name, taken) = write(&snapshots, from).unwrap();
            assert_eq!((snapshots.verify(&name).unwrap(), taken.entries), (taken, 3));
            assert_eq!(entries(&snapshots, &name), [entry(1), entry(2), entry(3)]);
        }
        snapshots.prune(|from| from.seq != 9).unwrap();
        let left: Vec<u64> = snapshots.list().unwrap().iter().map(|(from, _)| from.seq).collect();
        assert_eq!(left, [7, 5]);
    }

    #[test]
    fn a_damaged_or_shortened_snapshot_is_refused() {
        let disk = FaultyDisk::new();
        let snapshots = snapshots(&disk);
        let (name, _) = write(&snapshots, 5).unwrap();
        let whole = disk.content(&name).unwrap();
        for byte in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1;
            disk.set_content(&name, flipped);
            assert!(snapshots.verify(&name).is_err(), "byte {byte}");
            disk.set_content(&name, whole[..byte].to_vec());
            assert!(snapshots.verify(&name).is_err(), "length {byte}");
        }
    }

    #[test]
    fn a_power_cut_leaves_a_whole_snapshot_or_none() {
        let counting = FaultyDisk::new();
        write(&snapshots(&counting), 5).unwrap();
        for cut in 0..counting.counts().changes {
            for seed in 0..8 {
                let disk = FaultyDisk::new();
                disk.cut_power_at(cut);
                let written = write(&snapshots(&disk), 5);
                let survived = disk.power_on(seed);
                let snapshots = snapshots(&survived);
                assert!(survived.list().unwrap().iter().all(|name| name.ends_with(SUFFIX)));
                match snapshots.list().unwrap().as_slice() {
                    [] => assert!(written.is_err(), "cut {cut} seed {seed}"),
                    [(_, name)] => assert!(snapshots.verify(name).is_ok(), "cut {cut} seed {seed}"),
                    more => panic!("{more:?}"),
                }
            }
        }
    }

    #[test]
    fn an_abandoned_snapshot_leaves_nothing() {
        let disk = FaultyDisk::new();
        let snapshots = snapshots(&disk);
        drop(snapshots.create(Offset::new(1, 5), 0).unwrap());
        assert_eq!(disk.list().unwrap(), Vec::<String>::new());
    }
}
