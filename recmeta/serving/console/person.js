// Try a user: what they read, what every surface would show them now, why, and what one more click changes.
// It must never score or order anything itself; it only compares two answers.

import { ApiError, advice, get, post } from "/console/api.js";
import { effectBars, shareBar } from "/console/drawings.js";
import { el, figure, fill, instant, plural, say } from "/console/elements.js";
import { badge } from "/console/surfaces.js";

const SHOWN = 10; // items of each list
const AT_ONCE = 6; // surfaces shown before anybody chose: requests grow with them
const LIVE = 300_000; // milliseconds: an answer as of an instant further from the clock is of a log that ended

const VERBS = { reading: "Reads it", commenting: "Comments", liking: "Likes it", saving: "Saves it", bookmarking: "Bookmarks", feed: "Clicks it" };

let user = "";
let chosen = null; // names of surfaces, a set
let answers = new Map(); // surface -> its last answer
let turn = 0;

export async function show(panel) {
  const { contexts } = await get("/v1/contexts");
  const names = contexts.map((context) => context.name);
  chosen = new Set([...(chosen ?? names.slice(0, AT_ONCE))].filter((name) => names.includes(name)));
  const field = el("input", { id: "user-id", name: "user", required: true, maxlength: 256, autocomplete: "off", spellcheck: "false", value: user });
  const form = el("form", { class: "inline", on: { submit: (event) => { event.preventDefault(); choose(field.value, names); } } },
    el("label", { for: "user-id" }, "User id"), field,
    el("button", { type: "submit", class: "primary" }, "Show"),
    el("button", { type: "button", on: { click: () => { field.value = `newcomer-${uuid().slice(0, 6)}`; choose(field.value, names); } } }, "Somebody new"));
  const picks = el("fieldset", { class: "picks" }, el("legend", {}, "Surfaces"), names.map((name) => {
    const box = el("input", { type: "checkbox", on: { change: () => { box.checked ? chosen.add(name) : chosen.delete(name); if (user) refresh(names); } } });
    box.checked = chosen.has(name);
    return el("label", {}, box, ` ${name}`);
  }));
  fill(panel,
    el("h2", {}, "Try a user"),
    el("p", {}, "Anybody, known or not: what they did lately, and what each surface would show them now. One click tells the server that they engaged; nothing is trained, and the lists change before your eyes."),
    form, names.length > 1 ? picks : "",
    el("div", { id: "person-fault", role: "alert" }),
    el("section", { id: "history" }), el("div", { id: "lists", class: "lists" }));
  if (user) await refresh(names);
}

async function choose(id, names) {
  user = id;
  answers = new Map();
  await refresh(names);
}

/** Ask anew for everything about the user; `event` is what was just told, of which changes are marked. */
async function refresh(names, event = null) {
  const mine = ++turn;
  const asked = names.filter((name) => chosen.has(name));
  const fault = document.getElementById("person-fault");
  try {
    const [told, ...found] = await Promise.all([
      get("/v1/users", { user_id: user }),
      ...asked.map((context) => post("/v1/recommend", { context, user_id: user, n: SHOWN })),
    ]);
    if (mine !== turn) return;
    fill(fault);
    const before = event ? answers : new Map();
    answers = new Map(asked.map((name, number) => [name, found[number]]));
    drawHistory(told.history ?? []);
    drawLists(before, names);
    if (event) announce(before, event);
    else say(`${plural(asked.length, "list")} for ${user}`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (mine === turn) fill(fault, el("p", { class: "box loud" }, advice(error)));
  }
}

function drawHistory(history) {
  fill(document.getElementById("history"),
    el("h3", {}, "What they did lately"),
    history.length
      ? el("ol", { class: "chips", "aria-label": "Latest first" }, history.slice(0, 20).map((one) =>
        el("li", {}, el("code", {}, one.item_id), one.categories?.length ? ` ${one.categories.join(", ")}` : "")))
      : el("p", { class: "fine" }, "Nothing that is known: a newcomer, ranked by what is known of the items."));
}

// Lists --------------------------------------------------------------------------------------------

function drawLists(before, names) {
  const place = document.getElementById("lists");
  const stood = new Map([...place.querySelectorAll("[data-moves]")].map((item) => [item.dataset.moves, item.getBoundingClientRect().top]));
  fill(place, ...[...answers].map(([context, answer]) => list(context, answer, before.get(context), names)));
  if (!before.size || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const item of place.querySelectorAll("[data-moves]")) {
    const from = stood.get(item.dataset.moves);
    const moved = from === undefined ? null : from - item.getBoundingClientRect().top;
    if (moved === null) item.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 350 });
    else if (moved) item.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], { duration: 350, easing: "ease-out" });
  }
}

