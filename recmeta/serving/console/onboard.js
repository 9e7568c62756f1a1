// Bring up a surface: a file, a job, what was learnt; then promote it, or go back. It must never decide by
// itself that something serves: a person says so twice.

import { ApiError, advice, get, post, sendFile } from "/console/api.js";
import { fitted, forecastPicture } from "/console/drawings.js";
import { ago, confirmed, el, figure, fill, instant, plural, say, whole } from "/console/elements.js";

const KINDS = { csv: "text/csv", jsonl: "application/x-ndjson", ndjson: "application/x-ndjson", parquet: "application/vnd.apache.parquet" };
const ASK_EVERY = 1_000; // milliseconds between two questions how a job goes
const JOB = "recmeta-job"; // in the tab's storage: a reload of the page goes on waiting

let watching = 0;

export async function show(panel) {
  const names = await namesThatServe();
  fill(panel,
    el("h2", {}, "Onboard a new surface"),
    el("p", {}, "A handful of its interactions is enough: it is served from what the other surfaces know, and changes nothing of theirs. It serves only when you say so. ", el("strong", {}, "Needs the admin key.")),
    el("div", { class: "columns" }, form(names), el("section", { id: "onboarded", "aria-label": "What came of it" })),
    el("section", { id: "bundles" }));
  await drawBundles();
  const waiting = JSON.parse(sessionStorage.getItem(JOB) ?? "null");
  if (waiting) follow(waiting);
}

/** None where nothing serves: that is when somebody needs to roll back. */
async function namesThatServe() {
  try {
    return (await get("/v1/contexts")).contexts.map((context) => context.name);
  } catch (error) {
    if (error instanceof ApiError && error.status === 503) return [];
    throw error;
  }
}

function form(names) {
  let file = null;
  const told = el("span", { id: "chosen-file", class: "fine" }, "CSV, JSONL or Parquet: user_id, item_id, event_timestamp, and label where known");
  const take = (given) => {
    if (!given) return;
    file = given;
    told.textContent = `${given.name}, ${whole(Math.ceil(given.size / 1024))} KiB`;
    const stem = given.name.replace(/\..*$/, "").toLowerCase().replace(/^first[-_]/, "").replace(/[^a-z0-9_]+/g, "_").replace(/^[^a-z]+/, "").slice(0, 63);
    if (!name.value) name.value = stem;
  };
  const chooser = el("input", { type: "file", id: "file", accept: ".csv,.jsonl,.ndjson,.parquet", "aria-describedby": "chosen-file", on: { change: () => take(chooser.files[0]) } });
  const drop = el("div", { class: "drop", on: {
    dragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    dragleave: () => drop.classList.remove("over"),
    drop: (event) => { event.preventDefault(); drop.classList.remove("over"); take(event.dataTransfer.files[0]); },
  } }, el("label", { for: "file" }, "Drop its first interactions here, or choose the file"), chooser, told);
  const name = el("input", { id: "surface-name", required: true, pattern: "[a-z][a-z0-9_]{0,62}", title: "small letters, digits and _, a letter first", autocomplete: "off", spellcheck: "false" });
  const exposure = el("select", { id: "exposure" }, el("option", { value: "" }, "nowhere in particular"), names.map((one) => el("option", { value: one }, one)));
  const within = el("input", { id: "within", placeholder: "1d", size: "6", autocomplete: "off" });
  const fault = el("div", { role: "alert" });
  const learn = el("button", { type: "submit", class: "primary" }, "Learn it");
  return el("form", { class: "card", on: { submit: async (event) => {
    event.preventDefault();
    fill(fault);
    if (!file) return fill(fault, el("p", { class: "box loud" }, "Choose the file of its first interactions."));
    const type = KINDS[file.name.split(".").pop().toLowerCase()];
    if (!type) return fill(fault, el("p", { class: "box loud" }, `${file.name}: expected a file that ends in .csv, .jsonl, .ndjson or .parquet.`));
    const query = { context: name.value, ...(exposure.value && { exposure: exposure.value }), ...(within.value.trim() && { within: within.value.trim() }) };
    learn.disabled = true;
    try {
      const { job } = await sendFile("/v1/onboard", query, file, type);
      const waiting = { job, name: name.value, since: Date.now() };
      sessionStorage.setItem(JOB, JSON.stringify(waiting));
      follow(waiting);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      fill(fault, el("p", { class: "box loud" }, advice(error)));
    } finally {
      learn.disabled = false;
    }
  } } },
  drop,
  el("label", { for: "surface-name" }, "Name of the surface"), name,
  el("label", { for: "exposure" }, "People meet its items on"), exposure,
  el("label", { for: "within" }, "An engagement counts within", el("span", { class: "fine" }, " (12h, 3d; with the surface above)")), within,
  el("div", { class: "actions" }, learn), fault);
}

