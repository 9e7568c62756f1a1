// The API as its own description tells it, and a place to try what only reads. It must never know an operation
// that /openapi.json does not hold.

import { ApiError, advice, get, respond } from "/console/api.js";
import { el, figure, fill, table } from "/console/elements.js";

const READS = new Set(["/v1/rank", "/v1/recommend", "/v1/explain"]); // of POST: they change nothing

export async function show(panel) {
  const found = await get("/openapi.json");
  const operations = Object.entries(found.paths).flatMap(([path, methods]) =>
    Object.entries(methods).filter(([, operation]) => operation?.responses).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })));
  fill(panel,
    el("h2", {}, "The API"),
    el("p", {}, `${found.info.description ?? ""} ${operations.length} operations, as `, el("a", { href: "/openapi.json" }, "/openapi.json"), " tells them. A key goes into the header Authorization: Bearer KEY."),
    operations.map((one) => described(one, found)));
}

function described({ path, method, operation }, document_) {
  const body = bodyOf(operation, document_);
  const parameters = (operation.parameters ?? []).filter((parameter) => parameter.in !== "header");
  const reads = method === "GET" || READS.has(path);
  return el("details", { class: "operation" },
    el("summary", {}, el("span", { class: `method ${method.toLowerCase()}` }, method), " ", el("code", {}, path), " ", el("span", { class: "fine" }, operation.summary ?? "")),
    el("p", { class: "prose" }, [operation.description, operation.security?.length === 0 ? "Needs no key." : null].filter(Boolean).join(" ") || "Needs a key that may read."),
    parameters.length ? fields("Parameters", parameters.map((parameter) => [parameter.name, typeOf(parameter.schema, document_), parameter.required ? "yes" : "no", parameter.description ?? parameter.schema?.description ?? ""])) : null,
    body?.fields.length ? fields("Body", body.fields) : null,
    el("p", { class: "fine" }, "Answers: ", Object.entries(operation.responses).map(([status, response]) => `${status} ${resolved(response, document_).description ?? ""}`.trim()).join(" · ")),
    el("pre", { tabindex: "0", "aria-label": "With curl" }, curl(method, path, parameters, body)),
    reads ? attempt(method, path, parameters, body) : el("p", { class: "fine" }, "This one changes something: try it with curl."));
}

function fields(caption, rows) {
  return table(caption, ["field", "type", "needed", "what it is"], rows, { stacked: true });
}

// The description ----------------------------------------------------------------------------------

function resolved(schema, document_) {
  let found = schema ?? {};
  for (let depth = 0; found.$ref && depth < 8; depth++) found = found.$ref.slice(2).split("/").reduce((at, part) => at?.[part], document_) ?? {};
  return found;
}

function typeOf(schema, document_) {
  const found = resolved(schema, document_);
  if (found.enum) return found.enum.join(" | ");
  if (found.anyOf) return found.anyOf.map((one) => typeOf(one, document_)).join(" | ");
  if (found.type === "array") return `[${typeOf(found.items, document_)}]`;
  const shown = Array.isArray(found.type) ? found.type.join(" | ") : found.type ?? found.title ?? "any";
  return found.default === undefined || found.default === null ? shown : `${shown} = ${JSON.stringify(found.default)}`;
}

function bodyOf(operation, document_) {
  const content = resolved(operation.requestBody, document_).content;
  if (!content) return null;
  const [type, media] = Object.entries(content)[0];
  const schema = resolved(media.schema, document_);
  const given = media.example ?? Object.values(media.examples ?? {})[0]?.value ?? schema.example ?? schema.examples?.[0];
  const needed = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    [name, typeOf(property, document_), needed.has(name) ? "yes" : "no", property.description ?? resolved(property, document_).description ?? ""]);
  return { type, types: Object.keys(content), json: type.endsWith("json"), example: given ?? sample(schema, document_), fields: rows };
}

