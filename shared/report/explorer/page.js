"use strict";
// The page's behaviour: theme, filters of the verdict table, sliders, filters of the points, readings and their tables.

const byId = (id) => document.getElementById(id);
const DATA = JSON.parse(byId("explorer-data").textContent);
const POINTS = unpacked(DATA.points);
const CURVES = new Map(DATA.curves.map((curve) => [curve.id, curve]));
const FILTERS = ["kind", "papers", "method", "format", "size", "phase", "group", "use"];
const AXES = {
  N: { label: "N (parameters)", log: true, format: count, ends: [1e4, 1e12] },
  D: { label: "D (tokens)", log: true, format: count, ends: [1e5, 1e14] },
  bits: { label: "bits", log: false, format: String, ends: [1, 16] },
  G: { label: "group size", log: true, format: count, ends: [1, 8192] },
};
const TABLE_ROWS = 200;
const STEPS = 48;
const state = { exact: {}, chart: [], cursor: -1 };

// Words stand once, rows hold their places.
function unpacked(columns) {
  const names = Object.keys(columns);
  const cells = names.map((name) => (Array.isArray(columns[name]) ? columns[name]
    : columns[name].codes.map((place) => columns[name].levels[place])));
  const rows = cells.length ? cells[0].length : 0;
  return Array.from({ length: rows }, (_, i) => Object.fromEntries(names.map((name, k) => [name, cells[k][i]])));
}

function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (name in made) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ---- theme

function theme() {
  const names = ["system", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("bitlaw-theme"); } catch { return null; } };
  const show = (name) => {
    if (name === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    byId("theme").textContent = `Colours: ${name}`;
  };
  let now = names.includes(stored()) ? stored() : "system";
  show(now);
  byId("theme").addEventListener("click", () => {
    now = names[(names.indexOf(now) + 1) % names.length];
    try { localStorage.setItem("bitlaw-theme", now); } catch { /* a page from disk may have no store */ }
    show(now);
  });
}

// ---- verdicts

function verdicts() {
  const rows = [...document.querySelectorAll("#claims tbody tr")];
  const filters = ["paper", "verdict", "evidence"].map((name) => [name, byId(`claim-${name}`)]);
  if (!rows.length) return;
  const apply = () => {
    const words = byId("claim-words").value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = filters.every(([name, select]) => !select.value || row.dataset[name] === select.value)
        && (!words || row.textContent.toLowerCase().includes(words));
      row.hidden = !fits;
      shown += fits;
    }
    byId("claim-count").textContent = `${shown} of ${rows.length} claims shown`;
  };
  filters.forEach(([, select]) => select.addEventListener("change", apply));
  byId("claim-words").addEventListener("input", apply);
  for (const button of document.querySelectorAll("button[data-show]")) {
    button.addEventListener("click", () => showPaper(button.dataset.show));
  }
  apply();
}

// The explorer with the laws and points of one paper.
function showPaper(paper) {
  for (const box of lawBoxes()) box.checked = CURVES.get(box.value).paper === paper;
  showItsPoints();
  byId("near").checked = false;
  draw();
  byId("explorer").scrollIntoView();
  byId("s-N").focus({ preventScroll: true });
}

// The points that the drawn fits of ours were made from; where fits differ in something, all of it. Laws with published
// constants alone have the points that their paper reads.
function showItsPoints() {
  const drawn = lawBoxes().filter((box) => box.checked).map((box) => CURVES.get(box.value));
  const ours = drawn.filter((curve) => curve.kind === "ours");
  for (const name of FILTERS) {
    const wanted = new Set(ours.length ? ours.map((curve) => (curve.points || {})[name] || "") : [""]);
    byId(`f-${name}`).value = wanted.size === 1 ? [...wanted][0] : "";
  }
  const papers = new Set(drawn.map((curve) => curve.paper));
  const known = [...byId("f-papers").options].map((option) => option.value);
  if (papers.size === 1 && known.includes(...papers)) byId("f-papers").value = [...papers][0];
}

// ---- settings

const lawBoxes = () => [...document.querySelectorAll("#laws input[type=checkbox]")];

// {N, D, bits, G, E, M} of the sliders; E and M are null for integers.
function settings() {
  const floating = byId("number-kind").value === "float";
  // A sign alone is no number format: without exponent bits there is a mantissa bit.
  byId("s-M").min = floating && byId("s-E").value === "0" ? 1 : 0;
  const at = {};
  for (const name of ["N", "D"]) at[name] = state.exact[name] ?? Number((10 ** Number(byId(`s-${name}`).value)).toPrecision(3));
  at.G = state.exact.G ?? 2 ** Number(byId("s-G").value);
  at.E = floating ? Number(byId("s-E").value) : null;
  at.M = floating ? Number(byId("s-M").value) : null;
  at.bits = floating ? 1 + at.E + at.M : Number(byId("s-bits").value);
  return { ...at, e: errorOf(DATA.errors, at) };
}