// The job ------------------------------------------------------------------------------------------

async function follow(waiting) {
  const mine = ++watching;
  const place = document.getElementById("onboarded");
  const seconds = el("span", {});
  fill(place, el("div", { class: "card" }, el("p", {}, `Learning ${waiting.name} … `, seconds), el("progress", { "aria-label": `Learning ${waiting.name}` })));
  say(`Learning ${waiting.name}`);
  while (mine === watching && place.isConnected) {
    seconds.textContent = `${Math.round((Date.now() - waiting.since) / 1000)} s`;
    let found;
    try {
      found = await get(`/v1/jobs/${encodeURIComponent(waiting.job)}`);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 0) {
        if (error.status === 404) sessionStorage.removeItem(JOB);
        fill(place, el("p", { class: "box loud", role: "alert" }, advice(error)));
        return;
      }
    }
    if (found && found.state !== "running" && mine === watching) {
      if (found.state === "failed") {
        sessionStorage.removeItem(JOB);
        fill(place, el("p", { class: "box loud", role: "alert" }, `${waiting.name} was not learnt, and nothing changed: ${found.error?.message ?? found.error ?? "no reason was given"}`));
      } else {
        await drawBundles();
        await learnt(place, found.report);
      }
      return;
    }
    await new Promise((done) => setTimeout(done, ASK_EVERY));
  }
}

async function learnt(place, report) {
  const [evidence, { champion }] = await Promise.all([get("/v1/evidence"), get("/v1/bundles")]);
  const serves = champion === report.version;
  const own = report.own_rows ?? {};
  const forecast = report.forecast ?? {};
  const facts = [
    ["Rung", (report.rung ?? "–").replace("_", "-")],
    ["Learnt from", `${plural(report.positives, "positive")} in ${plural(report.rows, "row")}`],
    ["Known to the log", `${whole(report.known_users)} of ${plural(report.users, "user")}, ${whole(report.known_items)} of ${plural(report.items, "item")}`],
    ["To expect", report.expected_auc === null || report.expected_auc === undefined ? "no surface could be held out yet" : `AUC ${figure(report.expected_auc)}, as held-out surfaces had (${report.proven_on.join(", ")})`],
    own.auc === null || own.auc === undefined ? null : ["On its own rows", `AUC ${figure(own.auc)} [${figure(own.low)}, ${figure(own.high)}], each user left out in turn`],
    forecast.needed === null || forecast.needed === undefined ? null : ["Nearly as good as it gets", `from ${whole(forecast.needed)} positives [${whole(forecast.low)} to ${whole(forecast.high)}]: ${whole(forecast.more)} more`],
  ].filter(Boolean);
  const curves = Object.values(evidence.contexts ?? {});
  const fault = el("div", { role: "alert" });
  const promote = el("button", { type: "button", class: "primary", on: { click: () => change(fault, {
    title: `Let ${report.context} serve?`,
    text: `Bundle ${report.version} replaces ${champion}. Only ${report.context} is new in it; you can go back below.`,
    yes: "Let it serve", path: "/v1/promote", body: { version: report.version, expected_champion: report.parent ?? champion },
  }) } }, `Let ${report.context} serve`);
  fill(place, el("div", { class: "card" },
    el("h3", { tabindex: "-1" }, `${report.context}: ${serves ? "serves now" : "learnt, not serving yet"}`),
    el("p", {}, report.reason),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    curves.length ? el("figure", {},
      el("figcaption", {}, "What held-out surfaces (thin) and their mean (thick) had with as many positives; shaded: where such surfaces are nearly as good as they get."),
      fitted((width) => forecastPicture(curves.map((context) => context.curve.ours), meanOf(evidence), report.positives, forecast, width), { most: 520 })) : null,
    el("h4", {}, "Gates"),
    el("ul", { class: "gates" }, (report.gates ?? []).map((gate) => el("li", { class: gate.passed ? "passed" : "refused" },
      el("strong", {}, `${gate.passed ? "✓" : "✗"} ${gate.name.replaceAll("_", " ")}`), ` ${gate.reason}`))),
    (report.warnings ?? []).map((warning) => el("p", { class: "box" }, warning)),
    el("div", { class: "actions" }, serves ? null : promote, el("button", { type: "button", on: { click: () => { sessionStorage.removeItem(JOB); fill(place); } } }, "Put it away")),
    fault));
  place.querySelector("h3").focus({ preventScroll: true });
  say(`${report.context} was learnt: ${report.reason}`);
}

