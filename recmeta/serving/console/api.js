// The one door to the server: requests with the key, errors with their reason. It must never draw.

const KEY = "recmeta-key";

/** An answer that is none: `status` is 0 where the server could not be reached. */
export class ApiError extends Error {
  constructor(status, type, message) {
    super(message);
    this.status = status;
    this.type = type;
  }
}

/** Take the key out of the address (`#key=...`), where the server's start puts it, and out of sight. */
export function takeKeyFromAddress() {
  const told = new URLSearchParams(location.hash.slice(1));
  const given = told.get("key");
  if (given === null) return;
  setKey(given);
  told.delete("key");
  history.replaceState(null, "", `${location.pathname}#${told}`);
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  const plain = value.trim();
  if (plain) sessionStorage.setItem(KEY, plain);
  else sessionStorage.removeItem(KEY);
}

/** Ask the server; gives the response whatever its status, and throws only where none comes. */
export async function respond(method, path, { query, body, type = "application/json", signal } = {}) {
  const headers = {};
  // A header holds Latin letters only: a key that cannot be one is sent as none, and refused like any other.
  if (key()) headers.authorization = `Bearer ${/^[\x21-\x7e]+$/.test(key()) ? key() : "-"}`;
  if (body !== undefined) headers["content-type"] = type;
  const search = query ? `?${new URLSearchParams(query)}` : "";
  try {
    return await fetch(path + search, { method, headers, body, signal, cache: "no-store", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "Unreachable", "the server does not answer");
  }
}

async function answered(response, read) {
  if (response.ok) return read(response);
  let fault = {};
  try {
    fault = (await response.json()).error ?? {};
  } catch { /* an answer that is not the server's own: its status says what there is to say */ }
  const error = new ApiError(response.status, fault.type ?? "Error", fault.message ?? `the server answered ${response.status}`);
  if (error.status === 401) document.dispatchEvent(new CustomEvent("key-refused", { detail: error }));
  throw error;
}

export async function get(path, query, options = {}) {
  return answered(await respond("GET", path, { query, ...options }), (response) => response.json());
}

export async function getText(path) {
  return answered(await respond("GET", path), (response) => response.text());
}

export async function post(path, value, options = {}) {
  return answered(await respond("POST", path, { body: JSON.stringify(value), ...options }), (response) => response.json());
}

export async function sendFile(path, query, file, type) {
  return answered(await respond("POST", path, { query, body: file, type }), (response) => response.json());
}

/** What a person can do about an error. */
export function advice(error) {
  if (error.status === 403) {
    return `This needs the admin key, and the one in use may only read (${error.message}). It stands in keys.json in the workspace; “Key” above takes it.`;
  }
  if (error.status === 401) return `A key is missing or was refused (${error.message}); “Key” above takes one.`;
  if (error.status === 0) return "The server does not answer. This page looks again every few seconds.";
  if (error.status === 409) return `Something else was promoted meanwhile: ${error.message}`;
  return error.message;
}
