"use strict";
// The front as a plot of any two scores, and one trial in full beside it. Texts go in as text.
const data = JSON.parse(document.getElementById("data").textContent);
const ofImages = (which) => (data.score === "accuracy" ? `% of ${which} images` : `${data.score} %, ${which} images`);
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const el = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};
const svg = (name, attributes = {}, text = "") => {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text) node.textContent = text;
  return node;
};
const shown = (value) =>
  value === null || value === undefined ? "?"
    : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(1)
      : String(Math.round(value * 100) / 100);

// Ticks at 1, 2 or 5 times a power of ten; at powers of ten on a logarithmic axis.
function ticks(low, high, log) {
  if (log) {
    const marks = [];
    for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++)
      marks.push(10 ** p);
    return marks.length > 1 ? marks : [low, high];
  }
  const step = 10 ** Math.floor(Math.log10((high - low) / 4 || 1));
  const width = [1, 2, 5, 10].map((k) => k * step).find((w) => (high - low) / w <= 6) || step;
  const marks = [];
  for (let v = Math.ceil(low / width - 1e-9) * width; v <= high + width * 1e-6; v += width)
    marks.push(v);
  return marks;
}

function scale(values, log, from, to) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) { low -= Math.abs(low) * 0.05 || 0.5; high += Math.abs(high) * 0.05 || 0.5; }
  const f = log ? (v) => Math.log10(Math.max(v, 1e-12)) : (v) => v;
  const pad = (f(high) - f(low)) * 0.04;
  const place = (v) => from + ((f(v) - f(low) + pad) / (f(high) - f(low) + 2 * pad)) * (to - from);
  return { place, marks: ticks(low, high, log) };
}

// A frame with axes in the box of `width` x `height`; gives back the two scales.
function axes(root, xs, ys, titles, logs, width, height) {
  const left = 58, bottom = height - 42;
  const x = scale(xs, logs[0], left, width - 14), y = scale(ys, logs[1], bottom, 12);
  for (const mark of x.marks) {
    root.append(svg("line", { x1: x.place(mark), x2: x.place(mark), y1: 12, y2: bottom, class: "grid" }));
    root.append(svg("text", { x: x.place(mark), y: bottom + 15, "text-anchor": "middle" }, shown(mark)));
  }
  for (const mark of y.marks) {
    root.append(svg("line", { x1: left, x2: width - 14, y1: y.place(mark), y2: y.place(mark), class: "grid" }));
    root.append(svg("text", { x: left - 6, y: y.place(mark) + 4, "text-anchor": "end" }, shown(mark)));
  }
  root.append(svg("text", { x: (left + width) / 2, y: height - 8, "text-anchor": "middle" }, titles[0]));
  root.append(svg("text", {
    transform: `translate(13 ${bottom / 2}) rotate(-90)`, "text-anchor": "middle",
  }, titles[1]));
  return { x, y };
}

function lines(series, titles, width = 380, height = 220) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": titles.join(" over ") });
  const xs = series.flatMap((s) => s.points.map((p) => p[0]));
  const ys = series.flatMap((s) => s.points.map((p) => p[1]));
  const { x, y } = axes(root, xs, ys, titles, [false, false], width, height);
  series.forEach((s, n) => {
    const points = s.points.map((p) => `${x.place(p[0])},${y.place(p[1])}`).join(" ");
    root.append(svg("polyline", { points, class: `line line${n}` }));
    for (const p of s.points) {
      const dot = svg("circle", { cx: x.place(p[0]), cy: y.place(p[1]), r: 2.5, class: `dot${n}` });
      dot.append(svg("title", {}, `${s.name}: ${shown(p[1])} at ${shown(p[0])}`));
      root.append(dot);
    }
  });
  const legend = el("p", { class: "note" });
  series.forEach((s, n) => legend.append(el("span", { class: `key key${n}` }), `${s.name}  `));
  return el("div", {}, root, ...(series.length > 1 ? [legend] : []));
}

