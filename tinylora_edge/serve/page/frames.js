// Frames: a vector goes into a file and comes out of one. What a frame means, the server knows alone.

/**
 * Return the bytes of a text in base64url.
 *
 * @param {string} text
 */
export function bytesOf(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  return Uint8Array.from(binary, (character) => character.charCodeAt(0));
}

/**
 * Give a frame to the reader as a file.
 *
 * @param {string} frame as base64url.
 * @param {string} name of the file.
 */
export function save(frame, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytesOf(frame)], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The dialog that shows a frame as a QR code. */
export class Picture {
  /** @param {HTMLDialogElement} dialog */
  constructor(dialog) {
    this.dialog = dialog;
    this.image = /** @type {HTMLImageElement} */ (dialog.querySelector("img"));
    this.text = /** @type {HTMLElement} */ (dialog.querySelector("code"));
    dialog.addEventListener("close", () => URL.revokeObjectURL(this.image.src));
  }

  /**
   * @param {Blob} picture
   * @param {string} frame as base64url.
   */
  show(picture, frame) {
    this.image.src = URL.createObjectURL(picture);
    this.text.textContent = `tinylora:${frame}`;
    this.dialog.showModal();
  }
}
