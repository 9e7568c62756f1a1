// What the whole page shares: tabs, the state of the server, the key. It must never draw what a tab shows.

import { ApiError, advice, get, key, setKey, takeKeyFromAddress } from "/console/api.js";
import { ago, el, fill, instant, say } from "/console/elements.js";
import * as night from "/console/night.js";
import * as onboard from "/console/onboard.js";
import * as operations from "/console/operations.js";
import * as person from "/console/person.js";
import * as surfaces from "/console/surfaces.js";
import * as transfer from "/console/transfer.js";

const PARTS = { surfaces, try: person, transfer, onboard, night, api: operations };
const LOOKED_AT = new Set(["surfaces", "transfer", "night"]); // drawn anew when another bundle serves
const LOOK_EVERY = 5_000; // milliseconds between two looks at the server's health

const tabs = [...document.querySelectorAll("[role=tab]")];
let shown = null;
let serving = null; // the bundle that was in force at the last look; null: the server was gone
let drawing = 0;

// Tabs ---------------------------------------------------------------------------------------------

function select(name, { focus = false } = {}) {
  for (const tab of tabs) {
    const chosen = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.getAttribute("aria-controls")).hidden = !chosen;
    if (!chosen) continue;
    if (focus) tab.focus();
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
    document.title = `recmeta: ${tab.textContent}`;
  }
  if (shown === name) return;
  shown = name;
  history.replaceState(null, "", `#tab=${name}`); // not an id: a browser would begin to tab from there
  draw();
}

/** Draw the tab that is shown; where it fails, say why, and how to go on. */
async function draw() {
  const [name, turn] = [shown, ++drawing];
  const panel = document.getElementById(name);
  panel.setAttribute("aria-busy", "true");
  try {
    await PARTS[name].show(panel);
  } catch (error) {
    if (turn !== drawing) return;
    if (!(error instanceof ApiError)) throw error;
    fill(panel, el("div", { class: "box loud", role: "alert" },
      el("p", {}, advice(error)),
      el("button", { type: "button", on: { click: draw } }, "Try again")));
  } finally {
    panel.removeAttribute("aria-busy");
  }
}

function onTabKey(event) {
  const at = tabs.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tabs.length - 1 }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  select(tabs[(to + tabs.length) % tabs.length].getAttribute("aria-controls"), { focus: true });
}

// The server's state -------------------------------------------------------------------------------

async function look() {
  const [line, place] = [document.getElementById("serving"), document.getElementById("state")];
  let found = null;
  let fault = null;
  try {
    found = await get("/health/ready");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    fault = error;
  }
  const wasGone = serving === null;
  const changed = Boolean(serving) && Boolean(found) && serving !== found.bundle;
  serving = found?.bundle ?? null;
  line.textContent = found ? `${found.bundle} · data until ${instant(found.until)}, ${ago(found.until)} ago` : "";
  const told = fault
    ? [fault.status === 0 ? "No answer from the server." : "Nothing serves.",
      fault.status === 0 ? "What you see is what it said last; this page looks again every few seconds." : fault.message]
    : found.status === "ok" ? null : ["Degraded.", found.reason ?? "The server does not say why."];
  const text = told?.join(" ") ?? "";
  if (place.textContent !== text) {
    fill(place, told && [el("strong", {}, told[0]), ` ${told[1]}`]);
    place.className = fault ? "bad" : told ? "degraded" : "";
    if (!told && !wasGone) say("The server is well again.");
  }
  const panel = document.getElementById(shown);
  if (wasGone ? found && !panel.querySelector("form") : changed && LOOKED_AT.has(shown)) draw(); // no half-filled form is lost
}

async function keepLooking() {
  await look();
  setTimeout(keepLooking, LOOK_EVERY);
}

// The key ------------------------------------------------------------------------------------------

const keyDialog = document.getElementById("key-dialog");

function askForKey(why) {
  document.getElementById("key-why").textContent = why;
  if (!keyDialog.open) keyDialog.showModal();
  document.getElementById("key-field").focus();
}

document.addEventListener("key-refused", ({ detail }) => {
  askForKey(key() ? `The server refused the key: ${detail.message}` : "This server answers only to who has a key.");
});
document.getElementById("change-key").addEventListener("click", () => askForKey("With the admin key this page can also push events, onboard and promote."));
document.getElementById("key-cancel").addEventListener("click", () => keyDialog.close());
document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const field = document.getElementById("key-field");
  setKey(field.value);
  field.value = "";
  keyDialog.close();
  draw();
});

// Start --------------------------------------------------------------------------------------------

function fromAddress() {
  takeKeyFromAddress();
  const named = new URLSearchParams(location.hash.slice(1)).get("tab");
  const known = Object.hasOwn(PARTS, named);
  if (known || !shown) select(known ? named : "surfaces");
}

for (const tab of tabs) tab.addEventListener("click", () => select(tab.getAttribute("aria-controls")));
document.querySelector("[role=tablist]").addEventListener("keydown", onTabKey);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment names the tab
  document.getElementById("main").focus();
});
addEventListener("hashchange", fromAddress);
document.addEventListener("champion-changed", look);
serving = ""; // not gone: not looked at yet
fromAddress();
keepLooking();
