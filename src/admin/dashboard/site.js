// One site: what it says of itself, and how it was.

import { get } from "./api.js";
import { chart } from "./chart.js";
import { HEAD, row } from "./events.js";
import { STATES, UNKNOWN, bytes, canary, count, health, seconds, share, spread } from "./format.js";

const SPANS = { hour: 3600, day: 24 * 3600 };
// How often there is a new sample.
const EVERY_MS = { hour: 10_000, day: 120_000 };
const EVENTS_EVERY_MS = 3000;
const EVENTS = 15;

const rate = (value) => (value === null || value === undefined ? UNKNOWN : `${bytes(value)}/s`);
const pulls = (value) => (value === null || value === undefined ? UNKNOWN : `${value < 10 ? value.toFixed(1) : Math.round(value)}/s`);
// Title, lines of what of a sample, and how its numbers are shown.
const CHARTS = [
  ["Lag until applied", [["", (of) => of.applied]], seconds],
  ["Lag until complete", [["", (of) => of.complete]], seconds],
  ["Propagation of events until applied", [["p50", (of) => of.propagation_p50], ["p99", (of) => of.propagation_p99]], seconds],
  ["Events behind", [["", (of) => of.events]], count],
  ["Missing blobs", [["", (of) => of.missing]], count],
  ["Pulls", [
    ["from here", (of) => of.pulls_local], ["from upstream", (of) => of.pulls_upstream],
    ["refused", (of) => of.pulls_refused], ["failed", (of) => of.pulls_failed],
  ], pulls],
  ["Bytes", [["served", (of) => of.served], ["fetched", (of) => of.fetched]], rate],
  ["Store", [["", (of) => of.store]], bytes],
];

const element = (name, properties = {}) => Object.assign(document.createElement(name), properties);

// A row of cells: the first names it, those after `texts` are numbers.
function cells(values, texts) {
  const tr = element("tr");
  values.forEach((value, index) => {
    const cell = index === 0 ? element("th", { scope: "row" }) : element("td", { className: index < texts ? "text" : "" });
    cell.append(value);
    tr.append(cell);
  });
  return tr;
}

function progress(fill) {
  const name = `${fill.repo} ${fill.digest.slice(0, 19)}`;
  const bar = element("progress", { max: fill.size_bytes || 1 });
  if (fill.size_bytes) bar.value = fill.received_bytes;
  bar.setAttribute("aria-label", `fill of ${name}`);
  return bar;
}

export function site(view, state, name) {
  view.innerHTML = `
    <p><a href="#/fleet">Fleet</a></p>
    <h2></h2>
    <div id="alarm"></div>
    <dl class="cards"></dl>
    <form class="tools"><label>Time <select id="span">
      <option value="hour">last hour</option><option value="day">last 24 hours</option>
    </select></label></form>
    <div class="charts" aria-live="off"></div>
    <div class="pair">
      <section><h3>Missing blobs by repository</h3>
        <div class="scroll" tabindex="0" role="region" aria-label="Missing blobs by repository">
          <table id="missing"><thead><tr><th scope="col" class="text"><span>Repository</span></th>
          <th scope="col"><span>Blobs</span></th><th scope="col"><span>Size</span></th></tr></thead><tbody></tbody></table>
        </div></section>
      <section><h3>Running fills</h3>
        <div class="scroll" tabindex="0" role="region" aria-label="Running fills">
          <table id="fills"><thead><tr><th scope="col" class="text"><span>Repository</span></th>
          <th scope="col" class="text"><span>Digest</span></th><th scope="col"><span>Progress</span></th>
          <th scope="col"><span>Size</span></th></tr></thead><tbody></tbody></table>
        </div></section>
    </div>
    <section><h3>Recent events</h3>
      <div class="scroll" tabindex="0" role="region" aria-label="Recent events">
        <table id="recent">${HEAD}<tbody></tbody></table>
      </div></section>`;
  const find = (selector) => view.querySelector(selector);
  find("h2").textContent = name;
  let drawing = 0;
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
    Certificates: (of) => of.certificates.map(({ name, expires_at }) =>
      `${name} until ${new Date(expires_at * 1000).toISOString().slice(0, 10)}`).join(", ") || "said by the site itself",
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
    list("#missing", of.missing_repos, "none known", (lack) => cells([lack.repo, count(lack.blobs), bytes(lack.bytes)], 1));
    list("#fills", of.fills, "none", (fill) => cells([fill.repo, fill.digest.slice(0, 19), progress(fill), bytes(fill.size_bytes)], 2));
  }

  // Writes a table anew if what it shows changed.
  function list(table, items, none, make) {
    const place = find(table);
    const text = JSON.stringify(items);
    if (place.dataset.text === text) return;
    place.dataset.text = text;
    const rows = items.map(make);
    if (rows.length === 0) {
      const said = element("td", { className: "none text", textContent: none, colSpan: place.tHead.rows[0].cells.length });
      const tr = element("tr");
      tr.append(said);
      rows.push(tr);
    }
    place.tBodies[0].replaceChildren(...rows);
  }

  async function recent() {
    let newest;
    try {
      newest = await get(`/v1/events?limit=${EVENTS}`);
    } catch {
      return;
    }
    find("#recent").tBodies[0].replaceChildren(...newest.reverse().map(row));
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
      ...CHARTS.map(([title, lines, format]) => chart(title, samples, [from, to], lines, format)),
    );
  }

  function redraw() {
    clearInterval(drawing);
    draw();
    drawing = setInterval(draw, EVERY_MS[find("#span").value]);
  }

  find("form").onsubmit = (event) => event.preventDefault();
  find("#span").onchange = redraw;
  update();
  redraw();
  recent();
  const telling = setInterval(recent, EVENTS_EVERY_MS);
  return {
    update,
    leave() {
      clearInterval(drawing);
      clearInterval(telling);
    },
  };
}
