"""Stop texts: an answer ends before the first of them, and shows nothing of it on the way."""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """The text of an answer as it comes in, up to the first of some stop texts.

    Args:
        texts: that end the answer and are no part of it, none of them empty.

    Attributes:
        held: what may be the beginning of a stop text, and is not shown until it goes on differently.
        stopped: whether one came.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self.held = ""
        self.stopped = False

    def add(self, text: str) -> str:
        """Append to the text; return what may be shown now."""
        self.held += text
        found = [at for stop in self._texts if (at := self.held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self.held = self.held[: min(found)], ""
            return shown
        keep = max((self._begun(stop) for stop in self._texts), default=0)
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown

    def rest(self) -> str:
        """Return what was held back, at the end of the answer."""
        shown, self.held = self.held, ""
        return shown

    def _begun(self, stop: str) -> int:
        """Length of the longest beginning of a stop text that the held text ends with."""
        longest = min(len(stop) - 1, len(self.held))
        return next((n for n in range(longest, 0, -1) if self.held.endswith(stop[:n])), 0)
