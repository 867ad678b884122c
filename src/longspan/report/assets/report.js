// The report's charts, their switches, and what happens under the pointer.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TIP = document.getElementById("tip");

function tip(event, title, lines) {
  TIP.replaceChildren();
  const heading = document.createElement("b");
  heading.textContent = title;
  TIP.appendChild(heading);
  for (const line of lines) {
    const row = document.createElement("div");
    row.textContent = line;
    TIP.appendChild(row);
  }
  TIP.hidden = false;
  const width = TIP.offsetWidth, height = TIP.offsetHeight;
  const x = Math.min(event.pageX + 14, document.documentElement.clientWidth - width - 8);
  TIP.style.left = `${Math.max(8, x)}px`;
  TIP.style.top = `${Math.max(8, event.pageY - height - 12)}px`;
}

function segments(parent, words, options, chosen, onChoice) {
  if (options.length < 2) return;
  const group = document.createElement("span");
  group.append(`${words} `);
  const bar = document.createElement("span");
  bar.className = "segments";
  options.forEach((option, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = option;
    button.setAttribute("aria-pressed", String(index === chosen));
    button.addEventListener("click", () => {
      [...bar.children].forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      onChoice(index);
    });
    bar.appendChild(button);
  });
  group.appendChild(bar);
  parent.appendChild(group);
}

// Light one group up in the section's charts and table
function highlight(section, label) {
  for (const chart of section.querySelectorAll(".chart")) chart.classList.toggle("dimmed", label !== null);
  for (const part of section.querySelectorAll("[data-label]")) part.classList.toggle("on", part.dataset.label === label);
}

function hover(part, section, label, title, lines) {
  part.addEventListener("pointerenter", (event) => { highlight(section, label); tip(event, title, lines); });
  part.addEventListener("pointermove", (event) => tip(event, title, lines));
  part.addEventListener("pointerleave", () => { highlight(section, null); TIP.hidden = true; });
}

// what differs by rounding alone is equal, as in longspan.records.ranking
function better(one, other, higher) {
  const tie = Math.max(1e-7, 1e-6 * Math.max(Math.abs(one), Math.abs(other)));
  return Math.abs(one - other) > tie && (higher ? one > other : one < other);
}

function paretoFront(points, higher) {
  const beaten = (p, by) => {
    const ahead = better(by.cost, p.cost, false) || better(by.mean, p.mean, higher);
    return ahead && !better(p.cost, by.cost, false) && !better(p.mean, by.mean, higher);
  };
  return points.filter((p) => !points.some((by) => by !== p && beaten(p, by))).sort((a, b) => a.cost - b.cost);
}

