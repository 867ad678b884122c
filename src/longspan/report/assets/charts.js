"use strict";
// Small charts in SVG: scales, ticks, labels that do not cover each other. Loads nothing.

// from the page's own empty <svg>: the name of the namespace need not be spelt out
const NAMESPACE = document.getElementById("blank").namespaceURI;
const PREFIXES = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];

function node(name, attributes, parent, text) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.appendChild(made);
  return made;
}

function short(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4) return value.toExponential(1);
  if (size < 1000) return String(Number(value.toPrecision(digits)));
  let power = Math.min(Math.floor(Math.log10(size) / 3), PREFIXES.length - 1);
  let scaled = Number((value / 1000 ** power).toPrecision(digits));
  if (Math.abs(scaled) >= 1000 && power < PREFIXES.length - 1) { scaled /= 1000; power += 1; }
  return `${scaled} ${PREFIXES[power]}`;
}

// Labels of ticks: as few digits as tell them apart
function tickLabels(ticks) {
  for (let digits = 3; digits < 9; digits += 1) {
    const labels = ticks.map((tick) => short(tick, digits));
    if (new Set(labels).size === ticks.length) return labels;
  }
  return ticks.map((tick) => short(tick, 9));
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const base = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * base).find((s) => s >= rough);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 1e-9; tick += step) {
    found.push(Math.abs(tick) < step * 1e-9 ? 0 : Number(tick.toPrecision(12)));
  }
  return found;
}

function logTicks(low, high) {
  const decades = Math.log10(high / low);
  const parts = decades > 4 ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 3, 5, 7];
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const part of parts) {
      const tick = part * 10 ** power;
      if (tick >= low && tick <= high) found.push(tick);
    }
  }
  return found;
}

// values -> {to: value -> pixel, ticks}; with room left at both ends for points and labels
function scale(values, from, to, { log = false, room = 0.08 } = {}) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const spread = Math.max(Math.log(high / low), 0.2);
    low = Math.exp(Math.log(low) - spread * room);
    high = Math.exp(Math.log(high) + spread * room);
    const ratio = (to - from) / Math.log(high / low);
    return { to: (v) => from + Math.log(v / low) * ratio, ticks: logTicks(low, high) };
  }
  const spread = high - low || Math.abs(high) * 0.2 || 1;
  low -= spread * room;
  high += spread * room;
  return { to: (v) => from + ((v - low) / (high - low)) * (to - from), ticks: linearTicks(low, high, 6) };
}

function overlap(a, b) {
  const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
  const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
  return Math.max(0, width) * Math.max(0, height);
}

function boxAt(x, y, width, height) {
  return { left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2, x, y };
}

// One box a label, as near as can be, in the direction that covers least. The same rule as in placement.py.
function placeLabels(points, sizes, frame, obstacles) {
  const directions = [[1, -0.6], [1, 0.6], [-1, -0.6], [-1, 0.6], [0, -1], [0, 1], [1, 0], [-1, 0]];
  const gap = 12;
  const marks = points.map(([x, y]) => boxAt(x, y, gap, gap));
  const crowding = points.map(([x, y]) => points.filter(([u, v]) => Math.hypot(x - u, y - v) < 60).length);
  const placed = new Array(points.length);
  const order = points.map((_, i) => i).sort((a, b) => crowding[b] - crowding[a]);
  for (const index of [...order, ...order, ...order]) {
    const [x, y] = points[index], [width, height] = sizes[index];
    const taken = [...marks, ...placed.filter((box, other) => box && other !== index), ...obstacles];
    let best = null;
    for (const far of [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]) {
      directions.forEach(([dx, dy], rank) => {
        const box = boxAt(x + dx * (gap * far + width / 2), y + dy * (gap * far + height / 2), width, height);
        const outside = width * height - overlap(box, frame);
        const covered = taken.reduce((sum, other) => sum + overlap(box, other), 0);
        const price = 6 * (far - 1) + 0.5 * rank + 20 * (outside + covered);
        if (best === null || price < best.price) best = { box, price };
      });
    }
    placed[index] = best.box;
  }
  return placed;
}

// Labels in a column beside the ends of lines: pushed apart from above, then back up from the lower edge
function spreadColumn(heights, least, top, bottom) {
  const order = heights.map((_, i) => i).sort((a, b) => heights[a] - heights[b]);
  const found = heights.slice();
  order.forEach((index, place) => {
    const above = place ? found[order[place - 1]] + least : top;
    found[index] = Math.max(found[index], above);
  });
  for (let place = order.length - 1; place >= 0; place -= 1) {
    const below = place < order.length - 1 ? found[order[place + 1]] - least : bottom;
    found[order[place]] = Math.min(found[order[place]], below);
  }
  return found;
}

// The frame of a chart: grid, ticks, words along both axes. Returns {svg, x, y, area}.
function frame(box, xs, ys, { xWords, yWords, log = false, logY = false, xTicks = [], right = 24, height = 440, xRoom = 0.08, yRoom = 0.12 }) {
  box.replaceChildren();
  const width = Math.max(320, box.clientWidth);
  const area = { left: 64, right: width - right, top: 16, bottom: height - 52 };
  const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" }, box);
  const x = scale(xs, area.left, area.right, { log, room: xRoom });
  if (xTicks.length) x.ticks = xTicks;
  const y = scale(ys, area.bottom, area.top, { log: logY, room: yRoom });
  const yLabels = tickLabels(y.ticks);
  const xLabels = xTicks.length ? xTicks.map((tick) => tick.toLocaleString("en")) : tickLabels(x.ticks);
  y.ticks.forEach((tick, index) => {
    node("line", { x1: area.left, x2: area.right, y1: y.to(tick), y2: y.to(tick), class: "grid" }, svg);
    node("text", { x: area.left - 8, y: y.to(tick) + 4, "text-anchor": "end" }, svg, yLabels[index]);
  });
  let last = -Infinity;
  x.ticks.forEach((tick, index) => {
    const at = x.to(tick);
    node("line", { x1: at, x2: at, y1: area.top, y2: area.bottom, class: "grid" }, svg);
    if (at - last < 46) return;
    node("text", { x: at, y: area.bottom + 18, "text-anchor": "middle" }, svg, xLabels[index]);
    last = at;
  });
  node("line", { x1: area.left, x2: area.right, y1: area.bottom, y2: area.bottom, class: "frame" }, svg);
  const middle = (area.left + area.right) / 2;
  node("text", { x: middle, y: height - 8, "text-anchor": "middle", class: "axis" }, svg, xWords);
  const half = (area.top + area.bottom) / 2;
  node("text", { x: 0, y: 0, transform: `translate(14 ${half}) rotate(-90)`, "text-anchor": "middle", class: "axis" }, svg, yWords);
  return { svg, x, y, area };
}