function list(context, answer, before, names) {
  const title = `list-${context}`;
  const ranks = before && new Map(before.items.map((item) => [item.item_id, item.rank]));
  const gone = before ? before.items.filter((item) => !answer.items.some((one) => one.item_id === item.item_id)) : [];
  return el("section", { class: "list", "aria-labelledby": title, "data-context": context },
    el("h3", { id: title, tabindex: "-1" }, context, " ", badge(answer.serves)),
    tally(answer, before),
    el("p", { class: "fine" }, answer.reason),
    (answer.notes ?? []).map((note) => el("p", { class: answer.degraded ? "fine aged" : "fine" }, note)),
    answer.items.length
      ? el("ol", { class: "ranking" }, answer.items.map((item) => entry(context, item, ranks, names)))
      : el("p", { class: "box" }, "Nothing is left to show them here."),
    gone.length ? el("p", { class: "fine gone" }, "No longer here: ", gone.map((item) => item.item_id).join(", ")) : null);
}

/** How many of each category are among the items, and how many more or fewer than before. */
function tally(answer, before) {
  const counted = (found) => {
    const counts = new Map();
    for (const item of found?.items ?? []) for (const category of item.categories ?? []) counts.set(category, (counts.get(category) ?? 0) + 1);
    return counts;
  };
  const [now, then] = [counted(answer), counted(before)];
  const shown = [...now].sort(([, one], [, other]) => other - one).slice(0, 4);
  if (!shown.length) return null;
  return el("p", { class: "tally" }, shown.map(([category, count]) => {
    const more = before ? count - (then.get(category) ?? 0) : 0;
    return el("span", { class: more ? "chip changed" : "chip" }, `${category} ${count}`, more ? ` (${more > 0 ? "+" : "−"}${Math.abs(more)})` : "");
  }));
}

function entry(context, item, ranks, names) {
  const verb = VERBS[context] ?? "Engages";
  return el("li", { "data-moves": `${context} ${item.item_id}`, "data-item": item.item_id },
    el("span", { class: "rank" }, item.rank),
    el("span", { class: "item" }, item.item_id, " ", movement(item, ranks)),
    el("button", { type: "button", class: "small deed", "aria-label": `${verb}: ${item.item_id}, on ${context}`, on: { click: (event) => engage(event.currentTarget, context, item, names) } }, verb),
    el("span", { class: "fine told" }, told(item)),
    el("span", { class: "score" }, shareBar(item.score), figure(item.score)),
    el("button", { type: "button", class: "small quiet why", "aria-label": `Why ${item.item_id} on ${context}`, on: { click: () => explain(context, item) } }, "Why?"));
}

/** Categories and the reason; a reason often begins with the category, which is then not said twice. */
function told({ categories = [], reason = "" }) {
  const named = categories.join(", ");
  return reason.startsWith(categories[0] ?? "") && reason ? reason : [named, reason].filter(Boolean).join(" · ");
}

function movement(item, ranks) {
  if (!ranks) return null;
  const before = ranks.get(item.item_id);
  if (before === undefined) return el("span", { class: "moved new" }, "new");
  if (before === item.rank) return null;
  const up = before > item.rank;
  return el("span", { class: `moved ${up ? "up" : "down"}` },
    el("span", { "aria-hidden": "true" }, `${up ? "▲" : "▼"}${Math.abs(before - item.rank)}`),
    el("span", { class: "for-readers" }, `${up ? "up" : "down"} ${Math.abs(before - item.rank)}`));
}

