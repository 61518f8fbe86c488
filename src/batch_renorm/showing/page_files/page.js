"use strict";
const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)");
const PAPER_STEPS = 140000; // where figures 1 and 3 end
const ACCURACIES = new Set(D.series.map((s) => s.metric));
const state = { view: "fig3", metric: "", x: "steps", y: "percent", smooth: 0, smoothOther: 0.02, paper: true, seeds: false, hidden: new Set() };

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const hue = (line) => (dark.matches ? line.dark : line.light);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const thin = () => $("chart").clientWidth < 620;
const fade = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

function interpolate(curve, at) {
  const { x, y } = curve;
  if (at <= x[0]) return y[0];
  let high = x.findIndex((value) => value >= at);
  if (high < 0) return y[y.length - 1];
  const share = (at - x[high - 1]) / (x[high] - x[high - 1]);
  return y[high - 1] + share * (y[high] - y[high - 1]);
}
/** The mean, least and largest of some curves, on all steps that lie within every one of them. */
function band(curves) {
  if (!curves.length) return { x: [] };
  const first = Math.max(...curves.map((c) => c.x[0])), last = Math.min(...curves.map((c) => c.x[c.x.length - 1]));
  const x = [...new Set(curves.flatMap((c) => c.x))].filter((s) => s >= first && s <= last).sort((a, b) => a - b);
  const columns = x.map((at) => curves.map((c) => interpolate(c, at)));
  return { x, y: columns.map(mean), low: columns.map((c) => Math.min(...c)), high: columns.map((c) => Math.max(...c)) };
}
/** The mean of all values so far, those of `steps` ago with a weight of 1/e: by steps, however many evaluations they hold. */
function smooth(x, values, steps) {
  if (!steps) return values;
  let sum = 0, norm = 0;
  return values.map((value, i) => {
    const kept = i ? Math.exp((x[i - 1] - x[i]) / steps) : 0;
    sum = kept * sum + value;
    norm = kept * norm + 1;
    return sum / norm;
  });
}
const smoothing = () => (isAccuracy() ? state.smooth : state.smoothOther); // share of the training

/* What is drawn: the curves of a figure, all accuracies, or one other metric of every experiment. */
function lines() {
  const byId = Object.fromEntries(D.series.map((s) => [s.id, s]));
  if (state.view === "metric")
    return Object.entries(D.experiments).map(([name, e]) => ({
      ...e, id: `${name}/${state.metric}`, experiment: name, metric: state.metric, label: e.title, paper: null,
    })).filter((line) => ours(line).length);
  if (state.view === "all") return D.series;
  const figure = D.figures.find((f) => f.name === state.view);
  return figure.lines.map((l) => ({ ...byId[l.id], label: l.label }));
}
const isAccuracy = () => state.view !== "metric" || ACCURACIES.has(state.metric);
const relative = () => state.y === "share" && isAccuracy();
const level = (value, baseline) => (relative() && baseline ? (100 * value) / baseline : value);
const unit = () => (relative() ? "% of the baseline's best" : isAccuracy() ? "%" : "");
const ours = (line) => D.runs.filter((r) => r.experiment === line.experiment && r.curves[line.metric]);
const panels = () => !D.onImagenet && state.x === "steps" && state.paper && lines().some((l) => l.paper);

/** Where a step lies on the x axis, for one run or the mean of several. */
function along(runs, steps) {
  if (state.x === "share") {
    const planned = Math.max(...runs.map((r) => r.steps || r.step));
    return steps.map((s) => s / planned);
  }
  if (state.x !== "time") return steps;
  const timed = runs.filter((r) => r.time);
  return steps.map((s) => (timed.length ? mean(timed.map((r) => interpolate(r.time, s))) / timeUnit().seconds : null));
}
function timeUnit() {
  const longest = Math.max(0, ...D.runs.map((r) => (r.time ? r.time.y[r.time.y.length - 1] : 0)));
  return longest > 3 * 3600 ? { name: "hours", seconds: 3600 } : { name: "minutes", seconds: 60 };
}

