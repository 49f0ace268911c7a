"""Word wrap of a text that comes in by pieces: a word is held back until it is whole."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")


def columns() -> int:
    """Return how wide the terminal is now."""
    return shutil.get_terminal_size().columns


class Wrapped:
    """A text on a terminal, its lines broken between words.

    Args:
        write: writes text at once.
        columns: says how wide the terminal is now.
    """

    def __init__(self, write: Callable[[str], None], columns: Callable[[], int]) -> None:
        self._write, self._columns = write, columns
        self._blanks, self._word = "", ""  # what is held back: the word may go on
        self._begun = False  # the word is longer than a line may wait for, and its beginning is written
        self._column = 0

    def add(self, piece: str) -> None:
        """Take in more of the text; all but the last word is written."""
        for part in _PARTS.findall(piece):
            if not part.isspace():
                self._word += part
                if self._begun or cell_len(self._word) > self._columns() // 2:
                    self._put()
                    self._begun = True
                continue
            self._put()
            self._begun = False
            if part == "\n":
                self._write(part)
                self._blanks, self._column = "", 0
            else:
                self._blanks += part

    def end(self) -> None:
        """Write what is held back."""
        self._put()
        self._blanks, self._begun, self._column = "", False, 0

    def _put(self) -> None:
        room = max(self._columns() - 1, 1)
        if not self._word:
            return
        if not self._begun:
            if self._column and self._column + cell_len(self._blanks + self._word) > room:
                self._write("\n")
                self._column = 0
            else:
                self._write(self._blanks)
                self._column += cell_len(self._blanks)
            self._blanks = ""
        self._write(self._word)
        self._column += cell_len(self._word)
        if self._column > room:  # the terminal itself broke the word
            self._column %= room + 1
        self._word = ""
