// Elements of the page and numbers in words. Text only ever becomes a text node, so that no id or name can
// become markup. It must never know what recmeta is.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element; `on` holds listeners by event, other attributes are set as they stand; null is left out. */
export function el(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** An SVG element, likewise. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...wanted(children));
  return element;
}

/** Put children, texts or lists of them, into a place of the page instead of what was there. */
export function fill(place, ...children) {
  place.replaceChildren(...wanted(children));
}

function wanted(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

/** A table; where the screen is too narrow it scrolls in itself or, `stacked`, puts cells below each other. */
export function table(caption, heads, rows, { numeric = [], stacked = false } = {}) {
  const cell = (value, column) =>
    column === 0 ? el("th", { scope: "row" }, value) : el("td", { class: numeric.includes(column) ? "number" : null, "data-head": heads[column] }, value);
  const made = el("table", { class: stacked ? "stacks" : null },
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, heads.map((head, column) =>
      el("th", { scope: "col", class: numeric.includes(column) ? "number" : null }, head)))),
    el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))));
  return stacked ? made : el("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption }, made);
}

/** What a screen reader says now; nothing is seen. */
export function say(text) {
  const place = document.getElementById("said");
  place.textContent = "";
  setTimeout(() => { place.textContent = text; }, 50); // the same text twice is said twice
}

/** Ask for a second click in a dialog; true where it was given. */
export function confirmed(title, text, yes) {
  const { promise, resolve } = Promise.withResolvers();
  const dialog = el("dialog", { "aria-labelledby": "sure-title", on: { close: () => { dialog.remove(); resolve(dialog.returnValue === "yes"); } } },
    el("h2", { id: "sure-title" }, title),
    el("p", {}, text),
    el("div", { class: "actions" },
      el("button", { type: "button", class: "primary", on: { click: () => dialog.close("yes") } }, yes),
      el("button", { type: "button", on: { click: () => dialog.close("no") } }, "Leave it")));
  document.body.append(dialog);
  dialog.showModal();
  return promise;
}

/** "0.743" for a share or an AUC; a dash where there is none. */
export function figure(value, digits = 3) {
  return value === null || value === undefined ? "–" : Number(value).toFixed(digits);
}

/** "+.012": a difference of two such figures, with its sign. */
export function signed(value, digits = 3) {
  const told = Math.abs(value).toFixed(digits).replace(/^0/, "");
  return `${value < 0 ? "−" : "+"}${told}`;
}

export function whole(value) {
  return value === null || value === undefined ? "–" : Number(value).toLocaleString("en");
}

export function plural(count, one, many = `${one}s`) {
  return `${whole(count)} ${count === 1 ? one : many}`;
}

/** "2026-11-26 00:00 UTC" */
export function instant(value) {
  return value ? `${new Date(value).toISOString().slice(0, 16).replace("T", " ")} UTC` : "–";
}

/** How long ago, in the largest unit that is at least two. */
export function ago(value, now = Date.now()) {
  const hours = (now - Date.parse(value)) / 3_600_000;
  if (hours < 0) return "in the future";
  if (hours < 2) return plural(Math.round(hours * 60), "minute");
  return hours < 48 ? plural(Math.round(hours), "hour") : plural(Math.round(hours / 24), "day");
}