function announce(before, event) {
  const told = [...answers].map(([context, answer]) => {
    const ranks = new Map((before.get(context)?.items ?? []).map((item) => [item.item_id, item.rank]));
    const changed = answer.items.filter((item) => ranks.get(item.item_id) !== item.rank).length;
    return `${context}: ${changed} of ${answer.items.length} changed`;
  });
  say(`${event.user_id} engaged with ${event.item_id} on ${event.context}. ${told.join("; ")}.`);
}

// Events -------------------------------------------------------------------------------------------

function uuid() {
  // Not crypto.randomUUID, which browsers give to pages over TLS and on localhost only.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** The instant of a click: now; where the log ended long ago, just after what the answer knew. */
function instantOf(context) {
  const asOf = Date.parse(answers.get(context).as_of);
  return new Date(Math.abs(Date.now() - asOf) < LIVE ? Date.now() : asOf + 1000).toISOString();
}

async function engage(button, context, item, names) {
  const event = { event_id: uuid(), user_id: user, item_id: item.item_id, context, event_timestamp: instantOf(context), label: 1 };
  for (const other of document.querySelectorAll(".deed")) other.disabled = true;
  button.closest("li").querySelector(".loud")?.remove();
  const send = async () => {
    await post("/v1/events", { events: [event] });
    await refresh(names, event);
    document.getElementById(`list-${context}`)?.focus({ preventScroll: true });
  };
  try {
    await send();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    for (const other of document.querySelectorAll(".deed")) other.disabled = false;
    button.focus({ preventScroll: true });
    button.closest("li").append(el("p", { class: "box loud told", role: "alert" }, `The click was not taken. ${advice(error)}`));
  }
}

// Why ----------------------------------------------------------------------------------------------

async function explain(context, item) {
  const body = el("div", {}, el("p", {}, "Asking…"));
  const dialog = el("dialog", { class: "wide", "aria-labelledby": "why-title", on: { close: () => dialog.remove() } },
    el("h2", { id: "why-title" }, "Why ", el("code", {}, item.item_id), ` on ${context}?`), body,
    el("div", { class: "actions" }, el("button", { type: "button", class: "primary", on: { click: () => dialog.close() } }, "Close")));
  document.body.append(dialog);
  dialog.showModal();
  try {
    const found = await post("/v1/explain", { context, user_id: user, item_id: item.item_id });
    const [moving, still] = [found.parts.filter(moves), found.parts.filter((part) => !moves(part))];
    const beside = found.shared_score !== null && found.shared_score !== undefined;
    fill(body,
      el("dl", { class: "beside" },
        el("div", {}, el("dt", {}, `what serves (${answers.get(context)?.serves ?? context})`), el("dd", {}, shareBar(found.score), el("strong", {}, figure(found.score)))),
        beside ? el("div", {}, el("dt", {}, "the shared model alone"), el("dd", {}, shareBar(found.shared_score, "plain"), figure(found.shared_score))) : null),
      beside ? el("p", { class: "fine" }, difference(found)) : el("p", { class: "fine" }, "Here nothing but the shared model serves, or nothing can stand beside it."),
      el("h3", {}, "What moved it"),
      moving.length ? effectBars(moving) : el("p", {}, "Nothing of its own: the score is the same for everybody."),
      still.length ? el("p", { class: "fine" }, "Without effect: ", still.map((part) => part.text || part.name).join("; "), ".") : null,
      el("p", { class: "fine" }, "Effects are in logits: to the right raises the score, to the left lowers it."),
      (found.notes ?? []).map((note) => el("p", { class: "fine" }, note)),
      el("p", { class: "fine" }, `Bundle ${found.bundle}${found.as_of ? `, as of ${instant(found.as_of)}` : ""}.`));
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    fill(body, el("p", { class: "box loud", role: "alert" }, advice(error)));
  }
}

function moves(part) {
  return Math.abs(part.effect) >= 0.005; // what would not be +.00
}

function difference({ score, shared_score: shared }) {
  const gap = score - shared;
  if (Math.abs(gap) < 0.0005) return "Both say the same of this item.";
  return `What this surface has of its own makes the item ${gap > 0 ? "more" : "less"} likely by ${Math.abs(gap).toFixed(3)}.`;
}
