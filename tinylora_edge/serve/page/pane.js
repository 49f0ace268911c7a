// A pane: an answer as it comes in, how fast it came, and the buttons that say what the reader thinks of it.

/** @typedef {import("./server.js").Server} Server */

/** A pane with the answer of one model. */
export class Pane {
  /**
   * @param {HTMLElement} root
   * @param {(pane: Pane, click: string) => void} clicked called with `like`, `dislike` or `better`.
   */
  constructor(root, clicked) {
    this.root = root;
    this.place = /** @type {HTMLElement} */ (root.querySelector(".answer"));
    this.speed = /** @type {HTMLElement} */ (root.querySelector(".speed"));
    this.footer = /** @type {HTMLElement} */ (root.querySelector(".clicks"));
    this.id = ""; // of an answer that is whole, and that was not told about
    this.text = "";
    this.footer.addEventListener("click", (event) => {
      const button = /** @type {HTMLElement} */ (event.target).closest("button");
      if (button) clicked(this, button.dataset.click ?? "");
    });
  }

  /**
   * Show an answer as it comes. One that is still coming ends.
   *
   * @param {Server} server
   * @param {object} body of the request.
   */
  async run(server, body) {
    this.stop();
    const own = (this.running = new AbortController());
    this.#begin();
    const from = performance.now();
    let first = 0;
    let pieces = 0;
    try {
      for await (const chunk of server.stream(body, own.signal)) {
        const text = chunk.choices[0]?.delta.content;
        if (text) {
          first ||= performance.now();
          pieces += 1;
          this.#add(text);
          this.#rate(pieces, pieces, first);
        }
        if (chunk.usage) {
          this.#rate(chunk.usage.completion_tokens, pieces, first || from);
          this.id = chunk.id;
        }
      }
    } catch (error) {
      if (!own.signal.aborted) throw error;
    } finally {
      if (this.running === own) {
        this.running = undefined;
        this.place.setAttribute("aria-busy", "false");
      }
    }
  }

  /** End an answer that is coming; what is there stays. */
  stop() {
    this.running?.abort();
  }

  /**
   * Offer the buttons.
   *
   * @param {boolean} offered for an answer that is whole.
   * @param {boolean} comparable whether the other answer is, too, and says something else.
   */
  offer(offered, comparable) {
    this.footer.hidden = !offered && !this.pressed;
    for (const button of this.footer.querySelectorAll("button")) {
      button.disabled = !offered || (button.dataset.click === "better" && !comparable);
    }
  }

  /**
   * Show which button was pressed; the answer can be told about once.
   *
   * @param {string} click
   */
  press(click) {
    this.id = "";
    this.pressed = click;
    for (const button of this.footer.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.click === click));
    }
  }

  #begin() {
    this.id = "";
    this.text = "";
    this.pressed = "";
    this.place.textContent = "";
    this.speed.textContent = "";
    this.place.setAttribute("aria-busy", "true");
    for (const button of this.footer.querySelectorAll("button")) button.removeAttribute("aria-pressed");
  }

  /** @param {string} text */
  #add(text) {
    const atEnd = this.place.scrollHeight - this.place.scrollTop - this.place.clientHeight < 24;
    this.text += text;
    this.place.append(text);
    if (atEnd) this.place.scrollTop = this.place.scrollHeight;
  }

  /**
   * @param {number} tokens
   * @param {number} pieces that came.
   * @param {number} first when the first of them came, in milliseconds.
   */
  #rate(tokens, pieces, first) {
    const seconds = (performance.now() - first) / 1000;
    const rate = pieces > 1 && seconds > 0 ? `, ${((tokens - 1) / seconds).toFixed(1)} tokens/s` : "";
    this.speed.textContent = `${tokens} ${tokens === 1 ? "token" : "tokens"}${rate}`;
  }
}