function showSettings(at) {
  const floating = at.E !== null;
  byId("s-bits").disabled = floating;
  byId("s-E").disabled = byId("s-M").disabled = !floating;
  if (floating) byId("s-bits").value = at.bits;
  const words = {
    N: count(at.N), D: count(at.D), bits: floating ? `${at.bits} (E${at.E}M${at.M})` : `${at.bits} (INT${at.bits})`,
    G: String(at.G), E: floating ? String(at.E) : "–", M: floating ? String(at.M) : "–",
  };
  for (const [name, text] of Object.entries(words)) {
    byId(`o-${name}`).textContent = text;
    byId(`s-${name}`).setAttribute("aria-valuetext", text === "–" ? "integers have none" : text);
  }
}

// ---- points

function filterOptions() {
  for (const name of FILTERS) {
    const levels = [...new Set(POINTS.flatMap((p) => (name === "papers" ? p.papers.split(" ") : [p[name]])))].filter(Boolean);
    levels.sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    for (const level of levels) {
      byId(`f-${name}`).append(element("option", { value: level }, name === "papers" ? DATA.papers[level] || level : level));
    }
  }
}

// The pool's value nearest to the slider's: a slider rarely stands on a model's very size.
function nearest(name, value) {
  let best = null;
  for (const p of POINTS) {
    if (best === null || Math.abs(Math.log(p[name] / value)) < Math.abs(Math.log(best / value))) best = p[name];
  }
  return best;
}

function filtered(at, x, y) {
  const wanted = FILTERS.map((name) => [name, byId(`f-${name}`).value]).filter(([, value]) => value);
  const near = byId("near").checked;
  const N = near && x !== "N" ? nearest("N", at.N) : null;
  const D = near && x !== "D" ? nearest("D", at.D) : null;
  const found = POINTS.filter((p) => p[x] !== null && p[y] !== null
    && wanted.every(([name, value]) => (name === "papers" ? p.papers.split(" ").includes(value) : p[name] === value))
    && (N === null || p.N === N) && (D === null || p.D === D)
    && (!near || x === "bits" || (p.bits === at.bits && (at.E === null || p.E === at.E))));
  return { found, N, D };
}

// ---- drawing

function draw() {
  const at = settings();
  showSettings(at);
  const x = byId("x").value;
  const y = byId("y").value;
  const log = byId("log").checked;
  const { found, N, D } = filtered(at, x, y);
  const curves = lawBoxes().filter((box) => box.checked).map((box) => CURVES.get(box.value));
  const numbers = new Map(curves.map((curve, k) => [curve.id, k + 1]));
  const ends = endsOf(x, at[x], found.map((p) => p[x]));
  const lines = curves.map((curve) => ({
    id: curve.id, kind: curve.kind, number: numbers.get(curve.id), single: x === "bits" && Boolean(curve.only_bits || curve.by_bits),
    at: grid(x, ends).map((value) => ({ x: value, ...(predictAlong(curve, at, x, value, y) || { value: null }) })),
  }));
  const hues = hueOf(found, byId("colour").value);
  const dots = found.map((p) => ({
    x: p[x], y: p[y], low: y === "delta" ? p.low : null, high: y === "delta" ? p.high : null,
    hue: hues.get(p[byId("colour").value]), use: p.use === "fitted" ? "fitted" : p.use === "held out" ? "unseen" : "short", row: p,
  }));
  const domain = verticalDomain(lines, dots, log);
  const spec = {
    x: { ...AXES[x], domain: ends }, lines, dots, mark: at[x],
    y: { label: `${y} (nats per token)`, log, domain, format: (v) => short(v, 2) },
  };
  const svg = byId("chart");
  state.chart = drawChart(svg, spec, svg.parentElement.clientWidth, svg.parentElement.clientWidth < 500 ? 300 : 420);
  state.cursor = -1;
  const hidden = dots.length - state.chart.length;
  const which = byId("near").checked ? nearWords(x, N, D, at) : "all settings";
  byId("points-note").textContent = `${state.chart.length} points (${which})`
    + (hidden ? `; ${hidden} at or below zero have no place on a logarithmic axis` : "");
  svg.setAttribute("aria-label", `${y} against ${AXES[x].label}: ${curves.length} laws and ${state.chart.length} points. `
    + "Left and right arrows go through the points, Enter takes a point's settings.");
  legend(hues);
  readings(curves, numbers, at, y);
  if (byId("tables").open) tables(curves, lines, x, y);
}

