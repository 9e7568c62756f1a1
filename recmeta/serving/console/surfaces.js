// What serves each surface and why, and which bundle is in force. It must never change anything.

import { get } from "/console/api.js";
import { intervalMark } from "/console/drawings.js";
import { ago, el, figure, fill, instant, plural } from "/console/elements.js";

export const WORDS = {
  shared: "the one user model that all surfaces share",
  adapter: "the shared model with this surface's own small adapter",
  trees: "gradient-boosted trees on the same features",
  blend: "the shared model and trees, weighed",
  stack: "what other surfaces know, weighed for this one: a surface that was onboarded",
  popularity: "what most people engage with here, the same for everybody",
  nothing: "nothing passed the gates; requests are answered by popularity, and say so",
};

const OLD = 48; // hours after which a bundle's age is marked: a night was missed

export async function show(panel) {
  const [found, ready] = await Promise.all([get("/v1/contexts"), get("/health/ready")]);
  fill(panel,
    el("h2", {}, "Surfaces and their health"),
    summary(found, ready),
    surfaceTable(found.contexts),
    el("details", {}, el("summary", {}, "What the words mean"),
      el("dl", { class: "words" }, Object.entries(WORDS).map(([word, text]) => [el("dt", {}, badge(word)), el("dd", {}, text)]))));
}

/** What serves, as a word in a shape of its own. */
export function badge(serves) {
  return el("span", { class: `badge b-${serves in WORDS ? serves : "nothing"}` }, serves);
}

function summary(found, ready) {
  const counts = new Map();
  for (const { serves } of found.contexts) counts.set(serves, (counts.get(serves) ?? 0) + 1);
  const old = (Date.now() - Date.parse(found.until)) / 3_600_000 > OLD;
  return el("dl", { class: "facts" },
    fact("State", el("span", { class: ready.status === "ok" ? "good" : "bad-word" }, ready.status === "ok" ? "● all well" : `▲ ${ready.status}`)),
    fact("Bundle in force", el("code", {}, found.bundle)),
    fact("Its data end", el("span", {}, instant(found.until), el("span", { class: old ? "aged" : "fine" }, ` ${old ? "▲ " : ""}${ago(found.until)} ago`))),
    fact("Surfaces", el("span", {}, `${found.contexts.length}: `, [...counts].map(([serves, count]) => `${count} ${serves}`).join(", "))));
}

function fact(name, value) {
  return el("div", {}, el("dt", {}, name), el("dd", {}, value));
}

function surfaceTable(contexts) {
  const heads = ["Surface", "Serves", "AUC on later data", "Why"];
  const label = (number, ...content) => el("td", { "data-head": heads[number] }, ...content);
  return el("table", { class: "stacks" },
    el("caption", { class: "for-readers" }, "Surfaces, what serves each, how good it is and why"),
    el("thead", {}, el("tr", {}, heads.map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, contexts.map((context) => el("tr", {},
      el("th", { scope: "row" }, context.name, context.description ? el("span", { class: "fine" }, context.description) : null),
      label(1, badge(context.serves), onboarded(context)),
      label(2, quality(context.metrics)),
      label(3, context.reason || "–")))));
}

function onboarded({ rung, positives }) {
  if (!rung) return null;
  const told = Number.isFinite(positives) ? `, ${plural(positives, "positive")}` : "";
  return el("span", { class: "fine" }, `rung: ${rung.replace("_", "-")}${told}`);
}

function quality(metrics) {
  const auc = metrics?.auc;
  if (!Number.isFinite(auc?.value)) return el("span", { class: "fine" }, "not measured yet");
  const interval = Number.isFinite(auc.low) ? ` [${figure(auc.low)}, ${figure(auc.high)}]` : "";
  return el("span", { class: "quality" }, intervalMark(auc), el("span", {}, el("strong", {}, figure(auc.value)), interval));
}