function traces() {
  const two = panels(), axes = two ? { xaxis: "x2", yaxis: "y2" } : {}, found = [];
  for (const line of lines()) {
    if (state.hidden.has(line.id)) continue;
    const color = hue(line), symbol = line.mark || "circle", digits = isAccuracy() ? ".1f" : ".4~g";
    const marker = (size) => ({ symbol, size, color: css("--back"), line: { color, width: 1.6 } });
    const hover = (who) => `%{y:${digits}}${unit()}<extra>${line.label}, ${who}</extra>`;
    if (state.paper && line.paper && state.x !== "time") {
      const x = state.x === "share" ? line.paper.x.map((s) => s / PAPER_STEPS) : line.paper.x;
      const y = smooth(line.paper.x, line.paper.y, smoothing() * PAPER_STEPS).map((v) => level(v, D.baseline.theirs));
      found.push({ x, y, mode: "lines", line: { color, width: two ? 2 : 1.2 }, hovertemplate: hover("the paper"),
        name: `${line.label}, the paper`, meta: { id: line.id, who: "paper" } });
      if (two && line.mark) found.push(sparse(x, y, marker(8), {}));
    }
    const all = ours(line), finished = all.filter((r) => r.finished), together = band(finished.map((r) => r.curves[line.metric]));
    const many = state.seeds || !together.x.length ? [] : finished, planned = (r) => smoothing() * (r.steps || r.step);
    if (many.length) {
      const b = together, x = along(many, b.x);
      const lift = (values) => values.map((v) => level(v, D.baseline.ours));
      if (many.length > 1)
        found.push({ x: [...x, ...[...x].reverse()], y: lift([...b.high, ...[...b.low].reverse()]), fill: "toself",
          fillcolor: fade(color, dark.matches ? 0.22 : 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", ...axes });
      if (smoothing())
        found.push({ x, y: lift(b.y), mode: "lines", line: { color: fade(color, 0.35), width: 1.2 }, hoverinfo: "skip", ...axes });
      const y = lift(smooth(b.x, b.y, planned(many[0]))), seeds = many.length > 1 ? `mean of ${many.length} seeds` : `seed ${many[0].seed}`;
      found.push({ x, y, mode: "lines", line: { color, width: 3 }, hovertemplate: hover(`ours, ${seeds}`),
        name: `${line.label}, ours`, meta: { id: line.id, who: "ours" }, ...axes });
      if (line.mark) found.push(sparse(x, y, marker(9), axes));
    }
    for (const run of all.filter((r) => !many.includes(r))) {
      const { x: steps, y: raw } = run.curves[line.metric], x = along([run], steps);
      const y = smooth(steps, raw, planned(run)).map((v) => level(v, D.baseline.ours)), last = x.length - 1;
      found.push({ x, y, mode: "lines", line: { color: fade(color, run.finished ? 0.85 : 0.6), width: 1.8 },
        hovertemplate: hover(`seed ${run.seed}${run.finished ? "" : ", " + run.progress}`),
        name: `${line.label}, seed ${run.seed}`, meta: { id: line.id, who: `seed ${run.seed}` }, ...axes });
      if (!run.finished)
        found.push({ x: [x[last]], y: [y[last]], mode: "markers", hoverinfo: "skip", marker: { ...marker(10), symbol: "circle" }, ...axes });
    }
  }
  return found.map((t) => ({ type: "scatter", showlegend: false, ...t }));
}
/** A curve's marks, some six of them, so that it is known without its colour. */
function sparse(x, y, marker, axes) {
  const span = x[x.length - 1] - x[0], px = [], py = [];
  let next = x[0] + span / 12;
  x.forEach((at, i) => { if (at >= next) { px.push(at); py.push(y[i]); next = at + span / 7; } });
  return { x: px, y: py, mode: "markers", marker, hoverinfo: "skip", ...axes };
}

const X_TITLES = { steps: "training steps", share: "share of the training", time: "" };
function axisX() {
  const title = state.x === "time" ? `${timeUnit().name} of training` : X_TITLES[state.x];
  return { title: { text: title, standoff: 8 }, rangemode: "tozero", gridcolor: css("--grid"), zeroline: false,
    tickformat: state.x === "share" ? ".0%" : "~s", hoverformat: state.x === "share" ? ".1%" : ",.6~g", automargin: true };
}
/** The paper's proportions: its axis starts at 3/8 of its end, and so does ours, unless a curve ends below. */
function fitted() {
  const values = lines().flatMap((l) => ours(l).map((r) => r.curves[l.metric].y));
  if (!isAccuracy() || relative() || !values.length) return undefined;
  const top = Math.min(100, 5 * Math.ceil((Math.max(...values.flat()) + 0.5) / 5));
  return [Math.max(0, 5 * Math.floor(Math.min((top * 30) / 80, ...values.map((v) => v[v.length - 1] - 2)) / 5)), top];
}
function layout() {
  const two = panels(), stacked = two && thin();
  const title = relative() ? "% of the baseline's best" : isAccuracy() ? "top-1 accuracy, %" : state.metric.replaceAll("_", " ");
  const y = { title: { text: title, standoff: 8 }, gridcolor: css("--grid"), zeroline: false, automargin: true };
  const accuracy = relative() ? { range: [40, 105] } : {};
  const result = base(stacked ? 640 : thin() ? 400 : 470);
  result.uirevision = [state.view, state.metric, state.x, state.y, two].join(); // a zoom stays while curves come and go
  result.hovermode = thin() ? "closest" : "x unified";
  if (!two) {
    result.xaxis = axisX();
    const range = D.onImagenet && isAccuracy() && !relative() ? [30, 80] : fitted();
    const lower = state.paper && range && !D.onImagenet && state.x === "share" && lines().some((l) => l.paper) ? [range[0], 80] : range;
    result.yaxis = { ...y, ...accuracy, ...(lower ? { range: lower } : {}) };
    return result;
  }
  const titles = ["The paper: Inception-v3, ImageNet", `Ours: ${D.scale}`];
  const at = stacked ? [[0, 1], [0, 1]] : [[0, 0.475], [0.545, 1]];
  const up = stacked ? [[0.57, 1], [0, 0.43]] : [[0, 1], [0, 1]];
  Object.assign(result, {
    xaxis: { ...axisX(), domain: at[0], anchor: "y" }, xaxis2: { ...axisX(), domain: at[1], anchor: "y2" },
    yaxis: { ...y, domain: up[0], ...(relative() ? accuracy : { range: [30, 80] }), anchor: "x" },
    yaxis2: { ...y, domain: up[1], anchor: "x2", ...(relative() ? accuracy : fitted() ? { range: fitted() } : {}) },
    annotations: titles.map((text, i) => ({ text, x: at[i][0], y: up[i][1], xref: "paper", yref: "paper", xanchor: "left",
      yanchor: "bottom", yshift: 4, showarrow: false, font: { size: 14 } })),
  });
  return result;
}
function base(height) {
  return {
    template: D.templates[dark.matches ? "dark" : "light"], height, margin: { l: 8, r: 12, t: 28, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, dragmode: thin() ? false : "zoom",
    font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: 13 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--rule"), activecolor: css("--faint") },
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--rule"), font: { color: css("--ink"), size: 13 }, namelength: -1 },
  };
}
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };

function draw() {
  const figure = D.figures.find((f) => f.name === state.view);
  $("title").textContent = figure ? figure.title : state.view === "all" ? "All accuracies" : state.metric.replaceAll("_", " ");
  Plotly.react("chart", traces(), layout(), { ...CONFIG, displayModeBar: thin() ? false : "hover" });
  const told = [];
  if (panels()) told.push("Bands are the range over seeds.");
  else if (D.runs.length) told.push("Thick lines are ours, bands the range over seeds" + (state.paper && state.x !== "time" && lines().some((l) => l.paper) ? "; thin ones are the paper's." : "."));
  if (state.x === "time") told.push("Time spent training, from the images per second that runs recorded: evaluations are left out, and the paper gives none.");
  if (D.runs.some((r) => !r.finished)) told.push("Faint lines to a ring are runs that have not finished.");
  if (smoothing()) told.push(`Lines are smoothed over ${(100 * smoothing()).toFixed(0)}% of the training's steps; the faint ones are not.`);
  told.push(...D.footnotes.filter(() => lines().some((l) => l.noted)));
  $("about").textContent = told.join(" ");
  $("smooth").value = smoothing();
  $("smoothed").textContent = smoothing() ? `${(100 * smoothing()).toFixed(0)}% of the training` : "off";
  remember();
  legend();
}
/* What is shown is in the address: a link shows the same, and going back, too. */
function remember() {
  const kept = Object.fromEntries(Object.entries(state).filter(([name, value]) => name !== "hidden" && String(value) !== START[name]));
  if (state.hidden.size) kept.hidden = [...state.hidden].join("|");
  const address = new URLSearchParams(kept).toString();
  history.replaceState(null, "", address ? `#${address}` : location.href.split("#")[0]);
}
const START = Object.fromEntries(Object.entries(state).map(([name, value]) => [name, String(value)]));
function recall() {
  const views = new Set(["all", "metric", ...D.figures.map((f) => f.name)]);
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (name === "hidden") state.hidden = new Set(text.split("|"));
    else if (name in START) state[name] = typeof state[name] === "boolean" ? text === "true" : typeof state[name] === "number" ? Math.min(0.2, Math.max(0, +text || 0)) : text;
  }
  if (!views.has(state.view) || (state.view === "metric" && !D.runs.some((r) => r.curves[state.metric]))) state.view = "fig3";
  if (!["steps", "time", "share"].includes(state.x)) state.x = "steps";
  if (!["percent", "share"].includes(state.y)) state.y = "percent";
}
function legend() {
  const digits = (v) => (isAccuracy() ? v.toFixed(1) + "%" : Number(v.toPrecision(4)).toString());
  $("legend").replaceChildren(...lines().map((line) => {
    const runs = ours(line), finished = runs.filter((r) => r.finished), shown = finished.length ? finished : runs;
    const last = shown.map((r) => r.curves[line.metric].y.at(-1)), best = shown.map((r) => Math.max(...r.curves[line.metric].y));
    const numbers = element("span", { class: "numbers" }), so = finished.length ? "" : " so far";
    numbers.append(!last.length ? "not run" : isAccuracy() ? `best ${digits(mean(best))}${so}` : digits(mean(last)) + so);
    if (last.length && isAccuracy()) numbers.append(element("small", {}, `at the end ${digits(mean(last))}`));
    if (line.printed) numbers.append(element("small", {}, `paper's best ${line.printed.toFixed(1)}%${line.noted ? "*" : ""}`));
    const button = element("button", { "aria-pressed": String(!state.hidden.has(line.id)), "data-id": line.id }, sample(line), element("span", {}, line.label), numbers);
    button.onclick = () => {
      state.hidden.has(line.id) ? state.hidden.delete(line.id) : state.hidden.add(line.id);
      draw();
    };
    return button;
  }));
}
function sample(line) {
  const shapes = {
    circle: '<circle cx="17" cy="8" r="4"/>', square: '<rect x="13.2" y="4.2" width="7.6" height="7.6"/>',
    diamond: '<path d="M17 3l5 5-5 5-5-5z"/>', "triangle-up": '<path d="M17 3.2l4.8 8.6h-9.6z"/>',
    "triangle-down": '<path d="M17 12.8l4.8-8.6h-9.6z"/>', x: '<path d="M13 4l8 8M21 4l-8 8"/>', star: '<path d="M17 2l1.8 4h4.2l-3.3 2.8 1.2 4.2-3.9-2.4-3.9 2.4 1.2-4.2L11 6h4.2z"/>',
    cross: '<path d="M15.4 3.5h3.2v2.9h2.9v3.2h-2.9v2.9h-3.2v-2.9h-2.9v-3.2h2.9z"/>',
  };
  const holder = element("span");
  holder.innerHTML = `<svg width="34" height="16" aria-hidden="true"><path d="M1 8h32" stroke="${hue(line)}" stroke-width="3" stroke-linecap="round"/>` +
    `<g fill="${css("--back")}" stroke="${hue(line)}" stroke-width="1.6">${shapes[line.mark] || ""}</g></svg>`;
  return holder.firstChild;
}

/* Activations: through the network after any evaluation, and maps of layers by steps. */
const measured = Object.keys(D.experiments).filter((e) => D.runs.some((r) => r.experiment === e && Object.keys(r.layers).length));
function activationsOf(experiment) {
  let runs = D.runs.filter((r) => r.experiment === experiment && Object.keys(r.layers).length);
  if (runs.some((r) => r.finished)) runs = runs.filter((r) => r.finished);
  const names = Object.keys(runs[0].layers).filter((n) => runs.every((r) => r.layers[n]));
  return { names, layers: names.map((n) => band(runs.map((r) => r.layers[n]))) };
}
function activations() {
  if (!measured.length) return;
  $("activations").hidden = false;
  const found = measured.map((name) => [name, activationsOf(name)]);
  const steps = [...new Set(found.flatMap(([, a]) => a.layers[0].x))].sort((a, b) => a - b);
  const slider = $("step");
  slider.max = steps.length - 1;
  if (slider.dataset.ready !== "1") { slider.value = steps.length - 1; slider.dataset.ready = "1"; }
  const top = Math.max(...found.flatMap(([, a]) => a.layers.flatMap((l) => l.high)));
  const profile = () => {
    const at = steps[+slider.value];
    $("at").textContent = at.toLocaleString("en");
    const drawn = found.flatMap(([name, a]) => {
      const e = D.experiments[name], color = hue(e);
      return [{ type: "scatter", mode: "lines+markers", x: a.names.map((_, i) => i + 1), y: a.layers.map((l) => interpolate(l, at)),
        name: e.title, text: a.names, hovertemplate: "%{y:.3f}, %{text}<extra>" + e.title + "</extra>",
        line: { color, width: 2.4 }, marker: { symbol: e.mark || (name.startsWith("noniid") ? "triangle-down" : "circle"),
          size: e.mark || name.startsWith("noniid") ? 8 : 3, color: css("--back"), line: { color, width: 1.6 } } }];
    });
    const look = base(thin() ? 430 : 400);
    Plotly.react("profile", drawn, { ...look, hovermode: "closest", showlegend: true,
      legend: thin() ? { orientation: "h", y: -0.22, yanchor: "top" } : { x: 1.02, y: 1 },
      xaxis: { title: { text: "norm layer, from input to output", standoff: 8 }, gridcolor: css("--grid"), zeroline: false, automargin: true, tickformat: "d" },
      yaxis: { title: { text: "relative L2 distance", standoff: 8 }, range: [-0.02 * top, top * 1.03], gridcolor: css("--grid"), zeroline: false, automargin: true },
    }, { ...CONFIG, displayModeBar: false });
  };
  slider.oninput = profile;
  profile();

  const columns = thin() ? 2 : 3, rows = Math.ceil(found.length / columns), height = rows * (thin() ? 180 : 205) + (thin() ? 66 : 48);
  const look = base(height), gap = (thin() ? 62 : 56) / (height - 56), between = thin() ? 0.13 : 0.06;
  const tall = (1 - gap * (rows - 1)) / rows, wide = (1 - between * (columns - 1)) / columns;
  look.annotations = []; look.margin = { l: 40, r: 8, t: thin() ? 42 : 24, b: 32 };
  const ramp = (renorm) => {
    const shades = D.shades[renorm ? "renorm" : "batchnorm"];
    return dark.matches ? [css("--raised"), ...shades.slice(1, -1).reverse()] : shades;
  };
  const shades = (name) => ramp(name.endsWith("_renorm")).map((shade, i, all) => [i / (all.length - 1), shade]);
  $("ramps").replaceChildren("0", ...[["Batchnorm", false], ["Batch Renorm", true]].map(([text, renorm]) =>
    element("span", { style: `background: linear-gradient(90deg, ${ramp(renorm).join(", ")})`, title: text })), top.toFixed(2));
  const frame = { showgrid: false, zeroline: false, showline: true, mirror: true, linecolor: css("--rule") };
  const drawn = found.map(([name, a], i) => {
    const id = i ? i + 1 : "", x0 = (i % columns) * (wide + between), y1 = 1 - Math.floor(i / columns) * (tall + gap);
    look["xaxis" + id] = { domain: [x0, x0 + wide], anchor: "y" + id, tickformat: "~s", nticks: thin() ? 3 : 5, ...frame };
    look["yaxis" + id] = { domain: [y1 - tall, y1], anchor: "x" + id, ...frame, tickvals: [1, a.names.length], title: { text: i % columns ? "" : "layer", standoff: 2 } };
    const title = D.experiments[name].title;
    look.annotations.push({ text: thin() ? title.replace(", ", ",<br>") : title, align: "left", x: x0, y: y1, xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", showarrow: false, font: { size: 13 } });
    return { type: "heatmap", x: a.layers[0].x, y: a.names.map((_, j) => j + 1), z: a.layers.map((l) => l.y), zmin: 0, zmax: top,
      colorscale: shades(name), showscale: false, xaxis: "x" + id, yaxis: "y" + id, text: a.names.map((n) => a.layers[0].x.map(() => n)),
      hovertemplate: "%{z:.3f} after %{x:,} steps<br>%{text}<extra></extra>" };
  });
  Plotly.react("maps", drawn, { ...look, dragmode: false }, { ...CONFIG, displayModeBar: false });
}

/* Tables. */
const TONES = { holds: "good", "holds, not sure": "fair", "does not hold, not sure": "fair", "does not hold": "bad", "not run": "none", "not measured": "none" };
const PLURAL = { holds: "hold", "holds, not sure": "hold, not surely", "does not hold, not sure": "do not hold, not surely",
  "does not hold": "do not hold", "not run": "not run", "not measured": "not measured" };
const pill = (text, tone) => element("span", { class: `pill ${tone}` }, text);
const marked = (text) => { // *word* is emphasis
  const p = element("p", { class: "note" });
  text.split("*").forEach((part, i) => p.append(i % 2 ? element("em", {}, part) : part));
  return p;
};
function table(head, rows, options = {}) {
  const words = options.words || [];
  const body = rows.map((row) => element("tr", {}, ...row.map((cell, i) => {
    const node = element("td", words.includes(i) ? { class: "words" } : {});
    if (cell instanceof Node) node.append(cell);
    else if (head[i] === "verdict") node.append(pill(cell, TONES[cell]));
    else { node.textContent = String(cell ?? "–").replace(/^- /, ""); if (/^- /.test(cell)) node.className = "inner"; }
    return node;
  })));
  const rowsOf = element("tbody", {}, ...body);
  const top = element("tr", {}, ...head.map((text, i) => {
    const node = element("th", { scope: "col", ...(words.includes(i) ? { class: "words" } : {}) });
    const button = element("button", { title: "sort" }, text || "experiment");
    button.onclick = () => sort(node, rowsOf, i);
    node.append(button);
    return node;
  }));
  return element("div", { class: "scroll", tabindex: "0" }, element("table", {}, element("thead", {}, top), rowsOf));
}
/** Sorts by a column's first numbers, or as words where it has none; once more turns it round. What is empty comes last. */
function sort(head, body, i) {
  const up = head.getAttribute("aria-sort") !== "ascending", text = (row) => row.cells[i].textContent;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = (row) => parseFloat(text(row).replace("−", "-").replace(/^[^\d-]+(?=[\d-])/, "").replace(/(\d)k/, "$1e3"));
  const numbers = [...body.rows].some((row) => /^[(+−\d]/.test(text(row)));
  const order = (a, b) => numbers ? value(a) - value(b) : text(a).localeCompare(text(b));
  const empty = (row) => (numbers ? Number.isNaN(value(row)) : text(row) === "–");
  body.append(...[...body.rows].sort((a, b) => empty(a) - empty(b) || (empty(a) ? 0 : up ? order(a, b) : order(b, a))));
}
/** The verdict next to its claim, and what is needed for it last: on a phone the first columns are what is seen. */
function arranged({ head, rows }) {
  if (head.at(-1) !== "verdict") return table(head, rows);
  const at = [0, head.length - 1, ...[...head.keys()].slice(2, -1), 1];
  return table(at.map((i) => head[i]), rows.map((row) => at.map((i) => row[i])), { words: [1, at.length - 1] });
}
function tables() {
  const finished = D.runs.filter((r) => r.finished).length;
  $("lead").textContent = `Ioffe's seven experiments of 2017, run again at scale ${D.scale}: ${finished} finished run${finished === 1 ? "" : "s"}` +
    (finished < D.runs.length ? `, ${D.runs.length - finished} unfinished.` : ".") +
    (D.onImagenet ? "" : " Another data set than the paper's ImageNet, so compare orderings and shapes, not accuracies.");
  const verdicts = D.tables.filter((t) => t.head.at(-1) === "verdict").flatMap((t) => t.rows.map((r) => r.at(-1)));
  $("tally").replaceChildren(...Object.entries(TONES).map(([verdict, tone]) => [verdicts.filter((v) => v === verdict).length, PLURAL[verdict], tone])
    .filter(([n]) => n).map(([n, verdict, tone]) => pill(`${n} claims ${verdict}`, tone)));
  $("tables").replaceChildren(...D.tables.map((t) => element("div", {}, element("h2", {}, t.title), marked(t.text), arranged(t))));
  $("notes").replaceChildren(...D.notes.map((n) => element("p", { class: "note" }, element("b", {}, "Beware: "), n, ".")));
  $("configs").replaceChildren($("configs").firstElementChild,
    D.configs.rows.length ? table(D.configs.head, D.configs.rows) : element("p", {}, "Nothing, in the configs that were found."),
    element("p", { class: "note" }, "Options in which two runs differ; seed, place, machine and logging are left out."));
  const rows = D.runs.map((r) => {
    const links = element("span", {}, element("a", { href: r.folder }, r.place));
    if (r.wandb) links.append(" · ", element("a", { href: r.wandb }, "W&B"));
    return [D.experiments[r.experiment]?.title ?? r.experiment, r.seed, r.finished ? "finished" : pill(r.progress, "fair"),
      r.minutes?.toFixed(1), r.speed?.toFixed(0), links, r.started, r.device, r.commit, r.torch];
  });
  $("runs").replaceChildren($("runs").firstElementChild, table(["", "seed", "state", "minutes", "images/s", "folder", "started", "device", "commit", "torch"], rows, { words: [5] }));
  const offline = D.runs.find((r) => r.offline && !r.wandb);
  if (offline) {
    const where = offline.place.split("/").slice(0, -3).concat("*", "*", "*").join("/");
    $("runs").append(element("p", { class: "note" }, "Logged offline; they come to W&B with ", element("code", {}, `wandb sync ${where}/wandb/offline-run-*`)));
  }
  $("files").replaceChildren("The numbers as CSV: ", ...D.files.flatMap((f, i) => [i ? ", " : "", element("a", { href: encodeURIComponent(f) }, f)]), ".");
  $("missing").hidden = !D.missing.length;
  $("missing").querySelector("pre").textContent = D.missing.join("\n");
  $("made").textContent = `Made by ${D.command}`;
}

/* Controls. */
function choose(view) {
  state.view = view;
  for (const button of $("views").children) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  if (view !== "metric") $("metric").value = "";
  $("ylabel").hidden = !isAccuracy();
  draw();
}
function controls() {
  const label = (name) => name.replace(/^fig(?=\d)/, "Figure ").replace(/^own/, "Own ").replace("groupnorm", "GroupNorm");
  const views = [...D.figures.map((f) => [f.name, label(f.name)]), ["all", "All"]];
  $("views").append(...views.map(([view, text]) => {
    const button = element("button", { "data-view": view }, text);
    button.onclick = () => choose(view);
    return button;
  }));
  const metrics = [...new Set(D.runs.flatMap((r) => Object.keys(r.curves)))].sort();
  $("metric").append(element("option", { value: "" }, "another metric"), ...metrics.map((m) => element("option", { value: m }, m.replaceAll("_", " "))));
  $("metric").onchange = (e) => { state.metric = e.target.value; choose(state.metric ? "metric" : "fig3"); };
  $("x").append(...[["steps", "steps"], ["time", "time"], ["share", "share of the training"]].map(([v, t]) => element("option", { value: v }, t)));
  $("y").append(...[["percent", "percent"], ["share", "percent of the baseline's best"]].map(([v, t]) => element("option", { value: v }, t)));
  for (const name of ["x", "y"]) $(name).onchange = (e) => { state[name] = e.target.value; draw(); };
  for (const name of ["paper", "seeds"]) $(name).onchange = (e) => { state[name] = e.target.checked; draw(); };
  $("smooth").oninput = (e) => { state[isAccuracy() ? "smooth" : "smoothOther"] = +e.target.value; draw(); };
  for (const name of ["x", "y"]) $(name).value = state[name];
  for (const name of ["paper", "seeds"]) $(name).checked = state[name];
  $("metric").value = state.view === "metric" ? state.metric : "";
}

recall();
controls();
tables();
choose(state.view);
activations();
dark.addEventListener("change", () => { draw(); activations(); });
let narrow = thin();
addEventListener("hashchange", () => location.reload());
addEventListener("resize", () => { if (narrow !== thin()) { narrow = thin(); draw(); activations(); } });
