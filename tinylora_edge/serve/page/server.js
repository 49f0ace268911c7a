// Requests to the server, with the page's token in their header, and the events of its replies.

const NAME = "tinylora-token";

/** An error that the server answered with, or the lack of an answer. */
export class ServerError extends Error {
  /**
   * @param {string} message for the reader.
   * @param {string} code for the program.
   */
  constructor(message, code) {
    super(message);
    this.code = code;
  }
}

/**
 * @typedef {object} Vector a vector as the server describes it
 * @property {number} numbers how many it has.
 * @property {number[] | null} values as they were set, learned or read; null where no slider moves them.
 * @property {number} norm Euclidean.
 * @property {string} vector its frame, as base64url; there the values are rounded.
 * @property {number} bytes of the frame.
 *
 * @typedef {object} About what the page shows
 * @property {string} model
 * @property {string} user
 * @property {string} basis
 * @property {number} sliders how many.
 * @property {number} reach of the sliders.
 * @property {boolean} feedback whether the server learns from clicks.
 * @property {boolean} under whether a shared vector lies beneath the visitor's: clicks on the base's answers say nothing then.
 * @property {number} max_tokens of an answer.
 * @property {Vector} vector that the page begins with.
 * @property {Vector} learned what clicks made.
 */

/**
 * Return the token. It leaves the address bar, so that it is not shared with the address; a reload finds it again.
 *
 * @returns {string} the token; empty where there is none.
 */
function takeToken() {
  const fresh = new URLSearchParams(location.hash.slice(1)).get("token");
  if (fresh) {
    sessionStorage.setItem(NAME, fresh);
    history.replaceState(null, "", location.pathname);
  }
  // To open the page's address with another token in this tab is a jump inside the page for a browser.
  addEventListener("hashchange", () => location.hash.startsWith("#token=") && location.reload());
  return fresh ?? sessionStorage.getItem(NAME) ?? "";
}

const token = takeToken();

/**
 * Send a request with the token.
 *
 * @param {string} path
 * @param {object | Blob} [body] an object goes as JSON, a file as its bytes.
 * @param {AbortSignal} [signal] that ends it.
 * @returns {Promise<Response>}
 */
export async function send(path, body, signal) {
  /** @type {RequestInit} */
  const options = { signal, headers: { Authorization: `Bearer ${token}` } };
  if (body) {
    const file = body instanceof Blob;
    options.method = "POST";
    options.body = file ? body : JSON.stringify(body);
    options.headers = { ...options.headers, "Content-Type": `application/${file ? "octet-stream" : "json"}` };
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (/** @type {Error} */ (error).name === "AbortError") throw error;
    throw new ServerError("the server does not answer: was it ended?", "unreachable");
  }
  if (response.ok) return response;
  const failed = await response.json().catch(() => null);
  throw new ServerError(failed?.error?.message ?? `status ${response.status}`, failed?.error?.code ?? "");
}

/**
 * Ask for an answer.
 *
 * @param {object} body of a chat completion.
 * @param {AbortSignal} signal that ends it.
 * @returns {AsyncGenerator<any>} its chunks.
 */
export async function* stream(body, signal) {
  const options = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await send("/v1/chat/completions", options, signal);
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError("the server ended in the middle of the answer", "cut");
    const lines = (left + decoder.decode(value, { stream: true })).split("\n");
    left = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (!line.startsWith("data: ")) continue;
      const chunk = JSON.parse(line.slice("data: ".length));
      if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code);
      yield chunk;
    }
  }
}
