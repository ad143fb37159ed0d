//! What a world counted.

use std::{collections::BTreeMap, fmt, time::Duration};

/// Counts of one world or, added up, of many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Worlds.
    pub worlds: u64,
    /// Virtual time that passed.
    pub time: Duration,
    /// Things that happened, timers included.
    pub happenings: u64,
    /// Events of the primary's log.
    pub events: u64,
    /// Writes that the primary acknowledged.
    pub acknowledged: u64,
    /// Pulls that got an answer, by how.
    pub pulls: BTreeMap<&'static str, u64>,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How often each rule led to each decision.
    pub rules: BTreeMap<(&'static str, &'static str), u64>,
}

impl Report {
    /// Adds what another world counted.
    pub fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.time += other.time;
        self.happenings += other.happenings;
        self.events += other.events;
        self.acknowledged += other.acknowledged;
        add_all(&mut self.pulls, &other.pulls);
        add_all(&mut self.faults, &other.faults);
        add_all(&mut self.rules, &other.rules);
    }
}

fn add_all<K: Copy + Ord>(sums: &mut BTreeMap<K, u64>, counts: &BTreeMap<K, u64>) {
    for (key, count) in counts {
        *sums.entry(*key).or_default() += count;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pulls: u64 = self.pulls.values().sum();
        writeln!(
            f,
            "{} worlds, {:.2} virtual hours, {} happenings, {} events, {} writes acknowledged, {pulls} pulls",
            self.worlds,
            self.time.as_secs_f64() / 3600.0,
            self.happenings,
            self.events,
            self.acknowledged,
        )?;
        let list = |f: &mut fmt::Formatter<'_>, title: &str, counts: &BTreeMap<&'static str, u64>| {
            writeln!(f, "{title}")?;
            counts.iter().try_for_each(|(name, count)| writeln!(f, "  {name:<28} {count:>12}"))
        };
        list(f, "pulls by answer", &self.pulls)?;
        list(f, "faults", &self.faults)?;
        writeln!(f, "read rules")?;
        for ((rule, decision), count) in &self.rules {
            writeln!(f, "  {rule:<14} {decision:<13} {count:>12}")?;
        }
        Ok(())
    }
}