function name(trial) {
  const marks = [trial.knee ? "best compromise" : "", trial.front ? "on the front" : "",
    trial.tied ? "tied with the best compromise" : "", trial.exact ? "exact" : ""];
  return `trial ${trial.n}${marks.filter(Boolean).map((m) => `, ${m}`).join("")}: ` +
    data.axes.map((a, i) => `${a.title} ${shown(trial.v[i])}` +
      (trial.i[i] ? ` [${shown(trial.i[i][0])}, ${shown(trial.i[i][1])}]` : "")).join("; ");
}

function draw() {
  const [i, j] = [Number(byId("x").value), Number(byId("y").value)];
  const onlyFront = byId("only").checked;
  const trials = data.trials.filter((t) =>
    (!onlyFront || t.front) && Number.isFinite(t.v[i]) && Number.isFinite(t.v[j]));
  const plot = byId("plot");
  plot.replaceChildren();
  if (!trials.length) return;
  // as wide as its place, so that texts keep their size on a phone
  const width = Math.max(300, Math.min(680, plot.parentNode.clientWidth)), height = width < 480 ? 330 : 420;
  plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const titles = [data.axes[i].title, data.axes[j].title];
  // an interval of a member of the front lies within the plot
  const ends = (k) => trials.flatMap((t) => [t.v[k], ...((t.front && t.i[k]) || [])]);
  const { x, y } = axes(plot, ends(i), ends(j), titles,
    [data.axes[i].log, data.axes[j].log], width, height);
  const front = trials.filter((t) => t.front);
  for (const trial of front) whiskers(plot, trial, i, j, x, y, front.length > 8 && !trial.knee);
  const labels = [];
  const rank = (t) => (t.knee ? 2 : t.front ? 1 : 0);
  for (const trial of [...trials].sort((a, b) => rank(a) - rank(b))) {
    const mark = svg("circle", {
      cx: x.place(trial.v[i]), cy: y.place(trial.v[j]), r: trial.knee ? 9 : trial.front ? 7 : 4.5,
      class: `trial ${trial.front ? "front" : "other"} ${trial.exact ? "exact" : "broken"}` +
        (trial.tied ? " tied" : ""),
      tabindex: trial.front ? 0 : -1, role: "button", "aria-label": name(trial), "data-trial": trial.n,
    });
    mark.append(svg("title", {}, name(trial)));
    mark.addEventListener("click", () => open(trial.n, true));
    mark.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(trial.n, true); }
    });
    plot.append(mark);
  }
  const circles = trials.map((t) => ({
    x: x.place(t.v[i]), y: y.place(t.v[j]), r: t.knee ? 10 : t.front ? 8 : 5, front: t.front,
  }));
  // the best first; a number that has no place near its trial is left out
  for (const trial of front.sort((a, b) => rank(b) - rank(a)))
    label(plot, labels, circles, [x.place(trial.v[i]), y.place(trial.v[j])], String(trial.n), [width, height]);
  mark(opened);
}

function whiskers(plot, trial, i, j, x, y, faint) {
  const [cx, cy] = [x.place(trial.v[i]), y.place(trial.v[j])];
  const line = (ends) => plot.append(svg("line", { ...ends, class: faint ? "whisker faint" : "whisker" }));
  if (trial.i[i]) {
    const [x1, x2] = trial.i[i].map(x.place);
    line({ x1, x2, y1: cy, y2: cy });
  }
  if (trial.i[j]) {
    const [y1, y2] = trial.i[j].map(y.place);
    line({ x1: cx, x2: cx, y1, y2 });
  }
}

