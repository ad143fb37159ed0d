//! How far behind every site was: 25 hours of it, in bounded space, and on disk so that a restart does
//! not blank the charts.
//!
//! A sample is taken every [`STEP`]; of the last hour all are kept, of the time before one in two minutes.
//! On disk a batch of samples is appended as often, to one of two files that take turns each day. Nothing is
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

use crate::status::{SiteState, SiteStatus, Traffic};

/// Time between two samples.
pub const STEP: Duration = Duration::from_secs(10);
const HOUR: u64 = 3600;
const MINUTE: u64 = 60;
/// Time between two samples of more than an hour ago, and two on disk.
const COARSE_STEP: u64 = 2 * MINUTE;
/// Samples of the last hour.
const FINE_MAX: usize = 360;
/// Samples of 25 hours.
const COARSE_MAX: usize = (25 * HOUR / COARSE_STEP) as usize;
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
    /// Whether it had a session.
    pub connected: bool,
    /// Lag until applied, in seconds; `null` when unknown, as all that follows.
    pub applied: Option<f32>,
    /// Lag until complete, in seconds.
    pub complete: Option<f32>,
    /// Events between head and applied.
    pub events: Option<f32>,
    /// Blobs it should hold and does not.
    pub missing: Option<f32>,
    /// Of the events of the last five minutes half took no longer until applied, in seconds.
    pub propagation_p50: Option<f32>,
    /// All but one of a hundred took no longer.
    pub propagation_p99: Option<f32>,
    /// Pulls a second answered from its disk since the sample before.
    pub pulls_local: Option<f32>,
    /// With what was fetched for them.
    pub pulls_upstream: Option<f32>,
    /// With a "no".
    pub pulls_refused: Option<f32>,
    /// Not answered, though it may exist.
    pub pulls_failed: Option<f32>,
    /// Bytes of response bodies a second.
    pub served: Option<f32>,
    /// Bytes fetched from upstream a second.
    pub fetched: Option<f32>,
    /// Bytes in its blob store.
    pub store: Option<f32>,
}

/// Numbers in a [`Sample`].
const VALUES: usize = 13;

/// A [`Sample`] in less room: of these there are a thousand a site.
#[derive(Clone, Copy, Debug)]
struct Kept {
    /// Seconds since the Unix epoch.
    at: u32,
    connected: bool,
    /// In the order of [`Sample`]; NaN when unknown.
    values: [f32; VALUES],
}

impl Kept {
    fn of(at: u64, status: &SiteStatus, rates: [f32; RATES]) -> Self {
        const UNKNOWN: f32 = f32::NAN;
        let connected = status.state != SiteState::Disconnected;
        let known = |value: Option<f64>| value.map_or(UNKNOWN, |value| value as f32);
        // Of what is told in a session there is nothing to know without one.
        let told = |value: Option<f64>| known(value.filter(|_| connected));
        let spread = status.propagation.applied;
        let [local, upstream, refused, failed, served, fetched] =
            if connected { rates } else { [UNKNOWN; RATES] };
        Self {
            at: u32::try_from(at).unwrap_or(u32::MAX),
            connected,
            values: [
                known(status.lag_seconds.applied),
                known(status.lag_seconds.complete),
                status.lag_events as f32,
                status.missing_blobs as f32,
                told(spread.map(|spread| spread.p50_seconds)),
                told(spread.map(|spread| spread.p99_seconds)),
                local,
                upstream,
                refused,
                failed,
                served,
                fetched,
                told(Some(status.store.bytes as f64)),
            ],
        }
    }

    fn at(&self) -> u64 {
        self.at.into()
    }

    fn sample(&self) -> Sample {
        let known = |value: f32| (!value.is_nan()).then_some(value);
        let [
            applied,
            complete,
            events,
            missing,
            propagation_p50,
            propagation_p99,
            pulls_local,
            pulls_upstream,
            pulls_refused,
            pulls_failed,
            served,
            fetched,
            store,
        ] = self.values.map(known);
        Sample {
            at: self.at(),
            connected: self.connected,
            applied,
            complete,
            events,
            missing,
            propagation_p50,
            propagation_p99,
            pulls_local,
            pulls_upstream,
            pulls_refused,
            pulls_failed,
            served,
            fetched,
            store,
        }
    }
}

/// Numbers that are counted.
const RATES: usize = 6;

/// Where the counters of a site were.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at: u64,
    counts: [u64; RATES],
}

