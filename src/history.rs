//! How far behind every site was: 25 hours of it, in bounded space, and on disk so that a restart does
//! not blank the charts.
//!
//! A sample is taken every [`STEP`]; of the last hour all are kept, of the time before one a minute. On
//! disk a batch of samples is appended a minute, to one of two files that take turns each day. Nothing is
//! waited for on their account: what a crash takes away is a few minutes of a chart.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crc_fast::crc32_iscsi;
use serde::Serialize;

use crate::status::{SiteState, SiteStatus};

/// Time between two samples.
pub const STEP: Duration = Duration::from_secs(10);
const MINUTE: u64 = 60;
/// Samples of the last hour.
const FINE_MAX: usize = 360;
/// Samples of 25 hours, one a minute.
const COARSE_MAX: usize = 25 * 60;
/// A site that is not there any more is forgotten after this.
const FORGET_AFTER: u64 = 25 * 3600;
/// A file is begun anew when it is older than this; the one before it is kept.
const TURN_SECONDS: u64 = 24 * 3600;
/// A file is begun anew beyond this, whatever its age.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
const FILES: [&str; 2] = ["samples", "samples.before"];
const NAME_BYTES_MAX: usize = 63;

/// What is known of a site at a time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// Lag until applied, in seconds; `null` when unknown.
    pub applied: Option<f32>,
    /// Lag until complete, in seconds; `null` when unknown.
    pub complete: Option<f32>,
    /// Events between head and applied.
    pub events: f32,
    /// Blobs it should hold and does not.
    pub missing: f32,
    /// Whether it had a session.
    pub connected: bool,
}

impl Sample {
    /// What `status` says at `at`.
    pub fn of(at: u64, status: &SiteStatus) -> Self {
        Self {
            at,
            applied: status.lag_seconds.applied.map(|seconds| seconds as f32),
            complete: status.lag_seconds.complete.map(|seconds| seconds as f32),
            events: status.lag_events as f32,
            missing: status.missing_blobs as f32,
            connected: status.state != SiteState::Disconnected,
        }
    }
}

/// The samples of all sites.
#[derive(Debug)]
pub struct History {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    sites: BTreeMap<String, Series>,
    /// Since when the file is written to, in seconds since the Unix epoch.
    begun: u64,
    bytes: u64,
    written: u64,
}

#[derive(Debug, Default)]
struct Series {
    fine: VecDeque<Sample>,
    coarse: VecDeque<Sample>,
}

impl Series {
    fn push(&mut self, sample: Sample) {
        // A clock that was set back begins a chart anew: one that goes back in time says nothing.
        if self.fine.back().is_some_and(|last| last.at > sample.at) {
            *self = Self::default();
        }
        push_within(&mut self.fine, sample, FINE_MAX);
        if self.coarse.back().is_none_or(|last| sample.at / MINUTE > last.at / MINUTE) {
            push_within(&mut self.coarse, sample, COARSE_MAX);
        }
    }
}

fn push_within(samples: &mut VecDeque<Sample>, sample: Sample, samples_max: usize) {
    if samples.len() == samples_max {
        samples.pop_front();
    }
    samples.push_back(sample);
}

impl History {
    /// Reads what is in `dir`, which need not exist; `now` in seconds since the Unix epoch.
    ///
    /// # Errors
    /// When it is there and cannot be read. Damage is no error: the samples up to it are kept.
    pub fn open(dir: &Path, now: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut state = State { begun: now, ..State::default() };
        for name in FILES.iter().rev() {
            let bytes = match fs::read(dir.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                read => read?,
            };
            let mut rest = bytes.as_slice();
            while let Some((batch, behind)) = Batch::parse(rest) {
                for (site, sample) in batch.samples {
                    state.sites.entry(site).or_default().push(sample);
                }
                rest = behind;
            }
        }
        let this = Self { dir: dir.to_owned(), state: Mutex::new(state) };
        // What is behind damage would never be read again.
        this.turn(&mut this.lock(), now)?;
        Ok(this)
    }

