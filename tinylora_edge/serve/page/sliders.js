// Sliders: one for each value of the vector, with a bar from 0 to it. Values may glide to others.

const GLIDE_MS = 700;
const MARK_MS = 4_000;
const SNAP = 0.012; // of the reach: so near to 0 it is 0

/**
 * Return a value as it is written here.
 *
 * @param {number} value
 */
export function written(value) {
  return value.toFixed(3).replace(/^-0\.000$/, "0.000").replace("-", "−");
}

/** The sliders of a vector. */
export class Sliders {
  /**
   * @param {HTMLFieldSetElement} root
   * @param {string[]} axes a name for each value.
   * @param {number} reach how far from 0 they go.
   * @param {() => void} moved called when the reader has moved one.
   */
  constructor(root, axes, reach, moved) {
    this.root = root;
    this.axes = axes;
    this.reach = reach;
    this.values = axes.map(() => 0);
    const named = axes.some((name, number) => name !== `v${number + 1}`);
    this.rows = axes.map((name, number) => this.#row(name, number, named, moved));
    root.append(...this.rows.map((row) => row.root));
    this.set(this.values);
  }

  /** The Euclidean norm of the values. */
  get norm() {
    return Math.hypot(...this.values);
  }

  /**
   * Set all values.
   *
   * @param {number[]} values
   */
  set(values) {
    cancelAnimationFrame(this.frame ?? 0);
    this.#show(values);
  }

  /**
   * Let all values glide to others, so that one sees which moved.
   *
   * @param {number[]} values
   * @returns {Promise<void>} when they are there.
   */
  glide(values) {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      this.set(values);
      return Promise.resolve();
    }
    cancelAnimationFrame(this.frame ?? 0);
    const before = this.values;
    const start = performance.now();
    return new Promise((done) => {
      const step = () => {
        const share = Math.min(1, (performance.now() - start) / GLIDE_MS);
        const eased = 1 - (1 - share) ** 3;
        this.#show(share < 1 ? values.map((to, i) => before[i] + eased * (to - before[i])) : values);
        if (share < 1) this.frame = requestAnimationFrame(step);
        else done();
      };
      step();
    });
  }

  /**
   * Let values glide by what was learned, mark for a moment those that moved, and say which moved most.
   *
   * @param {number[]} values that they glide to.
   * @returns {Promise<string>}
   */
  async learn(values) {
    const change = values.map((value, i) => value - this.values[i]);
    const sizes = change.map(Math.abs);
    const largest = Math.max(...sizes);
    if (largest < 0.0005) return "no bar moved by as much as 0.001";
    this.rows.forEach((row, i) => row.root.classList.toggle("moved", sizes[i] >= 0.0005));
    clearTimeout(this.marked);
    this.marked = setTimeout(() => this.rows.forEach((row) => row.root.classList.remove("moved")), MARK_MS);
    await this.glide(values);
    const most = sizes.indexOf(largest);
    return `${this.axes[most]} moved most, by ${change[most] > 0 ? "+" : ""}${written(change[most])}`;
  }

  /** @param {number[]} values */
  #show(values) {
    this.values = [...values];
    const farthest = Math.max(...values.map(Math.abs));
    if (farthest > this.reach) this.reach = Math.ceil(farthest * 10) / 10;
    this.rows.forEach((row, number) => this.#draw(row, values[number]));
  }

  /**
   * @param {{input: HTMLInputElement, bar: HTMLElement, output: HTMLOutputElement}} row
   * @param {number} value
   */
  #draw({ input, bar, output }, value) {
    const shown = written(value);
    input.min = String(-this.reach);
    input.max = String(this.reach);
    input.value = String(value);
    input.setAttribute("aria-valuetext", shown);
    input.classList.toggle("zero", Number(shown) === 0);
    bar.style.setProperty("--share", String(value / this.reach));
    bar.classList.toggle("below", value < 0);
    output.value = shown;
  }

  /**
   * @param {string} name
   * @param {number} number
   * @param {boolean} named whether names are words.
   * @param {() => void} moved
   */
  #row(name, number, named, moved) {
    const root = document.createElement("div");
    const label = document.createElement("label");
    const rail = document.createElement("div");
    const bar = document.createElement("span");
    const input = document.createElement("input");
    const output = document.createElement("output");
    const row = { root, input, bar, output };
    root.className = named ? "axis named" : "axis";
    rail.className = "rail";
    bar.className = "bar";
    input.id = `value-${number + 1}`;
    input.type = "range";
    input.step = "any"; // a value that came from elsewhere stays what it is
    label.htmlFor = input.id;
    label.textContent = name;
    output.htmlFor = input.id;
    output.setAttribute("aria-live", "off"); // the slider itself says its value
    const take = (/** @type {number} */ value) => {
      cancelAnimationFrame(this.frame ?? 0);
      this.values[number] = Math.abs(value) < SNAP * this.reach ? 0 : Math.round(value * 1000) / 1000;
      this.#draw(row, this.values[number]);
      moved();
    };
    input.addEventListener("input", () => take(Number(input.value)));
    input.addEventListener("keydown", (event) => {
      if (!["0", "Backspace", "Delete"].includes(event.key)) return;
      event.preventDefault();
      take(0);
    });
    label.addEventListener("dblclick", () => take(0));
    rail.append(bar, input);
    root.append(label, rail, output);
    return row;
  }
}
