// Numbers and words as people read them. What is not known is said to be unknown, never shown as a number.

export const UNKNOWN = "unknown";

export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 0.0005) return "0 s";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  if (value < 7200) return `${Math.round(value / 60)} min`;
  if (value < 48 * 3600) return `${(value / 3600).toFixed(1)} h`;
  return `${Math.round(value / 86400)} days`;
}

export function count(value) {
  return value === null || value === undefined ? UNKNOWN : value.toLocaleString("en");
}

export function bytes(value) {
  if (value === null || value === undefined) return UNKNOWN;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

export function share(value) {
  return value === null || value === undefined ? "none" : `${Math.round(value * 100)} %`;
}

// How long the newest took, or that it cannot be had.
export function canary(of) {
  if (!of) return "none";
  return of.error ? "fails" : seconds(of.lag_seconds);
}

// Of two quantiles: half, and all but one of a hundred.
export function spread(of) {
  return of ? `${seconds(of.p50_seconds)} / ${seconds(of.p99_seconds)}` : "none";
}

// good, late, bad or "" for unknown.
// Whether the canary says that what was pushed does not come through in time.
function isLate(canary) {
  return canary && (canary.error || canary.lag_seconds > canary.interval_seconds);
}

export function health(site) {
  if (site.alarm) return "bad";
  if (site.state === "disconnected") return "bad";
  const lag = site.lag_seconds.applied;
  if (lag === null || lag === undefined) return "";
  if (isLate(site.canary)) return "late";
  return site.state === "streaming" && lag <= Math.max(site.staleness_bound_seconds, 1) ? "good" : "late";
}

export const STATES = {
  "streaming": "streaming",
  "catching-up": "catching up",
  "snapshot": "taking a snapshot",
  "disconnected": "disconnected",
};
