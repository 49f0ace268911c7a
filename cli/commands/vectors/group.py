"""`vector`: the group of commands that make, read and carry micro-vectors."""

from __future__ import annotations

from ...surface.commands import group
from .average import average
from .inspect import inspect_vector
from .new import new
from .pack import pack
from .qr import qr
from .receipt import receipt
from .text import as_text
from .verify import verify

vector = group(
    "Make, look at, sign, carry and average micro-vectors.",
    {
        "new": new,
        "inspect": inspect_vector,
        "average": average,
        "pack": pack,
        "verify": verify,
        "receipt": receipt,
        "text": as_text,
        "qr": qr,
    },
)
