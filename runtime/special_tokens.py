"""Special tokens, such as `<|im_end|>`, which a chat template writes and which in a message are text."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, AnyStr

_CHARACTERS = 64
"""Of a special token that are looked for: a pattern nests as deep as they are long."""


class SpecialTokens:
    """The texts of a model's special tokens; where a message spells one, it stays text.

    A rendered prompt does not show whether the template wrote `<|im_end|>`, or a user, who would end their
    turn with it and could begin the system's. So each such text in a message is cut in two before the
    template is rendered, and the prompt is tokenized in parts, cut at the same places: a part has no whole
    special token but those of the template. A message without them has its usual tokens.

    Args:
        texts: of the special tokens.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        # One of a single character cannot be cut: it stays what it is. A long one is cut by its beginning.
        spelled = {text[:_CHARACTERS] for text in texts if len(text) > 1}
        # Ahead of a place, so that those that overlap are found as well.
        self._begins = re.compile(f"(?={_pattern(spelled)})") if spelled else None
        self._seam = secrets.token_hex(16)  # nobody can send it; letters, which templates leave alone

    def cut(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages with a seam in every special token that they spell; see `parts`."""
        return [self._cut(dict(message)) for message in messages]

    def parts(self, rendered: AnyStr) -> list[AnyStr]:
        """Return the parts of a rendered prompt, each to be tokenized alone: one where nothing was cut."""
        return rendered.split(self._seam if isinstance(rendered, str) else self._seam.encode())

    def _cut(self, value: Any) -> Any:
        if isinstance(value, str) and self._begins is not None:
            places = [0, *(found.start() + 1 for found in self._begins.finditer(value)), len(value)]
            return self._seam.join(value[a:b] for a, b in pairwise(places))
        if isinstance(value, Mapping):
            return {key: self._cut(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._cut(each) for each in value]
        return value


def _pattern(texts: Iterable[str]) -> str:
    """Return a pattern of any of the texts: a trie, so that a search takes as long for one as for thousands.

    Where one text begins with another, the shorter one is enough.
    """
    rests: dict[str, list[str]] = {}
    for text in texts:
        if not text:
            return ""
        rests.setdefault(text[0], []).append(text[1:])
    branches = [re.escape(first) + _pattern(rest) for first, rest in sorted(rests.items())]
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