function nearWords(x, N, D, at) {
  const parts = [];
  if (N !== null) parts.push(`N ${count(N)}`);
  if (D !== null) parts.push(`D ${count(D)}`);
  if (x !== "bits") parts.push(`${at.bits} bits`);
  return `those at ${parts.join(", ")}`;
}

// A law that takes E and M says nothing against bits: the same width has several layouts.
function predictAlong(curve, at, x, value, y) {
  if (x === "bits" && at.E !== null && ["E", "e"].some((name) => Object.values(curve.reads).includes(name))) return null;
  const there = { ...at, [x]: value };
  return predict(curve, { ...there, e: errorOf(DATA.errors, there) }, y);
}

function endsOf(x, value, seen) {
  if (x === "bits") return [1, 16];
  const low = Math.min(value, ...seen);
  const high = Math.max(value, ...seen);
  const room = x === "G" ? 1.15 : 1.4;
  return [Math.max(low / room, AXES[x].ends[0] / 2), high * room];
}

function grid(x, [low, high]) {
  if (x === "bits") return d3.range(1, 17);
  return d3.range(STEPS + 1).map((k) => low * (high / low) ** (k / STEPS));
}

// All points and values; bands may leave the frame, far laws may not flatten it.
function verticalDomain(lines, dots, log) {
  const values = [...lines.flatMap((line) => line.at.map((p) => p.value)), ...dots.map((p) => p.y)]
    .filter((v) => v !== null && Number.isFinite(v) && (!log || v > 1e-7));
  if (!values.length) return log ? [0.01, 1] : [0, 1];
  const low = d3.min(values);
  const high = d3.max(values);
  if (log) return [Math.max(low, high * 1e-7) / 1.3, high * 1.3];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}

function hueOf(found, name) {
  const levels = [...new Set(found.map((p) => p[name]))].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
  return new Map(levels.map((level, k) => [level, k]));
}

function legend(hues) {
  byId("legend").replaceChildren(...[...hues].map(([level, hue]) => element("li", {}, symbolOf(hue), ` ${level}`)));
}

// ---- readings

const interval = (found, digits) => (found && found.low !== undefined ? `[${short(found.low, digits)}, ${short(found.high, digits)}]` : "");

function readings(curves, numbers, at, y) {
  const rows = curves.map((curve, k) => {
    const cells = ["delta", "loss"].map((what) => [what, predict(curve, at, what)]);
    const why = cells.every(([, found]) => found === null) ? lacking(curve, at) : "";
    const range = curve.kind === "published" ? "published" : [away(curve, at) || "inside", curve.warning].filter(Boolean).join("; ");
    return element("tr", { id: `r-${curve.id}` },
      element("td", { className: "number" }, element("span", { className: `number hue${k % COLOURS}` }, String(numbers.get(curve.id)))),
      element("th", { scope: "row" }, curve.label, element("br"), element("small", {}, curve.kind === "published" ? "published" : "fitted to our runs")),
      ...cells.map(([what, found]) => element("td", { className: "number", "data-what": what },
        element("span", { className: "value" }, found === null ? "–" : short(found.value, 4)), " ", element("small", {}, interval(found, 4)))),
      element("td", {}, why || range));
  });
  byId("readings-body").replaceChildren(...rows);
  byId("commands").textContent = curves.map((curve) => commandOf(curve, at)).filter(Boolean).join("\n") || "No law of our own runs is shown.";
  clearTimeout(state.speaking);
  state.speaking = setTimeout(() => { byId("readout").textContent = spoken(curves, at, y); }, 300);
}

function lacking(curve, at) {
  const widths = curve.only_bits || Object.keys(Object.values(curve.by_bits || {})[0] || {});
  if (widths.length && !widths.map(Number).includes(at.bits)) return `has constants for ${widths.join(", ")} bits only`;
  if (at.E === null && Object.values(curve.reads).includes("E")) return "needs a floating-point format";
  if (at.e === null && Object.values(curve.reads).includes("e")) return "knows formats of 2 to 8 bits";
  return "says nothing here";
}

function spoken(curves, at, y) {
  const said = curves.map((curve) => [curve, predict(curve, at, y)]).filter(([, found]) => found !== null)
    .map(([curve, found]) => `${curve.label}, ${curve.kind}: ${short(found.value, 3)}${found.low === undefined ? "" : `, ${short(found.low, 2)} to ${short(found.high, 2)}`}`);
  const format = at.E === null ? `${at.bits} bits` : `E${at.E}M${at.M}`;
  return `${y} at N ${count(at.N)}, D ${count(at.D)}, ${format}, group ${at.G}. ${said.join("; ") || "No law shown says it."}`;
}

// ---- the chart as tables

function cell(text) { return element("td", { className: "number" }, text); }