impl Counted {
    fn of(at: u64, traffic: &Traffic) -> Self {
        let [local, upstream, refused, failed] = traffic.pulls_by_kind();
        let counts = [local, upstream, refused, failed, traffic.served_bytes, traffic.upstream_bytes];
        Self { at, counts }
    }

    /// What happened a second since `before`; NaN when nothing is known of before.
    fn rates(&self, before: Option<Self>) -> [f32; RATES] {
        let Some(before) = before.filter(|before| before.at < self.at) else { return [f32::NAN; RATES] };
        let seconds = (self.at - before.at) as f64;
        std::array::from_fn(|number| {
            let (now, then) = (self.counts[number], before.counts[number]);
            // A node that was started again counts from 0.
            (now.checked_sub(then).unwrap_or(now) as f64 / seconds) as f32
        })
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
    fine: VecDeque<Kept>,
    coarse: VecDeque<Kept>,
    /// At the last of each.
    counted: Option<Counted>,
    counted_coarse: Option<Counted>,
}

impl Series {
    fn push(&mut self, now: u64, status: &SiteStatus) {
        self.begin_anew_before(now);
        let counted = Counted::of(now, &status.traffic);
        push_within(&mut self.fine, Kept::of(now, status, counted.rates(self.counted)), FINE_MAX);
        self.counted = Some(counted);
        if self.coarse.back().is_none_or(|last| is_due(last.at(), now)) {
            let kept = Kept::of(now, status, counted.rates(self.counted_coarse));
            push_within(&mut self.coarse, kept, COARSE_MAX);
            self.counted_coarse = Some(counted);
        }
    }

    /// A sample that was kept.
    fn read(&mut self, kept: Kept) {
        self.begin_anew_before(kept.at());
        // A file that was begun with all there was has the newest of it twice.
        if self.fine.back().is_some_and(|last| last.at() == kept.at()) {
            return;
        }
        push_within(&mut self.fine, kept, FINE_MAX);
        push_within(&mut self.coarse, kept, COARSE_MAX);
    }

    /// A clock that was set back begins a chart anew: one that goes back in time says nothing.
    fn begin_anew_before(&mut self, now: u64) {
        if self.fine.back().is_some_and(|last| last.at() > now) {
            *self = Self::default();
        }
    }
}

/// Whether a sample is due in the time before the last hour, and on disk.
fn is_due(last: u64, now: u64) -> bool {
    last / COARSE_STEP != now / COARSE_STEP
}

fn push_within(samples: &mut VecDeque<Kept>, sample: Kept, samples_max: usize) {
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
                    state.sites.entry(site).or_default().read(sample);
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
    /// written, from time to time.
    pub fn take<'a>(&self, now: u64, sites: impl IntoIterator<Item = &'a SiteStatus>) -> Option<Vec<u8>> {
        let mut state = self.lock();
        for status in sites {
            // There is no such name, but for a site that was never configured.
            if status.site.len() <= NAME_BYTES_MAX {
                let series = state.sites.entry(status.site.clone()).or_default();
                series.push(now, status);
            }
        }
        if !is_due(state.written, now) {
            return None;
        }
        state.written = now;
        state.sites.retain(|_, series| series.fine.back().is_some_and(|last| last.at() + FORGET_AFTER > now));
        let newest = state.sites.iter().filter_map(|(site, series)| Some((site, *series.coarse.back()?)));
        Some(Batch::encode(newest.filter(|(_, sample)| sample.at() == now)))
    }

    /// Appends what [`History::take`] returned. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; nothing is lost but two minutes of a chart.
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
        let mut by_time: BTreeMap<u32, Vec<(&String, Kept)>> = BTreeMap::new();
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
    /// [`STEP`] when that is within the hour, else one in two minutes.
    pub fn of(&self, site: &str, from: u64, now: u64) -> Option<Vec<Sample>> {
        let state = self.lock();
        let series = state.sites.get(site)?;
        let is_recent = from + HOUR >= now;
        let samples = if is_recent { &series.fine } else { &series.coarse };
        Some(samples.iter().filter(|kept| kept.at() >= from).map(Kept::sample).collect())
    }

