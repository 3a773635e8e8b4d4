"use strict";
// What a law says at the sliders' settings, and the band of its draws. `LAWS` is made from the formulas (formula.py).

// A draw's constants by name.
function constantsOf(curve, draw) {
  return Object.fromEntries(curve.names.map((name, k) => [name, draw[k]]));
}

// Inputs of the law at settings {N, D, bits, G, E, M}; null where the law has no constants for them.
function inputsAt(curve, at) {
  if (curve.only_bits && !curve.only_bits.includes(at.bits)) return null;
  const x = {};
  for (const [input, source] of Object.entries(curve.reads)) {
    const value = typeof source === "number" ? source : at[source];
    if (value === null || value === undefined) return null;
    x[input] = value;
  }
  for (const names of Object.values(curve.by_bits || {})) if (!(at.bits in names)) return null;
  return x;
}

// The relative error of the settings' format at their group size, between powers of two by its logarithm; null where it
// is not known.
function errorOf(errors, at) {
  const row = errors[at.E === null ? `INT${at.bits}` : `E${at.E}M${at.M}`];
  const place = Math.log2(at.G);
  if (!row || place < 0 || place > row.length - 1) return null;
  const [below, above] = [row[Math.floor(place)], row[Math.ceil(place)]];
  const share = place - Math.floor(place);
  return below > 0 && above > 0 ? below * (above / below) ** share : below + (above - below) * share;
}

// Constants of the formula: those with a value for each bit width are looked up.
function chosen(curve, constants, at) {
  if (!curve.by_bits) return constants;
  const c = { ...constants };
  for (const [name, names] of Object.entries(curve.by_bits)) c[name] = constants[names[at.bits]];
  return c;
}

// A function of constants: delta or loss in nats per token, of the law itself or of the law less its unquantized value.
// null where the law says neither.
function evaluator(curve, at, what) {
  const x = inputsAt(curve, at);
  if (x === null) return null;
  const law = LAWS[curve.law];
  const of = (constants) => law(chosen(curve, constants, at), x);
  if (what === curve.target) return of;
  if (what === "loss" || !curve.base) return null;
  const plain = { ...x, ...curve.base };
  return (constants) => of(constants) - law({ ...chosen(curve, constants, at), ...curve.base }, plain);
}

// The q-quantile by linear interpolation between order statistics, as numpy's default.
function quantile(sorted, q) {
  const place = q * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  if (sorted[below] === sorted[above]) return sorted[below]; // both may be infinite
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

// {value, low, high}: the 95 % interval of the draws, absent where only values are published.
function predict(curve, at, what) {
  const says = evaluator(curve, at, what);
  const value = says === null ? NaN : says(curve.constants);
  if (Number.isNaN(value)) return null;
  if (!curve.draws || !curve.draws.length) return { value };
  if (!curve.named) curve.named = curve.draws.map((draw) => constantsOf(curve, draw));
  const all = Float64Array.from(curve.named, says).sort();
  return { value, low: quantile(all, 0.025), high: quantile(all, 0.975) };
}

// How far the settings lie outside the fitted range, in words; "" inside. Files keep six digits of its ends.
function away(curve, at) {
  const far = [];
  for (const [source, [low, high]] of Object.entries(curve.domain || {})) {
    const value = at[source];
    const name = source === "e" ? "the format's error" : source;
    if (value > high * 1.0001) far.push(`${name} ${short(value / high, 3)} times above`);
    else if (value < low * 0.9999) far.push(`${name} ${short(low / value, 3)} times below`);
  }
  return far.join(", ");
}

// The command that says the same; "" where the constants are published only.
function commandOf(curve, at) {
  if (!curve.command || inputsAt(curve, at) === null) return "";
  const words = [curve.command];
  for (const [input, source] of Object.entries(curve.reads)) {
    words.push(`--${input} ${typeof source === "number" ? source : at[source]}`);
  }
  if (curve.grouped) words.push(`--${curve.grouped} ${curve.groups[at.bits]}`);
  return words.join(" ");
}

// A number in so many significant digits, without trailing zeros and with an exponent only where it must.
function short(value, digits) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "-∞";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-4)) return value.toExponential(digits - 1);
  return String(Number(value.toPrecision(digits)));
}

// 106496 -> 106k, 33554432 -> 33.6M.
function count(value) {
  for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= size * 0.9995) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}
