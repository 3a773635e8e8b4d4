"use strict";
// The chart: curves with bands and points, as SVG by d3. It draws what it is given and knows no law.

const COLOURS = 8;
const SYMBOLS = d3.symbolsFill;
const MANY = 12; // lines, whose numbers may take two columns
const DIGIT = 7.5; // pixels of a character at 12
const TICK = 10;
const TITLE = 22;
const LINE = 15; // between numbers of lines
const COLUMN = 20;

// `spec`: {x, y: {label, log, format}, lines: [{id, name, kind, at: [{x, value, low, high}]}], dots: [{x, y, low, high,
// hue, use, row}], mark: x of the sliders}. Returns the dots that are drawn, in the order of the arrow keys.
function drawChart(svg, spec, width, height) {
  const margin = { top: 12, right: spec.lines.length > MANY ? 44 : 30, bottom: 44 };
  const tall = height - margin.top - margin.bottom;
  const y = scale(spec.y, [tall, 0]);
  const ys = ticksOf(spec.y, y, 6);
  // Room for the longest label of the vertical axis and, left of it, the title.
  margin.left = TITLE + TICK + Math.max(...ys.map((v) => spec.y.format(v).length), 3) * DIGIT;
  const inner = { width: Math.max(120, width - margin.left - margin.right), height: tall };
  const x = scale(spec.x, [0, inner.width]);
  const root = d3.select(svg);
  root.attr("viewBox", `0 0 ${width} ${height}`).attr("height", height).attr("width", width);
  root.selectAll("*").remove();
  root.append("clipPath").attr("id", "frame").append("rect")
    .attr("x", -6).attr("y", -6).attr("width", inner.width + 12).attr("height", inner.height + 12);
  const plot = root.append("g").attr("transform", `translate(${margin.left},${margin.top})`);
  axes(plot, spec, x, y, inner, ys, margin.left);
  const inside = plot.append("g").attr("clip-path", "url(#frame)");
  if (spec.mark !== null) {
    inside.append("line").attr("class", "mark").attr("x1", x(spec.mark)).attr("x2", x(spec.mark))
      .attr("y1", 0).attr("y2", inner.height);
  }
  const dots = drawDots(inside, spec, x, y);
  const ends = spec.lines.map((line, k) => drawLine(inside, line, k, x, y, inner)).filter(Boolean);
  numberLines(plot, ends, inner);
  return dots;
}

function scale(axis, range) {
  return (axis.log ? d3.scaleLog() : d3.scaleLinear()).domain(axis.domain).range(range).clamp(false);
}

// At most about `n` ticks, powers of ten where two of them are in sight.
function ticksOf(axis, scaled, n) {
  const all = scaled.ticks(n);
  if (!axis.log) return all;
  const most = all.filter((v) => Math.abs(Math.log10(v) % 1) < 1e-9 || Math.abs(Math.log10(v) % 1) > 1 - 1e-9);
  const some = most.length >= 2 ? most : all;
  return some.filter((_, k) => k % Math.ceil(some.length / n) === 0);
}

function axes(plot, spec, x, y, inner, ys, left) {
  const xs = ticksOf(spec.x, x, Math.max(2, Math.floor(inner.width / 90)));
  plot.append("g").attr("class", "grid").selectAll("line").data(ys).join("line")
    .attr("x1", 0).attr("x2", inner.width).attr("y1", (v) => y(v)).attr("y2", (v) => y(v));
  plot.append("g").attr("class", "axis").attr("transform", `translate(0,${inner.height})`)
    .call(d3.axisBottom(x).tickValues(xs).tickFormat(spec.x.format).tickSizeOuter(0));
  plot.append("g").attr("class", "axis").call(d3.axisLeft(y).tickValues(ys).tickFormat(spec.y.format).tickSizeOuter(0));
  plot.append("text").attr("class", "title").attr("x", inner.width / 2).attr("y", inner.height + 38)
    .attr("text-anchor", "middle").text(spec.x.label);
  plot.append("text").attr("class", "title").attr("transform", "rotate(-90)").attr("x", -inner.height / 2)
    .attr("y", 14 - left).attr("text-anchor", "middle").text(spec.y.label);
}

