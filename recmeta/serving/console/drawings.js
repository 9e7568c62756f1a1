// Pictures as SVG: heat map, onboarding curves, intervals, what moved a score. They are given figures and a
// width in pixels; they must never ask the server, or decide what is worth saying.

import { el, figure, fill, signed, svg, table, whole } from "/console/elements.js";

/** Draw what `make(width)` gives into a box, and again whenever the box becomes wider or narrower. */
export function fitted(make, { least = 240, most = 900 } = {}) {
  const box = el("div", { class: "drawing" });
  let drawn = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(Math.min(most, Math.max(least, entry.contentRect.width)));
    if (!entry.contentRect.width || width === drawn) return;
    drawn = width;
    fill(box, make(width));
  }).observe(box);
  return box;
}

function picture(width, height, label, ...parts) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, ...parts);
}

function text(x, y, content, attributes = {}) {
  return svg("text", { x, y, ...attributes }, content);
}

function shortened(name, letters) {
  return name.length > letters ? `${name.slice(0, Math.max(1, letters - 1))}…` : name;
}

// Heat map -----------------------------------------------------------------------------------------

/** Whether the 95 % interval of a cell excludes zero. */
export function isSure(cell) {
  return cell.low > 0 || cell.high < 0;
}

/** Sources in rows, targets in columns; `cells[source][target]` is {value, low, high}. */
export function heatMap(cells, sources, targets, width) {
  const letter = 7.8; // pixels, of the widest of the fonts
  const left = Math.min(width < 480 ? 90 : 150, 14 + letter * Math.max(...sources.map((name) => name.length)));
  const size = Math.max(40, Math.min(128, (width - left - 8) / targets.length));
  const slanted = size < 12 + letter * Math.max(...targets.map((name) => name.length));
  const [tall, top] = [Math.min(44, size), slanted ? 100 : 24];
  const [across, down] = [left + size * targets.length + 8, top + tall * sources.length + 4];
  const largest = Math.max(0.005, ...sources.flatMap((source) => targets.map((target) => Math.abs(cells[source]?.[target]?.value ?? 0))));
  const parts = targets.map((target, column) => {
    const [x, y] = [left + size * (column + 0.5), top - 8];
    const turned = slanted ? { transform: `rotate(-65 ${x} ${y})`, "text-anchor": "start" } : { "text-anchor": "middle" };
    return text(slanted ? x + 4 : x, y, shortened(target, 13), turned);
  });
  sources.forEach((source, row) => {
    parts.push(text(left - 8, top + tall * (row + 0.5) + 4, shortened(source, Math.floor((left - 10) / letter)), { "text-anchor": "end" }));
    targets.forEach((target, column) => parts.push(...heatCell(cells[source]?.[target], largest, source === target, {
      x: left + size * column + 1, y: top + tall * row + 1, width: size - 2, height: tall - 2,
    })));
  });
  return picture(Math.max(across, 200), down, "What each surface, in a row, does to the AUC of another, in a column", ...parts);
}

function heatCell(cell, largest, own, box) {
  const rect = svg("rect", { ...box, rx: 3, class: own ? "own" : cell ? "cell" : "own" });
  if (!cell) return [rect];
  const share = Math.min(1, Math.abs(cell.value) / largest);
  rect.style.fill = `color-mix(in oklab, var(--${cell.value < 0 ? "hurts" : "helps"}) ${Math.round(100 * share)}%, var(--level))`;
  const sure = isSure(cell);
  if (sure) rect.classList.add("sure");
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2 + 4];
  const strong = share > 0.8 ? " strong" : "";
  return [rect, text(x, y, `${signed(cell.value)}${sure ? "*" : ""}`, { "text-anchor": "middle", class: `value${strong}${sure ? " bold" : ""}${box.width < 52 ? " tick" : ""}` })];
}

// Curves -------------------------------------------------------------------------------------------

/** The methods of an onboarding curve in the order of the legend: its name, and the shape of its marks. */
export const METHODS = {
  ours: ["recmeta", "circle"],
  zero_shot: ["zero-shot", "none"],
  joint_fine_tune: ["joint + fine-tune", "diamond"],
  lightgbm: ["LightGBM", "square"],
  logistic: ["logistic", "triangle"],
  popularity: ["popularity", "cross"],
};

/** [{count, positives, auc, low?, high?}] by positives, of a method of the evidence's `curve`. */
export function pointsOf(found) {
  return Object.entries(found ?? {})
    .map(([count, point]) => ({ count, positives: point.positives ?? Number(count), auc: point.auc, low: point.low, high: point.high }))
    .filter((point) => Number.isFinite(point.positives) && Number.isFinite(point.auc))
    .sort((one, other) => one.positives - other.positives);
}

