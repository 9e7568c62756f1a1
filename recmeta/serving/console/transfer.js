// Transfer between surfaces and onboarding curves as pictures. It must never compute a figure of its own.

import { get } from "/console/api.js";
import { curvePanel, curveTable, fitted, heatMap, isSure, legend, METHODS } from "/console/drawings.js";
import { el, figure, fill, signed, table, whole } from "/console/elements.js";

export async function show(panel) {
  const evidence = await get("/v1/evidence");
  const nothing = !Object.keys(evidence.contexts ?? {}).length && !Object.keys(evidence.audit ?? {}).length;
  fill(panel,
    el("h2", {}, "What surfaces know of each other"),
    ...(nothing
      ? [el("p", { class: "box" }, "The bundle in force holds no evidence about transfer: `transfer.enabled` was off, or no surface had data of its own.")]
      : [audit(evidence), curves(evidence), verdict(evidence)].filter(Boolean)));
}

// Which surface helps which ------------------------------------------------------------------------

function audit(evidence) {
  const cells = evidence.audit ?? {};
  const sources = Object.keys(cells).sort();
  if (!sources.length) return el("p", { class: "box" }, "Nothing was audited: it takes two surfaces with data.");
  const targets = [...new Set([...sources, ...sources.flatMap((source) => Object.keys(cells[source]))])].sort();
  const all = sources.flatMap((source) => targets.map((target) => cells[source][target]).filter(Boolean));
  const [helped, hurt] = [all.filter((cell) => isSure(cell) && cell.value > 0).length, all.filter((cell) => isSure(cell) && cell.value < 0).length];
  const told = (cell) => (cell ? `${signed(cell.value)} [${signed(cell.low)}, ${signed(cell.high)}]${isSure(cell) ? " *" : ""}` : "–");
  return el("section", {},
    el("h3", {}, "Which surface helps which"),
    el("p", {}, `Read a row: what learning from that surface does to the AUC of the one in the column. `,
      el("span", { class: "key helps" }, "blue helps"), " ", el("span", { class: "key hurts" }, "orange is in the way"),
      `. A frame and * mark where the 95 % interval excludes zero: ${helped} help, ${hurt} hurt, of ${all.length}.`),
    el("div", { class: "scrolls heat", tabindex: "0", role: "region", "aria-label": "Heat map of transfer" },
      fitted((width) => heatMap(cells, sources, targets, width), { most: 720 })),
    el("details", {}, el("summary", {}, "The same as a table"),
      table("Effect of the row's surface on the column's AUC, with its 95 % interval; * excludes 0", ["source", ...targets],
        sources.map((source) => [source, ...targets.map((target) => told(cells[source][target]))]),
        { numeric: targets.map((_, column) => column + 1) })),
    sentences(evidence));
}

function sentences(evidence) {
  const lines = [...(evidence.negative ?? []), ...(evidence.untried ?? [])].map((line) => `${line}.`);
  for (const [target, remedy] of Object.entries(evidence.remedies ?? {})) {
    lines.push(`${target} without ${remedy.left_out.join(" and ")}: AUC ${figure(remedy.auc_before)} to ${figure(remedy.auc_after)} (gain ${signed(remedy.low)} to ${signed(remedy.high)}): ${remedy.helped ? "helped" : "did not surely help"}.`);
  }
  for (const pair of evidence.related ?? []) {
    lines.push(`Labels of ${pair.a} and ${pair.b} go together (correlation ${figure(pair.correlation, 2)})${pair.correlation >= 0.5 ? "; declare one family for both." : "."}`);
  }
  return lines.length ? el("ul", {}, lines.map((line) => el("li", {}, line))) : null;
}

// Curves -------------------------------------------------------------------------------------------

function curves(evidence) {
  const names = Object.keys(evidence.contexts ?? {});
  if (!names.length) return el("p", { class: "box" }, "No surface could be held out: too few surfaces, or too few later positives.");
  const methods = Object.keys(METHODS).filter((method) => names.some((name) => evidence.contexts[name].curve[method]));
  const place = el("div", {});
  const choose = (chosen) => {
    const keep = place.contains(document.activeElement);
    fill(place, legend(methods, chosen, choose),
      el("div", { class: "panels" }, names.map((name) => curveOf(evidence.contexts[name], name, chosen))));
    if (keep) place.querySelector("[aria-pressed=true]").focus();
  };
  choose("ours");
  return el("section", {},
    el("h3", {}, "How good a new surface would be"),
    el("p", {}, "Each known surface in turn is treated as if it were new and given so many positives; AUC on later data that nobody saw. The shaded band is the 95 % interval of the method that is pressed; the dotted line at .50 is chance. Every panel has its own scale."),
    place);
}

function curveOf(context, name, banded) {
  const evenAt = context.break_even;
  return el("figure", {},
    el("figcaption", {}, el("strong", {}, name), ` ${!Number.isFinite(evenAt)
      ? "no model from scratch became as good, with all that there is"
      : `a model from scratch is as good from ${whole(evenAt)} positives on`}`),
    fitted((width) => curvePanel(context.curve, name, width, { banded }), { most: 460 }),
    el("details", {}, el("summary", {}, "The same as a table"), curveTable(context.curve, name, context.rungs)));
}

// Verdict ------------------------------------------------------------------------------------------

function verdict(evidence) {
  const found = Object.entries(evidence.verdict ?? {});
  if (!found.length) return null;
  return el("section", {},
    el("h3", {}, "Which way of learning is best, at one budget"),
    el("dl", { class: "verdict" }, found.map(([name, context]) => [el("dt", {}, name), el("dd", {}, context.line)])));
}
