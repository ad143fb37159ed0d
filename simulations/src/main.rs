//! Runs worlds and reports what was seen; exit code 1 when a promise was broken, or when a planted
//! bug was not found.

use std::{
    collections::BTreeSet,
    io::Write,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, bail};
use clap::Parser;
use simulations::{Bug, Options, Report, run, run_many, shrink};

/// Deterministic simulation of a primary and its sites: real code, simulated network, clocks and disks.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many worlds, one a seed.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Begin with a seed that nobody chose, and print it.
    #[arg(long, conflicts_with = "first")]
    fresh: bool,
    /// Only this world.
    #[arg(long, conflicts_with_all = ["seeds", "first", "fresh"])]
    seed: Option<u64>,
    /// Virtual hours a world, recovery not counted.
    #[arg(long, conflicts_with_all = ["minutes", "virtual_seconds"])]
    hours: Option<u64>,
    /// Virtual minutes a world.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// Virtual seconds a world.
    #[arg(long, conflicts_with = "minutes")]
    virtual_seconds: Option<u64>,
    /// Worlds at once, one a thread.
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Begin no world after so many real seconds.
    #[arg(long)]
    budget_seconds: Option<u64>,
    /// Only so many faults.
    #[arg(long, default_value_t = u64::MAX)]
    faults: u64,
    /// So many sites, whatever the seed says.
    #[arg(long)]
    sites: Option<usize>,
    /// So many clients, whatever the seed says.
    #[arg(long)]
    clients: Option<usize>,
    /// Make a mistake on purpose (with the feature `planted-bugs`).
    #[arg(long)]
    bug: Option<String>,
    /// For each planted bug: in how many of the worlds it is found.
    #[arg(long)]
    bugs: bool,
    /// With `--bugs`: leave a bug once it was found in so many worlds.
    #[arg(long, default_value_t = 3)]
    enough: u64,
    /// Print what the code logs, with virtual times.
    #[arg(long)]
    log: bool,
}

impl Arguments {
    fn duration(&self) -> Duration {
        let seconds = self.hours.map(|hours| hours * 3600).or(self.virtual_seconds);
        Duration::from_secs(seconds.unwrap_or(self.minutes * 60))
    }

