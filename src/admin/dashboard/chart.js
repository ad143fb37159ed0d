// Lines over time, as SVG.

const SVG = "http://www.w3.org/2000/svg";

function element(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// A path through [x, y] pairs; a null y leaves a gap.
function path(points) {
  let text = "";
  let pen = false;
  for (const [x, y] of points) {
    if (y === null) {
      pen = false;
      continue;
    }
    text += `${pen ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`;
    // A single point is seen as well.
    if (!pen) text += `l.01 0`;
    pen = true;
  }
  return text;
}

// The lag of the last hour in a cell of a table: a value a minute, the newest last.
export function spark(values) {
  const max = Math.max(1, ...values.filter((value) => value !== null));
  const points = values.map((value, index) => [
    60 - values.length + index + 1,
    value === null ? null : 20 - (value / max) * 18,
  ]);
  const svg = element("svg", { class: "spark", viewBox: "0 0 61 22", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(element("path", { d: path(points) }));
  return svg;
}

// A chart between the times `from` and `to` of lines `[name, pick(sample)]`, four at most, with where there was no
// session shaded.
export function chart(title, samples, [from, to], lines, format) {
  const figure = document.createElement("figure");
  figure.className = "chart";
  const drawn = lines.map(([of, pick]) => [of, samples.map(pick)]);
  const known = drawn.flatMap(([, values]) => values.filter((value) => value !== null));
  const max = known.reduce((highest, value) => Math.max(highest, value), 0);
  const now = drawn.map(([of, values]) => [of, format(values.at(-1))].filter(Boolean).join(" ")).join(", ");
  const caption = document.createElement("figcaption");
  const name = document.createElement("h3");
  name.textContent = title;
  const range = document.createElement("span");
  range.className = "quiet";
  range.textContent = known.length === 0 ? "unknown" : `now ${now}; highest ${format(max)}`;
  caption.append(name, range);
  if (lines.length > 1) {
    const key = document.createElement("ul");
    key.className = "key";
    lines.forEach(([of], index) => {
      key.append(Object.assign(document.createElement("li"), { className: `line-${index}`, textContent: of }));
    });
    caption.append(key);
  }
  const svg = element("svg", { viewBox: "0 0 1000 100", preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `${title}: ${range.textContent}`);
  svg.dataset.highest = max;
  const x = (at) => ((at - from) / (to - from)) * 1000;
  for (const y of [2, 50, 98]) svg.append(element("line", { x1: 0, x2: 1000, y1: y, y2: y }));
  samples.forEach((sample, index) => {
    if (sample.connected) return;
    const next = samples[index + 1];
    const width = x(next ? next.at : to) - x(sample.at);
    svg.append(element("rect", { class: "cut", x: x(sample.at), y: 0, width: Math.max(width, 1), height: 100 }));
  });
  const height = (value) => (value === null ? null : 98 - (max === 0 ? 0 : (value / max) * 94));
  drawn.forEach(([, values], index) => {
    const d = path(samples.map((sample, at) => [x(sample.at), height(values[at])]));
    svg.append(element("path", { class: `data line-${index}`, d }));
  });
  figure.append(caption, svg);
  return figure;
}