/** The evidence's mean of our method; "all" stands at the mean number of positives that there were. */
function meanOf(evidence) {
  const every = Object.values(evidence.contexts).map((context) => context.curve.ours?.all?.positives).filter(Number.isFinite);
  const all = every.reduce((sum, count) => sum + count, 0) / Math.max(1, every.length);
  return Object.fromEntries(Object.entries(evidence.mean?.ours ?? {}).map(([count, auc]) => [count, { auc, positives: count === "all" ? all : Number(count) }]));
}

// What serves --------------------------------------------------------------------------------------

async function drawBundles() {
  const { champion, bundles } = await get("/v1/bundles");
  const fault = el("div", { role: "alert" });
  const rows = bundles.map((bundle) => {
    const serves = bundle.version === champion;
    const promoted = bundle.promoted?.toSorted().at(-1);
    const body = promoted ? { to: bundle.version } : { version: bundle.version, expected_champion: champion };
    const act = el("button", { type: "button", class: "small", on: { click: () => change(fault, {
      title: promoted ? "Go back?" : "Let it serve?", text: `${bundle.version} replaces ${champion} on every surface, at once.`,
      yes: promoted ? "Roll back" : "Let it serve", path: promoted ? "/v1/rollback" : "/v1/promote", body,
    }) } }, promoted ? "Roll back to it" : "Let it serve");
    const surfaces = Object.entries(bundle.serves ?? {}).map(([name, what]) => `${name}: ${what}`).join(", ");
    return el("tr", { class: serves ? "champion" : null },
      el("th", { scope: "row" }, el("code", {}, bundle.version)),
      el("td", { "data-head": "Data until" }, bundle.until ? `${instant(bundle.until)}, ${ago(bundle.until)} ago` : "–"),
      el("td", { "data-head": "Promoted" }, promoted ? instant(promoted) : "never"),
      el("td", { "data-head": "Surfaces" }, bundle.problem ? el("span", { class: "bad-word" }, `▲ ${bundle.problem}`) : surfaces),
      el("td", { "data-head": "" }, serves ? el("strong", { class: "good" }, "● serves now") : bundle.problem ? null : act));
  });
  fill(document.getElementById("bundles"),
    el("h3", {}, "Bundles: promote and roll back"), fault,
    rows.length ? el("table", { class: "stacks" },
      el("caption", { class: "for-readers" }, "Published bundles, the newest night first"),
      el("thead", {}, el("tr", {}, ["Bundle", "Data until", "Promoted", "Surfaces", ""].map((head) => el("th", { scope: "col" }, head || el("span", { class: "for-readers" }, "What can be done"))))),
      el("tbody", {}, rows)) : el("p", { class: "box" }, "No bundle was published yet; `recmeta nightly` makes one."));
}

async function change(fault, { title, text, yes, path, body }) {
  fill(fault);
  if (!(await confirmed(title, text, yes))) return;
  try {
    fill(fault, el("p", { class: "box" }, "Changing what serves …"));
    const { champion, before } = await post(path, body);
    document.dispatchEvent(new CustomEvent("champion-changed"));
    await show(document.getElementById("onboard"));
    say(`${champion} serves now; before it was ${before}.`);
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    fill(fault, el("p", { class: "box loud" }, `Nothing was changed. ${advice(error)}`));
  }
}