    fn options(&self) -> anyhow::Result<Options> {
        let bug = self.bug.as_deref().map(|name| {
            let found = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == name);
            found.with_context(|| format!("find a planted bug called {name}"))
        });
        Ok(Options {
            prints: self.log,
            sites: self.sites,
            clients: self.clients,
            faults_max: self.faults,
            bug: bug.transpose()?,
            ..Options::new(self.seed.unwrap_or(self.first), self.duration())
        })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let options = arguments.options()?;
    if (arguments.bugs || options.bug.is_some()) && !cfg!(feature = "planted-bugs") {
        bail!(
            "planted bugs need the feature: cargo run --release -p simulations --features planted-bugs -- .."
        );
    }
    let mut out = std::io::stdout().lock();
    let first = if arguments.fresh { fresh() } else { options.seed };
    if arguments.fresh {
        writeln!(out, "first seed {first}").context("write")?;
    }
    let count = if arguments.seed.is_some() { 1 } else { arguments.seeds };
    let seeds = first..first.saturating_add(count);
    if arguments.bugs {
        return find_bugs(&arguments, &options, seeds, &mut out);
    }
    let begun = Instant::now();
    let until = arguments.budget_seconds.map(|seconds| begun + Duration::from_secs(seconds));
    let mut report = Report::default();
    let (mut broken, mut trace) = (None, 0);
    run_many(&options, seeds, arguments.jobs, until, |options, outcome| {
        report.add(&outcome.report);
        trace = outcome.trace;
        let goes_on = outcome.broken.is_none();
        if !goes_on && broken.is_none() {
            broken = Some((options, outcome));
        }
        goes_on
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    write!(out, "{report}").context("write")?;
    if count == 1 {
        writeln!(out, "trace {trace:016x}").context("write")?;
    }
    let hours = report.time.as_secs_f64() / 3600.0;
    writeln!(
        out,
        "{:.2} seeds/s, {:.3} virtual hours/s ({:.0} times real time), {seconds:.1} s",
        report.worlds as f64 / seconds,
        hours / seconds,
        hours * 3600.0 / seconds
    )
    .context("write")?;
    let Some((options, outcome)) = broken else {
        writeln!(out, "no promise broken").context("write")?;
        return Ok(ExitCode::SUCCESS);
    };
    tell(&mut out, "BROKEN", &options, &outcome)?;
    let (shortest, outcome) = shrink(&Options { prints: false, ..options }, outcome)?;
    tell(&mut out, "the shortest history found", &shortest, &outcome)?;
    Ok(ExitCode::FAILURE)
}

/// Not a seed anybody has seen; short enough to be typed.
fn fresh() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_micros() as u64 % 1_000_000_000_000
}

fn tell(
    out: &mut impl Write,
    what: &str,
    options: &Options,
    outcome: &simulations::Outcome,
) -> anyhow::Result<()> {
    let Some((at, promise)) = &outcome.broken else { return Ok(()) };
    let faults: u64 = outcome.report.faults.values().sum();
    writeln!(
        out,
        "{what}: seed {} at {:.6} s after {faults} faults and {} events: {promise}",
        options.seed,
        at.as_secs_f64(),
        outcome.report.events
    )
    .context("write")?;
    writeln!(out, "replay: {}", replay(options)).context("write")
}

/// The command that runs the world again.
fn replay(options: &Options) -> String {
    let mut command = "cargo run --release -p simulations".to_owned();
    if options.bug.is_some() {
        command += " --features planted-bugs";
    }
    command += &format!(" -- --seed {} --virtual-seconds {}", options.seed, options.duration.as_secs());
    if options.duration.subsec_nanos() > 0 {
        // Whole seconds are all that can be said; the end comes right after the promise is broken.
        command = command.replace(
            &format!("--virtual-seconds {}", options.duration.as_secs()),
            &format!("--virtual-seconds {}", options.duration.as_secs() + 1),
        );
    }
    if options.faults_max != u64::MAX {
        command += &format!(" --faults {}", options.faults_max);
    }
    if let Some(sites) = options.sites {
        command += &format!(" --sites {sites}");
    }
    if let Some(clients) = options.clients {
        command += &format!(" --clients {clients}");
    }
    if let Some(bug) = options.bug {
        command += &format!(" --bug {bug:?}");
    }
    command
}

fn find_bugs(
    arguments: &Arguments,
    options: &Options,
    seeds: std::ops::Range<u64>,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let mut all_found = true;
    let mut sick = BTreeSet::new();
    writeln!(
        out,
        "{:<26} {:>6} {:>6} {:>8}  promise that shows it first",
        "planted bug", "worlds", "found", "first"
    )
    .context("write")?;
    for bug in Bug::ALL {
        let options = Options { bug: Some(bug), ..options.clone() };
        let (mut worlds, mut found, mut first, mut promise) = (0_u64, 0_u64, None::<u64>, String::new());
        run_many(&options, seeds.clone(), arguments.jobs, None, |options, outcome| {
            worlds += 1;
            if let Some((_, broken)) = outcome.broken {
                // A world that is not well without the bug says nothing about it.
                let plain = run(&Options { bug: None, ..options.clone() });
                if plain.is_ok_and(|plain| plain.broken.is_some()) {
                    sick.insert(options.seed);
                    return true;
                }
                found += 1;
                if first.is_none_or(|first| options.seed < first) {
                    first = Some(options.seed);
                    promise = broken.0.split(':').next().unwrap_or_default().chars().take(90).collect();
                }
            }
            found < arguments.enough
        })?;
        all_found &= found > 0;
        let first = first.map_or("never".to_owned(), |seed| seed.to_string());
        let name = format!("{bug:?}");
        writeln!(out, "{name:<26} {worlds:>6} {found:>6} {first:>8}  {promise}").context("write")?;
        out.flush().context("write")?;
    }
    for seed in &sick {
        writeln!(out, "seed {seed} breaks a promise without any bug").context("write")?;
    }
    Ok(if all_found && sick.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