function drawCost(section, data, axis, metric) {
  const box = section.querySelector('[data-chart="cost"]');
  const points = data.groups
    .filter((g) => g.costs[axis.name] !== null && g.metrics[metric.name] && g.metrics[metric.name].mean !== null)
    .map((g) => ({ group: g, cost: g.costs[axis.name], ...g.metrics[metric.name] }));
  if (!points.length) { box.textContent = "No variant has both figures."; return; }
  const costs = points.map((p) => p.cost);
  const values = points.flatMap((p) => p.bar);
  const spread = Math.max(...values) - Math.min(...values) || Math.abs(values[0]) * 0.05;
  const baselines = [...new Set(points.map((p) => p.baseline).filter((b) => b !== null))];
  const baseline = baselines.length === 1 ? baselines[0] : null;
  const near = baseline !== null && Math.min(...points.map((p) => Math.abs(p.mean - baseline))) <= 2.5 * spread;
  const log = Math.min(...costs) > 0 && Math.max(...costs) / Math.min(...costs) >= 8;
  const unit = axis.name === "peak_memory" ? `peak memory (${axis.unit})` : axis.words;
  const drawn = frame(box, costs, near ? [...values, baseline] : values, {
    xWords: log ? `${unit}, logarithmic` : unit, xRoom: 0.12,
    yWords: `${metric.name.replaceAll("_", " ")} (${metric.higher ? "higher" : "lower"} is better)`, log,
  });
  const { svg, x, y, area } = drawn;
  if (baseline !== null) {
    if (near) node("line", { x1: area.left, x2: area.right, y1: y.to(baseline), y2: y.to(baseline), class: "trivial" }, svg);
    const words = `trivial baseline ${short(baseline, 4)}`;
    const place = near ? y.to(baseline) - 6 : area.bottom - 8;
    const crowded = points.some((p) => x.to(p.cost) < area.left + 160 && Math.abs(y.to(p.mean) - place) < 24);
    const side = crowded ? { x: area.right - 4, "text-anchor": "end" } : { x: area.left + 8 };
    node("text", { ...side, y: place }, svg, near ? words : `${words}, outside the picture`);
  }
  const front = paretoFront(points, metric.higher);
  if (front.length > 1) {
    node("polyline", { class: "front", points: front.map((p) => `${x.to(p.cost)},${y.to(p.mean)}`).join(" ") }, svg);
  }
  for (const name of section.querySelectorAll("tr[data-label] span.front")) name.classList.remove("front");
  const sizes = [], obstacles = [], parts = [];
  for (const point of points) {
    const { group } = point, colour = group.colour;
    const part = node("g", { "data-label": group.label }, svg);
    const cx = x.to(point.cost), cy = y.to(point.mean);
    if (group.runs.length > 1) {
      for (const run of group.runs) {
        const a = run.metrics[metric.name], c = run.costs[axis.name];
        if (Number.isFinite(a) && Number.isFinite(c)) {
          node("circle", { cx: x.to(c), cy: y.to(a), r: 2.5, fill: colour, opacity: 0.4 }, part);
        }
      }
    }
    if (point.sd) {
      const [bottom, top] = point.bar.map((end) => y.to(end));
      node("path", { d: `M${cx} ${top}V${bottom}M${cx - 4} ${top}h8M${cx - 4} ${bottom}h8`, stroke: colour, "stroke-width": 1.4 }, part);
      obstacles.push({ left: cx - 5, right: cx + 5, top, bottom });
    }
    const onFront = front.includes(point);
    node("circle", { cx, cy, r: 6.5, stroke: colour, "stroke-width": 2, ...(onFront ? { fill: colour } : { class: "open" }) }, part);
    const text = node("text", { class: "name", style: `fill:${colour}` }, part, group.label);
    sizes.push([text.getBBox().width, 16]);
    parts.push({ part, text, cx, cy });
    const target = node("circle", { cx, cy, r: 14, fill: "transparent" }, part);
    const lines = [
      `${metric.name} ${short(point.mean, 5)}${point.sd ? ` ± ${short(point.sd, 2)}` : ""} (n = ${point.n})`,
      `${axis.words}: ${short(point.cost)}`,
    ];
    if (group.differences[metric.name]) lines.push(`difference: ${group.differences[metric.name]}`);
    if (onFront) lines.push("on the Pareto front");
    hover(target, section, group.label, group.label, lines);
    for (const row of section.querySelectorAll("tr[data-label]")) {
      if (row.dataset.label === group.label) row.querySelector("span").classList.toggle("front", onFront);
    }
  }
  const placed = placeLabels(parts.map((p) => [p.cx, p.cy]), sizes, area, obstacles);
  placed.forEach((at, index) => {
    const { part, text, cx, cy } = parts[index];
    text.setAttribute("x", at.left);
    text.setAttribute("y", at.bottom - 4);
    const away = Math.hypot(Math.max(at.left - cx, 0, cx - at.right), Math.max(at.top - cy, 0, cy - at.bottom));
    if (away > 24) {
      const line = node("line", { x1: cx, y1: cy, x2: Math.min(Math.max(cx, at.left), at.right), y2: Math.min(Math.max(cy, at.top), at.bottom), class: "frame" });
      part.insertBefore(line, part.firstChild);
    }
  });
}

