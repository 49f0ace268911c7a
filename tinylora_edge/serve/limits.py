"""Limits of a server, so that no client takes more than its part."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import OptionError
from ..limits import BODY_BYTES


@dataclass(frozen=True)
class Limits:
    """What a server lets its clients ask for.

    Attributes:
        requests: that are worked on at the same time, those that wait included.
        body: bytes of a request's body.
        tokens: of an answer.
        choices: answers to one prompt (`n`).
        seconds: that a request may take, until its last token.
        upload: seconds that a request's body may take to arrive.
        connections: that are open at the same time.

    Raises:
        OptionError: a limit under 1 would let nobody in.
    """

    requests: int = 1024
    body: int = BODY_BYTES
    tokens: int = 4096
    choices: int = 8
    seconds: float = 600.0
    upload: float = 30.0
    connections: int = 16_384

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 1:  # nor NaN
                raise OptionError(f"a limit of {field.name}={value} lets nobody in: pass 1 or more")