/** One panel: AUC by positives on a scale that is logarithmic from a few on, so that 0 has a place. */
export function curvePanel(curve, title, width, { banded = "ours" } = {}) {
  const lines = Object.keys(METHODS).map((method) => [method, pointsOf(curve[method])]).filter(([, points]) => points.length);
  const frame = frameOf(lines.map(([, points]) => points), width, 230);
  const parts = [...frame.parts];
  const band = lines.find(([method]) => method === banded)?.[1].filter((point) => Number.isFinite(point.low) && Number.isFinite(point.high)) ?? [];
  if (band.length > 1) parts.push(bandOf(band, frame, banded));
  for (const [method, points] of lines.toReversed()) {
    const places = points.map((point) => [frame.x(point.positives), frame.y(point.auc)]);
    parts.push(svg("path", { d: pathOf(places), class: `line m-${method}` }));
    for (const [x, y] of places) parts.push(mark(METHODS[method][1], x, y, method));
  }
  return picture(width, 230, `${title}: AUC by the number of positives that the surface was given`, ...parts);
}

/** What to expect of a surface with `positives`: other surfaces' curves, where it stands, where it is nearly there. */
export function forecastPicture(curves, mean, positives, forecast, width) {
  const [others, middle] = [curves.map(pointsOf), pointsOf(mean)];
  const frame = frameOf([...others, middle], width, 240, [positives, forecast?.needed, forecast?.high]);
  const parts = [...frame.parts];
  if (Number.isFinite(forecast?.low) && Number.isFinite(forecast?.high)) {
    const [from, to] = [frame.x(forecast.low), frame.x(forecast.high)];
    parts.push(svg("rect", { x: from, y: frame.top, width: Math.max(2, to - from), height: frame.bottom - frame.top, class: "needed" }));
  }
  for (const points of others) parts.push(svg("path", { d: pathOf(points.map((point) => [frame.x(point.positives), frame.y(point.auc)])), class: "line other" }));
  if (middle.length) parts.push(svg("path", { d: pathOf(middle.map((point) => [frame.x(point.positives), frame.y(point.auc)])), class: "line m-ours" }));
  const x = frame.x(positives);
  const right = x > width * 0.6;
  parts.push(svg("line", { x1: x, x2: x, y1: frame.top, y2: frame.bottom, class: "here" }),
    text(x + (right ? -5 : 5), frame.top + 10, `here: ${whole(positives)}`, { class: "bold", "text-anchor": right ? "end" : "start" }));
  return picture(width, 240, `Curves of held-out surfaces; the new one has ${positives} positives`, ...parts);
}

function frameOf(lines, width, height, alsoAt = []) {
  const [left, right, top, bottom] = [40, width - 14, 12, height - 36];
  const points = lines.flat();
  const values = points.flatMap((point) => [point.auc, point.low, point.high]).filter(Number.isFinite);
  const [least, most] = [Math.floor(Math.min(0.5, ...values) * 20) / 20, Math.ceil(Math.max(0.55, ...values) * 20) / 20];
  const furthest = Math.max(1, ...points.map((point) => point.positives), ...alsoAt.filter(Number.isFinite));
  const x = (count) => left + ((right - left) * Math.log1p(count)) / Math.log1p(furthest);
  const y = (value) => bottom - ((bottom - top) * (value - least)) / (most - least);
  const step = most - least > 0.42 ? 0.2 : most - least > 0.21 ? 0.1 : 0.05;
  const parts = [];
  for (let value = Math.ceil(least / step - 1e-9) * step; value <= most + 1e-9; value += step) {
    parts.push(svg("line", { x1: left, x2: right, y1: y(value), y2: y(value), class: Math.abs(value - 0.5) < 1e-9 ? "chance" : "grid" }),
      text(left - 5, y(value) + 4, value.toFixed(2).replace(/^0/, ""), { "text-anchor": "end", class: "tick" }));
  }
  const counts = [...new Map(points.map((point) => [point.positives, point.count])).entries()].sort(([one], [other]) => other - one);
  let free = width + 5;
  for (const [positives, count] of counts) { // from the right: the last one says how many there are in all
    const [label, at] = [count === "all" ? `all ${whole(Math.round(positives))}` : count, x(positives)];
    const wide = label.length * 6.4;
    const from = count === "all" ? Math.min(at - wide / 2, width - wide) : at - wide / 2;
    if (from + wide > free - 5) continue;
    free = from;
    parts.push(text(from, bottom + 16, label, { class: "tick" }), svg("line", { x1: at, x2: at, y1: bottom, y2: bottom + 4, class: "axis" }));
  }
  parts.push(svg("line", { x1: left, x2: right, y1: bottom, y2: bottom, class: "axis" }),
    text((left + right) / 2, height - 5, "positives it was given", { "text-anchor": "middle", class: "tick" }));
  return { x, y, top, bottom, parts };
}