function sample(schema, document_, depth = 0) {
  const found = resolved(schema, document_);
  if (found.default !== undefined) return found.default;
  if (found.type === "object" && depth < 4) {
    const wanted = (found.required ?? []).filter((name) => found.properties?.[name]);
    return Object.fromEntries(wanted.map((name) => [name, sample(found.properties[name], document_, depth + 1)]));
  }
  if (found.type === "array") return [sample(found.items, document_, depth + 1)];
  return { string: "text", integer: 1, number: 1, boolean: true }[found.type] ?? null;
}

function exampleOf(parameter) {
  return parameter.example ?? Object.values(parameter.examples ?? {})[0]?.value ?? parameter.schema?.examples?.[0] ?? parameter.schema?.example ?? (parameter.required ? parameter.schema?.default ?? "" : "");
}

function curl(method, path, parameters, body) {
  const quoted = (text) => `'${String(text).replaceAll("'", String.raw`'\''`)}'`;
  const query = new URLSearchParams(parameters.filter((parameter) => parameter.in === "query" && exampleOf(parameter) !== "").map((parameter) => [parameter.name, exampleOf(parameter)])).toString();
  const filled = parameters.filter((parameter) => parameter.in === "path").reduce((at, parameter) => at.replace(`{${parameter.name}}`, encodeURIComponent(exampleOf(parameter) || parameter.name.toUpperCase())), path);
  const lines = [`curl ${method === "GET" ? "" : `-X ${method} `}${quoted(`${location.origin}${filled}${query ? `?${query}` : ""}`)}`, '  -H "Authorization: Bearer $KEY"'];
  if (body?.json) lines.push("  -H 'Content-Type: application/json'", `  -d ${quoted(JSON.stringify(body.example))}`);
  else if (body) lines.push(`  -H ${quoted(`Content-Type: ${body.type}`)}`, "  --data-binary @FILE");
  return lines.join(" \\\n");
}

// Trying it ----------------------------------------------------------------------------------------

let attempts = 0;

function attempt(method, path, parameters, body) {
  const number = ++attempts;
  const inputs = parameters.map((parameter) => [parameter, el("input", { id: `try-${number}-${parameter.name}`, value: exampleOf(parameter), required: parameter.required, autocomplete: "off", spellcheck: "false" })]);
  const text = body?.json ? el("textarea", { id: `try-${number}-body`, rows: "5", spellcheck: "false" }) : null;
  if (text) text.value = JSON.stringify(body.example, null, 2);
  const answer = el("div", { role: "status" });
  return el("form", { class: "attempt", on: { submit: async (event) => {
    event.preventDefault();
    const query = Object.fromEntries(inputs.filter(([parameter, input]) => parameter.in === "query" && input.value !== "").map(([parameter, input]) => [parameter.name, input.value]));
    const filled = inputs.filter(([parameter]) => parameter.in === "path").reduce((at, [parameter, input]) => at.replace(`{${parameter.name}}`, encodeURIComponent(input.value)), path);
    const started = performance.now();
    try {
      const response = await respond(method, filled, { query: Object.keys(query).length ? query : undefined, body: text?.value });
      const told = await response.text();
      fill(answer,
        el("p", { class: response.ok ? "good" : "bad-word" }, `${response.status} in ${figure(performance.now() - started, 0)} ms, ${told.length.toLocaleString("en")} characters`),
        el("pre", { tabindex: "0", "aria-label": "The answer" }, indented(told).slice(0, 20_000)));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      fill(answer, el("p", { class: "box loud" }, advice(error)));
    }
  } } },
  inputs.map(([parameter, input]) => [el("label", { for: input.id }, parameter.name), input]),
  text ? [el("label", { for: text.id }, "Body"), text] : null,
  el("div", { class: "actions" }, el("button", { type: "submit", class: "primary small" }, "Try it")), answer);
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text; // Prometheus text, HTML: as it came
  }
}
