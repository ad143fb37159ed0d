// Follows the node's status, and shows the view that the address names.

import { Unauthorized, follow, signIn } from "./api.js";
import { events } from "./events.js";
import { fleet } from "./fleet.js";
import { image } from "./image.js";
import { site } from "./site.js";

const AGAIN_MS = 1000;
// The node says something every second while anything moves; heartbeats always do.
const SILENT_MS = 5000;

const state = { node: null, sites: new Map() };
const view = document.querySelector("#view");
const sign = document.querySelector("#link");
let shown = null;
let heard = 0;

function show() {
  const [, name, which] = /^#\/(\w+)(?:\/(.+))?$/.exec(location.hash) || [null, "fleet"];
  shown?.leave();
  if (name === "site" && which) shown = site(view, state, decodeURIComponent(which));
  else if (name === "image") shown = image(view, state);
  else if (name === "events") shown = events(view);
  else shown = fleet(view, state);
  for (const link of document.querySelectorAll("header nav a")) {
    const current = link.id === `nav-${["image", "events"].includes(name) ? name : "fleet"}`;
    if (current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function link(kind, text) {
  if (sign.textContent !== text) sign.textContent = text;
  sign.className = `link ${kind}`;
}

function take(event) {
  heard = Date.now();
  state.node = event.node;
  for (const changed of event.sites) state.sites.set(changed.site, changed);
  for (const name of event.gone) state.sites.delete(name);
  const { role, version, epoch, cluster, site: own } = event.node;
  const who = role === "primary" ? "primary" : `site ${own}`;
  document.querySelector("#node").textContent = `${who} of cluster ${cluster.slice(0, 8)}, epoch ${epoch}, version ${version}`;
  link("live", "live");
  shown.update();
}

function askForToken(wasWrong) {
  const dialog = document.querySelector("#signin");
  document.querySelector("#signin-error").hidden = !wasWrong;
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      signIn(document.querySelector("#token").value.trim());
      dialog.close();
      resolve();
    };
    dialog.oncancel = (event) => event.preventDefault();
  });
}

async function run() {
  let wasWrong = false;
  for (;;) {
    const stream = new AbortController();
    const watch = setInterval(() => {
      if (heard && Date.now() - heard > SILENT_MS) stream.abort();
    }, AGAIN_MS);
    try {
      heard = 0;
      state.sites.clear();
      await follow("/v1/live", (event) => {
        wasWrong = true;
        take(event);
      }, stream.signal);
    } catch (error) {
      if (error instanceof Unauthorized) {
        link("lost", "signed out");
        await askForToken(wasWrong);
        wasWrong = true;
        continue;
      }
      link("lost", "connection lost: numbers are of before");
    } finally {
      clearInterval(watch);
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

addEventListener("hashchange", () => {
  show();
  view.focus();
});
show();
run();
