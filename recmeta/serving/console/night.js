// The night's report, in a frame where no script runs. It must never let the report's markup into this page.
//
// The report brings its style with it, which this page's policy rightly refuses inline. So its style sheet is
// handed to the frame as one that script made, and its style attributes as properties: the policy stays.

import { ApiError, getText } from "/console/api.js";
import { el, fill } from "/console/elements.js";

export async function show(panel) {
  let text;
  try {
    text = await getText("/v1/report");
  } catch (error) {
    if (!(error instanceof ApiError) || error.status !== 404) throw error;
    fill(panel, el("h2", {}, "The night’s report"), el("p", { class: "box" }, "No night has written a report here yet; `recmeta nightly` does, and `recmeta report` does it again."));
    return;
  }
  const frame = el("iframe", { sandbox: "allow-same-origin", title: "The night’s report", class: "report", srcdoc: "<!doctype html><title>report</title>" });
  frame.addEventListener("load", () => lay(text, frame.contentDocument, "about:srcdoc"), { once: true });
  fill(panel,
    el("div", { class: "heading" }, el("h2", {}, "The night’s report"),
      el("div", { class: "actions" },
        el("button", { type: "button", class: "small", on: { click: () => openAlone(text) } }, "Open it in a tab"),
        el("a", { class: "button small", download: "night.html", href: URL.createObjectURL(new Blob([text], { type: "text/html" })) }, "Save it as a file"))),
    frame);
}

function openAlone(text) {
  const opened = open("about:blank"); // an empty page has this page's policy: no script of the report runs in it
  if (opened) lay(text, opened.document, "about:blank");
}

function lay(text, target, address) {
  // Before anything is parsed: the policy would refuse, and report, a style even in a document that is not shown.
  const sheets = [];
  const plain = text
    .replaceAll(/<style[^>]*>([^]*?)<\/style>/g, (_, rules) => { sheets.push(rules); return ""; })
    .replaceAll(/(<[^>]*?\s)style="/g, '$1data-style="');
  const report = new DOMParser().parseFromString(plain, "text/html");
  for (const left of report.querySelectorAll("script, meta, link, base, iframe, object, embed")) left.remove();
  for (const link of report.querySelectorAll("a[href^='#']")) link.setAttribute("href", address + link.getAttribute("href"));
  target.documentElement.lang = report.documentElement.lang || "en";
  target.title = report.title;
  target.adoptedStyleSheets = sheets.map((rules) => {
    const sheet = new target.defaultView.CSSStyleSheet();
    sheet.replaceSync(rules);
    return sheet;
  });
  target.body.replaceWith(target.adoptNode(report.body));
  for (const element of target.querySelectorAll("[data-style]")) element.style.cssText = element.dataset.style;
}