function tables(curves, lines, x, y) {
  const places = x === "bits" ? d3.range(0, 16) : d3.range(0, STEPS + 1, STEPS / 8);
  byId("curve-head").replaceChildren(element("th", { scope: "col" }, AXES[x].label),
    ...curves.map((curve) => element("th", { scope: "col" }, `${curve.label}, ${curve.kind}`)));
  byId("curve-body").replaceChildren(...(lines.length ? places : []).map((k) => {
    return element("tr", {}, element("th", { scope: "row" }, AXES[x].format(lines[0].at[k].x)),
      ...lines.map((line) => cell(`${short(line.at[k].value, 3)} ${interval(line.at[k].value === null ? null : line.at[k], 3)}`)));
  }));
  const shown = state.chart.slice(0, TABLE_ROWS);
  byId("points-caption").textContent = `Points of the chart in the order of the horizontal axis${state.chart.length > TABLE_ROWS ? `, the first ${TABLE_ROWS} of ${state.chart.length}` : ""}; ${y} in nats per token.`;
  byId("points-body").replaceChildren(...shown.map(({ row: p }) => element("tr", {},
    element("th", { scope: "row" }, p.what), cell(count(p.N)), cell(count(p.D)), element("td", {}, p.phase),
    cell(p.bits === null ? "–" : short(p.bits, 3)), element("td", {}, p.group), cell(short(p.delta, 3)), cell(short(p.loss, 4)), element("td", {}, p.use))));
}

// ---- pointing at points

function say(index) {
  const p = state.chart[index];
  const ring = d3.select("#chart .ring");
  state.cursor = p ? index : -1;
  byId("take").disabled = !p;
  if (!p) { ring.attr("visibility", "hidden"); return; }
  ring.attr("visibility", "visible").attr("transform", `translate(${p.px},${p.py})`);
  const row = p.row;
  const delta = row.delta === null ? "" : `, delta ${short(row.delta, 3)} [${short(row.low, 3)}, ${short(row.high, 3)}]`;
  byId("pointed").textContent = `${row.kind}: ${row.what}; size ${row.size}, N ${count(row.N)}, D ${count(row.D)}, ${row.phase}, seed ${row.seed}`
    + `${delta}, loss ${short(row.loss, 4)}; ${row.use}`;
}

function pointing() {
  const svg = byId("chart");
  const near = (event) => {
    const [px, py] = d3.pointer(event, svg.querySelector("g"));
    let best = -1;
    let least = 24 ** 2;
    state.chart.forEach((p, k) => {
      const away2 = (p.px - px) ** 2 + (p.py - py) ** 2;
      if (away2 < least) { least = away2; best = k; }
    });
    return best;
  };
  svg.addEventListener("pointermove", (event) => { const k = near(event); if (k >= 0 && k !== state.cursor) say(k); });
  svg.addEventListener("click", (event) => { const k = near(event); if (k >= 0) { say(k); take(); } });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step && state.chart.length) say((Math.max(state.cursor, step < 0 ? 0 : -1) + step + state.chart.length) % state.chart.length);
    else if (event.key === "Enter") take();
    else if (event.key === "Escape") say(-1);
    else return;
    event.preventDefault();
  });
  byId("take").addEventListener("click", take);
}

// The sliders at a point's own settings, exactly.
function take() {
  const row = state.chart[state.cursor]?.row;
  if (!row) return;
  state.exact = { N: row.N, D: row.D, ...(row.G === null ? {} : { G: row.G }) };
  byId("s-N").value = Math.log10(row.N);
  byId("s-D").value = Math.log10(row.D);
  if (row.G !== null) byId("s-G").value = Math.log2(row.G);
  if (row.E !== null) {
    byId("number-kind").value = "float";
    byId("s-E").value = row.E;
    byId("s-M").value = row.M;
  } else if (row.bits !== null) {
    byId("number-kind").value = "int";
    byId("s-bits").value = Math.round(row.bits);
  }
  draw();
  say(state.chart.findIndex((p) => p.row === row));
}

// ---- start

function start() {
  theme();
  document.documentElement.classList.add("scripted");
  verdicts();
  if (!byId("chart")) return;
  filterOptions();
  showItsPoints();
  for (const name of ["N", "D", "bits", "G", "E", "M"]) {
    byId(`s-${name}`).addEventListener("input", () => { delete state.exact[name]; draw(); });
  }
  const rest = ["x", "y", "log", "near", "colour", "number-kind", ...FILTERS.map((name) => `f-${name}`)].map(byId);
  [...rest, ...lawBoxes()].forEach((control) => control.addEventListener("change", draw));
  byId("tables").addEventListener("toggle", draw);
  pointing();
  let width = 0;
  new ResizeObserver(() => {
    const now = byId("chart").parentElement.clientWidth;
    if (now !== width) { width = now; draw(); }
  }).observe(byId("chart").parentElement);
  draw();
}

start();