// Lines of one colour a label, named at their ends. chart: {x, y, means, seeds, colours, notes, logX, logY, aims, fromZero}
function drawLines(section, box, chart, height = 380) {
  const labels = Object.keys(chart.means);
  const aims = chart.aims || {};
  height = Math.max(height, 17 * labels.length + 70); // each name has a line of its own beside the picture
  const every = [...Object.values(chart.means), ...Object.values(chart.seeds).flat(), ...Object.values(aims)].flat();
  if (chart.fromZero) every.push([0, 0]);
  const words = labels.map((label) => (chart.notes[label] ? `${label}  ${chart.notes[label]}` : label));
  const widest = Math.max(...words.map((word) => word.length));
  const { svg, x, y, area } = frame(box, every.map((p) => p[0]), every.map((p) => p[1]), {
    xWords: chart.logX ? `${chart.x}, logarithmic` : chart.x, yWords: chart.logY ? `${chart.y}, logarithmic` : chart.y,
    log: chart.logX, logY: chart.logY, xTicks: chart.xTicks, height, right: Math.min(260, 24 + 7.6 * widest), xRoom: 0.01, yRoom: 0.05,
  });
  const ends = labels.map((label) => chart.means[label][chart.means[label].length - 1]);
  const heights = spreadColumn(ends.map((end) => y.to(end[1])), 17, area.top + 8, area.bottom);
  const dashes = labels.map((label, index) => labels.slice(0, index).filter((other) => chart.colours[other] === chart.colours[label]).length);
  labels.forEach((label, index) => {
    const part = node("g", { "data-label": label }, svg);
    const dash = ["none", "9 4", "2 3", "10 3 2 3"][dashes[index] % 4]; // a colour that comes again is dashed
    const colour = chart.colours[label], mean = chart.means[label], seeds = chart.seeds[label] || [];
    const path = (line) => line.map((p) => `${x.to(p[0]).toFixed(1)},${y.to(p[1]).toFixed(1)}`).join(" ");
    const draw = (line, extra) => node("polyline", { points: path(line), fill: "none", stroke: colour, ...extra }, part);
    if (seeds.length > 1) seeds.forEach((line) => draw(line, { "stroke-width": 1, opacity: 0.3 }));
    draw(mean, { "stroke-width": 2.2, "stroke-linejoin": "round", "stroke-dasharray": dash });
    if (aims[label]) draw(aims[label], { "stroke-width": 1.4, "stroke-dasharray": "5 4", opacity: 0.8 });
    if (mean.length <= 24) mean.forEach((p) => node("circle", { cx: x.to(p[0]), cy: y.to(p[1]), r: 3, fill: colour }, part));
    const end = ends[index];
    node("text", { x: area.right + 10, y: heights[index] + 4, class: "name", style: `fill:${colour}` }, part, words[index]);
    node("line", { x1: x.to(end[0]) + 2, y1: y.to(end[1]), x2: area.right + 8, y2: heights[index], stroke: colour, opacity: 0.5 }, part);
    const target = draw(mean, { "stroke-width": 14, opacity: 0 });
    target.style.pointerEvents = "stroke";
    hover(target, section, label, words[index], [`at the end: ${short(end[1], 5)}`, `${chart.x}: ${short(end[0])}`]);
    if (mean.length > 24) return;
    for (const p of mean) {
      const point = node("circle", { cx: x.to(p[0]), cy: y.to(p[1]), r: 9, fill: "transparent" }, part);
      hover(point, section, label, words[index], [`${chart.x}: ${short(p[0])}`, `${chart.y}: ${short(p[1], 5)}`]);
    }
  });
}

function drawCurves(section, data, curve, axis) {
  const colours = Object.fromEntries(data.groups.map((g) => [g.label, g.colour]));
  drawLines(section, section.querySelector('[data-chart="curves"]'), {
    x: axis.words, y: curve.name.replaceAll("_", " "), means: axis.means, seeds: axis.seeds, colours, notes: {}, logX: false, logY: false,
  });
}

function setUp(section, data) {
  const redraw = [];
  if (section.querySelector('[data-chart="cost"]')) {
    const bar = section.querySelector('[data-for="cost"]');
    let axis = Math.max(0, data.axes.findIndex((a) => a.key === DATA.cost)), metric = 0;
    const draw = () => drawCost(section, data, data.axes[axis], data.metrics[metric]);
    segments(bar, "cost", data.axes.map((a) => a.words.replace(/ \(.*/, "")), axis, (i) => { axis = i; draw(); });
    segments(bar, "accuracy", data.metrics.map((m) => m.name.replaceAll("_", " ")), 0, (i) => { metric = i; draw(); });
    redraw.push(draw);
  }
  if (section.querySelector('[data-chart="curves"]') && data.curves.length) {
    const bar = section.querySelector('[data-for="curves"]');
    let curve = 0, axis = 0;
    const draw = () => {
      const chosen = data.curves[curve];
      drawCurves(section, data, chosen, chosen.axes[Math.min(axis, chosen.axes.length - 1)]);
    };
    segments(bar, "over", data.curves[0].axes.map((a) => a.words), 0, (i) => { axis = i; draw(); });
    segments(bar, "of", data.curves.map((c) => c.name.replaceAll("_", " ")), 0, (i) => { curve = i; draw(); });
    redraw.push(draw);
  }
  for (const chart of data.lines) {
    redraw.push(() => drawLines(section, section.querySelector(`[data-lines="${chart.name}"]`), chart, 340));
  }
  for (const row of section.querySelectorAll("tr[data-label]")) {
    row.addEventListener("pointerenter", () => highlight(section, row.dataset.label));
    row.addEventListener("pointerleave", () => highlight(section, null));
  }
  let width = 0;
  new ResizeObserver(() => {
    if (section.clientWidth !== width) { width = section.clientWidth; redraw.forEach((draw) => draw()); }
  }).observe(section);
}

for (const section of document.querySelectorAll("[data-section]")) setUp(section, DATA.sections[Number(section.dataset.section)]);
