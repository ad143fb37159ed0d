// Where an image is, and why not everywhere.

import { get } from "./api.js";

const AT_ONCE = 6;
// What `why` calls an image that the site shows.
const SHOWN = ["visible", "waiting_for_blobs", "not_kept"];

export function image(view, state) {
  view.innerHTML = `
    <h2>Image</h2>
    <form class="tools" role="search">
      <label>Reference <input id="ref" placeholder="team/app:1.0" autocomplete="off" required size="40"></label>
      <button type="submit">Ask every site</button>
    </form>
    <p id="said" role="status" class="quiet"></p>
    <div class="answers"></div>`;
  const find = (selector) => view.querySelector(selector);
  let asked = new AbortController();

  function card(name) {
    const made = document.createElement("section");
    made.className = "answer";
    made.innerHTML = `<h3></h3><p class="quiet">asking</p><p class="quiet"><code></code></p>`;
    made.querySelector("h3").textContent = name;
    return made;
  }

  async function ask(reference, name, place, signal) {
    const [verdict, detail] = place.querySelectorAll("p");
    try {
      const why = await get(`/v1/why?ref=${encodeURIComponent(reference)}&site=${encodeURIComponent(name)}`, signal);
      verdict.textContent = why.sentence;
      verdict.className = SHOWN.includes(why.code) ? "good" : "late";
      detail.firstChild.textContent = [
        why.code, why.shown.digest, `applied ${why.applied}`, `complete ${why.complete}`,
      ].filter(Boolean).join(", ");
    } catch (error) {
      if (signal.aborted) return;
      verdict.textContent = error.message;
      verdict.className = "bad";
    }
  }

  find("form").onsubmit = async (event) => {
    event.preventDefault();
    asked.abort();
    asked = new AbortController();
    const { signal } = asked;
    const reference = find("#ref").value.trim();
    const names = [...state.sites.keys()].sort();
    const cards = names.map(card);
    find(".answers").replaceChildren(...cards);
    find("#said").textContent = `asking ${names.length} sites about ${reference}`;
    let next = 0;
    const worker = async () => {
      while (next < names.length && !signal.aborted) {
        const index = next;
        next += 1;
        await ask(reference, names[index], cards[index], signal);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    if (signal.aborted) return;
    const shown = cards.filter((place) => place.querySelector("p").className === "good").length;
    find("#said").textContent = `${reference} is shown at ${shown} of ${names.length} sites`;
  };
  return { update() {}, leave: () => asked.abort() };
}
