// The token of the page: it comes in the address, behind the #, and goes into the header of each request.

const NAME = "tinylora-token";

/**
 * Return the token. It leaves the address bar, so that it is not shared with the address; a reload finds it again.
 *
 * @returns {string} the token; empty where there is none.
 */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(NAME, given);
    history.replaceState(null, "", location.pathname);
  }
  return given ?? sessionStorage.getItem(NAME) ?? "";
}

/** Begin anew where another token is opened in this tab, which a browser takes for a jump inside the page. */
export function watchToken() {
  addEventListener("hashchange", () => {
    if (location.hash.startsWith("#token=")) location.reload();
  });
}
