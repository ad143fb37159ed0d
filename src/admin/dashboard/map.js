// Where the sites stand, when their configurations say so.

import { health } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A world without coasts: a degree is a unit, and every 30 there is a line.
export function map(place) {
  const dots = new Map();
  let svg = null;
  return (state) => {
    const placed = [...state.sites.values(), { ...state.node, site: "primary" }].filter(
      (node) => typeof node.latitude === "number" && typeof node.longitude === "number" && (node.state || node.role === "primary"),
    );
    if (placed.length === 0) return;
    if (!svg) {
      svg = element("svg", { class: "map", viewBox: "-180 -80 360 150", role: "img", "aria-label": "Map of the sites; the table says the same" });
      for (let east = -180; east <= 180; east += 30) svg.append(element("line", { x1: east, x2: east, y1: -80, y2: 70 }));
      for (let north = -60; north <= 80; north += 30) svg.append(element("line", { x1: -180, x2: 180, y1: -north, y2: -north }));
      place.append(svg);
    }
    for (const node of placed) {
      let dot = dots.get(node.site);
      if (!dot) {
        dot = element("circle", { r: node.role === "primary" ? 4 : 3 });
        dot.append(element("title", {}));
        svg.append(dot);
        dots.set(node.site, dot);
      }
      const kind = node.role === "primary" ? "primary" : health(node);
      const said = `${node.latitude} ${node.longitude} ${kind}`;
      if (dot.dataset.said === said) continue;
      dot.dataset.said = said;
      dot.setAttribute("cx", node.longitude);
      dot.setAttribute("cy", -node.latitude);
      dot.setAttribute("class", kind);
      dot.firstChild.textContent = node.site;
    }
    for (const [name, dot] of dots) {
      if (name === "primary" || state.sites.has(name)) continue;
      dot.remove();
      dots.delete(name);
    }
  };
}
