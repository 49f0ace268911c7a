// The server: what the page asks it, with the token in the header, and its events as they come.

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
 * @property {number[]} values as they were set, learned or read.
 * @property {number} norm Euclidean.
 * @property {string} vector its frame, as base64url; there the values are rounded.
 * @property {number} bytes of the frame.
 *
 * @typedef {object} About what the page shows
 * @property {string} model
 * @property {string} user
 * @property {string} basis
 * @property {string[]} axes a name for each value.
 * @property {number} reach of the sliders.
 * @property {boolean} feedback whether the server learns from clicks.
 * @property {number} max_tokens of an answer.
 * @property {Vector} vector that the page begins with.
 * @property {Vector} learned what clicks made.
 *
 * @typedef {object} Chunk a chunk of a chat completion
 * @property {string} id
 * @property {{delta: {content?: string}, finish_reason: string | null}[]} choices
 * @property {{completion_tokens: number}} [usage]
 */

/** The server that this page came from. */
export class Server {
  /** @param {string} token */
  constructor(token) {
    this.headers = { Authorization: `Bearer ${token}` };
  }

  /** @returns {Promise<About>} */
  async about() {
    return (await this.#send("/v1/page")).json();
  }

  /**
   * @param {number[]} values
   * @returns {Promise<Vector>} the vector of these values.
   */
  async make(values) {
    return (await this.#post("/v1/page/vector", { values })).json();
  }

  /**
   * @param {BodyInit} data bytes or text of a file.
   * @returns {Promise<Vector>} the vector in it.
   */
  async open(data) {
    const headers = { "Content-Type": "application/octet-stream" };
    return (await this.#send("/v1/page/vector", { method: "POST", body: data, headers })).json();
  }

  /**
   * @param {string} vector a frame.
   * @returns {Promise<Blob>} its QR code.
   */
  async picture(vector) {
    return (await this.#post("/v1/page/qr", { vector })).blob();
  }

  /**
   * @param {string} vector a frame.
   * @returns {Promise<{kl: number, standard_error: number, prompts: number}>} how far it is from the base.
   */
  async drift(vector) {
    return (await this.#post("/v1/page/drift", { vector })).json();
  }

  /**
   * @param {string} id of an answer.
   * @param {1 | -1} reward for a like or a dislike.
   */
  async tell(id, reward) {
    await this.#post("/v1/feedback", { id, reward });
  }

  /**
   * Ask for an answer.
   *
   * @param {object} body of a chat completion.
   * @param {AbortSignal} signal that ends it.
   * @returns {AsyncGenerator<Chunk>} its chunks.
   */
  async *stream(body, signal) {
    const asked = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await this.#post("/v1/chat/completions", asked, signal);
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ServerError(chunk.error.message, chunk.error.code);
      yield chunk;
    }
    throw new ServerError("the server ended in the middle of the answer", "cut");
  }

  /**
   * @param {string} path
   * @param {object} body
   * @param {AbortSignal} [signal]
   */
  #post(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    return this.#send(path, { method: "POST", body: JSON.stringify(body), headers, signal });
  }

  /**
   * @param {string} path
   * @param {RequestInit} [options]
   * @returns {Promise<Response>}
   */
  async #send(path, options = {}) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...this.headers } });
    } catch (error) {
      if (/** @type {Error} */ (error).name === "AbortError") throw error;
      throw new ServerError("the server does not answer: was it ended?", "unreachable");
    }
    if (response.ok) return response;
    const said = await response.json().catch(() => null);
    throw new ServerError(said?.error?.message ?? `status ${response.status}`, said?.error?.code ?? "");
  }
}

/**
 * @param {Response} response a stream of events.
 * @returns {AsyncGenerator<string>} the data of each.
 */
async function* events(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let left = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (left + decoder.decode(value, { stream: true })).split("\n");
    left = /** @type {string} */ (lines.pop());
    for (const line of lines) {
      if (line.startsWith("data: ")) yield line.slice("data: ".length);
    }
  }
}
