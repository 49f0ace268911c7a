"""The text of an answer as its tokens come in: whole characters, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from ..stops import Stops
from .request import Piece, Token


class Text:
    """What may be shown of an answer so far.

    The beginning of a stop text is held back until it is clear that it goes on differently.

    Args:
        stop: texts that end the answer, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stops = Stops(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        self._tokens: list[Token] = []

    @property
    def stopped(self) -> bool:
        """Whether a stop text came."""
        return self._stops.stopped

    def add(self, data: bytes, token: Token | None = None) -> Piece:
        """Append the bytes of a token; return what may be shown now, which may be nothing."""
        if token is not None:
            self._tokens.append(token)
        shown = self._stops.add(self._decoder.decode(data))
        if self.stopped:
            self._tokens = []
        return self._piece(shown)

    def rest(self) -> Piece:
        """Return what was held back, at the end of the answer."""
        last = self._decoder.decode(b"", final=True)
        return self._piece(self._stops.rest() + last)

    def _piece(self, shown: str) -> Piece:
        """Return a piece; its tokens are told once nothing of them is held back."""
        if self._stops.held:
            return Piece(shown)
        tokens, self._tokens = tuple(self._tokens), []
        return Piece(shown, tokens)