// Writes the number of a trial at the nearest place that is free of other numbers and of circles (the
// small ones may be covered where nothing else is left), joined to its trial by a line where that is
// not beside it. The places are on rings, first above to the right.
function label(plot, labels, circles, [cx, cy], text, [width, height]) {
  const [wide, high] = [7 * text.length + 2, 13];
  const apart = (box, b) => box[2] < b[0] || b[2] < box[0] || box[3] < b[1] || b[3] < box[1];
  const clear = (box, c) =>
    Math.hypot(c.x - Math.max(box[0], Math.min(c.x, box[2])), c.y - Math.max(box[1], Math.min(c.y, box[3]))) >= c.r;
  for (const all of [true, false])
    for (const ring of [10, 20, 32, 46, 62, 80, 100])
      for (const turn of [1, 7, 3, 5, 0, 2, 4, 6, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5]) {
        const [ux, uy] = [Math.cos(turn * Math.PI / 4), -Math.sin(turn * Math.PI / 4)];
        const [mx, my] = [cx + ux * (ring + wide / 2), cy + uy * (ring + high / 2)];
        const box = [mx - wide / 2, my - high / 2, mx + wide / 2, my + high / 2];
        const inside = box[0] > 58 && box[2] < width && box[1] > 0 && box[3] < height - 42;
        if (!inside || !labels.every((b) => apart(box, b))) continue;
        if (!circles.every((c) => (!all && !c.front) || clear(box, c))) continue;
        labels.push(box);
        if (ring > 20)
          plot.append(svg("line", { x1: cx + 8 * ux, y1: cy + 8 * uy, x2: mx - ux * wide / 2,
            y2: my - uy * high / 2, class: "leader" }));
        plot.append(svg("text", { x: mx, y: my + 4, "text-anchor": "middle", class: "name" }, text));
        return;
      }
}

let opened = null;
function mark(number) {
  for (const node of document.querySelectorAll("#plot [data-trial]"))
    node.classList.toggle("opened", Number(node.dataset.trial) === number);
}

function bars(shares) {
  const table = el("table", { class: "bars" });
  for (const [label, share] of shares) {
    const bar = el("span", { class: "bar", style: `width:${Math.max(0.5, share)}%` });
    table.append(el("tr", {}, el("td", {}, label), el("td", { class: "wide" }, bar),
      el("td", { class: "right" }, `${share.toFixed(1)} %`)));
  }
  return table;
}

function open(number, follow) {
  const trial = data.trials.find((t) => t.n === number);
  if (!trial) return;
  opened = number;
  mark(number);
  const body = byId("trial");
  body.replaceChildren(el("h3", {}, `Trial ${trial.n}${trial.knee ? ", the best compromise" : ""}`));
  body.append(el("p", {}, el("code", {}, trial.text)));
  const facts = el("table");
  for (const [label, value] of trial.facts)
    facts.append(el("tr", {}, el("td", {}, label), el("td", {}, value)));
  body.append(facts);
  if (trial.curves.some((c) => c.points.length > 1))
    body.append(el("h4", {}, "While it trained"), lines(trial.curves, ["epochs", ofImages("validation")]));
  for (const chart of trial.elements)
    body.append(el("h4", {}, `${chart.name[0].toUpperCase()}${chart.name.slice(1)} by element`), bars(chart.rows));
  if (trial.angles.length)
    body.append(el("h4", {}, `Test ${data.score} by angle, retrained`),
      lines([{ name: data.score, points: trial.angles }], ["degrees", ofImages("test")]));
  const drawing = byId(`check-${trial.n}`);
  if (drawing)
    body.append(el("h4", {}, "Sizes along the network, and what breaks where"), drawing.content.cloneNode(true));
  if (follow) {
    history.replaceState(null, "", `#trial-${number}`);
    body.focus({ preventScroll: window.innerWidth > 900 });
  }
}

addEventListener("resize", draw);
for (const id of ["x", "y", "only"]) byId(id).addEventListener("change", draw);
for (const link of document.querySelectorAll("[data-open]"))
  link.addEventListener("click", (event) => { event.preventDefault(); open(Number(link.dataset.open), true); });
draw();
const asked = /^#trial-(\d+)$/.exec(location.hash);
open(asked ? Number(asked[1]) : data.recommended, false);
