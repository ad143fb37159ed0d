// The log as it grows.

import { lines } from "./api.js";
import { bytes } from "./format.js";

const KEPT = 500;
const AGAIN_MS = 1000;

// An event as a row of a table.
export function row(event) {
  const tr = document.createElement("tr");
  const where = `${event.repository ?? ""}${event.tags.map((tag) => `:${tag}`).join("")}`;
  const cells = [
    event.offset, event.time.replace("T", " ").replace(/\.\d+Z$/, "Z"), event.kind, where,
    event.digest?.slice(0, 19) ?? "", event.size === null ? "" : bytes(event.size), event.actor, event.site ?? "",
  ];
  cells.forEach((text, index) => {
    const cell = document.createElement(index === 0 ? "th" : "td");
    if (index === 0) cell.scope = "row";
    if (index !== 5) cell.classList.add("text");
    cell.textContent = text;
    tr.append(cell);
  });
  if (event.digest) tr.children[4].title = event.digest;
  tr.dataset.words = [where, event.kind, event.actor, event.digest].join(" ").toLowerCase();
  return tr;
}

export const HEAD = `<thead><tr>
  <th scope="col" class="text"><span>Offset</span></th><th scope="col" class="text"><span>Time</span></th>
  <th scope="col" class="text"><span>What</span></th><th scope="col" class="text"><span>Where</span></th>
  <th scope="col" class="text"><span>Digest</span></th><th scope="col"><span>Size</span></th>
  <th scope="col" class="text"><span>Who</span></th><th scope="col" class="text"><span>Through</span></th>
</tr></thead>`;

export function events(view) {
  view.innerHTML = `
    <h2>Events</h2>
    <form class="tools" role="search">
      <label>Search <input id="words" type="search" placeholder="repository, tag, actor" autocomplete="off"></label>
      <label><span>Follow</span> <select id="pause"><option value="">as they happen</option><option value="1">paused</option></select></label>
    </form>
    <div class="scroll" tabindex="0" role="region" aria-label="Table of events">
      <table>${HEAD}<tbody></tbody></table>
    </div>`;
  const find = (selector) => view.querySelector(selector);
  const body = find("tbody");
  const gone = new AbortController();
  let next = null;

  function sift() {
    const words = find("#words").value.trim().toLowerCase();
    for (const tr of body.children) tr.hidden = !tr.dataset.words.includes(words);
  }

  function take(event) {
    next = event.seq + 1;
    body.prepend(row(event));
    if (body.children.length > KEPT) body.lastChild.remove();
    sift();
  }

  async function run() {
    while (!gone.signal.aborted) {
      try {
        const from = next === null ? "" : `&from=${next}`;
        await lines(`/v1/events?limit=100&follow${from}`, async (event) => {
          while (find("#pause").value && !gone.signal.aborted) await new Promise((resolve) => setTimeout(resolve, 200));
          if (!gone.signal.aborted) take(event);
        }, gone.signal);
      } catch {
        // The connection's own sign tells of it.
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  find("form").onsubmit = (event) => event.preventDefault();
  find("#words").oninput = sift;
  run();
  return { update() {}, leave: () => gone.abort() };
}