// Returns where the line leaves the frame, with its number; undefined where none of it is inside.
function drawLine(inside, line, k, x, y, inner) {
  const group = inside.append("g").attr("class", `curve hue${k % COLOURS} ${line.kind}`).attr("data-law", line.id);
  const known = (p) => p.value !== null && Number.isFinite(y(p.value));
  const banded = (p) => known(p) && p.low !== undefined && Number.isFinite(y(p.low)) && Number.isFinite(y(p.high));
  const area = d3.area().defined(banded).x((p) => x(p.x)).y0((p) => y(p.low)).y1((p) => y(p.high));
  group.append("path").attr("class", "band").attr("d", area(line.at));
  group.append("path").attr("class", "line").attr("d", d3.line().defined(known).x((p) => x(p.x)).y((p) => y(p.value))(line.at));
  const seen = line.at.filter(known);
  // A law with constants for single bit widths is a row of marks against bits.
  if (line.single) {
    group.selectAll("circle").data(seen).join("circle").attr("r", 4).attr("cx", (p) => x(p.x)).attr("cy", (p) => y(p.value));
  }
  const ends = seen.filter((p) => x(p.x) <= inner.width + 1 && y(p.value) >= 0 && y(p.value) <= inner.height);
  const end = ends[ends.length - 1];
  return end && { hue: k % COLOURS, number: line.number, x: Math.min(x(end.x), inner.width) + 5, y: y(end.value) + 4 };
}

// Numbers at the ends of lines, each at the nearest free height, or a column further where there is none.
function numberLines(plot, ends, inner) {
  const placed = [];
  const free = (at) => placed.every((other) => Math.abs(other.x - at.x) >= COLUMN || Math.abs(other.y - at.y) >= LINE);
  for (const end of ends.sort((a, b) => a.y - b.y)) {
    const places = [0, 1].flatMap((column) => d3.range(0, inner.height, 2).flatMap((far) => [far, -far])
      .map((far) => ({ x: end.x + column * COLUMN, y: end.y + far })));
    const at = places.find((place) => place.y > 4 && place.y <= inner.height + 2 && free(place)) || end;
    placed.push(at);
    plot.append("text").attr("class", `number hue${end.hue}`).attr("x", at.x).attr("y", at.y).text(end.number);
  }
}

function drawDots(inside, spec, x, y) {
  const dots = spec.dots.filter((p) => Number.isFinite(y(p.y)));
  dots.sort((a, b) => a.x - b.x || a.y - b.y);
  const at = (p) => `translate(${x(p.x)},${y(p.y)})`;
  const ends = dots.filter((p) => p.low !== null && (!spec.y.log || p.low > 0));
  inside.append("g").attr("class", "whiskers").selectAll("line").data(ends).join("line")
    .attr("class", (p) => `dot${p.hue % COLOURS}`)
    .attr("x1", (p) => x(p.x)).attr("x2", (p) => x(p.x)).attr("y1", (p) => y(p.low)).attr("y2", (p) => y(p.high));
  inside.append("g").attr("class", "dots").selectAll("path").data(dots).join("path")
    .attr("class", (p) => `dot${p.hue % COLOURS} ${p.use}`).attr("transform", at)
    .attr("d", (p) => d3.symbol(SYMBOLS[p.hue % SYMBOLS.length], 46)());
  inside.append("circle").attr("class", "ring").attr("r", 9).attr("visibility", "hidden");
  return dots.map((p) => ({ ...p, px: x(p.x), py: y(p.y) }));
}

// A small picture of a symbol for a legend.
function symbolOf(hue) {
  const svg = d3.create("svg").attr("viewBox", "-7 -7 14 14").attr("width", 14).attr("height", 14)
    .attr("aria-hidden", "true").attr("class", `dots key`);
  svg.append("path").attr("class", `dot${hue % COLOURS} fitted`).attr("d", d3.symbol(SYMBOLS[hue % SYMBOLS.length], 46)());
  return svg.node();
}