    /// Takes in a sample of every site; `now` in seconds since the Unix epoch. Returns what is to be
    /// written, once a minute.
    pub fn take<'a>(&self, now: u64, sites: impl IntoIterator<Item = &'a SiteStatus>) -> Option<Vec<u8>> {
        let mut state = self.lock();
        for status in sites {
            // There is no such name, but for a site that was never configured.
            if status.site.len() <= NAME_BYTES_MAX {
                let series = state.sites.entry(status.site.clone()).or_default();
                series.push(Sample::of(now, status));
            }
        }
        if now / MINUTE == state.written / MINUTE {
            return None;
        }
        state.written = now;
        state.sites.retain(|_, series| series.fine.back().is_some_and(|last| last.at + FORGET_AFTER > now));
        let newest = state.sites.iter().filter_map(|(site, series)| Some((site, *series.fine.back()?)));
        Some(Batch::encode(newest.filter(|(_, sample)| sample.at == now)))
    }

    /// Appends what [`History::take`] returned. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; nothing is lost but a minute of a chart.
    pub fn write(&self, now: u64, batch: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        if state.begun + TURN_SECONDS <= now || state.bytes >= FILE_BYTES_MAX {
            self.turn(&mut state, now)?;
        }
        let mut file = File::options().create(true).append(true).open(self.dir.join(FILES[0]))?;
        file.write_all(batch)?;
        state.bytes += batch.len() as u64;
        Ok(())
    }

    /// The file becomes the one before, and another begins with what is still to be known.
    fn turn(&self, state: &mut State, now: u64) -> io::Result<()> {
        let [current, before] = FILES.map(|name| self.dir.join(name));
        let mut kept = Vec::new();
        let mut by_time: BTreeMap<u64, Vec<(&String, Sample)>> = BTreeMap::new();
        for (site, series) in &state.sites {
            for sample in &series.coarse {
                by_time.entry(sample.at).or_default().push((site, *sample));
            }
        }
        for samples in by_time.into_values() {
            kept.extend(Batch::encode(samples.into_iter()));
        }
        fs::write(&before, &kept)?;
        fs::write(&current, [])?;
        (state.begun, state.bytes) = (now, 0);
        Ok(())
    }

    /// The samples of `site` since `from` (seconds since the Unix epoch), the oldest first: every
    /// [`STEP`] when that is within the hour, else one a minute.
    pub fn of(&self, site: &str, from: u64, now: u64) -> Option<Vec<Sample>> {
        let state = self.lock();
        let series = state.sites.get(site)?;
        let is_recent = from + 3600 >= now;
        let samples = if is_recent { &series.fine } else { &series.coarse };
        Some(samples.iter().filter(|sample| sample.at >= from).copied().collect())
    }

    /// The lag until applied of every site over the last hour, a value a minute and the newest last;
    /// `null` when it was unknown.
    pub fn lags(&self, now: u64) -> BTreeMap<String, Vec<Option<f32>>> {
        let state = self.lock();
        let recent = |series: &Series| {
            let of_hour = series.coarse.iter().filter(|sample| sample.at + 3600 > now);
            of_hour.map(|sample| sample.applied).collect()
        };
        state.sites.iter().map(|(site, series)| (site.clone(), recent(series))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Samples of one time as they stand in a file: length and checksum of what follows (both 4 bytes,
/// little-endian; CRC-32C), then a sample of each site: time (8), applied, complete, events, missing (4 each, IEEE
/// 754, NaN when unknown), connected (1), length of its name (1), its name.
struct Batch {
    samples: Vec<(String, Sample)>,
}

impl Batch {
    fn encode<'a>(samples: impl Iterator<Item = (&'a String, Sample)>) -> Vec<u8> {
        let mut payload = Vec::new();
        for (site, sample) in samples {
            payload.extend(sample.at.to_le_bytes());
            let unknown = f32::NAN;
            for value in [
                sample.applied.unwrap_or(unknown),
                sample.complete.unwrap_or(unknown),
                sample.events,
                sample.missing,
            ] {
                payload.extend(value.to_le_bytes());
            }
            payload.extend([u8::from(sample.connected), site.len() as u8]);
            payload.extend(site.as_bytes());
        }
        let mut bytes = Vec::with_capacity(payload.len() + 8);
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend(crc32_iscsi(&payload).to_le_bytes());
        bytes.extend(payload);
        bytes
    }

    /// The first of `bytes`, and what follows; `None` at the end and where they are damaged.
    fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (checksum, rest) = rest.split_first_chunk::<4>()?;
        let (mut payload, behind) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        if crc32_iscsi(payload) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let mut samples = Vec::new();
        while !payload.is_empty() {
            let (at, rest) = payload.split_first_chunk::<8>()?;
            let mut rest = rest;
            let mut values = [0.0; 4];
            for value in &mut values {
                let (bytes, behind) = rest.split_first_chunk::<4>()?;
                (*value, rest) = (f32::from_le_bytes(*bytes), behind);
            }
            let ([connected, length], rest) = rest.split_first_chunk::<2>()?;
            let (name, rest) = rest.split_at_checked((*length).into())?;
            let known = |value: f32| (!value.is_nan()).then_some(value);
            let [applied, complete, events, missing] = values;
            let sample = Sample {
                at: u64::from_le_bytes(*at),
                applied: known(applied),
                complete: known(complete),
                events,
                missing,
                connected: *connected == 1,
            };
            samples.push((std::str::from_utf8(name).ok()?.to_owned(), sample));
            payload = rest;
        }
        Some((Self { samples }, behind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Lag;

    fn site(name: &str, lag: Option<f64>) -> SiteStatus {
        let lag_seconds = Lag { applied: lag, complete: lag };
        SiteStatus { site: name.to_owned(), lag_seconds, lag_events: 7, ..SiteStatus::default() }
    }

    fn run(history: &History, from: u64, to: u64) {
        for now in (from..to).step_by(10) {
            let sites = [site("goa", Some((now % 100) as f64)), site("pune", None)];
            if let Some(batch) = history.take(now, &sites) {
                history.write(now, &batch).unwrap();
            }
        }
    }

    const BEGUN: u64 = 1_700_000_000;

    #[test]
    fn a_chart_goes_on_after_a_restart_and_space_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path(), BEGUN).unwrap();
        let end = BEGUN + 30 * 3600;
        run(&history, BEGUN, end);
        let day = history.of("goa", end - 24 * 3600, end).unwrap();
        assert!((1439..=1440).contains(&day.len()), "{}", day.len());
        assert!(day.windows(2).all(|pair| pair[1].at - pair[0].at == 60));
        let hour = history.of("goa", end - 3600, end).unwrap();
        assert_eq!((hour.len(), hour[1].at - hour[0].at), (360, 10));
        assert_eq!(hour[0].events, 7.0);
        drop(history);
        let again = History::open(dir.path(), end).unwrap();
        assert_eq!(again.of("goa", end - 24 * 3600, end).unwrap(), day);
        assert_eq!(again.of("pune", end - 24 * 3600, end).unwrap()[0].applied, None);
        assert_eq!(again.of("delhi", 0, end), None);
        assert_eq!(again.lags(end)["goa"].len(), 60);
        let bytes: u64 = FILES.iter().map(|name| fs::metadata(dir.path().join(name)).unwrap().len()).sum();
        assert!(bytes < 2 * COARSE_MAX as u64 * (8 + 2 * 35), "{bytes}");
        // A site that left is forgotten in the end.
        for now in (end..end + 26 * 3600).step_by(60) {
            again.take(now, &[site("pune", None)]);
        }
        assert_eq!(again.of("goa", 0, end), None);
    }

    #[test]
    fn what_was_cut_off_or_damaged_takes_nothing_else_with_it() {
        let dir = tempfile::tempdir().unwrap();
        run(&History::open(dir.path(), BEGUN).unwrap(), BEGUN, BEGUN + 600);
        let file = dir.path().join(FILES[0]);
        let whole = fs::read(&file).unwrap();
        let batches = std::iter::successors(Some(&whole[..]), |rest| Batch::parse(rest).map(|batch| batch.1));
        let batches = batches.count() - 1;
        for cut in [0, 1, 7, 8, 40, whole.len() - 1] {
            fs::write(&file, &whole[..cut]).unwrap();
            fs::write(dir.path().join(FILES[1]), []).unwrap();
            let history = History::open(dir.path(), BEGUN + 600).unwrap();
            let found = history.of("goa", 0, BEGUN + 600).map_or(0, |samples| samples.len());
            assert_eq!(found, if cut < 40 { 0 } else { found.min(batches - 1) }, "{cut}");
            assert!(cut < whole.len() - 1 || found == batches - 1, "{cut}: {found}");
            run(&history, BEGUN + 600, BEGUN + 610);
            drop(history);
            let history = History::open(dir.path(), BEGUN + 610).unwrap();
            assert_eq!(history.of("goa", 0, BEGUN + 610).unwrap().len(), found + 1, "{cut}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let history = History::open(dir.path(), BEGUN).unwrap();
        run(&history, BEGUN, BEGUN + 600);
        run(&history, BEGUN - 3600, BEGUN - 3500);
        let samples = history.of("goa", BEGUN - 7200, BEGUN - 3500).unwrap();
        assert!(samples.iter().all(|sample| sample.at < BEGUN), "{samples:?}");
    }
}