    /// The lag until applied of every site over the last hour, a value a minute and the newest last;
    /// `null` when it was unknown.
    pub fn lags(&self, now: u64) -> BTreeMap<String, Vec<Option<f32>>> {
        let state = self.lock();
        state.sites.iter().map(|(site, series)| (site.clone(), by_minute(&series.fine, now))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lag until applied in each minute of the hour until `now`, as far back as something is known.
fn by_minute(samples: &VecDeque<Kept>, now: u64) -> Vec<Option<f32>> {
    let minute = |at: u64| at / MINUTE;
    let first = minute(now) - (HOUR / MINUTE).min(minute(now)) + 1;
    let begun = samples.iter().map(|kept| minute(kept.at())).find(|at| *at >= first).unwrap_or(first);
    let mut lags = vec![None; (minute(now) + 1).saturating_sub(begun) as usize];
    for kept in samples.iter().filter(|kept| minute(kept.at()) >= begun && kept.at() <= now) {
        let (slot, [lag, ..]) = ((minute(kept.at()) - begun) as usize, kept.values);
        // Those that were read from the disk stand for the minute behind theirs as well.
        for lag_of in lags.iter_mut().skip(slot).take((COARSE_STEP / MINUTE) as usize) {
            *lag_of = (!lag.is_nan()).then_some(lag);
        }
    }
    lags
}

/// Samples of one time as they stand in a file: length and checksum of what follows (both 4 bytes,
/// little-endian; CRC-32C), version of what follows ([`Batch::VERSION`], 1 byte), numbers in a sample (1),
/// then a sample of each site: time (4), connected (1), length of its name (1), its name, the numbers (4 each,
/// IEEE 754, NaN when unknown) in the order of [`Sample`]. Another version may add numbers behind them.
struct Batch {
    samples: Vec<(String, Kept)>,
}

impl Batch {
    const VERSION: u8 = 1;

    fn encode<'a>(samples: impl Iterator<Item = (&'a String, Kept)>) -> Vec<u8> {
        let mut payload = vec![Self::VERSION, VALUES as u8];
        for (site, kept) in samples {
            payload.extend(kept.at.to_le_bytes());
            payload.extend([u8::from(kept.connected), site.len() as u8]);
            payload.extend(site.as_bytes());
            payload.extend(kept.values.iter().flat_map(|value| value.to_le_bytes()));
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
        let (payload, behind) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        if crc32_iscsi(payload) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let ([Self::VERSION, count], mut payload) = payload.split_first_chunk::<2>()? else { return None };
        let mut samples = Vec::new();
        while !payload.is_empty() {
            let (at, rest) = payload.split_first_chunk::<4>()?;
            let ([connected, length], rest) = rest.split_first_chunk::<2>()?;
            let (name, rest) = rest.split_at_checked((*length).into())?;
            let (numbers, rest) = rest.split_at_checked(usize::from(*count) * 4)?;
            let mut values = [f32::NAN; VALUES];
            for (value, bytes) in values.iter_mut().zip(numbers.chunks_exact(4)) {
                *value = f32::from_le_bytes(bytes.try_into().ok()?);
            }
            let kept = Kept { at: u32::from_le_bytes(*at), connected: *connected == 1, values };
            samples.push((std::str::from_utf8(name).ok()?.to_owned(), kept));
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
            let mut goa = site("goa", Some((now % 100) as f64));
            goa.state = SiteState::Streaming;
            goa.traffic.pulls = [("local".to_owned(), (now - from) * 3)].into();
            goa.traffic.served_bytes = (now - from) * 100;
            let sites = [goa, site("pune", None)];
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
        assert!((719..=720).contains(&day.len()), "{}", day.len());
        assert!(day.windows(2).all(|pair| pair[1].at - pair[0].at == 120));
        let hour = history.of("goa", end - 3600, end).unwrap();
        assert_eq!((hour.len(), hour[1].at - hour[0].at), (360, 10));
        assert_eq!(hour[0].events, Some(7.0));
        // 30 pulls and 1 kB in each ten seconds, whichever the step.
        for sample in [hour[5], day[5]] {
            assert_eq!((sample.pulls_local, sample.served), (Some(3.0), Some(100.0)));
            assert_eq!((sample.pulls_failed, sample.propagation_p99), (Some(0.0), None));
        }
        drop(history);
        let again = History::open(dir.path(), end).unwrap();
        assert_eq!(again.of("goa", end - 24 * 3600, end).unwrap(), day);
        assert_eq!(again.of("pune", end - 24 * 3600, end).unwrap()[0].applied, None);
        assert_eq!(again.of("delhi", 0, end), None);
        let lags = &again.lags(end)["goa"];
        assert!(lags.len() == 60 && lags.iter().flatten().count() >= 59, "{lags:?}");
        let bytes: u64 = FILES.iter().map(|name| fs::metadata(dir.path().join(name)).unwrap().len()).sum();
        assert!(bytes < 2 * COARSE_MAX as u64 * (10 + 2 * (10 + 4 * VALUES as u64)), "{bytes}");
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
