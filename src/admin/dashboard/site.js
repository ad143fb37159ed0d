// One site: what it says of itself, and how it was.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { STATES, UNKNOWN, bytes, canary, count, health, seconds, share, spread } from "./format.js";

const EVERY_MS = 10_000;
const SPANS = { hour: 3600, day: 24 * 3600 };

export function site(view, state, name) {
  view.innerHTML = `
    <p><a href="#/fleet">Fleet</a></p>
    <h2></h2>
    <div id="alarm"></div>
    <dl class="cards"></dl>
    <form class="tools"><label>Time <select id="span">
      <option value="hour">last hour</option><option value="day">last 24 hours</option>
    </select></label></form>
    <div class="charts" aria-live="off"></div>`;
  const find = (selector) => view.querySelector(selector);
  find("h2").textContent = name;
  const facts = {
    State: (of) => STATES[of.state] || of.state,
    "Lag until applied": (of) => seconds(of.lag_seconds.applied),
    "Lag until complete": (of) => seconds(of.lag_seconds.complete),
    Canary: (of) => canary(of.canary) + (of.canary?.error ? ` (${of.canary.error})` : ""),
    "Events behind": (of) => count(of.lag_events),
    "Log behind": (of) => bytes(of.lag_bytes),
    "Missing blobs": (of) => count(of.missing_blobs),
    "Applied up to": (of) => `${of.epoch}.${of.applied_seq}`,
    "Complete up to": (of) => `${of.epoch}.${of.complete_seq}`,
    "Last heartbeat": (of) => (of.heartbeat_age_seconds === null ? "never" : `${seconds(of.heartbeat_age_seconds)} ago`),
    "Round trip": (of) => seconds(of.rtt_seconds),
    Transport: (of) => of.transport || "none",
    Through: (of) => of.via.join(", ") || "the primary itself",
    Store: (of) => bytes(of.store.bytes) + (of.store.limit_bytes ? ` of ${bytes(of.store.limit_bytes)}` : ""),
    "Blobs held": (of) => count(of.store.blobs),
    "Caught up in": (of) => seconds(of.eta_seconds),
    "Propagation, p50 / p99": (of) => spread(of.propagation.applied),
    "Until complete, p50 / p99": (of) => spread(of.propagation.complete),
    "Served from here": (of) => share(of.hit_ratio),
    "Bytes served": (of) => bytes(of.served_bytes),
    "Bytes fetched": (of) => bytes(of.upstream_bytes),
    "Pulls": (of) => Object.entries(of.pulls).filter(([, number]) => number).map(([result, number]) => `${number} ${result}`).join(", ") || "none",
    "Clock ahead": (of) => of.clock_offset_seconds === null ? UNKNOWN
      : `${Math.round(of.clock_offset_seconds * 1000)} ms \u00b1 ${Math.round((of.clock_offset_error_seconds ?? 0) * 1000)} ms`,
    "Last error": (of) => of.last_error ? `${of.last_error.text} (${new Date(of.last_error.at * 1000).toISOString()})` : "none",
    "Staleness bound": (of) => seconds(of.staleness_bound_seconds),
    Version: (of) => of.version || UNKNOWN,
  };
  const values = Object.entries(facts).map(([title, show]) => {
    const card = document.createElement("div");
    const dd = document.createElement("dd");
    dd.className = "small";
    card.append(Object.assign(document.createElement("dt"), { textContent: title }), dd);
    find("dl").append(card);
    return [dd, show];
  });

  function update() {
    const of = state.sites.get(name);
    find("#alarm").replaceChildren();
    if (!of) {
      const text = `There is no site ${name} here.`;
      find("#alarm").append(Object.assign(document.createElement("p"), { className: "alarm", textContent: text }));
      return;
    }
    if (of.alarm) {
      find("#alarm").append(Object.assign(document.createElement("p"), { className: "alarm", textContent: of.alarm }));
    }
    values.forEach(([dd, show], index) => {
      const text = show(of);
      if (dd.textContent !== text) dd.textContent = text;
      if (index === 0) dd.className = `small ${health(of)}`;
    });
  }

  async function draw() {
    const to = Math.floor(Date.now() / 1000);
    const from = to - SPANS[find("#span").value];
    let samples;
    try {
      samples = await get(`/v1/history?site=${encodeURIComponent(name)}&from=${from}`);
    } catch {
      return;
    }
    find(".charts").replaceChildren(
      chart("Lag until applied", samples, [from, to], (sample) => sample.applied, seconds),
      chart("Lag until complete", samples, [from, to], (sample) => sample.complete, seconds),
      chart("Events behind", samples, [from, to], (sample) => sample.events, count),
      chart("Missing blobs", samples, [from, to], (sample) => sample.missing, count),
    );
  }

  find("form").onsubmit = (event) => event.preventDefault();
  find("#span").onchange = draw;
  update();
  draw();
  const timer = setInterval(draw, EVERY_MS);
  return { update, leave: () => clearInterval(timer) };
}
