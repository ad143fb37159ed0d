// All sites, a row each.

import { get } from "./api.js";
import { spark } from "./chart.js";
import { STATES, bytes, canary, count, health, seconds, share, spread } from "./format.js";
import { map } from "./map.js";

const PAGE = 100;
const HISTORY_EVERY_MS = 30_000;

const lag = (stage) => (site) => site.lag_seconds[stage] ?? Infinity;
// Title, what it sorts by, what it shows, and classes: `wide` is what a phone has no room for.
const COLUMNS = [
  ["State", (site) => site.state, null],
  ["Lag", lag("applied"), (site) => seconds(site.lag_seconds.applied)],
  ["Complete lag", lag("complete"), (site) => seconds(site.lag_seconds.complete)],
  ["Canary", (site) => site.canary?.lag_seconds ?? Infinity, (site) => canary(site.canary)],
  ["Events behind", (site) => site.lag_events, (site) => count(site.lag_events)],
  ["Log behind", (site) => site.lag_bytes, (site) => bytes(site.lag_bytes), "wide"],
  ["Missing blobs", (site) => site.missing_blobs, (site) => count(site.missing_blobs)],
  ["Caught up in", (site) => site.eta_seconds ?? Infinity, (site) => seconds(site.eta_seconds)],
  ["Propagation p50 / p99", (site) => site.propagation.applied?.p99_seconds ?? -1, (site) => spread(site.propagation.applied), "wide"],
  ["Hit ratio", (site) => site.hit_ratio ?? -1, (site) => share(site.hit_ratio), "wide"],
  ["Round trip", (site) => site.rtt_seconds ?? Infinity, (site) => seconds(site.rtt_seconds), "wide"],
  ["Transport", (site) => site.transport, (site) => site.transport || "none", "wide"],
  ["Store", (site) => site.store.bytes, (site) => bytes(site.store.bytes), "wide"],
  ["Version", (site) => site.version, (site) => site.version || "unknown", "wide"],
  ["Last error", (site) => -(site.last_error?.at ?? 0), (site) => site.last_error?.text ?? "none", "wide cut text"],
];