function pathOf(places) {
  return places.map(([x, y], number) => `${number ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function bandOf(points, frame, method) {
  const edge = (side) => points.map((point) => [frame.x(point.positives), frame.y(point[side])]);
  return svg("path", { d: `${pathOf(edge("high"))}${pathOf(edge("low").reverse()).replace("M", "L")}Z`, class: `band m-${method}` });
}

function mark(shape, x, y, method) {
  const at = { class: `mark m-${method}` };
  if (shape === "circle") return svg("circle", { cx: x, cy: y, r: 3.6, ...at });
  if (shape === "square") return svg("rect", { x: x - 3, y: y - 3, width: 6, height: 6, ...at });
  if (shape === "diamond") return svg("path", { d: `M${x} ${y - 4.4}l4.4 4.4l-4.4 4.4l-4.4 -4.4Z`, ...at });
  if (shape === "triangle") return svg("path", { d: `M${x} ${y - 4}l4 7h-8Z`, ...at });
  if (shape === "cross") return svg("path", { d: `M${x - 3} ${y - 3}l6 6m0 -6l-6 6`, class: `stroke m-${method}` });
  return svg("g", {});
}

/** The legend; each entry can be pressed, and then its interval is drawn. */
export function legend(methods, chosen, choose) {
  return el("div", { class: "legend", role: "group", "aria-label": "Methods; press one to see its interval" }, methods.map((method) => {
    const [name, shape] = METHODS[method];
    const line = svg("svg", { width: 30, height: 14, viewBox: "0 0 30 14", "aria-hidden": "true" },
      svg("path", { d: "M1 7H29", class: `line m-${method}` }), mark(shape, 15, 7, method));
    return el("button", { type: "button", "aria-pressed": String(method === chosen), "data-method": method, on: { click: () => choose(method) } }, line, name);
  }));
}

/** The same figures as a table. */
export function curveTable(curve, title, rungs = {}) {
  const methods = Object.keys(METHODS).filter((method) => curve[method] && Object.keys(curve[method]).length);
  const counts = [...new Map(methods.flatMap((method) => pointsOf(curve[method])).map((point) => [point.positives, point.count])).entries()].sort(([one], [other]) => one - other);
  const told = (point) => (point === undefined ? "–" : Number.isFinite(point.low) ? `${figure(point.auc)} [${figure(point.low)}, ${figure(point.high)}]` : figure(point.auc));
  const rows = counts.map(([positives, count]) => [
    count === "all" ? `all (${whole(Math.round(positives))})` : count,
    ...methods.map((method) => told(pointsOf(curve[method]).find((point) => point.count === count))),
    ...(Object.keys(rungs).length ? [(rungs[count] ?? "–").replace("_", "-")] : []),
  ]);
  const heads = ["positives", ...methods.map((method) => METHODS[method][0]), ...(Object.keys(rungs).length ? ["rung"] : [])];
  return table(`${title}: AUC [95 % interval]`, heads, rows, { numeric: methods.map((_, column) => column + 1) });
}

// Small ones ---------------------------------------------------------------------------------------

/** A value with its interval on a common scale of AUC from 0.4 to 1; a tick at 0.5, which is chance. */
export function intervalMark({ value, low, high }, width = 132) {
  const x = (auc) => 4 + ((width - 8) * (Math.min(1, Math.max(0.4, auc)) - 0.4)) / 0.6;
  return svg("svg", { viewBox: `0 0 ${width} 16`, width, height: 16, "aria-hidden": "true", class: "interval" },
    svg("line", { x1: 4, x2: width - 4, y1: 8, y2: 8, class: "grid" }),
    svg("line", { x1: x(0.5), x2: x(0.5), y1: 3, y2: 13, class: "chance" }),
    Number.isFinite(low) && Number.isFinite(high) ? svg("line", { x1: x(low), x2: x(high), y1: 8, y2: 8, class: "whisker" }) : null,
    svg("circle", { cx: x(value), cy: 8, r: 4, class: "mark m-ours" }));
}

/** What moved a score: bars to the left (less) and right (more) of zero, each with its words and number. */
export function effectBars(parts) {
  const largest = Math.max(1e-9, ...parts.map((part) => Math.abs(part.effect)));
  return el("ul", { class: "effects" }, parts.map((part) => {
    const bar = el("span", { class: part.effect < 0 ? "bar less" : "bar more" });
    bar.style.width = `${(50 * Math.abs(part.effect)) / largest}%`;
    return el("li", {},
      el("span", { class: "effect-name" }, part.text || part.name),
      el("span", { class: "effect-track", "aria-hidden": "true" }, bar),
      el("span", { class: "number" }, signed(part.effect, 2)));
  }));
}

/** A share of 1 as a bar with its number. */
export function shareBar(value, kind = "") {
  const fill = el("span", { class: `fill ${kind}` });
  fill.style.width = `${100 * Math.min(1, Math.max(0, value))}%`;
  return el("span", { class: "share", "aria-hidden": "true" }, fill);
}
