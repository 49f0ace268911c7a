"""The text of an answer as its tokens come in: whole characters, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .request import Piece, Token


class Text:
    """What may be shown of an answer so far.

    The beginning of a stop text is held back until it is clear that it goes on differently.

    Args:
        stop: texts that end the answer, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._held = ""
        self._tokens: list[Token] = []
        self.stopped = False

    def add(self, data: bytes, token: Token | None = None) -> Piece:
        """Append the bytes of a token; return what may be shown now, which may be nothing."""
        self._held += self._decoder.decode(data)
        if token is not None:
            self._tokens.append(token)
        found = [at for text in self._stop if (at := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            shown, self._held, self._tokens = self._held[: min(found)], "", []
            return Piece(shown)
        return self._show(len(self._held) - self._begun())

    def rest(self) -> Piece:
        """Return what was held back, at the end of the answer."""
        self._held += self._decoder.decode(b"", final=True)
        return self._show(len(self._held))

    def _show(self, length: int) -> Piece:
        shown, self._held = self._held[:length], self._held[length:]
        if self._held:
            return Piece(shown)
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(shown, tokens)

    def _begun(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        most = max((len(text) for text in self._stop), default=1) - 1
        for length in range(min(most, len(self._held)), 0, -1):
            if any(text.startswith(self._held[-length:]) for text in self._stop):
                return length
        return 0