export function fleet(view, state) {
  view.innerHTML = `
    <h2>Fleet</h2>
    <dl class="cards">
      <div><dt>Sites</dt><dd data-sum="sites"></dd></div>
      <div><dt>In sync</dt><dd data-sum="sync"></dd></div>
      <div><dt>Behind</dt><dd data-sum="behind"></dd></div>
      <div><dt>Disconnected</dt><dd data-sum="cut"></dd></div>
      <div><dt>Newest event</dt><dd data-sum="head"></dd></div>
    </dl>
    <div id="alarms"></div>
    <ul class="strip" aria-label="Sites by lag"></ul>
    <form class="tools" role="search">
      <label>Search <input id="search" type="search" placeholder="site" autocomplete="off"></label>
      <label>Show <select id="filter">
        <option value="">all sites</option>
        <option value="good">in sync</option>
        <option value="late">behind</option>
        <option value="bad">disconnected or in alarm</option>
      </select></label>
      <span class="tools" id="pages">
        <button type="button" id="before">Before</button>
        <span id="page" class="quiet" role="status"></span>
        <button type="button" id="next">Next</button>
      </span>
    </form>
    <div class="scroll" tabindex="0" role="region" aria-label="Table of sites">
      <table><thead><tr></tr></thead><tbody></tbody></table>
    </div>
    <div id="map"></div>`;
  const find = (selector) => view.querySelector(selector);
  const body = find("tbody");
  const strip = find(".strip");
  const world = map(find("#map"));
  const totals = [...view.querySelectorAll("[data-sum]")].map((dd) => [dd.dataset.sum, dd]);
  const rows = new Map();
  const cells = new Map();
  let sort = { column: -1, down: false };
  let page = 0;
  let lags = {};

  const head = find("thead tr");
  const titles = [["Site", null, null], ...COLUMNS];
  titles.forEach(([title, , , room], index) => {
    const th = document.createElement("th");
    th.scope = "col";
    if (index <= 1) th.classList.add("text");
    if (room) th.classList.add(...room.split(" ").filter((name) => name !== "cut"));
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = title;
    button.onclick = () => {
      sort = { column: index - 1, down: sort.column === index - 1 ? !sort.down : index > 1 };
      page = 0;
      draw();
    };
    th.append(button);
    head.append(th);
  });
  const last = document.createElement("th");
  last.scope = "col";
  last.innerHTML = "<span>Last hour</span>";
  head.append(last);

  // A row is made once; later only what changed in it is written.
  function row(site) {
    const tr = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    const link = document.createElement("a");
    link.href = `#/site/${site.site}`;
    link.textContent = site.site;
    name.append(link);
    tr.append(name);
    COLUMNS.forEach(([, , , room], index) => {
      const td = document.createElement("td");
      if (index === 0) {
        td.className = "text";
        td.append(Object.assign(document.createElement("span"), { className: "state" }));
      }
      if (room) td.classList.add(...room.split(" "));
      tr.append(td);
    });
    tr.append(document.createElement("td"));
    return tr;
  }

  function write(tr, site) {
    const tds = tr.children;
    COLUMNS.forEach(([, , show], index) => {
      const td = tds[index + 1];
      if (index === 0) {
        const text = STATES[site.state] || site.state;
        const span = td.firstChild;
        const kind = `state ${health(site)}`;
        if (span.textContent !== text) span.textContent = text;
        if (span.className !== kind) span.className = kind;
        td.title = site.alarm || site.canary?.error || site.last_error?.text || "";
        return;
      }
      const text = show(site);
      if (td.textContent !== text) td.textContent = text;
    });
  }

  function visible() {
    const words = find("#search").value.trim().toLowerCase();
    const kind = find("#filter").value;
    const sites = [...state.sites.values()].filter(
      (site) => (!words || site.site.includes(words)) && (!kind || health(site) === kind),
    );
    const by = sort.column < 0 ? (site) => site.site : COLUMNS[sort.column][1];
    const order = sort.down ? -1 : 1;
    return sites.sort((a, b) => {
      const [one, other] = [by(a), by(b)];
      if (one === other) return a.site < b.site ? -1 : 1;
      return (one < other ? -1 : 1) * order;
    });
  }

  function draw() {
    const sites = visible();
    const pages = Math.max(1, Math.ceil(sites.length / PAGE));
    page = Math.min(page, pages - 1);
    const shown = sites.slice(page * PAGE, (page + 1) * PAGE);
    find("#pages").hidden = pages === 1;
    find("#page").textContent = `page ${page + 1} of ${pages}`;
    find("#before").disabled = page === 0;
    find("#next").disabled = page === pages - 1;
    [...head.children].slice(0, -1).forEach((th, index) => {
      if (index - 1 === sort.column) th.setAttribute("aria-sort", sort.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    });
    shown.forEach((site, index) => {
      let tr = rows.get(site.site);
      if (!tr) {
        tr = row(site);
        rows.set(site.site, tr);
        line(tr, site.site);
      }
      write(tr, site);
      if (body.children[index] !== tr) body.insertBefore(tr, body.children[index] || null);
    });
    while (body.children.length > shown.length) body.lastChild.remove();
    summary();
  }

  function line(tr, name) {
    tr.lastChild.replaceChildren(...(lags[name] ? [spark(lags[name])] : []));
  }

  // Only what changed is written: at a thousand sites that is what takes time.
  function summary() {
    const sums = { sites: state.sites.size, sync: 0, behind: 0, cut: 0, head: state.node?.head_seq };
    const certificates = (state.node?.certificates ?? []).filter((of) => of.refused)
      .map((of) => `certificate ${of.name} is not replaced: ${of.refused}`);
    const alarms = [state.node?.alarm, state.node?.auth_alarm, state.node?.gateway?.alarm, ...certificates].filter(Boolean);
    for (const site of state.sites.values()) {
      const kind = health(site);
      if (kind === "good") sums.sync += 1;
      if (kind === "late") sums.behind += 1;
      if (site.state === "disconnected") sums.cut += 1;
      if (site.alarm) alarms.push(`${site.site}: ${site.alarm}`);
      mark(site, kind);
    }
    for (const [name, dd] of totals) {
      const text = count(sums[name]);
      if (dd.textContent !== text) dd.textContent = text;
    }
    const text = alarms.join("\n");
    const place = find("#alarms");
    if (place.dataset.text !== text) {
      place.dataset.text = text;
      place.replaceChildren(...[...new Set(alarms)].slice(0, 20).map((alarm) =>
        Object.assign(document.createElement("p"), { className: "alarm", textContent: alarm })));
    }
    world(state);
    strip.classList.toggle("many", state.sites.size > 200);
    for (const [name, cell] of cells) {
      if (state.sites.has(name)) continue;
      cell.place.remove();
      cells.delete(name);
      rows.delete(name);
    }
  }

  // A site in the strip of all, by its health; the table says the same and more in words.
  function mark(site, kind) {
    let cell = cells.get(site.site);
    if (!cell) {
      const place = document.createElement("li");
      const link = document.createElement("a");
      link.href = `#/site/${site.site}`;
      link.tabIndex = -1;
      place.append(link);
      cell = { place, link, said: null };
      cells.set(site.site, cell);
      strip.append(place);
    }
    const said = `${kind} ${site.state}`;
    if (cell.said === said) return;
    cell.said = said;
    const label = `${site.site}: ${STATES[site.state]}${kind === "late" ? ", behind" : ""}`;
    cell.link.setAttribute("aria-label", label);
    cell.link.title = label;
    cell.link.className = kind ? `fill-${kind}` : "";
  }

  async function history() {
    try {
      lags = await get("/v1/history");
      for (const [name, tr] of rows) line(tr, name);
    } catch {
      // The connection's own sign tells of it.
    }
  }

  find("form").onsubmit = (event) => event.preventDefault();
  find("#search").oninput = find("#filter").onchange = () => {
    page = 0;
    draw();
  };
  find("#before").onclick = () => {
    page -= 1;
    draw();
  };
  find("#next").onclick = () => {
    page += 1;
    draw();
  };
  draw();
  history();
  const timer = setInterval(history, HISTORY_EVERY_MS);
  return { update: draw, leave: () => clearInterval(timer) };
}
