//! What a world counted.

use std::{collections::BTreeMap, fmt, time::Duration};

use outport::bounds::Fill;

/// Counts of one world or, added up, of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Worlds.
    pub worlds: u64,
    /// Virtual time that passed.
    pub time: Duration,
    /// Datagrams sent.
    pub packets: u64,
    /// Of these, lost.
    pub packets_lost: u64,
    /// Of these, delivered twice.
    pub packets_doubled: u64,
    /// Of these, held up and overtaken.
    pub packets_held_up: u64,
    /// Events of the primary's log.
    pub events: u64,
    /// Events taken in by sites, seen one by one in the state they led to.
    pub states_compared: u64,
    /// Writes that the primary acknowledged.
    pub acknowledged: u64,
    /// Starts of a node after the first.
    pub restarts: u64,
    /// Bytes of blobs that clients read and verified.
    pub blob_bytes: u64,
    /// Pulls, by what was asked for and how it was answered.
    pub pulls: BTreeMap<(&'static str, &'static str), u64>,
    /// Writes, by kind and end.
    pub writes: BTreeMap<(&'static str, &'static str), u64>,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How full what is bounded was at most.
    pub fills: BTreeMap<&'static str, Fill>,
    /// How often each rule led to each decision.
    pub rules: BTreeMap<(String, String), u64>,
}

impl Report {
    /// Adds what another world counted.
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.time += other.time;
        self.packets += other.packets;
        self.packets_lost += other.packets_lost;
        self.packets_doubled += other.packets_doubled;
        self.packets_held_up += other.packets_held_up;
        self.events += other.events;
        self.states_compared += other.states_compared;
        self.acknowledged += other.acknowledged;
        self.restarts += other.restarts;
        self.blob_bytes += other.blob_bytes;
        add_all(&mut self.pulls, &other.pulls);
        add_all(&mut self.writes, &other.writes);
        add_all(&mut self.faults, &other.faults);
        add_all(&mut self.rules, &other.rules);
        for (what, fill) in &other.fills {
            self.fills.entry(what).or_default().merge(*fill);
        }
    }

    /// Pulls that ended.
    pub fn pulls(&self) -> u64 {
        self.pulls.values().sum()
    }
}

fn add_all<K: Clone + Ord>(sums: &mut BTreeMap<K, u64>, counts: &BTreeMap<K, u64>) {
    for (key, count) in counts {
        *sums.entry(key.clone()).or_default() += count;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} worlds, {:.2} virtual hours, {} packets ({} lost, {} doubled, {} held up)",
            self.worlds,
            self.time.as_secs_f64() / 3600.0,
            self.packets,
            self.packets_lost,
            self.packets_doubled,
            self.packets_held_up,
        )?;
        writeln!(
            f,
            "{} events, {} writes acknowledged, {} pulls, {} bytes of blobs verified, \
             {} states of sites compared, {} restarts",
            self.events,
            self.acknowledged,
            self.pulls(),
            self.blob_bytes,
            self.states_compared,
            self.restarts,
        )?;
        pairs(f, "pulls", &self.pulls)?;
        pairs(f, "writes", &self.writes)?;
        writeln!(f, "faults")?;
        self.faults.iter().try_for_each(|(name, count)| writeln!(f, "  {name:<31} {count:>12}"))?;
        pairs(f, "read rules", &self.rules)?;
        writeln!(f, "fullest, of what may be")?;
        self.fills
            .iter()
            .try_for_each(|(what, fill)| writeln!(f, "  {what:<40} {:>12} {:>12}", fill.most, fill.bound))
    }
}

fn pairs<T: fmt::Display + Ord>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    counts: &BTreeMap<(T, T), u64>,
) -> fmt::Result {
    writeln!(f, "{title}")?;
    counts
        .iter()
        .try_for_each(|((first, second), count)| writeln!(f, "  {first:<16} {second:<14} {count:>12}"))
}
